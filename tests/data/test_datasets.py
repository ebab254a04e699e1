"""From an index to batches: geometry, reading, index, draws, augmentation, order and the errors people meet."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from sam_med2d.data import batch as batch_room
from sam_med2d.data import reading
from sam_med2d.data.batch import collate
from sam_med2d.data.datasets import Loader, TestingDataset, TrainingDataset, test_loader, train_loader
from sam_med2d.data.geometry import fit
from sam_med2d.data.index import read_index
from sam_med2d.data.reading import read_image, read_mask
from sam_med2d.data.samplers import EpochSampler
from sam_med2d.errors import DataError

SIZE = 32  # side of the frame in these tests


def write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, array)[1].tobytes())


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def square(height: int, width: int, top: int, left: int, side: int) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    mask[top : top + side, left : left + side] = 255
    return mask


def write_index(folder: Path, groups: dict, split: str = "train", kind: str = "image2label") -> None:
    entries = groups if kind == "image2label" else {mask: image for image, masks in groups.items() for mask in masks}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{kind}_{split}.json").write_text(json.dumps(entries))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four images (stretched, padded, one side smaller, exact) of three masks each, for both splits."""
    folder = tmp_path / "data"
    groups = {}
    for i, (height, width) in enumerate([(48, 40), (20, 25), (20, 50), (SIZE, SIZE)]):
        image = f"images/{i}.png"
        write(folder / image, picture(height, width, i))
        groups[image] = [f"masks/{i}_{k}.png" for k in range(3)]
        for k, name in enumerate(groups[image]):
            write(folder / name, square(height, width, 2 * k, 3 * k, 8))
    write_index(folder, groups)
    write_index(folder, groups, "test", "label2image")
    return folder


def same(a: batch_room.Batch, b: batch_room.Batch) -> bool:
    tensors = all(torch.equal(getattr(a, k), getattr(b, k)) for k in ("images", "content", "masks", "image_index"))
    return tensors and (a.image_names, a.mask_names, a.skipped) == (b.image_names, b.mask_names, b.skipped)


# ---------------------------------------------------------------- geometry


def test_smaller_on_both_sides_is_centred_and_padded_with_zeros():
    image, mask = picture(20, 25) | 1, square(20, 25, 3, 4, 5) > 0
    framed, masks, content = fit(image, [mask], SIZE)
    assert content == (6, 3, 20, 25)  # (32 - 20) // 2, (32 - 25) // 2
    assert (framed[6:26, 3:28] == image).all() and (masks[0, 6:26, 3:28] == mask).all()
    assert (framed > 0).sum() == image.size and masks.sum() == mask.sum()


@pytest.mark.parametrize("height, width", [(48, 40), (20, 50), (100, 31), (SIZE, 20), (SIZE, SIZE)])
def test_any_other_size_is_stretched_to_the_nearest_pixel(height, width):
    image, mask = picture(height, width), picture(height, width, 1)[..., 0] > 127
    framed, masks, content = fit(image, [mask], SIZE)
    rows, columns = np.arange(SIZE) * height // SIZE, np.arange(SIZE) * width // SIZE
    assert content == (0, 0, SIZE, SIZE)
    assert (framed == image[rows][:, columns]).all() and (masks[0] == mask[rows][:, columns]).all()


@pytest.mark.parametrize("side", [10, SIZE, 50])
def test_fit_without_masks(side):
    _, masks, _ = fit(picture(side, side), [], SIZE)
    assert masks.shape == (0, SIZE, SIZE) and masks.dtype == bool


# ---------------------------------------------------------------- reading


def test_deep_images_use_their_whole_range(tmp_path):
    scan = np.linspace(100, 4095, 63).round().astype(np.uint16).reshape(9, 7)  # 12 bits: its upper 8 of 16 are below 16
    write(tmp_path / "deep.png", scan)
    image = read_image(str(tmp_path / "deep.png"))
    assert image.shape == (9, 7, 3) and image.dtype == np.uint8
    assert np.abs(image[..., 0] - (scan - 100.0) * 255 / 3995).max() <= 0.5
    write(tmp_path / "flat.png", np.full((9, 7), 3000, np.uint16))
    assert (read_image(str(tmp_path / "flat.png")) == 0).all()
    cv2.imwrite(str(tmp_path / "broken.tif"), np.full((9, 7, 3), np.nan, np.float32))
    with pytest.raises(DataError, match="broken.tif: image has values that are not finite"):
        read_image(str(tmp_path / "broken.tif"))


