"""scripts/make_index.py: splits, resuming, and the sources of pictures (masks, labelmaps, coco, sa-med2d)."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("pycocotools", reason="the extra data is not installed")
from PIL import Image
from pycocotools import mask as rle

from sam_med2d.convert.classes import parse_classes
from sam_med2d.convert.objects import Preparation
from sam_med2d.convert.patterns import compile_pattern, groups_of, matches
from sam_med2d.convert.splits import Splits, read_split_file
from sam_med2d.convert.writer import safe_name
from sam_med2d.data.metadata import read_metadata
from sam_med2d.errors import UsageError
from tests.conftest import ROOT, fails
from tests.convert.helpers import (
    block,
    contents,
    image_of,
    index,
    make_index,
    mask_of,
    metadata,
    picture,
    run,
    training_batch,
    write,
)

EVERYTHING = ("--ratios", 1, 0, 0)


def error_of(*arguments: object, **options) -> str:
    """The one line a command ends with."""
    return fails(lambda: run(*arguments, **options))


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    """Three patients of two pictures, each with a liver and two lesions; one picture has a spleen too."""
    for patient in "abc":
        for number in (1, 2):
            name = f"{patient}_{number}"
            write(tmp_path / "photos" / f"{name}.jpg", picture(seed=ord(patient) + number))
            write(tmp_path / "masks" / f"{name}_liver.png", block((24, 30), (2, 12), (3, 13)))
            for instance in range(2):
                write(
                    tmp_path / "masks" / f"{name}_lesion_{instance:03d}.png",
                    block((24, 30), (14, 20), (2 + 10 * instance, 9 + 10 * instance)),
                )
    write(tmp_path / "masks" / "a_1_spleen.png", block((24, 30), (1, 9), (20, 28), value=1))
    return tmp_path


def of_masks(folder: Path, *flags: object, **options) -> Path:
    options.setdefault("output", folder / "out")
    return run(
        "masks", "--images", folder / "photos", "--masks", folder / "masks", "--case", r"(.+)_\d+", *flags, **options
    )


# ---------------------------------------------------------------- splits


def test_a_case_stays_where_it_is_when_others_are_added():
    splits = Splits((0.6, 0.2, 0.2), seed=3)
    of = {name: splits.of("set", name, name)[0] for name in map(str, range(2000))}
    counts = Counter(of.values())
    assert abs(counts["train"] - 1200) < 80 and abs(counts["val"] - 400) < 60 and abs(counts["test"] - 400) < 60
    assert {name: splits.of("set", name, name)[0] for name in map(str, range(0, 2000, 7))}.items() <= of.items()
    assert [Splits(seed=4).of("set", str(i), "")[0] for i in range(50)] != [
        splits.of("set", str(i), "")[0] for i in range(50)
    ]


def sizes(output: Path) -> list[int]:
    """Images of train, val and test."""
    there = [(output / f"image2label_{split}.json").exists() for split in ("train", "val", "test")]
    return [len(index(output, split)) if is_there else 0 for split, is_there in zip(("train", "val", "test"), there)]


def test_three_cases_fill_three_splits_and_a_seed_that_leaves_one_empty_is_said(masks, capsys):
    of_masks(masks)
    said = capsys.readouterr().out
    assert sizes(masks / "out") == [2, 2, 2] and "no case fell" not in said
    chosen = int(said.partition("--split_seed ")[2].split()[0])
    assert json.loads((masks / "out/split_seed.json").read_text()) == {"split_seed": chosen}
    of_masks(masks, "--split_seed", 0)
    assert f"--split_seed {chosen} would give train 1, val 1, test 1" in capsys.readouterr().out


def where_cases_are(output: Path) -> dict[str, str]:
    images = {image: split for split in ("train", "val", "test") for image in index(output, split)}
    return {row["case"]: images[row["image"]] for row in metadata(output)}


def test_the_seed_stays_in_the_folder_so_that_no_case_moves(masks, capsys):
    """Seed 0 would fill all splits of eight cases, but the one that three of them needed stays."""
    output = of_masks(masks)
    before = where_cases_are(output)
    for patient in "defgh":
        write(masks / "photos" / f"{patient}_1.jpg", picture(seed=ord(patient)))
        write(masks / "masks" / f"{patient}_1_liver.png", block((24, 30), (2, 12), (3, 13)))
    of_masks(masks)
    assert before.items() < where_cases_are(output).items()
    others = where_cases_are(of_masks(masks, "--split_seed", 7))
    assert others != before and not before.items() < others.items()
    assert where_cases_are(of_masks(masks)) == others  # a seed that was given stays as well
    capsys.readouterr()
    (output / "split_seed.json").write_text('{"split_seed": "five"}')
    with pytest.raises(SystemExit, match="split_seed.json: has no whole number under 'split_seed'; give the seed"):
        of_masks(masks)


def test_two_cases_wait_for_a_third_before_a_seed_is_kept(masks, capsys):
    left = {path: path.read_bytes() for name in ("photos", "masks") for path in (masks / name).glob("c_*")}
    for path in left:
        path.unlink()
    output = of_masks(masks)
    assert not (output / "split_seed.json").exists()
    assert "as there are only 2 for 3 splits: add cases, choose --ratios" in capsys.readouterr().out
    for path, content in left.items():
        path.write_bytes(content)
    of_masks(masks)
    assert sizes(output) == [2, 2, 2] and (output / "split_seed.json").exists()


@pytest.mark.parametrize("count", [3, 4, 5, 6, 8, 12])
def test_every_split_has_a_case_from_three_cases_on(tmp_path, count):
    for start in range(20):
        groups = {("set", f"patient{start + number}") for number in range(count)}
        (tmp_path / str(start)).mkdir()
        splits = Splits(auto=True).settled(tmp_path / str(start), groups, set())
        assert {splits.of(*group, "")[0] for group in groups} == {"train", "val", "test"}


def test_a_source_that_names_its_test_cases_gives_no_others_to_the_test(tmp_path):
    splits = Splits((0.7, 0.1, 0.2), tested=frozenset({"nn"}))
    counts = Counter(splits.of("nn", str(i), "")[0] for i in range(2000))
    assert counts["test"] == 0 and abs(counts["val"] - 250) < 60
    assert Counter(splits.of("other", str(i), "")[0] for i in range(2000))["test"] > 300
    assert splits.of("nn", "x", "", given="test") == ["test"]
    alone = Splits((0, 0, 1), tested=frozenset({"nn"}))
    assert alone.of("nn", "x", "") == ["test"]


def test_folds_hold_out_each_case_once_and_never_the_test():
    splits = Splits((0.8, 0, 0.2), folds=4)
    test = 0
    for name in map(str, range(400)):
        folds = splits.of("set", name, name)
        held_out = folds.count("val")
        test += folds == ["test"] * 4
        assert folds == ["test"] * 4 or (held_out == 1 and folds.count("train") == 3)
    assert 50 < test < 110


def test_a_split_file_counts_and_every_case_must_be_in_it(tmp_path, masks):
    (tmp_path / "splits.json").write_text(json.dumps({"train": ["a"], "val": ["b"]}))
    said = error_of(
        "masks",
        "--images",
        masks / "photos",
        "--masks",
        masks / "masks",
        "--case",
        r"(.+)_\d+",
        "--split_file",
        tmp_path / "splits.json",
        output=tmp_path / "out",
    )
    assert "case 'c' is in no split" in said and not (tmp_path / "out").exists()
    (tmp_path / "splits.json").write_text(json.dumps({"train": ["a"], "val": ["b"], "test": ["c"]}))
    output = of_masks(masks, "--split_file", tmp_path / "splits.json")
    assert [len(index(output, split)) for split in ("train", "val", "test")] == [2, 2, 2]
    assert all("--a--" not in path and "--a_" not in path for path in index(output, "val"))
    (tmp_path / "splits.json").write_text(
        json.dumps([{"train": ["a", "b"], "val": ["c"]}, {"train": ["c"], "val": ["a", "b"]}])
    )
    output = of_masks(masks, "--split_file", tmp_path / "splits.json")
    assert len(index(output / "fold_0", "val")) == 2 and len(index(output / "fold_1", "val")) == 4
    assert not list(output.glob("*.json"))  # the indexes without folds are gone
    training_batch(output / "fold_1")
    for bad in ({"train": ["a"], "val": ["a"]}, {"training": ["a"]}, [], {"train": "a"}):
        (tmp_path / "splits.json").write_text(json.dumps(bad))
        with pytest.raises(UsageError, match="splits.json"):
            read_split_file(tmp_path / "splits.json")


def test_pictures_that_may_be_of_one_patient_are_never_split_unasked():
    assert groups_of(["x", "y"], None) == {"x": "x", "y": "y"}
    with pytest.raises(UsageError, match=r"are amos_1_2 and amos_1_3 of one patient\?.*every picture is a case"):
        groups_of(["amos_1_2", "amos_1_3", "other"], None)
    for names in (
        ["img-001", "img-002", "scan-001"],
        ["a1s1", "a1s2"],
        ["p1/slice 1", "p1/slice 2", "p2/slice 1"],
        ["amos_1_2", "amos_1_3", "other"],
        ["p1/x", "p1/y", "p2/x"],
    ):
        with pytest.raises(UsageError) as refused:
            groups_of(names, None)
        hint = re.search(r"give --case '(.*?)' \(", str(refused.value))[1]
        groups = groups_of(names, hint)  # which fits them all
        assert groups[names[0]] == groups[names[1]], hint
    with pytest.raises(UsageError, match="does not fit img-001; '(.*)' fits all names") as refused:
        groups_of(["img-001", "img-002"], r"(.+)_\d+")
    hint = re.search(r"; '(.*)' fits", str(refused.value))[1]
    assert set(groups_of(["img-001", "img-002"], hint).values()) == {"img"}
    assert groups_of(["p1/x", "p2/x"], None) == {"p1/x": "p1/x", "p2/x": "p2/x"}
    assert groups_of(["p1/x", "p1/y"], "(.+)/.*") == {"p1/x": "p1", "p1/y": "p1"}
    for bad, said in (("p1", "group"), ("(", "regular expression"), ("(p2)/.*", "does not fit")):
        with pytest.raises(UsageError, match=said):
            groups_of(["p1/x"], bad)


# ---------------------------------------------------------------- masks


def test_masks_become_an_index_that_trains(masks):
    output = of_masks(masks, "--modality", "photo", "--dataset", "mine", *EVERYTHING)
    rows = metadata(output)
    assert Counter(row["class"] for row in rows) == {"liver": 6, "lesion": 12, "spleen": 1}
    assert {row["case"] for row in rows} == {"a", "b", "c"} and {row["dataset"] for row in rows} == {"mine"}
    assert {(row["axis"], row["slice"], row["spacing"]) for row in rows} == {("", "", "")}
    assert [row["instance"] for row in rows if row["class"] == "lesion"] == ["0", "1"] * 6
    assert {row["mask"] for row in rows} == {mask for of_image in index(output).values() for mask in of_image}
    lesion = next(row for row in rows if "a_1" in row["mask"] and row["class"] == "lesion")
    assert (mask_of(output, lesion) == (block((24, 30), (14, 20), (2, 9)) > 0)).all()
    original = cv2.imread(str(masks / "photos" / "a_1.jpg"))
    assert (image_of(output, lesion) == original).all()
    assert read_metadata(output / "metadata.csv")[lesion["mask"]]["class"] == "lesion"
    training_batch(output)


def test_test_split_has_both_indexes(masks):
    output = of_masks(masks, "--ratios", 0, 0, 1)
    groups = index(output, "test")
    assert json.loads((output / "label2image_test.json").read_text()) == {
        m: image for image, ms in groups.items() for m in ms
    }
    assert not (output / "image2label_train.json").exists()


def test_patterns_find_masks_in_other_layouts(tmp_path):
    write(tmp_path / "all" / "benign" / "benign (1).png", picture())
    for ending in ("_mask", "_mask_1"):
        write(tmp_path / "all" / "benign" / f"benign (1){ending}.png", block((24, 30), (2, 12), (3, 13)))
    output = run(
        "masks",
        "--images",
        tmp_path / "all",
        "--masks",
        tmp_path / "all",
        "--pattern",
        "{image}_mask*.png",
        *EVERYTHING,
        output=tmp_path / "one",
    )
    assert [(row["class"], row["instance"]) for row in metadata(output)] == [("object", "0"), ("object", "1")] and len(
        index(output)
    ) == 1
    with pytest.raises(SystemExit, match="lacks {image}"):
        run(
            "masks",
            "--images",
            tmp_path / "all",
            "--masks",
            tmp_path / "all",
            "--pattern",
            "*.png",
            output=tmp_path / "one",
        )
    write(tmp_path / "photos" / "x.png", picture())
    write(tmp_path / "by_class" / "cup" / "x.png", block((24, 30), (2, 12), (3, 13)))
    write(tmp_path / "by_class" / "disc" / "x.png", block((24, 30), (2, 14), (3, 15)))
    output = run(
        "masks",
        "--images",
        tmp_path / "photos",
        "--masks",
        tmp_path / "by_class",
        "--pattern",
        "{class}/{image}.png",
        *EVERYTHING,
        output=tmp_path / "two",
    )
    assert sorted(row["class"] for row in metadata(output)) == ["cup", "disc"]
    assert matches("{a}-{a}.png", ["x-x.png", "x-y.png"], ("a",)) == [("x-x.png", {"a": "x"})]


def test_masks_without_an_image_and_wrong_patterns_are_refused(masks):
    sources = ("masks", "--images", masks / "photos", "--masks", masks / "masks", "--case", r"(.+)_\d+")
    write(masks / "masks" / "zzz.png", block((24, 30), (2, 12), (3, 13)))
    assert "1 mask(s) belong to no image" in error_of(*sources, output=masks / "out")
    assert "no mask belongs to an image" in error_of(*sources, "--pattern", "{image}-{class}.png", output=masks / "out")
    assert "{organ} is not one of {image}, {class}" in error_of(
        *sources, "--pattern", "{image}_{organ}.png", output=masks / "out"
    )
    assert "one folder" not in error_of(*sources, output=masks / "out")
    assert "images and masks alike" in error_of(
        "masks", "--images", masks / "photos", "--masks", masks / "photos", output=masks / "out"
    )
    assert "no such folder" in error_of(
        "masks", "--images", masks / "gone", "--masks", masks / "masks", output=masks / "out"
    )


def test_components_and_area_rule_of_the_paper():
    """8-connected: pieces that touch at a corner are one. 0.153 % of 256 x 256 is 100.3 pixels."""
    mask = np.zeros((256, 256), bool)
    mask[0:8, 0:8] = mask[8:16, 8:16] = True  # one piece, 128 pixels
    mask[100:110, 100:110] = True  # 100 pixels: just too small
    mask[150:160, 150:161] = True  # 110
    tally = Counter()
    kept = Preparation(components=True, min_area=0.153).objects([("x", mask), ("y", ~mask)], tally)
    assert [(one.class_name, one.instance, int(one.mask.sum())) for one in kept] == [
        ("x", 0, 128),
        ("x", 1, 110),
        ("y", 0, 65536 - 338),
    ]
    assert tally == {"objects below --min_area": 1}
    assert Preparation(min_aspect=0.5).keeps_shape(50, 100) and not Preparation(min_aspect=0.5).keeps_shape(49, 100)


# ---------------------------------------------------------------- running it again


def test_running_twice_changes_nothing_and_workers_change_nothing(masks):
    output = of_masks(masks)
    before, times = contents(output), {p: p.stat().st_mtime_ns for p in (output / "masks").rglob("*.png")}
    of_masks(masks)
    assert contents(output) == before
    assert {
        p: p.stat().st_mtime_ns for p in (output / "masks").rglob("*.png")
    } == times  # nothing was even written again
    assert contents(of_masks(masks, "--dataset", "out", output=masks / "other", workers=2)) == before


def test_new_data_moves_no_case_and_changed_data_is_converted_again(masks):
    output = of_masks(masks, "--ratios", 0.4, 0.3, 0.3)
    where = {
        row["image"]: split
        for split in ("train", "val", "test")
        if (output / f"image2label_{split}.json").exists()
        for row in metadata(output)
        if row["image"] in index(output, split)
    }
    for patient in "defgh":
        write(masks / "photos" / f"{patient}_1.jpg", picture(seed=ord(patient)))
        write(masks / "masks" / f"{patient}_1_liver.png", block((24, 30), (2, 12), (3, 13)))
    write(masks / "masks" / "a_1_liver.png", block((24, 30), (2, 13), (3, 13)))
    of_masks(masks, "--ratios", 0.4, 0.3, 0.3)
    now = {
        image: split
        for split in ("train", "val", "test")
        if (output / f"image2label_{split}.json").exists()
        for image in index(output, split)
    }
    assert where.items() < now.items() and len(now) == 11
    row = next(row for row in metadata(output) if "a_1" in row["mask"] and row["class"] == "liver")
    assert mask_of(output, row).sum() == 110


def test_cases_that_left_the_source_are_kept_until_pruned(masks, capsys):
    of_masks(masks)
    for path in [*(masks / "photos").glob("c_*"), *(masks / "masks").glob("c_*")]:
        path.unlink()
    output = of_masks(masks)
    assert "1 case(s) of 'out' from earlier runs" in capsys.readouterr().out and "c" in {
        row["case"] for row in metadata(output)
    }
    of_masks(masks, "--prune")
    of_masks(masks)
    assert {row["case"] for row in metadata(output)} == {"a", "b"}
    assert not list((output / "images").glob("*--c"))


def test_two_data_sets_share_a_folder(masks):
    of_masks(masks, "--dataset", "first", *EVERYTHING)
    output = of_masks(masks, "--dataset", "second", "--only", "liver", *EVERYTHING)
    assert Counter(row["dataset"] for row in metadata(output)) == {"first": 19, "second": 6}
    training_batch(output)


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_killed_conversion_goes_on(tmp_path):
    """Killed with no chance to clean up, at several moments; what was done is kept, and it ends as a quiet run does."""
    for i in range(30):
        write(tmp_path / "photos" / f"p{i:02d}_1.png", picture(300, 300, i))
        write(tmp_path / "masks" / f"p{i:02d}_1_x.png", block((300, 300), (2, 120), (3, 130)))
    command = [
        sys.executable,
        ROOT / "scripts" / "make_index.py",
        "masks",
        "--images",
        tmp_path / "photos",
        "--masks",
        tmp_path / "masks",
        "--case",
        r"(.+)_\d+",
        "--dataset",
        "d",
        "--output",
        tmp_path / "killed",
        "--num_workers",
        "2",
    ]
    quiet = {"stderr": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    process = subprocess.Popen(command, **quiet, start_new_session=True)
    done = tmp_path / "killed" / ".cases"
    while process.poll() is None and len(list(done.glob("*.json"))) < 4:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    until = time.monotonic() + 60
    while alive(process.pid) and time.monotonic() < until:
        time.sleep(0.02)
    assert not alive(process.pid)  # its workers have seen that it is gone
    whole = {path.name: path.stat().st_mtime_ns for path in done.glob("*.json")}
    assert 4 <= len(whole) < 30 and not (tmp_path / "killed" / "image2label_train.json").exists()
    (tmp_path / "killed" / ".partial" / "d--p29" / "images").mkdir(
        parents=True, exist_ok=True
    )  # what a kill within a case leaves
    (tmp_path / "killed" / ".partial" / "d--p29" / "images" / "half.png").write_bytes(b"\x89PNG")
    arguments = [str(word) for word in command[3:]]
    run("masks", *arguments[:-4], output=tmp_path / "killed")
    assert {path.name: path.stat().st_mtime_ns for path in done.glob("*.json")}.items() >= whole.items()
    run("masks", *arguments[:-4], output=tmp_path / "quiet")
    assert contents(tmp_path / "killed") == contents(tmp_path / "quiet")


def test_a_bad_case_does_not_cost_the_others(masks, capsys):
    (masks / "masks" / "b_2_liver.png").write_bytes(b"no image")
    sources = ("masks", "--images", masks / "photos", "--masks", masks / "masks", "--case", r"(.+)_\d+", *EVERYTHING)
    said = error_of(*sources, output=masks / "out")
    assert "1 of 3 case(s)" in said and "b_2_liver.png: not an image" in said and "--skip_bad_cases" in said
    assert not (masks / "out" / "image2label_train.json").exists()
    output = run(*sources, "--skip_bad_cases", output=masks / "out")
    assert {row["case"] for row in metadata(output)} == {"a", "c"} and "left out: b: " in capsys.readouterr().out
    write(masks / "masks" / "b_2_liver.png", block((24, 30), (2, 12), (3, 13)))
    assert {row["case"] for row in metadata(run(*sources, output=masks / "out"))} == {"a", "b", "c"}
    (masks / "masks" / "b_2_liver.png").write_bytes(b"no image")  # what it was before must not stay in the index
    assert {row["case"] for row in metadata(run(*sources, "--skip_bad_cases", output=masks / "out"))} == {"a", "c"}


def test_sources_are_only_read(masks):
    before = contents(masks)
    folders = [masks / "photos", masks / "masks"]
    try:
        for folder in folders:
            folder.chmod(0o555)
        output = of_masks(masks, *EVERYTHING, output=masks / "out")
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert {path: digest for path, digest in contents(masks).items() if not path.startswith("out")} == before
    assert "lies inside" in error_of(
        "masks",
        "--images",
        masks / "photos",
        "--masks",
        masks / "masks",
        "--case",
        r"(.+)_\d+",
        output=masks / "photos" / "out",
    )
    training_batch(output)


def test_an_output_that_cannot_be_written_is_one_line(masks, capsys):
    (masks / "file").write_text("")
    words = ["masks", "--images", masks / "photos", "--masks", masks / "masks", "--case", r"(.+)_\d+"]
    with pytest.raises(SystemExit) as ended:
        run(*words, output=masks / "file" / "out")
    said = capsys.readouterr().err
    assert ended.value.code == 74 and said.count("error: ") == 1 and "cannot be written" in said


def test_names_with_spaces_and_other_scripts(tmp_path):
    for name in ("größe 肝", "a b", "a_b", "x--y", "CON:1"):
        write(tmp_path / "my photos" / f"{name}.png", picture(seed=len(name)))
        write(tmp_path / "my masks" / f"{name}_linke Niere.png", block((24, 30), (2, 12), (3, 13)))
    output = run(
        "masks",
        "--images",
        tmp_path / "my photos",
        "--masks",
        tmp_path / "my masks",
        "--case",
        "(.+)",
        *EVERYTHING,
        output=tmp_path / "the output",
    )
    rows = metadata(output)
    assert sorted(row["case"] for row in rows) == sorted(["größe 肝", "a b", "a_b", "x--y", "CON:1"])
    assert {row["class"] for row in rows} == {"linke Niere"} and len({row["image"] for row in rows}) == 5
    assert all(" " not in row["mask"] for row in rows)
    assert safe_name("größe") == "größe" and safe_name("a b") != safe_name("a_b") and len(safe_name("x" * 300)) < 80
    training_batch(output)


# ---------------------------------------------------------------- label maps


def label_map() -> np.ndarray:
    labels = block((24, 30), (2, 12), (3, 13), value=1)
    labels[14:20, 2:9] = labels[14:20, 12:19] = 2
    labels[0, 0] = 255
    return labels


def of_labels(folder: Path, *flags: object, **options) -> Path:
    options.setdefault("output", folder / "out")
    return run(
        "labelmaps", "--images", folder / "photos", "--labels", folder / "labels", *EVERYTHING, *flags, **options
    )


@pytest.mark.parametrize(
    "suffix, depth",
    [(".png", np.uint8), (".png", np.uint16), (".tif", np.uint8), (".tif", np.uint16), (".tif", np.float32)],
)
def test_label_maps_of_8_and_16_bits(tmp_path, suffix, depth):
    write(tmp_path / "photos" / "x.png", picture())
    labels = label_map().astype(depth)
    if depth != np.uint8:
        labels[labels == 2] = 300
    write(tmp_path / "labels" / f"x{suffix}", labels)
    output = of_labels(
        tmp_path, "--classes", "liver=1", f"kidney={2 if depth == np.uint8 else 300}", "--ignore_values", 255
    )
    rows = metadata(output)
    assert [(row["class"], row["instance"], int(mask_of(output, row).sum())) for row in rows] == [
        ("liver", "0", 100),
        ("kidney", "0", 84),
    ]
    output = of_labels(
        tmp_path,
        "--classes",
        "liver=1",
        f"kidney={2 if depth == np.uint8 else 300}",
        "--ignore_values",
        255,
        "--components",
    )
    assert [(row["class"], row["instance"]) for row in metadata(output)] == [
        ("liver", "0"),
        ("kidney", "0"),
        ("kidney", "1"),
    ]
    training_batch(output)


def test_deep_images_are_scaled(tmp_path):
    scan = np.linspace(1000, 3000, 720).astype(np.uint16).reshape(24, 30)
    write(tmp_path / "photos" / "x.tif", scan)
    write(tmp_path / "labels" / "x.png", label_map())
    output = of_labels(tmp_path)
    image = image_of(output, metadata(output)[0])
    assert image.min() == 0 and image.max() == 255  # one channel, as the source has
    assert np.abs(image - (scan - 1000.0) * 255 / 2000).max() <= 0.6


def test_unexpected_values_are_named(tmp_path):
    write(tmp_path / "photos" / "x.png", picture())
    write(tmp_path / "labels" / "x.png", label_map())
    said = error_of(
        "labelmaps",
        "--images",
        tmp_path / "photos",
        "--labels",
        tmp_path / "labels",
        "--classes",
        "liver=1",
        output=tmp_path / "out",
    )
    assert "x.png: has values that no class is named for: 2, 255" in said and "--ignore_values" in said
    output = of_labels(tmp_path, "--classes", "liver=1", "--unknown_values", "ignore")
    assert [row["class"] for row in metadata(output)] == ["liver"]
    assert [row["class"] for row in metadata(of_labels(tmp_path))] == ["label_001", "label_002", "label_255"]
    output = of_labels(tmp_path, "--instances", "cell", "--ignore_values", 255)
    assert [(row["class"], row["instance"]) for row in metadata(output)] == [("cell", "0"), ("cell", "1")]


def test_colour_coded_and_palette_label_maps(tmp_path):
    write(tmp_path / "photos" / "x.png", picture())
    colours = np.zeros((24, 30, 3), np.uint8)
    colours[2:12, 3:13] = (0, 128, 255)  # BGR: orange
    colours[14:20, 2:9] = (255, 0, 0)  # blue
    write(tmp_path / "labels" / "x.png", colours)
    sources = ("labelmaps", "--images", tmp_path / "photos", "--labels", tmp_path / "labels")
    said = error_of(*sources, output=tmp_path / "out")
    assert "is colour-coded (3 colours: #000000, #0000ff, #ff8000)" in said
    (tmp_path / "table.csv").write_text("name,r,g,b\nbackground,0,0,0\nliver,255,128,0\nkidney,0,0,255\n")
    for table in ([tmp_path / "table.csv"], ["liver=#ff8000", "kidney=#0000ff"]):
        output = of_labels(tmp_path, "--classes", *table)
        assert [(row["class"], int(mask_of(output, row).sum())) for row in metadata(output)] == [
            ("liver", 100),
            ("kidney", 42),
        ]
    said = error_of(*sources, "--classes", "liver=#ff8000", output=tmp_path / "out")
    assert "#0000ff" in said
    palette = Image.fromarray(label_map() % 255, "P")
    palette.putpalette([0, 0, 0, 200, 10, 10, 10, 200, 10])
    palette.save(tmp_path / "labels" / "x.png")
    output = of_labels(tmp_path, "--classes", "liver=1", "kidney=2")
    assert [row["class"] for row in metadata(output)] == ["liver", "kidney"]
    output = of_labels(tmp_path, "--classes", "liver=#c80a0a", "kidney=#0ac80a")
    assert [row["class"] for row in metadata(output)] == ["liver", "kidney"]


def test_label_maps_that_are_none(tmp_path):
    write(tmp_path / "photos" / "x.png", picture())
    sources = ("labelmaps", "--images", tmp_path / "photos", "--labels", tmp_path / "labels")
    for array, suffix, said in (
        (label_map(), ".jpg", "cannot be a JPEG"),
        (block((20, 30), (2, 9), (2, 9)), ".png", "30 x 20 pixels, but"),
        (np.linspace(0, 1, 720).reshape(24, 30).astype(np.float32), ".tif", "not whole numbers"),
        (np.full((24, 30), -3, np.float32), ".tif", "from -3 to -3"),
    ):
        write(tmp_path / "labels" / f"x{suffix}", array)
        assert said in error_of(*sources, output=tmp_path / "out")
        (tmp_path / "labels" / f"x{suffix}").unlink()
    Image.fromarray(label_map()).save(
        tmp_path / "labels" / "x.tif", save_all=True, append_images=[Image.fromarray(label_map())]
    )
    assert "has 2 pages" in error_of(*sources, output=tmp_path / "out")
    (tmp_path / "labels" / "x.tif").write_bytes((tmp_path / "labels" / "x.tif").read_bytes()[:60])
    assert "x.tif: not an image that OpenCV can decode" in error_of(*sources, output=tmp_path / "out")
    large = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
    (tmp_path / "labels" / "x.tif").unlink()
    write(tmp_path / "photos" / "x.png", picture(64, 64))
    write(tmp_path / "labels" / "x.png", large)
    assert "looks like an image" in error_of(*sources, output=tmp_path / "out")


def test_a_case_without_foreground_is_said_and_not_an_error(tmp_path, capsys):
    for name, labels in (("x", label_map()), ("y", label_map() * 0)):
        write(tmp_path / "photos" / f"{name}.png", picture())
        write(tmp_path / "labels" / f"{name}.png", labels)
    output = of_labels(tmp_path)
    assert "1 case(s) have no object and are in no index, such as y" in capsys.readouterr().out
    assert {row["case"] for row in metadata(output)} == {"x"}
    write(tmp_path / "labels" / "x.png", label_map() * 0)
    assert "no object is left" in error_of(
        "labelmaps", "--images", tmp_path / "photos", "--labels", tmp_path / "labels", output=tmp_path / "out"
    )


def test_many_values_that_are_each_rare_may_be_objects(tmp_path, capsys):
    labels = np.zeros((60, 60), np.uint16)
    for number in range(25):
        labels[4 + 10 * (number // 5) :, 4 + 10 * (number % 5) :][:6, :6] = 101 + number
    write(tmp_path / "photos" / "x.png", picture(60, 60))
    write(tmp_path / "labels" / "x.png", labels)
    of_labels(tmp_path)
    assert "warning: 25 mask(s) are of 25 classes that are called by numbers; if" in capsys.readouterr().out
    of_labels(tmp_path, "--instances", "cell")
    assert "warning" not in capsys.readouterr().out


def test_tables_of_classes(tmp_path):
    def of(name: str, text: str):
        (tmp_path / name).write_text(text)
        return parse_classes([str(tmp_path / name)])

    expected = (("liver", (1,)), ("left kidney", (2,)))
    assert of("a.json", '{"background": 0, "liver": 1, "left kidney": 2}') == (expected, False)
    assert of("b.json", '{"0": "background", "1": "liver", "2": "left kidney"}') == (expected, False)
    assert of("c.json", '{"labels": {"liver": 1, "left kidney": [2]}}') == (expected, False)
    assert of("d.csv", "name,value\nliver,1\nleft kidney,2\n") == (expected, False)
    assert of("e.json", '{"liver": "#000001", "left kidney": {"rgb": [0, 0, 2]}}') == (expected, True)
    assert parse_classes(["whole=1", "t=2"])[0] == (("whole", (1,)), ("t", (2,)))
    for words in (
        ["liver"],
        ["liver=x"],
        ["a=1", "a=2"],
        ["a=1", "b=#000002"],
        ["background=0"],
        ["a=-1"],
        [str(tmp_path / "gone.json")],
    ):
        with pytest.raises(UsageError, match="--classes"):
            parse_classes(words)
    with pytest.raises(UsageError) as error:
        of("g.csv", "liv\x0cer,1,2\n")
    assert len(str(error.value).splitlines()) == 1 and "must be name,value" in str(error.value)
    for value in ("Infinity", "NaN", "[1, Infinity]", "[]", "{}", "null"):
        with pytest.raises(UsageError, match="'liver' has the value .*; (give a number|values are 0 or more)"):
            of("f.json", f'{{"liver": {value}}}')


# ---------------------------------------------------------------- COCO


@pytest.fixture
def coco(tmp_path: Path) -> dict:
    """Two images: a polygon with a second part, an RLE of either kind, a crowd."""
    for name in ("one", "two"):
        write(tmp_path / "photos" / "sub" / f"{name}.png", picture(seed=len(name)))
    square = [3, 2, 13, 2, 13, 12, 3, 12]
    compressed = rle.encode(np.asfortranarray(block((24, 30), (14, 20), (2, 9), value=1)))
    run_lengths = {"size": [24, 30], "counts": [24 * 10 + 5, 8, 24 * 20 - 13]}
    content = {
        "images": [
            {"id": i, "file_name": f"sub/{name}.png", "height": 24, "width": 30}
            for i, name in enumerate(("one", "two"))
        ],
        "categories": [{"id": 7, "name": "polyp"}, {"id": 9, "name": "tool"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 0,
                "category_id": 7,
                "iscrowd": 0,
                "segmentation": [square, [20, 2, 24, 2, 24, 6, 20, 6]],
            },
            {
                "id": 2,
                "image_id": 0,
                "category_id": 7,
                "iscrowd": 0,
                "segmentation": {"size": [24, 30], "counts": compressed["counts"].decode()},
            },
            {"id": 3, "image_id": 1, "category_id": 9, "iscrowd": 0, "segmentation": run_lengths},
            {"id": 4, "image_id": 1, "category_id": 7, "iscrowd": 1, "segmentation": run_lengths},
            {"id": 5, "image_id": 1, "category_id": 7, "bbox": [1, 2, 3, 4]},
        ],
    }
    (tmp_path / "instances.json").write_text(json.dumps(content))
    return content


def of_coco(folder: Path, *flags: object) -> Path:
    return run(
        "coco",
        "--annotations",
        folder / "instances.json",
        "--images",
        folder / "photos",
        "--case",
        ".*/(.+)",
        *EVERYTHING,
        *flags,
        output=folder / "out",
    )


def test_coco_polygons_and_run_lengths(tmp_path, coco, capsys):
    output = of_coco(tmp_path, "--modality", "endoscopy")
    said = capsys.readouterr().out
    assert "1 annotation(s) of crowds are left out" in said and "1 annotation(s) have no segmentation" in said
    rows = metadata(output)
    assert [(row["case"], row["class"], row["instance"]) for row in rows] == [
        ("one", "polyp", "0"),
        ("one", "polyp", "1"),
        ("two", "tool", "0"),
    ]
    polygon, encoded, lengths = (mask_of(output, row) for row in rows)
    assert (polygon == ((block((24, 30), (2, 12), (3, 13)) | block((24, 30), (2, 6), (20, 24))) > 0)).all()
    assert (encoded == (block((24, 30), (14, 20), (2, 9)) > 0)).all()
    assert (lengths == (block((24, 30), (5, 13), (10, 11)) > 0)).all()  # run lengths go down the columns
    training_batch(output)
    assert len(metadata(of_coco(tmp_path, "--crowd"))) == 4


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda c: c["images"][0].update(width=31), "one.png: has 30 x 24 pixels, its annotations are for 31 x 24"),
        (lambda c: c["images"][0].update(file_name="sub/gone.png"), "gone.png: cannot be read"),
        (lambda c: c.pop("categories"), "'categories' must be a list"),
        (lambda c: c.update(annotations=[]), "no annotation with a segmentation"),
    ],
)
def test_coco_that_contradicts_itself(tmp_path, coco, change, said):
    change(coco)
    (tmp_path / "instances.json").write_text(json.dumps(coco))
    with pytest.raises(SystemExit, match=said):
        of_coco(tmp_path)


# ---------------------------------------------------------------- SA-Med2D-20M


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A corner of SA-Med2D-20M: 40 cases of CT, one of each known defect, and one of each wrong kind of entry."""
    root = tmp_path / "SAMed2Dv1"
    entries = {}
    for case in range(40):
        for slice in (4, 5):
            image = f"images/ct_00--AMOS2022--amos_{case:04d}--x_{slice:04d}.png"
            entries[image] = [f"masks/{Path(image).stem}--{number:04d}_000.png" for number in (1, 3)]
    for stem in (
        "mr_t1--Brain_PTM--case0005--x_0052",
        "ct_00--QUBIQ2020--1_brain-growth_case01--2d_none",
        "ct_00--QUBIQ2020--1_kidney_case01--2d_none",
        "fundus_photography--ichallenge_adam_task2--A0001--2d_none",
    ):
        entries[f"images/{stem}.png"] = [f"masks/{stem}--0001_000.png"]
    twice = "masks/ct_00--AMOS2022--amos_0000--y_0001--0001_000.png"
    entries["images/ct_00--AMOS2022--amos_0000--y_0001.png"] = [
        twice,
        twice,
        "masks/ct_00--AMOS2022--amos_0001--y_0001--0001_000.png",
    ]
    entries["images/ct_00--AMOS2022--amos_0000--y_0002.png"] = []
    for image, masks in entries.items():
        write(root / image, picture(24, 30)[..., 0])
        for mask in masks:
            write(root / mask, block((24, 30), (2, 12), (3, 13), value=1))
    (root / "SAMed2D_v1.json").write_text(json.dumps(entries))
    (root / "SAMed2D_v1_class_mapping_id.json").write_text(json.dumps({"AMOS2022": {"spleen": 1, "left kidney": 3}}))
    return root


