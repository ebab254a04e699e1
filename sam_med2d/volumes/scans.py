"""Scans and label volumes in and out: NIfTI, NRRD, MHA, DICOM series, on the patient's axes."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from sam_med2d.errors import DataError, OutputError
from sam_med2d.limits import MOST_VOXELS, check_voxels
from sam_med2d.volumes.dicom import ORIENTATION_KEY, read_series, unreadable
from sam_med2d.volumes.dicom_bytes import is_dicom
from sam_med2d.volumes.nifti import frame_of, is_nifti, read_nifti, write_nifti
from sam_med2d.volumes.text_headers import check_text_header

VOLUMES = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")  # what label volumes are written as

SUFFIXES = (".nii.gz", ".seg.nrrd", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".npy", ".dcm", ".ima")

AXES = "xyz"  # numpy has them the other way round: (Z, Y, X)

TOLERANCE = 0.1  # of a voxel, that the corners of a scan and of its labels may be apart

HEADER, NOTES, ROUNDING = (f"sam_med2d_{name}" for name in ("header", "notes", "rounding"))  # in an image's metadata


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


def read_scan(
    file: str | Sequence[str],
    frame: int | None = None,
    *,
    straighten: bool = False,
    most_voxels: int = MOST_VOXELS,
) -> sitk.Image:
    """A file, or the files of a DICOM series -> a volume of one channel, as it was stored. Raises DataError.

    frame: of a 4D file. straighten: read a slightly sheared NIfTI on the nearest axes at right angles. most_voxels: of
    a file, above which it is refused undecoded. What a file contradicts itself in, `notes_of` the volume says.
    """
    if not isinstance(file, str):
        return read_series(file, most_voxels)
    if is_dicom(file):
        return read_series([file], most_voxels)
    with _reading(file):
        image = _read(file, frame, straighten=straighten, most_voxels=most_voxels)
        if image.GetNumberOfComponentsPerPixel() > 1:
            raise DataError(
                f"{file}: has {image.GetNumberOfComponentsPerPixel()} channels a voxel (colour or vectors); give "
                "scans of one, or export its pictures for the masks or the labelmaps subcommand"
            )
        return _three_dimensions(image, file, frame)


def notes_of(image: sitk.Image) -> list[str]:
    """What was assumed of a volume that was read, or what its header contradicts itself in; a line each."""
    return _meta(image, NOTES).splitlines()


def rounding_of(image: sitk.Image) -> float:
    """The most that storing a volume may have changed its values by: 0 where they are stored as they are."""
    return float(_meta(image, ROUNDING) or 0)


@contextmanager
def _reading(path: str) -> Iterator[None]:
    """The one boundary of the readers of files: whatever a library raises over a broken file becomes a DataError."""
    try:
        yield
    except DataError:
        raise
    except RuntimeError as error:
        raise unreadable(path, error) from error
    except (
        Exception
    ) as error:  # numpy, ITK and their bindings let through whatever a broken file makes them stumble over
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{path}: cannot be read ({reason}); export it again") from error


def _read(
    path: str,
    frame: int | None = None,
    *,
    straighten: bool = False,
    most_voxels: int = MOST_VOXELS,
) -> sitk.Image:
    if not os.access(path, os.R_OK) or os.path.isdir(path):
        raise DataError(f"{path}: cannot be read; check the file and its permissions")
    if path.lower().endswith(".npy"):
        return _read_array(path, most_voxels)
    if is_nifti(path):
        volume = read_nifti(path, frame, straighten=straighten, most_voxels=most_voxels)
        volume.image.SetMetaData(HEADER, volume.header.hex())
        volume.image.SetMetaData(NOTES, "\n".join(volume.notes))
        volume.image.SetMetaData(ROUNDING, repr(volume.rounding))
        return volume.image
    check_text_header(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(path)
    reader.ReadImageInformation()
    channels = reader.GetNumberOfComponents()
    check_voxels(path, (*reader.GetSize(), *([channels] if channels > 1 else [])), most_voxels)
    image = reader.Execute()
    if "complex" in image.GetPixelIDTypeAsString():
        raise DataError(f"{path}: holds complex numbers; save their magnitude")
    return image


def _read_array(path: str, most_voxels: int) -> sitk.Image:
    """A numpy file of (Z, Y, X), which says nothing of place and spacing. Raises DataError."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)  # mapped: its shape is known before it is read
    except (OSError, EOFError, ValueError, SyntaxError) as error:
        raise DataError(f"{path}: cannot be read ({' '.join(str(error).split())}); it must be a plain array") from error
    if not isinstance(array, np.ndarray) or array.ndim != 3 or array.dtype.kind not in "biuf" or not array.size:
        what = f"{array.dtype} of shape {array.shape}" if isinstance(array, np.ndarray) else "several arrays"
        raise DataError(f"{path}: holds {what}; it must be numbers of (slices, rows, columns)")
    check_voxels(path, array.shape[::-1], most_voxels)
    kind = {"b": np.uint8, "f": np.float32 if array.dtype.itemsize < 8 else np.float64}.get(
        array.dtype.kind, array.dtype.newbyteorder("=")
    )
    return sitk.GetImageFromArray(array.astype(kind))


