"""Distances between the outlines of two masks: normalised surface Dice and the 95th percentile Hausdorff distance.

The outline of a mask is its pixels that touch something else on one of their four sides; beyond the picture is
something else. Distances are between pixel centres, in pixels. One object at a time, as objects differ in size:
distances are computed inside the rectangle that holds both outlines, which changes none of them.

Where a mask is empty: both, and the surface Dice is 1 and the distance 0; one, and they are 0 and the diagonal of
the picture, the largest distance there can be, so that an object that was not found at all counts as badly as it
should.
"""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import cv2
import numpy as np


class Surfaces(NamedTuple):
    """Two outlines of one object, in pixels.

    there, back: for each pixel of the predicted outline the distance to the nearest of the true one, and the other way
    round; None where one of the masks, or both, are empty. alike: whether both are. diagonal: of the picture.
    """

    there: np.ndarray | None
    back: np.ndarray | None
    alike: bool
    diagonal: float
    tolerance: float


SurfaceMetric = Callable[[Surfaces], float]

METRICS: dict[str, SurfaceMetric] = {}


def surface_metric(function: SurfaceMetric) -> SurfaceMetric:
    """Adds a function to METRICS, by its name; `columns.py` has a row of that name."""
    METRICS[function.__name__] = function
    return function


@surface_metric
def nsd(surfaces: Surfaces) -> float:
    """Normalised surface Dice: Nikolov et al. 2018 (arXiv 1809.04430), section 4.5, on pixels."""
    there, back, alike, _, tolerance = surfaces
    if there is None or back is None:
        return float(alike)
    near = np.count_nonzero(there <= tolerance) + np.count_nonzero(back <= tolerance)
    return near / (len(there) + len(back))


@surface_metric
def hd95(surfaces: Surfaces) -> float:
    """95th percentile of the Hausdorff distance, the larger of the two directions."""
    there, back, alike, diagonal, _ = surfaces
    if there is None or back is None:
        return 0.0 if alike else diagonal
    return float(max(np.percentile(there, 95), np.percentile(back, 95)))


def surface_metrics(
    predicted: np.ndarray, truth: np.ndarray, tolerance: float, names: Iterable[str] = tuple(METRICS)
) -> dict[str, float]:
    """Metrics of one object by name. predicted, truth: (H, W) bool; tolerance: pixels."""
    there = back = None
    if predicted.any() and truth.any():
        there, back = surface_distances(predicted, truth)
    surfaces = Surfaces(there, back, predicted.any() == truth.any(), math.hypot(*truth.shape), tolerance)
    return {name: METRICS[name](surfaces) for name in names}


def metrics_of_nothing(height: int, width: int, names: Iterable[str] = tuple(METRICS)) -> dict[str, float]:
    """Metrics of an object in a picture of this size for which nothing was predicted, by name."""
    surfaces = Surfaces(None, None, False, math.hypot(height, width), 0.0)
    return {name: METRICS[name](surfaces) for name in names}


def surface_distances(predicted: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each pixel of one outline the distance to the nearest of the other: from the prediction, from the truth.

    Neither mask may be empty. -> two 1D arrays.
    """
    rows, columns = (np.flatnonzero((predicted | truth).any(axis=axis)) for axis in (1, 0))
    place = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    ours, theirs = outline(predicted[place]), outline(truth[place])
    return _distance_to(theirs)[ours], _distance_to(ours)[theirs]


def outline(mask: np.ndarray) -> np.ndarray:
    """(H, W) bool -> (H, W) bool"""
    padded = np.pad(mask, 1)
    return mask & ~(padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:])


def _distance_to(pixels: np.ndarray) -> np.ndarray:
    """(H, W) float64, Euclidean distance of every pixel to the nearest of `pixels`."""
    distance = cv2.distanceTransform((~pixels).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE).astype(np.float64)
    # OpenCV's last digits differ from call to call; a squared distance of pixels is a whole number
    return np.sqrt(np.rint(distance**2))
