"""Pictures, masks and annotations through make-index: names, thresholds, hidden files, semicolons, splits, workers."""

import io
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from sam_med2d.coco import mask_of as coco_mask_of
from sam_med2d.convert.cases import Case, Object, Picture
from sam_med2d.convert.classes import parse_classes
from sam_med2d.convert.pipeline import convert
from sam_med2d.convert.splits import Splits
from sam_med2d.convert.writer import fitting, safe_name
from sam_med2d.data.metadata import read_metadata
from sam_med2d.errors import DataError, UsageError
from tests.convert.helpers import block, image_of, index, mask_of, metadata, picture, run, write

EVERY = ("--case", "(.+)", "--ratios", 1, 0, 0)
SHAPE = (24, 30)


def folders(tmp_path: Path, *names: str) -> tuple:
    for name in names:
        write(tmp_path / "images" / f"{name}.png", picture(seed=len(name)))
    return "--images", tmp_path / "images", "--masks", tmp_path / "masks"


def ends(message: str, *words: object, output: Path) -> None:
    with pytest.raises(SystemExit, match=message) as end:
        run(*words, output=output)
    assert "\n" not in str(end.value.code)


# ---------------------------------------------------------------- names


def test_a_mask_that_fits_two_pictures_is_said(tmp_path: Path, capsys) -> None:
    sources = folders(tmp_path, "scan_1", "scan_1_2")
    write(tmp_path / "masks" / "scan_1_2.png", block(SHAPE, (2, 9), (2, 9)))
    said = r"fit two images, such as scan_1_2.png for scan_1.png and for scan_1_2.png; say which with --pattern"
    ends(said, "masks", *sources, *EVERY, output=tmp_path / "out")
    output = run("masks", *sources, *EVERY, "--pattern", "{image}_{instance}.png", output=tmp_path / "pattern")
    assert [Path(row["image"]).name.split("--")[2] for row in metadata(output)] == ["scan_1"]
    ends(said, "masks", *sources, *EVERY, "--pattern", "{image}*.png", output=tmp_path / "out")
    write(tmp_path / "masks" / "scan_1.png", block(SHAPE, (12, 19), (2, 9)))  # now each is called as its image is
    capsys.readouterr()
    output = run("masks", *sources, *EVERY, output=tmp_path / "out")
    assert "fit two images" in capsys.readouterr().out
    assert {row["image"].split("--")[-2]: int(mask_of(output, row)[12:].sum()) for row in metadata(output)} == {
        "scan_1": 49,
        "scan_1_2": 0,
    }


def test_hidden_files_are_no_pictures(tmp_path: Path) -> None:
    sources = folders(tmp_path, "a")
    write(tmp_path / "masks" / "a.png", block(SHAPE, (2, 9), (2, 9)))
    for folder in ("images", "masks"):
        (tmp_path / folder / "._a.png").write_bytes(b"\0\5\x16\7")
        (tmp_path / folder / "__MACOSX").mkdir()
        (tmp_path / folder / "__MACOSX" / "a.png").write_bytes(b"\0\5\x16\7")
    assert len(metadata(run("masks", *sources, *EVERY, output=tmp_path / "out"))) == 1


@pytest.mark.parametrize("name", ["肝" * 60, "a" * 200, "ü" * 100, "x" * 5000, "a\udc80b", "\ud800"])
def test_names_become_names_that_file_systems_take(name: str) -> None:
    part = safe_name(name)
    whole = fitting("--".join([part] * 4))
    assert len(f"{whole}_000.png".encode()) <= 255 and whole != fitting("--".join([part] * 3))
    assert safe_name(name) != safe_name(name + "b")


# ---------------------------------------------------------------- pixels


def test_thresholds_take_jpegs(tmp_path: Path) -> None:
    sources = folders(tmp_path, "a")
    mask = block(SHAPE, (3, 13), (5, 19))
    write(tmp_path / "masks" / "a.jpg", mask)
    ends("a.jpg: more than two values.*--threshold 128", "masks", *sources, *EVERY, output=tmp_path / "out")
    output = run("masks", *sources, *EVERY, "--threshold", 128, output=tmp_path / "out")
    (row,) = metadata(output)
    assert (mask_of(output, row) == (mask > 0)).all()


