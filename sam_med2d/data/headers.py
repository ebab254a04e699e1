"""What a picture file says of itself before it is decoded: its size, pages, orientation, and what its values are.

    read_header(Path("scan.png").read_bytes())      # Header(kind='PNG', width=159, height=192, ...), None: no picture

PNG, JPEG and TIFF are parsed here: training reads millions of files, and this takes microseconds. The header of every
other kind is read by Pillow.
"""

import struct
from collections.abc import Iterator
from io import BytesIO
from typing import NamedTuple

from PIL import Image

ORIENTATION = 0x0112  # the tag, of EXIF and of TIFF alike
MOST_PAGES = 1 << 16  # that are counted
# By Pillow. Its registry is asked for these alone, as some of its readers start other programs; and each is called
# directly, as Image.open has a limit of its own, of 179 million pixels.
OTHERS = ("BMP", "GIF", "WEBP", "PPM", "JPEG2000", "AVIF")


class Header(NamedTuple):
    """width, height: of the pixels as stored, before any turning.

    orientation: of EXIF, 1 to 8; 1: as stored. pages: pages, frames or pictures in the file. palette: values are
    indices. grey: one channel of brightness, with or without alpha. bits: of a grey value; where it has no use, 8.
    transparent: of a grey PNG without an alpha channel, the stored level that stands for transparency.
    """

    kind: str
    width: int
    height: int
    orientation: int = 1
    pages: int = 1
    palette: bool = False
    grey: bool = False
    grey_and_alpha: bool = False
    bits: int = 8
    transparent: int | None = None
    scans: int = 1  # passes over the picture: a progressive JPEG has about ten

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) as stored."""
        return self.height, self.width

    @property
    def size_turned(self) -> tuple[int, int]:
        """(height, width) after the turn that the orientation asks for."""
        return (self.width, self.height) if self.orientation >= 5 else (self.height, self.width)


def read_header(data: bytes) -> Header | None:
    """The header of a whole file; None where it is none of a picture. Raises nothing."""
    try:
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            header = _png(data)
        elif data.startswith(b"\xff\xd8"):
            header = _jpeg(data)
        elif data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            header = _tiff(data)
        else:
            header = _other(data)
    except (struct.error, IndexError):  # it ends within the header
        return None
    return header if header and header.width > 0 and header.height > 0 else None


def _png(data: bytes) -> Header | None:
    if data[12:16] != b"IHDR":
        return None
    width, height, bits, colours = struct.unpack_from(">IIBB", data, 16)
    orientation, pages, transparent = 1, 1, None
    for kind, start, length in _png_chunks(data):
        if kind == b"acTL":
            pages = struct.unpack_from(">I", data, start)[0]
        elif kind == b"eXIf":
            orientation = _orientation(data[start : start + length])
        elif kind == b"tRNS" and colours == 0:
            transparent = struct.unpack_from(">H", data, start)[0]
    return Header(
        *("PNG", width, height, orientation, pages, colours == 3, colours in (0, 4), colours == 4, bits, transparent)
    )


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(kind, first byte, length) of each chunk but those of pixels.

    Raises IndexError for one that is longer than the file: decoders make room for it, up to 4 GB, before they look.
    """
    place, kind = 8, b""
    while place + 12 <= len(data) and kind != b"IEND":  # whatever follows it is no part of the picture
        length, kind = struct.unpack_from(">I4s", data, place)
        if place + 12 + length > len(data):
            raise IndexError
        if kind != b"IDAT":
            yield kind, place + 8, length
        place += length + 12


def _jpeg(data: bytes) -> Header | None:
    place, orientation = 2, 1
    while True:
        if data[place] != 0xFF:
            return None
        marker = data[place + 1]
        if marker == 0xFF or 0xD0 <= marker <= 0xD8 or marker == 0x01:  # filling, or without a length
            place += 1 if marker == 0xFF else 2
            continue
        (length,) = struct.unpack_from(">H", data, place + 2)
        if marker == 0xE1 and data[place + 4 : place + 10] == b"Exif\0\0":
            orientation = _orientation(data[place + 10 : place + 2 + length])
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            _, height, width, channels = struct.unpack_from(">BHHB", data, place + 4)
            scans = data.count(b"\xff\xda") if marker in (0xC2, 0xC6, 0xCA, 0xCE) else 1
            return Header("JPEG", width, height, orientation, grey=channels == 1, scans=scans)
        elif marker in (0xD9, 0xDA) or length < 2:  # an end, or pixels, before anything said how many
            return None
        place += 2 + length


