"""Closed contours filled: pixels whose centres lie inside, by the even-odd rule, or on a contour."""

from collections.abc import Sequence

import numpy as np

ON = 0.01  # of a pixel, that its centre may be off a contour and still lie on it: files round their coordinates


def filled(polygons: Sequence[np.ndarray], height: int, width: int) -> np.ndarray:
    """The contours of one plane, each (N, 2) xy with pixel centres at whole numbers -> (H, W) bool.

    A contour inside another one is a hole. Pixels whose centres lie on any contour belong to the object, so that a
    contour drawn through the centres of its border pixels keeps them.
    """
    mask, rim = np.zeros((2, height, width), bool)
    for polygon in polygons:
        mask ^= inside(polygon, height, width)
        rim |= on_contour(polygon, height, width)
    return mask | rim


def inside(polygon: np.ndarray, height: int, width: int) -> np.ndarray:
    """The pixels whose centres lie inside a polygon, (N, 2) xy -> (H, W) bool; of those on it, some.

    Each edge flips all pixels to its right, row by row; an odd number of flips is inside.
    """
    start, end = polygon, np.roll(polygon, -1, axis=0)
    downwards = (start[:, 1] <= end[:, 1])[:, None]
    upper, lower = np.where(downwards, start, end), np.where(downwards, end, start)
    # Rows are half-open, so that a corner counts once.
    edge, row = _whole_numbers(np.ceil(upper[:, 1]), np.ceil(lower[:, 1]), height)
    (x0, y0), (x1, y1) = upper[edge].T, lower[edge].T
    crossing = np.ceil(x0 + (row - y0) * (x1 - x0) / (y1 - y0))
    flips = np.zeros((height, width + 1), np.int64)
    np.add.at(flips, (row, np.clip(crossing, 0, width).astype(int)), 1)
    return np.add.accumulate(flips[:, :width], axis=1) % 2 == 1


def on_contour(polygon: np.ndarray, height: int, width: int) -> np.ndarray:
    """The pixels whose centres lie on the edges of a polygon, (N, 2) xy -> (H, W) bool."""
    mask = np.zeros((height, width), bool)
    start, end = polygon, np.roll(polygon, -1, axis=0)
    flat = np.abs(end - start)[:, 0] >= np.abs(end - start)[:, 1]
    for along, edges, extent in ((0, flat, width), (1, ~flat, height)):  # an edge meets each of these once
        first, last = start[edges], end[edges]
        low, high = np.minimum(first, last)[:, along], np.maximum(first, last)[:, along]
        edge, at = _whole_numbers(np.ceil(low - ON), np.floor(high + ON) + 1, extent)
        a, b = first[edge], last[edge]
        run = (b - a)[:, along]
        share = np.clip((at - a[:, along]) / np.where(run == 0, 1, run), 0, 1)
        across = a[:, 1 - along] + share * (b[:, 1 - along] - a[:, 1 - along])
        nearest = np.rint(across)
        on = (np.abs(across - nearest) <= ON) & (nearest >= 0) & (nearest < (height, width)[along])
        places = (nearest[on].astype(int), at[on])
        mask[places if along == 0 else places[::-1]] = True
    return mask


def _whole_numbers(start: np.ndarray, stop: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """For each edge, the whole numbers from start to before stop that are within 0 .. limit - 1.

    -> (edge, number), both (K,).
    """
    start, stop = np.clip(start, 0, limit).astype(int), np.clip(stop, 0, limit).astype(int)
    counts = np.maximum(stop - start, 0)
    edge = np.repeat(np.arange(len(counts)), counts)
    before = np.repeat(np.cumsum(counts) - counts, counts)
    return edge, start[edge] + np.arange(len(edge)) - before
