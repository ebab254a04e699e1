"""The one painter: images with masks, truths and prompts drawn on them, in tiles, overlays and grids.

A predicted mask is tinted and outlined in the colour of its object, a true mask is outlined in TRUTH, a box is drawn
in the colour of its object, and a click is a disc: CLICK[True] with a plus on the object, CLICK[False] with a minus off
it. Truths, boxes and clicks have a dark rim, so that they are seen on bright and on dark ground, and shapes and signs
differ, so that nobody needs to tell colours apart. Sizes follow the picture's. The page of the app draws prompts as
vectors, with the constants of this file.

Images are (H, W, 3) uint8 and colours are BGR, as OpenCV reads and writes them. Points are x before y; boxes are
half-open.
"""

import colorsys
from collections.abc import Sequence

import cv2
import numpy as np
from torch import Tensor

import sam_med2d.errors  # noqa: F401  says so first where segment_anything is somebody else's
from segment_anything import ABSENT, FOREGROUND, ObjectPrompt, Prompts

Colour = tuple[int, int, int]

# Of objects: of the same lightness and far apart in hue, so that none stands out.
COLOURS: tuple[Colour, ...] = (
    (0, 140, 255),
    (230, 160, 60),
    (100, 200, 60),
    (200, 100, 220),
    (60, 200, 230),
    (120, 90, 250),
    (190, 190, 70),
    (150, 210, 150),
    (70, 110, 200),
    (240, 130, 160),
)
OPACITY = 0.4  # of the tint of a mask

TRUTH: Colour = (255, 255, 190)  # nearly white: far from every colour of an object, and not the white of bone

CLICK: dict[bool, Colour] = {True: (170, 230, 0), False: (60, 80, 255)}  # teal and red, also of different lightness
SIGN: dict[bool, Colour] = {True: (0, 0, 0), False: (255, 255, 255)}  # the plus and the minus on the discs
SIGN_LENGTH = 0.6  # from the middle of a disc to the end of its sign, as a share of the radius

RIM = 0.6  # how much a line darkens the ground beside it
RIM_OF_CLICK: Colour = (0, 0, 0)

CAPTION_HEIGHT = 18  # pixels
FONT = cv2.FONT_HERSHEY_SIMPLEX
LETTER = 7  # pixels that a letter of a caption is wide

SMALLEST_SIDE = 512  # pixels of an overlay's longer side: smaller pictures are enlarged, so that names can be read


def colour_of(number: int) -> Colour:
    """The colour of an object, counted from 0; those after COLOURS have hues as far apart as can be."""
    if number < len(COLOURS):
        return COLOURS[number]
    red, green, blue = colorsys.hsv_to_rgb(number * 0.618 % 1, 0.7, 0.95)
    return round(255 * blue), round(255 * green), round(255 * red)


def css(colour: Colour) -> str:
    """BGR -> the same colour for a page."""
    blue, green, red = colour
    return f"rgb({red}, {green}, {blue})"


def line_width(side: float) -> float:
    """Pixels that outlines and boxes are wide in a picture whose longer side has `side` pixels."""
    return side / 500


def click_radius(side: float) -> float:
    """Pixels of the radius of a click, without its rim, in a picture whose longer side has `side` pixels."""
    return side / 100


# ---------------------------------------------------------------- whole pictures


def overlay(
    image: np.ndarray, masks: Sequence[np.ndarray], prompts: Sequence[ObjectPrompt] = (), names: Sequence[str] = ()
) -> np.ndarray:
    """An image with any number of objects, each in a colour of its own.

    masks: n of (H, W) bool; prompts: n, or none, in pixels of the image; names: n, or none, written above the objects.
    -> (H * k, W * k, 3), with a whole number k that enlarges small images.
    """
    k = max(1, round(SMALLEST_SIDE / max(image.shape[:2])))
    picture = cv2.resize(image, None, fx=k, fy=k, interpolation=cv2.INTER_NEAREST)
    large = [_resized(mask, picture) for mask in masks]
    draw_masks(picture, large, [colour_of(number) for number in range(len(large))])
    for number, prompt in enumerate(prompts):
        draw_prompt(picture, prompt, colour_of(number), k)
    _write_names(picture, large, names)
    return picture


