"""check_index, as a user runs it: every kind of problem, the summary, the clean copy and the contact sheet."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from sam_med2d import drawing
from sam_med2d.commands import check_index
from sam_med2d.data.datasets import TestingDataset, TrainingDataset
from sam_med2d.data.index import read_index
from sam_med2d.data.metadata import COLUMNS, read_metadata


def write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", array)[1].tobytes())


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (20, 30, 3), np.uint8)


def square(side: int, left: int = 0) -> np.ndarray:
    mask = np.zeros((20, 30), np.uint8)
    mask[:side, left : left + side] = 255
    return mask


class Data:
    """A data folder of 4 training and 2 test images, two masks each, all of it well; and its table."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.groups: dict[str, dict[str, list[str]]] = {"train": {}, "test": {}}
        self.rows: dict[str, dict] = {}
        for i in range(6):
            split = "train" if i < 4 else "test"
            image = f"images/{i}.png"
            write(folder / image, picture(i))
            self.groups[split][image] = [f"masks/{i} {k}.png" for k in "ab"]
            for k, mask in enumerate(self.groups[split][image]):
                write(folder / mask, square(4 + 8 * k, i + 5 * k))
                self.rows[mask] = {
                    "mask": mask,
                    "image": image,
                    "dataset": "D",
                    "modality": "ct",
                    "case": f"c{i}",
                    "class": ["liver", "spleen"][k],
                }
        self.save()

    def save(self, table: bool = True) -> None:
        (self.folder / "image2label_train.json").write_text(json.dumps(self.groups["train"]))
        by_mask = {mask: image for image, masks in self.groups["test"].items() for mask in masks}
        (self.folder / "label2image_test.json").write_text(json.dumps(by_mask))
        (self.folder / "metadata.csv").unlink(missing_ok=True)
        if table:
            with open(self.folder / "metadata.csv", "w", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS, restval="")
                writer.writeheader()
                writer.writerows(self.rows.values())

    def content(self) -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}


@pytest.fixture
def data(tmp_path: Path) -> Data:
    return Data(tmp_path / "data")


def check(data: Data, *more: str | Path, workers: int = 1) -> int | str:
    """-> the exit status, or the error."""
    before = data.content()
    try:
        check_index.main([str(data.folder), "--num_workers", str(workers), *map(str, more)])
    except SystemExit as end:
        return end.code
    finally:
        assert data.content() == before  # files are only read, and none is added
    return 0


def test_all_is_well_and_the_summary_says_what_there_is(data, capsys):
    assert check(data) == 0
    said = capsys.readouterr().out
    assert "train: 4 images, 8 masks" in said and "test: 2 images, 4 masks" in said and "problems: none" in said
    train = said[said.index("train:") :]
    assert re.search(r"modality +masks +images +median area\n +ct +8 +4 ", train)
    assert re.search(r"liver +4 +4 +2.67 %", train) and re.search(r"spleen +4 +4 +24.00 %", train)  # 16 and 144 of 600
    assert "1 to 10 % 4, 10 to 50 % 4" in train


def test_without_a_table_classes_are_what_names_have_beyond_their_images(data, capsys):
    data.save(table=False)
    assert check(data) == 0
    said = capsys.readouterr().out
    assert "modality: not known" in said
    assert re.search(r"class +masks +images +median area\n +a +4 +4 .*\n +b +4 +4 ", said[said.index("train:") :])


def test_names_that_say_nothing_say_so(data, capsys):
    data.save(table=False)
    for masks in data.groups["train"].values():
        for k, mask in enumerate(masks):
            masks[k] = f"masks/no{k} {Path(mask).name}"
            (data.folder / mask).rename(data.folder / masks[k])
    data.save(table=False)
    assert check(data, "--splits", "train") == 0
    assert "class: not known" in capsys.readouterr().out


