"""Whole objects of a scan: from their prompts to probabilities, to one label volume and to a table."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk

from sam_med2d.errors import DataError
from sam_med2d.outputs import cell
from sam_med2d.volumes.prompts import Object3d, seeds_of
from sam_med2d.volumes.propagation import (
    END_OF_VOLUME,
    Propagated,
    Rule,
    Slice,
    Slices,
    fuse,
    propagate,
    refine_along,
)
from sam_med2d.volumes.scans import AXES, as_viewed, grids_differ, read_label_volume, turned
from segment_anything.files import replacing

GROWN = 3  # times the area on its prompted slices, above which an object has most likely run into something else


class Result(NamedTuple):
    """probability: (Z, Y, X) float16, of the volume turned to the patient; prompted: slices that prompts lie on."""

    wanted: Object3d
    probability: np.ndarray
    propagated: Propagated
    prompted: tuple[int, ...] = ()


def segment(
    one: Object3d,
    along: dict[str, Slices],
    stored: sitk.Image,
    scan: sitk.Image,
    rule: Rule,
    fused: bool,
    progress: Callable[[], object],
) -> Result:
    """Find one object from its prompts.

    along: the slices along each axis; stored, scan: the volume as it is stored and turned to the patient; fused:
    whether the other two axes are looked at too; progress: called after every slice. Raises PromptError.
    """
    sliced = along[one.axis]
    seeds, bounds = seeds_of(one, stored, scan, sliced)
    propagated = propagate(sliced, seeds, rule, bounds, progress)
    volume = sliced.assemble(propagated.slices)
    if fused:
        volumes, covered = [volume], [_covered(sliced, propagated.slices)]
        for other in along.values():
            if other is not sliced:
                again = refine_along(other, volume > 0.5, rule, progress)
                volumes.append(other.assemble(again))
                covered.append(_covered(other, again))
        volume = fuse(volumes, covered)
    return Result(one, volume, propagated, tuple(seeds))


def _covered(sliced: Slices, slices: dict[int, Slice]) -> np.ndarray:
    """Where an axis has looked: bool, broadcastable to the volume."""
    seen = np.zeros(len(sliced), bool)
    seen[list(slices)] = True
    return seen.reshape([-1 if axis == sliced.axis else 1 for axis in range(3)])


def label_volume(results: list[Result], shape: tuple[int, ...]) -> np.ndarray:
    """(Z, Y, X) uint8, or uint16 for labels above 255. Where objects overlap, the more probable one."""
    labels = np.zeros(shape, np.uint8 if max(result.wanted.label for result in results) < 256 else np.uint16)
    highest = np.full(shape, 0.5, np.float16)
    for result in results:
        here = result.probability > highest
        labels[here] = result.wanted.label
        np.maximum(highest, result.probability, out=highest)
    return labels


def earlier_labels(path: Path, scan: sitk.Image) -> np.ndarray:
    """A label volume on the grid of `scan`, turned to the patient as it is: (Z, Y, X) integers. Raises DataError."""
    layers, _ = read_label_volume(str(path))
    if len(layers) > 1:
        raise DataError(f"{path}: has {len(layers)} layers that overlap; give a label volume of one")
    image, _ = as_viewed(layers[0])
    if difference := grids_differ(image, scan):
        raise DataError(f"{path}: is not on the grid of the scan ({difference}); give labels of this scan")
    labels = sitk.GetArrayFromImage(image)
    if (labels != labels.astype(np.uint16)).any():
        raise DataError(f"{path}: has values that are no labels, whole numbers from 0 to {np.iinfo(np.uint16).max}")
    return labels.astype(np.uint16)


def unused_labels(objects: list[Object3d], earlier: np.ndarray) -> list[Object3d]:
    """Objects whose labels are taken get the next free ones above all others."""
    taken = {int(label) for label in np.unique(earlier)}
    free = max(taken | {one.label for one in objects}) + 1
    found = []
    for one in objects:
        if one.label in taken:
            one, free = one._replace(label=free), free + 1
        found.append(one)
    return found


def merged(earlier: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Both, the earlier ones where there are any; uint8 where that holds them all."""
    both = np.where(earlier > 0, earlier, labels)
    return both.astype(np.uint8) if both.max(initial=0) < 256 else both


def row_of(result: Result, labels: np.ndarray, stored: sitk.Image, scan: sitk.Image) -> dict[str, object]:
    """What the table says of an object. Slices are numbered as in the stored volume."""
    voxels = int((labels == result.wanted.label).sum())
    slices, axis = result.propagated.slices, AXES.index(result.wanted.axis)
    places = np.zeros((3, 3))
    places[:, axis] = min(slices), max(slices), max(slices) + 1  # the last tells which way the axis runs in the file
    first_place, last_place, beyond = turned(places, scan, stored)
    stored_axis = np.abs(beyond - last_place).argmax()
    numbers = [round(float(place[stored_axis])) for place in (first_place, last_place)]
    (first, first_end), (last, last_end) = sorted(zip(numbers, result.propagated.ends), key=lambda end: end[0])
    return {
        "label": result.wanted.label,
        "name": result.wanted.name,
        "voxels": voxels,
        "millilitres": round(voxels * float(np.prod(scan.GetSpacing())) / 1000, 3),
        "axis": result.wanted.axis,
        "first_slice": first,
        "last_slice": last,
        "first_end": first_end,
        "last_end": last_end,
        "mean_predicted_iou": round(float(np.mean([one.iou for one in slices.values()])), 3),
        "doubt": doubt_of(result),
    }


def doubt_of(result: Result) -> str:
    """What makes an object look as if it had run away from its prompts, or nothing."""
    slices, ends = result.propagated.slices, result.propagated.ends
    prompted = [number for number in result.prompted if number in slices]
    if not prompted:
        return ""
    unasked = min(slices) not in prompted and max(slices) not in prompted
    if unasked and ends == (END_OF_VOLUME, END_OF_VOLUME):
        return "reaches both ends of the volume"
    first = max(int(slices[number].mask.sum()) for number in prompted)
    largest = max(int(one.mask.sum()) for one in slices.values())
    return f"grows to {largest / first:.1f} times its first area" if first and largest > GROWN * first else ""


def warning_of(rows: list[dict[str, object]]) -> str:
    """One line in capitals over all objects that are in doubt, with what to do; or nothing. rows: of `row_of`."""
    doubts = [f"{row['name']} {row['doubt']}" for row in rows if row["doubt"]]
    if not doubts:
        return ""
    return (
        f"look before you use this: {'; '.join(doubts)}. Give prompts on two more slices, near both ends of the object,"
        " or one box around it in 3D, which it does not leave"
    ).upper()


def write_table(path: Path, rows: list[dict[str, object]]) -> None:
    """As CSV, a line an object, in one step. rows: at least one, of `row_of`."""
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*rows[0]])
        writer.writeheader()
        for row in rows:
            writer.writerow({name: cell(value) if isinstance(value, str) else value for name, value in row.items()})


def spread_slices(labels: np.ndarray, axis: int, count: int) -> list[int]:
    """At most `count` slices, spread over those with objects; the middle one where there is no object.

    labels: (Z, Y, X); axis: of the array, along which slices are numbered.
    """
    present = np.flatnonzero((labels > 0).any(axis=tuple(i for i in range(3) if i != axis)))
    if not len(present):
        return [labels.shape[axis] // 2]
    return present[np.linspace(0, len(present) - 1, min(count, len(present))).round().astype(int)].tolist()