@pytest.mark.parametrize("kind", ["L", "LA", "RGB", "I;16", "jpg"])
def test_grey_stays_grey_and_colours_stay_colours(kind: str, tmp_path: Path) -> None:
    grey = picture()[..., 0]
    ending = "jpg" if kind == "jpg" else "png"
    sources = ("--images", tmp_path / "images", "--masks", tmp_path / "masks")
    (tmp_path / "images").mkdir()
    source = {
        "LA": lambda: Image.merge("LA", (Image.fromarray(grey), Image.new("L", (30, 24), 200))),
        "RGB": lambda: Image.fromarray(np.dstack([grey] * 3)),
        "I;16": lambda: Image.fromarray(grey.astype(np.uint16) * 256),
    }.get(kind, lambda: Image.fromarray(grey))()
    source.save(tmp_path / "images" / f"a.{ending}")
    write(tmp_path / "masks" / "a.png", block(SHAPE, (2, 9), (2, 9)))
    output = run("masks", *sources, *EVERY, output=tmp_path / "out")
    written = image_of(output, metadata(output)[0])
    assert written.shape == (SHAPE if kind != "RGB" else (*SHAPE, 3))
    if ending == "png" and kind != "I;16":
        assert (written == (grey if kind != "RGB" else np.dstack([grey] * 3))).all()


# ---------------------------------------------------------------- COCO


def coco(tmp_path: Path, *annotations: dict, **image) -> tuple:
    write(tmp_path / "images" / "a.png", picture())
    known = {"image_id": 1, "category_id": 1, "segmentation": [[2, 2, 9, 2, 9, 9, 2, 9]]}
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 24, "width": 30} | image, {"id": 2, "file_name": "/"}],
        "categories": [{"id": 1, "name": "o"}, {"id": 2, "name": "\ud800"}],
        "annotations": [known | {"id": number} | one for number, one in enumerate(annotations)],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    return "coco", "--annotations", tmp_path / "a.json", "--images", tmp_path / "images", *EVERY


BAD = [
    ({"segmentation": [[float("inf"), 1, 9, 1, 9, 9]]}, "has the coordinate inf"),
    ({"segmentation": [[float("nan"), 1, 9, 1, 9, 9]]}, "has the coordinate nan"),
    ({"segmentation": [[3e9, 1, 9, 1, 9, 9]]}, r"has the coordinate 3e\+09"),
    ({"segmentation": [[int("9" * 400), 1, 9, 1, 9, 9]]}, "is not"),
    ({"segmentation": [[1, 1, 9, 1, 9]]}, "is not"),
    ({"segmentation": [["x", 1, 9, 1, 9, 9]]}, "is not"),
    ({"segmentation": [[1, 2, 3, 4]]}, "three points"),
    ({"segmentation": "polygon"}, "neither polygons nor run lengths"),
    ({"segmentation": {"size": [30, 24], "counts": [720]}}, r"\[30, 24\]"),
    ({"segmentation": {"size": [24, 30], "counts": [5, 5]}}, "do not add up"),
    ({"segmentation": {"size": [24, 30], "counts": [-5, 725]}}, "do not add up"),
    ({"segmentation": {"size": [24, 30], "counts": "~~~~~~"}}, "do not add up"),
    ({"segmentation": {"size": [24, 30], "counts": "o" * 99}}, "do not add up"),
    ({"category_id": 3}, "is of category 3, which is not listed"),
    ({"category_id": 2}, "holds what is no letter"),
    ({"image_id": 2}, "its file name / names a folder"),
    ({"image_id": 8}, "is of image 8, which is not listed"),
]