def test_a_class_that_the_table_of_names_lacks_is_a_problem(data, capsys):
    groups: dict[str, list[str]] = {}
    for i, (image, masks) in enumerate(data.groups["train"].items()):
        stem = f"ct_00--KiTS--c{i}--z_0001"
        groups[f"images/{stem}.png"] = [f"masks/{stem}--000{k}_000.png" for k in (1, 3)]
        (data.folder / image).rename(data.folder / f"images/{stem}.png")
        for old, new in zip(masks, groups[f"images/{stem}.png"]):
            (data.folder / old).rename(data.folder / new)
    data.groups["train"] = groups
    data.save(table=False)
    assert check(data, "--splits", "train") == 0
    assert re.search(r"KiTS 1 +4 +4 .*\n +KiTS 3 +4 +4 ", capsys.readouterr().out)
    names = data.folder / "SAMed2D_v1_class_mapping_id.json"
    names.write_text(json.dumps({"KiTS": {"kidney": 1}}))
    assert check(data, "--splits", "train") == 1
    said = capsys.readouterr().out
    assert f"{names}: has no class 3 of data set KiTS, which masks/ct_00--KiTS--c0--z_0001--0003_000.png is of" in said
    assert "problems: 1 metadata" in said


def break_missing(data):
    (data.folder / "masks/0 a.png").unlink()
    (data.folder / "images/2.png").unlink()
    (data.folder / "masks/2 b.png").unlink()
    lines = ["masks/0 a.png: does not exist", "images/2.png: does not exist", "masks/2 b.png: does not exist"]
    return lines, {"images/2.png"}, {"masks/0 a.png"}


def break_unreadable(data):
    path = data.folder / "images/5.png"
    path.write_bytes(path.read_bytes()[:-30])
    (data.folder / "masks/1 b.png").write_bytes(b"")
    return ["images/5.png: truncated", "masks/1 b.png: not an image"], {"images/5.png"}, {"masks/1 b.png"}


def break_size(data):
    write(data.folder / "masks/3 a.png", square(4).T)
    return ["masks/3 a.png: mask of 20 x 30 pixels, but .*images/3.png has 30 x 20"], set(), {"masks/3 a.png"}


