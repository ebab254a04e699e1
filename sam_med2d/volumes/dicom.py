"""DICOM read: headers, and a series of slices as a volume. Labels that were drawn on it: `dicom_labels`."""

import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataelem import RawDataElement
from pydicom.encaps import generate_fragments

from sam_med2d.errors import DataError, UserError
from sam_med2d.limits import MOST_VOXELS, check_voxels
from sam_med2d.volumes.dicom_bytes import has_preamble, is_dicom
from sam_med2d.volumes.stack import MARKS, SliceHeader, ordered

LABELS = ("SEG", "RTSTRUCT")  # modalities of files that hold labels

DIRECTORY = "1.2.840.10008.1.3.10"  # the storage class of a DICOMDIR

PLACE = ("ImagePositionPatient", "ImageOrientationPatient")

SHORT = 4096  # bytes of elements that are fetched with the header

UNDEFINED = 0xFFFFFFFF  # length of an element that ends with a mark

ORIENTATION_KEY = "0020|0037"  # as ITK names ImageOrientationPatient


@contextmanager
def naming(path: str, kind: str = "DICOM") -> Iterator[None]:
    """Around everything that reads a file: what a library stumbles over becomes a DataError that names the file.

    pydicom reads elements when they are asked for, and lets through whatever a broken one makes it stumble over: so
    values are made plain inside.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of values that break a rule of DICOM's and can be read all the same
            warnings.filterwarnings("error", "(?i)end of file|no tag to read")  # which is no such rule
            yield
    except (UserError, NameError):  # the latter is a fault of this program
        raise
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error}); check the file and its permissions"
        ) from error
    except Exception as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{path}: broken {kind} ({said}); export it again") from error


def read_header(path: str, tags: Sequence[str]) -> pydicom.Dataset | None:
    """These elements alone, all of them read. None if the file is not DICOM. Raises DataError if it is broken."""
    with naming(path):
        if not is_dicom(path):
            with open(path, "rb"):  # says so where it cannot be read
                return None
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(tags), force=not has_preamble(path))
        _check_whole(path, header)
        for element in (*header.file_meta, *header.iterall()):
            _ = element.value
        return header


def read_whole(path: str, defer_size: int | None = None) -> pydicom.Dataset:
    """All elements, which are read when they are asked for: inside `naming`. Raises DataError: cut off, or no DICOM.

    defer_size: bytes, from which on an element is not even fetched before it is asked for.
    """
    if not is_dicom(path):
        with open(path, "rb"):  # says so where it cannot be read
            raise DataError(f"{path}: is no DICOM file; export it again")
    data = pydicom.dcmread(path, force=not has_preamble(path), defer_size=defer_size)
    _check_whole(path, data)
    return data


def _check_whole(path: str, data: pydicom.Dataset) -> None:
    """pydicom takes what there is of an element whose end is missing. Raises DataError."""
    there = os.path.getsize(path)
    for tag in [*data.keys()]:
        raw = data.get_item(tag, keep_deferred=True)
        if not isinstance(raw, RawDataElement) or raw.length == UNDEFINED:
            continue
        if len(raw.value) < raw.length if raw.value is not None else raw.value_tell + raw.length > there:
            raise DataError(f"{path}: cannot be read, it is cut off in the element {tag}; copy it again")


def is_directory(header: pydicom.Dataset) -> bool:
    """Whether it is a DICOMDIR, which lists files and holds none."""
    return header.file_meta.get("MediaStorageSOPClassUID") == DIRECTORY


# ---------------------------------------------------------------- a series as a volume


def read_series(files: Sequence[str], most_voxels: int = MOST_VOXELS) -> sitk.Image:
    """The slices of one series, in any order -> a volume, with the values that each slice's header makes of it.

    most_voxels: of all slices, above which nothing is decoded.
    Files that are no slices (a DICOMDIR, labels, reports) are passed over. Raises DataError: too large, colour, several
    frames a file, more than one series or acquisition, slices missing, doubled, of several shapes or not straight
    behind one another (a tilted gantry), a codec that is not there.
    """
    headers = [header for path in files if (header := _slice_header(path, alone=len(files) == 1)) is not None]
    where = Path(files[0]).parent
    if not headers:
        if any(Path(path).name.upper() == "DICOMDIR" for path in files):
            raise DataError(
                f"{where / 'DICOMDIR'}: lists files and holds no picture; give the folder with the files of one series"
            )
        raise DataError(f"{where}: holds no DICOM file with a picture; check the path")
    series = {header.series for header in headers if header.series}
    if len(series) > 1:
        raise DataError(
            f"{where}: holds {len(series)} series; keep the files of one in a folder of "
            "their own, or use --dicom, which tells them apart"
        )
    rows, columns = max((header.shape for header in headers), key=math.prod)
    check_voxels(files[0] if len(files) == 1 else str(where), (columns, rows, len(headers)), most_voxels)
    if len(headers) == 1:
        return _single(_read_slice(headers[0]))
    stack = ordered(headers, str(where))
    image = sitk.GetImageFromArray(_values(stack.slices))
    image.SetSpacing(stack.spacing)
    image.SetOrigin(stack.origin)
    image.SetDirection(stack.direction)
    return image


def _single(image: sitk.Image) -> sitk.Image:
    """A volume of one slice, which keeps the element that says how it lies, where the file has it."""
    if image.GetPixelID() != sitk.sitkFloat64:
        return image
    cast = sitk.Cast(image, sitk.sitkFloat32)
    if image.HasMetaDataKey(ORIENTATION_KEY):
        cast.SetMetaData(ORIENTATION_KEY, image.GetMetaData(ORIENTATION_KEY))
    return cast


def _values(slices: Sequence[SliceHeader]) -> np.ndarray:
    """(Z, Y, X), each slice rescaled by its own header, in one type that holds all of them."""
    volume = np.empty(0)
    for number, header in enumerate(slices):
        values = sitk.GetArrayViewFromImage(image := _read_slice(header))[0]
        kind = np.dtype(np.float32) if image.GetPixelID() == sitk.sitkFloat64 else values.dtype
        if not number:
            volume = np.empty((len(slices), *values.shape), kind)
        elif np.result_type(volume, kind) != volume.dtype:
            volume = volume.astype(np.result_type(volume, kind))
        volume[number] = values
    return volume


def _read_slice(header: SliceHeader) -> sitk.Image:
    """One file, of one slice, rescaled by its header. Raises DataError."""
    try:
        image = sitk.ReadImage(header.path, imageIO="GDCMImageIO")
    except RuntimeError as error:
        raise unreadable(header.path, error) from error
    if image.GetNumberOfComponentsPerPixel() > 1:
        raise _colour(header.path)
    if image.GetSize()[:2] != header.shape[::-1]:
        raise DataError(
            f"{header.path}: holds {' x '.join(map(str, image.GetSize()))} pixels, and its header says "
            f"{header.shape[1]} x {header.shape[0]}; export it again"
        )
    return image


def _slice_header(path: str, alone: bool) -> SliceHeader | None:
    """What places and reads a slice, as plain values; None for a file that is none. Raises DataError.

    alone: the file was named itself, so that it is an error where it holds no slice.
    """
    with naming(path):
        if not is_dicom(path):
            with open(path, "rb"):  # says so where it cannot be read
                return None
        header = read_whole(path, defer_size=SHORT)
        if is_directory(header):
            if alone:
                raise DataError(f"{path}: is a DICOMDIR, which lists files; give the folder with those of one series")
            return None
        if "Rows" not in header or str(header.get("Modality", "")) in LABELS:
            if alone:
                raise DataError(f"{path}: holds no picture ({header.get('Modality') or 'of no modality'}); give a scan")
            return None
        _check_slice(path, header)
        shape = int(header.Rows), int(header.Columns)
        _check_length(path, header, shape)
        place, turn, spacing = (
            _numbers(path, header, name, count) for name, count in zip((*PLACE, "PixelSpacing"), (3, 6, 2))
        )
        return SliceHeader(
            path,
            str(header.get("SeriesInstanceUID", "")),
            str(header.get("SOPInstanceUID", "")),
            str(header.get("PhotometricInterpretation", "")),
            shape,
            place,
            _axes(path, turn) if turn is not None else None,
            _positive(path, spacing) if spacing is not None else None,
            float(header.SliceThickness) if header.get("SliceThickness") else None,
            {name: said for name in MARKS if (said := str(header.get(name, "")))},
        )


def _check_slice(path: str, header: pydicom.Dataset) -> None:
    if int(header.get("SamplesPerPixel") or 1) > 1:
        raise _colour(path)
    if int(header.get("NumberOfFrames") or 1) > 1:
        raise DataError(
            f"{path}: has {header.NumberOfFrames} frames in one file; convert it to NIfTI (dcm2niix does) or "
            "to single slices"
        )
    if (slope := header.get("RescaleSlope")) is not None and not (float(slope) and np.isfinite(float(slope))):
        raise DataError(f"{path}: its RescaleSlope is {slope}, so that its values mean nothing; export it again")


def _check_length(path: str, header: pydicom.Dataset, shape: tuple[int, int]) -> None:
    """Before ITK makes room for what the file promises: inside `naming`. Raises DataError."""
    syntax = header.file_meta.get("TransferSyntaxUID")
    if syntax is not None and not syntax.is_private and syntax.is_deflated:
        return
    if syntax is not None and not syntax.is_private and syntax.is_encapsulated:
        for _ in generate_fragments(header.PixelData):  # where they end before they should, it raises
            pass
        return
    wanted, there = shape[0] * shape[1] * int(header.get("BitsAllocated") or 8) // 8, os.path.getsize(path)
    if there < wanted:
        raise DataError(f"{path}: cannot be read, it is cut off: {there} bytes instead of {wanted}; copy it again")


def _colour(path: str) -> DataError:
    return DataError(f"{path}: is a colour image; export its frames as PNG, for the masks or the labelmaps subcommand")


def _numbers(path: str, header: pydicom.Dataset, name: str, count: int) -> np.ndarray | None:
    """None where the header says nothing. Raises DataError where it says something else than so many numbers."""
    if header.get(name) in (None, ""):
        return None
    values = np.atleast_1d(np.array(header.get(name), float))
    if values.shape != (count,) or not np.isfinite(values).all():
        raise DataError(f"{path}: its {name} ({header.get(name)}) must be {count} numbers; export it again")
    return values


def _axes(path: str, turn: np.ndarray) -> np.ndarray:
    """(2, 3): along the rows and along the columns, of length 1 and at right angles."""
    row, column = turn.reshape(2, 3)
    lengths = np.linalg.norm([row, column], axis=1)
    if np.abs(lengths - 1).max() > 1e-2 or abs(row @ column) > 1e-2:
        raise DataError(
            f"{path}: its ImageOrientationPatient ({', '.join(f'{value:g}' for value in turn)}) is not two directions "
            "at right angles; export it again"
        )
    row = row / lengths[0]
    column = column - (column @ row) * row
    return np.array([row, column / np.linalg.norm(column)])


def _positive(path: str, spacing: np.ndarray) -> tuple[float, float]:
    if not (spacing > 0).all():
        raise DataError(f"{path}: its PixelSpacing ({spacing[0]:g}, {spacing[1]:g}) must be above 0; export it again")
    return float(spacing[0]), float(spacing[1])


def unreadable(path: str, error: RuntimeError) -> DataError:
    """What to say where SimpleITK could not read a file."""
    try:
        header = read_header(path, ["Modality"]) if is_dicom(path) else None
    except DataError:
        header = None
    syntax = header.file_meta.get("TransferSyntaxUID") if header is not None else None
    if syntax is not None and not syntax.is_private and syntax.is_compressed:
        return DataError(
            f"{path}: is compressed as {syntax.name}, which is not understood here or is damaged; decompress "
            "it first, with 'gdcmconv --raw' or 'dcmdjpeg'"
        )
    reason = str(error).strip().splitlines()[-1].partition("ERROR: ")[2] or str(error).strip().splitlines()[-1]
    if "orthonormal" in str(error):
        reason = "its axes are not at right angles; resample it on a straight grid"
    return DataError(f"{path}: cannot be read ({reason.strip()})")
