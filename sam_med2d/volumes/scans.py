"""Scans and label volumes in and out: NIfTI, NRRD, MHA, DICOM series, on the patient's axes."""

import gzip
import math
import os
import re
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from sam_med2d.errors import DataError
from sam_med2d.volumes.dicom import ORIENTATION_KEY, read_series, unreadable
from sam_med2d.volumes.dicom_bytes import is_dicom

VOLUMES = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")  # what label volumes are written as

SUFFIXES = (".nii.gz", ".seg.nrrd", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".npy", ".dcm", ".ima")

AXES = "xyz"  # numpy has them the other way round: (Z, Y, X)

TOLERANCE = 0.1  # of a voxel, that the corners of a scan and of its labels may be apart


def files_of(source: Path) -> str | list[str]:
    """What `read_scan` reads: a volume, or the files of a folder with one DICOM series. Raises DataError."""
    if source.is_dir():
        files = sorted(str(path) for path in source.iterdir() if path.is_file())
        if not files:
            raise DataError(f"{source}: holds no files; give a volume, or the folder of one DICOM series")
        return files
    if not source.exists():
        raise DataError(f"{source}: does not exist; give a volume, or the folder of one DICOM series")
    return str(source)


def stem_of(path: Path) -> str:
    """ct.nii.gz -> ct"""
    name = path.resolve().name
    return next(
        (name.removesuffix(ending) for ending in (*VOLUMES, ".nhdr", ".dcm", ".ima") if name.endswith(ending)), name
    )


def read_scan(file: str | Sequence[str], frame: int | None = None) -> sitk.Image:
    """A file, or the files of a DICOM series -> a volume of one channel, as it was stored. Raises DataError."""
    if not isinstance(file, str):
        return read_series(file)
    if is_dicom(file):
        return read_series([file])
    image = _read(file)
    if image.GetNumberOfComponentsPerPixel() > 1:
        raise DataError(
            f"{file}: has {image.GetNumberOfComponentsPerPixel()} channels a voxel (colour or vectors); give "
            "scans of one, or export its pictures for the masks or the labelmaps subcommand"
        )
    return _three_dimensions(image, file, frame)


def _read(path: str) -> sitk.Image:
    if not os.access(path, os.R_OK):
        raise DataError(f"{path}: cannot be read; check the file and its permissions")
    if path.lower().endswith(".npy"):
        return _read_array(path)
    holes = _check_nifti(path) if path.lower().endswith((".nii", ".nii.gz")) else None
    try:
        image = sitk.ReadImage(path)
    except RuntimeError as error:
        raise unreadable(path, error) from error
    if "complex" in image.GetPixelIDTypeAsString():
        raise DataError(f"{path}: holds complex numbers; save their magnitude")
    if holes is not None:
        array = sitk.GetArrayFromImage(image)
        array.reshape(-1)[holes] = np.nan
        filled, image = image, sitk.GetImageFromArray(array)
        image.CopyInformation(filled)
    return image


def _read_array(path: str) -> sitk.Image:
    """A numpy file of (Z, Y, X), which says nothing of place and spacing. Raises DataError."""
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({' '.join(str(error).split())}); it must be a plain array") from error
    if array.ndim != 3 or array.dtype.kind not in "biuf":
        raise DataError(
            f"{path}: holds {array.dtype} of shape {array.shape}; it must be numbers of (slices, rows, columns)"
        )
    kind = {"b": np.uint8, "f": np.float32 if array.dtype.itemsize < 8 else np.float64}.get(
        array.dtype.kind, array.dtype
    )
    return sitk.GetImageFromArray(array.astype(kind))


