"""Headers of text, of NRRD and MetaImage: looked at before ITK parses them.

Its parsers take much on trust: a line of NRRD of 5000 letters and a MetaImage of -1 dimensions end the process, and a
direction of 1e308 keeps it for ever. And they open whatever file a header names for its data, anywhere on the machine.
"""

import re
from collections.abc import Iterator
from pathlib import PurePosixPath, PureWindowsPath
from typing import BinaryIO

from sam_med2d.errors import DataError

NRRD, META = b"NRRD000", b"NDims"
BEGINNING = 8192  # bytes, in which ITK looks for META
LONGEST_LINE = 500  # bytes of a field of NRRD, for which the parser has room for 512
LONGEST_HEADER = 1 << 24  # bytes
MOST_DIMENSIONS = 4
FARTHEST = 1e9  # mm, and more than any factor
PLACES = re.compile(  # fields that say where voxels lie
    rb"\s*(transformmatrix|rotation|orientation|offset|position|origin|elementspacing|elementsize|"
    rb"space directions|space origin|spacings|axis mins|axis maxs|measurement frame|thicknesses)\s*[:=](?P<numbers>.*)",
    re.IGNORECASE,
)
DATA = re.compile(rb"\s*(data ?file\s*:|elementdatafile\s*=)\s*(?P<name>.*)", re.IGNORECASE)
NO_COUNTER = re.compile(rb"%(?!0?[0-9]{0,2}d)")  # what a pattern of names has beside one like %03d
NUMBER = re.compile(rb"[^\s,()]+")


def check_text_header(path: str) -> None:
    """Raises DataError for a header of NRRD or MetaImage as no program writes it. Raises OSError."""
    with open(path, "rb") as file:
        beginning = file.read(BEGINNING)
        file.seek(0)
        nrrd = beginning.startswith(NRRD)
        if not nrrd and META not in beginning:
            return
        listed = False  # whether what follows are names of files
        for line in _lines(file, path, nrrd):
            data = DATA.match(line)
            if listed or data:
                _check_name((data["name"] if data else line).strip(), path)
            listed = listed or bool(data and data["name"].startswith(b"LIST"))
            if problem := _long(line) if nrrd else _dimensions(line):
                raise DataError(f"{path}: {problem}; export it again")
            for number in _far(line):
                raise DataError(f"{path}: its header has {number:g} for a place or a distance; export it again")


def _lines(file: BinaryIO, path: str, nrrd: bool) -> Iterator[bytes]:
    """Those of the header. NRRD: an empty line ends it, or the file does; MetaImage: data within the file do."""
    while line := file.readline(LONGEST_HEADER):
        if nrrd and not line.strip(b"\r\n"):
            return
        yield line
        if not nrrd and (data := DATA.match(line)) and data["name"].strip().upper() == b"LOCAL":
            return
        if file.tell() > LONGEST_HEADER:
            raise DataError(f"{path}: has a header of more than {LONGEST_HEADER >> 20} MB; export it again")


def _check_name(name: bytes, path: str) -> None:
    """Raises DataError unless the name, or the pattern of names, of a file with data stays in the header's folder."""
    text = name.decode("utf-8", "replace")
    way = PureWindowsPath(text)  # which knows either kind of separator
    if way.drive or way.root or PurePosixPath(text).is_absolute() or ".." in way.parts:
        raise DataError(f"{path}: names {text[:80]!a} for its data; they must lie in its own folder: put them there")
    if NO_COUNTER.search(name):
        raise DataError(
            f"{path}: names {text[:80]!a} for its data, which is no pattern such as slice%03d.raw; correct it"
        )


def _long(line: bytes) -> str:
    free = line.startswith(b"#") or b":=" in line  # comments, and pairs of a key and a value as long as it likes
    too_long = len(line) > LONGEST_LINE and not free
    return f"has a line of more than {LONGEST_LINE} letters in its header" if too_long else ""


def _dimensions(line: bytes) -> str:
    key, _, value = line.partition(b"=")
    if key.strip() != META or (value.strip().isdigit() and 0 < int(value[:20]) <= MOST_DIMENSIONS):
        return ""
    return f"says that it has {ascii(value.strip().decode('latin-1'))[:40]} dimensions"


def _far(line: bytes) -> Iterator[float]:
    """Numbers that are no places. NRRD has "none" and nan where an axis has no place."""
    if found := PLACES.match(line):
        for word in NUMBER.findall(found["numbers"]):
            try:
                number = float(word)
            except ValueError:
                continue
            if abs(number) > FARTHEST:
                yield number
