"""The same batches with the packed cache as without, whatever happened to it."""

import errno
import json
import os
import pickle
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from sam_med2d.commands import pack_dataset
from sam_med2d.data import cache as cache_room
from sam_med2d.data import datasets as loading
from sam_med2d.data import reading as reading_room
from sam_med2d.data.cache import open_cache
from sam_med2d.data.datasets import TrainingDataset, shrunk, train_loader
from sam_med2d.data.index import read_index
from sam_med2d.errors import DataError

SIZE = 32


def write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", array)[1].tobytes())


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Five images: stretched, padded, one side smaller, exact, grey; of 1 to 5 masks, one of them empty."""
    folder, groups = tmp_path / "data", {}
    draw = np.random.default_rng(0)
    for i, (height, width) in enumerate([(48, 40), (20, 25), (20, 50), (SIZE, SIZE), (64, 64)]):
        image = f"images/{i}.png"
        colours = draw.integers(0, 256, (height, width, 3), np.uint8)
        write(folder / image, colours if i < 4 else colours[..., 0])
        groups[image] = [f"masks/{i}_{k}.png" for k in range(i + 1)]
        for k, name in enumerate(groups[image]):
            mask = draw.random((height, width)) < (0.4 if (i, k) != (3, 1) else 0)
            write(folder / name, mask.astype(np.uint8) * 255)
    (folder / "image2label_train.json").write_text(json.dumps(groups))
    return folder


def batches(data: Path, cache: Path | None = None, epochs: int = 3, workers: int = 0, **options) -> list:
    dataset = TrainingDataset(data, SIZE, cache=cache, **options)
    loader = train_loader(dataset, batch_size=2, num_workers=workers, seed=0)
    found = []
    for epoch in range(epochs):
        loader.batch_sampler.set_epoch(epoch)
        found += list(loader)
    return found


def same(ours: list, theirs: list) -> bool:
    fields = ("images", "content", "masks", "image_index")
    return len(ours) == len(theirs) > 0 and all(
        all(torch.equal(getattr(a, name), getattr(b, name)) for name in fields)
        and (a.image_names, a.mask_names, a.original_sizes, a.skipped, a.vanished)
        == (b.image_names, b.mask_names, b.original_sizes, b.skipped, b.vanished)
        for a, b in zip(ours, theirs)
    )


def files(cache: Path) -> Path:
    """The folder of the one cache in there."""
    (folder,) = cache.iterdir()
    return folder


def pack(data: Path, cache: Path, size: int = SIZE) -> None:
    index = read_index(data, "train")
    opened = open_cache(cache, index, size)
    for i in range(len(index)):
        shrunk(index, i, range(len(index[i][1])), size, opened)


def refuse_files(monkeypatch) -> None:
    def refuse(path, *_):
        raise AssertionError(f"{path} was read")

    monkeypatch.setattr(loading, "read_image", refuse)
    monkeypatch.setattr(loading, "read_mask", refuse)


# ---------------------------------------------------------------- the same batches


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("augment", [False, True])
def test_batches_are_the_same_while_it_fills_and_from_it_alone(data, tmp_path, augment, workers):
    plain = batches(data, augment=augment)
    assert same(batches(data, tmp_path / "cache", augment=augment, workers=workers), plain)
    pack(data, tmp_path / "cache")
    shutil.move(data / "images", tmp_path / "away")  # proof that nothing is decoded any more
    for name in (tmp_path / "away").iterdir():
        (data / "images" / name.name).parent.mkdir(exist_ok=True)
        (data / "images" / name.name).write_bytes(b"no image")
    for name in (data / "masks").iterdir():
        name.write_bytes(b"no mask")
    assert same(batches(data, tmp_path / "cache", augment=augment, workers=workers), plain)


def test_images_are_writable(data, tmp_path):
    """Augmentation and torch.from_numpy need arrays of their own, not views of the files."""
    pack(data, tmp_path / "cache")
    index = read_index(data, "train")
    for i in range(len(index)):
        image, masks, _ = shrunk(index, i, [0], SIZE, open_cache(tmp_path / "cache", index, SIZE))
        assert image.flags.writeable and masks.flags.writeable and image.shape[2] == 3


def test_only_what_was_drawn_is_read(data, tmp_path):
    dataset = TrainingDataset(data, SIZE, mask_num=1, cache=tmp_path / "cache")
    name = dataset[0, 4].mask_names
    stored = [dataset.cache.mask(4, k, (SIZE, SIZE)) is not None for k in range(5)]
    assert sum(stored) == 1 and dataset.index[4][1][stored.index(True)] == name[0]
    assert dataset.cache.image(3) is None


def test_grey_takes_a_third(data, tmp_path):
    pack(data, tmp_path / "cache")
    index = read_index(data, "train")
    cache = open_cache(tmp_path / "cache", index, SIZE)
    slots = np.fromfile(files(tmp_path / "cache") / "images", np.uint8).reshape(len(index), -1)
    assert slots[4, : SIZE * SIZE].any() and not slots[4, SIZE * SIZE :].any() and slots[3, SIZE * SIZE :].any()
    image, original_size = cache.image(4)
    assert (image[..., 0] == image[..., 2]).all() and original_size == (64, 64)


# ---------------------------------------------------------------- valid for its settings alone


def test_each_setting_has_its_own(data, tmp_path):
    caches = tmp_path / "cache"
    pack(data, caches)
    pack(data, caches, size=64)
    copy = shutil.copytree(data, tmp_path / "copy")  # the same names, other files
    write(copy / "images/0.png", np.zeros((48, 40, 3), np.uint8))
    pack(copy, caches)
    groups = json.loads((data / "image2label_train.json").read_text())
    (data / "image2label_train.json").write_text(json.dumps(dict(reversed(groups.items()))))
    assert same(batches(data, caches), batches(data))
    assert len(list(caches.iterdir())) == 4
    assert same(batches(copy, caches), batches(copy)) and not batches(copy, caches)[0].images.equal(
        batches(data)[0].images
    )


@pytest.mark.parametrize("name", ["images", "masks", "records"])
def test_files_of_another_length_are_made_again(data, tmp_path, name):
    plain = batches(data)
    pack(data, tmp_path / "cache")
    path = files(tmp_path / "cache") / name
    for length in (0, path.stat().st_size // 2, path.stat().st_size + 1):
        os.truncate(path, length)
        assert same(batches(data, tmp_path / "cache"), plain)


def test_interrupted_before_its_settings_were_written(data, tmp_path):
    pack(data, tmp_path / "cache")
    (files(tmp_path / "cache") / "settings.json").unlink()
    assert same(batches(data, tmp_path / "cache"), batches(data))
    assert (files(tmp_path / "cache") / "settings.json").exists()


@pytest.mark.parametrize("name", ["images", "masks", "records"])
def test_half_written_slots_are_written_again(data, tmp_path, name):
    """As a machine that lost its power leaves them: the record is there, its slot is not, or is not whole."""
    plain = batches(data)
    pack(data, tmp_path / "cache")
    path = files(tmp_path / "cache") / name
    whole = path.read_bytes()
    start = cache_room.HEADER if name == "records" else 0
    path.write_bytes(whole[:start] + bytes(b if i // 64 % 2 else 0 for i, b in enumerate(whole[start:])))
    assert same(batches(data, tmp_path / "cache", epochs=6)[: len(plain)], plain)
    pack(data, tmp_path / "cache")
    assert path.read_bytes() == whole


# ---------------------------------------------------------------- where it cannot be


def test_a_full_disk_leaves_training_going(data, tmp_path, monkeypatch, capfd):
    plain, room, written = batches(data), 3000, []
    pwrite = os.pwrite

    def limited(handle, content, place):
        if place and sum(written) + len(content) > room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(len(content))
        return pwrite(handle, content, place)

    monkeypatch.setattr(cache_room.os, "pwrite", limited)
    assert same(batches(data, tmp_path / "cache", workers=2), plain)
    said = capfd.readouterr().err.splitlines()
    assert (
        1 <= len([line for line in said if "takes no more (No space left on device): going on" in line]) <= 2
    )  # workers
    index = read_index(data, "train")
    assert not open_cache(tmp_path / "cache", index, SIZE).full  # tried again by the next run
    monkeypatch.undo()
    assert same(batches(data, tmp_path / "cache"), plain)
    pack(data, tmp_path / "cache")
    refuse_files(monkeypatch)
    assert same(batches(data, tmp_path / "cache"), plain)


def test_no_more_is_written_once_it_is_full(data, tmp_path, monkeypatch):
    index = read_index(data, "train")
    cache, other = (open_cache(tmp_path / "cache", index, SIZE) for _ in range(2))
    monkeypatch.setattr(
        cache_room.os,
        "pwrite",
        lambda handle, content, place, write=os.pwrite: (
            write(handle, content, place)
            if len(content) == 1
            else (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device"))
        ),
    )
    shrunk(index, 0, [0], SIZE, cache)
    assert cache.full and other.full
    monkeypatch.undo()
    shrunk(index, 0, [0], SIZE, other)
    assert other.image(0) is None


def test_a_place_that_cannot_be_written_is_said_once(data, tmp_path, capfd):
    (tmp_path / "file").touch()
    assert same(batches(data, tmp_path / "file"), batches(data))
    said = capfd.readouterr().err
    assert (
        said.count("\n") == 1 and f"--cache {tmp_path / 'file'}: cannot be used" in said and "going on without" in said
    )


def test_a_cache_that_may_only_be_read(data, tmp_path, monkeypatch):
    plain = batches(data)
    index = read_index(data, "train")
    cache = open_cache(tmp_path / "cache", index, SIZE)
    shrunk(index, 0, [0], SIZE, cache)
    opened = os.open
    monkeypatch.setattr(
        cache_room.os,
        "open",
        lambda path, flags: (
            opened(path, flags)
            if flags == os.O_RDONLY
            else (_ for _ in ()).throw(PermissionError(errno.EACCES, "Permission denied"))
        ),
    )
    content = (files(tmp_path / "cache") / "records").read_bytes()
    assert same(batches(data, tmp_path / "cache"), plain)
    assert (files(tmp_path / "cache") / "records").read_bytes() == content


# ---------------------------------------------------------------- others


def test_a_changed_file_is_packed_again_on_request(data, tmp_path):
    index = read_index(data, "train")
    pack(data, tmp_path / "cache")
    cache = open_cache(tmp_path / "cache", index, SIZE)
    write(data / "images/4.png", np.full((64, 64), 7, np.uint8))
    write(data / "masks/4_1.png", np.full((64, 64), 255, np.uint8))
    image, masks, _ = shrunk(index, 4, [0, 1], SIZE, cache)
    assert not (image == 7).all() and not masks[1].all()
    for changed in (True, False):
        image, masks, _ = shrunk(index, 4, [0, 1], SIZE, cache, changed=changed)
        assert (image == 7).all() and masks[1].all() and not masks[0].all()


def test_bad_files_are_errors_as_without(data, tmp_path):
    write(data / "masks/4_0.png", np.zeros((9, 9), np.uint8))
    dataset = TrainingDataset(data, SIZE, mask_num=40, cache=tmp_path / "cache")
    for _ in range(2):  # the second time with the image from the cache
        with pytest.raises(DataError, match="masks/4_0.png: mask of 9 x 9 pixels, but .*images/4.png has 64 x 64"):
            dataset[0, 4]


def test_processes_started_anew_open_the_same(data, tmp_path):
    pack(data, tmp_path / "cache")
    index = read_index(data, "train")
    cache = pickle.loads(pickle.dumps(open_cache(tmp_path / "cache", index, SIZE)))
    assert (cache.image(0)[0] == shrunk(index, 0, [], SIZE)[0]).all()


def test_what_was_never_written_takes_no_room(data, tmp_path):
    open_cache(tmp_path / "cache", read_index(data, "train"), 1024)
    images = (files(tmp_path / "cache") / "images").stat()
    assert images.st_size == 5 * 3 * 1024 * 1024 and images.st_blocks * 512 < 1 << 16


# ---------------------------------------------------------------- scripts/pack_dataset.py


def pack_by_script(data: Path, cache: Path, *more: str) -> int:
    """-> the exit status."""
    try:
        pack_dataset.main(
            ["--cache", str(cache), "--data_path", str(data), "--image_size", str(SIZE), "--num_workers", "2", *more]
        )
    except SystemExit as end:
        return end.code
    return 0


def test_packed_ahead_training_opens_no_file(data, tmp_path, monkeypatch, capsys):
    plain = batches(data)
    assert pack_by_script(data, tmp_path / "cache") == 0
    assert f"5 images and 15 masks at {SIZE} px" in capsys.readouterr().out
    refuse_files(monkeypatch)
    assert same(batches(data, tmp_path / "cache"), plain)


def test_packed_again_only_what_changed_is_read(data, tmp_path, monkeypatch):
    pack_by_script(data, tmp_path / "cache", "--num_workers", "0")
    write(data / "masks/4_1.png", np.full((64, 64), 255, np.uint8))
    read = []
    read_mask = reading_room.read_mask
    refuse_files(monkeypatch)
    monkeypatch.setattr(loading, "read_mask", lambda path, *others: read.append(path) or read_mask(path, *others))
    assert pack_by_script(data, tmp_path / "cache", "--num_workers", "0") == 0
    assert read == [str(data / "masks/4_1.png")]


def test_bad_files_are_left_out_and_named(data, tmp_path, capsys):
    (data / "images/0.png").write_bytes(b"no image")
    write(data / "masks/3_2.png", np.zeros((9, 9), np.uint8))
    assert pack_by_script(data, tmp_path / "cache") == 1
    said = capsys.readouterr().err
    assert "left out:" in said and "images/0.png: not an image" in said and "masks/3_2.png: mask of 9 x 9" in said
    index = read_index(data, "train")
    cache = open_cache(tmp_path / "cache", index, SIZE)
    assert [cache.image(i) is not None for i in range(5)] == [False, True, True, True, True]
    assert [cache.mask(3, k, (SIZE, SIZE)) is not None for k in range(4)] == [True, True, False, True]


def test_bad_ends_of_the_script(data, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    assert pack_by_script(data, tmp_path / "file") == 74
    assert "nothing can be packed there" in capsys.readouterr().err
    assert "no index of split 'val'" in pack_by_script(data, tmp_path / "cache", "--split", "val")
    pwrite = os.pwrite
    monkeypatch.setattr(
        cache_room.os,
        "pwrite",
        lambda handle, content, place: (
            pwrite(handle, content, place)
            if len(content) == 1
            else (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device"))
        ),
    )
    assert pack_by_script(data, tmp_path / "cache", "--num_workers", "0") == 74
    assert "is full; make room" in capsys.readouterr().err


def test_what_vanishes_counts_the_same_with_a_cache(data: Path, tmp_path: Path) -> None:
    """One pixel of 64 x 64 that the frame does not show, and an empty mask, which is none of these."""
    mask = np.zeros((64, 64), np.uint8)
    mask[63, 63] = 255
    write(data / "masks/4_2.png", mask)
    options = {"mask_num": 9, "epochs": 4}
    plain = batches(data, **options)
    vanished = {name: one for batch in plain for name, one in batch.vanished.items()}
    assert [*vanished] == ["masks/4_2.png"] and vanished["masks/4_2.png"].area == 1
    assert "masks/3_1.png" in {name for batch in plain for name in batch.skipped}
    for _ in range(2):  # while it is filled, and when it is
        assert same(batches(data, tmp_path / "cache", **options), plain)
    dataset = TrainingDataset(data, SIZE, mask_num=9, cache=tmp_path / "cache")
    shutil.rmtree(data / "masks")
    assert [*dataset[0, 4].vanished] == ["masks/4_2.png"]  # no file is opened to ask


def test_a_cache_of_an_earlier_version_learns_what_vanishes(data: Path, tmp_path: Path) -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[63, 63] = 255
    write(data / "masks/4_2.png", mask)
    dataset = TrainingDataset(data, SIZE, mask_num=30, cache=tmp_path / "cache")
    size = dataset[0, 4].image.shape[1:]
    dataset.cache.put_mask(4, 2, np.zeros(size, bool), 5)  # as these did: nothing says what it holds
    assert dataset.cache.nothing_shown(4, 2, size) is None and dataset.cache.mask(4, 2, size) is not None
    assert [*dataset[0, 4].vanished] == ["masks/4_2.png"]
    assert dataset.cache.nothing_shown(4, 2, size).area == 1
    dataset.cache.put_mask(4, 2, np.zeros(size, bool), 5)
    (data / "masks/4_2.png").unlink()
    assert dataset[0, 4].vanished == {} and "masks/4_2.png" in dataset[0, 4].skipped