def _orientation(exif: bytes) -> int:
    """Of a block of EXIF, which is a TIFF without pixels; 1 where it says none, or nothing that makes sense."""
    try:
        tags = next(_pages(exif), {})
    except (struct.error, IndexError):
        return 1
    return _valid(tags.get(ORIENTATION, 1))


def _valid(orientation: int) -> int:
    return orientation if 1 <= orientation <= 8 else 1


def _tiff(data: bytes) -> Header | None:
    pages = _pages(data)
    tags = next(pages, {})
    if not {256, 257} <= tags.keys():
        return None
    photometric = tags.get(262)
    return Header(
        "TIFF",
        tags[256],
        tags[257],
        _valid(tags.get(ORIENTATION, 1)),
        1 + sum(1 for _ in pages),
        palette=photometric == 3,
        grey=photometric in (0, 1) and tags.get(277, 1) <= 2,
        grey_and_alpha=photometric in (0, 1) and tags.get(277) == 2,
        bits=tags.get(258, 1 if tags.get(277, 1) == 1 else 8),
    )


def _pages(data: bytes) -> Iterator[dict[int, int]]:
    """{tag: value} of each page of a TIFF, of those tags that hold one whole number."""
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        return
    big = struct.unpack_from(order + "H", data, 2)[0] == 43
    pointer, count, width = ("Q", "Q", 20) if big else ("I", "H", 12)
    # the kinds of whole numbers: bytes, and of 16, 32 and 64 bits
    numbers = {1: "B", 3: "H", 4: "I", 13: "I", **({16: "Q", 18: "Q"} if big else {})}
    (place,) = struct.unpack_from(order + pointer, data, 8 if big else 4)
    seen: set[int] = set()
    while place and place not in seen and len(seen) < MOST_PAGES:  # a chain may run in a circle
        seen.add(place)
        (entries,) = struct.unpack_from(order + count, data, place)
        first = place + struct.calcsize(order + count)
        tags = {}
        for entry in range(first, first + width * min(entries, MOST_PAGES), width):
            tag, kind, values = struct.unpack_from(order + "HH" + pointer, data, entry)
            if kind in numbers and values == 1:
                (tags[tag],) = struct.unpack_from(order + numbers[kind], data, entry + (12 if big else 8))
        yield tags
        (place,) = struct.unpack_from(order + pointer, data, first + width * entries)


def _other(data: bytes) -> Header | None:
    image = open_with_pillow(data, OTHERS)
    if image is None:
        return None
    try:
        orientation, pages = image.getexif().get(ORIENTATION, 1), getattr(image, "n_frames", 1)
    except Exception:  # as in open_with_pillow
        return None
    grey, palette = image.mode in ("1", "L", "LA", "I", "F") or image.mode[:2] == "I;", image.mode in ("P", "PA")
    bits = 1 if image.mode == "1" else 8
    valid = _valid(orientation if isinstance(orientation, int) else 1)
    return Header(
        *(image.format or "", image.width, image.height, valid, pages, palette, grey, image.mode == "LA", bits)
    )


def open_with_pillow(data: bytes, kinds: tuple[str, ...]) -> Image.Image | None:
    """A file of one of the kinds, by Pillow's names for them, of which nothing is decoded yet; None: it is of none."""
    Image.init()
    for kind in kinds:
        opener, accepts = Image.OPEN.get(kind, (None, None))
        if opener is None or accepts is None or accepts(data[:16]) is not True:
            continue
        try:
            return opener(BytesIO(data), "")
        except (
            Exception
        ):  # what Pillow's readers trip over in a broken file is not theirs to foresee: any kind of error
            return None
    return None
