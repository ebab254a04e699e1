"""What was drawn on a DICOM series: segments of a DICOM-SEG, and contours of an RTSTRUCT."""

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pydicom
import SimpleITK as sitk

from sam_med2d.errors import DataError
from sam_med2d.volumes.contours import filled
from sam_med2d.volumes.dicom import naming, read_whole

CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")  # contours that have an inside

FAR = 1e5  # mm, beyond which nothing of a patient lies

ONE_PLANE = 0.1  # mm, that contours of one plane may be apart, and at most a twentieth of the distance of slices

# ---------------------------------------------------------------- DICOM-SEG


def read_segmentation(path: str) -> Iterator[tuple[str, Iterator[sitk.Image]]]:
    """The segments of a DICOM-SEG -> (name, its frames, each a volume one voxel deep where it lies in the patient).

    Frame by frame: a segment may leave out any slices, so that its frames need not make a volume. Raises DataError.
    """
    import highdicom  # takes a second to import

    with naming(path, "DICOM-SEG"):
        file = highdicom.seg.Segmentation.from_dataset(read_whole(path), copy=False)
        labels = {number: str(file.get_segment_description(number).segment_label) for number in file.segment_numbers}
        shared = file.SharedFunctionalGroupsSequence[0]
        frames = list(file.PerFrameFunctionalGroupsSequence)[: int(file.get("NumberOfFrames") or 1)]
    for number, label in labels.items():
        yield label, _frames(path, file, number, shared, frames)


def _frames(
    path: str, file: Any, number: int, shared: pydicom.Dataset, frames: list[pydicom.Dataset]
) -> Iterator[sitk.Image]:
    """Those of one segment, not empty. Raises DataError."""
    for i, frame in enumerate(frames):
        with naming(path, "DICOM-SEG"):
            image = _frame(file, number, shared, frame, i)
        if image is not None:
            yield image


def _frame(file: Any, number: int, shared: pydicom.Dataset, frame: pydicom.Dataset, i: int) -> sitk.Image | None:
    """None where it is of another segment, or empty."""
    identified = frame.get("SegmentIdentificationSequence") or shared.get("SegmentIdentificationSequence")
    if identified and identified[0].ReferencedSegmentNumber != number:
        return None
    stored = file.get_stored_frame(i + 1)
    if not identified:  # a label map: values are segments
        mask = stored == number
    elif file.SegmentationType == "FRACTIONAL":
        mask = stored >= file.MaximumFractionalValue / 2
    else:
        mask = stored > 0
    if not mask.any():
        return None
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
    return image


# ---------------------------------------------------------------- RTSTRUCT


class Structure(NamedTuple):
    """contours: of a structure, each (N, 3) points in mm, closed."""

    name: str
    contours: list[np.ndarray]


def read_structures(path: str, scan: sitk.Image, tally: Counter) -> Iterator[tuple[str, np.ndarray]]:
    """The closed contours of an RTSTRUCT -> (name, (Z, Y, X) bool on the scan's grid), as it was stored.

    Contours of one plane are filled by the even-odd rule, with the pixels that they run through the centre of; planes
    that are nearest to one slice are united in it. tally: counts what lies between or beyond the slices.
    Raises DataError.
    """
    inverse = np.linalg.inv(np.array(scan.GetDirection()).reshape(3, 3) * np.array(scan.GetSpacing()))
    depth, height, width = scan.GetSize()[::-1]
    near = min(ONE_PLANE / scan.GetSpacing()[2], 0.05)
    for name, contours in _structures(path):
        drawn = [(points - np.array(scan.GetOrigin())) @ inverse.T for points in contours]
        if any(np.ptp(points[:, 2]) > 0.5 for points in drawn):
            raise DataError(
                f"{path}: '{name}' was drawn across the slices of its scan; export it as a label volume instead"
            )
        mask = np.zeros((depth, height, width), bool)
        for level, polygons in _planes(drawn, near):
            number = int(np.floor(level + 0.5))
            if not 0 <= number < depth:
                tally["planes of contours beyond the scan"] += 1
                continue
            if abs(level - number) > near:
                tally["planes of contours between slices as planes of their own: united with the nearest slice"] += 1
            mask[number] |= filled(polygons, height, width)
        if contours:
            yield name, mask


def _planes(drawn: list[np.ndarray], near: float) -> Iterator[tuple[float, list[np.ndarray]]]:
    """Contours (N, 3) in voxels -> (level, those that lie there as (N, 2) xy), from the lowest level on."""
    by_level = sorted(((float(points[:, 2].mean()), points[:, :2]) for points in drawn), key=lambda one: one[0])
    levels = np.array([level for level, _ in by_level])
    starts = [0, *(np.flatnonzero(np.diff(levels) > near) + 1).tolist(), len(levels)] if len(levels) else []
    for start, stop in pairwise(starts):
        yield float(levels[start:stop].mean()), [polygon for _, polygon in by_level[start:stop]]


def _structures(path: str) -> list[Structure]:
    """Raises DataError."""
    with naming(path, "RTSTRUCT"):
        data = read_whole(path)
        if "ROIContourSequence" not in data:
            raise DataError(f"{path}: holds no contours at all (ROIContourSequence is missing); export it again")
        names = {int(roi.ROINumber): str(roi.ROIName) for roi in data.get("StructureSetROISequence") or ()}
        return [
            Structure(
                names.get(int(roi.ReferencedROINumber), f"roi_{roi.ReferencedROINumber}"),
                [_points(path, contour) for contour in roi.get("ContourSequence") or () if _has_inside(contour)],
            )
            for roi in data.get("ROIContourSequence") or ()
        ]


def _has_inside(contour: pydicom.Dataset) -> bool:
    """A closed one of fewer than three points has none."""
    return contour.ContourGeometricType in CLOSED and len(contour.get("ContourData") or ()) > 6


def _points(path: str, contour: pydicom.Dataset) -> np.ndarray:
    """(N, 3) mm. Raises DataError."""
    points = np.array(contour.ContourData, float).reshape(-1, 3)
    if not (np.abs(points) < FAR).all():  # nor where they are no numbers
        raise DataError(f"{path}: has contours with coordinates that are no places in a patient; export it again")
    return points
