"""NIfTI 1 and 2: what a header says of a volume's place, the voxels as they are stored, and labels that lie on them.

A header may say twice where its voxels lie, and the two may differ: the sform (an affine matrix) and the qform (a
rotation, an offset and pixdim). As nibabel and FSL do, the sform is taken where its code is above 0, then the qform,
then pixdim alone. Wherever something was assumed or contradicts itself, a line says so (`Grid.notes`). Labels are
written with the header of their scan, so that both forms stay as they were for whatever reads them.

SimpleITK's own reader is not used: it takes sizes of voxels from pixdim where the sform has others, turns voxels that
are no numbers and voxels that are missing into 0, and reads no sheared sform.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
import SimpleITK as sitk

from sam_med2d.errors import DataError
from sam_med2d.volumes.limits import MOST_VOXELS, check_voxels

ENDINGS = (".nii", ".nii.gz")

RIGHT = (
    5e-4  # cosine of two axes, up to which they count as at right angles: rounding in headers makes it differ from 0
)
LARGEST_SHEAR = 1.0  # degrees, up to which axes may be set at right angles on request
SAME_SCALE = 1e-3  # of a voxel's size, that sform and pixdim may differ by without a word
APART = 0.1  # of a voxel, that sform and qform may lie apart without a word
LONGEST_START = 1 << 26  # bytes of extensions before the voxels

NUMBERS = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
COLOURS = {128: 3, 2304: 4}  # channels, each of 8 bits
COMPLEX = (32, 1792, 2048)
MILLIMETRES = {1: 1000.0, 3: 0.001}  # in the unit of lengths; every other one counts as millimetres

FIELDS = {  # name: (type, place) in NIfTI 1 and in NIfTI 2, where a header is 348 and 540 bytes long
    "size": ("i4", 0, "i4", 0),
    "magic": ("S4", 344, "S8", 4),
    "dim": ("8i2", 40, "8i8", 16),
    "kind": ("i2", 70, "i2", 12),
    "bits": ("i2", 72, "i2", 14),
    "pixdim": ("8f4", 76, "8f8", 104),
    "start": ("f4", 108, "i8", 168),
    "slope": ("f4", 112, "f8", 176),
    "inter": ("f4", 116, "f8", 184),
    "high": ("f4", 124, "f8", 192),
    "low": ("f4", 128, "f8", 200),
    "units": ("u1", 123, "i4", 500),
    "intent": ("i2", 68, "i4", 504),
    "intent_name": ("S16", 328, "S16", 508),
    "qform": ("i2", 252, "i4", 344),
    "sform": ("i2", 254, "i4", 348),
    "quaternion": ("3f4", 256, "3f8", 352),
    "offset": ("3f4", 268, "3f8", 376),
    "rows": ("(3,4)f4", 280, "(3,4)f8", 400),
}


def _layout(size: int, at: int) -> np.dtype:
    """at: where the type stands in FIELDS."""
    layout: dict[str, Any] = {
        "names": [*FIELDS],
        "formats": [field[at] for field in FIELDS.values()],
        "offsets": [field[at + 1] for field in FIELDS.values()],
        "itemsize": size,
    }
    return np.dtype(layout)  # type: ignore[call-overload]  # its stubs know no layouts with places


HEADERS = {348: _layout(348, 0), 540: _layout(540, 2)}


class Grid(NamedTuple):
    """Where voxels lie, in millimetres, x to the patient's left, y to the back, z to the head.

    spacing, origin: (3,); direction: (3, 3), a column an axis; notes: what was assumed or contradicts itself.
    """

    spacing: np.ndarray
    direction: np.ndarray
    origin: np.ndarray
    notes: list[str]


class Volume(NamedTuple):
    """image: of three dimensions; header: of the file, for labels; rounding: the most that storing may have changed a
    value by, 0 where values are stored as they are."""

    image: sitk.Image
    header: bytes
    notes: list[str]
    rounding: float


def is_nifti(path: str) -> bool:
    return path.lower().endswith(ENDINGS)


# ---------------------------------------------------------------- reading


def read_nifti(
    path: str,
    frame: int | None = None,
    *,
    straighten: bool = False,
    most_voxels: int = MOST_VOXELS,
) -> Volume:
    """A file of one volume, or one volume of a 4D file. Values that are no numbers stay so.

    frame: of a 4D file; it says nothing of others.
    straighten: axes that are not at right angles, by up to LARGEST_SHEAR, are read as the nearest that are.
    Raises DataError, before the voxels are read where the header says too much or nothing.
    """
    try:
        with _opened(path) as file:
            header = _header(file, path)
            sizes = _sizes(header, path)
            check_voxels(path, sizes, most_voxels)
            shape, number = _chosen(sizes, frame, path)
            grid = grid_of(header, shape, path, straighten)
            voxels, rounding = _voxels(file, header, sizes, shape, number, path)
    except (EOFError, OSError, zlib.error, struct.error) as error:
        raise DataError(f"{path}: cannot be read, it is cut off or no NIfTI ({error}); copy it again") from error
    image = sitk.GetImageFromArray(voxels, isVector=voxels.ndim == 4)
    image.SetSpacing(grid.spacing.tolist())
    image.SetDirection(grid.direction.ravel().tolist())
    image.SetOrigin(grid.origin.tolist())
    return Volume(image, header.tobytes(), grid.notes, rounding)


def _opened(path: str) -> BinaryIO:
    """By what the file begins with: a compressed file may have lost the second half of its ending."""
    with open(path, "rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if compressed else open(path, "rb")  # type: ignore[return-value]


def _header(file: BinaryIO, path: str) -> np.void:
    raw = file.read(4)
    orders: tuple[Literal["<", ">"], ...] = ("<", ">")
    for order in orders:
        size = struct.unpack(f"{order}i", raw)[0]
        if size in HEADERS:
            raw += file.read(size - 4)
            if len(raw) < size:
                break
            header = np.frombuffer(raw, HEADERS[size].newbyteorder(order))[0]
            if header["magic"][:3] in (b"n+1", b"n+2"):
                return header
    raise DataError(f"{path}: cannot be read, it is cut off or no NIfTI (of one file); copy it again")


def _sizes(header: np.void, path: str) -> tuple[int, ...]:
    """Of all axes, three or more, x first."""
    count = int(header["dim"][0])
    sizes = [int(n) for n in header["dim"][1 : 1 + max(0, min(count, 7))]]
    if not 2 <= count <= 7 or min(sizes) < 1:
        raise DataError(
            f"{path}: cannot be read, its header has {count} dimensions of {' x '.join(map(str, sizes))} voxels; "
            "export it again"
        )
    while len(sizes) > 3 and sizes[-1] == 1:
        del sizes[-1]
    return (*sizes, *[1] * (3 - len(sizes)))


def _chosen(sizes: tuple[int, ...], frame: int | None, path: str) -> tuple[tuple[int, int, int], int]:
    """-> the shape (x, y, z) of one volume, and its number."""
    shape = (sizes[0], sizes[1], sizes[2])
    if len(sizes) > 4:
        what = f"has {sizes[4]} channels a voxel (vectors)" if sizes[3] == 1 else f"has {len(sizes)} dimensions"
        raise DataError(f"{path}: {what}; save one volume a file")
    return shape, frame_of(sizes[3], frame, path, " x ".join(map(str, sizes))) if len(sizes) == 4 else 0


def frame_of(count: int, frame: int | None, path: str, size: str) -> int:
    """The number of the volume that is asked for, of `count` in a file. Raises DataError."""
    if count > 1 and frame is None:
        raise DataError(f"{path}: is 4D ({size}: {count} volumes); choose one with --frame 0 .. {count - 1}")
    if not 0 <= (frame or 0) < count:
        raise DataError(f"{path}: has {count} volume(s), so --frame goes from 0 to {count - 1}")
    return frame or 0


def _voxels(
    file: BinaryIO, header: np.void, sizes: tuple[int, ...], shape: tuple[int, int, int], number: int, path: str
) -> tuple[np.ndarray, float]:
    """-> (Z, Y, X) or (Z, Y, X, channels), scaled as the header says; and the most that rounding changed a value by.

    The whole file is read, to its end, where gzip checks its sum, also where one volume of many is wanted.
    """
    kind = int(header["kind"])
    if kind in COMPLEX:
        raise DataError(f"{path}: holds complex numbers; save their magnitude")
    if kind not in NUMBERS and kind not in COLOURS:
        raise DataError(f"{path}: holds numbers of the kind {kind}, which are not read; save it in 8, 16 or 32 bits")
    order = "<" if header.dtype["size"] == np.dtype("<i4") else ">"
    stored = np.dtype(order + NUMBERS.get(kind, "u1"))
    channels = (COLOURS[kind],) if kind in COLOURS else ()
    voxels = np.empty((*shape[::-1], *channels), stored)
    wanted = voxels.nbytes * (math.prod(sizes) // math.prod(shape))
    start = _start_of(header, path)
    skipped = _skip(file, start - header.dtype.itemsize) == start - header.dtype.itemsize
    before = _skip(file, number * voxels.nbytes) if skipped else 0
    got = before + (_fill(file, voxels) if before == number * voxels.nbytes else 0)
    if got == before + voxels.nbytes:
        got += _skip(file, wanted - got)
    if got < wanted:
        raise DataError(
            f"{path}: cannot be read, it is cut off: {got} bytes of voxels instead of {wanted}; copy it again"
        )
    if _skip(file, LONGEST_START) == LONGEST_START:
        raise DataError(
            f"{path}: cannot be read, it goes on long after the {wanted} bytes of its voxels; copy it again"
        )
    if not voxels.dtype.isnative:
        voxels = voxels.byteswap(inplace=True).view(voxels.dtype.newbyteorder())
    return _scaled(voxels, float(header["slope"]), float(header["inter"]))


def _start_of(header: np.void, path: str) -> int:
    """Where the voxels begin."""
    least = header.dtype.itemsize + 4
    start = float(header["start"]) or least
    if not least <= start <= LONGEST_START:
        raise DataError(f"{path}: cannot be read, its voxels would begin at byte {start:g}; export it again")
    return int(start)


def _fill(file: BinaryIO, voxels: np.ndarray) -> int:
    """-> bytes read."""
    view, got = memoryview(voxels.data).cast("B"), 0
    while got < len(view) and (count := file.readinto(view[got : got + (1 << 24)])):  # type: ignore[attr-defined]
        got += count
    return got


def _skip(file: BinaryIO, count: int) -> int:
    """-> bytes that there were, at most `count`."""
    got = 0
    while got < count and (chunk := file.read(min(1 << 20, count - got))):
        got += len(chunk)
    return got


def _scaled(voxels: np.ndarray, slope: float, inter: float) -> tuple[np.ndarray, float]:
    """A slope of 0, or one that is no number, scales nothing, as the standard has it."""
    inter = inter if math.isfinite(inter) else 0.0
    if voxels.ndim == 4 or not math.isfinite(slope) or slope == 0 or (slope == 1 and inter == 0):
        return voxels, 0.0
    scaled = np.empty(voxels.shape, np.float64 if voxels.dtype.itemsize == 8 else np.float32)
    for number, one in enumerate(voxels):
        scaled[number] = one.astype(np.float64) * slope + inter
    return scaled, abs(slope) / 2 if voxels.dtype.kind != "f" else 0.0


# ---------------------------------------------------------------- where voxels lie


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
                f"{path}: cannot be read, {fault}; " + (remedy if straight is not None else "export it again")
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


# ---------------------------------------------------------------- labels


def write_nifti(path: Path, labels: np.ndarray, header: bytes) -> None:
    """Labels (Z, Y, X), uint8 or uint16, on the grid of the file that `header` is of.

    Its qform and its sform stay, with their codes.
    """
    raw = bytearray(header)
    (size,) = struct.unpack("<i", header[:4])
    order: Literal["<", ">"] = "<" if size in HEADERS else ">"
    changed = np.frombuffer(raw, HEADERS[len(header)].newbyteorder(order))[0:1]
    start = len(header) + 4
    changed["dim"] = [3, *labels.shape[::-1], 1, 1, 1, 1]
    changed["kind"], changed["bits"] = {1: (2, 8), 2: (512, 16)}[labels.dtype.itemsize]
    changed["pixdim"][0, 4:] = 1
    changed["start"], changed["slope"], changed["inter"] = start, 1, 0
    changed["high"], changed["low"] = 0, 0
    changed["intent"], changed["intent_name"] = 0, b""
    content = labels.astype(labels.dtype.newbyteorder(order), copy=False)
    with open(path, "wb") as plain:
        file = gzip.GzipFile("", "wb", 6, plain, mtime=0) if path.name.lower().endswith(".gz") else plain
        file.write(bytes(raw) + bytes(start - len(raw)))
        for one in content:
            file.write(one.tobytes())
        if file is not plain:
            file.close()
