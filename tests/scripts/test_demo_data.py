"""The demonstration data that ships with the repository is what the README says."""

import importlib.util
import json
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.conftest import ROOT

DATA = ROOT / "data_demo"
SPLITS = ("train", "val", "test")

MIN_AREA_FRACTION = 0.015
MIN_BRAIN_FRACTION = 0.15
SPLIT_GAP = 5  # voxels of 1 mm
MAX_TOTAL_BYTES = 4_000_000


def read_index(name: str) -> dict:
    return json.loads((DATA / name).read_text(encoding="utf-8"))


def image_to_masks(split: str) -> dict[str, list[str]]:
    return read_index(f"image2label_{split}.json")


def all_pairs() -> list[tuple[str, str]]:
    """Every (image path, mask path) of the three splits."""
    return [(image, mask) for split in SPLITS for image, masks in image_to_masks(split).items() for mask in masks]


def read_grey(path: str) -> np.ndarray:
    image = cv2.imread(str(ROOT / path), cv2.IMREAD_UNCHANGED)
    assert image is not None, path
    assert image.ndim == 2 and image.dtype == np.uint8, path
    return image


def plane_and_index(image_path: str) -> tuple[str, int]:
    """'data_demo/images/mni152_axial_094.png' -> ('axial', 94)."""
    _, plane, index = Path(image_path).stem.split("_")
    return plane, int(index)


def load_script():
    """Import scripts/make_demo_data.py, which is not part of a package."""
    spec = importlib.util.spec_from_file_location("make_demo_data", ROOT / "scripts" / "make_demo_data.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_indexes_name_exactly_the_files_present():
    images = [image for split in SPLITS for image in image_to_masks(split)]
    masks = [mask for _, mask in all_pairs()]
    for named, folder in ((images, "images"), (masks, "masks")):
        assert len(named) == len(set(named))
        assert set(named) == {f"data_demo/{folder}/{p.name}" for p in (DATA / folder).glob("*.png")}


def test_label2image_is_the_test_split_turned_round():
    expected = {mask: image for image, masks in image_to_masks("test").items() for mask in masks}
    assert read_index("label2image_test.json") == expected


def test_masks_fit_their_images():
    for image_path, mask_path in all_pairs():
        mask = read_grey(mask_path)
        assert Path(mask_path).stem.startswith(Path(image_path).stem + "_"), mask_path
        assert mask.shape == read_grey(image_path).shape, mask_path
        assert set(np.unique(mask)) == {0, 255}, mask_path
        assert (mask > 0).mean() >= MIN_AREA_FRACTION, mask_path


def test_each_mask_is_one_piece():
    for _, mask_path in all_pairs():
        count, _ = cv2.connectedComponents(read_grey(mask_path), connectivity=4)
        assert count == 2, mask_path  # background and the object


def test_every_image_shows_enough_brain_and_has_an_object():
    for split in SPLITS:
        for image_path, masks in image_to_masks(split).items():
            assert masks and (read_grey(image_path) > 0).mean() >= MIN_BRAIN_FRACTION, image_path


def test_left_is_on_the_right_of_the_image():
    """Radiological convention; and the two sides do not overlap."""
    for split in SPLITS:
        for masks in image_to_masks(split).values():
            for left_path in (mask for mask in masks if "_left_" in mask):
                left = read_grey(left_path) > 0
                right = read_grey(left_path.replace("_left_", "_right_")) > 0
                assert np.nonzero(left)[1].min() > np.nonzero(right)[1].max(), left_path


def test_splits_are_apart():
    slices = {split: [plane_and_index(path) for path in image_to_masks(split)] for split in SPLITS}
    for one, other in combinations(SPLITS, 2):
        for plane, index in slices[one]:
            nearest = min(abs(index - i) for p, i in slices[other] if p == plane)
            assert nearest >= SPLIT_GAP, (one, other, plane, index)


def test_split_sizes():
    counts = {split: len(image_to_masks(split)) for split in SPLITS}
    total = sum(counts.values())
    assert 36 <= total <= 54
    for split, share in (("train", 0.54), ("val", 0.15), ("test", 0.31)):
        assert abs(counts[split] / total - share) < 0.05, counts


def test_size_and_licence():
    files = [path for path in DATA.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < MAX_TOTAL_BYTES
    notice = (DATA / "LICENSE").read_text(encoding="utf-8")
    assert "Louis Collins, McConnell Brain Imaging Centre" in notice
    assert "Permission to use, copy, modify, and distribute" in notice


def test_script_reproduces_shipped_slices():
    """One slice a plane, image and all masks, pixel for pixel."""
    pytest.importorskip("nilearn")
    script = load_script()
    volumes = script.load_volumes()
    for plane in script.PLANES:
        index = plane.slices[len(plane.slices) // 2]
        stem = f"mni152_{plane.name}_{index:03d}"
        image, masks = script.make_slice(volumes, plane, index)
        assert np.array_equal(image, read_grey(f"data_demo/images/{stem}.png"))
        shipped = {path.name for path in (DATA / "masks").glob(f"{stem}_*.png")}
        assert shipped == {f"{stem}_{name}_000.png" for name in masks}
        for name, mask in masks.items():
            path = f"data_demo/masks/{stem}_{name}_000.png"
            assert np.array_equal(mask, read_grey(path) > 0), path
