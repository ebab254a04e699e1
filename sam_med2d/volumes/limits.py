"""How large a volume may be: one budget, which its header is held against before anything is decoded."""

import math
from collections.abc import Sequence

from sam_med2d.errors import DataError

MOST_VOXELS = 2**29  # 512 x 512 x 2048; a file of a few megabytes can claim, and unpack to, a thousand times as many


def check_voxels(path: str, size: Sequence[int], most: int = MOST_VOXELS) -> None:
    """size: of all axes and channels, as the header has it. Raises DataError where that is more than `most` voxels."""
    count = math.prod(size)
    if count > most:
        raise DataError(
            f"{path}: has {' x '.join(map(str, size))} voxels, {count / 1e6:.0f} million, and more than "
            f"{most / 1e6:.0f} million are not decoded; crop it, or raise --max_voxels where there is memory for it",
            kind="size",
        )
