"""Objects that the frame does not show, and the size from which on it would: against resizing itself."""

import numpy as np
import pytest

from sam_med2d.data.geometry import shrink
from sam_med2d.data.vanishing import Vanished, shown_from, told, vanished_among


@pytest.mark.parametrize("height, width", [(70, 90), (300, 120), (257, 256), (1000, 640), (31, 20)])
def test_every_frame_from_there_on_shows_a_pixel(height: int, width: int) -> None:
    draw = np.random.default_rng(height)
    for area in (1, 2, 3):
        mask = np.zeros((height, width), bool)
        y, x = draw.integers(height - area), draw.integers(width - area)
        mask[y : y + area, x : x + area] = True
        side = shown_from(mask)
        sizes = range(32, max(height, width) + 100, 32)
        shown = {size: bool(shrink(mask, size).any()) for size in sizes}
        assert all(shown[size] for size in sizes if size >= side)
        assert side == 32 or not shown[side - 32]


def test_empty_masks_do_not_vanish() -> None:
    one = np.zeros((100, 100), bool)
    one[1, 1] = True
    assert vanished_among({"empty": np.zeros((100, 100), bool), "one": one}) == {"one": Vanished(1, 64)}


def test_what_is_said() -> None:
    said = told({"b.png": Vanished(1, 512), "a.png": Vanished(7, 320)}, 256)
    assert said == (
        "2 object(s) vanish in the frame of 256 pixels, such as a.png of 7 pixel(s); "
        "--image_size 512 would show all of them"
    )
