"""The one painter: images with masks, truths and prompts drawn on them, in tiles, overlays and grids.

A predicted mask is tinted and outlined in the colour of its object, a true mask is outlined in TRUTH, a box is drawn
in the colour of its object, and a click is a disc: CLICK[True] with a plus on the object, CLICK[False] with a minus off
it. Truths, boxes and clicks have a dark rim, so that they are seen on bright and on dark ground, and shapes and signs
differ, so that nobody needs to tell colours apart. Sizes follow the picture's. The page of the app draws prompts as
vectors, with the constants of this file. Where classes are known, each has one colour (`class_colours`), and
`with_legend` says which.

An object that a tile would shrink to a few pixels is shown in a crop, and a corner of the tile shows where that lies in
the picture.

Images are (H, W, 3) uint8 and colours are BGR, as OpenCV reads and writes them. Points are x before y; boxes are
half-open.
"""

import colorsys
from collections.abc import Iterable, Mapping, Sequence

import cv2
import numpy as np
from torch import Tensor

import sam_med2d.errors  # noqa: F401  says so first where segment_anything is somebody else's
from segment_anything import ABSENT, FOREGROUND, ObjectPrompt, Prompts
from segment_anything.zoom import Crop, crop_around, with_points

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
LEGEND_ROW = 20  # pixels of height
NOT_KNOWN: Colour = (150, 150, 150)  # of objects of no known class, beside classes that are known

SMALL = 1 / 6  # of the side of a tile: an object that a tile would shrink to less is shown closer
CLOSE_VIEWS = 4  # in a row below an overlay
CONTEXT = 4  # the sides of that crop, as a multiple of the object's box
CORNER = 3 / 8  # of the side of a tile: the view in its corner
FRAME_OF_CORNER: Colour = (255, 255, 255)

SMALLEST_SIDE = 512  # pixels of an overlay's longer side: smaller pictures are enlarged, so that names can be read


def colour_of(number: int) -> Colour:
    """The colour of an object, counted from 0; those after COLOURS have hues as far apart as can be."""
    if number < len(COLOURS):
        return COLOURS[number]
    red, green, blue = colorsys.hsv_to_rgb(number * 0.618 % 1, 0.7, 0.95)
    return round(255 * blue), round(255 * green), round(255 * red)


def class_colours(names: Iterable[str]) -> dict[str, Colour]:
    """A colour for each different class, by its place among them; "" is one that is not known.

    Empty where no class is known: then objects have colours of their own.
    """
    different = [*dict.fromkeys(names)]
    known = [name for name in different if name]
    colours = {name: colour_of(number) for number, name in enumerate(known)}
    return colours | {"": NOT_KNOWN} if known and "" in different else colours


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
    image: np.ndarray,
    masks: Sequence[np.ndarray],
    prompts: Sequence[ObjectPrompt] = (),
    names: Sequence[str] = (),
    colours: Sequence[Colour] = (),
) -> np.ndarray:
    """An image with any number of objects, each in a colour of its own.

    masks: n of (H, W) bool; prompts: n, or none, in pixels of the image; names: n, or none, written above the objects;
    colours: n, or none, in place of their own. -> (H * k, W * k, 3), with a whole number k that enlarges small images.
    """
    colours = colours or _own_colours(len(masks))
    k = max(1, round(SMALLEST_SIDE / max(image.shape[:2])))
    picture = cv2.resize(image, None, fx=k, fy=k, interpolation=cv2.INTER_NEAREST)
    large = [_resized(mask, picture) for mask in masks]
    draw_masks(picture, large, colours)
    for prompt, colour in zip(prompts, colours):
        draw_prompt(picture, prompt, colour, k)
    _write_names(picture, large, names, colours)
    return picture


def tile(
    image: np.ndarray,
    predicted: Tensor,
    truth: Tensor,
    prompts: Prompts,
    row: int,
    caption: str,
    side: int = 256,
    colour: Colour = COLOURS[0],
) -> np.ndarray:
    """One object with its prediction, its truth and the prompts that led there.

    predicted, truth: (H, W) bool; prompts: in pixels of `image`, of which `row` is drawn. Where all of these are small
    in a large picture, a crop around them is shown, and the whole picture in the corner.
    -> (side + CAPTION_HEIGHT, side, 3), the image enlarged or shrunk to fit and centred.
    """
    prompt, masks = _prompt_of(prompts, row), (predicted.numpy(), truth.numpy())
    box = _box_of(masks[0] | masks[1])
    crop = None if box is None else _closer(_with_prompt(box, prompt), image.shape[:2], side)
    shown, there = crop or Crop.whole(image.shape[:2]), _moved(prompt, crop)
    picture = _fitted(image[shown.pixels], side)
    draw_masks(picture, [_resized(masks[0][shown.pixels], picture)], [colour])
    _draw_outline(picture, _resized(masks[1][shown.pixels], picture), TRUTH)
    draw_prompt(picture, there, colour, side / max(shown.size))
    if crop and box is not None:
        whole = _fitted(image, round(CORNER * side))
        _draw_crop(whole, crop, image.shape[:2])
        _put_in_a_corner(picture, whole, _middle_of(_moved_box(box, crop), crop))
    return _framed(picture, caption, side)