@pytest.mark.parametrize("bad, said", BAD)
def test_a_bad_annotation_is_named_and_costs_no_other(bad: dict, said: str, tmp_path: Path, capsys) -> None:
    output = run(*coco(tmp_path, bad, {}), output=tmp_path / "out")
    (row,) = metadata(output)
    assert (mask_of(output, row) == (block(SHAPE, (2, 9), (2, 9)) > 0)).all()
    out = capsys.readouterr().out
    assert "1 annotation(s) are bad and left out: " in out and "annotation 0" in out
    ends(f"no annotation that can be used: .*{said}", *coco(tmp_path, bad), output=tmp_path / "none")


def test_parts_that_enclose_nothing_are_left_out(tmp_path: Path, capsys) -> None:
    parts = [[1, 1, 5, 5], [2, 2, 9, 2, 9, 9, 2, 9]]
    output = run(*coco(tmp_path, {"segmentation": parts}), output=tmp_path / "out")
    assert mask_of(output, metadata(output)[0]).sum() == 49
    assert "1 part(s) of polygons have fewer than three points" in capsys.readouterr().out


def test_crowds_alone(tmp_path: Path) -> None:
    words = coco(tmp_path, {"iscrowd": 1}, {"iscrowd": 1})
    ends("all 2 annotation.s. with a mask are of crowds; --crowd keeps them", *words, output=tmp_path / "out")
    assert len(metadata(run(*words, "--crowd", output=tmp_path / "out"))) == 2


@pytest.mark.parametrize("size", [{"height": None, "width": None}, {"height": "24", "width": "30"}, {"height": 24.0}])
def test_sizes_however_they_are_listed(size: dict, tmp_path: Path) -> None:
    assert len(metadata(run(*coco(tmp_path, {}, **size), output=tmp_path / "out"))) == 1


@pytest.mark.parametrize("size", [{"height": 0}, {"height": -24}, {"width": int("9" * 400)}, {"width": [30]}])
def test_sizes_that_are_none(size: dict, tmp_path: Path) -> None:
    ends("its size is listed as", *coco(tmp_path, {}, **size), output=tmp_path / "out")


def test_polygons_across_the_border_are_cut_off_there() -> None:
    large, origin = np.zeros((3 * 24, 3 * 30), np.uint8), np.array([30, 24])
    for part in ([-12, -7, 20, -7, 20, 11, -12, 11], [10, 5, 50, 5, 50, 40, 10, 40], [-9, -9, 39, -9, 39, 33, -9, 33]):
        corners = np.reshape(part, (-1, 2))
        large[:] = 0
        (left, top), (right, bottom) = corners.min(axis=0) + origin, corners.max(axis=0) + origin
        large[top:bottom, left:right] = 1
        assert (coco_mask_of([part], 24, 30, "it") == large[24:48, 30:60]).all()


# ---------------------------------------------------------------- splits, cases, workers, tables


def test_auto_takes_the_seed_that_fills_the_splits(tmp_path: Path, capsys) -> None:
    for number in range(3):
        write(tmp_path / "images" / f"p{number}.png", picture(seed=number))
        write(tmp_path / "masks" / f"p{number}.png", block(SHAPE, (2, 9), (2, 9)))
    sources = ("masks", "--images", tmp_path / "images", "--masks", tmp_path / "masks", "--case", "(.+)")
    output = run(*sources, "--split_seed", "auto", output=tmp_path / "out")
    assert [len(index(output, split)) for split in ("train", "val", "test")] == [1, 1, 1]
    said = capsys.readouterr().out
    seed = int(said.partition("--split_seed ")[2].split()[0])
    assert "would give" not in said
    again = run(*sources, "--dataset", "out", "--split_seed", seed, output=tmp_path / "again")
    assert [len(index(again, split)) for split in ("train", "val", "test")] == [1, 1, 1]
    with pytest.raises(SystemExit):
        run(*sources, "--split_seed", "some", output=tmp_path / "bad")


