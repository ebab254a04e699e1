"""Slices of a DICOM series as one straight stack: in order, or refused with what keeps them from being one."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sam_med2d.errors import DataError

EVEN = 0.1  # of a voxel, that a slice may lie beside its place in an even, straight stack

OVERLAP = 0.75  # of their thickness: slices that are nearer to one another may be of two acquisitions

# Attributes of which one stack has one value, or one run of slices after another.
KINDS = (
    "AcquisitionNumber",
    "TemporalPositionIdentifier",
    "TemporalPositionIndex",
    "EchoNumbers",
    "EchoTime",
    "InversionTime",
    "FlipAngle",
    "DiffusionBValue",
    "ConvolutionKernel",
    "ImageType",
)

# Attributes that rise or fall along a stack, but also jump where every other slice is taken first.
ORDERS = ("AcquisitionTime", "AcquisitionDateTime", "InstanceNumber")

# Attributes that may tell two slices of one place apart.
MARKS = (*KINDS, *ORDERS, "TriggerTime", "FrameReferenceTime", "ContentTime")


@dataclass(frozen=True, eq=False)
class SliceHeader:
    """Of one file.

    shape: (rows, columns); place: (3,) mm, of the first pixel; axes: (2, 3), along the rows and along the columns;
    spacing: (between rows, between columns) in mm; thickness: in mm; marks: {attribute of MARKS: value}.
    None, or empty: the file does not say.
    """

    path: str
    series: str
    instance: str
    photometric: str
    shape: tuple[int, int]
    place: np.ndarray | None
    axes: np.ndarray | None
    spacing: tuple[float, float] | None
    thickness: float | None
    marks: dict[str, str]


class Stack(NamedTuple):
    """slices: from one end to the other; spacing, origin, direction: of the volume they make, as SimpleITK has them."""

    slices: list[SliceHeader]
    spacing: tuple[float, float, float]
    origin: list[float]
    direction: list[float]


class _Placed(NamedTuple):
    """A slice that says where it lies. Fields as those of `SliceHeader`."""

    slice: SliceHeader
    place: np.ndarray
    axes: np.ndarray
    spacing: tuple[float, float]


def ordered(headers: Sequence[SliceHeader], where: str) -> Stack:
    """At least two slices of one series -> the stack that they make. where: their folder. Raises DataError."""
    placed = [_placed(header) for header in headers]
    axes, spacing = placed[0].axes, placed[0].spacing
    for one in placed:
        _check_alike(one, placed[0])
    normal = np.cross(*axes)
    placed.sort(key=lambda one: float(normal @ one.place))
    heights = np.array([normal @ one.place for one in placed])
    _check_one_acquisition(placed, heights, where)
    _check_straight(placed, axes, spacing, where)
    _check_even(heights, where)
    step = (heights[-1] - heights[0]) / (len(heights) - 1)
    return Stack(
        [one.slice for one in placed],
        (spacing[1], spacing[0], float(step)),
        placed[0].place.tolist(),
        np.column_stack([*axes, normal]).ravel().tolist(),
    )


def _placed(header: SliceHeader) -> _Placed:
    """Raises DataError where the file does not say where its slice lies."""
    lacking = "ImagePositionPatient" if header.place is None else "ImageOrientationPatient"
    if header.place is None or header.axes is None or header.spacing is None:
        if header.place is not None and header.axes is not None:
            lacking = "PixelSpacing"
        raise DataError(
            f"{header.path}: does not say where its slice lies ({lacking} is missing), so the series makes no volume; "
            "export it again"
        )
    return _Placed(header, header.place, header.axes, header.spacing)


def _check_alike(one: _Placed, first: _Placed) -> None:
    """Raises DataError where a slice is of another shape than the first, or its far corner swings off by that."""
    size, finest = np.array(one.slice.shape), min(first.spacing)
    stretched = np.abs(np.array(one.spacing) - first.spacing) * size
    swung = np.linalg.norm(one.axes - first.axes, axis=1)[::-1] * one.spacing * size
    for differs, name, here, there in (
        (one.slice.shape != first.slice.shape, "Rows and Columns", one.slice.shape, first.slice.shape),
        (bool((stretched > EVEN * finest).any()), "PixelSpacing", one.spacing, first.spacing),
        (bool((swung > EVEN * finest).any()), "ImageOrientationPatient", one.axes, first.axes),
        (
            one.slice.photometric != first.slice.photometric,
            "PhotometricInterpretation",
            one.slice.photometric,
            first.slice.photometric,
        ),
    ):
        if differs:
            raise DataError(
                f"{one.slice.path}: its {name} ({_text(here)}) differs from that of {first.slice.path} "
                f"({_text(there)}), of the same series; keep the slices of one stack in a folder of their own"
            )


def _check_one_acquisition(placed: list[_Placed], heights: np.ndarray, where: str) -> None:
    """Raises DataError where slices of two acquisitions lie in one another's place or between one another."""
    steps = np.diff(heights)
    if steps.min() < 1e-3:
        at = int(steps.argmin())
        one, other = placed[at].slice, placed[at + 1].slice
        if one.instance and one.instance == other.instance:
            raise DataError(f"{other.path}: is the same slice as {one.path}; keep one of them")
        differ = [name for name in MARKS if one.marks.get(name) != other.marks.get(name)]
        apart = "; ".join(f"{name} {one.marks.get(name, '-')} and {other.marks.get(name, '-')}" for name in differ)
        raise DataError(
            f"{other.path}: another slice of its series is in the same place ({Path(one.path).name}), told apart by "
            f"{apart or 'nothing that is looked at'}; keep the files of one acquisition in a folder"
        )
    thickness = placed[0].slice.thickness
    mixed = [name for name in KINDS if _interleaved([one.slice.marks.get(name, "") for one in placed])]
    if thickness is None or float(np.median(steps)) < OVERLAP * thickness:
        mixed += [name for name in ORDERS if _alternating([one.slice.marks.get(name, "") for one in placed])]
    if mixed:
        told = "; ".join(f"{name} ({_few({one.slice.marks.get(name, '-') for one in placed})})" for name in mixed)
        raise DataError(
            f"{where}: slices of more than one acquisition lie between one another, {steps.min():.3g} to "
            f"{steps.max():.3g} mm apart, told apart by {told}; keep the files of one acquisition in a folder"
        )


