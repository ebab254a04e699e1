"""JSON that others wrote: read within bounds, and refused in one line.

    content = read_json("classes.json", "give a file of {name: value}")
    for key, value in entries_of(file): ...                             # {key: value, ...}, parsed as it is read

What is nested deeper than `DEEPEST`, or larger than a document of its kind can be, is refused before a parser sees it:
some brackets on one another take a parser's stack, and many beside one another take a hundred times their size.
"""

import json
import os
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, cast

import ijson
import numpy as np

from sam_med2d.errors import DataError, UserError

DEEPEST = 64  # lists and objects within one another
SMALL = 64 << 20  # bytes of a file that people write: settings, classes, prompts
LARGE = 1 << 30  # bytes of a file that holds data: annotations of COCO, prompts of a test run
MOST_CONTAINERS = 1 << 24  # lists and objects of one document; each takes 60 to 200 bytes
LARGEST_ENTRY = SMALL  # bytes of one entry of a file that is parsed as it is read
CHUNK = 1 << 20  # bytes
UNMARKED = bytes({*range(256)} - {*b'"[]{}'})  # what does not count for the nesting


class JsonError(ValueError):
    """What is wrong with a text, without the name of its file."""


def read_json(path: str | os.PathLike, remedy: str, *, most: int = SMALL, error: type[UserError] = DataError) -> Any:
    """What a JSON file holds. remedy: what to do about a bad one, for the end of the message.

    most: the largest size, in bytes. Raises `error`: cannot be read, too large or too deep, not JSON.
    """
    data = read_bounded(path, remedy, most=most, error=error)
    try:
        return parse_json(data, most)
    except JsonError as cause:
        raise error(f"{path}: not valid JSON ({cause}); {remedy}") from cause


def read_bounded(
    path: str | os.PathLike, remedy: str, *, most: int = SMALL, error: type[UserError] = DataError
) -> bytes:
    """All of a file, of which no more than `most` bytes are read: it may be a device or a pipe without an end.

    remedy: what to do about a bad one, for the end of the message. Raises `error`: cannot be read, too large.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(most + 1)
    except (OSError, ValueError) as cause:  # ValueError: a null character in the path
        said = getattr(cause, "strerror", None) or cause
        raise error(f"{path}: cannot be read ({said}); {remedy}") from cause
    if len(data) > most:
        raise error(f"{path}: has more than {most / 1e6:.0f} MB; {remedy}")
    return data


def parse_json(
    data: bytes | str, most: int = SMALL, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None
) -> Any:
    """What a JSON text holds. most: its largest size, in bytes.

    pairs: makes an object of its entries, in place of a dict. Raises JsonError.
    """
    if len(data) > most:
        raise JsonError(f"it has more than {most / 1e6:.0f} MB")
    try:
        text = data if isinstance(data, str) else data.decode(json.detect_encoding(data))
        nesting = Nesting()
        nesting.add(text.encode("utf-8", "surrogatepass"))
        return json.loads(text, object_pairs_hook=pairs)
    except JsonError:
        raise
    except (ValueError, RecursionError) as cause:  # bad JSON, bad UTF-8, and numbers of more digits than Python takes
        raise JsonError(" ".join(str(cause).split())) from cause


def entries_of(file: BinaryIO) -> Iterator[tuple[str, Any]]:
    """Key and value of each entry of the JSON object in a file, parsed as it is read. Raises JsonError."""
    bounded = cast(BinaryIO, _Bounded(file))
    try:
        yield from ijson.kvitems(bounded, "", buf_size=CHUNK)
    except JsonError:
        raise
    except (ijson.JSONError, ValueError) as cause:
        raise JsonError(" ".join(str(cause).split()[:40])) from cause


class _Bounded:
    """A binary file to read from, front to back, that raises JsonError before it hands on what is out of bounds."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._nesting = Nesting(LARGEST_ENTRY)

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._nesting.add(data)
        return data


class Nesting:
    """How deep the brackets of a text are within one another, counted piece by piece, without parsing it."""

    def __init__(self, largest_entry: int | None = None) -> None:
        """largest_entry: bytes of one entry of the outermost object; None: the whole is one document."""
        self._largest_entry = largest_entry
        self._depth = self._entry = self._containers = 0
        self._in_string = self._escaped = False

    def add(self, data: bytes) -> None:
        """The next piece. Raises JsonError where it leads out of bounds."""
        for start in range(0, len(data), CHUNK):
            self._add(data[start : start + CHUNK])

    def _add(self, data: bytes) -> None:
        """Of UTF-8, whose bytes that are no ASCII are none of those that count."""
        if self._escaped:
            data = b"_" + data[1:]
        plain = data.replace(b"\\\\", b"__")  # pairs from the left, as a parser reads them
        self._escaped = plain.endswith(b"\\")
        marks = np.frombuffer(plain.replace(b'\\"', b"__").translate(None, UNMARKED), np.uint8)
        outside = (np.cumsum(marks == ord('"')) + self._in_string) % 2 == 0
        opened = ((marks == ord("[")) | (marks == ord("{"))) & outside
        closed = ((marks == ord("]")) | (marks == ord("}"))) & outside
        depths = self._depth + np.cumsum(opened.astype(np.int32) - closed)
        if depths.max(initial=0) > DEEPEST:
            raise JsonError(f"it is nested deeper than {DEEPEST} lists and objects")
        self._containers += int(opened.sum())
        between = (self._depth <= 1 and not self._in_string) or bool(((depths <= 1) & outside).any())
        self._entry = 0 if between else self._entry + len(data)
        if len(marks):
            self._depth, self._in_string = int(depths[-1]), not outside[-1]
        if self._largest_entry is None:
            if self._containers > MOST_CONTAINERS:
                raise JsonError(f"it holds more than {MOST_CONTAINERS / 1e6:.0f} million lists and objects")
        elif self._entry > self._largest_entry:
            raise JsonError(f"one of its entries has more than {self._largest_entry / 1e6:.0f} MB")