def tile_of_masks(
    image: np.ndarray,
    masks: Sequence[np.ndarray],
    caption: str,
    side: int = 256,
    names: Sequence[str] = (),
    colours: Sequence[Colour] = (),
) -> np.ndarray:
    """An image with all its masks, for a contact sheet.

    masks: n of (H, W) bool; names: n, or none, written above their objects; colours: n, or none: each in a colour of
    its own. Where the smallest object is small in a large picture, the corner shows a crop around it.
    -> (side + CAPTION_HEIGHT, side, 3), as `tile`.
    """
    colours = colours or _own_colours(len(masks))
    picture = _fitted(image, side)
    resized = [_resized(mask, picture) for mask in masks]
    draw_masks(picture, resized, colours)
    _write_names(picture, resized, names, colours)
    boxes = [box for box in map(_box_of, masks) if box is not None]
    smallest = min(boxes, key=lambda box: max(box[2:] - box[:2]), default=None)
    crop = None if smallest is None else _closer(smallest, image.shape[:2], side)
    if crop:
        _draw_crop(picture, crop, image.shape[:2])
        close = _fitted(image[crop.pixels], round(CORNER * side))
        draw_masks(close, [_resized(mask[crop.pixels], close) for mask in masks], colours)
        _put_in_a_corner(picture, close, _middle_of(crop.box, Crop.whole(image.shape[:2])))
    return _framed(picture, caption, side)


def with_close_views(
    picture: np.ndarray,
    image: np.ndarray,
    masks: Sequence[np.ndarray],
    prompts: Sequence[ObjectPrompt],
    names: Sequence[str],
    colours: Sequence[Colour],
) -> np.ndarray:
    """An overlay, and below it a tile of each object that is small in it, the smallest first, as many as fit in a row.

    picture: of `overlay`; the others as there, each of n.
    """
    side = picture.shape[1] // CLOSE_VIEWS
    found = []
    for number, (mask, prompt) in enumerate(zip(masks, prompts)):
        box = _box_of(mask)
        crop = None if box is None else _closer(_with_prompt(box, prompt), image.shape[:2], side)
        if crop:
            found.append((crop.width * crop.height, number, crop))
    if not found:
        return picture
    tiles = []
    for _, number, crop in sorted(found)[:CLOSE_VIEWS]:
        close = _fitted(image[crop.pixels], side)
        draw_masks(close, [_resized(masks[number][crop.pixels], close)], [colours[number]])
        draw_prompt(close, _moved(prompts[number], crop), colours[number], side / max(crop.size))
        tiles.append(_framed(close, names[number], side))
    row = np.zeros((side + CAPTION_HEIGHT, picture.shape[1], 3), np.uint8)
    row[:, : side * len(tiles)] = np.hstack(tiles)
    return np.vstack([picture, row])


def with_legend(picture: np.ndarray, colours: Mapping[str, Colour]) -> np.ndarray:
    """The picture, and below it names with their colours, as many a row as fit; "" is called (not known).

    -> (H + LEGEND_ROW * rows, W, 3); without colours, the picture itself.
    """
    width = picture.shape[1]
    entries = [(name or "(not known)", colour) for name, colour in colours.items()]
    rows: list[list[tuple[str, Colour]]] = []
    room = 0
    for name, colour in entries:
        needed = LEGEND_ROW + LETTER * (len(name) + 2)
        if needed > room:
            rows.append([])
            room = width
        rows[-1].append((name, colour))
        room -= needed
    strip = np.zeros((LEGEND_ROW * len(rows), width, 3), np.uint8)
    for number, row in enumerate(rows):
        x, y = 4, LEGEND_ROW * number
        for name, colour in row:
            cv2.rectangle(strip, (x, y + 4), (x + 11, y + 15), colour, -1)
            shown = _ending(name, width - LEGEND_ROW)
            cv2.putText(strip, shown, (x + LEGEND_ROW - 4, y + 14), FONT, 0.38, (255, 255, 255), 1, cv2.LINE_AA)
            x += LEGEND_ROW + LETTER * (len(name) + 2)
    return np.vstack([picture, strip])


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


def _write_names(
    picture: np.ndarray, masks: Sequence[np.ndarray], names: Sequence[str], colours: Sequence[Colour]
) -> None:
    """Above the objects that are not empty, in their colours."""
    for mask, name, colour in zip(masks, names, colours):
        x, y, width, _ = cv2.boundingRect(mask.astype(np.uint8))
        if width:
            _write(picture, name, x, y - 4, colour)


