"""Prompts in 3D, in voxels of the scan as it is stored, and what they say on each slice.

Whole numbers are centres of voxels: a click belongs to the voxel whose centre is nearest (the higher one, half-way), so
that clicks lie from -0.5 to just below size - 0.5. Boxes go from edge to edge: x0 .. x1 holds the voxels x0 to x1 - 1,
as a Python range does, and the edges of the volume are 0 and its size. Which voxel and which slice are meant is decided
in the volume as it is stored, never after it was turned: the same numbers mean the same voxels in every orientation.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk

from sam_med2d.errors import DataError
from sam_med2d.json_files import read_json
from sam_med2d.volumes.propagation import Slices
from sam_med2d.volumes.scans import AXES, turned
from segment_anything import BACKGROUND, FOREGROUND, ObjectPrompt, PromptError


class Object3d(NamedTuple):
    """What is said of an object, in voxels of the stored volume.

    points: (P, 3) xyz, and labels: (P,); boxes: n of (6,) x0 y0 z0 x1 y1 z1; axis: x, y or z, that slices lie across.
    """

    label: int
    name: str
    axis: str
    points: np.ndarray
    labels: np.ndarray
    boxes: list[np.ndarray]


def object_of(
    axis: str,
    foreground: Sequence[Sequence[float]],
    background: Sequence[Sequence[float]],
    boxes: Sequence[Sequence[float]],
) -> Object3d:
    """One object without a name. foreground, background: voxels xyz; boxes: each x0 y0 z0 x1 y1 z1."""
    points = np.array([*foreground, *background], float).reshape(-1, 3)
    labels = np.array([FOREGROUND] * len(foreground) + [BACKGROUND] * len(background), int)
    return Object3d(1, "object", axis, points, labels, [np.array(box) for box in boxes])


def objects_of_file(path: Path, axis: str) -> list[Object3d]:
    """axis: of objects that name none. Raises DataError."""
    content = read_json(path, "check the path, and correct it")
    entries = content.get("objects") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise DataError(
            f'{path}: must hold {{"objects": [...]}}, with at least one; see sam-med2d segment-volume --help'
        )
    objects = [
        _from_entry(entry, number, axis, f"{path}: object {number}") for number, entry in enumerate(entries, start=1)
    ]
    labels = [one.label for one in objects]
    if len({*labels}) < len(labels):
        raise DataError(f"{path}: two objects have the same label; give each its own")
    return objects


def _from_entry(entry: object, number: int, axis: str, where: str) -> Object3d:
    known = {"label", "name", "axis", "points", "point_labels", "boxes"}
    if not isinstance(entry, dict) or entry.keys() - known:
        raise DataError(f"{where} must hold {', '.join(sorted(known))} and nothing else")
    label, axis = entry.get("label", number), entry.get("axis", axis)
    if type(label) is not int or not 1 <= label <= 65535:
        raise DataError(f"{where}: label must be a whole number from 1 to 65535")
    if axis not in [*AXES]:
        raise DataError(f"{where}: axis must be x, y or z")
    points = _numbers(entry.get("points", []), 3, f"{where}: points")
    boxes = _numbers(entry.get("boxes", []), 6, f"{where}: boxes")
    labels = entry.get("point_labels", [FOREGROUND] * len(points))
    if not isinstance(labels, list) or len(labels) != len(points) or any(one not in (0, 1) for one in labels):
        raise DataError(f"{where}: point_labels must be 1 (on the object) or 0 (off it), one for each point")
    if not len(points) and not len(boxes):
        raise DataError(f"{where} has neither points nor boxes; add one")
    return Object3d(label, str(entry.get("name", f"object {number}")), axis, points, np.array(labels, int), [*boxes])


def _numbers(values: object, width: int, where: str) -> np.ndarray:
    try:
        return np.array(values, float).reshape(-1, width)
    except (TypeError, ValueError, OverflowError):
        raise DataError(f"{where} must be a list of rows of {width} numbers") from None


def check_inside(one: Object3d, size: Sequence[int], where: str) -> None:
    """size: of the stored volume, xyz. Raises DataError."""
    extent = f"the volume of {' x '.join(map(str, size))} voxels"
    for point in one.points:
        if not ((point >= -0.5) & (point < np.array(size) - 0.5)).all():
            raise DataError(
                f"{where}: point {_text(point)} of {one.name} lies outside {extent}, whose centres are numbered from "
                f"0 0 0 to {' '.join(str(n - 1) for n in size)}"
            )
    for box in one.boxes:
        if not (box[:3] < box[3:]).all():
            raise DataError(
                f"{where}: box {_text(box)} of {one.name} is empty; give x0 y0 z0 x1 y1 z1, the last three one past "
                "the last voxel"
            )
        if not ((box[:3] >= 0) & (box[3:] <= size)).all():
            raise DataError(f"{where}: box {_text(box)} of {one.name} reaches outside {extent}")


def nearest_voxels(points: np.ndarray) -> np.ndarray:
    """(P, 3) -> (P, 3) whole numbers."""
    return np.floor(points + 0.5)


def _text(values: np.ndarray) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"


def seeds_of(
    one: Object3d,
    stored: sitk.Image,
    scan: sitk.Image,
    sliced: Slices,
) -> tuple[dict[int, ObjectPrompt], tuple[int, int] | None]:
    """-> what is said of the object on each slice, in pixels as `upright`; and of a rough box its first slice and one
    past its last.

    Raises PromptError: boxes that contradict each other.
    """
    axis = 2 - sliced.axis  # of xyz
    clicks: dict[int, list[tuple[np.ndarray, int]]] = {}
    for point, label in zip(np.rint(turned(nearest_voxels(one.points), stored, scan)), one.labels):
        clicks.setdefault(int(point[axis]), []).append((point, int(label)))
    boxes = [_Box.of(box, stored, scan, axis) for box in one.boxes]
    rough = [box for box in boxes if box.thickness > 1.5]
    if len(rough) > 1:
        raise PromptError(
            "has more than one box that is thicker than a slice; give one rough box, or boxes on single slices"
        )
    on_slices: dict[int, np.ndarray] = {}
    for box in boxes:
        if rough and box is rough[0] and (clicks or len(boxes) > 1):
            continue  # other prompts say where to start; it only bounds
        if box.middle in on_slices:
            raise PromptError(f"has two boxes on slice {box.middle}; give one")
        on_slices[box.middle] = box.edges
    bounds = rough[0].bounds if rough else None
    seeds = {}
    for number in sorted(clicks.keys() | on_slices.keys()):
        here, drawn = clicks.get(number, []), on_slices.get(number)
        seeds[number] = ObjectPrompt(
            np.array([in_slice(point, sliced) for point, _ in here], np.float32) if here else None,
            np.array([label for _, label in here]) if here else None,
            None if drawn is None else box_in_slice(drawn, sliced),
        )
    outside = [number for number in seeds if bounds and not bounds[0] <= number < bounds[1]]
    if outside:
        raise PromptError(f"is prompted on slice {outside[0]}, outside its rough box")
    without = [
        number
        for number in seeds
        if number not in on_slices and all(label != FOREGROUND for _, label in clicks[number])
    ]
    if without:
        raise PromptError(f"has only background clicks on slice {without[0]}; add one on the object, or a box")
    return seeds, bounds


class _Box(NamedTuple):
    """edges: (6,) in the turned volume; thickness: across slices; middle: the slice it is drawn on; bounds: the slices
    whose centres it holds, the first and one past the last."""

    edges: np.ndarray
    thickness: float
    middle: int
    bounds: tuple[int, int]

    @classmethod
    def of(cls, box: np.ndarray, stored: sitk.Image, scan: sitk.Image, axis: int) -> "_Box":
        """box: (6,) in the stored volume; axis: of the turned volume, xyz, that slices lie across."""
        corners = turned(box.reshape(2, 3) - 0.5, stored, scan) + 0.5  # edges of voxels, not their centres
        along = int(np.abs(turned(np.eye(3), stored, scan) - turned(np.zeros((3, 3)), stored, scan))[:, axis].argmax())
        low, high = box[along], box[3 + along]
        # in the stored volume, so that a middle or an edge half-way falls to the same slice whichever way it is turned
        numbers = np.zeros((3, 3))
        numbers[:, along] = np.floor((low + high) / 2), np.ceil(low - 0.5), np.ceil(high - 0.5) - 1
        middle, first, last = (int(number) for number in np.rint(turned(numbers, stored, scan)[:, axis]))
        edges = np.concatenate([corners.min(axis=0), corners.max(axis=0)])
        return cls(edges, float(high - low), middle, (min(first, last), max(first, last) + 1))


def in_slice(point: np.ndarray, sliced: Slices) -> tuple[float, float]:
    """xyz -> xy of the pixel in the slice as it is looked at."""
    x, y = (value for axis, value in enumerate(point) if axis != 2 - sliced.axis)
    return x, y if sliced.axis == 0 else sliced.size[0] - 1 - y


def box_in_slice(box: np.ndarray, sliced: Slices) -> np.ndarray:
    """x0 y0 z0 x1 y1 z1 -> x0 y0 x1 y1 in the slice as it is looked at, clipped to it."""
    in_plane = [axis for axis in range(3) if axis != 2 - sliced.axis]
    (x0, y0), (x1, y1) = box[:3][in_plane], box[3:][in_plane]
    height, width = sliced.size
    if sliced.axis != 0:
        y0, y1 = height - y1, height - y0
    return np.array([max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)], np.float32)
