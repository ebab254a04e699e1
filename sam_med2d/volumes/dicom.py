"""DICOM read: a series of slices as a volume, and what was drawn on it (DICOM-SEG, RTSTRUCT)."""

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.errors import InvalidDicomError

from sam_med2d.errors import DataError

LABELS = ("SEG", "RTSTRUCT")  # modalities of files that hold labels

EVEN = 0.1  # of the distance of slices that they may be off, before slices count as missing

GEOMETRY = [
    "SeriesInstanceUID",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "NumberOfFrames",
    "RescaleSlope",
]

CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")  # contours that have an inside


def read_header(path: str, tags: Sequence[str] | None = None) -> pydicom.Dataset | None:
    """Without the pixels. None if the file is not DICOM. Raises DataError if it is broken."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of values that break a rule of DICOM's and can be read all the same
            return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(tags) if tags else None)
    except InvalidDicomError:
        return None
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error}); check the file and its permissions"
        ) from error
    except Exception as error:  # pydicom lets through whatever a broken file makes it stumble over
        raise DataError(f"{path}: broken DICOM ({error}); export it again") from error


# ---------------------------------------------------------------- a series as a volume


def read_series(files: Sequence[str]) -> sitk.Image:
    """The slices of one series, in any order -> a volume as it was stored.

    Raises DataError: colour, several frames a file, more than one series, slices missing, doubled or of several shapes,
    a codec that is not there.
    """
    headers = [(path, header) for path in files if (header := read_header(path, GEOMETRY)) is not None]
    if not headers:
        raise DataError(f"{Path(files[0]).parent}: holds no DICOM file; check the path")
    for path, header in headers:
        _check_slice(path, header)
    series = {str(header.SeriesInstanceUID) for _, header in headers if "SeriesInstanceUID" in header}
    if len(series) > 1:
        raise DataError(
            f"{Path(headers[0][0]).parent}: holds {len(series)} series; keep the files of one in a folder of "
            "their own, or use --dicom, which tells them apart"
        )
    if len(headers) > 1:
        headers = _in_order(headers)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([path for path, _ in headers])
    slopes = {float(header.get("RescaleSlope") or 1) for _, header in headers}
    if len(slopes) > 1 or not slopes.pop().is_integer():
        reader.SetOutputPixelType(sitk.sitkFloat32)  # ITK would read all in the type that suits the first
    try:
        return reader.Execute()
    except RuntimeError as error:
        raise unreadable(headers[0][0], error) from error


def _check_slice(path: str, header: pydicom.Dataset) -> None:
    if int(header.get("SamplesPerPixel") or 1) > 1:
        raise DataError(
            f"{path}: is a colour image; export its frames as PNG, for the masks or the labelmaps subcommand"
        )
    if int(header.get("NumberOfFrames") or 1) > 1:
        raise DataError(
            f"{path}: has {header.NumberOfFrames} frames in one file; convert it to NIfTI (dcm2niix does) or "
            "to single slices"
        )


def _in_order(headers: list[tuple[str, pydicom.Dataset]]) -> list[tuple[str, pydicom.Dataset]]:
    """Slices from one end to the other. Raises DataError where they make no even stack."""
    where = Path(headers[0][0]).parent
    if any(not header.get(tag) for _, header in headers for tag in ("ImagePositionPatient", "ImageOrientationPatient")):
        raise DataError(f"{where}: slices do not say where they are (ImagePositionPatient); export the series again")
    first = headers[0][1]
    for path, header in headers:
        same_place = np.allclose(header.ImageOrientationPatient, first.ImageOrientationPatient, atol=1e-3)
        if not same_place or (header.Rows, header.Columns) != (first.Rows, first.Columns):
            raise DataError(
                f"{path}: is turned or of another size than {headers[0][0]}, of the same series; keep the "
                "slices of one stack"
            )
    row, column = np.array(first.ImageOrientationPatient, float).reshape(2, 3)
    normal = np.cross(row, column)
    placed = sorted(
        (float(normal @ np.array(header.ImagePositionPatient, float)), path, header) for path, header in headers
    )
    steps = np.diff([place for place, _, _ in placed])
    if steps.min() < 1e-3:
        twice = placed[int(steps.argmin())][1]
        raise DataError(
            f"{twice}: another slice of its series is in the same place (several times or echoes?); keep one "
            "volume in a folder"
        )
    if steps.max() - steps.min() > EVEN * np.median(steps):
        raise DataError(
            f"{where}: slices are missing or uneven: {steps.min():.3g} to {steps.max():.3g} mm apart; complete "
            "the series, or resample it"
        )
    return [(path, header) for _, path, header in placed]


def unreadable(path: str, error: RuntimeError) -> DataError:
    """What to say where SimpleITK could not read a file."""
    try:
        header = read_header(path) if path.lower().endswith((".dcm", ".ima")) or "." not in Path(path).name else None
    except DataError:
        header = None
    if (
        header is not None
        and "TransferSyntaxUID" in header.file_meta
        and header.file_meta.TransferSyntaxUID.is_compressed
    ):
        syntax = header.file_meta.TransferSyntaxUID
        return DataError(
            f"{path}: is compressed as {syntax.name}, which is not understood here or is damaged; decompress "
            "it first, with 'gdcmconv --raw' or 'dcmdjpeg'"
        )
    reason = str(error).strip().splitlines()[-1].partition("ERROR: ")[2] or str(error).strip().splitlines()[-1]
    if "orthonormal" in str(error):
        reason = "its axes are not at right angles; resample it on a straight grid"
    return DataError(f"{path}: cannot be read ({reason.strip()})")


# ---------------------------------------------------------------- labels


def read_segmentation(path: str) -> Iterator[tuple[str, Iterator[sitk.Image]]]:
    """The segments of a DICOM-SEG -> (name, its frames, each a volume one voxel deep where it lies in the patient).

    Frame by frame: a segment may leave out any slices, so that its frames need not make a volume. Raises DataError.
    """
    import highdicom  # takes a second to import

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            file = highdicom.seg.segread(path)
        labels = {number: str(file.get_segment_description(number).segment_label) for number in file.segment_numbers}
        shared = file.SharedFunctionalGroupsSequence[0]
        frames = list(file.PerFrameFunctionalGroupsSequence)[: int(file.get("NumberOfFrames") or 1)]
        for number, label in labels.items():
            yield label, _frames(file, number, shared, frames)
    except (ValueError, AttributeError, RuntimeError, TypeError, KeyError, IndexError, OSError) as error:
        raise DataError(
            f"{path}: cannot be read as a DICOM-SEG ({' '.join(str(error).split())[:200]}); export it again"
        ) from error


def _frames(file, number: int, shared: pydicom.Dataset, frames: list[pydicom.Dataset]) -> Iterator[sitk.Image]:
    """Those of one segment, not empty."""
    for i, frame in enumerate(frames):
        identified = frame.get("SegmentIdentificationSequence") or shared.get("SegmentIdentificationSequence")
        if identified and identified[0].ReferencedSegmentNumber != number:
            continue
        stored = file.get_stored_frame(i + 1)
        if not identified:  # a label map: values are segments
            mask = stored == number
        elif file.SegmentationType == "FRACTIONAL":
            mask = stored >= file.MaximumFractionalValue / 2
        else:
            mask = stored > 0
        if not mask.any():
            continue
        place, turn, measure = (
            next(group for where in (frame, shared) if (group := where.get(name)))[0]
            for name in ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
        )
        row, column = np.array(turn.ImageOrientationPatient, float).reshape(2, 3)
        row_mm, column_mm = map(float, measure.PixelSpacing)
        image = sitk.GetImageFromArray(mask[None].astype(np.uint8))
        image.SetSpacing((column_mm, row_mm, float(measure.get("SliceThickness") or 1)))
        image.SetDirection(np.column_stack([row, column, np.cross(row, column)]).ravel().tolist())
        image.SetOrigin([float(mm) for mm in place.ImagePositionPatient])
        yield image


def read_structures(path: str, scan: sitk.Image) -> Iterator[tuple[str, np.ndarray]]:
    """The closed contours of an RTSTRUCT -> (name, (Z, Y, X) bool on the scan's grid), as it was stored.

    A pixel is inside where its centre is, by the even-odd rule: a contour inside another one is a hole.
    Raises DataError.
    """
    data = read_header(path)
    if data is None:
        raise DataError(f"{path}: is no DICOM file; export the structures again")
    names = {int(roi.ROINumber): str(roi.ROIName) for roi in data.get("StructureSetROISequence") or ()}
    inverse = np.linalg.inv(np.array(scan.GetDirection()).reshape(3, 3) * np.array(scan.GetSpacing()))
    depth, height, width = scan.GetSize()[::-1]
    for roi in data.get("ROIContourSequence") or ():
        mask = np.zeros((depth, height, width), bool)
        name = names.get(int(roi.ReferencedROINumber), f"roi_{roi.ReferencedROINumber}")
        closed = [contour for contour in roi.get("ContourSequence") or () if contour.ContourGeometricType in CLOSED]
        for contour in closed:
            points = np.array(contour.ContourData, float).reshape(-1, 3)
            indices = (points - np.array(scan.GetOrigin())) @ inverse.T
            level = indices[:, 2].mean()
            if np.ptp(indices[:, 2]) > 0.5:
                raise DataError(
                    f"{path}: '{name}' was drawn across the slices of its scan; export it as a label volume instead"
                )
            if -0.5 <= level < depth - 0.5:
                mask[round(level)] ^= inside(indices[:, :2], height, width)
        if closed:
            yield name, mask


def inside(polygon: np.ndarray, height: int, width: int) -> np.ndarray:
    """The pixels whose centres lie inside a polygon, (N, 2) xy with pixel centres at whole numbers -> (H, W) bool.

    Each edge flips all pixels to its right, row by row; an odd number of flips is inside.
    """
    flips = np.zeros((height, width + 1), np.uint8)
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0)):
        if y0 > y1:
            x0, y0, x1, y1 = x1, y1, x0, y0
        rows = np.arange(max(0, int(np.ceil(y0))), min(height, int(np.ceil(y1))))  # half-open: corners count once
        if len(rows):
            crossing = x0 + (rows - y0) * (x1 - x0) / (y1 - y0)
            np.add.at(flips, (rows, np.clip(np.ceil(crossing), 0, width).astype(int)), 1)
    return np.add.accumulate(flips[:, :width], axis=1, dtype=np.int64) % 2 == 1
