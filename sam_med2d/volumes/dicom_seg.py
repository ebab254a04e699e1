"""Labels written as DICOM-SEG, on the slices of the DICOM series that they are of."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataelem import RawDataElement

from sam_med2d import __version__
from sam_med2d.errors import DataError
from sam_med2d.volumes.dicom import naming, read_whole
from sam_med2d.volumes.dicom_bytes import is_dicom
from segment_anything.files import replacing

DICOM = ".dcm"  # how the name of a DICOM-SEG ends
SAME_PLACE = 0.01  # mm
MAKER = "sam-med2d"
MAY_BE_EMPTY = (  # of patient and study; each has to be there, and highdicom copies it
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"),
)
LONG = 4096  # bytes of an element that is of no use to a DICOM-SEG
PIXELS = pydicom.tag.Tag("PixelData")


def slices_of(files: Sequence[str], stored: sitk.Image) -> list[pydicom.Dataset]:
    """The files of a series, without their pixels, in the order of the volume that was read from them.

    stored: the grid of that volume. Raises DataError.
    """
    slices, places = [], []
    for path in files:
        if not is_dicom(path):
            continue
        with naming(path):
            slice = read_whole(path, defer_size=LONG)
            if "Rows" not in slice:  # a report, a DICOMDIR: `read_series` passes over them too
                continue
            if "ImagePositionPatient" not in slice or "FrameOfReferenceUID" not in slice:
                raise DataError(
                    f"{path}: does not say where in a patient it lies (ImagePositionPatient, FrameOfReferenceUID), "
                    "which a DICOM-SEG has to refer to; write the labels as .nii.gz"
                )
            places.append([float(mm) for mm in slice.ImagePositionPatient])
        slices.append(_head_of(slice))
    chosen = []
    for number in range(stored.GetSize()[2]):
        place = stored.TransformIndexToPhysicalPoint((0, 0, number))
        apart = np.linalg.norm(np.array(places).reshape(-1, 3) - place, axis=1)
        if not len(apart) or apart.min() > SAME_PLACE + 0.01 * stored.GetSpacing()[2]:
            raise DataError(
                f"{Path(files[0]).parent}: has no slice of its own at {place}, mm; write the labels as .nii.gz"
            )
        chosen.append(slices[int(apart.argmin())])
    return chosen


def write_head(path: str, target: Path) -> None:
    """Copy a DICOM file without what is long in it, which is enough to refer to it. Raises DataError."""
    with naming(path):
        _head_of(read_whole(path, defer_size=LONG)).save_as(target, enforce_file_format=True)


def _head_of(slice: pydicom.Dataset) -> pydicom.Dataset:
    """A file without what is long in it: pixels, overlays, private data."""
    for tag in [*slice.keys()]:
        element = slice.get_item(tag, keep_deferred=True)
        if tag == PIXELS or (isinstance(element, RawDataElement) and element.value is None and element.length):
            del slice[tag]
    for name in MAY_BE_EMPTY:
        if name not in slice:
            setattr(slice, name, "")
    return slice


def write_segmentation(path: Path, labels: np.ndarray, slices: list[pydicom.Dataset], names: Mapping[int, str]) -> None:
    """A segment a label, in the order of labels, on the frame of reference of the series; empty slices are left out.

    labels: (Z, Y, X) integers on the slices of `slices_of`; names: of the labels, which become those of segments.
    Raises DataError: no label is anywhere, or the slices lack what every DICOM file has to have.
    """
    import highdicom  # takes a second to import
    from pydicom.sr.codedict import codes

    found = [int(label) for label in np.unique(labels) if label]
    if not found:
        raise DataError(
            f"{path}: there is nothing to write, as no object was found; a DICOM-SEG has at least one voxel"
        )
    numbers = np.zeros(int(labels.max()) + 1, np.uint8 if len(found) < 256 else np.uint16)
    numbers[found] = np.arange(1, len(found) + 1)
    segments = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=names.get(label, f"label {label}")[:64],
            segmented_property_category=codes.SCT.AnatomicalStructure,
            segmented_property_type=codes.SCT.AnatomicalStructure,
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.SEMIAUTOMATIC,
            algorithm_identification=highdicom.AlgorithmIdentificationSequence(
                name=MAKER, version=__version__, family=codes.DCM.ArtificialIntelligence
            ),
        )
        for number, label in enumerate(found, start=1)
    ]
    with naming(str(getattr(slices[0], "filename", "the series"))):
        file = highdicom.seg.Segmentation(
            source_images=slices,
            pixel_array=numbers[labels],
            segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=segments,
            series_instance_uid=highdicom.UID(),
            series_number=1000,
            sop_instance_uid=highdicom.UID(),
            instance_number=1,
            manufacturer=MAKER,
            manufacturer_model_name=MAKER,
            software_versions=__version__,
            device_serial_number="0",
            series_description=f"{MAKER} labels",
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        file.save_as(temporary)
