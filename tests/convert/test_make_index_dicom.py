"""The command make-index on DICOM with labels: contours, segments, what one damaged file costs."""

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("SimpleITK", reason="the extra data is not installed")
pytest.importorskip("highdicom", reason="the extra data is not installed")

import highdicom
import pydicom
import SimpleITK as sitk
from pydicom.uid import generate_uid

from tests.conftest import fails
from tests.convert.helpers import block, mask_of, metadata, run
from tests.volumes.dicom_files import box, write_series, write_slice, write_structures

SHAPE = (6, 32, 32)
FLAGS = ("--ratios", 1, 0, 0, "--axes", "z", "--min_area", 0)


def convert(folder: Path, *flags: object, output: Path | None = None) -> Path:
    return run("volumes", "--dicom", folder, *FLAGS, *flags, output=output or folder.parent / "out")


def error(folder: Path, *flags: object) -> str:
    return fails(lambda: convert(folder, *flags))


def patient(folder: Path, number: int, **elements) -> tuple[list[Path], Path]:
    """A series with an RTSTRUCT of a block in slices 1 to 4."""
    series = f"1.2.3.{number}"
    volume = block(SHAPE, (1, 5), (8, 24), (8, 24), value=100).astype(np.int16)
    paths = write_series(folder, volume, SeriesInstanceUID=series, PatientID=f"p{number}", step=4, **elements)
    contours = {"liver": [box(8, 8, 23, 23, height) for height in (4, 8, 12, 16)]}
    return paths, write_structures(folder / "rt.dcm", contours, series)


def drawn(output: Path) -> np.ndarray:
    volume = np.zeros(SHAPE, bool)
    for row in metadata(output):
        volume[int(row["slice"])] |= mask_of(output, row)
    return volume


def test_rims_and_slices_of_an_rtstruct(tmp_path):
    patient(tmp_path / "study", 1)
    assert (drawn(convert(tmp_path / "study")) == (block(SHAPE, (1, 5), (8, 24), (8, 24)) > 0)).all()


def test_contours_between_slices_are_told(tmp_path, capsys):
    patient(tmp_path / "study", 1)
    heights = range(4, 17, 2)
    write_structures(tmp_path / "study/rt.dcm", {"liver": [box(8, 8, 23, 23, height) for height in heights]}, "1.2.3.1")
    assert (drawn(convert(tmp_path / "study")) == (block(SHAPE, (1, 5), (8, 24), (8, 24)) > 0)).all()
    assert "3 planes of contours between slices" in capsys.readouterr().out


@pytest.mark.parametrize("geometry", ["refuse", "resample", "ignore"])
def test_a_tilted_series_is_refused_whatever_the_geometry_flag(tmp_path, geometry):
    angle = np.radians(15)
    patient(tmp_path / "study", 1, ImageOrientationPatient=[1, 0, 0, 0, *np.cos([angle, np.pi / 2 - angle])])
    said = error(tmp_path / "study", "--geometry", geometry)
    assert "tilted: the stack runs 15 degrees off" in said and "--geometry" not in said


