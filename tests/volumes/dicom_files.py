"""Made DICOM files for tests: single slices, series, RTSTRUCT."""

from pathlib import Path
from zlib import crc32

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, RTStructureSetStorage

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def save(data: Dataset, path: Path, kind: UID) -> Path:
    data.SOPClassUID = kind
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID, data.file_meta.MediaStorageSOPInstanceUID = kind, data.SOPInstanceUID
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def write_slice(path: Path, pixels: np.ndarray, place=(0.0, 0.0, 0.0), turn=AXIAL, **elements) -> Path:
    """pixels: (rows, columns) of 8 or 16 bits. elements: by keyword, in place of what is usual; None: left out."""
    data = Dataset()
    data.Modality, data.PatientID, data.StudyInstanceUID = "CT", "p1", "1.2.3"
    data.SeriesInstanceUID, data.SOPInstanceUID = "1.2.3.1", f"1.2.3.1.{crc32(path.name.encode()) + 1}"
    data.FrameOfReferenceUID, data.SeriesNumber = "1.2.9", 1
    data.ImagePositionPatient = [round(float(mm), 6) for mm in place]
    data.ImageOrientationPatient = [round(float(one), 8) for one in turn]
    data.PixelSpacing, data.SliceThickness = [1.0, 1.0], 2.0
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = pixels.dtype.itemsize * 8
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(pixels.dtype.kind == "i")
    data.RescaleSlope, data.RescaleIntercept = 1, 0
    for name, value in elements.items():
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)
    data.add_new(0x7FE00010, "OW", pixels.tobytes())
    return save(data, path, CTImageStorage)


def write_series(folder: Path, volume: np.ndarray, step: float = 2.0, drift=(0.0, 0.0), **elements) -> list[Path]:
    """(Z, Y, X) -> a file a slice, `step` mm apart along z and each `drift` mm further along x and y."""
    return [
        write_slice(
            folder / f"s{i:02d}",
            pixels,
            (i * drift[0], i * drift[1], i * step),
            **{"InstanceNumber": i + 1, "SliceThickness": step, **elements},
        )
        for i, pixels in enumerate(volume)
    ]


def add_contours(data: Dataset, contours: dict[str, list[np.ndarray]]) -> None:
    """The regions of an RTSTRUCT. contours: {name: [(N, 3) points in mm, ...]}."""
    data.StructureSetROISequence, data.ROIContourSequence = [], []
    for number, (name, polygons) in enumerate(contours.items(), 1):
        roi, drawn = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName = number, name
        drawn.ReferencedROINumber, drawn.ContourSequence = number, []
        for points in polygons:
            contour = Dataset()
            contour.ContourGeometricType, contour.NumberOfContourPoints = "CLOSED_PLANAR", len(points)
            contour.ContourData = [float(round(value, 4)) for value in points.ravel()]
            drawn.ContourSequence.append(contour)
        data.StructureSetROISequence.append(roi)
        data.ROIContourSequence.append(drawn)


def write_structures(path: Path, contours: dict[str, list[np.ndarray]], series: str = "1.2.3.1") -> Path:
    """contours: {name: [(N, 3) points in mm, ...]}."""
    data = Dataset()
    data.SOPInstanceUID, data.Modality, data.PatientID = f"{series}.77", "RTSTRUCT", "p1"
    data.StudyInstanceUID, data.SeriesInstanceUID = "1.2.3", f"{series}.7"
    of_series, study, frame = Dataset(), Dataset(), Dataset()
    of_series.SeriesInstanceUID = series
    study.RTReferencedSeriesSequence = [of_series]
    frame.FrameOfReferenceUID, frame.RTReferencedStudySequence = "1.2.9", [study]
    data.ReferencedFrameOfReferenceSequence = [frame]
    add_contours(data, contours)
    return save(data, path, RTStructureSetStorage)


def box(left: float, top: float, right: float, bottom: float, height: float = 0.0) -> np.ndarray:
    """(4, 3), a contour in mm."""
    return np.array([(left, top, height), (right, top, height), (right, bottom, height), (left, bottom, height)])
