"""Arrays as nnInteractive 2 sends them: a head, and pieces that are compressed with blosc2.

    b"NNIA", version (1), codec (1 ZSTD, 2 LZ4), number of axes, length of the name of the dtype, that name,
    int64 for each side, uint32 number of pieces, and of each piece uint64 length, uint64 compressed length, its bytes

All numbers are little-endian. What arrives is of anybody's making: nothing is allocated before the head was held
against a limit, and no piece is decoded whose own head says another length.
"""

import math
import struct
from collections.abc import Collection
from typing import NamedTuple

import blosc2
import numpy as np

from sam_med2d.errors import DataError

MAGIC, VERSION = b"NNIA", 1
CODECS = {1: blosc2.Codec.ZSTD, 2: blosc2.Codec.LZ4}
LARGEST_PIECE = 1 << 30  # bytes; blosc2 counts them in 31 bits
HEAD = struct.Struct("<4s4B")
PIECE = struct.Struct("<QQ")


class Head(NamedTuple):
    """shape, dtype: of the array; start: where its pieces begin, their number first."""

    shape: tuple[int, ...]
    dtype: np.dtype
    start: int

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def head_of(data: bytes, dtypes: Collection[str]) -> Head:
    """dtypes: the names of those that are taken. Raises DataError."""
    if len(data) < HEAD.size:
        raise DataError("the array ends within its head")
    magic, version, codec, axes, length = HEAD.unpack_from(data)
    if magic != MAGIC:
        raise DataError(f"the body is no array of nnInteractive 2: it begins with {magic!r}, not {MAGIC!r}")
    if version != VERSION:
        raise DataError(f"the array is of version {version} of the protocol, and this server speaks version {VERSION}")
    if codec not in CODECS:
        raise DataError(f"the array is of codec {codec}; there are {', '.join(map(str, CODECS))}")
    name = data[HEAD.size : HEAD.size + length].decode("ascii", errors="replace")
    if name not in dtypes:
        raise DataError(f"the array holds {name[:20]!r}; send {', '.join(dtypes)}")
    start = HEAD.size + length + 8 * axes
    if len(data) < start + 4:
        raise DataError("the array ends within its head")
    shape = struct.unpack_from(f"<{axes}q", data, HEAD.size + length)
    if any(side < 1 for side in shape):
        raise DataError(f"the array has the shape {shape}; every side must be at least 1")
    return Head(shape, np.dtype(name), start)


def unpacked(data: bytes, head: Head) -> np.ndarray:
    """The array that follows a head which was found to be small enough. Raises DataError."""
    (pieces,) = struct.unpack_from("<I", data, head.start)
    if pieces > 1 + head.bytes // head.dtype.itemsize:
        raise DataError(f"the array comes in {pieces} pieces, more than it has numbers")
    values = np.empty(math.prod(head.shape), head.dtype)
    rest, done = memoryview(data)[head.start + 4 :], 0
    for _ in range(pieces):
        if len(rest) < PIECE.size:
            raise DataError("the array ends early")
        length, packed = PIECE.unpack_from(rest)
        piece, rest = rest[PIECE.size : PIECE.size + packed], rest[PIECE.size + packed :]
        _decode(piece, values, done, length, packed)
        done += length
    if done != head.bytes:
        raise DataError(f"the array has {done} bytes, and its shape needs {head.bytes}")
    return values.reshape(head.shape)


def _decode(piece: memoryview, values: np.ndarray, done: int, length: int, packed: int) -> None:
    """One piece, into the values from byte `done` on. Raises DataError."""
    size = values.itemsize
    if len(piece) != packed or length % size or done + length > values.nbytes:
        raise DataError("the array ends early, or is longer than its shape says")
    try:
        said, whole, _ = blosc2.get_cbuffer_sizes(piece)
        if (said, whole) != (length, packed):
            raise ValueError(f"a piece of {length} bytes says that it has {said}")
        blosc2.decompress2(piece, dst=values[done // size : (done + length) // size], nthreads=1)
    except (ValueError, RuntimeError, TypeError) as error:
        raise DataError(f"the array cannot be unpacked ({error})") from error


def packed(array: np.ndarray) -> bytes:
    """Any array of numbers, as ZSTD, for one reader."""
    array = np.ascontiguousarray(array)
    name = array.dtype.name.encode("ascii")
    raw, pieces = array.reshape(-1).view(np.uint8).data, []
    for start in range(0, array.nbytes, LARGEST_PIECE):
        part = raw[start : start + LARGEST_PIECE]
        data = blosc2.compress2(
            part,
            typesize=array.itemsize,  # of zeros whose length is no multiple of it, blosc2 writes what it cannot read
            codec=CODECS[1],
            clevel=3,
            filters=[blosc2.Filter.NOFILTER],
            nthreads=1,
        )
        pieces += [PIECE.pack(part.nbytes, len(data)), data]
    head = HEAD.pack(MAGIC, VERSION, 1, array.ndim, len(name)) + name + struct.pack(f"<{array.ndim}q", *array.shape)
    return b"".join([head, struct.pack("<I", len(pieces) // 2), *pieces])