def break_values(data):
    write(data.folder / "masks/3 a.png", square(4) // 2 + square(10) // 3)
    return ["masks/3 a.png: more than two values"], set(), {"masks/3 a.png"}


def break_empty(data):
    write(data.folder / "masks/0 b.png", square(0))
    return ["masks/0 b.png: has no object"], set(), {"masks/0 b.png"}


def break_full(data):
    write(data.folder / "masks/0 b.png", np.full_like(square(4), 255))
    return ["masks/0 b.png: fills its picture"], set(), {"masks/0 b.png"}


def break_orientation(data):
    """A photo turned by 180 degrees, whose masks may be made on either."""
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(picture(3)).save(data.folder / "images/3.png", exif=exif)
    return ["images/3.png: its EXIF orientation is 3, and its masks may be made on"], {"images/3.png"}, set()


def break_duplicate(data):
    """Of two splits, of one split, of one image."""
    write(data.folder / "images/0.png", picture(4))
    write(data.folder / "images/2.png", picture(1))
    write(data.folder / "masks/3 b.png", square(4, 3))  # as 3 a
    lines = [
        r"images/0.png \(train\): has the pixels of .*images/4.png, which is in test",
        r"images/2.png \(train\): has the pixels of .*images/1.png\n",
        "masks/3 b.png: has the pixels of .*masks/3 a.png",
    ]
    return lines, {"images/0.png", "images/2.png"}, {"masks/3 b.png"}


def break_listed(data):
    data.groups["train"]["images/1.png"].append("masks/0 a.png")
    data.groups["train"]["images/3.png"].append("masks/3 a.png")
    data.save()
    lines = ["lists masks/0 a.png more than once", "lists masks/3 a.png more than once"]
    return lines, set(), {("images/1.png", "masks/0 a.png")}


def break_metadata(data):
    del data.rows["masks/1 a.png"]
    data.save()
    return ["metadata.csv: has no row for masks/1 a.png"], set(), set()


def break_case(data):
    for mask in ("masks/4 a.png", "masks/4 b.png"):
        data.rows[mask]["case"] = "c1"
    data.save()
    return ["case D c1: is in test and in train"], {"images/1.png"}, set()


def break_disagree(data):
    groups = {"images/4.png": ["masks/4 a.png"], "images/5.png": ["masks/5 a.png", "masks/5 b.png"]}
    (data.folder / "image2label_test.json").write_text(json.dumps(groups))
    return [r"label2image_test.json and image2label_test.json: 1 mask\(s\) are listed by one alone"], set(), set()


BREAKS = [
    break_missing,
    break_unreadable,
    break_size,
    break_values,
    break_empty,
    break_full,
    break_orientation,
    break_duplicate,
    break_listed,
    break_metadata,
    break_case,
    break_disagree,
]


@pytest.mark.parametrize("harm", BREAKS)
def test_each_problem_is_found_named_and_left_out(data, tmp_path, capsys, harm):
    lines, bad_images, bad_masks = harm(data)
    kind = harm.__name__.removeprefix("break_")
    clean = tmp_path / "data" / "clean" if kind in ("case", "size") else tmp_path / "elsewhere" / "clean"
    before = data.content()
    assert check(data, "--allow", kind) == 0
    capsys.readouterr()
    try:
        check_index.main([str(data.folder), "--num_workers", "1", "--fix", str(clean)])
        raise AssertionError("exit status 0")
    except SystemExit as end:
        assert end.code == 1
    assert before.items() <= data.content().items()
    said = capsys.readouterr().out
    for line in lines:
        assert re.search(line, said), line
    assert f"problems: {len(lines)} {kind}\n" in said

    # The copy: opens, trains, and is without what is bad.
    for split, dataset in (("train", TrainingDataset(clean, 32)), ("test", TestingDataset(clean, 32))):
        index = read_index(clean, split)
        original = lambda name: Path(index.path(name)).resolve().relative_to(data.folder.resolve()).as_posix()
        found = {original(image): [*map(original, masks)] for image, masks in index}
        expected = {
            image: [mask for mask in dict.fromkeys(masks) if mask not in bad_masks and (image, mask) not in bad_masks]
            for image, masks in data.groups[split].items()
            if image not in bad_images
        }
        assert found == expected
        for i in range(len(dataset)):
            assert not dataset[(0, i) if split == "train" else i].skipped
    rows = read_metadata(clean / "metadata.csv")
    kept = [mask for split in ("train", "test") for _, masks in read_index(clean, split) for mask in masks]
    assert len(rows) == len(set(kept)) - (kind == "metadata")
    if kind != "metadata":
        assert rows.column("class").take(rows.rows(kept[:2])).to_pylist()[0] in ("liver", "spleen")
    capsys.readouterr()
    if kind != "metadata":  # no file can tell what is missing in the table
        assert check_index.run(check_index.parse_args([str(clean), "--num_workers", "1"]))


def test_several_processes_find_the_same(data, capsys):
    for harm in (break_missing, break_size, break_case):
        harm(data)
    said = []
    for workers in (1, 2):
        assert check(data, workers=workers) == 1
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] and "problems: 3 missing, 1 size, 1 case" in said[0]


def test_images_and_objects_that_show_nothing(data, tmp_path, capsys):
    """A window that is not that of the data: an image all white but for noise, and an object in a saturated part."""
    noise = np.random.default_rng(0).integers(251, 256, (20, 30, 3), np.uint8)
    write(data.folder / "images/2.png", noise)
    half = picture(3)
    half[:, :14] = 255  # masks/3 a.png is at 3 .. 7, masks/3 b.png reaches beyond
    write(data.folder / "images/3.png", half)
    assert check(data) == 1
    said = capsys.readouterr().out
    assert "problems: 2 flat" in said and "images/2.png: is of almost one value" in said
    assert re.search(r"masks/3 a\.png: its object equals what is around it in .*images/3\.png", said)
    assert check(data, "--allow", "flat") == 0
    assert check(data, "--fix", tmp_path / "clean") == 1
    left = json.loads((tmp_path / "clean" / "image2label_train.json").read_text())
    assert [len(masks) for _, masks in sorted(left.items())] == [2, 2, 1]
    noise[19, 29] = 200  # one spot is to be seen, far from both objects
    write(data.folder / "images/2.png", noise)
    capsys.readouterr()
    assert check(data, "--splits", "train") == 1
    said = capsys.readouterr().out
    assert "is of almost one value" not in said and "masks/2 b.png: its object equals" in said