def test_sa_med2d_as_published(published, capsys):
    output = run("sa-med2d", published, output=published.parent / "index")
    said = capsys.readouterr().out
    for text in (
        "1 image(s) of Brain_PTM",
        "1 image(s) of QUBIQ2020 1_brain-growth*",
        "ichallenge_adam_task2: masks are inverted",
        "1 images without a mask: left out",
        "1 masks whose name is not that of their image: kept",
        "1 masks listed twice for an image: left out",
    ):
        assert text in said
    rows = metadata(output)
    assert len(rows) == 40 * 2 * 2 + 4 + 2
    one = next(row for row in rows if "amos_0003--x_0004--0003" in row["mask"])
    assert one == {
        "mask": "SAMed2Dv1/masks/ct_00--AMOS2022--amos_0003--x_0004--0003_000.png",
        "image": "SAMed2Dv1/images/ct_00--AMOS2022--amos_0003--x_0004.png",
        "dataset": "AMOS2022",
        "modality": "ct_00",
        "case": "amos_0003",
        "axis": "x",
        "slice": "4",
        "class": "left kidney",
        "instance": "0",
        "spacing": "",
    }
    cases = [
        {row["case"] for row in rows if row["image"] in index(output, split) and row["dataset"] == "AMOS2022"}
        for split in ("train", "val", "test")
    ]
    assert sum(map(len, cases)) == 40 and len(set.union(*cases)) == 40 and len(cases[0]) > 20
    assert {p.name for p in output.iterdir()} == {
        "image2label_train.json",
        "image2label_val.json",
        "image2label_test.json",
        "label2image_test.json",
        "metadata.csv",
    }
    training_batch(output)
    before = contents(output)
    assert contents(run("sa-med2d", published, output=output)) == before


