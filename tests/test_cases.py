"""Inputs that failed once, each through the command a person would type: ../shared/cases, a section a folder."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import cv2
import numpy as np
import pytest

import test as scoring
import train as training
from sam_med2d.commands import amg, check_index, predict, segment_volume
from sam_med2d.commands import make_index as make_index_command
from sam_med2d.data.reading import read_mask
from sam_med2d.errors import DataError
from sam_med2d.inference.session import AnnotationSession, read_upload

sitk = pytest.importorskip("SimpleITK", reason="the extra data is not installed")
pydicom = pytest.importorskip("pydicom", reason="the extra data is not installed")

from tests.conftest import ROOT, fails
from tests.convert.helpers import image_of, mask_of, metadata, run
from tests.volumes.dicom_files import box, write_structures
from tests.volumes.test_volumes import Bright


@pytest.fixture
def cases(shared) -> Path:
    return shared / "cases"


EVERYTHING = ("--ratios", 1, 0, 0, "--min_area", 0)


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
    said = fails(lambda: segment(cases / "dicom-gantry-tilt", tmp_path / "l.nii.gz", "--point", 20, 20, 2))
    assert "dicom-gantry-tilt: its slices are tilted: the stack runs 20 degrees off their normal" in said


@pytest.mark.parametrize("geometry", ["refuse", "resample", "ignore"])
def test_dicom_gantry_tilt_with_contours_is_refused(cases, tmp_path, geometry):
    study = shutil.copytree(cases / "dicom-gantry-tilt", tmp_path / "study")
    write_structures(study / "rt.dcm", {"a": [box(10, 10, 20, 20, 5)]})
    said = fails(lambda: run("volumes", "--dicom", study, "--geometry", geometry, output=tmp_path / "out"))
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
    said = fails(lambda: segment(source, tmp_path / "l.nii.gz", *flags, "--axis", other))
    assert f"choose the axis {axis}" in said
    assert "leave out --fuse" in fails(lambda: segment(source, tmp_path / "l.nii.gz", *flags, "--fuse"))


# ---------------------------------------------------------------- dicom-multiframe-names


@pytest.mark.parametrize("name", ["mf.dcm", "mf.ima", "IM0001"])
def test_dicom_multiframe_names_are_treated_alike(cases, tmp_path, bright, name):
    source = cases / "dicom-multiframe-names" / name
    said = f"{name}: has 5 frames in one file; convert it to NIfTI"
    assert said in fails(lambda: segment(source, tmp_path / "l.nii.gz", "--point", 1, 1, 1))
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


def refusal(main, *words: object) -> str:
    """The one line in which a command ends."""
    with pytest.raises(SystemExit) as end:
        main([*map(str, words)])
    assert str(end.value).startswith("error: ") and "\n" not in str(end.value)
    return str(end.value)


def rows_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metadata.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# ---------------------------------------------------------------- nifti-orientations


def segmented(cases: Path, tmp_path: Path, code: str, *prompts: object) -> tuple[str, np.ndarray]:
    """-> what the command said was wrong, or nothing; and the labels as they are stored, x first."""
    output = tmp_path / f"{code}.nii.gz"
    source = cases / "nifti-orientations" / f"{code}.nii.gz"
    words = ["--input", source, "--output", output, "--sam_checkpoint", "small", *prompts]
    try:
        segment_volume.main([*map(str, words)])
    except SystemExit as end:
        assert str(end.code).startswith("error: ") and "\n" not in str(end.code)
        return str(end.code).replace(code, "CODE"), np.zeros(0)
    return "", sitk.GetArrayFromImage(sitk.ReadImage(str(output))).T


@pytest.mark.parametrize(
    "prompts, refused",
    [
        (("--point", 15, 15, 9.7), "(15, 15, 9.7)"),
        (("--point", 31.8, 15, 5), "(31.8, 15, 5)"),
        (("--point", 15, 31.5, 5), "(15, 31.5, 5)"),
        (("--point", -0.6, 15, 5), "(-0.6, 15, 5)"),
        (("--point", 15, 15, "nan"), "(15, 15, nan)"),
        (("--box", 4, 4, 9.5, 28, 28, 10.5), "(4, 4, 9.5, 28, 28, 10.5)"),
    ],
)
def test_prompts_outside_are_refused_alike_in_every_orientation(cases, tmp_path, prompts, refused) -> None:
    said = {segmented(cases, tmp_path, code, *prompts)[0] for code in ("lps", "ras", "lpi")}
    assert len(said) == 1
    (line,) = said
    assert refused in line and "outside the volume of 32 x 32 x 10 voxels" in line


@pytest.mark.parametrize(
    "prompts, slices",
    [
        (("--point", 15, 15, 9.4), [9]),
        (("--point", 31.4, -0.4, 4.5), [5]),
        (("--point", 15.3, 15, 3.5), [4]),
        (("--box", 4, 4, 3.5, 28, 28, 4.5), [4]),
        (("--box", 4, 4, 3, 28, 28, 7), [5, 3, 6]),
        (("--box", 4.3, 4, 2.2, 28, 27.6, 8.6), [5, 2, 8]),
    ],
)
def test_fractions_mean_the_same_voxels_in_every_orientation(cases, tmp_path, prompts, slices) -> None:
    """slices: the prompted one in the file's own numbers, and the bounds of a thick box."""
    rule = ("--least_iou", 0, "--shrink", 0, "--grow", 1e9, "--least_contrast", -1e9)
    rule = (*rule, "--least_area", 10**6 if len(slices) == 1 else 0)  # too large for any neighbour: the prompt's alone
    for code in ("lps", "ras", "lpi"):
        said, labels = segmented(cases, tmp_path, code, *prompts, *rule)
        assert not said and labels.shape == (32, 32, 10)
        with open(tmp_path / f"{code}.csv", newline="") as file:
            (row,) = csv.DictReader(file)
        first, last = int(row["first_slice"]), int(row["last_slice"])
        if len(slices) == 1:
            assert (first, last) == (slices[0], slices[0]), code
        else:
            assert slices[1] <= first <= slices[0] <= last <= slices[2], code
        present = np.flatnonzero(labels.any(axis=(0, 1)))
        assert set(present.tolist()) <= set(range(first, last + 1))


