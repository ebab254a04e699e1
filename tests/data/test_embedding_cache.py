"""The cache of embeddings: gives back what was put, or nothing, whatever happened to its files and its disk."""

import errno
import os
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from sam_med2d.data import embedding_cache
from sam_med2d.data.embedding_cache import EMBEDDINGS, EmbeddingCache, key_of, open_embeddings
from sam_med2d.data.slots import HEADER, RECORDS

SHAPE = (4, 3, 3)
SIZE = 2 * 4 * 3 * 3  # bytes
FACTS = {"weights": "a", "computed": "here"}


def opened(
    folder: Path, images: int = 10, most: int = 10**9, precision: str = "float16", **facts: str
) -> EmbeddingCache:
    cache = open_embeddings(folder, FACTS | facts, SHAPE, precision, images, most)
    assert cache is not None
    return cache


def embedding_of(key: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(key)).to(dtype)


def fill(cache: EmbeddingCache, keys: range) -> None:
    for key in keys:
        cache.put(key, embedding_of(key, cache.dtype))


def held(cache: EmbeddingCache, keys: range) -> list[int]:
    """The keys that are there; what is there is what was put."""
    found = {key: cache.get(key) for key in keys}
    assert all(torch.equal(value, embedding_of(key, cache.dtype)) for key, value in found.items() if value is not None)
    return [key for key, value in found.items() if value is not None]


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_it_holds_all_and_stays(precision: str, tmp_path: Path) -> None:
    """Keys that want the same place too: 20 places for 10 images, all keys a multiple of 20."""
    cache, keys = opened(tmp_path, precision=precision), range(20, 220, 20)
    assert held(cache, keys) == []
    fill(cache, keys)
    assert held(cache, keys) == [*keys] == held(opened(tmp_path, precision=precision), keys)


def test_it_is_bounded(tmp_path: Path) -> None:
    cache = opened(tmp_path, images=10, most=4 * SIZE)
    fill(cache, range(10))
    assert len(held(cache, range(10))) == 4 and os.stat(Path(cache.slots.folder) / EMBEDDINGS).st_size == 4 * SIZE


def test_others_make_room_unless_they_are_in_use(tmp_path: Path) -> None:
    room = 4 * 4096  # a file takes whole pages
    first, second = opened(tmp_path, most=room, weights="b"), opened(tmp_path, most=room, weights="c")
    for cache in (first, second):
        fill(cache, range(10))
        os.utime(Path(cache.slots.folder) / "settings.json", (1, 1))
    in_use, unused = Path(first.slots.folder), Path(second.slots.folder)
    del second, cache
    third = opened(tmp_path, most=10 * SIZE, weights="d")
    assert in_use.exists() and Path(third.slots.folder).exists() and not unused.exists()
    assert held(first, range(10)) == [*range(10)]


def test_facts_have_caches_of_their_own(tmp_path: Path) -> None:
    fill(opened(tmp_path), range(3))
    assert held(opened(tmp_path, weights="b"), range(3)) == [] == held(opened(tmp_path, precision="bfloat16"), range(3))
    assert held(opened(tmp_path), range(3)) == [0, 1, 2]


@pytest.mark.parametrize("name", [EMBEDDINGS, RECORDS])
def test_half_written_slots_are_nothing(name: str, tmp_path: Path) -> None:
    """As a machine that lost its power leaves them."""
    cache, keys = opened(tmp_path), range(10)
    fill(cache, keys)
    path = Path(cache.slots.folder) / name
    whole = path.read_bytes()
    start = HEADER if name == RECORDS else 0
    with open(path, "r+b") as file:
        file.write(whole[:start] + bytes(b if i // 40 % 2 else 0 for i, b in enumerate(whole[start:])))
    assert len(held(cache, keys)) < 10
    fill(cache, keys)
    assert held(cache, keys) == [*keys]


def test_two_writers_of_one_place(tmp_path: Path, monkeypatch) -> None:
    """Another process fills the slot between this one's slot and its record: neither is taken for the other."""
    cache, other = opened(tmp_path), opened(tmp_path)
    write, left = os.pwrite, [1]

    def interrupted(handle: int, content: bytes, place: int) -> int:
        done = write(handle, content, place)
        if left[0] and len(content) == SIZE:
            left[0] = 0
            other.put(5, embedding_of(5))
        return done

    monkeypatch.setattr(os, "pwrite", interrupted)
    cache.put(25, embedding_of(25))  # 25 and 5 want the same of 20 places
    monkeypatch.undo()
    assert set(held(cache, range(30))) < {5, 25}
    fill(cache, range(5, 26, 20))
    assert held(cache, range(30)) == [5, 25]


def test_a_full_disk(tmp_path: Path, monkeypatch, capfd) -> None:
    cache, other = opened(tmp_path), opened(tmp_path)
    fill(cache, range(2))
    write = os.pwrite

    def full(handle: int, content: bytes, place: int) -> int:
        if len(content) == SIZE:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(handle, content, place)

    monkeypatch.setattr(os, "pwrite", full)
    fill(cache, range(2, 5))
    fill(other, range(2, 5))
    assert held(cache, range(5)) == [0, 1] and capfd.readouterr().err.count("takes no more") == 1
    monkeypatch.undo()
    fill(opened(tmp_path), range(5))  # the next run tries again
    assert held(cache, range(5)) == [*range(5)]


def test_some_of_the_disk_is_left_free(tmp_path: Path, monkeypatch, capfd) -> None:
    cache = opened(tmp_path)
    disk = namedtuple("Disk", "f_bavail f_frsize")(embedding_cache.FREE // 4096, 4096)
    monkeypatch.setattr(os, "statvfs", lambda _: disk)
    fill(cache, range(3))
    assert held(cache, range(3)) == [] and "less than 1 GB of the disk are free" in capfd.readouterr().err


def test_where_nothing_can_be_written(tmp_path: Path, capfd) -> None:
    (tmp_path / "file").touch()
    assert open_embeddings(tmp_path / "file", FACTS, SHAPE, "float16", 3, 10**9) is None
    assert "cannot be used" in capfd.readouterr().err


def test_keys() -> None:
    image = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
    content = torch.tensor([0, 0, 8, 8])
    other = image.clone()
    other[1, 2, 3] += 1
    keys = {key_of(image, content), key_of(other, content), key_of(image, content - 1), key_of(image, None)}
    assert len(keys) == 4 and key_of(image.clone(), content.clone()) in keys