def test_sa_med2d_defects_and_parts(published):
    output = run("sa-med2d", published, "--exclude_defects", output=published.parent / "index")
    rows = metadata(output)
    assert {row["dataset"] for row in rows} == {"AMOS2022", "QUBIQ2020"} and len(rows) == 40 * 2 * 2 + 1 + 1
    rows = metadata(run("sa-med2d", published, "--modalities", "mr", output=output))
    assert {row["dataset"] for row in rows} == {"Brain_PTM"}
    rows = metadata(run("sa-med2d", published, "--datasets", "QUBIQ2020", "--folds", 2, output=output) / "fold_1")
    assert {row["class"] for row in rows} == {"1"} and not (output / "metadata.csv").exists()
    assert "KiTS: not in" in error_of("sa-med2d", published, "--datasets", "KiTS", output=output)
    assert "lies inside" in error_of("sa-med2d", published, output=published / "index")
    elsewhere = metadata(run("sa-med2d", published, output=published.parent / "far" / "index"))
    assert elsewhere[0]["image"].startswith(f"{published}/images/")


@pytest.mark.parametrize(
    "text, said",
    [
        ('{"images/x.png": ["a"', "not valid JSON"),
        ('{"images/x.png": "a"}', "wrong value"),
        ("[1]", "lists no mask|not valid"),
        ("", "not valid JSON"),
    ],
)
def test_sa_med2d_index_that_is_broken(published, text, said):
    (published / "SAMed2D_v1.json").write_text(text)
    (published.parent / "index").mkdir()
    (published.parent / "index" / "image2label_train.json").write_text("{}")
    with pytest.raises(SystemExit, match=said):
        run("sa-med2d", published, output=published.parent / "index")
    assert (published.parent / "index" / "image2label_train.json").read_text() == "{}"  # the old index is whole