def tile(
    image: np.ndarray, predicted: Tensor, truth: Tensor, prompts: Prompts, row: int, caption: str, side: int = 256
) -> np.ndarray:
    """One object with its prediction, its truth and the prompts that led there.

    predicted, truth: (H, W) bool; prompts: in pixels of `image`, of which `row` is drawn.
    -> (side + CAPTION_HEIGHT, side, 3), the image enlarged or shrunk to fit and centred.
    """
    picture = _fitted(image, side)
    draw_masks(picture, [_resized(predicted.numpy(), picture)], [colour_of(0)])
    _draw_outline(picture, _resized(truth.numpy(), picture), TRUTH)
    draw_prompt(picture, _prompt_of(prompts, row), colour_of(0), side / max(image.shape[:2]))
    letters = side // LETTER  # the end is kept: it tells the objects of one image apart
    return _framed(picture, caption if len(caption) <= letters else "..." + caption[3 - letters :], side)


def tile_of_masks(
    image: np.ndarray, masks: Sequence[np.ndarray], caption: str, side: int = 256, names: Sequence[str] = ()
) -> np.ndarray:
    """An image with all its masks, each in a colour of its own, for a contact sheet.

    masks: n of (H, W) bool; names: n, or none, written above their objects.
    -> (side + CAPTION_HEIGHT, side, 3), as `tile`.
    """
    picture = _fitted(image, side)
    resized = [_resized(mask, picture) for mask in masks]
    draw_masks(picture, resized, [colour_of(number) for number in range(len(resized))])
    _write_names(picture, resized, names)
    letters = side // LETTER
    return _framed(picture, caption if len(caption) <= letters else caption[: letters - 3] + "...", side)


def grid(tiles: list[np.ndarray], columns: int = 6) -> np.ndarray:
    """Tiles of one size, row by row."""
    columns = min(columns, len(tiles))
    empty = np.zeros_like(tiles[0])
    tiles = tiles + [empty] * (-len(tiles) % columns)
    return np.vstack([np.hstack(tiles[i : i + columns]) for i in range(0, len(tiles), columns)])


# ---------------------------------------------------------------- what is drawn on them, in place


def draw_masks(picture: np.ndarray, masks: Sequence[np.ndarray], colours: Sequence[Colour]) -> None:
    """Tint and outline objects, of which the later ones lie above. masks: n of (H, W) bool, of the picture's size."""
    for mask, colour in zip(masks, colours):
        picture[mask] = np.round((1 - OPACITY) * picture[mask] + OPACITY * np.array(colour)).astype(np.uint8)
    for mask, colour in zip(masks, colours):  # after all tints: no outline is under another object's
        _draw_outline(picture, mask, colour, rim=False)


def draw_prompt(picture: np.ndarray, prompt: ObjectPrompt, colour: Colour, scale: float = 1) -> None:
    """The box and the clicks of one object, of which any may be absent.

    colour: the object's; scale: pixels of the picture for a pixel in which the prompt is given.
    """
    if prompt.box is not None:
        x0, y0, x1, y1 = (round(float(edge) * scale) for edge in prompt.box)
        corners = np.array([(x0, y0), (x1 - 1, y0), (x1 - 1, y1 - 1), (x0, y1 - 1)], np.int32)
        _draw_lines(picture, [corners], colour)
    if prompt.points is not None and prompt.labels is not None:
        for (x, y), label in zip(prompt.points, prompt.labels):
            if label != ABSENT:
                centre = int((float(x) + 0.5) * scale), int((float(y) + 0.5) * scale)
                _draw_click(picture, centre, bool(label == FOREGROUND))