def test_read_image_equals_imread(tmp_path):
    arrays = {
        "grey.png": picture(9, 7)[..., 0],
        "alpha.png": np.dstack([picture(9, 7), picture(9, 7)[..., :1]]),
        "colour.jpg": picture(9, 7),
        "colour.bmp": picture(9, 7),
        "colour.tif": picture(9, 7),
    }
    for name, array in arrays.items():
        write(tmp_path / name, array)
        image = read_image(str(tmp_path / name))
        assert image.shape == (9, 7, 3) and image.dtype == np.uint8, name
        assert (image == cv2.imread(str(tmp_path / name), cv2.IMREAD_COLOR)).all(), name
    write(tmp_path / "bgr.png", np.full((2, 2, 3), (250, 100, 3), np.uint8))
    assert read_image(str(tmp_path / "bgr.png"))[0, 0].tolist() == [250, 100, 3]


def test_names_outside_ascii(tmp_path):
    write(tmp_path / "größe 肝.png", picture(9, 7))
    assert (read_image(str(tmp_path / "größe 肝.png")) == picture(9, 7)).all()


def test_read_mask_accepts_the_usual_kinds(tmp_path):
    mask = square(9, 7, 1, 2, 3)
    kinds = {
        "0 and 255": mask,
        "0 and 1": mask // 255,
        "channels": np.dstack([mask] * 3),
        "16 bits, 0 and 1": (mask // 255).astype(np.uint16),
        "1 and 2": mask // 255 + 1,
    }
    for name, array in kinds.items():
        write(tmp_path / f"{name}.png", array)
        assert (read_mask(str(tmp_path / f"{name}.png"), (9, 7)) == (mask > 0)).all(), name
    for value, expected in ((0, False), (1, True), (255, True)):
        write(tmp_path / "flat.png", np.full((9, 7), value, np.uint8))
        assert (read_mask(str(tmp_path / "flat.png"), (9, 7)) == expected).all()


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("part", [0.05, 0.5, 0.9, 0.995])
def test_truncated_file_is_refused(tmp_path, suffix, part):
    path = tmp_path / f"scan{suffix}"
    write(path, picture(40, 40))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    with pytest.raises(DataError, match=rf"scan\{suffix}: truncated.*copy or export"):
        read_image(str(path))


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_bytes_after_the_end_are_accepted(tmp_path, suffix):
    path = tmp_path / f"scan{suffix}"
    write(path, picture(40, 40))
    whole = read_image(str(path))
    path.write_bytes(path.read_bytes() + b"\0" * 5000)
    assert (read_image(str(path)) == whole).all()


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\nIEND\xaeB`\x82"])
def test_unreadable_file_is_refused(tmp_path, content):
    (tmp_path / "scan.png").write_bytes(content)
    with pytest.raises(DataError, match="scan.png: not an image.*export it again"):
        read_image(str(tmp_path / "scan.png"))


def test_missing_file_and_folder_in_its_place_are_refused(tmp_path):
    for path in (tmp_path / "gone.png", tmp_path):
        with pytest.raises(DataError, match=f"{path.name}: cannot be read"):
            read_image(str(path))


def test_mask_of_another_size_names_both_files(tmp_path):
    write(tmp_path / "mask.png", square(9, 7, 1, 1, 3))
    with pytest.raises(DataError, match=r"mask.png: mask of 7 x 9 pixels, but scan.png has 9 x 7"):
        read_mask(str(tmp_path / "mask.png"), (7, 9), "scan.png")


def test_mask_of_more_than_two_values_is_refused(tmp_path):
    labels = square(9, 7, 1, 1, 3)
    labels[8, 6] = 1
    write(tmp_path / "mask.png", labels)
    with pytest.raises(DataError, match="mask.png: more than two values.*one object a file"):
        read_mask(str(tmp_path / "mask.png"), (9, 7))


# ---------------------------------------------------------------- index


@pytest.mark.parametrize("kind", ["image2label", "label2image"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_both_kinds_of_index_read_alike(data, kind, split):
    groups = {"images/1.png": ["masks/1_2.png", "masks/1_0.png"], "images/0.png": ["masks/0_0.png"]}
    for name in os.listdir(data):
        if name.endswith(".json"):
            (data / name).unlink()
    write_index(data, groups, split, kind)
    index = read_index(data, split)
    assert list(index) == list(groups.items())
    assert (len(index), index.mask_count, index.images_without_masks) == (2, 3, 0)
    assert Path(index.path("images/1.png")) == data / "images/1.png"


def test_label2image_may_interleave_images(data):
    entries = {"masks/0_0.png": "images/0.png", "masks/1_0.png": "images/1.png", "masks/0_1.png": "images/0.png"}
    (data / "label2image_test.json").write_text(json.dumps(entries))
    expected = [("images/0.png", ["masks/0_0.png", "masks/0_1.png"]), ("images/1.png", ["masks/1_0.png"])]
    assert list(read_index(data, "test")) == expected


@pytest.mark.parametrize("split, first", [("test", "images/1.png"), ("train", "images/0.png")])
def test_which_index_comes_first(data, split, first):
    write_index(data, {"images/0.png": ["masks/0_0.png"]}, split, "image2label")
    write_index(data, {"images/1.png": ["masks/1_0.png"]}, split, "label2image")
    assert read_index(data, split)[0][0] == first


@pytest.mark.parametrize("prefix, cwd", [("", "/"), ("data/", "/"), ("x/data/", "."), ("{absolute}/", "/")])
def test_roots(data, monkeypatch, prefix, cwd):
    """Paths relative to the data folder, to its parent, to the working directory, and absolute."""
    home = data.parent
    (home.parent / "x").unlink(missing_ok=True)
    if prefix.startswith("x/"):
        (home.parent / "x").symlink_to(home, target_is_directory=True)
    monkeypatch.chdir(home.parent if cwd == "." else cwd)
    prefix = prefix.format(absolute=data)
    write_index(data, {f"{prefix}images/0.png": [f"{prefix}masks/0_0.png"]})
    dataset = TrainingDataset(data, SIZE)
    monkeypatch.chdir("/")  # the root is kept, whatever the process does later
    assert dataset[0, 0].image_name == f"{prefix}images/0.png"


@pytest.mark.parametrize("where", ["data", ".", "data/images"])
def test_relative_data_path_from_inside_and_outside(data, monkeypatch, where):
    monkeypatch.chdir(data.parent / where)
    assert len(TrainingDataset(os.path.relpath(data), SIZE)[0, 0].masks) == 5


def test_root_is_decided_once_for_the_whole_index(data):
    """A second image that exists only under another root is missing, not picked up from there."""
    write(data.parent / "other.png", picture(9, 9))
    write_index(data, {"images/0.png": ["masks/0_0.png"], "other.png": ["masks/0_1.png"]})
    with pytest.raises(DataError, match=r"1 listed file\(s\) missing.*other.png"):
        read_index(data, "train")


def test_no_root_fits(data, monkeypatch):
    monkeypatch.chdir(data / "masks")
    write_index(data, {"elsewhere/0.png": ["masks/0_0.png"]})
    with pytest.raises(DataError) as caught:
        read_index(data, "train")
    for part in ("elsewhere/0.png", f"{data},", f"{data.parent},", f"{data / 'masks'};"):
        assert part in str(caught.value)


def test_missing_files_are_counted_and_the_first_named(data):
    index = json.loads((data / "image2label_train.json").read_text())
    index["images/1.png"] += [f"nowhere/{i}.png" for i in range(10)]
    write_index(data, index)
    (data / "masks/2_1.png").unlink()
    with pytest.raises(DataError, match=r"image2label_train.json: 11 listed .*masks/2_1.png, nowhere/0.png") as caught:
        read_index(data, "train")
    assert "nowhere/5.png" not in str(caught.value)


def test_missing_index_names_what_was_looked_for(tmp_path):
    with pytest.raises(DataError) as caught:
        read_index(tmp_path / "nowhere", "val")
    for kind in ("image2label_val.json", "label2image_val.json"):
        assert str(tmp_path / "nowhere" / kind) in str(caught.value)
    assert str(caught.value).endswith("check the data path and the split's name")
    (tmp_path / "image2label_train.json").write_text("{}")
    with pytest.raises(DataError, match="there is train alone, so no case may have fallen to 'test'; make-index deals"):
        read_index(tmp_path, "test")


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"a": ["b"]', "not valid JSON"),
        ("\udcff", "not valid JSON"),
        ("[]", "holds a list"),
        ('{"images/0.png": "masks/0_0.png"}', "wrong value for 'images/0.png'"),
        ('{"images/0.png": [1]}', "wrong value for 'images/0.png'"),
        ('{"images/0.png": {"a": 1}}', "wrong value for 'images/0.png'"),
        ("{}", "lists no masks"),
        ('{"images/0.png": []}', "lists no masks"),
    ],
)
def test_bad_index(data, text, message):
    (data / "image2label_train.json").write_bytes(os.fsencode(text))
    with pytest.raises(DataError, match=f"image2label_train.json: {message}") as caught:
        read_index(data, "train")
    assert "\n" not in str(caught.value)


def test_bad_label2image(data):
    (data / "label2image_test.json").write_text('{"masks/0_0.png": ["images/0.png"]}')
    with pytest.raises(DataError, match="label2image_test.json: wrong value for 'masks/0_0.png'"):
        read_index(data, "test")


def test_images_without_masks_are_counted(data):
    write_index(data, {"images/0.png": [], "images/1.png": ["masks/1_0.png"], "images/2.png": []})
    index = read_index(data, "train")
    assert [image for image, _ in index] == ["images/1.png"] and index.images_without_masks == 2


# ---------------------------------------------------------------- samples


def test_every_file_is_opened_once_a_sample(data, monkeypatch):
    reads = []
    opened = reading.open_picture
    monkeypatch.setattr(reading, "open_picture", lambda path: reads.append(path) or opened(path))
    sample = TrainingDataset(data, SIZE, mask_num=20)[0, 0]
    assert len(sample.masks) == 20 and sorted(reads) == sorted(set(reads)) and len(reads) == 4
    reads.clear()
    TestingDataset(data, SIZE)[0]
    assert len(reads) == 4 == len(set(reads))


def test_rows_match_their_names(data):
    dataset = TrainingDataset(data, SIZE, mask_num=7)
    for i in range(len(dataset)):
        sample = dataset[0, i]
        image = read_image(str(data / sample.image_name))
        for row, name in zip(sample.masks, sample.mask_names, strict=True):
            framed, masks, content = fit(image, [read_mask(str(data / name), image.shape[:2])], SIZE)
            assert (row[0].numpy() == masks[0]).all() and sample.content == content
            assert (sample.image.numpy() == framed.transpose(2, 0, 1)).all()


def test_draws_cover_the_masks_and_differ_by_epoch(data):
    dataset = TrainingDataset(data, SIZE)
    draws = [tuple(dataset[epoch, 0].mask_names) for epoch in range(10)]
    assert len(set(draws)) > 5 and len({name for draw in draws for name in draw}) == 3
    assert draws[3] == tuple(TrainingDataset(data, SIZE)[3, 0].mask_names)
    assert [tuple(TrainingDataset(data, SIZE, seed=1)[e, 0].mask_names) for e in range(10)] != draws


def test_testing_batch(data):
    batch = next(iter(test_loader(TestingDataset(data, SIZE), batch_size=4, num_workers=0)))
    assert batch.images.shape == (4, 3, SIZE, SIZE) and batch.images.dtype == torch.uint8
    assert batch.masks.shape == (12, 1, SIZE, SIZE) and batch.masks.dtype == torch.bool
    assert batch.image_index.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert batch.original_sizes == [(48, 40), (20, 25), (20, 50), (SIZE, SIZE)]
    assert batch.content.dtype == torch.int64
    assert batch.content.tolist() == [[0, 0, 32, 32], [6, 3, 20, 25], [0, 0, 32, 32], [0, 0, 32, 32]]
    for i, originals in enumerate(batch.original_masks):
        for k, original in enumerate(originals):
            height, width = batch.original_sizes[i]
            assert (original.numpy() == (square(height, width, 2 * k, 3 * k, 8) > 0)).all()


def test_ragged_batch(data):
    groups = {"images/0.png": ["masks/0_0.png", "masks/0_1.png"], "images/1.png": ["masks/1_0.png"]}
    write_index(data, groups, "test", "label2image")
    dataset = TestingDataset(data, SIZE)
    batch = collate([dataset[1], dataset[0]])
    assert batch.image_index.tolist() == [0, 1, 1]
    assert batch.mask_names == ["masks/1_0.png", "masks/0_0.png", "masks/0_1.png"]
    assert [len(masks) for masks in batch.original_masks] == [1, 2]


def test_empty_masks_are_skipped_and_counted(data):
    """One empty, and one whose single pixel the nearest neighbour drops (48 rows to 32)."""
    write(data / "masks/0_0.png", np.zeros((48, 40), np.uint8))
    write(data / "masks/0_1.png", square(48, 40, 2, 0, 1))
    assert not fit(picture(48, 40), [square(48, 40, 2, 0, 1) > 0], SIZE)[1].any()
    sample = TestingDataset(data, SIZE)[0]
    assert sample.skipped == ["masks/0_0.png", "masks/0_1.png"] and sample.mask_names == ["masks/0_2.png"]
    assert len(sample.masks) == len(sample.original_masks) == 1

    for augment in (False, True):
        sample = TrainingDataset(data, SIZE, mask_num=30, augment=augment)[0, 0]
        assert sample.skipped == ["masks/0_0.png", "masks/0_1.png"]
        assert set(sample.mask_names) == {"masks/0_2.png"} and 0 < len(sample.masks) < 30


def test_image_with_only_empty_masks_gives_no_rows(data):
    for k in range(3):
        write(data / f"masks/0_{k}.png", np.zeros((48, 40), np.uint8))
    dataset = TestingDataset(data, SIZE)
    batch = collate([dataset[0]])
    assert batch.masks.shape == (0, 1, SIZE, SIZE) and batch.original_masks[0].shape == (0, 48, 40)
    assert batch.image_index.dtype == torch.int64 and len(batch.skipped) == 3
    assert collate([dataset[0], dataset[1]]).image_index.tolist() == [1, 1, 1]
    for augment in (False, True):
        training = TrainingDataset(data, SIZE, augment=augment)
        batch = collate([training[0, 1], training[0, 0]])
        assert batch.image_index.tolist() == [0] * 5 and batch.original_masks is None


def test_to_moves_tensors_but_not_originals(data):
    batch = collate([TestingDataset(data, SIZE)[0]])
    moved = batch.to("meta")
    assert moved.images.device.type == moved.masks.device.type == moved.image_index.device.type == "meta"
    assert moved.content.device.type == "meta" and moved.original_masks[0].device.type == "cpu"
    assert batch.images.device.type == "cpu" and moved.mask_names == batch.mask_names


def test_torch_pins_the_batch(data, monkeypatch):
    """Through torch's own dispatch, which passes over objects it does not know."""
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor.clone())
    batch = collate([TestingDataset(data, SIZE)[0]])
    assert same(torch.utils.data._utils.pin_memory.pin_memory(batch), batch) and len(pinned) == 4


# ---------------------------------------------------------------- augmentation


@pytest.mark.parametrize("height, width", [(200, 150), (90, 110)])
def test_masks_stay_on_their_objects(tmp_path, height, width):
    """The image shows the mask: whatever moves one must move the other."""
    shape = np.zeros((height, width), np.uint8)
    cv2.fillPoly(shape, [np.array([[30, 20], [80, 35], [60, 80], [20, 60]])], 255)
    names = [f"m{i}.png" for i in range(7)]  # more masks than OpenCV takes as channels
    for name in ["image.png", *names]:
        write(tmp_path / name, shape)
    write_index(tmp_path, {"image.png": names})
    dataset = TrainingDataset(tmp_path, 128, mask_num=12, augment=True)
    plain = TrainingDataset(tmp_path, 128, mask_num=12)[0, 0]
    moved = 0
    for epoch in range(25):
        sample = dataset[epoch, 0]
        assert len(sample.masks) == 12 and sample.masks.dtype == torch.bool
        assert (sample.masks == sample.masks[0]).all() and sample.content == plain.content
        shown, mask = sample.image[0] > 127, sample.masks[0, 0]
        assert (shown & mask).sum() / (shown | mask).sum() > 0.95
        assert (sample.image[0] == sample.image[1]).all() and (sample.image[0] == sample.image[2]).all()
        top, left, content_height, content_width = sample.content
        outside = torch.ones(128, 128, dtype=torch.bool)
        outside[top : top + content_height, left : left + content_width] = False
        assert not sample.image[:, outside].any() and not mask[outside].any()
        moved += not torch.equal(mask, plain.masks[0, 0])
    assert moved > 17  # 22 expected of transforms drawn independently, 12 if they all happen together


def test_object_moved_out_of_the_picture_is_dropped_but_not_counted(data, monkeypatch):
    dataset = TrainingDataset(data, SIZE, augment=True)
    monkeypatch.setattr(dataset, "_augment", lambda image, masks, generator: (image, np.zeros_like(masks)))
    sample = dataset[0, 1]
    assert sample.masks.shape == (0, 1, SIZE, SIZE) and sample.skipped == []


# ---------------------------------------------------------------- order, workers


@pytest.mark.parametrize("augment", [False, True])
def test_workers_and_global_seeds_change_nothing(data, augment):
    dataset = TrainingDataset(data, SIZE, augment=augment, seed=3)
    runs = []
    for workers in (0, 2):
        random.seed(workers), np.random.seed(workers), torch.manual_seed(workers)
        loader = train_loader(dataset, batch_size=3, num_workers=workers, seed=3)
        batches = []
        for epoch in range(2):
            loader.batch_sampler.set_epoch(epoch)
            batches += list(loader)
        runs.append(batches)
    assert len(runs[0]) == len(runs[1]) == 4
    assert all(same(a, b) for a, b in zip(*runs))
    assert not all(same(a, b) for a, b in zip(runs[0][:2], runs[0][2:]))  # epochs differ


def test_loader_leaves_the_global_generator_alone(data):
    before = torch.get_rng_state()
    list(train_loader(TrainingDataset(data, SIZE), batch_size=3, num_workers=0, seed=0))
    assert torch.equal(before, torch.get_rng_state())


def test_sampler_covers_every_image_once_and_differs_by_epoch():
    sampler = EpochSampler(10, 4, seed=1)
    epochs = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert [len(batch) for batch in batches] == [4, 4, 2] and len(sampler) == 3
        assert {key[0] for batch in batches for key in batch} == {epoch}
        epochs.append([key[1] for batch in batches for key in batch])
        assert sorted(epochs[-1]) == list(range(10))
    assert epochs[0] != epochs[1] != epochs[2]
    assert [key[1] for batch in EpochSampler(10, 4, seed=2) for key in batch] != epochs[0]


@pytest.mark.parametrize("start", range(5))
def test_resumed_sampler_yields_the_tail(start):
    whole, resumed = EpochSampler(13, 4, seed=5), EpochSampler(13, 4, seed=5)
    whole.set_epoch(2)
    resumed.set_epoch(2, start)
    assert list(resumed) == list(whole)[start:] and len(resumed) == len(whole) - start


def test_resumed_loader_yields_the_tail(data):
    loader = train_loader(TrainingDataset(data, SIZE), batch_size=1, num_workers=0, seed=0)
    loader.batch_sampler.set_epoch(1)
    whole = list(loader)
    loader.batch_sampler.set_epoch(1, start_batch=3)
    assert len(loader) == 1 and same(next(iter(loader)), whole[3])


@pytest.mark.parametrize("workers", [0, 1])
def test_error_of_a_worker_is_the_same_single_line(data, workers):
    path = data / "images/0.png"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError) as caught:
        list(test_loader(TestingDataset(data, SIZE), batch_size=2, num_workers=workers))
    assert str(caught.value) == f"{path}: truncated, its end is missing; copy or export it again"


# ---------------------------------------------------------------- real data


def test_demo_data(shared, monkeypatch):
    folder = shared / "data" / "sam_med2d" / "data_demo"
    monkeypatch.chdir("/")
    training, testing = TrainingDataset(folder, augment=True), TestingDataset(folder)
    batch = collate([training[0, i] for i in range(len(training))])
    assert len(batch.masks) == 5 * len(training) and not batch.skipped
    batch = collate([testing[i] for i in range(len(testing))])
    assert len(batch.masks) == testing.index.mask_count == len(batch.mask_names) and not batch.skipped
    assert batch.masks.flatten(1).any(1).all()
    small = [(content[2:], size) for content, size in zip(batch.content.tolist(), batch.original_sizes)]
    assert all(tuple(c) == (size if max(size) < 256 else (256, 256)) for c, size in small)


# Ends every process that the one it is given starts, as soon as it is there.
HUNTER = """
import contextlib, os, signal, sys
hunted = sys.argv[1]
while True:
    for child in open(f"/proc/{hunted}/task/{hunted}/children").read().split():
        if int(child) != os.getpid():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGTERM)
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="asks Linux for the children of a process")
def test_workers_leave_signals_of_others_to_their_parent_from_their_first_moment() -> None:
    hunter = subprocess.Popen([sys.executable, "-c", HUNTER, str(os.getpid())], stderr=subprocess.DEVNULL)
    try:
        for _ in range(10):
            assert sorted(Loader(range(6), 2, batch_size=None)) == [*range(6)]
        assert hunter.poll() is None
    finally:
        hunter.kill()
        hunter.wait()
