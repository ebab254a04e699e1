"""A source of DICOM files: in a folder, grouped into series with the labels that were drawn on them."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import pydicom
from tqdm import tqdm

from sam_med2d.convert.cases import Case
from sam_med2d.convert.patterns import below, some, walk
from sam_med2d.errors import DataError
from sam_med2d.volumes.dicom import LABELS, is_directory, naming, read_header
from sam_med2d.volumes.dicom_bytes import is_dicom

HEADER = [
    "PatientID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SeriesNumber",
    "Modality",
    "FrameOfReferenceUID",
    "ReferencedSeriesSequence",
    "ReferencedFrameOfReferenceSequence",
]


@dataclass
class _Series:
    header: pydicom.Dataset
    files: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)


def find_dicom(folder: Path) -> list[Case]:
    """Every series below a folder that has a SEG or an RTSTRUCT there -> a case; its patient is the group.

    A file that cannot be read, or a label whose series is not there, becomes a case of its own that fails when it is
    converted. Raises DataError: nothing labelled.
    """
    series: dict[str, _Series] = {}
    labels: list[tuple[str, pydicom.Dataset]] = []
    broken: list[Case] = []
    for name in tqdm(walk(folder), desc="reading headers", unit="file", leave=False, dynamic_ncols=True):
        path = below(folder, name)
        try:
            header = _header_of(path)
        except DataError as error:
            broken.append(_broken(name, path, error))
            continue
        if header is None:
            continue
        if header.get("Modality") in LABELS:
            labels.append((path, header))
        else:
            series.setdefault(str(header.SeriesInstanceUID), _Series(header)).files.append(path)
    if not series:
        raise DataError(broken[0].data["broken"] if broken else f"{folder}: holds no DICOM series; check the path")
    for path, header in labels:
        try:
            with naming(path):
                series[_series_of(path, header, series)].labels.append(path)
        except DataError as error:
            broken.append(_broken(Path(path).relative_to(folder).as_posix(), path, error))
    cases = [_case(one) for one in series.values() if one.labels]
    if not cases and not broken:
        raise DataError(
            f"{folder}: holds {len(series)} series but neither DICOM-SEG nor RTSTRUCT; give label volumes with "
            "--images and --labels"
        )
    if len(cases) < len(series):
        lacking = [Path(one.files[0]).parent.name for one in series.values() if not one.labels]
        print(f"{len(lacking)} series have no labels and are left out: in {some(lacking)}")
    return sorted([*cases, *broken], key=lambda case: case.name)


def _header_of(path: str) -> pydicom.Dataset | None:
    """None: it belongs to no series. Raises DataError where it should."""
    header = read_header(path, HEADER)
    if header is None or is_directory(header):
        return None
    if not header.get("SeriesInstanceUID"):
        raise DataError(f"{path}: does not say which series it belongs to (SeriesInstanceUID); export it again")
    return header


def _broken(name: str, path: str, error: DataError) -> Case:
    """A case that only fails, as it is not known which series the file belongs to: it costs no other one."""
    return Case(name, name, (path,), {"broken": str(error)}, split="train")  # which no file of splits need name


def _series_of(path: str, label: pydicom.Dataset, series: dict[str, _Series]) -> str:
    """The series a SEG or RTSTRUCT was drawn on: the one it names, or the only one of its frame of reference."""
    named = [str(item.SeriesInstanceUID) for item in label.get("ReferencedSeriesSequence") or ()]
    for frame in label.get("ReferencedFrameOfReferenceSequence") or ():
        for study in frame.get("RTReferencedStudySequence") or ():
            named += [str(item.SeriesInstanceUID) for item in study.get("RTReferencedSeriesSequence") or ()]
    frames = {str(label.get("FrameOfReferenceUID", ""))}
    frames |= {
        str(frame.get("FrameOfReferenceUID", "")) for frame in label.get("ReferencedFrameOfReferenceSequence") or ()
    }
    there = [uid for uid in named if uid in series]
    if not there and not named:
        there = [uid for uid, one in series.items() if str(one.header.get("FrameOfReferenceUID", "-")) in frames]
    if len(there) != 1:
        what = f"series {named[0]}, which is not in the folder"
        if not named:
            what = f"no series, and {len(there)} share its frame of reference"
        raise DataError(f"{path}: refers to {what}; put the scan it was drawn on beside it, or take it out")
    return there[0]


def _case(one: _Series) -> Case:
    uid = str(one.header.SeriesInstanceUID)
    patient = str(one.header.get("PatientID") or one.header.get("StudyInstanceUID") or uid)
    mark = hashlib.blake2b(uid.encode(), digest_size=3).hexdigest()
    name = f"{patient}_{one.header.get('SeriesNumber') or 0}_{mark}"
    files, labels = sorted(one.files), sorted(one.labels)
    return Case(
        name,
        patient,
        (*files, *labels),
        {"images": [[files, str(one.header.get("Modality", "")).lower()]], "labels": [[path, ""] for path in labels]},
    )


def label_kind(path: str) -> str:
    """Of a file with labels: SEG or RTSTRUCT, or nothing where it is no DICOM of these kinds."""
    if not is_dicom(path):
        return ""
    header = read_header(path, ["Modality"])
    kind = str(header.get("Modality", "")) if header is not None else ""
    return kind if kind in LABELS else ""
