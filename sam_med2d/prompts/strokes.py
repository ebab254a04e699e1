"""What a person draws: strokes on an object or its background, and lassos around it.

A stroke is kept as lines, so that files, pictures and models read one thing: `drawn` makes maps of it, `clicks_along`
the clicks by which a model without a refinement network hears it. How the simulated annotator draws them follows
ScribblePrompt (Wong et al. 2024, arXiv 2312.07381, section 3): along the centre line, along the border inside it, or as
a free line, each with width, wobble and breaks. Lines are clipped to the region that they are drawn on.

Coordinates are x before y, in pixels of the S x S frame, a pixel's own index. Nothing here draws random numbers but
from the generator that it is handed.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from scipy import ndimage
from scipy.sparse import coo_array

from sam_med2d.prompts.clicks import largest_error
from sam_med2d.regions import depth_of, innermost_pixel
from segment_anything import ABSENT, FOREGROUND
from segment_anything.drawings import CLICKS_ALONG, points_along, resampled

KINDS = ("centre", "border", "free")
THIN = 48  # pixels: a region is thinned to about this many a side before its centre line is looked for
WIDEST = 5  # pixels of the frame
LASSO_CORNERS = 24


class Stroke(NamedTuple):
    """lines: (n, 2) float32 each, pieces of one stroke; width: in pixels; label: FOREGROUND or BACKGROUND, ABSENT where
    nothing was drawn."""

    lines: tuple[np.ndarray, ...] = ()
    label: int = ABSENT
    width: int = 1


class Drawing(NamedTuple):
    """What was drawn for one object in one go: a stroke, or a lasso (n, 2)."""

    stroke: Stroke | None = None
    lasso: np.ndarray | None = None


def drawn(strokes: Sequence[Stroke], side: int) -> np.ndarray:
    """-> (2, side, side) bool: pixels that were drawn on as the object, and as the background; the later ones win."""
    maps = np.zeros((2, side, side), bool)
    for stroke in strokes:
        if stroke.label == ABSENT:
            continue
        ink = np.zeros((side, side), np.uint8)
        for line in stroke.lines:
            points = np.rint(line).astype(np.int32)
            cv2.polylines(ink, [points.reshape(-1, 1, 2)], False, 1, stroke.width)
        own = 0 if stroke.label == FOREGROUND else 1
        maps[own] |= ink > 0
        maps[1 - own] &= ink == 0
    return maps


def clicks_along(stroke: Stroke, count: int = CLICKS_ALONG) -> tuple[np.ndarray, np.ndarray]:
    """Points of a stroke, equally far from one another along it: (count, 2) float32 whole numbers and labels (count,).

    Of a stroke without lines all are absent.
    """
    if stroke.label == ABSENT or not stroke.lines:
        return np.zeros((count, 2), np.float32), np.full(count, ABSENT, np.int64)
    return points_along(stroke.lines, count), np.full(count, stroke.label, np.int64)


# ---------------------------------------------------------------- the simulated annotator


def scribble(region: np.ndarray, label: int, rng: np.random.Generator) -> Stroke:
    """A stroke on a region, of one of KINDS.

    region: (S, S) bool; label: what is said of it. A region without any pixel gets a stroke without lines.
    """
    if not region.any():
        return Stroke()
    kind = KINDS[rng.integers(len(KINDS))]
    depth = depth_of(region)
    line = {"centre": _centre_line, "border": _border_line, "free": _free_line}[kind](region, depth, rng)
    line = _wobbled(line, depth, rng)
    pieces = [piece for part in _broken(line, rng) for piece in _inside(part, region)]
    if not pieces:
        pieces = [np.array([innermost_pixel(region)], np.float32)]
    on = np.concatenate(pieces).astype(int)
    room = 2 * depth[on[:, 1], on[:, 0]].min() - 1
    width = int(np.clip(rng.integers(1, WIDEST + 1), 1, max(1.0, room)))
    return Stroke(tuple(pieces), label, width)


def corrective_scribble(mask: np.ndarray, predicted: np.ndarray, rng: np.random.Generator) -> Stroke:
    """A stroke through the largest error: on the object where it was missed, on the background where too much was
    marked. mask, predicted: (S, S) bool. Without lines where nothing is wrong."""
    region, label = largest_error(mask, predicted)
    return scribble(region, label, rng)


def lasso(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A rough outline around all of an object: its convex hull, widened by 5 to 15 % of its size and shaken.

    mask: (S, S) bool with at least one pixel -> (LASSO_CORNERS, 2) float32, within the frame.
    """
    points = np.argwhere(mask)[:, ::-1].astype(np.float32)
    hull = cv2.convexHull(points)[:, 0]
    size = np.sqrt(np.prod(np.ptp(points, axis=0) + 1))
    away = size * rng.uniform(0.05, 0.15) + 1
    outline = resampled(np.concatenate([hull, hull[:1]]), LASSO_CORNERS + 1)[:-1]
    from_middle = outline - points.mean(axis=0)
    direction = from_middle / np.maximum(np.hypot(*from_middle.T), 1e-6)[:, None]
    shake = ndimage.gaussian_filter1d(rng.normal(0, away, LASSO_CORNERS), 1.5, mode="wrap")
    reach = np.maximum(away + shake, 0)
    return np.clip(outline + direction * reach[:, None], 0, mask.shape[0] - 1).astype(np.float32)