DAMAGES = {
    "cut off": lambda data: data[: len(data) * 3 // 4],
    "cut off before the contours": lambda data: data[: data.rindex(b"\x06\x30\x39\x00")],
    "cut off in the header": lambda data: data[:420],
    "header": lambda data: data[:400] + b"\xff" * 80 + data[480:],
    "contours": lambda data: data.replace(b"\\23.0", b"\\2x.0"),
    "other series": lambda data: data.replace(b"1.2.3.1\x00", b"1.2.3.9\x00"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_rtstruct_costs_its_case_alone(tmp_path, capsys, damage):
    study = tmp_path / "study"
    patient(study / "a", 2)
    _, path = patient(study / "b", 1)
    damaged = DAMAGES[damage](path.read_bytes())
    assert damaged != path.read_bytes()
    path.write_bytes(damaged)
    said = error(study)
    assert "1 of 2 case(s) could not be converted" in said and "b/rt.dcm" in said and "--skip_bad_cases" in said
    capsys.readouterr()
    output = convert(study, "--skip_bad_cases")
    said = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("left out: ") and "b/rt.dcm: " in line for line in said) == 1
    assert {row["case"] for row in metadata(output)} == {"p2"} and drawn(output).sum() == 4 * 16 * 16
    write_structures(path, {"liver": [box(8, 8, 23, 23, 4)]}, "1.2.3.1")  # mended
    assert {row["case"] for row in metadata(convert(study))} == {"p1", "p2"}


def test_a_damaged_file_needs_no_place_in_a_split_file(tmp_path):
    patient(tmp_path / "study/a", 2)
    _, path = patient(tmp_path / "study/b", 1)
    path.write_bytes(path.read_bytes()[:500])
    (tmp_path / "splits.json").write_text('{"train": ["p2"], "test": []}')
    output = convert(tmp_path / "study", "--split_file", tmp_path / "splits.json", "--skip_bad_cases")
    assert {row["case"] for row in metadata(output)} == {"p2"}


def segmentation(paths: list[Path], mask: np.ndarray, target: Path) -> pydicom.Dataset:
    source = []
    for path in paths:
        data = pydicom.dcmread(path)
        for name in ("StudyDate", "StudyTime", "AccessionNumber", "StudyID", "PatientName", "PatientBirthDate"):
            setattr(data, name, "")
        data.PatientSex, data.ReferringPhysicianName = "", ""
        source.append(data)
    code = highdicom.sr.CodedConcept("91723000", "SCT", "Anatomical structure")
    algorithm = highdicom.AlgorithmIdentificationSequence("test", code, "1")
    segment = highdicom.seg.SegmentDescription(1, "liver", code, code, "AUTOMATIC", algorithm)
    uids = generate_uid(), generate_uid()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = highdicom.seg.Segmentation(
            source, mask, "BINARY", [segment], uids[0], 99, uids[1], 1, "maker", "model", "1", "1"
        )
        made.save_as(target)
    return pydicom.dcmread(target)


def test_thin_frames_between_slices_are_not_lost(tmp_path, capsys):
    """Frames of 1 mm, drawn half a slice above theirs: each goes to the slice it is nearest to."""
    paths, structures = patient(tmp_path / "study", 1)
    structures.unlink()
    mask = block(SHAPE, (1, 5), (8, 24), (8, 24), value=1)
    data = segmentation(paths, mask, tmp_path / "study/seg.dcm")
    data.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness = 1
    for frame in data.PerFrameFunctionalGroupsSequence:
        place = frame.PlanePositionSequence[0]
        place.ImagePositionPatient = [0, 0, float(place.ImagePositionPatient[2]) + 1.5]
    data.save_as(tmp_path / "study/seg.dcm")
    assert "its frames lie between the voxels" in error(tmp_path / "study")
    assert (drawn(convert(tmp_path / "study", "--geometry", "resample")) == (mask > 0)).all()
    for frame in data.PerFrameFunctionalGroupsSequence:
        place = frame.PlanePositionSequence[0]
        place.ImagePositionPatient = [0, 0, float(place.ImagePositionPatient[2]) + 2.5]
    data.save_as(tmp_path / "study/seg.dcm")
    assert drawn(convert(tmp_path / "study")).nonzero()[0].tolist() == np.repeat([2, 3, 4, 5], 256).tolist()
    for frame in data.PerFrameFunctionalGroupsSequence:
        place = frame.PlanePositionSequence[0]
        place.ImagePositionPatient = [0, 0, float(place.ImagePositionPatient[2]) + 8]
    data.save_as(tmp_path / "study/seg.dcm")
    convert(tmp_path / "study")
    assert "2 frames of a DICOM-SEG beyond the scan" in capsys.readouterr().out


def test_labels_of_a_slice_that_does_not_say_how_it_lies(tmp_path):
    write_slice(tmp_path / "study/one", np.zeros((32, 32), np.int16), ImageOrientationPatient=None)
    write_structures(tmp_path / "study/rt.dcm", {"a": [box(4, 4, 9, 9)]})
    assert "study: does not say how it lies in the patient (ImageOrientationPatient is missing)" in error(
        tmp_path / "study"
    )


@pytest.mark.parametrize("name", ["one.dcm", "one.ima", "one"])
def test_frames_are_counted_whatever_the_file_is_called(tmp_path, name):
    write_slice(tmp_path / "scans" / "p" / name, np.zeros((64, 32), np.int16), Rows=16, NumberOfFrames=4)
    sitk.WriteImage(sitk.Image(32, 16, 4, sitk.sitkUInt8), str(tmp_path / "p.nii.gz"))
    (tmp_path / "labels").mkdir()
    shutil.move(tmp_path / "p.nii.gz", tmp_path / "labels" / "p.nii.gz")
    with pytest.raises(SystemExit, match=f"{name}: has 4 frames in one file"):
        run(
            *("volumes", "--images", tmp_path / "scans", "--labels", tmp_path / "labels"),
            *("--image_pattern", "{case}/" + name, "--label_pattern", "{case}.nii.gz"),
            output=tmp_path / "out",
        )