# ---------------------------------------------------------------- the data that ships


def test_the_demo_data_has_a_row_for_each_mask():
    table = read_metadata(ROOT / "data_demo" / "metadata.csv")
    masks = [
        mask
        for split in ("train", "val", "test")
        for of_image in index(ROOT / "data_demo", split).values()
        for mask in of_image
    ]
    assert sorted(table.rows(masks)) == list(range(len(table))) and len(table) == 138
    for mask in masks:
        row = table[mask]
        plane = {"x": "sagittal", "y": "coronal", "z": "axial"}[row["axis"]]
        assert mask == f"data_demo/masks/mni152_{plane}_{row['slice']:03d}_{row['class']}_{row['instance']:03d}.png"
        assert row["image"] == f"data_demo/images/mni152_{plane}_{row['slice']:03d}.png"
        assert (row["case"], row["dataset"], row["modality"], row["spacing"]) == ("mni152", "mni152", "mr_t1", "1x1")


# ---------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--ratios", 0, 0, 0], "three shares"),
        (["--folds", 1], "at least 2"),
        (["--min_area", 100], "share in per cent"),
        (["--min_aspect", 2], "ratio, from 0 to 1"),
        (["--split_file", "gone.json"], "gone.json"),
    ],
)
def test_flags_that_make_no_sense(masks, flags, said):
    with pytest.raises(SystemExit, match=said):
        of_masks(masks, *flags)
    with pytest.raises(SystemExit, match="--num_workers must be 0 or more"):
        of_masks(masks, workers=-1)


