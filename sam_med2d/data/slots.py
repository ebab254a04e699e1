"""Files of slots, which any process may fill at any time: what the caches of images and of embeddings are made of.

    FOLDER/
        settings.json   what the files are valid for; written last
        records         HEADER bytes, then a record a slot, with a checksum of its content
        ...             files of slots, sparse: what was never written takes no room on the disk

A writer writes the slot, then its record. A reader trusts a slot whose checksum agrees; half-written ones are made and
written again. Slots are written with pwrite, never through the mapping, where a full disk would kill the process.
"""

import json
import mmap
import os
import struct
import sys
from pathlib import Path

from filelock import FileLock
from xxhash import xxh3_64_intdigest

from sam_med2d.json_files import parse_json
from segment_anything.files import replacing

HEADER = 4096  # bytes before the records; the first tells all processes that the disk is full
RECORDS = "records"


class Slots:
    """The files of one cache, opened. Made by `open_slots`."""

    def __init__(self, folder: str, lengths: dict[str, int]) -> None:
        """lengths: of the files, in bytes. Raises OSError: they are missing, or not of the size they must have."""
        self.folder, self.lengths = folder, lengths
        self._opened: dict[str, tuple[int, memoryview]] = {}
        for name, length in lengths.items():
            path = os.path.join(folder, name)
            try:
                handle = os.open(path, os.O_RDWR)
                self.writable = True
            except OSError:  # others may read it
                handle = os.open(path, os.O_RDONLY)
                self.writable = False
            if os.fstat(handle).st_size != length:
                os.close(handle)
                raise OSError(f"{path} has another size than its settings ask for")
            self._opened[name] = handle, memoryview(mmap.mmap(handle, length, access=mmap.ACCESS_READ))

    def __del__(self) -> None:
        for handle, _ in self._opened.values():
            os.close(handle)

    def __reduce__(self):
        return Slots, (self.folder, self.lengths)

    @property
    def full(self) -> bool:
        """Whether any process found the disk full: nothing more is written, what is there is used."""
        return self._opened[RECORDS][1][0] != 0

    def handle(self, name: str) -> int:
        """The open file's descriptor."""
        return self._opened[name][0]

    def view(self, name: str) -> memoryview:
        """A file's bytes, as they are now."""
        return self._opened[name][1]

    def write(self, name: str, place: int, slot: bytes, record_place: int, record: bytes) -> None:
        """Fill a slot, unless the disk is full or may not be written to."""
        if not self.writable or self.full:
            return
        try:
            _pwrite(self.handle(name), slot, place)
            _pwrite(self.handle(RECORDS), record, record_place)
        except OSError as error:
            self.give_up(error.strerror or str(error))

    def give_up(self, why: str) -> None:
        """Let no process write any more, and say so."""
        _pwrite(self.handle(RECORDS), b"\1", 0)  # in place since the cache was made: needs no room
        print(f"the cache {self.folder} takes no more ({why}): going on with what it holds", file=sys.stderr)


def open_slots(folder: Path, settings: dict, lengths: dict[str, int], given: str | os.PathLike) -> Slots | None:
    """The files in a folder, made if they are not there or not valid for the settings.

    given: the folder that --cache named. None, and a line on stderr, where they cannot be: the caller goes on without.
    """
    try:
        if not _is_whole(folder, settings, lengths):
            _make(folder, settings, lengths)
        slots = Slots(str(folder), lengths)
        if slots.writable:
            _pwrite(slots.handle(RECORDS), b"\0", 0)  # there may be room now
        return slots
    except OSError as error:
        print(f"--cache {given}: cannot be used ({error.strerror or error}); going on without it", file=sys.stderr)
        return None


def checksum_of(slot: bytes | memoryview, *with_it: int) -> int:
    """Of the content and the numbers it is to be read with, up to 32 bits each; 0 means that nothing is there."""
    return xxh3_64_intdigest(slot, seed=xxh3_64_intdigest(struct.pack(f"<{len(with_it)}I", *with_it))) or 1


def _is_whole(folder: Path, settings: dict, lengths: dict[str, int]) -> bool:
    try:
        return parse_json((folder / "settings.json").read_bytes()) == settings and all(
            (folder / name).stat().st_size == length for name, length in lengths.items()
        )
    except (OSError, ValueError):
        return False


def _make(folder: Path, settings: dict, lengths: dict[str, int]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        if _is_whole(folder, settings, lengths):  # another process has made it
            return
        (folder / "settings.json").unlink(missing_ok=True)
        for name, length in lengths.items():
            with open(folder / name, "wb") as file:
                file.truncate(length)
                if name == RECORDS:
                    file.write(bytes(HEADER))
        with replacing(folder / "settings.json") as path:
            path.write_text(json.dumps(settings, indent=1))


def _pwrite(handle: int, content: bytes, place: int) -> None:
    while content:
        written = os.pwrite(handle, content, place)
        content, place = content[written:], place + written