# ---------------------------------------------------------------- nifti-scaled-labels


def test_scaled_labels_are_whole_numbers(cases, tmp_path) -> None:
    source = cases / "nifti-scaled-labels" / "set"
    output = tmp_path / "out"
    words = ["volumes", "--images", source, "--labels", source, "--image_pattern", "{case}_img.nii.gz"]
    words += ["--label_pattern", "{case}_seg.nii.gz", "--axes", "z", "--min_area", "0", "--ratios", "1", "0", "0"]
    make_index_command.main([*map(str, words), "--output", str(output), "--num_workers", "0", "--components", "False"])
    stored = np.asarray(sitk.GetArrayFromImage(sitk.ReadImage(str(source / "a_seg.nii.gz"))))
    right = np.rint(stored).astype(int)
    assert {row["class"] for row in rows_of(output)} == {f"label_{k:03d}" for k in np.unique(right)[1:]}
    for row in rows_of(output):
        mask = cv2.imread(str(output / row["mask"]), cv2.IMREAD_UNCHANGED) > 0
        assert (mask == (right[int(row["slice"])] == int(row["class"].removeprefix("label_")))).all()


def test_scaled_labels_of_120_classes(cases, tmp_path) -> None:
    """Stored as 16 bits with a slope: 8 reads as 8.0005. The same file plays the scan."""
    for kind in ("scans", "labels"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "x.nii.gz").write_bytes((cases / "nifti-scaled-labels" / "x.nii.gz").read_bytes())
    words = ["volumes", "--images", tmp_path / "scans", "--labels", tmp_path / "labels", "--axes", "z"]
    words += ["--min_area", 0, "--min_aspect", 0, "--ratios", 1, 0, 0, "--num_workers", 0, "--output", tmp_path / "out"]
    make_index_command.main([*map(str, words)])
    stored = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "labels" / "x.nii.gz")))
    right = {f"label_{k:03d}" for k in np.unique(np.rint(stored)).astype(int) if k}
    assert len(right) > 100 and {row["class"] for row in rows_of(tmp_path / "out")} == right
    index = json.loads((tmp_path / "out" / "image2label_train.json").read_text())
    assert sum(map(len, index.values())) == len(rows_of(tmp_path / "out"))


def command(*words: object, **environment: str) -> subprocess.CompletedProcess:
    """What a person types, in the clone. Never a traceback, and never a process that died of a signal."""
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True, env=os.environ | environment
    )
    assert "Traceback" not in done.stderr and done.returncode in (0, 1), done.stderr
    return done


def refusal(done: subprocess.CompletedProcess) -> str:
    """The one line of a command that refused its input."""
    assert done.returncode == 1, done.stdout
    return done.stderr.strip().splitlines()[-1]


