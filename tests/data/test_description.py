"""What a mask is of: one rule, whether one mask is asked for or a whole index."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from sam_med2d.data import arrow_copy
from sam_med2d.data.description import KINDS, Describer, class_beyond
from sam_med2d.data.index import Index
from sam_med2d.data.metadata import COLUMNS
from sam_med2d.data.samplers import balance_of
from sam_med2d.errors import DataError

AMOS, KITS = "masks/ct_00--AMOS--c1--x_0001--0006_000.png", "masks/mr_00--KiTS--c1--z_0002--0003_001.png"
GROUPS = {
    "images/ct_00--AMOS--c1--x_0001.png": [AMOS, AMOS.replace("0006_000", "0003_000")],
    "images/ct_7.png": ["masks/ct_7_left_kidney_000.png", "masks/ct_7_liver.png"],
    "images/mr_00--KiTS--c1--z_0002.png": [KITS],
    "images/8.png": ["masks/other.png"],
}


def index() -> Index:
    return Index("", "index.json", GROUPS)


def tables(folder: Path, classes: dict | None = None, rows: list[dict] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    if classes is not None:
        (folder / "SAMed2D_v1_class_mapping_id.json").write_text(json.dumps(classes))
    if rows is not None:
        with open(folder / "metadata.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, restval="")
            writer.writeheader()
            writer.writerows(rows)
    return folder


def of_each(describer: Describer, kind: str) -> list[str]:
    """By the bulk form."""
    names, codes = describer.labels(index(), kind)
    assert len(set(names)) == len(names) and set(codes.tolist()) == set(range(len(names)))
    return [names[code] for code in codes]


def one_by_one(describer: Describer, kind: str) -> list[str]:
    found = [describer.describe(image, mask) for image, masks in index() for mask in masks]
    if kind == "case":
        return [f"{one['dataset'] or ''} {one['case']}".strip() if one["case"] else "" for one in found]
    return [str(one[kind] or "") for one in found]


def all_rows(**of_mask: dict) -> list[dict]:
    return [{"mask": mask, **of_mask.get(Path(mask).stem, {})} for masks in GROUPS.values() for mask in masks]


CLASSES = {"AMOS": {"liver": 6, "kidney": 3}, "KiTS": {"kidney": 3}}


@pytest.mark.parametrize(
    "classes, rows, expected",
    [
        (None, None, ["AMOS 6", "AMOS 3", "left_kidney", "liver", "KiTS 3", ""]),
        (CLASSES, None, ["liver", "kidney", "left_kidney", "liver", "kidney", ""]),
        (
            CLASSES,
            all_rows(ct_7_liver={"class": "lobe"}, other={"class": "tumour"}),
            ["liver", "kidney", "left_kidney", "lobe", "kidney", "tumour"],
        ),
        # what metadata.csv says needs no table of class names
        ({"AMOS": {"liver": 6, "kidney": 3}}, all_rows(**{Path(KITS).stem: {"class": "cyst"}}), None),
    ],
)
def test_classes_by_the_rule(tmp_path: Path, classes, rows, expected) -> None:
    describer = Describer(tables(tmp_path, classes, rows))
    assert of_each(describer, "class") == (expected or ["liver", "kidney", "left_kidney", "liver", "cyst", ""])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [0, 1 << 30])
def test_one_by_one_and_at_once_say_the_same(tmp_path: Path, monkeypatch, kind: str, size: int) -> None:
    monkeypatch.setattr(arrow_copy, "COPY_FROM", size)
    rows = all_rows(
        ct_7_liver={"dataset": "mine", "case": "7", "modality": "ct"},
        other={"case": "8", "class": "tumour"},
        **{Path(AMOS).stem: {"dataset": "AMOS22", "case": "one"}},
    )
    for folder in (
        tables(tmp_path / "a"),
        tables(tmp_path / "b", CLASSES),
        tables(tmp_path / "c", None, rows),
        tables(tmp_path / "d", CLASSES, rows),
    ):
        describer = Describer(folder)
        assert of_each(describer, kind) == one_by_one(describer, kind)


def test_other_kinds_by_the_rule(tmp_path: Path) -> None:
    rows = all_rows(ct_7_liver={"dataset": "mine", "case": "7"}, other={"case": "8"})
    describer = Describer(tables(tmp_path, None, rows))
    assert of_each(describer, "dataset") == ["AMOS", "AMOS", "", "mine", "KiTS", ""]
    assert of_each(describer, "modality") == ["ct", "ct", "", "", "mr", ""]
    assert of_each(describer, "case") == ["AMOS c1", "AMOS c1", "", "mine 7", "KiTS c1", "8"]


def test_a_table_that_lacks_a_class_is_one_error_everywhere(tmp_path: Path) -> None:
    describer = Describer(tables(tmp_path, {"AMOS": {"liver": 6, "kidney": 3}, "KiTS": {"cyst": 2}}))
    said = []
    for ask in (
        lambda: describer.describe("images/mr_00--KiTS--c1--z_0002.png", KITS),
        lambda: describer.labels(index(), "class"),
        lambda: describer.check(index()),
        lambda: balance_of(index(), str(tmp_path), "class"),
    ):
        with pytest.raises(DataError, match="has no class 3 of data set KiTS, which .*0003_001.png is of") as caught:
            ask()
        said.append(str(caught.value))
    assert len(set(said)) == 1
    assert describer.labels(index(), "dataset")[0] == ["AMOS", "", "KiTS"]  # which need no class


def test_a_table_that_lacks_a_mask(tmp_path: Path) -> None:
    describer = Describer(tables(tmp_path, None, all_rows()[1:]))
    for ask in (lambda: describer.labels(index(), "modality"), lambda: describer.check(index())):
        with pytest.raises(DataError, match=f"metadata.csv: has no row for {AMOS}"):
            ask()


def test_balancing_names_classes_by_the_same_rule(tmp_path: Path) -> None:
    groups = dict([*GROUPS.items()][:3])
    assert balance_of(Index("", "", groups), str(tmp_path), "class").names == [
        "AMOS 6",
        "AMOS 3",
        "left_kidney",
        "liver",
        "KiTS 3",
    ]
    with pytest.raises(DataError, match="index.json: the class of its masks is not known.*masks/other.png"):
        balance_of(index(), str(tmp_path), "class")


def test_names_that_are_no_unicode(tmp_path: Path) -> None:
    odd = Index("", "", {"images/\udcff.png": ["masks/\udcff_liver.png"], "images/1.png": ["masks/1_lobe.png"]})
    names, codes = Describer(tmp_path).labels(odd, "class")
    assert names == ["liver", "lobe"] and codes.tolist() == [0, 1]
    assert odd.mask(0) == "masks/\udcff_liver.png" and odd.mask(1) == "masks/1_lobe.png"


@pytest.mark.parametrize(
    "image, mask, expected",
    [
        ("ct_7.png", "ct_7_left_kidney_000.png", "left_kidney"),
        ("a/ct_7.png", "b/ct_7_liver.png", "liver"),
        ("ct_7.png", "ct_7-spleen_1.png", "spleen"),
        ("ct_7.png", "ct_8_liver.png", None),
        ("ct_7.png", "ct_7.png", None),
        ("0.png", "0_1.png", None),
        ("x.png", "x_3_000.png", "3"),
    ],
)
def test_a_class_is_what_a_mask_name_has_beyond_its_image(image: str, mask: str, expected: str | None) -> None:
    assert class_beyond(image, mask) == expected


def test_masks_by_number_across_batches(monkeypatch) -> None:
    monkeypatch.setattr("sam_med2d.data.index_build.ROWS", 2)
    groups = {f"{i}.png": [f"{i}_{k}.png" for k in range(i % 3 + 1)] for i in range(9)}
    found = Index("", "", groups)
    assert [found.mask(k) for k in range(found.mask_count)] == [mask for masks in groups.values() for mask in masks]
    assert [found.first_mask(i) for i in range(10)] == np.cumsum([0, *map(len, groups.values())]).tolist()
    with pytest.raises(IndexError):
        found.mask(found.mask_count)
