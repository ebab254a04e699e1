"""Masks to COCO and back."""

import numpy as np
import pytest

from sam_med2d.coco import mask_of, segmentation_of
from sam_med2d.errors import DataError


def pieces() -> np.ndarray:
    """Two pieces, one a single line of pixels that touches the border."""
    mask = np.zeros((20, 30), bool)
    mask[2:9, 3:17] = True
    mask[15, 20:30] = True
    return mask


def ring() -> np.ndarray:
    mask = pieces()
    mask[4:6, 6:9] = False
    return mask


@pytest.mark.parametrize("mask, kind", [(pieces(), list), (ring(), dict), (~np.zeros((5, 7), bool), list)])
def test_what_is_written_reads_back(mask: np.ndarray, kind: type) -> None:
    segmentation = segmentation_of(mask)
    assert isinstance(segmentation, kind)
    assert (mask_of(segmentation, *mask.shape, "it") == mask).all()


def test_uncompressed_run_lengths_go_down_the_columns() -> None:
    found = mask_of({"size": [2, 3], "counts": [1, 2, 3]}, 2, 3, "it")
    assert found.tolist() == [[False, True, False], [True, False, False]]


@pytest.mark.parametrize(
    "segmentation, message",
    [
        ([[1, 2, 3, 4]], "a polygon needs three points or more"),
        ([], "a polygon needs three points or more"),
        ({"size": [3, 2], "counts": [6]}, "is for \\[3, 2\\] \\(height, width\\), not \\[2, 3\\]"),
        ({"size": [2, 3], "counts": [7]}, "do not add up to the image"),
        ({"size": [2, 3]}, "has no run lengths"),
    ],
)
def test_what_is_no_segmentation_is_named(segmentation, message: str) -> None:
    with pytest.raises(DataError, match=f"annotation 7 of a.png.*{message}"):
        mask_of(segmentation, 2, 3, "annotation 7 of a.png")
