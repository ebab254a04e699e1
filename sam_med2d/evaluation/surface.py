"""Distances between the outlines of two masks: normalised surface Dice and the 95th percentile Hausdorff distance.

The outline of a mask is its pixels that touch something else on one of their four sides; beyond the picture is
something else. Distances are between pixel centres, in pixels. One object at a time, as objects differ in size:
distances are computed inside the rectangle that holds both outlines, which changes none of them.

Where a mask is empty: both, and the surface Dice is 1 and the distance 0; one, and they are 0 and the diagonal of
the picture, the largest distance there can be, so that an object that was not found at all counts as badly as it
should.
"""

import math
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

import cv2
import numpy as np
from scipy.ndimage import distance_transform_edt

Spacing = tuple[float, float]  # millimetres from row to row and from column to column

PIXELS, MILLIMETRES, DIAGONALS = "px", "mm", "%"


class Tolerance(NamedTuple):
    """How far apart two outlines may be and still count as met. unit: pixels, millimetres, or per cent of the diagonal
    of the picture."""

    value: float
    unit: str = PIXELS

    @classmethod
    def of(cls, text: str | float) -> "Tolerance":
        """`2`, `2px`, `1.5mm` or `0.5%`. Raises ValueError: it is none of these."""
        match = re.fullmatch(r"\s*([0-9.eE+-]+)\s*(px|mm|%)?\s*", str(text))
        value = float(match[1]) if match else math.nan
        if not (match and 0 <= value < math.inf):
            raise ValueError(f"{text!r} is no distance of at least 0 such as 2, 2px, 1.5mm, or 0.5% of the diagonal")
        return cls(value, match[2] or PIXELS)

    def pixels(self, height: int, width: int, spacing: Spacing | None) -> float:
        """In pixels of a picture, the larger ones where they are not square. Raises ValueError: no spacing is known."""
        if self.unit == PIXELS:
            return self.value
        if self.unit == DIAGONALS:
            return self.value / 100 * math.hypot(height, width)
        if spacing is None:
            raise ValueError("a tolerance in millimetres needs the spacing of the picture")
        return self.value / max(spacing)

    def plain(self) -> float | str:
        """As it is kept among flags: a number of pixels, or text with the unit. `of` reads it."""
        return self.value if self.unit == PIXELS else f"{self.value:g}{self.unit}"

    def __str__(self) -> str:
        return f"{self.value:g}{'' if self.unit == DIAGONALS else ' '}{self.unit}"


class Surfaces(NamedTuple):
    """Two outlines of one object, in pixels.

    there, back: for each pixel of the predicted outline the distance to the nearest of the true one, and the other way
    round; None where one of the masks, or both, are empty. alike: whether both are. diagonal: of the picture.
    near: how many pixels of the two outlines are within the tolerance.
    """

    there: np.ndarray | None
    back: np.ndarray | None
    alike: bool
    diagonal: float
    near: int = 0


SurfaceMetric = Callable[[Surfaces], float]

METRICS: dict[str, SurfaceMetric] = {}


def surface_metric(function: SurfaceMetric) -> SurfaceMetric:
    """Adds a function to METRICS, by its name; `columns.py` has a row of that name."""
    METRICS[function.__name__] = function
    return function


@surface_metric
def nsd(surfaces: Surfaces) -> float:
    """Normalised surface Dice: Nikolov et al. 2018 (arXiv 1809.04430), section 4.5, on pixels."""
    if surfaces.there is None or surfaces.back is None:
        return float(surfaces.alike)
    return surfaces.near / (len(surfaces.there) + len(surfaces.back))


@surface_metric
def hd95(surfaces: Surfaces) -> float:
    """95th percentile of the Hausdorff distance, the larger of the two directions."""
    if surfaces.there is None or surfaces.back is None:
        return 0.0 if surfaces.alike else surfaces.diagonal
    return float(max(np.percentile(surfaces.there, 95), np.percentile(surfaces.back, 95)))


def surface_metrics(
    predicted: np.ndarray,
    truth: np.ndarray,
    tolerance: float | Tolerance,
    names: Iterable[str] = tuple(METRICS),
    spacing: Spacing | None = None,
) -> dict[str, float]:
    """Metrics of one object by name. predicted, truth: (H, W) bool; tolerance: a number is of pixels."""
    surfaces = surfaces_of(predicted, truth, tolerance, spacing)
    return {name: METRICS[name](surfaces) for name in names}


def surfaces_of(
    predicted: np.ndarray, truth: np.ndarray, tolerance: float | Tolerance, spacing: Spacing | None = None
) -> Surfaces:
    """predicted, truth: (H, W) bool; tolerance: a number is of pixels; spacing: of the picture, where it is known.

    Raises ValueError: the tolerance is of millimetres and there is no spacing.
    """
    tolerance = tolerance if isinstance(tolerance, Tolerance) else Tolerance(tolerance)
    height, width = truth.shape
    diagonal, within = math.hypot(height, width), tolerance.pixels(height, width, spacing)
    if not (predicted.any() and truth.any()):
        return Surfaces(None, None, predicted.any() == truth.any(), diagonal)
    there, back = surface_distances(predicted, truth)
    measured = there, back
    if tolerance.unit == MILLIMETRES and spacing is not None and spacing[0] != spacing[1]:
        measured, within = surface_distances(predicted, truth, spacing), tolerance.value
    near = sum(int(np.count_nonzero(distances <= within)) for distances in measured)
    return Surfaces(there, back, True, diagonal, near)


def metrics_of_nothing(height: int, width: int, names: Iterable[str] = tuple(METRICS)) -> dict[str, float]:
    """Metrics of an object in a picture of this size for which nothing was predicted, by name."""
    surfaces = Surfaces(None, None, False, math.hypot(height, width))
    return {name: METRICS[name](surfaces) for name in names}


def surface_distances(
    predicted: np.ndarray, truth: np.ndarray, spacing: Spacing = (1.0, 1.0)
) -> tuple[np.ndarray, np.ndarray]:
    """For each pixel of one outline the distance to the nearest of the other: from the prediction, from the truth.

    Neither mask may be empty. spacing: what a row and a column are apart; by default distances are of pixels.
    -> two 1D arrays.
    """
    rows, columns = (np.flatnonzero((predicted | truth).any(axis=axis)) for axis in (1, 0))
    place = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    ours, theirs = outline(predicted[place]), outline(truth[place])
    return _distance_to(theirs, spacing)[ours], _distance_to(ours, spacing)[theirs]


def outline(mask: np.ndarray) -> np.ndarray:
    """(H, W) bool -> (H, W) bool"""
    padded = np.pad(mask, 1)
    return mask & ~(padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:])


def _distance_to(pixels: np.ndarray, spacing: Spacing) -> np.ndarray:
    """(H, W) float64, Euclidean distance of every pixel to the nearest of `pixels`."""
    if spacing[0] != spacing[1]:
        return np.asarray(distance_transform_edt(~pixels, sampling=spacing))
    distance = cv2.distanceTransform((~pixels).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE).astype(np.float64)
    # OpenCV's last digits differ from call to call; a squared distance of pixels is a whole number
    return np.sqrt(np.rint(distance**2)) * spacing[0]
