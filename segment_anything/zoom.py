"""Looking closer: a crop of the picture fills the frame, so that a small object is seen with all its pixels.

    zoom = Zoom.of("auto")
    if zoom.wants(box, size):
        crop = crop_around(box, zoom.box_context, size)         # its sides are so many times the box's
        wider = grown(crop, mask, size)                         # where a mask of the crop reaches its edge

The frame has S x S pixels whatever the picture's size, and the model's masks S/4 x S/4: a nucleus of 20 pixels in 512
is answered with 5 pixels of a frame of 128. `SamPredictor` and all that is built on it look at such objects in a crop,
which is stretched to the frame as whole pictures are and put back by the exact inverse (`geometry.py`).

Sizes are (height, width). Boxes are x0 y0 x1 y1, x1 and y1 one past the last pixel.
"""

import math
from typing import NamedTuple

import cv2
import numpy as np

from .errors import UserError

AUTO, ALWAYS, NEVER = "auto", "always", "never"
LEAST_SIDE = 8  # pixels of a crop's sides: less has no surroundings to tell an object by
LEAST_SCALE = 32  # pixels of the sides of crops around a click, of which nothing else is known
SCALES = 5  # of such crops at most
MOST_LOOKS = 8  # at one object for one prompt; the last is at the whole picture where the answer still grows


class Crop(NamedTuple):
    """Columns left .. left + width - 1 and rows top .. top + height - 1 of a picture."""

    left: int
    top: int
    width: int
    height: int

    @classmethod
    def whole(cls, size: tuple[int, int]) -> "Crop":
        return cls(0, 0, size[1], size[0])

    @property
    def size(self) -> tuple[int, int]:
        return self.height, self.width

    @property
    def box(self) -> np.ndarray:
        return np.array([self.left, self.top, self.left + self.width, self.top + self.height])

    @property
    def pixels(self) -> tuple[slice, slice]:
        """Its rows and columns, to index the last two axes of an array."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)

    def holds(self, box: np.ndarray) -> bool:
        x0, y0, x1, y1 = self.box
        return bool(box[0] >= x0 and box[1] >= y0 and box[2] <= x1 and box[3] <= y1)


class Zoom(NamedTuple):
    """When to look closer, and how close.

    below: boxes and masks whose sides are all shorter than this share of the picture's are looked at closer; 0: none
        is, and clicks are asked of whole pictures alone
    box_context: the sides of the crop, as a multiple of those of the box that prompts
    context: the same, of the box around a mask that prompts
    """

    below: float = 0.5
    box_context: float = 1.5
    context: float = 2.0

    @classmethod
    def of(cls, value: "Zoom | str | float") -> "Zoom":
        """A Zoom itself; "auto", "always" or "never"; or a number: always, in crops of so many times the box.

        Raises UserError: it is none of these.
        """
        if isinstance(value, Zoom):
            return value
        words = {AUTO: cls(), ALWAYS: cls(below=math.inf), NEVER: cls(below=0)}
        if value in words:
            return words[str(value)]
        try:
            context = float(value)
        except (TypeError, ValueError):
            context = math.nan
        if isinstance(value, bool) or not 1 <= context < math.inf:
            raise UserError(
                f"zoom must be {AUTO}, {ALWAYS}, {NEVER}, or a number of at least 1: the sides of the crop as a "
                f"multiple of the object's box; it is {value!r}"
            )
        return cls(math.inf, context, context)

    @property
    def is_on(self) -> bool:
        return self.below > 0

    def wants(self, box: np.ndarray, size: tuple[int, int]) -> bool:
        """Whether an object of this box is to be looked at closer in a picture of this size."""
        height, width = size
        return bool(max((box[2] - box[0]) / width, (box[3] - box[1]) / height) < self.below)


def crop_around(box: np.ndarray, context: float, size: tuple[int, int]) -> Crop:
    """The crop whose sides are `context` times the box's, the box in its middle, moved into the picture where needed.

    A side that would be longer than the picture's is the picture's, and none is shorter than LEAST_SIDE.
    """
    (left, width), (top, height) = (
        _span(float(box[axis]), float(box[axis + 2]), context, side) for axis, side in ((0, size[1]), (1, size[0]))
    )
    return Crop(left, top, width, height)


def around_click(click: np.ndarray, size: tuple[int, int]) -> list[Crop]:
    """Crops around a click (x, y), each with half the sides of the one before; the first has half the picture's."""
    crops = []
    for share in (0.5**k for k in range(1, SCALES + 1)):
        reach = np.array([size[1], size[0]]) * share / 2
        if 2 * reach.min() < LEAST_SCALE:
            break
        crops.append(crop_around(np.concatenate([click - reach, click + reach]), 1, size))
    return crops


def _span(start: float, stop: float, context: float, side: int) -> tuple[int, int]:
    """-> first pixel and number of pixels."""
    length = min(side, max(LEAST_SIDE, math.ceil(context * (stop - start))))
    first = round((start + stop - length) / 2)
    return min(max(first, 0), side - length), length


def grown(crop: Crop, mask: np.ndarray, size: tuple[int, int]) -> Crop | None:
    """A crop of twice the length to each side at whose edge the mask lies; None where it lies at none.

    mask: (height, width) bool of the crop. An edge of the picture is no edge of the crop: nothing is beyond it.
    """
    x0, y0, x1, y1 = crop.box.tolist()
    height, width = size
    wider = [
        x0 - crop.width if x0 > 0 and mask[:, 0].any() else x0,
        y0 - crop.height if y0 > 0 and mask[0].any() else y0,
        x1 + crop.width if x1 < width and mask[:, -1].any() else x1,
        y1 + crop.height if y1 < height and mask[-1].any() else y1,
    ]
    if wider == [x0, y0, x1, y1]:
        return None
    x0, y0, x1, y1 = max(0, wider[0]), max(0, wider[1]), min(width, wider[2]), min(height, wider[3])
    return Crop(x0, y0, x1 - x0, y1 - y0)


def box_of(mask: np.ndarray, clicks: np.ndarray) -> np.ndarray | None:
    """The box around the pieces of a mask that were clicked, all of them where none was; None of an empty mask.

    mask: (H, W) bool; clicks: (P, 2) xy on the object, around which the box is in any case.
    """
    if not mask.any():
        return None
    _, pieces = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    y, x = (np.clip(clicks[:, axis].astype(int), 0, mask.shape[1 - axis] - 1) for axis in (1, 0))
    clicked = np.setdiff1d(pieces[y, x], [0])
    left, top, width, height = cv2.boundingRect((np.isin(pieces, clicked) if len(clicked) else mask).astype(np.uint8))
    return with_points(np.array([left, top, left + width, top + height], float), clicks)


def with_points(box: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The box, widened so that the pixels of these points (P, 2) lie in it."""
    if not len(points):
        return np.asarray(box, float)
    return np.concatenate([np.minimum(box[:2], points.min(axis=0)), np.maximum(box[2:], points.max(axis=0) + 1)])
