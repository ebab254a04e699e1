"""Objects that are there in their masks but not in the frame: too small for it, they fall between the pixels it shows.

A frame shows a picture's pixels at the places of `segment_anything.geometry.source_places`; an object that has none of
them vanishes. It is no empty mask: its file is sound, and a larger frame would show it.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from segment_anything.geometry import source_places

STEP = 32  # pixels: sides of the frame are multiples of it


class Vanished(NamedTuple):
    """area: of an object, in pixels of its own picture; shown_from: as `shown_from` gives it."""

    area: int
    shown_from: int


def shown_from(mask: np.ndarray) -> int:
    """The side of the smallest frame that shows a pixel of an object, as does every larger one.

    mask: (H, W) bool, not empty. -> a multiple of STEP, at most the first above both sides of the picture, as pictures
    smaller than the frame are not resized.
    """
    rows, columns = np.nonzero(mask)
    side = (max(mask.shape) // STEP + 1) * STEP
    while side > STEP:
        smaller = side - STEP
        shown = (np.isin(places, source_places(n, smaller)) for places, n in zip((rows, columns), mask.shape))
        if not np.logical_and(*shown).any():
            break
        side = smaller
    return side


def vanished_of(mask: np.ndarray) -> Vanished:
    """Of a mask that is empty in the frame, (H, W) bool at the picture's size; Vanished(0, 0) of an empty one."""
    return Vanished(int(mask.sum()), shown_from(mask)) if mask.any() else Vanished(0, 0)


def vanished_among(masks: Mapping[str, np.ndarray]) -> dict[str, Vanished]:
    """masks: by name, (H, W) bool at the original size, of those that are empty in the frame -> those that are not."""
    return {name: vanished_of(mask) for name, mask in masks.items() if mask.any()}


def told(vanished: Mapping[str, Vanished], image_size: int) -> str:
    """Which objects vanish, and at what size they would not, for people. vanished: by mask, at least one."""
    name = min(vanished)
    return (
        f"{len(vanished)} object(s) vanish in the frame of {image_size} pixels, such as {name} of "
        f"{vanished[name].area} pixel(s); --image_size {max(one.shown_from for one in vanished.values())} would show "
        "all of them"
    )