def _three_dimensions(image: sitk.Image, path: str, frame: int | None) -> sitk.Image:
    size = image.GetSize()
    if len(size) == 2:
        return sitk.JoinSeries([image])
    if len(size) == 4:
        return sitk.Extract(image, [*size[:3], 0], [0, 0, 0, frame_of(size[3], frame, path, size_of(image))])
    if len(size) != 3:
        raise DataError(f"{path}: has {len(size)} dimensions; save it in three")
    return image


def read_label_volume(
    path: str, frame: int | None = None, *, straighten: bool = False, most_voxels: int = MOST_VOXELS
) -> tuple[list[sitk.Image], list[tuple[str, int, int]]]:
    """-> its layers, and the names that 3D Slicer keeps in a .seg.nrrd: (class, layer, value). Raises DataError.

    frame: of a 4D file; labels of three dimensions belong to every frame of their scan. The rest is as of `read_scan`.
    """
    with _reading(path):
        image = _read(path, frame, straighten=straighten, most_voxels=most_voxels)
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
        return [_three_dimensions(layer, path, frame) for layer in layers], sorted(named, key=lambda one: one[1:])


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


def as_stored(labels: np.ndarray, turned: sitk.Image, stored: sitk.Image) -> sitk.Image:
    """Labels (Z, Y, X), made on the grid of `turned` (canonical) -> on that of `stored`."""
    image = sitk.GetImageFromArray(labels)
    image.CopyInformation(turned)
    orientation = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(stored.GetDirection())
    image = sitk.DICOMOrient(image, orientation)
    image.CopyInformation(stored)
    return image


def write_labels(
    path: Path, labels: np.ndarray, turned: sitk.Image | None, stored: sitk.Image | None, compress: bool = True
) -> None:
    """Write labels (Z, Y, X), made on the grid of `turned` (canonical), on that of `stored`, in one step.

    A NIfTI of a scan that was one gets its header, so that both of its forms of geometry stay. None: labels that no
    scan belongs to. compress: of NRRD and MetaImage. Raises OutputError where the file cannot be written.
    """
    header = b""
    if turned is None or stored is None:
        image = sitk.GetImageFromArray(labels)
    else:
        image = as_stored(labels, turned, stored)
        header = bytes.fromhex(_meta(stored, HEADER)) if is_nifti(path.name) else b""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp_{path.name}")  # ITK goes by the ending, so that must stay
    try:
        if header:
            write_nifti(temporary, sitk.GetArrayViewFromImage(image), header)
        else:
            sitk.WriteImage(image, str(temporary), useCompression=compress)
            written = sitk.ReadImage(str(temporary))  # ITK's NIfTI says nothing where a disk is full
            if not np.array_equal(sitk.GetArrayViewFromImage(written), sitk.GetArrayViewFromImage(image)):
                raise OSError("not all of it was written")
        temporary.replace(path)
    except (RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise OutputError(f"{path}: cannot be written ({reason}); make room there, or choose another place") from error
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
