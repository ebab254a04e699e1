"""File names of SA-Med2D-20M, its class names, and the metadata table."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from sam_med2d.data.metadata import COLUMNS, read_metadata
from sam_med2d.data.names import Name, parse_name, read_class_names
from sam_med2d.errors import DataError


@pytest.mark.parametrize(
    "name, parts",
    [
        ("ct_00--AbdomenCT1K--Case_00011--x_0040.png", ("ct", "00", "AbdomenCT1K", "Case_00011", "x", 40, None, None)),
        (
            "ct_00--AbdomenCT1K--Case_00011--x_0040--0003_000.png",
            ("ct", "00", "AbdomenCT1K", "Case_00011", "x", 40, 3, 0),
        ),
        (
            "dermoscopy_00--HAM10000--ISIC_0024306--2d_none--0001_002.png",
            ("dermoscopy", "00", "HAM10000", "ISIC_0024306", "", None, 1, 2),
        ),
        (
            "dermoscopy_00--HAM10000--ISIC_0024306--2d_none.png",
            ("dermoscopy", "00", "HAM10000", "ISIC_0024306", "", None, None, None),
        ),
        ("mr_t1_gd--a b--größe--z_0000.png", ("mr", "t1_gd", "a b", "größe", "z", 0, None, None)),
        (
            "ct_00--D--a--b--y_0007--0010_011.png",
            ("ct", "00", "D", "a--b", "y", 7, 10, 11),
        ),  # dashes in a case's own name
    ],
)
def test_parts_of_a_name(name, parts):
    for path in (name, f"SAMed2Dv1/masks/{name}", Path("/data") / name):
        assert parse_name(path) == Name(*parts)


@pytest.mark.parametrize(
    "name",
    [
        "amos_0006_90_liver_000.png",
        "",
        "ct_00--D--case--w_0040.png",
        "ct_00--D--x_0040.png",
        "ct--D--case--x_0040.png",
        "ct_00--D--case--x_0040--0003.png",
        "ct_00--D--case--x_0040",
        "ct_00--D--case--2d_none_000.png",
    ],
)
def test_any_other_name_is_none(name):
    assert parse_name(name) is None


def test_class_names(tmp_path):
    path = tmp_path / "classes.json"
    path.write_text(json.dumps({"AMOS": {"liver": 6, "spleen": "1"}}))
    assert read_class_names(path) == {"AMOS": {"liver": 6, "spleen": 1}}


@pytest.mark.parametrize(
    "text, message",
    [
        ("[]", "holds a list"),
        ("{", "not valid JSON"),
        ('{"AMOS": [1]}', "'AMOS' holds a list"),
        ('{"AMOS": {"liver": "six"}}', "class 'liver' of 'AMOS' has 'six' for an id"),
        ('{"AMOS": {"liver": Infinity}}', "class 'liver' of 'AMOS' has inf for an id"),
        (None, "cannot be read"),
    ],
)
def test_bad_class_names(tmp_path, text, message):
    path = tmp_path / "classes.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=f"classes.json: {message}") as caught:
        read_class_names(path)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- metadata.csv


def row(mask: str, **values) -> dict:
    return {**dict.fromkeys(COLUMNS, ""), "mask": mask, "image": "images/a.png", **values}


def write_table(path: Path, rows: list[dict], columns=COLUMNS) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_rows_are_found_by_mask(tmp_path):
    rows = [row(f"masks/{i}.png", dataset=f"D{i % 3}", **{"class": f"c{i % 5}", "slice": i}) for i in range(100)]
    rows.append(row('masks/ä, "b".png', spacing="0.7x0.7", instance="002"))
    metadata = read_metadata(write_table(tmp_path / "metadata.csv", rows))
    assert len(metadata) == 101
    assert metadata["masks/7.png"] == row("masks/7.png", dataset="D1", **{"class": "c2", "slice": 7, "instance": None})
    assert metadata['masks/ä, "b".png'] == row('masks/ä, "b".png', spacing="0.7x0.7", slice=None, instance=2)
    masks = [f"masks/{i}.png" for i in (3, 99, 0, 3)]
    found = metadata.rows(masks)
    assert metadata.column("class").take(found).to_pylist() == ["c3", "c4", "c0", "c3"]
    assert metadata.column("mask").take(found).to_pylist() == masks and isinstance(found, np.ndarray)
    assert len(metadata.rows([])) == 0


def test_order_of_columns_and_others_do_not_matter(tmp_path):
    columns = ["extra", *reversed(COLUMNS)]
    path = write_table(tmp_path / "metadata.csv", [row("m.png", case="c1", extra="?")], columns)
    assert read_metadata(path)["m.png"]["case"] == "c1" and "extra" not in read_metadata(path)["m.png"]


def test_unknown_masks_are_named_and_counted(tmp_path):
    metadata = read_metadata(write_table(tmp_path / "metadata.csv", [row("a.png"), row("b.png")]))
    with pytest.raises(DataError, match=r"metadata.csv: has no row for c.png and 1 other mask\(s\); write it again"):
        metadata.rows(["a.png", "c.png", "b.png", "\udcff.png"])
    with pytest.raises(DataError, match="has no row for zzz.png;"):
        metadata["zzz.png"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("mask,image\na,b\n", "not a table of the columns mask,image,dataset.*'dataset'"),
        ("", "not a table"),
        (",".join(COLUMNS) + "\na,b\n", "not a table.*Expected 10 columns, got 2"),
        (",".join(COLUMNS) + "\na,b,D,ct,c,x,three,liver,0,\n", "not a table.*'three'"),
        (",".join(COLUMNS) + "\na\udcff,b,D,ct,c,x,3,liver,0,\n", "not a table.*UTF8"),
        (",".join(COLUMNS) + "\n", "has no rows"),
        (",".join(COLUMNS) + "\na,b,,,,,,,,\na,b,,,,,,,,\n", "a has two rows"),
        (None, "cannot be read"),
    ],
)
def test_bad_metadata(tmp_path, text, message):
    path = tmp_path / "metadata.csv"
    if text is not None:
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=f"metadata.csv: {message}") as caught:
        read_metadata(path)
    assert "\n" not in str(caught.value)
