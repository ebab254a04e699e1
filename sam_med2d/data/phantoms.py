"""Organ-like phantom images with nested masks, to pretrain a small promptable segmentation model.

A phantom is a map of integer region ids, drawn by one of three recipes: `draw_head` (scalp, skull,
hemispheres, folded cortex, white matter, ventricles), `draw_torso` (fat and muscle shells, spine,
paired and single organs) and `draw_abstract` (nested, mirrored, overlapping random shapes). Regions
form a tree, so that a mask is either one region (a ring, say) or a region with all that lies inside
it (a whole head, say), or a natural pair (both lungs). The map is painted through a lookup table plus
textures, warped once, and degraded as a scanner would: bias field, blur, noise, window and gamma.

Drawn by `scripts/phantoms.py --contact_sheet out.png`, learned by `scripts/pretrain_phantoms.py`, and shown again in
fine-tuning by `replay.py`.

Only numpy and OpenCV, about a millisecond an image of 128 px. In worker processes call
`cv2.setNumThreads(1)`, because OpenCV's threads cost more than they give at this size.
"""

from __future__ import annotations

import math
from functools import lru_cache

import cv2
import numpy as np

PHANTOMS = "phantoms"  # says as a source of pictures: those of this module

MIN_AREA = 0.008  # of the image; smaller objects are a handful of pixels at 64 px
MAX_AREA = 0.75  # of the image; larger ones are background rather than object
MIN_MAIN_PIECE = 0.55  # of an object's area that must lie in its largest connected piece
MIN_MAIN_PIECE_PAIR = 0.30  # the same for natural pairs, which are two pieces by design
MAX_REGIONS = 120  # ids are stored in uint8; no recipe comes near this
ATTEMPTS = 4  # scenes drawn before an object is repeated

# Cosines (columns 0 to 5) and sines (6 to 11) of orders 1 to 6 at the 72 angles of an outline, and
# how strong each may be; the first order is weak, being little more than a shift of the centre.
_PHASES = np.linspace(0.0, 2.0 * math.pi, 72, endpoint=False)[:, None] * np.arange(1, 7)
FOURIER = np.concatenate([np.cos(_PHASES), np.sin(_PHASES)], axis=1)
FOURIER_DECAY = np.tile(np.array([0.3, 0.57, 0.42, 0.33, 0.28, 0.24]), 2)


# ---------------------------------------------------------------- random fields and shapes


@lru_cache(maxsize=8)
def pixel_grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel centres in unit coordinates: x and y, each (size, size) float32 in (0, 1). Read only."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    x, y = np.meshgrid(axis, axis)
    x.setflags(write=False)
    y.setflags(write=False)
    return x, y


def smooth_field(rng: np.random.Generator, size: int, cells: int, channels: int = 1) -> np.ndarray:
    """Smooth Gaussian noise with features of about size / cells pixels.

    Returns (size, size) float32, or (size, size, channels) for several channels, of roughly unit
    deviation. Drawn on a coarse grid and enlarged, which costs far less than filtering white noise.
    """
    coarse = rng.standard_normal((cells, cells, channels), dtype=np.float32)
    return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC) * np.float32(1.3)


def star(
    rng: np.random.Generator,
    centre: tuple[float, float],
    radii: tuple[float, float],
    angle: float = 0.0,
    rough: float = 0.15,
) -> np.ndarray:
    """Closed outline with random Fourier radii on top of an ellipse.

    centre and radii are (x, y) in unit coordinates, angle in radians; rough = 0 gives the ellipse.
    Returns (72, 2) float points in unit coordinates.
    """
    wave = FOURIER @ (rough * rng.standard_normal(12) * FOURIER_DECAY)
    radius = np.exp(np.minimum(np.maximum(wave, -1.0), 0.7))
    px, py = radii[0] * radius * FOURIER[:, 0], radii[1] * radius * FOURIER[:, 6]
    c, s = math.cos(angle), math.sin(angle)
    return np.stack([centre[0] + c * px - s * py, centre[1] + s * px + c * py], axis=1)


