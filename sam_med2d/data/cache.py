"""The packed cache: images and masks as training reads them, decoded and resized, in a few large memory-mapped files.

    DIR/image2label_train-256px-1b2c3d4e/
        settings.json   what the cache is valid for: index, root, image size; written last
        images          a slot an image: its channels, one if all are equal, of h x w bytes
        masks           a slot a mask: h x w bits
        records         a record an image, then a record a mask: sizes, and a checksum of the slot

Slots have the size of the largest picture, and the files are sparse: what was never written takes no room on the disk
(`du` tells what they take, `ls` their length). Any process may fill any slot at any time: it writes the slot, then
its record, and all write the same. A reader trusts a slot whose checksum agrees; half-written ones are read again from
the files and written again. Slots are written with pwrite, never through the mapping, where a full disk would kill the
process.

An image file that is changed in place is not noticed while training; sam-med2d pack-dataset compares time stamps.
"""

import json
import mmap
import os
import struct
import sys
from pathlib import Path

import cv2
import numpy as np
from filelock import FileLock
from xxhash import xxh3_64_hexdigest, xxh3_64_intdigest

from sam_med2d.data.index import Index
from sam_med2d.json_files import parse_json
from segment_anything.files import replacing
from segment_anything.frames import SAM_MED2D

FORMAT = 1  # of the files, and of how images and masks are read and resized; raise it with either
HEADER = 4096  # bytes before the records; the first tells all processes that the disk is full
IMAGE = struct.Struct("<QQIIHHHxx")  # checksum, stamp of the file, original height and width, height, width, channels
MASK = struct.Struct("<QQ")  # checksum, stamp of the file
Size = tuple[int, int]


