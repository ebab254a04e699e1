"""The packed cache: images and masks as training reads them, decoded and resized, in a few large memory-mapped files.

    DIR/image2label_train-256px-1b2c3d4e/
        settings.json   what the cache is valid for: index, root, image size; written last
        images          a slot an image: its channels, one if all are equal, of h x w bytes
        masks           a slot a mask: h x w bits
        records         a record an image, then a record a mask: sizes, and a checksum of the slot

The slot of a mask that is empty in the frame says what it holds at the picture's size: its area, 0 if none, and
the frame that would show it.

Slots have the size of the largest picture, and the files are sparse: what was never written takes no room on the disk
(`du` tells what they take, `ls` their length). Any process may fill any slot at any time, and all write the same; see
slots.py. Half-written ones are read again from the files and written again.

An image file that is changed in place is not noticed while training; sam-med2d pack-dataset compares time stamps.
"""

import json
import os
import struct
from pathlib import Path

import cv2
import numpy as np
from xxhash import xxh3_64_hexdigest

from sam_med2d.data.index import Index
from sam_med2d.data.slots import HEADER, Slots, checksum_of, open_slots
from sam_med2d.data.vanishing import Vanished, vanished_of
from segment_anything.frames import SAM_MED2D

FORMAT = 1  # of the files, and of how images and masks are read and resized; raise it with either
IMAGE = struct.Struct("<QQIIHHHxx")  # checksum, stamp of the file, original height and width, height, width, channels
MASK = struct.Struct("<QQ")  # checksum, stamp of the file
NOTHING_SHOWN = struct.Struct("<QQ")  # in the slot of a mask that is empty in the frame: a Vanished
MARK = 1  # in the checksum of such a slot
Size = tuple[int, int]


class PackedCache:
    """Made by `open_cache`. Images and masks are numbered as in the index: `mask(i, k)` is the k-th of `image(i)`."""

    def __init__(self, slots: Slots, index: Index, image_size: int) -> None:
        self.slots, self.index, self.image_size = slots, index, image_size
        self._image_slot, self._mask_slot = _slots(image_size)

    @property
    def folder(self) -> str:
        return self.slots.folder

    @property
    def full(self) -> bool:
        """Whether any process found the disk full: nothing more is written, what is there is used."""
        return self.slots.full

    def image(self, i: int, stamp: int | None = None) -> tuple[np.ndarray, Size] | None:
        """-> (h, w, 3) uint8 and the original size, or None if it is not there. stamp: the file's, to be compared."""
        checksum, stored, *original, height, width, channels = IMAGE.unpack_from(
            self.slots.view("records"), self._image_record(i)
        )
        slot = self.slots.view("images")[i * self._image_slot :][: channels * height * width]
        if not checksum or stamp not in (None, stored):
            return None
        if checksum != checksum_of(slot, *original, height, width, channels):
            return None
        planes = np.frombuffer(slot, np.uint8).reshape(channels, height, width)
        return cv2.merge([*planes] if channels == 3 else [planes[0]] * 3), tuple(original)

    def mask(self, i: int, k: int, size: Size, stamp: int | None = None) -> np.ndarray | None:
        """-> (h, w) bool, or None if it is not there. size: that of image(i)."""
        number = self.index.first_mask(i) + k
        checksum, stored = MASK.unpack_from(self.slots.view("records"), self._mask_record(number))
        slot = self._mask_bytes(number, -(-size[0] * size[1] // 8))
        if not checksum or stamp not in (None, stored):
            return None
        if checksum != checksum_of(slot, *size):
            return None if self.nothing_shown(i, k, size) is None else np.zeros(size, bool)
        return np.unpackbits(np.frombuffer(slot, np.uint8), count=size[0] * size[1]).reshape(size).view(bool)

    def nothing_shown(self, i: int, k: int, size: Size) -> Vanished | None:
        """What a mask that is empty in the frame holds at the picture's size; None where that is not known, or there is
        something to be seen. size: that of image(i).
        """
        number = self.index.first_mask(i) + k
        checksum, _ = MASK.unpack_from(self.slots.view("records"), self._mask_record(number))
        slot = self._mask_bytes(number, NOTHING_SHOWN.size)
        return Vanished(*NOTHING_SHOWN.unpack(slot)) if checksum == checksum_of(slot, *size, MARK) else None

    def _mask_bytes(self, number: int, count: int) -> memoryview:
        return self.slots.view("masks")[number * self._mask_slot :][:count]

    def put_image(self, i: int, image: np.ndarray, original_size: Size, stamp: int) -> None:
        """image: (h, w, 3) uint8, at most S x S."""
        planes = cv2.split(image)
        grey = np.array_equal(planes[0], planes[1]) and np.array_equal(planes[0], planes[2])
        slot = planes[0].tobytes() if grey else b"".join(plane.tobytes() for plane in planes)
        sizes = (*original_size, *image.shape[:2], 1 if grey else 3)
        self.slots.write(
            "images",
            i * self._image_slot,
            slot,
            self._image_record(i),
            IMAGE.pack(checksum_of(slot, *sizes), stamp, *sizes),
        )

    def put_mask(self, i: int, k: int, mask: np.ndarray, stamp: int, whole: np.ndarray | None = None) -> None:
        """mask: (h, w) bool, as large as image(i); whole: the same at the picture's own size, to be told of one that
        is empty in the frame.
        """
        number = self.index.first_mask(i) + k
        slot, mark = np.packbits(mask).tobytes(), tuple[int, ...]()
        if whole is not None and not mask.any():
            slot, mark = NOTHING_SHOWN.pack(*vanished_of(whole)), (MARK,)
        self.slots.write(
            "masks",
            number * self._mask_slot,
            slot,
            self._mask_record(number),
            MASK.pack(checksum_of(slot, *mask.shape, *mark), stamp),
        )

    def _image_record(self, i: int) -> int:
        return HEADER + i * IMAGE.size

    def _mask_record(self, number: int) -> int:
        return HEADER + len(self.index) * IMAGE.size + number * MASK.size


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
    slots = open_slots(own, settings, _lengths(index, image_size), folder)
    return PackedCache(slots, index, image_size) if slots else None


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
