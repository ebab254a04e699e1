"""The innermost pixel of a region."""

import numpy as np
import pytest

from sam_med2d.regions import innermost_pixel


@pytest.mark.parametrize(
    "rows, columns, pixel",
    [
        (slice(2, 7), slice(3, 8), (5, 4)),
        (slice(0, 5), slice(0, 5), (2, 2)),  # the picture's border is an edge
        (slice(4, 5), slice(1, 9), (1, 4)),  # all alike: the first in reading order
        (slice(0, 12), slice(0, 12), (5, 5)),  # four alike
    ],
)
def test_of_rectangles(rows: slice, columns: slice, pixel: tuple[int, int]) -> None:
    region = np.zeros((12, 12), bool)
    region[rows, columns] = True
    assert innermost_pixel(region) == pixel


def test_no_pixel_is_farther_from_the_edge() -> None:
    """Against distances measured one by one."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        region = np.kron(rng.random((6, 6)) < 0.6, np.ones((4, 4))).astype(bool)
        region[0, 0] = True
        padded = np.pad(region, 1)
        outside = np.argwhere(~padded)
        squared = {(x, y): ((outside - (y + 1, x + 1)) ** 2).sum(axis=1).min() for y, x in np.argwhere(region)}
        assert innermost_pixel(region) == next(pixel for pixel, d in squared.items() if d == max(squared.values()))