def filled(points: np.ndarray, size: int) -> np.ndarray:
    """Inside of an outline. points: (n, 2) unit coordinates. Returns (size, size) bool."""
    mask = np.zeros((size, size), np.uint8)
    cv2.fillPoly(mask, [np.round(points * size * 16).astype(np.int32)], 1, shift=4)
    return mask.view(bool)


def noise_blob(rng: np.random.Generator, size: int, centre: tuple[float, float], radius: float) -> np.ndarray:
    """Lobed blob: smooth noise minus a radial ramp, thresholded. Returns (size, size) bool.

    centre in unit coordinates (x, y); radius, the mean one, likewise.
    """
    x, y = pixel_grid(size)
    aspect = math.exp(rng.normal(0.0, 0.25))
    distance = np.hypot((x - centre[0]) * aspect, (y - centre[1]) / aspect)
    # The cells follow the blob, so that a small blob has lobes as a large one does.
    cells = int(np.clip(rng.uniform(0.8, 1.8) / radius, 3, 20))
    return distance < radius * (1.0 + rng.uniform(0.2, 0.5) * smooth_field(rng, size, cells))


def depth(mask: np.ndarray) -> np.ndarray:
    """Distance to the outside of a mask in unit coordinates, (size, size) float32, 0 outside."""
    padded = np.zeros((mask.shape[0] + 2, mask.shape[1] + 2), np.uint8)
    padded[1:-1, 1:-1] = mask  # the border of the image counts as outside
    return cv2.distanceTransform(padded, cv2.DIST_L2, 3)[1:-1, 1:-1] / np.float32(mask.shape[0])


def folded_depth(rng: np.random.Generator, inside: np.ndarray, wavelength: float, reach: float) -> np.ndarray:
    """Distance to a surface that has folds (sulci) running inwards from it.

    inside: (size, size) float32 depth below the smooth surface, unit coordinates. The zero lines of a
    noise field serve as the folds: they are curves without ends, evenly spaced by about `wavelength`.
    Beyond a depth of `reach` they fade out, which leaves a connected core. Returns (size, size).
    """
    size = inside.shape[0]
    field = smooth_field(rng, size, int(np.clip(1.3 / wavelength, 4, 40)))
    to_fold = np.abs(field) * np.float32(0.42 * wavelength)
    return np.minimum(inside, to_fold + 1.2 * np.maximum(inside - reach, 0.0))