# ---------------------------------------------------------------- lines


def _centre_line(region: np.ndarray, depth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The longest way through a region that keeps to its middle."""
    from scipy.sparse.csgraph import dijkstra  # takes a while to load, and every --help would wait

    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    step = max(1, int(np.ceil(max(np.ptp(rows), np.ptp(columns)) / THIN)))
    thinned = region[::step, ::step]
    y, x = np.nonzero(thinned)
    if not len(x):
        return np.array([innermost_pixel(region)], np.float32)
    height, width = thinned.shape
    number = np.full((height, width), -1)
    number[y, x] = np.arange(len(x))
    cost = 1 / (depth[::step, ::step][y, x] / depth.max()) ** 2
    edges = []
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        inside = (y + dy < height) & (x + dx < width) & (x + dx >= 0)
        here = np.flatnonzero(inside)
        there = number[y[here] + dy, x[here] + dx]
        here, there = here[there >= 0], there[there >= 0]
        edges.append((here, there, (cost[here] + cost[there]) * np.hypot(dy, dx)))
    a, b, weight = (np.concatenate(part) for part in zip(*edges))
    graph = coo_array((weight, (a, b)), shape=(len(x), len(x))).tocsr()
    start = int(cost.argmin())
    for _ in range(2):  # from the middle to the farthest, and from there to what is farthest from it
        reached, before = dijkstra(graph, directed=False, indices=start, return_predecessors=True)
        start, end = int(np.where(np.isfinite(reached), reached, -1).argmax()), start
    way = [start]
    while way[-1] != end and before[way[-1]] >= 0:
        way.append(int(before[way[-1]]))
    line = np.stack([x[way], y[way]], axis=1).astype(np.float32) * step
    cut = len(line) // 8  # the ends run into corners
    return ndimage.gaussian_filter1d(line[cut : len(line) - cut], 1.0, axis=0, mode="nearest")


def _border_line(region: np.ndarray, depth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A stretch along the border, inside it."""
    inner = (depth >= min(max(2.0, 0.3 * depth.max()), depth.max())).astype(np.uint8)
    outlines, _ = cv2.findContours(inner, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    outline = max(outlines, key=len)[:, 0].astype(np.float32)
    length = max(1, int(len(outline) * rng.uniform(0.3, 0.7)))
    return np.roll(outline, -int(rng.integers(len(outline))), axis=0)[:length]


def _free_line(region: np.ndarray, depth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A bent line from one pixel of the region to another."""
    pixels = np.argwhere(region)[:, ::-1].astype(np.float32)
    start, end = pixels[rng.integers(len(pixels), size=2)]
    middle = (start + end) / 2 + rng.normal(0, 0.2, 2) * np.hypot(*(end - start))
    t = np.linspace(0, 1, 32)[:, None]
    return ((1 - t) ** 2 * start + 2 * t * (1 - t) * middle + t**2 * end).astype(np.float32)


def _wobbled(line: np.ndarray, depth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """With a hand's unrest, up to a third of the region's depth."""
    if len(line) < 3:
        return line
    line = resampled(line, max(3, min(64, len(line))))
    reach = min(2.0, depth.max() / 3)
    return line + reach * ndimage.gaussian_filter1d(rng.normal(0, 1.5, line.shape), 2, axis=0, mode="nearest")


def _broken(line: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """In one, two or three pieces, with gaps of a tenth of its length."""
    pieces = int(rng.choice(3, p=(0.6, 0.3, 0.1))) + 1
    gap = len(line) // 10
    if len(line) < 12 or pieces == 1:
        return [line]
    return [part[gap // 2 : len(part) - gap // 2] for part in np.array_split(line, pieces)]


def _inside(line: np.ndarray, region: np.ndarray) -> list[np.ndarray]:
    """The stretches of a line whose points lie in a region."""
    if not len(line):
        return []
    x, y = np.rint(line).astype(int).T
    there = (x >= 0) & (y >= 0) & (x < region.shape[1]) & (y < region.shape[0])
    there[there] = region[y[there], x[there]]
    starts = np.flatnonzero(np.diff(there.astype(int), prepend=0) == 1)
    ends = np.flatnonzero(np.diff(there.astype(int), append=0) == -1) + 1
    last = np.array(region.shape[::-1]) - 1
    return [np.clip(line[start:end], 0, last).astype(np.float32) for start, end in zip(starts, ends)]