def make_index(source: str, *flags: object, output: Path, apart: bool = False) -> subprocess.CompletedProcess:
    """The command in this process, or apart, in one of its own, where the input might end it."""
    words = [source, *flags, "--case", "(.+)", "--ratios", 1, 0, 0, "--num_workers", 0, "--output", output]
    return command("scripts/make_index.py", *words) if apart else here(make_index_command.main, *words)


def here(main: Callable[[list[str]], object], *words: object) -> subprocess.CompletedProcess:
    """The same as `command`, in this process."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main([str(word) for word in words])
    except SystemExit as end:
        code = 1
        err.write(f"\n{end.code}")
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def block(height: int, width: int, rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[rows, columns] = True
    return mask


# ---------------------------------------------------------------- masks-alpha


def test_the_same_object_three_times(cases: Path, tmp_path: Path) -> None:
    folder = cases / "masks-alpha"
    done = make_index("masks", "--images", folder / "images", "--masks", folder / "masks", output=tmp_path / "out")
    assert done.returncode == 0, done.stderr
    masks = {row["class"]: mask_of(tmp_path / "out", row) for row in metadata(tmp_path / "out")}
    assert len(masks) == 3 and 0 < masks["plain"].mean() < 0.5
    for mask in masks.values():
        assert (mask == masks["plain"]).all()


# ---------------------------------------------------------------- exif


def test_a_turned_photo_is_refused_or_its_way_is_said(cases: Path, tmp_path: Path) -> None:
    folder = cases / "exif"
    sources = {
        "labelmaps": ("--images", folder / "images", "--labels", folder / "maps"),
        "coco": ("--images", folder / "images", "--annotations", folder / "inst.json"),
    }
    for source, flags in sources.items():
        said = refusal(make_index(source, *flags, output=tmp_path / source))
        assert "p.jpg: its EXIF orientation is 3" in said and "--orientation" in said
        done = make_index(source, *flags, "--orientation", "stored", output=tmp_path / source)
        assert done.returncode == 0, done.stderr
        (row,) = metadata(tmp_path / source)
        image, mask = image_of(tmp_path / source, row), mask_of(tmp_path / source, row)
        assert image.shape[:2] == mask.shape == (40, 60)
        assert image[mask].min() > 200 and image[~mask].max() < 60  # the bright object lies under its mask


def test_turned_by_90_degrees_the_size_of_a_mask_decides(cases: Path, tmp_path: Path) -> None:
    image = tmp_path / "images" / "p.jpg"
    image.parent.mkdir()
    shutil.copy(cases / "exif" / "rot90.jpg", image)
    stored = cv2.imread(str(image), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    for name, expected in (("stored", stored), ("turned", np.rot90(stored, -1))):
        mask = np.zeros(expected.shape[:2], np.uint8)
        mask[:9, :11] = 255
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / name / "p.png"), mask)
        flags = ("--images", image.parent, "--masks", tmp_path / name)
        assert make_index("masks", *flags, output=tmp_path / "out" / name).returncode == 0
        (row,) = metadata(tmp_path / "out" / name)
        assert (image_of(tmp_path / "out" / name, row) == expected).all()
        assert (mask_of(tmp_path / "out" / name, row) == (mask > 0)).all()


def test_such_files_are_listed(cases: Path, tmp_path: Path) -> None:
    shutil.copy(cases / "exif" / "images" / "p.jpg", tmp_path / "p.jpg")
    shutil.copy(cases / "exif" / "rot90.jpg", tmp_path / "q.jpg")
    for name in ("p", "q"):
        mask = block(40, 60, slice(4, 14), slice(6, 20)).astype(np.uint8)
        cv2.imwrite(str(tmp_path / f"{name}.png"), mask)
    (tmp_path / "image2label_train.json").write_text(json.dumps({"p.jpg": ["p.png"], "q.jpg": ["q.png"]}))
    done = here(check_index.main, tmp_path, "--num_workers", 1)
    assert done.returncode == 1 and "problems: 2 orientation" in done.stdout
    said = refusal(train(tmp_path))
    assert "p.jpg: its EXIF orientation is 3" in said


def train(folder: Path) -> subprocess.CompletedProcess:
    return here(
        training.main,
        *("--data_path", folder, "--model_type", "vit_t", "--image_size", 64, "--epochs", 1),
        *("--num_workers", 0, "--sam_checkpoint", ROOT / "pretrain_model/vit_t_phantoms.safetensors"),
        *("--work_dir", folder / "runs", "--run_name", "run"),
    )


# ---------------------------------------------------------------- multipage.tif


@pytest.fixture
def pages(cases: Path, tmp_path: Path) -> Path:
    """A folder with an index of the file of several pages."""
    folder = tmp_path / "data"
    folder.mkdir()
    shutil.copy(cases / "multipage.tif", folder / "pages.tif")
    cv2.imwrite(str(folder / "mask.png"), block(48, 64, slice(4, 14), slice(6, 20)).astype(np.uint8))
    for split in ("train", "test"):
        (folder / f"image2label_{split}.json").write_text(json.dumps({"pages.tif": ["mask.png"]}))
    return folder


@pytest.mark.parametrize("kind", ["predict", "amg", "test", "train", "check_index"])
def test_several_pages_are_refused(kind: str, pages: Path, tmp_path: Path) -> None:
    small = ("--sam_checkpoint", "small")
    if kind == "train":
        assert "pages.tif: has 5 pages" in refusal(train(pages))
        return
    words = {
        "predict": (predict.main, "--input", pages / "pages.tif", "--point", 9, 9, *small),
        "amg": (amg.main, "--input", pages / "pages.tif", "--checkpoint", "small"),
        "check_index": (check_index.main, pages, "--num_workers", 1),
        "test": (
            *(scoring.main, "--data_path", pages, "--model_type", "vit_t", "--image_size", 64, "--num_workers", 0),
            *("--sam_checkpoint", ROOT / "pretrain_model/vit_t_phantoms.safetensors", "--encoder_adapter", "False"),
            *("--work_dir", tmp_path / "runs"),
        ),
    }[kind]
    output = ("--output", tmp_path / "out") if kind in ("predict", "amg") else ()
    done = here(*words, *output)
    assert done.returncode == 1 and "pages.tif: has 5 pages" in done.stdout + done.stderr


def test_several_pages_are_refused_as_masks_and_by_the_page(pages: Path) -> None:
    for read in (lambda path: read_mask(path, (48, 64)), read_upload):
        with pytest.raises(DataError, match=r"pages.tif: has 5 pages"):
            read(str(pages / "pages.tif"))


# ---------------------------------------------------------------- coco

SQUARE = block(40, 60, slice(4, 14), slice(6, 20))


@pytest.mark.parametrize(
    "name, expected",
    [
        ("backslash", SQUARE),
        ("strid", SQUARE),
        ("slash_name", SQUARE),
        ("unlabelled_size", SQUARE),
        ("border", np.ones((40, 60), bool)),
        ("negative", block(40, 60, slice(0, 10), slice(0, 10))),
        ("outside", block(40, 60, slice(30, 40), slice(50, 60))),
        ("two_points", "three points or more"),
        ("line", "no object is left"),
        ("coco_infinity", "annotation 1 of .*: has the coordinate inf"),
    ],
)
def test_annotations(name: str, expected: np.ndarray | str, cases: Path, tmp_path: Path) -> None:
    images = cases / "coco" / "images"
    if name == "coco_infinity":  # whose image is not among the cases
        images = tmp_path / "images"
        (images / "a").mkdir(parents=True)
        cv2.imwrite(str(images / "a" / "b.png"), np.zeros((24, 30, 3), np.uint8))
    flags = ("--annotations", cases / "coco" / f"{name}.json", "--images", images)
    done = make_index("coco", *flags, output=tmp_path / "out", apart=name == "coco_infinity")
    if isinstance(expected, str):
        assert re.search(expected, refusal(done))
        return
    assert done.returncode == 0, done.stderr
    (row,) = metadata(tmp_path / "out")
    assert (mask_of(tmp_path / "out", row) == expected).all()
    assert row["class"] == ("left/right kidney" if name == "slash_name" else "o")


def test_what_is_sound_is_not_lost_with_what_is_bad(cases: Path, tmp_path: Path) -> None:
    """All annotations of all files at once, of one image: the sound ones come out, the others are named."""
    image = {"id": 1, "file_name": "a.png", "height": 40, "width": 60}
    content = {"images": [image], "annotations": [], "categories": [{"id": 1, "name": "o"}]}
    for path in sorted((cases / "coco").glob("*.json")):
        annotation = json.loads(path.read_text())["annotations"][0]
        content["annotations"].append(annotation | {"id": path.stem})
    (tmp_path / "all.json").write_text(json.dumps(content))
    flags = ("--annotations", tmp_path / "all.json", "--images", cases / "coco" / "images")
    done = make_index("coco", *flags, output=tmp_path / "out")
    assert done.returncode == 0 and len(metadata(tmp_path / "out")) == 7, done.stderr
    assert "2 annotation(s) are bad and left out" in done.stdout
    assert "coco_infinity" in done.stdout and "two_points" in done.stdout and "1 empty masks" in done.stdout