def test_what_is_wrong_with_many_cases_is_said_once_with_a_count(tmp_path: Path, capsys) -> None:
    sources = folders(tmp_path, "case1", "case2", "case3", "case4", "case5")
    for number in range(1, 6):
        write(tmp_path / "masks" / f"case{number}.png", block(SHAPE, (2, 9), (2, 9)))
    for number in (1, 2, 4):
        (tmp_path / "masks" / f"case{number}.png").write_bytes(b"no image")
    write(tmp_path / "masks" / "case5.png", block((5, 5), (1, 2), (1, 2)))
    with pytest.raises(SystemExit) as end:
        run("masks", *sources, *EVERY, output=tmp_path / "out")
    said = capsys.readouterr().out + str(end.value.code)
    assert said.count("not an image") == 1 and "case1.png: not an image" in said
    assert "4 of 5 case(s) could not be converted, such as case1: " in said
    assert "(and 2 more in the same way: case2, case4)" in said and said.count("bad case: case5: ") == 1
    run("masks", *sources, *EVERY, "--skip_bad_cases", output=tmp_path / "out")
    said = capsys.readouterr().out
    assert said.count("left out: case") == 2 and "(and 2 more in the same way: case2, case4)" in said


@dataclass(frozen=True)
class Deadly:
    """A converter that a case ends the process of, as a fault in a decoder does."""

    def pictures(self, case: Case, tally: Counter) -> Iterator[Picture]:
        if case.name == "bad":
            os._exit(11)
        yield Picture(case.name, picture(), [Object("o", 0, block(SHAPE, (2, 9), (2, 9)) > 0)])


def test_a_worker_that_dies_costs_its_case_alone(tmp_path: Path, capsys) -> None:
    cases = [Case(name, name, ()) for name in ("a", "b", "bad", "c", "d", "e")]
    convert(
        *(cases, Deadly(), tmp_path / "out", "set", Splits((1, 0, 0))),
        sources=[],
        num_workers=2,
        skip_bad_cases=True,
    )
    assert {row["case"] for row in metadata(tmp_path / "out")} == {"a", "b", "c", "d", "e"}
    assert "left out: bad: its process was killed" in capsys.readouterr().out
    with pytest.raises(DataError, match="1 of 6 case.s. could not be converted: bad: its process was killed"):
        convert(cases, Deadly(), tmp_path / "out", "set", Splits((1, 0, 0)), sources=[], num_workers=2)


def test_tables_with_semicolons(tmp_path: Path) -> None:
    table = tmp_path / "classes.csv"
    table.write_text("name;value\nliver;1\nspleen;2\n")
    assert parse_classes([str(table)]) == ((("liver", (1,)), ("spleen", (2,))), False)
    table.write_text('liver,1\n"spleen' + "x" * 200_000)
    with pytest.raises(UsageError, match=r"classes.csv, line 2: is no row of a table"):
        parse_classes([str(table)])
    sources = folders(tmp_path, "a")
    write(tmp_path / "masks" / "a.png", block(SHAPE, (2, 9), (2, 9)))
    output = run("masks", *sources, *EVERY, output=tmp_path / "out")
    path = output / "metadata.csv"
    path.write_text(path.read_text().replace(",", ";").replace("masks/", "masks\\"))
    mask = index(output).popitem()[1][0]
    assert read_metadata(path)[mask]["class"] == "object"


def test_large_label_maps(tmp_path: Path, monkeypatch) -> None:
    """Above what Pillow opens, 179 million pixels; made smaller here by lowering its limit."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    write(tmp_path / "images" / "a.png", picture())
    palette = Image.fromarray(block(SHAPE, (2, 9), (2, 9), value=1), "P")
    palette.putpalette([255, 255, 255, 0, 0, 0])
    (tmp_path / "labels").mkdir()
    buffer = io.BytesIO()
    palette.save(buffer, "PNG")
    (tmp_path / "labels" / "a.png").write_bytes(buffer.getvalue())
    sources = ("--images", tmp_path / "images", "--labels", tmp_path / "labels")
    output = run("labelmaps", *sources, *EVERY, output=tmp_path / "out")
    assert mask_of(output, metadata(output)[0]).sum() == 49
    assert cv2.imread(str(tmp_path / "labels" / "a.png"), 0)[0, 0] == 255  # as colours, the ground would be the object
