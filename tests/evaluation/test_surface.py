"""Surface metrics: against MONAI's, which are computed by other means, and on masks without any surface."""

import math

import cv2
import numpy as np
import pytest
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice

from sam_med2d.evaluation.surface import outline, surface_distances, surface_metrics


def both(predicted: np.ndarray, truth: np.ndarray, tolerance: float) -> tuple[float, float]:
    found = surface_metrics(predicted, truth, tolerance)
    assert [*found] == ["nsd", "hd95"]
    return found["nsd"], found["hd95"]


def blobs(seed: int, shape: tuple[int, int], threshold: float = 0.0) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return cv2.GaussianBlur(noise, (0, 0), 4) > threshold * 0.07


def disc(shape: tuple[int, int], y: float, x: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


PAIRS = [
    (blobs(seed, shape, 0.2), blobs(seed + 50, shape, 0.5))
    for seed, shape in enumerate([(64, 64), (40, 90), (128, 31), (200, 200)])
]
PAIRS += [(blobs(seed, (96, 80)), np.roll(blobs(seed, (96, 80)), (2, -1), axis=(0, 1))) for seed in range(4)]
PAIRS += [
    (disc((60, 60), 30, 30, 12), disc((60, 60), 30, 30, 12)),  # alike
    (disc((60, 60), 30, 30, 12), disc((60, 60), 29, 33, 9)),
    (disc((60, 60), 10, 10, 3), disc((60, 60), 50, 50, 3)),  # apart
    (np.ones((20, 30), bool), disc((20, 30), 10, 15, 5)),  # up to the picture's border
    (disc((50, 50), 25, 25, 0.5), disc((50, 50), 20, 22, 0.5)),  # single pixels
    (disc((50, 50), 25, 25, 0.5), disc((50, 50), 20, 22, 15)),
    (np.eye(30, dtype=bool), np.eye(30, dtype=bool)[::-1].copy()),  # lines
]


@pytest.mark.parametrize("tolerance", [0.0, 1.0, 1.5, 3.0])
@pytest.mark.parametrize("pair", range(len(PAIRS)))
def test_monai_finds_the_same(pair: int, tolerance: float) -> None:
    predicted, truth = PAIRS[pair]
    tensors = [torch.from_numpy(mask)[None, None].float() for mask in (predicted, truth)]
    nsd, hd95 = both(predicted, truth, tolerance)
    expected = compute_surface_dice(*tensors, class_thresholds=[tolerance], include_background=True).item()
    assert nsd == pytest.approx(expected, abs=1e-6)
    expected = compute_hausdorff_distance(*tensors, include_background=True, percentile=95).item()
    assert hd95 == pytest.approx(expected, abs=1e-4)


def test_the_pairs_are_of_many_kinds() -> None:
    found = [both(*pair, 1.0) for pair in PAIRS]
    assert len({round(nsd, 3) for nsd, _ in found}) > 9 and len({round(hd95, 2) for _, hd95 in found}) > 9
    assert {nsd for nsd, _ in found} >= {0.0, 1.0}


@pytest.mark.parametrize(
    "predicted, truth, expected",
    [
        (False, False, (1.0, 0.0)),
        (True, False, (0.0, 50.0)),
        (False, True, (0.0, 50.0)),
    ],
    ids=["both empty", "truth empty", "prediction empty"],
)
def test_empty_masks_follow_the_rule(predicted: bool, truth: bool, expected: tuple[float, float]) -> None:
    """The distance is the diagonal of a picture of 30 x 40 pixels."""
    masks = [disc((30, 40), 15, 20, 6) if there else np.zeros((30, 40), bool) for there in (predicted, truth)]
    assert both(*masks, 2.0) == expected


def test_distances_by_hand() -> None:
    """Two squares of 3 x 3 pixels, 4 columns apart: their outlines are all but the middle."""
    predicted, truth = np.zeros((2, 9, 12), bool)
    predicted[3:6, 1:4], truth[3:6, 5:8] = True, True
    assert outline(predicted).sum() == 8 and not outline(predicted)[4, 2]
    there, back = surface_distances(predicted, truth)
    assert sorted(there) == sorted(back) == [2.0] * 3 + [3.0] * 2 + [4.0] * 3
    assert both(predicted, truth, 2.0) == (6 / 16, 4.0)
    assert surface_metrics(predicted, truth, 2.0, ["hd95"]) == {"hd95": 4.0}


def test_masks_are_left_alone_and_views_do() -> None:
    truth = disc((40, 40), 20, 20, 9)
    wide = np.repeat(np.repeat(truth, 2, axis=0), 2, axis=1)
    assert both(wide[::2, ::2], truth, 0.0) == (1.0, 0.0)
    assert truth.sum() == disc((40, 40), 20, 20, 9).sum()
    assert math.isclose(both(disc((40, 40), 20, 20, 12), truth, 3.0)[0], 1.0)
