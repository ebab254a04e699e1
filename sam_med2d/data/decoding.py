"""Picture files -> arrays: read whole, judged by their headers, decoded by OpenCV, and turned as EXIF asks.

Every reader of pictures and masks goes through `open_picture`, so that what is refused is refused everywhere: files
that are truncated, larger than the budget (`limits.py`), of several pages, or damaged so that a decoder only warns.
"""

import argparse
import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, NamedTuple

import cv2
import numpy as np

from sam_med2d.data.headers import Header, read_header
from sam_med2d.errors import DataError, UsageError
from sam_med2d.limits import MOST_PIXELS, VARIABLE, too_large, too_long

ORIENTATION = "SAM_MED2D_ORIENTATION"  # of the environment: "stored" or "turned", where sizes do not tell
FREE = 2**20  # pixels, and bytes, below which the budget is not asked: this is done for every file that training reads
MOST_SCANS = 100  # of a JPEG: an encoder makes about ten, and each costs as much as decoding all pixels once


def add_reading_flags(group: argparse._ActionsContainer, max_pixels: int | None = None) -> None:
    """Of commands that read pictures; elsewhere the environment says the same. max_pixels: the command's own default,
    which goes before the environment."""
    group.add_argument(
        "--orientation",
        choices=("stored", "turned"),
        help="What masks and annotations were made on, where an image's EXIF says to turn it and their size does not "
        "tell: its pixels as stored, or as turned. Default: such images are refused "
        f"({ORIENTATION} in the environment says the same).",
    )
    default = max_pixels or f"{MOST_PIXELS} ({VARIABLE} in the environment says the same)"
    group.add_argument(
        "--max_pixels",
        type=_pixels,
        default=max_pixels,
        metavar="PIXELS",
        help=f"Refuse pictures with more pixels before they are decoded. Default: {default}.",
    )


def _pixels(text: str) -> int:
    """A number of pixels as a flag gives it. Raises argparse.ArgumentTypeError."""
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text}: must be at least 1")
    return int(text)


@contextmanager
def reading_flags(args: argparse.Namespace) -> Iterator[None]:
    """In the block the flags hold, for this process and those that it starts: the environment says them."""
    before = reading_environment()
    flags = {ORIENTATION: args.orientation, VARIABLE: args.max_pixels}
    set_reading_environment(before | {name: str(value) for name, value in flags.items() if value is not None})
    try:
        yield
    finally:
        set_reading_environment(before)


def reading_environment() -> dict[str, str]:
    """What the environment says of reading pictures, for processes that were started before it said so."""
    return {name: os.environ[name] for name in (ORIENTATION, VARIABLE) if name in os.environ}


def set_reading_environment(said: dict[str, str]) -> None:
    """said: of `reading_environment`; it says nothing else afterwards."""
    for name in (ORIENTATION, VARIABLE):
        os.environ.pop(name, None)
    os.environ.update(said)


class PictureFile(NamedTuple):
    path: str
    data: bytes
    header: Header


def open_picture(path: str) -> PictureFile:
    """A file that can be decoded, as far as its bytes and header tell. Raises DataError."""
    data = _read(path)
    if is_truncated(data):
        raise DataError(f"{path}: truncated, its end is missing; copy or export it again")
    header = read_header(data)
    if header is None:
        raise no_image(path)
    if (header.width * header.height > FREE or VARIABLE in os.environ) and (
        reason := too_large(header.width, header.height)
    ):
        raise DataError(f"{path}: {reason}")
    if header.pages > 1:
        raise DataError(
            f"{path}: has {header.pages} pages; save them as single pictures, or as a NIfTI for make-index volumes and "
            "segment-volume"
        )
    if header.scans > MOST_SCANS:
        raise DataError(f"{path}: has {header.scans} scans, as no camera or program writes; export it again, as PNG")
    return PictureFile(path, data, header)


def _read(path: str) -> bytes:
    """Raises DataError."""
    try:
        with open(path, "rb", buffering=0) as file:
            length = os.fstat(file.fileno()).st_size
            if length < FREE or not (reason := too_long(length)):
                return file.readall()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions") from error
    except ValueError as error:  # NUL, or half of a surrogate pair
        raise DataError(f"{path!r}: cannot be the name of a file ({error}); correct it") from error
    raise DataError(f"{path}: {reason}")


def no_image(path: str) -> DataError:
    return DataError(f"{path}: not an image that OpenCV can decode; export it again, as PNG for instance")