class PackedCache:
    """Made by `open_cache`. Images and masks are numbered as in the index: `mask(i, k)` is the k-th of `image(i)`."""

    def __init__(self, folder: str, index: Index, image_size: int) -> None:
        """Raises OSError: the files are missing, or not of the size they must have."""
        self.folder, self.index, self.image_size = folder, index, image_size
        self._image_slot, self._mask_slot = _slots(image_size)
        self._opened = {}
        for name, length in _lengths(index, image_size).items():
            path = os.path.join(folder, name)
            try:
                handle = os.open(path, os.O_RDWR)
                self._writable = True
            except OSError:  # others may read it
                handle = os.open(path, os.O_RDONLY)
                self._writable = False
            if os.fstat(handle).st_size != length:
                os.close(handle)
                raise OSError(f"{path} has another size than its settings ask for")
            self._opened[name] = handle, memoryview(mmap.mmap(handle, length, access=mmap.ACCESS_READ))

    def __reduce__(self):
        return PackedCache, (self.folder, self.index, self.image_size)

    @property
    def full(self) -> bool:
        """Whether any process found the disk full: nothing more is written, what is there is used."""
        return self._opened["records"][1][0] != 0

    def image(self, i: int, stamp: int | None = None) -> tuple[np.ndarray, Size] | None:
        """-> (h, w, 3) uint8 and the original size, or None if it is not there. stamp: the file's, to be compared."""
        checksum, stored, *original, height, width, channels = IMAGE.unpack_from(
            self._opened["records"][1], self._image_record(i)
        )
        slot = self._opened["images"][1][i * self._image_slot :][: channels * height * width]
        if not checksum or stamp not in (None, stored):
            return None
        if checksum != _checksum(slot, (*original, height, width, channels)):
            return None
        planes = np.frombuffer(slot, np.uint8).reshape(channels, height, width)
        return cv2.merge([*planes] if channels == 3 else [planes[0]] * 3), tuple(original)

    def mask(self, i: int, k: int, size: Size, stamp: int | None = None) -> np.ndarray | None:
        """-> (h, w) bool, or None if it is not there. size: that of image(i)."""
        number = self.index.first_mask(i) + k
        checksum, stored = MASK.unpack_from(self._opened["records"][1], self._mask_record(number))
        slot = self._opened["masks"][1][number * self._mask_slot :][: -(-size[0] * size[1] // 8)]
        if not checksum or stamp not in (None, stored) or checksum != _checksum(slot, size):
            return None
        return np.unpackbits(np.frombuffer(slot, np.uint8), count=size[0] * size[1]).reshape(size).view(bool)

    def put_image(self, i: int, image: np.ndarray, original_size: Size, stamp: int) -> None:
        """image: (h, w, 3) uint8, at most S x S."""
        planes = cv2.split(image)
        grey = np.array_equal(planes[0], planes[1]) and np.array_equal(planes[0], planes[2])
        slot = planes[0].tobytes() if grey else b"".join(plane.tobytes() for plane in planes)
        sizes = (*original_size, *image.shape[:2], 1 if grey else 3)
        self._write(
            "images",
            i * self._image_slot,
            slot,
            self._image_record(i),
            IMAGE.pack(_checksum(slot, sizes), stamp, *sizes),
        )

    def put_mask(self, i: int, k: int, mask: np.ndarray, stamp: int) -> None:
        """mask: (h, w) bool, as large as image(i)."""
        number = self.index.first_mask(i) + k
        slot = np.packbits(mask).tobytes()
        self._write(
            "masks",
            number * self._mask_slot,
            slot,
            self._mask_record(number),
            MASK.pack(_checksum(slot, mask.shape), stamp),
        )

    def _image_record(self, i: int) -> int:
        return HEADER + i * IMAGE.size

    def _mask_record(self, number: int) -> int:
        return HEADER + len(self.index) * IMAGE.size + number * MASK.size

    def _write(self, name: str, place: int, slot: bytes, record_place: int, record: bytes) -> None:
        if not self._writable or self.full:
            return
        try:
            _pwrite(self._opened[name][0], slot, place)
            _pwrite(self._opened["records"][0], record, record_place)
        except OSError as error:
            _pwrite(self._opened["records"][0], b"\1", 0)  # in place since the cache was made: needs no room
            print(
                f"the cache {self.folder} takes no more ({error.strerror}): going on with what it holds",
                file=sys.stderr,
            )


def open_cache(folder: str | os.PathLike, index: Index, image_size: int, frame: str = SAM_MED2D) -> PackedCache | None:
    """The cache of an index at an image size and in a frame, in its own folder under `folder`, made if it is not there.

    None, and a line on stderr, where it cannot be: training goes on without.
    """
    settings = {
        "format": FORMAT,
        "index": os.path.abspath(index.source),
        "hash": index.columns.facts["hash"],
        "root": index.root,
        "image_size": image_size,
        **({} if frame == SAM_MED2D else {"frame": frame}),
    }
    stem = Path(index.source).stem
    own = Path(folder) / f"{stem}-{image_size}px-{xxh3_64_hexdigest(json.dumps(settings).encode())[:8]}"
    try:
        if not _is_whole(own, settings, index, image_size):
            _make(own, settings, index, image_size)
        cache = PackedCache(str(own), index, image_size)
        if cache._writable:
            _pwrite(cache._opened["records"][0], b"\0", 0)  # there may be room now
        return cache
    except OSError as error:
        print(f"--cache {folder}: cannot be used ({error.strerror or error}); going on without it", file=sys.stderr)
        return None


def _is_whole(folder: Path, settings: dict, index: Index, image_size: int) -> bool:
    try:
        return parse_json((folder / "settings.json").read_bytes()) == settings and all(
            (folder / name).stat().st_size == length for name, length in _lengths(index, image_size).items()
        )
    except (OSError, ValueError):
        return False


def _make(folder: Path, settings: dict, index: Index, image_size: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        if _is_whole(folder, settings, index, image_size):  # another process has made it
            return
        (folder / "settings.json").unlink(missing_ok=True)
        for name, length in _lengths(index, image_size).items():
            with open(folder / name, "wb") as file:
                file.truncate(length)
                if name == "records":
                    file.write(bytes(HEADER))
        with replacing(folder / "settings.json") as path:
            path.write_text(json.dumps(settings, indent=1))


def _slots(image_size: int) -> tuple[int, int]:
    """Bytes of an image's slot and of a mask's."""
    return 3 * image_size * image_size, -(-image_size * image_size // 8)


def _lengths(index: Index, image_size: int) -> dict[str, int]:
    """Of the files, in bytes."""
    image_slot, mask_slot = _slots(image_size)
    return {
        "images": len(index) * image_slot,
        "masks": index.mask_count * mask_slot,
        "records": HEADER + len(index) * IMAGE.size + index.mask_count * MASK.size,
    }


def _checksum(slot: bytes | memoryview, sizes: tuple[int, ...]) -> int:
    """Of the content and the sizes it is to be read with; 0 means that nothing is there."""
    return xxh3_64_intdigest(slot, seed=xxh3_64_intdigest(struct.pack(f"<{len(sizes)}I", *sizes))) or 1


def _pwrite(handle: int, content: bytes, place: int) -> None:
    while content:
        written = os.pwrite(handle, content, place)
        content, place = content[written:], place + written