def _check_nifti(path: str) -> np.ndarray | None:
    """What SimpleITK does not say of a NIfTI file: it reads voxels that are cut off or are no numbers as 0.

    -> which voxels are no numbers, (N,) bool, or None. Raises DataError where voxels are missing.
    """
    try:
        with gzip.open(path) if path.lower().endswith(".gz") else open(path, "rb") as file:
            header = file.read(540)
            order = "<" if header[:4] in (b"\x5c\x01\0\0", b"\x1c\x02\0\0") else ">"
            (size,) = struct.unpack_from(f"{order}i", header)
            dims, dims_at, kind_at, bits_at, offset, offset_at = {  # NIfTI 1 and 2
                348: ("8h", 40, 70, 72, "f", 108),
                540: ("8q", 16, 12, 14, "q", 168),
            }[size]
            dim = struct.unpack_from(order + dims, header, dims_at)
            (kind,) = struct.unpack_from(f"{order}h", header, kind_at)
            (bits,) = struct.unpack_from(f"{order}h", header, bits_at)
            start = int(struct.unpack_from(order + offset, header, offset_at)[0])
            wanted = math.prod(dim[1 : 1 + max(0, dim[0])]) * bits // 8
            number = {16: f"{order}f4", 64: f"{order}f8"}.get(kind)
            file.seek(start)
            read, holes = 0, []
            while chunk := file.read(min(1 << 20, max(1, wanted - read))):  # to the end, where gzip checks its sum
                read += len(chunk)
                if number and read <= wanted and len(chunk) % (bits // 8) == 0:
                    holes.append(~np.isfinite(np.frombuffer(chunk, number)))
    except (EOFError, OSError, zlib.error, struct.error, KeyError) as error:
        raise DataError(f"{path}: cannot be read, it is cut off or no NIfTI ({error}); copy it again") from error
    if read < wanted:
        raise DataError(
            f"{path}: cannot be read, it is cut off: {read} bytes of voxels instead of {wanted}; copy it again"
        )
    return np.concatenate(holes) if any(part.any() for part in holes) else None


def _three_dimensions(image: sitk.Image, path: str, frame: int | None) -> sitk.Image:
    size = image.GetSize()
    if len(size) == 2:
        return sitk.JoinSeries([image])
    if len(size) == 4:
        if size[3] > 1 and frame is None:
            raise DataError(
                f"{path}: is 4D ({size_of(image)}: {size[3]} volumes); choose one with --frame 0 .. {size[3] - 1}"
            )
        if (frame or 0) >= size[3]:
            raise DataError(f"{path}: has {size[3]} volume(s), so --frame goes from 0 to {size[3] - 1}")
        return sitk.Extract(image, [*size[:3], 0], [0, 0, 0, frame or 0])
    if len(size) != 3:
        raise DataError(f"{path}: has {len(size)} dimensions; save it in three")
    return image


def read_label_volume(path: str) -> tuple[list[sitk.Image], list[tuple[str, int, int]]]:
    """-> its layers, and the names that 3D Slicer keeps in a .seg.nrrd: (class, layer, value). Raises DataError."""
    image = _read(path)
    count = image.GetNumberOfComponentsPerPixel()
    named = []
    for key in image.GetMetaDataKeys():
        if match := re.fullmatch(r"(Segment\d+)_Name", key):
            value = _meta(image, f"{match[1]}_LabelValue")
            named.append((image.GetMetaData(key), int(_meta(image, f"{match[1]}_Layer") or 0), int(value or 1)))
    if count > 1 and not named:
        raise DataError(
            f"{path}: has {count} channels a voxel and names no segments; save one label volume, or a file a class"
        )
    layers = [sitk.VectorIndexSelectionCast(image, i) for i in range(count)] if count > 1 else [image]
    return [_three_dimensions(layer, path, None) for layer in layers], sorted(named, key=lambda one: one[1:])


def _meta(image: sitk.Image, key: str) -> str:
    return image.GetMetaData(key) if image.HasMetaDataKey(key) else ""


def canonical(image: sitk.Image) -> sitk.Image:
    """Turned and flipped, without resampling, so that x goes to the patient's left, y to the back and z to the head."""
    return sitk.DICOMOrient(image, "LPS")


def as_viewed(stored: sitk.Image) -> tuple[sitk.Image, str]:
    """-> the volume turned to the patient, and the axis, x, y or z, that its slices are looked at along.

    That is z, unless the volume is one slice across another axis. One slice of DICOM, as `upright` shows it, keeps its
    own rows and columns.
    """
    if stored.GetSize()[2] == 1 and stored.HasMetaDataKey(ORIENTATION_KEY):
        across = int(np.abs(np.array(stored.GetDirection()).reshape(3, 3)[:, 2]).argmax())
        if across == 2:
            return stored, AXES[2]
        order = {0: (2, 0, 1), 1: (0, 2, 1)}[across]
        return sitk.PermuteAxes(stored, order)[:, :, ::-1], AXES[across]
    turned = canonical(stored)
    thin = [axis for axis, n in zip(AXES, turned.GetSize()) if n == 1]
    return turned, thin[0] if len(thin) == 1 else AXES[2]


def write_labels(path: Path, labels: np.ndarray, turned: sitk.Image | None, stored: sitk.Image | None) -> None:
    """Write labels (Z, Y, X), made on the grid of `turned` (canonical), on that of `stored`, in one step.

    None: labels that no scan belongs to. Raises DataError where the file cannot be written.
    """
    image = sitk.GetImageFromArray(labels)
    if stored is not None:
        image.CopyInformation(turned)
        image = sitk.DICOMOrient(
            image, sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(stored.GetDirection())
        )
        image.CopyInformation(stored)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp_{path.name}")  # ITK goes by the ending, so that must stay
    try:
        sitk.WriteImage(image, str(temporary), useCompression=True)
        temporary.replace(path)
    except RuntimeError as error:
        raise DataError(f"{path}: cannot be written ({str(error).strip().splitlines()[-1]})") from error
    finally:
        temporary.unlink(missing_ok=True)


def upright(slice: np.ndarray, axis: int) -> np.ndarray:
    """A slice of a canonical volume as it is looked at: coronal and sagittal ones with the head up."""
    return slice if axis == 0 else np.ascontiguousarray(slice[::-1])


def slices_along(volume: np.ndarray, axis: int) -> np.ndarray:
    """(Z, Y, X), canonical -> (N, H, W), its slices as they are looked at, a view."""
    return volume if axis == 0 else np.moveaxis(volume, axis, 0)[:, ::-1]


def volume_of_slices(slices: np.ndarray, axis: int) -> np.ndarray:
    """The inverse of `slices_along`."""
    return slices if axis == 0 else np.moveaxis(slices[:, ::-1], 0, axis)


def grids_differ(one: sitk.Image, other: sitk.Image) -> str:
    """What differs between two grids, or nothing."""
    if one.GetSize() != other.GetSize():
        return f"{size_of(one)} voxels against {size_of(other)}"
    apart = max(
        float(np.abs((index_in(other, one, corner) - corner) * other.GetSpacing()).max()) for corner in corners_of(one)
    )
    if apart <= TOLERANCE * min(other.GetSpacing()):
        return ""
    if not np.allclose(one.GetSpacing(), other.GetSpacing(), rtol=1e-3):
        return f"voxels of {_mm(one.GetSpacing())} against {_mm(other.GetSpacing())} mm"
    if not np.allclose(one.GetDirection(), other.GetDirection(), atol=1e-3):
        return "turned against each other"
    return f"{apart:.3g} mm apart"


def corners_of(image: sitk.Image) -> list[tuple[int, ...]]:
    """Indices of the eight voxels at the corners, the lowest first and the highest last."""
    return [tuple((n - 1) * bit for n, bit in zip(image.GetSize(), bits)) for bits in np.ndindex(2, 2, 2)]


def index_in(image: sitk.Image, other: sitk.Image, index: tuple[int, ...]) -> np.ndarray:
    """Where, in voxels of `image`, the voxel of `other` at an index lies."""
    return np.array(image.TransformPhysicalPointToContinuousIndex(other.TransformIndexToPhysicalPoint(index)))


def turned(points: np.ndarray, here: sitk.Image, there: sitk.Image) -> np.ndarray:
    """(P, 3) voxels xyz of one volume -> of the other, which differs in how its axes run."""
    places = [here.TransformContinuousIndexToPhysicalPoint(point.tolist()) for point in points]
    return np.array([there.TransformPhysicalPointToContinuousIndex(place) for place in places]).reshape(-1, 3)


def size_of(image: sitk.Image) -> str:
    return " x ".join(map(str, image.GetSize()))


def _mm(spacing: Sequence[float]) -> str:
    return " x ".join(f"{mm:.3g}" for mm in spacing)