def _write(picture: np.ndarray, text: str, x: int, y: int, colour: Colour) -> None:
    """On a ground of the object's colour, within the picture."""
    size = 0.45 * max(1, max(picture.shape[:2]) / 1000)
    thick = max(1, round(2 * size))
    (width, height), below = cv2.getTextSize(text, FONT, size, thick)
    x, y = max(0, min(x, picture.shape[1] - width)), max(height + 2, y)
    cv2.rectangle(picture, (x, y - height - 2), (x + width, y + below), colour, -1)
    cv2.putText(picture, text, (x, y), FONT, size, (0, 0, 0), thick, cv2.LINE_AA)


# ---------------------------------------------------------------- looking closer


def _closer(box: np.ndarray, size: tuple[int, int], side: int) -> Crop | None:
    """The crop in which an object is shown, a square where the picture has room for one; None where a tile of this side
    shows it well. size: of the picture.
    """
    longest = max(box[2:] - box[:2])
    if max(size) <= side or longest * side / max(size) >= SMALL * side:
        return None
    middle = (box[:2] + box[2:]) / 2
    return crop_around(np.concatenate([middle - longest / 2, middle + longest / 2]), CONTEXT, size)


def _draw_crop(picture: np.ndarray, crop: Crop, size: tuple[int, int]) -> None:
    """Where the crop lies in a picture that has been resized. size: of the picture before."""
    scale = max(picture.shape[:2]) / max(size)
    x0, y0, x1, y1 = np.round(crop.box * scale).astype(int).tolist()
    cv2.rectangle(picture, (x0, y0), (max(x0 + 1, x1 - 1), max(y0 + 1, y1 - 1)), FRAME_OF_CORNER, 1)


def _put_in_a_corner(picture: np.ndarray, view: np.ndarray, away_from: np.ndarray) -> None:
    """In the corner that is farthest from a place, given as shares (x, y) of the sides; as much of it as there is."""
    height, width = (min(a, b) for a, b in zip(picture.shape[:2], view.shape[:2]))
    view = view[:height, :width].copy()
    cv2.rectangle(view, (0, 0), (width - 1, height - 1), FRAME_OF_CORNER, 1)
    left = 0 if away_from[0] > 0.5 else picture.shape[1] - width
    top = 0 if away_from[1] > 0.5 else picture.shape[0] - height
    picture[top : top + height, left : left + width] = view


def _box_of(mask: np.ndarray) -> np.ndarray | None:
    """x0 y0 x1 y1, half-open; None of an empty mask."""
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    return np.array([x, y, x + width, y + height], float) if width else None


def _middle_of(box: np.ndarray, crop: Crop) -> np.ndarray:
    """As shares (x, y) of the sides of the crop, in whose pixels the box is."""
    return (box[:2] + box[2:]) / 2 / np.array([crop.width, crop.height])


def _with_prompt(box: np.ndarray, prompt: ObjectPrompt) -> np.ndarray:
    """The box, widened so that the prompt lies in it."""
    if prompt.box is not None:
        box = np.concatenate([np.minimum(box[:2], prompt.box[:2]), np.maximum(box[2:], prompt.box[2:])])
    if prompt.points is None or prompt.labels is None:
        return box
    return with_points(box, prompt.points[prompt.labels != ABSENT])


def _moved_box(box: np.ndarray, crop: Crop) -> np.ndarray:
    return box - np.array([crop.left, crop.top] * 2)


def _moved(prompt: ObjectPrompt, crop: Crop | None) -> ObjectPrompt:
    """The prompt in pixels of the crop."""
    if crop is None:
        return prompt
    points = None if prompt.points is None else prompt.points - np.array([crop.left, crop.top])
    return ObjectPrompt(points, prompt.labels, None if prompt.box is None else _moved_box(prompt.box, crop))


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


def _ending(text: str, width: int) -> str:
    """The text, or as much of its end as has room in so many pixels: the end tells the files of a folder apart."""
    letters = width // LETTER
    return text if len(text) <= letters else "..." + text[3 - letters :]


def _framed(picture: np.ndarray, caption: str, side: int) -> np.ndarray:
    """In the middle of a black square, under its caption."""
    height, width = picture.shape[:2]
    framed = np.zeros((CAPTION_HEIGHT + side, side, 3), np.uint8)
    top, left = CAPTION_HEIGHT + (side - height) // 2, (side - width) // 2
    framed[top : top + height, left : left + width] = picture
    cv2.putText(framed, _ending(caption, side), (3, 13), FONT, 0.38, (255, 255, 255), 1, cv2.LINE_AA)
    return framed


def _own_colours(count: int) -> list[Colour]:
    return [colour_of(number) for number in range(count)]


def _prompt_of(prompts: Prompts, row: int) -> ObjectPrompt:
    points, labels, boxes = (None if part is None else part[row].cpu().numpy() for part in prompts[:3])
    return ObjectPrompt(points, labels, boxes)