def commands_of(page: Path) -> list[list[str]]:
    return [
        shlex.split(line)
        for line in page.read_text(encoding="utf-8").splitlines()
        if line.startswith("python scripts/make_index.py ")
    ]


@pytest.mark.parametrize(
    "words", commands_of(ROOT / "docs" / "data.md"), ids=lambda words: " ".join(words[2:3] + words[-1:])
)
def test_commands_of_the_documentation_fail_for_want_of_data_alone(words, tmp_path, monkeypatch):
    """Where the data is not there, each gets as far as looking for it. Patterns come later, and are tried apart."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="no such folder|cannot be read"):
        make_index.main(words[2:])
    args = make_index.parse_args(words[2:])
    for name, fields in (
        ("image_pattern", ("case",)),
        ("label_pattern", ("case", "class")),
        ("pattern", ("image", "class", "instance")),
    ):
        if getattr(args, name, None):
            compile_pattern(getattr(args, name), fields)


def test_the_documentation_s_walk_on_shipped_data(tmp_path, monkeypatch):
    words = next(words for words in commands_of(ROOT / "docs" / "data.md") if "data_demo/images" in words)
    monkeypatch.chdir(ROOT)
    words[words.index("--output") + 1] = str(tmp_path / "planes")
    make_index.main([*words[2:], "--num_workers", "0"])
    assert {row["class"] for row in metadata(tmp_path / "planes")} >= {"brain", "left_white_matter", "cerebellum"}
    training_batch(tmp_path / "planes", 64)


def test_the_script_runs_from_another_folder(masks):
    environment = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run(
        [
            sys.executable,
            ROOT / "scripts" / "make_index.py",
            "masks",
            "--images",
            "photos",
            "--masks",
            "masks",
            "--case",
            r"(.+)_\d+",
            "--output",
            "out",
            *map(str, EVERYTHING),
        ],
        cwd=masks,
        env=environment,
        capture_output=True,
        encoding="utf-8",  # a library that another test uses may have set the locale to C
    )
    assert done.returncode == 0 and "now: python train.py --data_path out" in done.stdout, done.stderr
    assert "Traceback" not in done.stderr
    training_batch(masks / "out")