def test_long_lists_are_cut(data, capsys):
    for i in range(4):
        write(data.folder / f"masks/{i} a.png", square(0))
    assert check(data, "--shown", "1", "--splits", "train") == 1
    said = capsys.readouterr().out
    assert said.count("has no object") == 1 and "... and 3 more" in said and "test:" not in said
    assert check(data, "--shown", "-1") == 1
    assert capsys.readouterr().out.count("has no object") == 4


def test_contact_sheet(data, tmp_path, capsys):
    (data.folder / "images/0.png").write_bytes(b"no image")
    (data.folder / "masks/1 a.png").write_bytes(b"no image")
    write(data.folder / "images/2.png", np.zeros((20, 30, 3), np.uint8))
    assert check(data, "--sheet", tmp_path / "sheets/sheet.png", "--sheet_images", "12") == 1
    sheet = cv2.imread(str(tmp_path / "sheets/sheet.png"))
    assert "5 random images" in capsys.readouterr().out and sheet.shape[1] == 5 * 256
    third = sheet[18:, 256:512]  # images/2.png, black, is the second that can be read
    assert {tuple(pixel) for pixel in third.reshape(-1, 3).tolist()} > {(0, 0, 0)}  # its masks are seen
    assert check(data, "--sheet", tmp_path / "other.png", "--sheet_images", "2", "--seed", "1") == 1
    assert cv2.imread(str(tmp_path / "other.png")).shape[1] == 2 * 256


def test_a_contact_sheet_has_one_colour_a_class_and_a_legend(tmp_path, capsys):
    index: dict[str, list[str]] = {}
    for number, classes in enumerate((("liver", "spleen"), ("spleen",), ("liver",))):
        write(tmp_path / f"images/{number}.png", picture(number))
        index[f"images/{number}.png"] = [f"masks/{number}_{name}_000.png" for name in classes]
        for name in classes:
            mask = np.zeros((20, 30), np.uint8)
            mask[5:15, slice(4, 12) if name == "liver" else slice(16, 28)] = 255
            write(tmp_path / f"masks/{number}_{name}_000.png", mask)
    (tmp_path / "image2label_train.json").write_text(json.dumps(index))
    check_index.main([str(tmp_path), "--sheet", str(tmp_path / "sheet.png"), "--num_workers", "1"])
    assert "3 random images with their masks, a colour a class" in capsys.readouterr().out
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    assert sheet.shape == (18 + 256 + drawing.LEGEND_ROW, 3 * 256, 3)

    def shown(colour: tuple[int, int, int]) -> list[bool]:
        """In each tile, and in the legend."""
        parts = [sheet[: 18 + 256, 256 * i : 256 * (i + 1)] for i in range(3)] + [sheet[18 + 256 :]]
        return [bool((part == colour).all(axis=2).any()) for part in parts]

    assert shown(drawing.colour_of(0)) == [True, False, True, True]
    assert shown(drawing.colour_of(1)) == [True, True, False, True]


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("image2label_train.json", "[", "image2label_train.json: not valid JSON"),
        ("metadata.csv", "a,b\n", None),
    ],
)
def test_broken_tables(data, capsys, name, text, message):
    (data.folder / name).write_text(text)
    status = check(data)
    if message:
        assert message in status and "\n" not in status
    else:
        assert status == 1 and "metadata.csv: not a table" in capsys.readouterr().out


def test_what_cannot_be_done_is_said(data, tmp_path):
    assert "no index of split 'x'" in check(data, "--splits", "x")
    assert "is the folder that is checked" in check(data, "--fix", data.folder)
    (tmp_path / "empty").mkdir()
    for folder, message in (
        (tmp_path / "empty", "has no image2label_"),
        (tmp_path / "nowhere", "there is no such folder"),
    ):
        with pytest.raises(SystemExit, match=message):
            check_index.main([str(folder)])


