"""How large a picture or a volume may be: asked of the header, before anything is decoded.

A small file can claim any size: 315 kB of PNG take a minute and 2.6 GB to decode, 2 MB of NIfTI 5 GB. Whoever has
larger pictures, and the memory for them, raises their budget with the environment variable or with the flag of a
command, which sets it while it runs; that of volumes is an argument of what reads them.
"""

import math
import os
from collections.abc import Sequence

from sam_med2d.errors import DataError, UsageError

MOST_PIXELS = 2**28  # 16384 x 16384; 0.8 GB as colours of 8 bits
VARIABLE = "SAM_MED2D_MAX_PIXELS"
BYTES_A_PIXEL = 8  # of the largest file that can hold so many pixels: four channels of 16 bits, not compressed
BYTES_BESIDE = 2**26  # of profiles, previews and tables beside them
MOST_VOXELS = 2**29  # of a volume: 512 x 512 x 2048


def most_pixels() -> int:
    """The budget that holds in this process. Raises UsageError where the environment holds no number."""
    text = os.environ.get(VARIABLE, "")
    if not text:
        return MOST_PIXELS
    if not (text.isdecimal() and len(text) < 19 and int(text)):
        raise UsageError(f"{VARIABLE}={text}: must be a number of pixels, such as {MOST_PIXELS}")
    return int(text)


def too_large(width: int, height: int) -> str:
    """What is wrong with a picture of that size, and what to do; nothing where it is within the budget."""
    if width * height <= most_pixels():
        return ""
    return (
        f"has {width} x {height} pixels, more than the {most_pixels()} that are read; cut it into pieces or make it "
        f"smaller, or set {VARIABLE}={width * height} if there is memory for it"
    )


def too_long(size: int) -> str:
    """The same of a file by its bytes, whatever is in it."""
    if size <= most_pixels() * BYTES_A_PIXEL + BYTES_BESIDE:
        return ""
    return (
        f"has {size} bytes, more than a picture of {most_pixels()} pixels can need; make it smaller, or raise "
        f"{VARIABLE} if there is memory for it"
    )


def check_voxels(path: str, size: Sequence[int], most: int = MOST_VOXELS) -> None:
    """size: of all axes and channels, as the header has it. Raises DataError where that is more than `most` voxels."""
    count = math.prod(size)
    if count > most:
        raise DataError(
            f"{path}: has {' x '.join(map(str, size))} voxels, {count / 1e6:.0f} million, and more than "
            f"{most / 1e6:.0f} million are not decoded; crop it, or raise --max_voxels where there is memory for it",
            kind="size",
        )
