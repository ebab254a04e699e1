"""Inputs that failed once, each through the command that a person would type: the right result, or one line that says
why not. One section for each folder of cases; the folder's README says what is right.
"""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import cv2
import numpy as np
import pytest

from sam_med2d.commands import make_index as make_index_command
from sam_med2d.data.reading import read_mask
from sam_med2d.errors import DataError
from sam_med2d.inference.session import read_upload
from tests.conftest import ROOT
from tests.convert.helpers import image_of, mask_of, metadata


@pytest.fixture
def cases(shared: Path) -> Path:
    folder = shared / "cases"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    return folder


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
    if apart:
        return command("scripts/make_index.py", *words)
    before, out, err, code = dict(os.environ), io.StringIO(), io.StringIO(), 0
    try:
        with redirect_stdout(out), redirect_stderr(err):
            make_index_command.main([str(word) for word in words])
    except SystemExit as end:
        code = 1
        err.write(f"\n{end.code}")
    finally:
        os.environ.clear()  # flags of reading are kept there
        os.environ.update(before)
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
    done = command("scripts/check_index.py", tmp_path, "--num_workers", 1)
    assert done.returncode == 1 and "problems: 2 orientation" in done.stdout
    said = refusal(train(tmp_path))
    assert "p.jpg: its EXIF orientation is 3" in said


def train(folder: Path) -> subprocess.CompletedProcess:
    return command(
        *("train.py", "--data_path", folder, "--model_type", "vit_t", "--image_size", 64, "--epochs", 1),
        *("--num_workers", 0, "--sam_checkpoint", "pretrain_model/vit_t_phantoms.safetensors"),
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
        "predict": ("-m", "sam_med2d", "predict", "--input", pages / "pages.tif", "--point", 9, 9, *small),
        "amg": ("-m", "sam_med2d", "amg", "--input", pages / "pages.tif", "--checkpoint", "small"),
        "check_index": ("scripts/check_index.py", pages, "--num_workers", 1),
        "test": (
            *("test.py", "--data_path", pages, "--model_type", "vit_t", "--image_size", 64, "--num_workers", 0),
            *("--sam_checkpoint", "pretrain_model/vit_t_phantoms.safetensors", "--encoder_adapter", "False"),
            *("--work_dir", tmp_path / "runs"),
        ),
    }[kind]
    output = ("--output", tmp_path / "out") if kind in ("predict", "amg") else ()
    done = command(*words, *output)
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
