"""Generated tasks of every look: the pictures and objects that a promptable model of any modality is pretrained on.

    python scripts/synthesis.py --contact_sheet sheet.png
    python scripts/synthesis.py --pictures workdir/pictures.npz --contact_sheet sheet.png

`Tasks(...).draw(seed, index)` gives one picture in its frame and masks of some of its objects, and depends on these two
numbers alone. A draw is a canvas of one of three sources, then a crop of it, then what a scanner or a camera does to
it:

- *scenes*: a map of regions (shapes smooth and sharp, tubes, layers, cells, holes, noise fields that compete) painted
with
  random greys, textures and gradients, on the lines of SynthSeg (arXiv 2107.09559), ScribblePrompt (2312.07381) and
  UniverSeg (2304.06131);
- *phantoms*: heads, trunks and nested shapes of `phantoms.py`;
- *pictures*: real unlabelled ones, whose objects are regions of their own (`scripts/collect_pictures.py`).

The crop goes from the whole canvas to one object filling the frame, log-uniform in between. Masks are (K, S, S) bool,
pictures (S, S, 3) uint8. Only numpy and OpenCV; call `cv2.setNumThreads(1)`.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from sam_med2d.data.phantoms import depth, draw_once, filled, noise_blob, smooth_field, star

CANVASES = (1.25, 1.5, 2.0)  # sides of the frame: what is cropped from must have more detail than it
SHARES = {"scene": 0.45, "phantom": 0.2, "picture": 0.35}
MIN_PIXELS = 24  # of an object in a frame of 128 px: 0.15 % of it, the paper's least object
THICK = np.ones((3, 3), np.uint8)  # fits into every object of a frame somewhere: no dust, no hair
MAX_AREA = 0.85  # of the frame
WHOLE = 0.25  # share of draws that show the whole canvas
CLOSEST = 1.15  # the closest crop is so many times the object's box
FARTHEST = 6.0  # beyond it the whole canvas is shown
PADDING = (124, 116, 104)  # zero after normalisation


# ---------------------------------------------------------------- regions of a scene: (size, size) int32 ids


def _grow(rng: np.random.Generator) -> tuple[tuple[float, float], float]:
    """A random place and a log-uniform radius, in unit coordinates."""
    return tuple(rng.uniform(0.08, 0.92, 2)), math.exp(rng.uniform(math.log(0.025), math.log(0.4)))


def a_shape(rng: np.random.Generator, size: int, centre: tuple[float, float], radius: float) -> np.ndarray:
    """One closed shape, smooth, lobed, angular, or a ring. -> (size, size) bool."""
    kind = rng.random()
    stretch = math.exp(rng.normal(0.0, 0.35))
    radii = (radius * stretch, radius / stretch)
    if kind < 0.45:
        shape = filled(star(rng, centre, radii, rng.uniform(0, 3.2), rng.choice([0.0, 0.1, 0.2, 0.35])), size)
    elif kind < 0.65:
        shape = noise_blob(rng, size, centre, radius)
    elif kind < 0.85:  # a polygon: sharp corners
        corners = int(rng.integers(3, 9))
        angles = (
            np.sort(rng.uniform(0, 2 * math.pi, corners))
            if rng.random() < 0.5
            else (np.arange(corners) * 2 * math.pi / corners + rng.uniform(0, 3))
        )
        lengths = rng.uniform(0.55, 1.2, corners)[:, None]
        shape = filled(
            np.array(centre) + lengths * np.array(radii) * np.stack([np.cos(angles), np.sin(angles)], 1), size
        )
    else:  # a bent one: an ellipse less another
        shape = filled(star(rng, centre, radii, rng.uniform(0, 3.2), 0.08), size)
        away = rng.uniform(0, 2 * math.pi)
        other = (centre[0] + 0.6 * radius * math.cos(away), centre[1] + 0.6 * radius * math.sin(away))
        shape &= ~filled(star(rng, other, (0.7 * radii[0], 0.7 * radii[1]), 0.0, 0.1), size)
    if kind < 0.65 and rng.random() < 0.12:  # only its rim
        shape &= depth(shape) < radius * rng.uniform(0.15, 0.4)
    return shape


def a_tube(rng: np.random.Generator, size: int) -> np.ndarray:
    """A winding tube, sometimes forked. -> (size, size) bool."""
    mask = np.zeros((size, size), np.uint8)
    width = math.exp(rng.uniform(math.log(0.012), math.log(0.09))) * size
    for _ in range(1 + (rng.random() < 0.3)):
        points, step = int(rng.integers(12, 40)), rng.uniform(0.015, 0.04)
        turn = np.cumsum(rng.normal(0, 0.25, points)) * 0.5 + rng.uniform(0, 2 * math.pi)
        start = rng.uniform(0.1, 0.9, 2)
        path = (start + np.cumsum(step * np.stack([np.cos(turn), np.sin(turn)], 1), 0)) * size
        widths = np.maximum(1.0, width * np.exp(0.25 * np.cumsum(rng.normal(0, 0.15, points))))
        for a, b, w in zip(path[:-1], path[1:], widths):
            cv2.line(
                mask,
                tuple(np.round(a * 16).astype(int).tolist()),
                tuple(np.round(b * 16).astype(int).tolist()),
                1,
                max(1, round(w)),
                shift=4,
            )
    return mask.view(bool)


def fields(rng: np.random.Generator, size: int) -> np.ndarray:
    """Noise fields that compete for each pixel: regions of any shape that fill the canvas."""
    count = int(rng.integers(3, 10))
    cells = int(rng.integers(3, 14))
    values = smooth_field(rng, size, cells, count)
    if rng.random() < 0.5:  # wrinkled borders
        values = values + rng.uniform(0.1, 0.4) * smooth_field(rng, size, 3 * cells, count)
    return values.argmax(axis=2).astype(np.int32)


def layers(rng: np.random.Generator, size: int) -> np.ndarray:
    """Layers one over the other, as in skin, retina or a vessel's wall."""
    count = int(rng.integers(3, 9))
    line = np.linspace(0, 1, size, dtype=np.float32)
    if rng.random() < 0.3:  # round a centre
        cx, cy = rng.uniform(0.2, 0.8, 2)
        height = np.hypot(line[None] - cx, line[:, None] - cy) * rng.uniform(1.0, 1.8)
    else:
        angle = rng.uniform(0, 2 * math.pi)
        height = 0.5 + (line[None] - 0.5) * math.cos(angle) + (line[:, None] - 0.5) * math.sin(angle)
    height = height + rng.uniform(0.01, 0.08) * smooth_field(rng, size, int(rng.integers(3, 9)))
    height = height + rng.uniform(0.0, 0.015) * smooth_field(rng, size, 20)
    edges = np.sort(rng.uniform(0.05, 0.95, count)).astype(np.float32)
    return np.searchsorted(edges, height.ravel()).reshape(size, size).astype(np.int32)


