"""Balance and the balanced order: every data set, or every class, has the same share of training."""

import csv
import json
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from sam_med2d.data import arrow_copy as copies
from sam_med2d.data import index_build as index_build_room
from sam_med2d.data.datasets import TrainingDataset, train_loader
from sam_med2d.data.index import Index, read_index
from sam_med2d.data.metadata import COLUMNS
from sam_med2d.data.samplers import Balance, BalancedSampler, balance_of
from sam_med2d.errors import DataError

SIZE = 8


def make(folder: Path, groups: dict[str, list[str]], rows: list[dict] | None = None) -> Path:
    """A data folder of white squares; rows: of its metadata.csv."""
    white = cv2.imencode(".png", np.full((SIZE, SIZE), 255, np.uint8))[1].tobytes()
    for name in [*groups, *(mask for masks in groups.values() for mask in masks)]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(white)
    (folder / "image2label_train.json").write_text(json.dumps(groups))
    if rows is not None:
        with open(folder / "metadata.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, restval="")
            writer.writeheader()
            writer.writerows(rows)
    return folder


@pytest.fixture
def organs(tmp_path: Path) -> Path:
    """60 images of a liver and its two lobes (one class), every 15th with a tumour; 3 of another set, of a kidney."""
    groups, rows = {}, []
    for i in range(63):
        classes = ["kidney"] if i >= 60 else ["liver", "lobe", "lobe", *(["tumour"] if i % 15 == 0 else [])]
        groups[f"i{i}.png"] = [f"m{i}_{k}.png" for k in range(len(classes))]
        rows += [
            {"mask": mask, "image": f"i{i}.png", "class": name, "dataset": "large" if i < 60 else "small"}
            for mask, name in zip(groups[f"i{i}.png"], classes)
        ]
    return make(tmp_path / "organs", groups, rows[::-1])  # in another order than the index


def drawn(dataset: TrainingDataset, epochs: int) -> tuple[Counter, Counter]:
    """How often each image and each mask came in so many epochs."""
    images, masks = Counter(), Counter()
    loader = train_loader(dataset, batch_size=7, num_workers=0, seed=0)
    for epoch in range(epochs):
        loader.batch_sampler.set_epoch(epoch)
        for batch in loader:
            images.update(batch.image_names)
            masks.update(batch.mask_names)
    return images, masks


def test_data_sets_have_the_same_share(organs):
    dataset = TrainingDataset(organs, SIZE, balance="dataset")
    assert dataset.balance.names == ["small", "large"] or dataset.balance.names == ["large", "small"]
    images, _ = drawn(dataset, epochs=1)
    assert sum(images.values()) == 63  # an epoch is as long as ever
    small = [images[f"i{i}.png"] for i in (60, 61, 62)]
    assert sum(small) in (31, 32) and max(small) - min(small) <= 1
    assert max(images[f"i{i}.png"] for i in range(60)) == 1
    images, _ = drawn(dataset, epochs=6)
    assert all(images[f"i{i}.png"] for i in range(60))  # in the end every image comes


def test_classes_have_the_same_share(organs):
    dataset = TrainingDataset(organs, SIZE, balance="class")
    with open(organs / "metadata.csv", newline="") as file:
        class_of = {row["mask"]: row["class"] for row in csv.DictReader(file)}
    _, masks = drawn(dataset, epochs=12)
    plain = Counter(class_of[mask] for mask in drawn(TrainingDataset(organs, SIZE), epochs=12)[1].elements())
    shares = Counter(class_of[mask] for mask in masks.elements())
    total = shares.total()
    assert total == plain.total() == 12 * 63 * 5
    assert plain["tumour"] / total < 0.05 and plain["lobe"] / total > 0.55  # what it is about
    assert all(0.2 < shares[name] / total < 0.3 for name in ("liver", "lobe", "tumour", "kidney"))


@pytest.mark.parametrize("kind", ["dataset", "class"])
def test_order_depends_on_seed_and_epoch_alone_and_resumes(organs, kind):
    balance = TrainingDataset(organs, SIZE, balance=kind).balance

    def order(seed, epoch, start=0):
        sampler = BalancedSampler(balance.groups, 63, 5, seed)
        sampler.set_epoch(epoch, start)
        found = list(sampler)
        assert len(found) == len(sampler)
        return found

    assert order(1, 2) == order(1, 2) != order(1, 3) and order(2, 2) != order(1, 2)
    assert {key[0] for batch in order(1, 2) for key in batch} == {2}
    for start in (1, 12, 13):
        assert order(1, 2, start) == order(1, 2)[start:]


def test_without_it_nothing_changes(organs):
    """Draws of earlier runs stay what they were, whether or not a table lies in the folder."""
    before = drawn(TrainingDataset(organs, SIZE), epochs=2)
    (organs / "metadata.csv").unlink()
    assert drawn(TrainingDataset(organs, SIZE), epochs=2) == before


def test_more_groups_than_images_of_an_epoch():
    groups = [np.array([i % 3]) for i in range(7)]
    sampler = BalancedSampler(groups, 3, 2, seed=0)
    orders = set()
    for epoch in range(20):
        sampler.set_epoch(epoch)
        orders.add(tuple(index for batch in sampler for _, index in batch))
    assert all(len(order) == 3 for order in orders) and len(orders) > 3


# ---------------------------------------------------------------- names of SA-Med2D-20M

NAMES = {
    "images/ct_00--AMOS--c1--x_0001.png": [
        f"masks/ct_00--AMOS--c1--x_0001--{number}_000.png" for number in ("0006", "0001")
    ],
    "images/ct_00--BTCV--c1--x_0001.png": [
        f"masks/ct_00--BTCV--c1--x_0001--0002_{number}.png" for number in ("000", "001")
    ],
    "images/us_00--TN3K--c1--2d_none.png": ["masks/us_00--TN3K--c1--2d_none--0001_000.png"],
}


@pytest.mark.parametrize("size", [0, 1 << 30])
def test_file_names_and_class_names(tmp_path, monkeypatch, size):
    monkeypatch.setattr(copies, "COPY_FROM", size)
    monkeypatch.setattr(index_build_room, "ROWS", 2)
    folder = make(tmp_path / "data", NAMES)

    def of(kind: str) -> dict[str, list[int]]:
        balance = TrainingDataset(folder, SIZE, balance=kind).balance
        return {name: images.tolist() for name, images in zip(balance.names, balance.groups, strict=True)}

    assert of("dataset") == {"AMOS": [0], "BTCV": [1], "TN3K": [2]}
    assert of("class") == {"AMOS 6": [0], "AMOS 1": [0], "BTCV 2": [1], "TN3K 1": [2]}
    names = {"AMOS": {"spleen": 1, "liver": 6}, "BTCV": {"liver": 2}, "TN3K": {"nodule": 1}}
    (folder / "SAMed2D_v1_class_mapping_id.json").write_text(json.dumps(names))
    assert of("class") == {"liver": [0, 1], "spleen": [0], "nodule": [2]}  # one class, whatever its id


def test_a_large_table_is_copied_and_mapped(organs, monkeypatch):
    monkeypatch.setattr(copies, "COPY_FROM", 0)
    TrainingDataset(organs, SIZE, balance="class")
    assert (organs / ".arrow/metadata.csv.arrow").exists()
    assert len(TrainingDataset(organs, SIZE, balance="class").balance.names) == 4


# ---------------------------------------------------------------- bad input


def test_neither_table_nor_names(tmp_path):
    folder = make(tmp_path / "data", {"i.png": ["m.png"]})
    with pytest.raises(
        DataError,
        match="image2label_train.json: the class of its masks is not known: there is no metadata.csv in .*m.png",
    ):
        TrainingDataset(folder, SIZE, balance="class")


def test_one_name_that_is_none(tmp_path):
    folder = make(tmp_path / "data", NAMES | {"i.png": ["masks/m.png"]})
    with pytest.raises(DataError, match="and masks/m.png is no file name of SA-Med2D-20M"):
        TrainingDataset(folder, SIZE, balance="dataset")


def test_a_table_that_lacks_a_mask_or_says_nothing(tmp_path):
    folder = make(tmp_path / "data", {"i.png": ["m.png", "n.png"]}, [{"mask": "m.png", "class": "liver"}])
    with pytest.raises(DataError, match="metadata.csv: has no row for n.png"):
        TrainingDataset(folder, SIZE, balance="class")
    make(folder, {"i.png": ["m.png"]}, [{"mask": "m.png", "class": "liver"}])
    assert balance_of(read_index(folder, "train"), str(folder), "class").names == ["liver"]
    with pytest.raises(DataError, match="metadata.csv: the column 'dataset' is empty for every mask of .*; fill it in"):
        TrainingDataset(folder, SIZE, balance="dataset")


def test_masks_without_a_class_are_a_group_of_their_own():
    index = Index("", "", {"a": ["m", "n"], "b": ["o"]})
    balance = Balance(index, "class", ["", "liver"], np.array([1, 0, 0]))
    assert balance.names == ["", "liver"] and [group.tolist() for group in balance.groups] == [[0, 1], [0]]
    assert balance.mask_shares(0).tolist() == pytest.approx([2 / 3, 1 / 3])