def _interleaved(values: list[str]) -> bool:
    """Whether two values or more, each of several slices, come in turns along the stack."""
    often = [value for value in values if values.count(value) > 1]
    runs = 1 + sum(one != other for one, other in pairwise(often)) if often else 0
    return runs > len({*often})


def _alternating(values: list[str]) -> bool:
    """Whether numbers or times go up and down in turns along the stack, as those of two sweeps do."""
    try:
        steps = np.diff([float(value) for value in values])
    except ValueError:
        return False
    return bool(min((steps > 0).sum(), (steps < 0).sum()) >= max(1, len(steps) // 3))


def _check_straight(placed: list[_Placed], axes: np.ndarray, spacing: tuple[float, float], where: str) -> None:
    """Raises DataError where slices do not lie on the normal through the first."""
    offsets = np.array([one.place for one in placed]) - placed[0].place
    beside = offsets @ axes.T / np.array(spacing)[::-1]  # in pixels
    worst = float(np.abs(beside).max())
    if worst <= EVEN:
        return
    normal = np.cross(*axes)
    run = offsets[-1] @ normal
    tilt = float(np.degrees(np.arctan2(np.linalg.norm(offsets[-1] - run * normal), run)))
    bent = float(np.abs(beside - np.outer(offsets @ normal / run, beside[-1])).max())
    what = (
        f"its slices are tilted: the stack runs {tilt:.3g} degrees off their normal (a tilted gantry)"
        if bent <= max(EVEN, worst / 10)
        else "its slices drift sideways"
    )
    raise DataError(
        f"{where}: {what}, up to {worst:.3g} pixels, so that labels in a straight volume would lie beside the tissue; "
        "straighten the scan first (dcm2niix corrects the tilt of CT) and draw or resample its labels on the result"
    )


def _check_even(heights: np.ndarray, where: str) -> None:
    steps = np.diff(heights)
    even = np.linspace(heights[0], heights[-1], len(heights))
    if steps.max() - steps.min() > EVEN * np.median(steps) or np.abs(heights - even).max() > EVEN * np.median(steps):
        raise DataError(
            f"{where}: slices are missing or uneven: {steps.min():.3g} to {steps.max():.3g} mm apart; complete "
            "the series, or resample it"
        )


def _text(value: np.ndarray | Sequence[float] | str) -> str:
    if isinstance(value, str):
        return value or "nothing"
    return ", ".join(f"{number:.6g}" for number in np.ravel(np.asarray(value)))


def _few(values: set[str]) -> str:
    shown = sorted(values)
    return ", ".join(shown[:4]) + (", ..." if len(shown) > 4 else "")