def test_root_is_found_though_the_first_image_is_missing(data, capsys):
    data.groups["train"] = {
        f"data/{image}": [f"data/{mask}" for mask in masks] for image, masks in data.groups["train"].items()
    }
    data.save(table=False)
    (data.folder / "images/0.png").unlink()
    assert check(data) == 1
    assert "problems: 1 missing" in capsys.readouterr().out


def test_regions_that_are_alike_in_a_slice_are_no_duplicates(tmp_path, capsys):
    """A core that fills its tumour in one slice, as nnU-Net's regions do; and copies, which are of classes apart."""
    index: dict[str, list[str]] = {}
    rows = {"tumour": ((2, 18), (2, 10)), "core": ((5, 9), (2, 10)), "liver": ((2, 6), (2, 10))}
    for number in range(2):
        write(tmp_path / f"{number}.png", picture(number))
        index[f"{number}.png"] = []
        for name, (top, bottom) in ((name, spans[number]) for name, spans in rows.items()):
            mask = np.zeros((20, 30), np.uint8)
            mask[top:bottom, 5 : 25 if name != "liver" or number else 28] = 255
            write(tmp_path / f"{number}_{name}_000.png", mask)
            index[f"{number}.png"].append(f"{number}_{name}_000.png")
    (tmp_path / "image2label_train.json").write_text(json.dumps(index))
    with pytest.raises(SystemExit):
        check_index.main([str(tmp_path), "--num_workers", "1"])
    said = capsys.readouterr().out
    assert "1_liver_000.png: has the pixels of" in said and "1_core_000.png: has the pixels" not in said


def test_classes_and_cases_are_those_that_test_py_knows(tmp_path, capsys):
    """Of an index that people wrote: by the table of names, by what names have beyond the image's, and by --case."""
    names = ["ct_00--KiTS--p_0001--x_0001", "mine_7"]
    masks = ["ct_00--KiTS--p_0001--x_0001--0003_000.png", "mine_7_spleen_000.png"]
    for number, (image, mask) in enumerate(zip(names, masks)):
        write(tmp_path / f"{image}.png", picture(number))
        write(tmp_path / mask, np.eye(20, 30, dtype=np.uint8) * 255)
    index = {f"{image}.png": [mask] for image, mask in zip(names, masks)}
    (tmp_path / "image2label_train.json").write_text(json.dumps(index))
    (tmp_path / "names.json").write_text(json.dumps({"KiTS": {"tumour": 3}}))
    for flags, classes in (
        ((), ("KiTS 3", "spleen")),
        (("--class_names", tmp_path / "names.json"), ("tumour", "spleen")),
    ):
        check_index.main([str(tmp_path), "--num_workers", "1", *map(str, flags)])
        said = capsys.readouterr().out
        assert all(re.search(rf"^  {name} +1 +1 ", said, re.MULTILINE) for name in classes)
    with pytest.raises(SystemExit, match="--case x: needs a group"):
        check_index.main([str(tmp_path), "--num_workers", "1", "--case", "x"])


ENDED_BEFORE_IT_BEGAN = """
import multiprocessing, sys, time
from sam_med2d.commands import check_index
from sam_med2d.data import check

def start(*told, start_worker=check._start_worker):
    if multiprocessing.current_process()._identity[-1] == 2:
        time.sleep(1.5)
    start_worker(*told)

check._start_worker = start
check_index.main([sys.argv[1], "--num_workers", "2"])
"""


def test_a_worker_that_begins_when_all_is_done_does_not_hold_the_command_up(tmp_path):
    """On a busy machine one worker may have looked at all before the other has begun, and is then told to end."""
    write(tmp_path / "0.png", picture(0))
    write(tmp_path / "0_a_000.png", np.eye(20, 30, dtype=np.uint8) * 255)
    (tmp_path / "image2label_train.json").write_text(json.dumps({"0.png": ["0_a_000.png"]}))
    command = [sys.executable, "-c", ENDED_BEFORE_IT_BEGAN, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    assert done.returncode == 0 and "problems: none" in done.stdout, done.stderr