def is_truncated(data: bytes) -> bool:
    """Whether a PNG or JPEG lacks its end. Decoders differ: some return the first rows and only warn on stderr.

    Bytes after the end are legal (cameras append previews), so the marker is looked for, not expected last.
    """
    if data.startswith(b"\x89PNG"):
        return data.rfind(b"IEND\xaeB`\x82") < 0
    if data.startswith(b"\xff\xd8"):
        # Neither marker can occur inside compressed data. A thumbnail in the header has an end of its own, but
        # it comes before the last start of scan.
        return data.rfind(b"\xff\xd9") <= data.rfind(b"\xff\xda")
    return False


def decode(file: PictureFile, flags: int) -> np.ndarray:
    """The pixels as stored, whatever the orientation. flags: OpenCV's. Raises DataError."""
    buffer = np.frombuffer(file.data, np.uint8)
    warning = ""
    try:
        # imdecode raises on an image over its pixel limit, and returns None on other failures.
        if file.header.kind == "JPEG":
            decoded, warning = _noticing(lambda: cv2.imdecode(buffer, flags | cv2.IMREAD_IGNORE_ORIENTATION))
        elif file.header.kind == "TIFF":
            # As colours, OpenCV 5 fails on grey of 32 bits and floats.
            decoded = cv2.imdecode(buffer, cv2.IMREAD_UNCHANGED if file.header.grey else flags)
        else:
            decoded = cv2.imdecode(buffer, flags | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        decoded = None
    if decoded is None:
        raise no_image(file.path)
    if warning:
        raise DataError(f"{file.path}: damaged ({warning}); copy or export it again")
    if file.header.kind == "TIFF" and file.header.orientation != 1:
        decoded = turned(decoded, INVERSE[file.header.orientation])  # OpenCV turns TIFFs whatever the flags
    return decoded


# ---------------------------------------------------------------- warnings of libjpeg

# How its warnings begin. They go to the file descriptor of stderr, and decoding goes on, with grey or noise for pixels.
WARNINGS = (b"Corrupt JPEG data", b"Premature end of JPEG", b"Inconsistent progression", b"Invalid SOS parameters")


class _Sink:
    """Where stderr goes while a JPEG is decoded: a file of this process, one decoder at a time."""

    lock = threading.Lock()
    file: IO[bytes] | None = None

    @classmethod
    def forget(cls) -> None:
        """In a forked process, which must not share the file, and in which nobody holds the lock."""
        cls.lock, cls.file = threading.Lock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_Sink.forget)


def _noticing(work) -> tuple[np.ndarray | None, str]:
    """-> what work() returns, and the warning that libjpeg wrote meanwhile, if any. Costs five system calls."""
    with _Sink.lock:
        if _Sink.file is None:
            _Sink.file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 (it stays open)
        sink = _Sink.file.fileno()
        try:
            stderr = os.dup(2)
        except OSError:  # it is closed, as daemons have it
            return work(), ""
        try:
            os.dup2(sink, 2)
            result = work()
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
        if not os.lseek(sink, 0, os.SEEK_CUR):
            return result, ""
        os.lseek(sink, 0, os.SEEK_SET)
        lines = os.read(sink, 1 << 20).splitlines(keepends=True)
        os.ftruncate(sink, 0)
        os.lseek(sink, 0, os.SEEK_SET)
    if others := b"".join(line for line in lines if not line.startswith(WARNINGS)):
        os.write(2, others)  # of other threads
    return result, next((line.decode("ascii", "replace").strip() for line in lines if line.startswith(WARNINGS)), "")


# ---------------------------------------------------------------- orientation

INVERSE = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels as stored -> as they are meant to be seen. (H, W) or (H, W, C); orientation: of EXIF, 1 to 8."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def is_turned(file: PictureFile, made_on: Sequence[tuple[int, ...]] | None, what: str) -> bool:
    """Whether the pixels are to be turned as the file's EXIF asks, so that they lie under what was made on them.

    made_on: (height, width) of masks and annotations, which say whether they were made on the pixels as stored or as
        seen, where these differ in size. None: nothing was, and the picture is turned, as every viewer shows it.
    what: they are, for an error.
    Raises DataError, of the kind "orientation": sizes do not tell, and neither does the environment.
    """
    header = file.header
    if header.orientation == 1:
        return False
    chosen = os.environ.get(ORIENTATION, "")
    if chosen not in ("", "stored", "turned"):
        raise UsageError(f"{ORIENTATION}={chosen}: must be stored or turned")
    if chosen or made_on is None:
        return chosen != "stored"
    stored, as_seen = header.size in made_on, header.size_turned in made_on
    if stored != as_seen or not stored:  # where neither fits, the size will be named
        return not stored
    raise DataError(
        f"{file.path}: its EXIF orientation is {header.orientation}, and {what} may be made on its pixels as stored or "
        f"as turned, which the size does not tell; say which with {ORIENTATION}=stored or {ORIENTATION}=turned "
        "(make-index: --orientation), or save it again without the tag",
        kind="orientation",
    )