def _draw_outline(picture: np.ndarray, mask: np.ndarray, colour: Colour, rim: bool = True) -> None:
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    _draw_lines(picture, outlines, colour, rim)


def _draw_lines(picture: np.ndarray, lines: Sequence[np.ndarray], colour: Colour, rim: bool = True) -> None:
    """Closed lines through pixels, each (n, 2) or (n, 1, 2) xy."""
    width = max(1, round(line_width(max(picture.shape[:2]))))
    if rim:
        beside = np.zeros(picture.shape[:2], np.uint8)
        cv2.polylines(beside, lines, True, 1, 3 * width)
        picture[beside > 0] = np.round((1 - RIM) * picture[beside > 0]).astype(np.uint8)
    cv2.polylines(picture, lines, True, colour, width)


def _draw_click(picture: np.ndarray, centre: tuple[int, int], foreground: bool) -> None:
    radius = max(3, round(click_radius(max(picture.shape[:2]))))
    rim = max(1, round(line_width(max(picture.shape[:2]))))
    cv2.circle(picture, centre, radius + rim, RIM_OF_CLICK, -1, cv2.LINE_AA)
    cv2.circle(picture, centre, radius, CLICK[foreground], -1, cv2.LINE_AA)
    (x, y), long, thick = centre, round(SIGN_LENGTH * radius), radius // 8
    cv2.rectangle(picture, (x - long, y - thick), (x + long, y + thick), SIGN[foreground], -1)
    if foreground:
        cv2.rectangle(picture, (x - thick, y - long), (x + thick, y + long), SIGN[foreground], -1)


def _write_names(picture: np.ndarray, masks: Sequence[np.ndarray], names: Sequence[str]) -> None:
    """Above the objects that are not empty, in their colours."""
    for number, name in enumerate(names):
        x, y, width, _ = cv2.boundingRect(masks[number].astype(np.uint8))
        if width:
            _write(picture, name, x, y - 4, colour_of(number))


def _write(picture: np.ndarray, text: str, x: int, y: int, colour: Colour) -> None:
    """On a ground of the object's colour, within the picture."""
    size = 0.45 * max(1, max(picture.shape[:2]) / 1000)
    thick = max(1, round(2 * size))
    (width, height), below = cv2.getTextSize(text, FONT, size, thick)
    x, y = max(0, min(x, picture.shape[1] - width)), max(height + 2, y)
    cv2.rectangle(picture, (x, y - height - 2), (x + width, y + below), colour, -1)
    cv2.putText(picture, text, (x, y), FONT, size, (0, 0, 0), thick, cv2.LINE_AA)


# ---------------------------------------------------------------- sizes


def _fitted(image: np.ndarray, side: int) -> np.ndarray:
    """A copy, enlarged or shrunk so that its longer side is `side`."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    resized = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    return resized.copy() if resized is image else resized


def _resized(mask: np.ndarray, picture: np.ndarray) -> np.ndarray:
    """(H, W) bool -> bool of the picture's size."""
    height, width = picture.shape[:2]
    return cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST) > 0


def _framed(picture: np.ndarray, caption: str, side: int) -> np.ndarray:
    """In the middle of a black square, under its caption."""
    height, width = picture.shape[:2]
    framed = np.zeros((CAPTION_HEIGHT + side, side, 3), np.uint8)
    top, left = CAPTION_HEIGHT + (side - height) // 2, (side - width) // 2
    framed[top : top + height, left : left + width] = picture
    cv2.putText(framed, caption, (3, 13), FONT, 0.38, (255, 255, 255), 1, cv2.LINE_AA)
    return framed


def _prompt_of(prompts: Prompts, row: int) -> ObjectPrompt:
    points, labels, boxes = (None if part is None else part[row].cpu().numpy() for part in prompts[:3])
    return ObjectPrompt(points, labels, boxes)
