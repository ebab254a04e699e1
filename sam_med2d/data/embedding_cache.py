"""Embeddings of a frozen encoder on the disk: a file of slots that are found by what the picture is.

    DIR/embeddings-1b2c3d4e/
        settings.json   what they are valid for: weights, image size, precision, how they were computed
        embeddings      a slot an image: 256 x (S / 16) x (S / 16) numbers of 16 bits
        records         a record a slot: the picture's key, and a checksum of the slot

A picture's key is a hash of its pixels in the frame, so that the same cache serves training and validation, and a file
that is changed in place is noticed. A key's slot is the first free one, or its own, from a place that the key says.
Of two processes that fill one slot at the same time one loses: its picture is encoded again and put elsewhere.
"""

import contextlib
import json
import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from xxhash import xxh3_64_hexdigest, xxh3_64_intdigest

from sam_med2d.data.slots import HEADER, RECORDS, Slots, checksum_of, open_slots

FORMAT = 1  # of the files, and of how pictures are encoded; raise it with either
EMBEDDINGS = "embeddings"
RECORD = struct.Struct("<QQ")  # key, checksum
TRIED = 256  # places that are looked at for a key
FREE = 2**30  # bytes of the disk that are left free: checkpoints need room
PRECISIONS = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class EmbeddingCache:
    """Made by `open_embeddings`. shape: (C, h, w) of an embedding."""

    def __init__(self, slots: Slots, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
        self.slots, self.shape, self.dtype = slots, shape, dtype
        self._size = _bytes_of(shape)
        self.count = slots.lengths[EMBEDDINGS] // self._size
        _lock(slots.handle(RECORDS), "LOCK_SH")  # whoever makes room leaves it

    def get(self, key: int) -> Tensor | None:
        """-> (C, h, w) of the cache's type, or None if it is not there."""
        for place in self._places(key):
            stored, checksum = self._record(place)
            if not checksum:
                return None
            if stored == key:
                slot = self.slots.view(EMBEDDINGS)[place * self._size :][: self._size]
                if checksum != _checksum(slot, key):
                    return None
                return torch.frombuffer(bytearray(slot), dtype=self.dtype).view(self.shape)
        return None

    def put(self, key: int, embedding: Tensor) -> None:
        """embedding: (C, h, w) of the cache's type, on the CPU."""
        if not self.slots.writable or self.slots.full:
            return
        disk = os.statvfs(self.slots.folder)
        if disk.f_bavail * disk.f_frsize < FREE + self._size:
            self.slots.give_up(f"less than {FREE >> 30} GB of the disk are free")
            return
        for place in self._places(key):
            stored, checksum = self._record(place)
            if not checksum or stored == key:
                slot = embedding.contiguous().view(torch.uint8).numpy().tobytes()
                record = RECORD.pack(key, _checksum(slot, key))
                self.slots.write(EMBEDDINGS, place * self._size, slot, HEADER + place * RECORD.size, record)
                return

    def _places(self, key: int) -> Iterator[int]:
        return ((key + step) % self.count for step in range(min(TRIED, self.count)))

    def _record(self, place: int) -> tuple[int, int]:
        return RECORD.unpack_from(self.slots.view(RECORDS), HEADER + place * RECORD.size)


def open_embeddings(
    folder: str | os.PathLike, facts: dict, shape: tuple[int, int, int], precision: str, images: int, most: int
) -> EmbeddingCache | None:
    """The cache of embeddings with these facts, in its own folder under `folder`, made if it is not there.

    facts: what an embedding depends on beside its picture; shape: (C, h, w) of one; precision: of PRECISIONS;
    images: how many there are; most: bytes on the disk, of all such caches in the folder together: those that no
    process uses make room, the longest unused first. Pictures beyond that are not kept.
    None, and a line on stderr, where nothing can be written.
    """
    size = _bytes_of(shape)
    count = max(1, min(2 * images, most // size))  # twice as many as needed: a free place is near
    settings = {"format": FORMAT, **facts, "shape": [*shape], "precision": precision, "slots": count}
    own = Path(folder) / f"embeddings-{xxh3_64_hexdigest(json.dumps(settings).encode())[:8]}"
    _make_room(own, most - min(images, count) * size)
    lengths = {EMBEDDINGS: count * size, RECORDS: HEADER + count * RECORD.size}
    slots = open_slots(own, settings, lengths, folder)
    if slots is None:
        return None
    with contextlib.suppress(OSError):  # when it was last used
        os.utime(own / "settings.json")
    return EmbeddingCache(slots, shape, PRECISIONS[precision])


def key_of(image: Tensor, content: Tensor | None) -> int:
    """Of a picture in its frame, on the CPU: image (3, S, S) uint8, content (4,) as in `Sam.preprocess`; 64 bits."""
    where = str(content.tolist() if content is not None else None).encode()
    return xxh3_64_intdigest(image.contiguous().numpy().data, seed=xxh3_64_intdigest(where))


def _make_room(own: Path, room: int) -> None:
    """Remove caches beside `own`, the longest unused first, until the others take at most `room` bytes."""

    def used(cache: Path) -> tuple[float, int]:
        try:
            files = [path.stat() for path in cache.iterdir()]
            return (cache / "settings.json").stat().st_mtime, sum(512 * file.st_blocks for file in files)
        except OSError:  # half made, or just removed by another process
            return 0.0, 0

    others = sorted((*used(cache), cache) for cache in own.parent.glob("embeddings-*") if cache != own)
    taken = sum(size for _, size, _ in others)
    for _, size, cache in others:
        if taken > room and _unused(cache):
            shutil.rmtree(cache, ignore_errors=True)
            taken -= size


def _unused(cache: Path) -> bool:
    try:
        with open(cache / RECORDS, "rb") as file:
            return _lock(file.fileno(), "LOCK_EX")
    except OSError:
        return False


def _lock(handle: int, kind: str) -> bool:
    """Whether a file's lock could be had. Not every system and file system has locks."""
    try:
        import fcntl

        fcntl.flock(handle, getattr(fcntl, kind) | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True


def _bytes_of(shape: tuple[int, int, int]) -> int:
    channels, height, width = shape
    return 2 * channels * height * width


def _checksum(slot: bytes | memoryview, key: int) -> int:
    return checksum_of(slot, key & 0xFFFFFFFF, key >> 32)
