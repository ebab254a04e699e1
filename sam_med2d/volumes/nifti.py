"""NIfTI 1 and 2: headers, the voxels as they are stored, and labels that lie on them. `nifti_grid` says where they lie.

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
from sam_med2d.limits import MOST_VOXELS, check_voxels
from sam_med2d.volumes.nifti_grid import grid_of

ENDINGS = (".nii", ".nii.gz")
LONGEST_START = 1 << 26  # bytes of extensions before the voxels

NUMBERS = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
COLOURS = {128: 3, 2304: 4}  # channels, each of 8 bits
COMPLEX = (32, 1792, 2048)

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