def cells(rng: np.random.Generator, size: int, groups: dict[int, int]) -> np.ndarray:
    """Many small alike bodies, apart or touching, some with a nucleus. `groups`: region -> whose looks it shares."""
    spacing = math.exp(rng.uniform(math.log(0.04), math.log(0.25))) * size
    across = max(2, int(size / spacing))
    grid = (np.stack(np.meshgrid(np.arange(across), np.arange(across)), -1).reshape(-1, 2) + 0.5) * size / across
    seeds = grid + rng.normal(0, rng.uniform(0.1, 0.35) * spacing, grid.shape)
    seeds = seeds[rng.random(len(seeds)) < rng.uniform(0.3, 1.0)]
    seeds = np.clip(seeds, 0, size - 1).astype(int)
    image = np.full((size, size), 255, np.uint8)
    image[seeds[:, 1], seeds[:, 0]] = 0
    distance, label = cv2.distanceTransformWithLabels(image, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    number = int(label.max()) + 1
    radius = spacing * rng.uniform(0.3, 0.75) * np.exp(rng.normal(0, rng.uniform(0.05, 0.3), number)).astype(np.float32)
    wave = 1 + rng.uniform(0.05, 0.3) * smooth_field(rng, size, int(np.clip(1.5 * across, 4, size // 3)))
    inside = distance * wave < radius[label]
    if rng.random() < 0.4:  # apart by a line
        edge = cv2.morphologyEx(label.astype(np.float32), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
        inside &= ~edge
    result = np.where(inside, label, 0).astype(np.int32)
    groups.update(dict.fromkeys(range(1, number), 1))
    if spacing > 14 and rng.random() < 0.4:
        core = inside & (distance * wave < rng.uniform(0.3, 0.6) * radius[label])
        result[core] += number
        groups.update({number + i: number + 1 for i in range(1, number)})
    return result


def scene_regions(rng: np.random.Generator, size: int) -> tuple[np.ndarray, dict[int, int], list[np.ndarray]]:
    """-> ids (size, size) int32, groups of ids that look alike, and whole shapes (size, size) bool, holes and all."""
    groups: dict[int, int] = {}
    base = rng.random()
    if base < 0.3:
        ids = np.zeros((size, size), np.int32)
    elif base < 0.52:
        ids = fields(rng, size)
    elif base < 0.65:
        ids = layers(rng, size)
    else:
        ids = cells(rng, size, groups)
    if base < 0.65 or rng.random() < 0.25:
        body = rng.random() < 0.25  # everything lies in a body, around which is nothing
        if body:
            shape = filled(star(rng, (0.5, 0.5), tuple(rng.uniform(0.3, 0.47, 2)), 0.0, 0.08), size)
            ids = np.where(shape, ids + 1, 0)
            groups = {k + 1: v + 1 for k, v in groups.items()}
        whole = []
        for _ in range(int(rng.integers(1, 12)) if base < 0.3 else int(rng.integers(0, 6))):
            if rng.random() < 0.2:
                shape = a_tube(rng, size)
            else:
                centre, radius = _grow(rng)
                shape = a_shape(rng, size, centre, radius)
            if not shape.any():
                continue
            new = int(ids.max()) + 1
            ids[shape] = new
            whole.append(shape)
            if rng.random() < 0.2:  # a hole, a core or an inclusion
                places = np.flatnonzero(shape)
                place = int(rng.choice(places))
                small = 0.5 * math.sqrt(len(places)) / size * rng.uniform(0.25, 0.8)
                inner = a_shape(rng, size, ((place % size) / size, (place // size) / size), small) & shape
                ids[inner] = new + 1 if rng.random() < 0.7 else 0
            if rng.random() < 0.12:  # another like it
                other = shape[:, ::-1] & ~shape
                if other.any():
                    groups[new + 2] = new
                    ids[other] = new + 2
        return ids, groups, whole
    return ids, groups, []


# ---------------------------------------------------------------- how a scene looks


def texture(rng: np.random.Generator, size: int) -> np.ndarray:
    """Of unit deviation, (size, size) float32: noise of one grain, stripes, or ridges."""
    kind = rng.random()
    if kind < 0.7:
        field = smooth_field(rng, size, int(math.exp(rng.uniform(math.log(5), math.log(size * 0.8)))))
    elif kind < 0.85:
        field = np.abs(smooth_field(rng, size, int(rng.integers(8, size // 3)))) * 1.6 - 1.2
    else:
        line = np.arange(size, dtype=np.float32)
        angle, period = rng.uniform(0, math.pi), rng.uniform(3, 20)
        phase = line[None] * math.cos(angle) + line[:, None] * math.sin(angle) + 3 * smooth_field(rng, size, 6)
        field = 1.4 * np.sin(phase * np.float32(2 * math.pi / period))
    return field.astype(np.float32)


def paint(rng: np.random.Generator, ids: np.ndarray, groups: dict[int, int]) -> np.ndarray:
    """Greys, textures and gradients for regions. ids: (size, size) int32 -> (size, size) float32, about 0..1."""
    size, number = ids.shape[0], int(ids.max()) + 2
    spread = rng.choice([1.0, 0.5, 0.25], p=[0.55, 0.3, 0.15])  # of the greys: the rest is low contrast
    middle = rng.uniform(0.5 * spread, 1 - 0.5 * spread)
    grey = middle + spread * (rng.random(number) - 0.5)
    if rng.random() < 0.5:  # on black, as most of medicine is
        grey[0] = rng.uniform(0, 0.08)
    share = rng.choice([0.0, 0.02, 0.1])
    for region, like in groups.items():
        if region < number:
            grey[region] = grey[min(like, number - 1)] + share * rng.normal()
    clear = np.abs(grey - grey[0]) < 0.04  # what does not differ from the background at all
    clear[0] = False
    grey[clear] = grey[0] + rng.choice([-1, 1], clear.sum()) * rng.uniform(0.06, 0.3, clear.sum())
    strength = rng.choice([0.02, 0.06, 0.15], p=[0.5, 0.35, 0.15]) * spread
    weights = strength * np.abs(rng.normal(0, 1, (number, 2)))
    for region, like in groups.items():
        if region < number:
            weights[region] = weights[min(like, number - 1)]
    image = grey.astype(np.float32)[ids]
    for column in range(2):
        image += weights.astype(np.float32)[:, column][ids] * texture(rng, size)
    if rng.random() < 0.3:  # regions are lit from one side each
        slopes = (rng.choice([0.1, 0.4]) * spread * rng.normal(0, 1, (number, 2))).astype(np.float32)[ids]
        line = np.linspace(-0.5, 0.5, size, dtype=np.float32)
        image += slopes[..., 0] * line[None] + slopes[..., 1] * line[:, None]
    return image


def degrade(rng: np.random.Generator, image: np.ndarray, gentle: bool) -> np.ndarray:
    """What a scanner does. image: (h, w) float32 about 0..1 -> the same. gentle: of a picture that is real already."""
    height, width = image.shape
    size = max(height, width)
    square = lambda cells: cv2.resize(smooth_field(rng, 64, cells), (width, height), interpolation=cv2.INTER_LINEAR)
    if rng.random() < (0.2 if gentle else 0.7):
        image = cv2.GaussianBlur(image, (0, 0), math.exp(rng.uniform(math.log(0.4), math.log(2.0))))
    if rng.random() < 0.15:  # a coarse detector
        factor = rng.uniform(0.3, 0.8)
        small = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        image = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    if rng.random() < 0.4:  # bias field
        image = image * np.exp(rng.uniform(0.05, 0.5) * square(3)).astype(np.float32)
    if rng.random() < (0.25 if gentle else 0.75):
        noise = rng.standard_normal((height, width), dtype=np.float32)
        if rng.random() < 0.4:
            noise = 1.8 * cv2.GaussianBlur(noise, (3, 3), 0.7)
        level = 0.12 * rng.random() ** 2
        image = image * (1 + 2.5 * level * noise) if rng.random() < 0.25 else image + level * noise
    artefact = rng.random()
    if artefact < 0.04:  # stripes of a detector or of motion
        line = np.arange(height, dtype=np.float32)[:, None]
        image = image + rng.uniform(0.01, 0.06) * np.sin(line * rng.uniform(0.1, 2.0))
    elif artefact < 0.07:  # a shadow from one side
        line = np.linspace(-1, 1, width, dtype=np.float32)[None]
        image = image * (
            1 - rng.uniform(0.2, 0.7) * np.exp(-(((line - rng.uniform(-1, 1)) / rng.uniform(0.05, 0.3)) ** 2))
        )
    elif artefact < 0.1:  # an echo of the picture
        image = image + rng.uniform(0.05, 0.2) * np.roll(
            image, int(rng.uniform(0.1, 0.6) * size), axis=int(rng.integers(2))
        )
    low, high = np.quantile(image[::4, ::4], [rng.choice([0.0, 0.01, 0.05]), rng.choice([1.0, 0.995, 0.97, 0.9])])
    image = np.clip((image - low) / max(high - low, 0.02), 0, 1).astype(np.float32)
    if rng.random() < 0.5:
        image = cv2.pow(image, math.exp(rng.normal(0.0, 0.35)))
    if rng.random() < 0.12:
        image = 1 - image
    if rng.random() < 0.2:  # does not use the whole range
        low, high = np.sort(rng.uniform(0, 1, 2))
        if high - low > 0.3:
            image = low + (high - low) * image
    return image


def in_colour(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """(h, w) float32 0..1 -> (h, w, 3) uint8: grey mostly, else through a random map of colours."""
    grey = (image * 255 + 0.5).astype(np.uint8)
    if rng.random() < 0.88:
        return cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR)
    knots = np.sort(rng.uniform(0, 1, (2, 3)), axis=0) if rng.random() < 0.5 else rng.uniform(0, 1, (2, 3))
    middle = rng.uniform(0, 1, 3)
    table = np.stack(
        [np.interp(np.arange(256), [0, 128, 255], [knots[0, c], middle[c], knots[1, c]]) for c in range(3)], 1
    )
    return (table * 255).astype(np.uint8)[grey]


# ---------------------------------------------------------------- from a canvas to a frame


def main_part(mask: np.ndarray, least: float = 0.55) -> np.ndarray | None:
    """The mask if most of it is one piece, else its largest piece. None for an empty one."""
    count, label, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    if count < 2:
        return None
    areas = stats[1:, cv2.CC_STAT_AREA]
    return mask if areas.max() >= least * areas.sum() else label == 1 + areas.argmax()


def warped(rng: np.random.Generator, size: int) -> np.ndarray:
    """A gentle random deformation that stays on the canvas: (size, size, 2) float32."""
    line = np.arange(size, dtype=np.float32)
    flow = smooth_field(rng, size, int(rng.integers(4, 9)), 2) * np.float32(size * rng.uniform(0.0, 0.03))
    flow[..., 0] += line[None]
    flow[..., 1] += line[:, None]
    return flow


def window(rng: np.random.Generator, mask: np.ndarray) -> tuple[int, int, int, int]:
    """A crop around an object: x0, y0, x1, y1 within the canvas. mask: (h, w) bool, not empty."""
    height, width = mask.shape
    if rng.random() < WHOLE:
        return 0, 0, width, height
    x, y, w, h = cv2.boundingRect(mask.view(np.uint8))
    largest = 2.0 if rng.random() < 0.3 else min(max(width / w, height / h), FARTHEST)
    scale = math.exp(rng.uniform(math.log(CLOSEST), math.log(max(CLOSEST, largest))))
    if rng.random() < 0.6:  # square, or as the box is
        cw = ch = scale * max(w, h)
    else:
        cw, ch = scale * w, scale * h
    cw, ch = (int(np.clip(side, min(28, limit), limit)) for side, limit in ((cw, width), (ch, height)))
    free = (max(cw - w, 0), max(ch - h, 0))
    off = (0.5, 0.5) if rng.random() < 0.5 else tuple(rng.random(2))
    x0 = int(np.clip(round(x - off[0] * free[0]), 0, width - cw))
    y0 = int(np.clip(round(y - off[1] * free[1]), 0, height - ch))
    return x0, y0, x0 + cw, y0 + ch


class Tasks:
    """Draws of one frame size. pictures: what scripts/collect_pictures.py wrote; None: generated ones alone."""

    def __init__(self, size: int = 128, objects: int = 2, pictures: Path | str | None = None) -> None:
        self.size, self.objects = size, objects
        self.shares = dict(SHARES)
        self.pictures: list[dict] = []
        if pictures is None:
            del self.shares["picture"]
        else:
            self.pictures = load_pictures(pictures)
            weights = np.array([p["weight"] for p in self.pictures], float)
            self.weights = weights / weights.sum()

    def draw(self, seed: int, index: int) -> tuple[np.ndarray, np.ndarray]:
        """-> picture (S, S, 3) uint8 BGR, masks (objects, S, S) bool, none empty; repeated where there are too few."""
        for attempt in range(20):
            rng = np.random.default_rng([seed, index, attempt])
            found = self._attempt(rng)
            if found is not None:
                return found
        raise RuntimeError(f"no object in 20 canvases of draw {index}, seed {seed}")

    def _attempt(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray] | None:
        names = list(self.shares)
        share = np.array([self.shares[name] for name in names])
        source = names[int(rng.choice(len(names), p=share / share.sum()))]
        image, masks = {"scene": self._scene, "phantom": self._phantom, "picture": self._picture}[source](rng)
        return None if not masks else self._frame(rng, image, masks)

    def _scene(self, rng: np.random.Generator) -> tuple[np.ndarray, list[np.ndarray]]:
        size = int(self.size * rng.choice(CANVASES))
        ids, groups, whole = scene_regions(rng, size)
        flow = warped(rng, size)
        image = cv2.remap(paint(rng, ids, groups), flow, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        ids = cv2.remap(ids.astype(np.float32), flow, None, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REFLECT).astype(
            np.int32
        )
        image = in_colour(rng, degrade(rng, image, gentle=False))
        area = np.bincount(ids.ravel())
        allowed = np.flatnonzero((area >= MIN_PIXELS) & (area <= 0.7 * ids.size))
        allowed = allowed[allowed > 0] if rng.random() < 0.9 else allowed
        masks = []
        for region in rng.permutation(allowed)[:6]:
            part = main_part(ids == region)
            if part is not None and part.sum() >= MIN_PIXELS:
                masks.append(part)
        for shape in whole[-2:]:  # with what was painted over it later
            if rng.random() < 0.3:
                shape = cv2.remap(
                    shape.view(np.uint8), flow, None, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REFLECT
                ).view(bool)
                if shape.sum() >= MIN_PIXELS:
                    masks.append(shape)
        return image, masks

    def _phantom(self, rng: np.random.Generator) -> tuple[np.ndarray, list[np.ndarray]]:
        image, masks = draw_once(rng, int(self.size * rng.choice([1.0, 1.5])), 6)
        return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR), masks

    def _picture(self, rng: np.random.Generator) -> tuple[np.ndarray, list[np.ndarray]]:
        picture = self.pictures[int(rng.choice(len(self.pictures), p=self.weights))]
        labels, kept = picture["maps"][int(rng.integers(len(picture["maps"])))]
        masks = [labels == region for region in rng.choice(kept, min(len(kept), 5), replace=False)]
        image = picture["image"]
        if image.ndim == 3 and rng.random() < 0.6:
            kind = rng.random()
            image = image[..., int(rng.integers(3))] if kind < 0.5 else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        if image.ndim == 2:
            return in_colour(rng, degrade(rng, image.astype(np.float32) / 255, gentle=True)), masks
        if rng.random() < 0.3:
            image = image[..., rng.permutation(3)]
        if rng.random() < 0.3:
            image = cv2.LUT(image, (255 * np.linspace(0, 1, 256) ** math.exp(rng.normal(0, 0.3))).astype(np.uint8))
        return np.ascontiguousarray(image), masks

    def _frame(
        self, rng: np.random.Generator, image: np.ndarray, masks: list[np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Crop, resize, turn and flip."""
        size = self.size
        first = int(rng.integers(len(masks)))
        x0, y0, x1, y1 = window(rng, masks[first])
        inner = size
        if rng.random() < 0.08:  # a small picture, centred in its frame
            inner = int(rng.integers(size // 2, size))
        shrinks = (x1 - x0) * (y1 - y0) > inner * inner
        nearest = rng.random() < 0.4  # as the predictor's geometry resizes, or smoothly
        how = cv2.INTER_NEAREST if nearest else cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        frame = cv2.resize(image[y0:y1, x0:x1], (inner, inner), interpolation=how)
        order = [first, *(k for k in rng.permutation(len(masks)) if k != first)]
        kept: list[np.ndarray] = []
        least = MIN_PIXELS * (size / 128) ** 2
        for k in order:
            part = masks[k][y0:y1, x0:x1]
            if k != first and (not part.any() or part.sum() < 0.6 * masks[k].sum()):
                continue
            small = (
                cv2.resize(
                    part.view(np.uint8) * 255, (inner, inner), interpolation=cv2.INTER_NEAREST if nearest else how
                )
                > 127
            )
            if least <= small.sum() <= MAX_AREA * inner * inner and cv2.erode(small.view(np.uint8), THICK).any():
                kept.append(small)
            if len(kept) == self.objects:
                break
        if not kept:
            return None
        if inner < size:
            top = (size - inner) // 2
            rest = size - inner - top
            frame = cv2.copyMakeBorder(frame, top, rest, top, rest, cv2.BORDER_CONSTANT, value=PADDING)
            kept = [np.pad(mask, (top, rest)) for mask in kept]
        stack = np.stack([kept[k % len(kept)] for k in range(self.objects)])
        if rng.random() < 0.5:
            frame, stack = frame[:, ::-1], stack[:, :, ::-1]
        turns = int(rng.integers(4)) if rng.random() < 0.5 else 0
        return np.ascontiguousarray(np.rot90(frame, turns)), np.ascontiguousarray(np.rot90(stack, turns, axes=(1, 2)))


def load_pictures(path: Path | str) -> list[dict]:
    """What collect_pictures.py wrote -> [{"name", "weight", "image", "maps": [(labels, ids of its objects)]}]."""
    pictures: dict[str, dict] = {}
    with np.load(path, allow_pickle=False) as file:
        for key in sorted(file.files):
            name, _, part = key.rpartition("|")
            entry = pictures.setdefault(name, {"name": name, "labels": {}, "kept": {}})
            if part in ("image", "weight"):
                entry[part] = file[key]
            else:
                entry[(part[:4] == "kept" and "kept") or "labels"][part[-2:]] = file[key]
    for entry in pictures.values():
        entry["maps"] = [(entry["labels"][k], entry["kept"][k]) for k in sorted(entry["labels"])]
    return [entry for entry in pictures.values() if entry["maps"]]


# ---------------------------------------------------------------- command line


def contact_sheet(tasks: Tasks, seed: int, rows: int, columns: int) -> np.ndarray:
    """Draws beside themselves with the outlines of their masks."""
    colours = [(60, 60, 255), (60, 220, 60), (255, 140, 40), (40, 220, 255)]
    lines = []
    for row in range(rows):
        line = []
        for column in range(columns):
            image, masks = tasks.draw(seed, row * columns + column)
            drawn = image.copy()
            for mask, colour in zip(masks, colours):
                outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
                cv2.drawContours(drawn, outlines, -1, colour, 1)
            line += [image, drawn]
        lines.append(np.concatenate(line, axis=1))
    return np.concatenate(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # fmt: off
    parser.add_argument("--contact_sheet", metavar="FILE.png", help="Draw tasks into this file.")
    parser.add_argument("--pictures", metavar="FILE.npz",
        help="The pictures that scripts/collect_pictures.py wrote. Default: none.")
    parser.add_argument("--size", type=int, default=128, help="Side of the pictures, in pixels. Default: %(default)s.")
    parser.add_argument("--rows", type=int, default=8,
        help="Number of rows of the contact sheet. Default: %(default)s.")
    parser.add_argument("--columns", type=int, default=6,
        help="Number of columns of the contact sheet. Default: %(default)s.")
    parser.add_argument("--seed", type=int, default=0,
        help="The tasks are a function of this number. Default: %(default)s.")
    # fmt: on
    args = parser.parse_args()
    cv2.setNumThreads(1)
    tasks = Tasks(args.size, 2, args.pictures)
    if args.contact_sheet:
        cv2.imwrite(args.contact_sheet, contact_sheet(tasks, args.seed, args.rows, args.columns))
    start = time.process_time()
    areas = np.concatenate([tasks.draw(args.seed, i)[1].mean(axis=(1, 2)) for i in range(200)])
    print(f"{5 * (time.process_time() - start):.2f} ms of processor time a draw")
    print(
        "areas, % of the frame (0, 10, 25, 50, 75, 90, 100 %):",
        np.round(100 * np.quantile(areas, [0, 0.1, 0.25, 0.5, 0.75, 0.9, 1]), 1),
    )


if __name__ == "__main__":
    main()
