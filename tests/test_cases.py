"""Inputs that failed once, each through the command a person would type: ../shared/cases, a section a folder."""

import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from sam_med2d.commands import segment_volume
from sam_med2d.errors import DataError
from sam_med2d.inference.session import AnnotationSession, read_upload
from tests.convert.helpers import image_of, mask_of, metadata, run

sitk = pytest.importorskip("SimpleITK", reason="the extra data is not installed")
pydicom = pytest.importorskip("pydicom", reason="the extra data is not installed")

from tests.volumes.dicom_files import box, write_structures
from tests.volumes.test_volumes import Bright

EVERYTHING = ("--ratios", 1, 0, 0, "--min_area", 0)


@pytest.fixture
def cases(shared) -> Path:
    return shared / "cases"


def ended(call) -> str:
    """The one line that a command ends with."""
    with pytest.raises(SystemExit) as end:
        call()
    assert "\n" not in str(end.value.code)
    return str(end.value.code)


def segment(source: Path, output: Path, *flags: object) -> sitk.Image:
    """segment-volume in this process -> the labels."""
    words = ["--input", source, "--output", output, "--least_area", 3, "--shrink", 0.1, *flags]
    segment_volume.main([*map(str, words)])
    return sitk.ReadImage(str(output))


@pytest.fixture
def bright(monkeypatch) -> Bright:
    """In place of a model: what is bright under the click is the object."""
    model = Bright()
    monkeypatch.setattr(segment_volume, "load_segmenter", lambda args: model)
    return model


# ---------------------------------------------------------------- dicom-gantry-tilt


def test_dicom_gantry_tilt_is_refused_with_its_angle(cases, tmp_path, bright):
    said = ended(lambda: segment(cases / "dicom-gantry-tilt", tmp_path / "l.nii.gz", "--point", 20, 20, 2))
    assert "dicom-gantry-tilt: its slices are tilted: the stack runs 20 degrees off their normal" in said


@pytest.mark.parametrize("geometry", ["refuse", "resample", "ignore"])
def test_dicom_gantry_tilt_with_contours_is_refused(cases, tmp_path, geometry):
    study = shutil.copytree(cases / "dicom-gantry-tilt", tmp_path / "study")
    write_structures(study / "rt.dcm", {"a": [box(10, 10, 20, 20, 5)]})
    said = ended(lambda: run("volumes", "--dicom", study, "--geometry", geometry, output=tmp_path / "out"))
    assert "20 degrees" in said and "--geometry" not in said


# ---------------------------------------------------------------- dicom-intercept-per-slice


def test_dicom_intercept_per_slice_has_its_own_values_in_each(cases, tmp_path):
    study = shutil.copytree(cases / "dicom-intercept-per-slice", tmp_path / "study")
    expected = []
    for path in sorted(study.iterdir()):
        data = pydicom.dcmread(path)
        expected.append(data.pixel_array * float(data.RescaleSlope) + float(data.RescaleIntercept))
    bright = np.array(expected) == 40
    assert np.unique(expected[1]).tolist() == np.unique(expected[3]).tolist() == [-1000, 40] and bright[0].any()
    write_structures(study / "rt.dcm", {"a": [box(4, 4, 11, 11, 2 * i) for i in range(4)]})
    output = run(
        "volumes", "--dicom", study, *EVERYTHING, "--axes", "z", "--window", "abdomen", output=tmp_path / "out"
    )
    rows = {int(row["slice"]): row for row in metadata(output)}
    assert sorted(rows) == [0, 1, 2, 3]
    for number, row in rows.items():
        want = np.clip(np.rint((expected[number] + 150) * 255 / 400), 0, 255)
        assert (image_of(output, row) == want).all()
        assert number == 0 or not image_of(output, row)[~bright[number]].any()  # air


# ---------------------------------------------------------------- dicom-single-slice


@pytest.mark.parametrize("name", ["ax", "cor", "sag"])
def test_dicom_single_slice_is_one_picture_of_its_rows_and_columns(cases, tmp_path, bright, name):
    source = cases / "dicom-single-slice" / f"{name}.dcm"
    pixels = pydicom.dcmread(source).pixel_array
    session = AnnotationSession({"model": bright})
    session.open(source)
    assert session.size() == (64, 48) and len(session.scan.slices) == 1
    assert (session.scan.slices[0] == pixels).all()
    mask = session.draw_box(5, 3, 40, 60).mask
    written = {path.name: path for path in session.save(tmp_path)}
    stored, labels = sitk.ReadImage(str(source)), sitk.ReadImage(str(written[f"{name}_labels.nii.gz"]))
    assert (sitk.GetArrayFromImage(labels)[0] == mask).all()
    assert (cv2.imread(str(written[f"{name}_labels.png"]), cv2.IMREAD_UNCHANGED) == mask).all()
    assert labels.GetSize() == stored.GetSize() and labels.GetOrigin() == pytest.approx(stored.GetOrigin())
    assert labels.GetDirection() == pytest.approx(stored.GetDirection())


@pytest.mark.parametrize("name, axis", [("ax", "z"), ("cor", "y"), ("sag", "x")])
def test_dicom_single_slice_is_segmented_across_itself(cases, tmp_path, capsys, bright, name, axis):
    source = cases / "dicom-single-slice" / f"{name}.dcm"
    y, x = np.argwhere(pydicom.dcmread(source).pixel_array > 900)[0]
    flags = ("--point", x, y, 0, "--window", 100, 200)
    labels, stored = segment(source, tmp_path / "l.nii.gz", *flags), sitk.ReadImage(str(source))
    assert sitk.GetArrayFromImage(labels).shape == (1, 64, 48) and sitk.GetArrayFromImage(labels)[0, y, x] == 1
    assert labels.GetDirection() == pytest.approx(stored.GetDirection())
    assert f"slices 0 to 0 along {axis} " in capsys.readouterr().out
    other = "xyz".replace(axis, "")[0]
    said = ended(lambda: segment(source, tmp_path / "l.nii.gz", *flags, "--axis", other))
    assert f"choose the axis {axis}" in said
    assert "leave out --fuse" in ended(lambda: segment(source, tmp_path / "l.nii.gz", *flags, "--fuse"))


# ---------------------------------------------------------------- dicom-multiframe-names


@pytest.mark.parametrize("name", ["mf.dcm", "mf.ima", "IM0001"])
def test_dicom_multiframe_names_are_treated_alike(cases, tmp_path, bright, name):
    source = cases / "dicom-multiframe-names" / name
    said = f"{name}: has 5 frames in one file; convert it to NIfTI"
    assert said in ended(lambda: segment(source, tmp_path / "l.nii.gz", "--point", 1, 1, 1))
    with pytest.raises(DataError, match=re.escape(said)):
        read_upload(source)


# ---------------------------------------------------------------- rtstruct-between-slices


def test_rtstruct_between_slices_loses_none(cases, tmp_path, capsys):
    output = run(
        *("volumes", "--dicom", cases / "rtstruct-between-slices", *EVERYTHING, "--axes", "z"), output=tmp_path / "out"
    )
    rows = metadata(output)
    assert [(row["slice"], row["class"]) for row in rows] == [(str(number), "liver") for number in (1, 2, 3, 4)]
    expected = np.zeros((32, 32), bool)
    expected[8:24, 8:24] = True  # of contours from 7.5 to 23.5 mm
    assert all((mask_of(output, row) == expected).all() for row in rows)
    assert "9 planes of contours between slices" in capsys.readouterr().out