def look_up(row: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Mask of the regions marked in row, (regions,) bool, in labels (height, width) uint8."""
    table = np.zeros(256, np.uint8)
    table[: len(row)] = row
    return cv2.LUT(labels, table).view(bool)


# ---------------------------------------------------------------- the scene


class Scene:
    """Region ids on a canvas, their tree, and how each region looks."""

    def __init__(self, rng: np.random.Generator, size: int, background: float) -> None:
        self.rng = rng
        self.size = size
        self.labels = np.zeros((size, size), np.uint8)  # region 0 is the background
        self.parent = [-1]
        self.grey = [background]  # mean intensity of the region, 0 to 1
        self.texture = [0.0]  # amplitude of the texture, in intensity
        self.alone = [False]  # whether the region without its children is an object
        self.pairs: list[tuple[int, ...]] = []  # regions whose subtrees together are an object
        self.low_contrast = rng.random() < 0.25

    def step(self) -> float:
        """Signed intensity step between neighbouring regions, 0.04 to 0.5 in size."""
        high = 0.16 if self.low_contrast else 0.5
        step = 0.04 + (high - 0.04) * self.rng.random() ** 1.6
        return step if self.rng.random() < 0.5 else -step

    def region(self, parent: int, grey: float | None = None, alone: bool = True) -> int:
        """Add a region to the tree and return its id; without `grey`, one step from its parent."""
        if grey is None:
            base, step = self.grey[parent], self.step()
            if parent == 0:  # what is faint against the background drowns in the noise
                step += math.copysign(0.08, step)
            grey = base + step if 0.02 <= base + step <= 1.0 else base - step
        self.parent.append(parent)
        self.grey.append(float(np.clip(grey, 0.0, 1.0)))
        self.texture.append(0.06 * self.rng.random() ** 2)
        self.alone.append(alone)
        return len(self.parent) - 1

    def inside(self) -> np.ndarray:
        """Table (regions, regions) bool: whether the column's region lies in the row's subtree."""
        n = len(self.parent)
        table = np.eye(n, dtype=bool)
        for child in range(n - 1, 0, -1):  # a child is always added after its parent
            table[self.parent[child]] |= table[child]
        return table

    def visible(self, region: int) -> np.ndarray:
        """Pixels of a region's subtree, (size, size) bool."""
        return look_up(self.inside()[region], self.labels)

    def paint(self, mask: np.ndarray, region: int) -> None:
        """Let a region cover the pixels of mask, (size, size) bool."""
        np.putmask(self.labels, mask, region)


def add_lesions(scene: Scene, parent: int, within: np.ndarray, count: int) -> None:
    """Small inclusions (cysts, tumours, nuclei) at random places of `within`, (size, size) bool."""
    rng, size = scene.rng, scene.size
    places = np.flatnonzero(within)
    if not len(places):
        return
    scale = math.sqrt(len(places)) / size
    for place in rng.choice(places, count):
        centre = ((place % size) / size, (place // size) / size)
        radius = scale * rng.uniform(0.1, 0.3)
        radii = (radius, radius * rng.uniform(0.6, 1.6))
        shape = filled(star(rng, centre, radii, rng.uniform(0, 3.1), 0.15), size) & within
        region = scene.region(parent)
        scene.paint(shape, region)
        if rng.random() < 0.3:  # a necrotic core or a nucleus within
            scene.paint(shape & (depth(shape) > 0.35 * radius), scene.region(region))


# ---------------------------------------------------------------- recipes


def tissue_greys(rng: np.random.Generator) -> tuple[float, float, float]:
    """Intensities of fluid, grey and white matter: T1-like, T2-like, or any."""
    kind = rng.random()
    if kind < 0.5:
        white = rng.uniform(0.5, 0.95)
        grey = white - rng.uniform(0.08, 0.3)
        return max(0.02, grey - rng.uniform(0.12, 0.45)), grey, white
    if kind < 0.75:
        white = rng.uniform(0.15, 0.4)
        grey = white + rng.uniform(0.06, 0.25)
        return min(1.0, grey + rng.uniform(0.15, 0.5)), grey, white
    fluid, white = rng.uniform(0.0, 1.0, 2)
    grey = white + rng.choice([-1.0, 1.0]) * rng.uniform(0.07, 0.3)
    return fluid, float(np.clip(grey, 0.05, 1.0)), white


def add_shells(scene: Scene, outline: np.ndarray, fluid: float) -> tuple[np.ndarray, int]:
    """Scalp, skull and fluid around a brain, in some heads. -> what is left for the brain, and the region around it."""
    rng, size = scene.rng, scene.size
    root = 0
    if rng.random() < 0.55:  # scalp, skull and fluid shells around the brain
        below = depth(outline)
        # Bounded from below: a negative factor would let the shells leak out of the head.
        wobble = np.maximum(1.0 + 0.35 * smooth_field(rng, size, 5), 0.2)
        root = scene.region(0, rng.uniform(0.3, 1.0))
        scene.paint(outline, root)
        skull = scene.region(root, rng.choice([rng.uniform(0.0, 0.15), rng.uniform(0.7, 1.0)]))
        edge = rng.uniform(0.01, 0.04)
        scene.paint(below > edge * wobble, skull)
        edge += rng.uniform(0.01, 0.04)
        space = scene.region(skull, fluid, alone=False)
        scene.paint(below > edge * wobble, space)
        edge += rng.uniform(0.0, 0.025)
        outline = below > edge * wobble
        root = space
    return outline, root


def add_deep_structures(
    scene: Scene,
    outline: np.ndarray,
    hosts: list[int],
    sides: list[np.ndarray],
    greys: tuple[float, float | None],
    extent: tuple[float, float],
) -> None:
    """Ventricles and nuclei inside a brain, some of either, none, or both.

    hosts, sides: the region that holds them and the half of the picture, a hemisphere each; greys: of fluid, and of
    grey matter where the brain has layers; extent: width and height of the brain, as shares of the picture.
    """
    rng, size = scene.rng, scene.size
    width, height = extent
    fluid, grey = greys
    vent_grey = fluid if grey is not None or rng.random() < 0.5 else None
    shift, lift = rng.uniform(0.1, 0.32) * width, rng.uniform(-0.25, 0.25) * height
    size_v = rng.uniform(0.08, 0.26) * width
    tall, tilt = rng.uniform(1.0, 3.0), rng.uniform(-0.6, 0.6)
    rough = rng.uniform(0.1, 0.3)
    inner = outline & (depth(outline) > 0.06)
    structures = rng.permutation(["ventricles", "nuclei"])[: rng.integers(0, 3)]
    for structure in structures:
        pair: list[int] = []
        if structure == "nuclei":
            shift, lift = rng.uniform(0.3, 0.5) * width, lift + rng.uniform(-0.2, 0.2) * height
            size_v, tall = rng.uniform(0.1, 0.2) * width, rng.uniform(0.8, 2.0)
        for k, host in enumerate(hosts):
            sign = (-1.0, 1.0)[k]
            shape = star(rng, (0.5 + sign * shift, 0.5 + lift), (size_v, size_v * tall), sign * tilt, rough)
            value = vent_grey if structure == "ventricles" else grey
            if pair:
                value = scene.grey[pair[0]]
            pair.append(scene.region(host, value))
            scene.paint(filled(shape, size) & inner & sides[k], pair[-1])
        if len(pair) == 2:
            scene.pairs.append(tuple(pair))


def draw_head(scene: Scene) -> None:
    """A head or a bare brain: shells, two hemispheres, folded cortex, white matter, ventricles."""
    rng, size = scene.rng, scene.size
    x, y = pixel_grid(size)
    fluid, grey, white = tissue_greys(rng)

    width = rng.uniform(0.28, 0.42)
    height = min(0.47, width * rng.uniform(0.85, 1.3))
    outline = filled(star(rng, (0.5, 0.5), (width, height), 0.0, 0.05), size)
    outline, root = add_shells(scene, outline, fluid)
    brain = scene.region(root, fluid, alone=False)
    scene.paint(outline, brain)
    below = depth(outline)
    two_sides = rng.random() < 0.8
    middle = 0.5 + rng.normal(0.0, 0.006) + 0.01 * smooth_field(rng, size, 3)
    off_middle = np.abs(x - middle)
    sides = [x < middle, x >= middle] if two_sides else [np.ones_like(outline)]
    layered = rng.random() < 0.8  # otherwise one tissue, as in CT
    bridge = rng.uniform(0.0, 0.3) * height  # half length of the stretch where the sides are joined
    if two_sides and rng.random() < 0.75:
        gap = off_middle + np.maximum(0.0, bridge - np.abs(y - 0.5 - rng.normal(0, 0.03)))
        below = np.minimum(below, gap)
    fissure = rng.choice([0.0, rng.uniform(0.003, 0.012)], p=[0.3, 0.7])
    thickness = rng.uniform(0.018, 0.05)
    if rng.random() < 0.75:
        wavelength = rng.uniform(2.2, 4.5) * thickness
        surface = folded_depth(rng, below, wavelength, rng.uniform(0.08, 0.32) * width)
    else:
        surface = below * (1.0 + 0.3 * smooth_field(rng, size, 12))
    sulcus = rng.choice([0.0, rng.uniform(0.001, 0.009)], p=[0.25, 0.75])
    hemispheres, cortices, whites = [], [], []
    for side in sides:
        part = outline & side
        hemisphere = scene.region(brain, fluid if layered else grey, alone=False)
        scene.paint(part, hemisphere)
        hemispheres.append(hemisphere)
        if layered:
            cortices.append(scene.region(hemisphere, grey))
            scene.paint(part & (surface > sulcus), cortices[-1])
            whites.append(scene.region(hemisphere, white))
            scene.paint(part & (surface > sulcus + thickness), whites[-1])
    if two_sides and fissure > 0.0:
        line = outline & (off_middle < fissure) & (np.abs(y - 0.5) > bridge * rng.random())
        faint = 0.0 if rng.random() < 0.6 else rng.uniform(0.5, 0.9)
        value = fluid + faint * (grey - fluid)
        scene.paint(line, scene.region(brain, value, alone=False))
    scene.pairs += [tuple(g) for g in (cortices, whites) if len(g) == 2]
    if rng.random() < 0.85:  # else one side is diseased
        for group in (hemispheres, cortices, whites):
            for region in group[1:]:
                scene.texture[region] = scene.texture[group[0]]

    hosts = whites or hemispheres
    greys = (fluid, grey) if layered else (fluid, None)
    add_deep_structures(scene, outline, hosts, sides, greys, (width, height))
    if rng.random() < 0.3:
        host = int(rng.choice(hosts))
        add_lesions(scene, host, scene.visible(host), 1)
    # The two sides look alike, but never exactly.
    for region in range(1, len(scene.grey)):
        scene.grey[region] += rng.normal(0.0, 0.008)


def draw_torso(scene: Scene) -> None:
    """A cross-section of a trunk: fat and muscle shells, spine, paired and single organs, vessels."""
    rng, size = scene.rng, scene.size
    width = rng.uniform(0.34, 0.46)
    height = width * rng.uniform(0.6, 0.95)
    outline = filled(star(rng, (0.5, 0.5), (width, height), 0.0, 0.05), size)
    body = scene.region(0, rng.uniform(0.1, 0.8))
    scene.paint(outline, body)
    below = depth(outline) * (1.0 + 0.3 * smooth_field(rng, size, 6))
    wall = rng.uniform(0.015, 0.07)
    muscle = scene.region(body)
    scene.paint(below > wall, muscle)
    wall += rng.uniform(0.015, 0.05)
    cavity = scene.region(muscle)
    room = below > wall
    scene.paint(room, cavity)

    def organ(cx: float, cy: float, rx: float, ry: float, rough: float, like: int = -1) -> int:
        """One organ at (cx, cy), radii (rx, ry), all relative to the body; `like` shares its grey."""
        value = scene.grey[like] + rng.normal(0, 0.01) if like > 0 else None
        region = scene.region(cavity, value)
        centre = (0.5 + cx * width, 0.5 + cy * height)
        radii = (rx * width, ry * width)
        if rng.random() < 0.3:
            shape = noise_blob(rng, size, centre, math.sqrt(radii[0] * radii[1]))
        else:
            shape = filled(star(rng, centre, radii, rng.uniform(-0.6, 0.6), rough), size)
        shape &= room
        scene.paint(shape, region)
        if rng.random() < 0.25:  # capsule: a rim around another interior, as kidneys and hearts have
            scene.paint(depth(shape) > rng.uniform(0.15, 0.45) * min(radii), scene.region(region))
        elif rng.random() < 0.3:
            add_lesions(scene, region, shape, int(rng.integers(1, 3)))
        return region

    kinds = rng.permutation(["pair", "large", "large", "pair", "bowel"])[: rng.integers(2, 5)]
    for kind in kinds:
        if kind == "pair":
            cx, cy = rng.uniform(0.3, 0.55), rng.uniform(-0.3, 0.45)
            r = rng.uniform(0.12, 0.36)
            ry = r * rng.uniform(0.8, 1.7)
            left = organ(-cx, cy, r, ry, 0.12)
            right = organ(cx, cy + rng.normal(0, 0.05), r, ry, 0.12, like=left)
            scene.pairs.append((left, right))
        elif kind == "large":
            r = rng.uniform(0.2, 0.5)
            cx, cy = rng.uniform(-0.6, 0.6), rng.uniform(-0.4, 0.4)
            organ(cx, cy, r, r * rng.uniform(0.5, 1.1), 0.22)
        else:
            for _ in range(3):
                r = rng.uniform(0.07, 0.16)
                organ(rng.uniform(-0.5, 0.5), rng.uniform(-0.6, 0.1), r, r, 0.2)
    if rng.random() < 0.8:  # spine: a body and a darker canal
        r = rng.uniform(0.11, 0.2)
        bone = organ(0.0, rng.uniform(0.5, 0.7), r * 1.2, r, 0.12)
        scene.grey[bone] = rng.uniform(0.75, 1.0)
        vessel = organ(rng.normal(0, 0.06), 0.25, r * 0.5, r * 0.5, 0.03)
        scene.grey[vessel] = scene.grey[cavity] + scene.step()


def draw_abstract(scene: Scene) -> None:
    """Random shapes of all sizes: nested or overlapping, mirrored, shelled, folded or split."""
    rng, size = scene.rng, scene.size
    x, _ = pixel_grid(size)
    shapes: list[tuple[int, np.ndarray]] = []
    for k in range(int(rng.integers(2, 8))):
        radius = 0.5 * math.exp(rng.uniform(math.log(0.11), math.log(0.85)))
        if k == 0:
            radius = max(radius, 0.2)
        parent, clip = 0, None
        centre = tuple(rng.uniform(0.2, 0.8, 2))
        if shapes and rng.random() < 0.6:  # nest it in an earlier shape
            parent, clip = shapes[rng.integers(len(shapes))]
            places = np.flatnonzero(clip)
            if not len(places):
                continue
            place = int(rng.choice(places))
            centre = ((place % size) / size, (place // size) / size)
            radius = min(radius, 0.6 * math.sqrt(len(places) / math.pi) / size)
        if rng.random() < 0.35:
            shape = noise_blob(rng, size, centre, radius)
        else:
            stretch = math.exp(rng.normal(0.0, 0.3))
            radii = (radius * stretch, radius / stretch)
            rough = rng.choice([0.0, 0.12, 0.25, 0.35])
            shape = filled(star(rng, centre, radii, rng.uniform(0, 3.1), rough), size)
        if clip is not None:
            shape = shape & clip
        region = scene.region(parent)
        scene.paint(shape, region)
        shapes.append((region, shape))
        extra = rng.random()
        if extra < 0.15:  # the mirror image as a second organ
            twin = shape[:, ::-1] & ~shape
            if clip is not None:
                twin = twin & clip
            other = scene.region(parent, scene.grey[region] + rng.normal(0, 0.01))
            scene.paint(twin, other)
            scene.pairs.append((region, other))
        elif extra < 0.4:  # shells
            below = depth(shape)
            for cut in np.sort(rng.uniform(0.12, 0.6, int(rng.integers(1, 3)))):
                region = scene.region(region)
                scene.paint(below > cut * radius, region)
        elif extra < 0.6 and radius > 0.12:  # a folded ribbon around a lobed interior
            thickness = radius * rng.uniform(0.07, 0.2)
            surface = folded_depth(
                rng, depth(shape), rng.uniform(2.5, 4.5) * thickness, rng.uniform(0.15, 0.5) * radius
            )
            scene.paint(shape & (surface > thickness), scene.region(region))
        elif extra < 0.72 and radius > 0.12:  # two halves, told apart by a thin line or hardly at all
            middle = centre[0] + 0.05 * radius * smooth_field(rng, size, 3)
            step = rng.choice([0.0, 0.03]) * rng.normal()
            halves = [scene.region(region, scene.grey[region] + s) for s in (0.0, step)]
            fissure = rng.uniform(0.0, 0.012)
            scene.grey[region] -= rng.uniform(0.05, 0.4)  # what is left of it is the fissure
            scene.alone[region] = False
            scene.paint(shape & (x < middle - fissure), halves[0])
            scene.paint(shape & (x > middle + fissure), halves[1])


# ---------------------------------------------------------------- from scene to image


def warp_map(rng: np.random.Generator, size: int, cut: bool = False) -> np.ndarray:
    """Where each pixel of the image comes from: (size, size, 2) float32 canvas pixels (x, y).

    cut: whether the border of the canvas cuts an object. The map then stays about within the canvas,
    for otherwise the straight cut would show inside the image.
    """
    x, y = pixel_grid(size)
    angle = rng.normal(0.0, 0.15) if rng.random() < 0.6 else rng.uniform(-math.pi, math.pi)
    zoom = math.exp(rng.uniform(-0.25, 0.3))  # above 1 the object shrinks
    if cut:
        angle, zoom = 0.3 * rng.normal() * (angle > 0), rng.uniform(0.7, 0.9)
    stretch = math.exp(rng.normal(0.0, 0.08))
    c, s = zoom * math.cos(angle), zoom * math.sin(angle)
    dx, dy = rng.normal(0.0, 0.05, 2)
    flow = smooth_field(rng, size, 5, 2) * np.float32(0.025 * rng.random())
    flow[..., 0] += np.float32(c * stretch) * (x - 0.5) - np.float32(s) * (y - 0.5) + 0.5 + dx
    flow[..., 1] += np.float32(s) * (x - 0.5) + np.float32(c / stretch) * (y - 0.5) + 0.5 + dy
    flow *= size
    flow -= 0.5
    return flow


def render(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Paint, warp and degrade a scene: image (size, size) uint8 and labels (size, size) uint8."""
    rng, size = scene.rng, scene.size
    lut = np.zeros((2, 256), np.float32)
    lut[0, : len(scene.grey)] = scene.grey
    lut[1, 1 : len(scene.grey)] = scene.texture[1:]
    fine = smooth_field(rng, size, int(rng.integers(size // 8, size // 2)))
    coarse = smooth_field(rng, size, int(rng.integers(4, 12)))
    texture = cv2.addWeighted(fine, share := rng.random(), coarse, 1.0 - share, 0.0)
    image = cv2.LUT(scene.labels, lut[0]) + cv2.LUT(scene.labels, lut[1]) * texture

    # Greys are painted before the warp and interpolated by it, so that edges come out smooth.
    edges = scene.labels
    flow = warp_map(rng, size, bool(edges[[0, -1]].any() or edges[:, [0, -1]].any()))
    border = cv2.BORDER_CONSTANT
    # OpenCV's types lack the None that its documentation allows for the second map
    image = cv2.remap(image, flow, None, cv2.INTER_LINEAR, borderMode=border, borderValue=scene.grey[0])  # type: ignore[call-overload]
    labels = cv2.remap(scene.labels, flow, None, cv2.INTER_NEAREST, borderMode=border, borderValue=0)  # type: ignore[call-overload]
    if scene.texture[0] > 0.0:  # after the warp, to fill also what lies outside the canvas
        image += np.float32(scene.texture[0]) * texture * (labels == 0)

    blur = rng.uniform(0.3, 1.1) * size / 128  # partial volume
    image = cv2.GaussianBlur(image, (0, 0), blur) if blur > 0.35 else image
    image *= cv2.exp(np.float32(rng.uniform(0.0, 0.2)) * smooth_field(rng, size, 3))  # bias field
    noise = rng.standard_normal((size, size), dtype=np.float32)
    if rng.random() < 0.5:  # correlated noise, as reconstruction and resampling leave it
        noise = 1.8 * cv2.GaussianBlur(noise, (3, 3), 0.7)
    level = np.float32(0.06 * rng.random() ** 2 * (0.5 if scene.low_contrast else 1.0))
    if rng.random() < 0.08:  # speckle grows with the signal
        image *= 1.0 + 4.0 * level * noise
    else:
        image += level * noise

    # Window: stretch to the full range, sometimes saturating at the bright end.
    np.maximum(image, 0.0, out=image)
    some = np.sort(image[::4, ::4], axis=None)  # enough pixels for a quantile
    bright = float(some[int(rng.uniform(0.96, 0.999) * len(some))])
    image *= np.float32(rng.uniform(0.75, 1.1) / max(bright, 0.15))
    np.minimum(image, 1.0, out=image)
    if rng.random() < 0.6:
        image = cv2.pow(image, math.exp(rng.normal(0.0, 0.25)))
    if rng.random() < 0.08:
        image = 1.0 - image
    return (image * 255.0 + 0.5).astype(np.uint8), labels


def candidate_objects(scene: Scene, labels: np.ndarray) -> list[tuple[np.ndarray, float]]:
    """Distinct objects of allowed area in a rendered scene, in random order.

    labels: (size, size) uint8. Returns (regions that make it up, (regions,) bool; least share of its
    area that the largest piece must hold) for each.
    """
    n = len(scene.parent)
    counts = np.bincount(labels.ravel(), minlength=n)
    inside = scene.inside()
    own = np.eye(n, dtype=bool)
    pairs = [table[list(pair)].any(axis=0) for pair in scene.pairs for table in (inside, own)]
    rows = np.array([*inside[1:], *own[1:][scene.alone[1:]], *pairs])
    rows &= counts > 0
    least = np.full(len(rows), MIN_MAIN_PIECE)
    least[len(rows) - len(pairs) :] = MIN_MAIN_PIECE_PAIR
    area = (rows @ counts) / labels.size
    found = {rows[k].tobytes(): k for k in np.flatnonzero((area >= MIN_AREA) & (area <= MAX_AREA))[::-1]}
    kept = list(found.values())
    return [(rows[kept[k]], float(least[kept[k]])) for k in scene.rng.permutation(len(kept))]


def main_piece(mask: np.ndarray) -> float:
    """Share of a mask's area that lies in its largest connected piece. mask: (size, size) bool."""
    count, _, stats, _ = cv2.connectedComponentsWithStats(
        mask.view(np.uint8),
        connectivity=8,
        ltype=cv2.CV_16U,  # twice as fast as 32 bits
    )
    areas = stats[1:count, cv2.CC_STAT_AREA]
    return float(areas.max() / areas.sum()) if len(areas) else 0.0


def draw_once(rng: np.random.Generator, size: int, objects: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """One scene: image (size, size) uint8 and up to `objects` masks (size, size) bool."""
    black = rng.random() < 0.7
    scene = Scene(rng, size, rng.uniform(0.0, 0.03) if black else rng.uniform(0.05, 0.8))
    if not black:
        scene.texture[0] = rng.uniform(0.0, 0.12)
    recipe = rng.choice(3, p=[0.4, 0.25, 0.35])
    (draw_head, draw_torso, draw_abstract)[recipe](scene)
    assert len(scene.parent) <= MAX_REGIONS
    image, labels = render(scene)
    masks: list[np.ndarray] = []
    for row, least in candidate_objects(scene, labels):
        mask = look_up(row, labels)
        if main_piece(mask) >= least:
            masks.append(mask)
        if len(masks) == objects:
            break
    return image, masks


def phantom(rng: np.random.Generator, size: int = 128, objects: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """One phantom image and masks of some of its objects.

    Returns image (size, size, 3) uint8 of three equal channels, and masks (objects, size, size) bool.
    Each mask covers MIN_AREA to MAX_AREA of the image. Masks are what remains visible of an object
    and need not be disjoint: a mask may lie inside another. A scene with too few objects is drawn
    again; after ATTEMPTS scenes the richest one is kept and its objects are repeated.
    """
    best_image, best_masks = draw_once(rng, size, objects)
    attempt = 1
    while len(best_masks) < objects and (attempt < ATTEMPTS or not best_masks):
        image, masks = draw_once(rng, size, objects)
        attempt += 1
        if len(masks) > len(best_masks):
            best_image, best_masks = image, masks
    chosen = [best_masks[k % len(best_masks)] for k in range(objects)]
    return cv2.cvtColor(best_image, cv2.COLOR_GRAY2RGB), np.stack(chosen)
