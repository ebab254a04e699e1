"""Where the voxels of a NIfTI file lie, by its header.

A header may say twice where its voxels lie, and the two may differ: the sform (an affine matrix) and the qform (a
rotation, an offset and pixdim). As nibabel and FSL do, the sform is taken where its code is above 0, then the qform,
then pixdim alone. Wherever something was assumed or contradicts itself, a line says so (`Grid.notes`). Labels are
written with the header of their scan, so that both forms stay as they were for whatever reads them.
"""

import math
from typing import NamedTuple

import numpy as np

from sam_med2d.errors import DataError

RIGHT = 5e-4  # cosine of two axes, up to which they count as at right angles: rounding makes it differ from 0
LARGEST_SHEAR = 1.0  # degrees, up to which axes may be set at right angles on request
SAME_SCALE = 1e-3  # of a voxel's size, that sform and pixdim may differ by without a word
APART = 0.1  # of a voxel, that sform and qform may lie apart without a word
MILLIMETRES = {1: 1000.0, 3: 0.001}  # in the unit of lengths; every other one counts as millimetres


class Grid(NamedTuple):
    """Where voxels lie, in millimetres, x to the patient's left, y to the back, z to the head.

    spacing, origin: (3,); direction: (3, 3), a column an axis; notes: what was assumed or contradicts itself.
    """

    spacing: np.ndarray
    direction: np.ndarray
    origin: np.ndarray
    notes: list[str]


def grid_of(header: np.void, shape: tuple[int, int, int], path: str, straighten: bool) -> Grid:
    """shape: (x, y, z). Raises DataError: nothing in the header tells where its voxels lie."""
    unit = MILLIMETRES.get(int(header["units"]) & 7, 1.0)
    pixdim = np.array(header["pixdim"][1:4], float)
    used = np.array([True, True, int(header["dim"][0]) > 2 and shape[2] > 1])
    pixdim[~used & ~(pixdim > 0)] = 1.0  # of a picture: nothing says how thick it is
    sound = bool((np.isfinite(pixdim) & (pixdim > 0)).all())
    notes: list[str] = []
    rotated = _of_qform(header, pixdim) * unit if int(header["qform"]) > 0 and sound else None
    if int(header["sform"]) > 0:
        affine = np.array(header["rows"], float) * unit
        fault, straight = _straightened(affine, shape)
        if straight is not None and (not fault or straighten):
            notes += [f"{fault}; read on the nearest axes at right angles"] if fault else []
            notes += _doubts(straight, pixdim * unit if sound else None, rotated, shape, header)
            return _grid(straight, notes)
        if rotated is None:
            remedy = "give --straighten to read the nearest that are, or resample it on a straight grid"
            raise DataError(
                f"{path}: cannot be read, {fault}; "
                + (remedy if straight is not None else "resample it on a straight grid, or export it again")
            )
        notes.append(f"{fault}; the qform is taken")
    if rotated is None:
        if not sound:
            raise DataError(
                f"{path}: cannot be read, its pixdim has voxels of {_mm(header['pixdim'][1:4])} mm; correct its header "
                "or export it again"
            )
        if int(header["sform"]) <= 0:
            notes.append("neither qform nor sform says how it lies in the patient; x is taken to go to the left")
        return Grid(pixdim * unit, np.eye(3), np.zeros(3), notes)
    return _grid(rotated, notes)


def _of_qform(header: np.void, pixdim: np.ndarray) -> np.ndarray:
    """(3, 4), from voxels to what the header counts in, x to the right and y to the front."""
    b, c, d = (float(value) for value in header["quaternion"])
    rest = 1 - b * b - c * c - d * d
    if not math.isfinite(rest):
        b, c, d, rest = 0.0, 0.0, 0.0, 1.0
    if rest < 1e-7:
        length = math.sqrt(b * b + c * c + d * d)
        a, b, c, d = 0.0, b / length, c / length, d / length
    else:
        a = math.sqrt(rest)
    turn = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    turn[:, 2] *= -1 if header["pixdim"][0] < 0 else 1
    offset = np.nan_to_num(np.array(header["offset"], float), posinf=0, neginf=0)
    return np.column_stack([turn * pixdim, offset])


def _straightened(affine: np.ndarray, shape: tuple[int, int, int]) -> tuple[str, np.ndarray | None]:
    """affine: (3, 4) -> what is wrong with an sform, or nothing; and the nearest with right angles.

    None: it lies in no space, or is sheared by more than LARGEST_SHEAR.
    """
    if not np.isfinite(affine).all():
        return "its sform holds what is no number", None
    spacing = np.linalg.norm(affine[:, :3], axis=0)
    if spacing.min() <= 0 or abs(np.linalg.det(affine[:, :3] / spacing)) < 1e-3:
        return "its sform puts all voxels into one plane", None
    axes = affine[:, :3] / spacing
    cosine = max(abs(float(axes[:, i] @ axes[:, j])) for i, j in ((0, 1), (0, 2), (1, 2)))
    left, _, right = np.linalg.svd(axes)
    nearest = left @ right
    centre = (np.array(shape) - 1) / 2  # which stays where it is, so that the corners move least
    origin = affine[:, :3] @ centre + affine[:, 3] - (nearest * spacing) @ centre
    straight = np.column_stack([nearest * spacing, origin])
    if cosine <= RIGHT:
        return "", straight
    degrees = math.degrees(math.asin(min(1.0, cosine)))
    moved = _apart(affine, straight, shape)
    fault = f"the axes of its sform are {degrees:.3g} degrees off right angles, which is {moved:.2g} mm at its corners"
    return fault, straight if degrees <= LARGEST_SHEAR else None


def _doubts(
    straight: np.ndarray,
    pixdim: np.ndarray | None,
    rotated: np.ndarray | None,
    shape: tuple[int, int, int],
    header: np.void,
) -> list[str]:
    """What the rest of a header says against its sform."""
    spacing = np.linalg.norm(straight[:, :3], axis=0)
    here = np.array(shape) > 1
    if pixdim is None:
        said = _mm(header["pixdim"][1:4])
        return [
            f"its pixdim has voxels of {said} mm, which cannot be; those of its sform, {_mm(spacing)} mm, are taken"
        ]
    if not np.allclose(spacing[here], pixdim[here], rtol=SAME_SCALE):
        return [f"its sform has voxels of {_mm(spacing)} mm and its pixdim of {_mm(pixdim)} mm; the sform is taken"]
    if rotated is not None and (apart := _apart(straight, rotated, shape)) > APART * spacing[here].min(initial=np.inf):
        return [f"its qform and its sform lie up to {apart:.3g} mm apart; the sform is taken"]
    return []


def _apart(one: np.ndarray, other: np.ndarray, shape: tuple[int, int, int]) -> float:
    """The most that a corner voxel lies apart by two affine matrices, (3, 4)."""
    corners = np.array([[(n - 1) * bit for n, bit in zip(shape, bits)] + [1] for bits in np.ndindex(2, 2, 2)])
    return float(np.linalg.norm(corners @ (one - other).T, axis=1).max())


def _grid(affine: np.ndarray, notes: list[str]) -> Grid:
    """affine: (3, 4), in millimetres, x to the right and y to the front."""
    affine = affine * np.array([[-1.0], [-1.0], [1.0]])
    spacing = np.linalg.norm(affine[:, :3], axis=0)
    return Grid(spacing, affine[:, :3] / spacing, affine[:, 3], notes)


def _mm(spacing: np.ndarray) -> str:
    return " x ".join(f"{mm:.3g}" for mm in spacing)
