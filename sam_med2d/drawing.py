"""Pictures for people: an object with its prediction, its truth and the prompts that led there.

Images are (H, W, 3) uint8 in BGR order, as OpenCV reads and writes them.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from torch import Tensor

import sam_med2d.errors  # noqa: F401  says so first where segment_anything is somebody else's
from segment_anything import ABSENT, FOREGROUND, ObjectPrompt, Prompts

PREDICTION = (0, 140, 255)  # orange, filled

TRUTH = (80, 220, 80)  # green, outline

BOX = (255, 200, 0)  # cyan

CLICK = {True: (80, 255, 80), False: (60, 60, 255)}  # foreground green, background red

CAPTION_HEIGHT = 18

# Of the same lightness and far apart in hue, so that no object stands out; in BGR.
COLOURS = (
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

OPACITY = 0.4

SMALLEST_SIDE = 512  # of the longer side in pixels: smaller pictures are enlarged, so that lines and names can be read


def tile(
    image: np.ndarray, predicted: Tensor, truth: Tensor, prompts: Prompts, row: int, caption: str, side: int = 256
) -> np.ndarray:
    """One object. predicted, truth: (H, W) bool; prompts: in pixels of `image`, of which `row` is drawn.

    -> (side + caption, side, 3), the picture enlarged or shrunk to fit and centred.
    """
    height, width = image.shape[:2]
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    predicted, truth = (
        cv2.resize(mask.numpy().astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) for mask in (predicted, truth)
    )
    tinted = (0.55 * picture + 0.45 * np.array(PREDICTION)).astype(np.uint8)
    picture = np.where(predicted[..., None] > 0, tinted, picture)
    outlines, _ = cv2.findContours(truth, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, outlines, -1, TRUTH, 1)
    _draw_prompts(picture, prompts, row, scale)

    framed = np.zeros((side + CAPTION_HEIGHT, side, 3), np.uint8)
    top, left = CAPTION_HEIGHT + (side - size[1]) // 2, (side - size[0]) // 2
    framed[top : top + size[1], left : left + size[0]] = picture
    cv2.putText(framed, _short(caption, side), (3, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.38, (255, 255, 255), 1, cv2.LINE_AA)
    return framed


def _draw_prompts(picture: np.ndarray, prompts: Prompts, row: int, scale: float) -> None:
    if prompts.boxes is not None:
        x0, y0, x1, y1 = (round(v * scale) for v in prompts.boxes[row].tolist())
        cv2.rectangle(picture, (x0, y0), (x1 - 1, y1 - 1), BOX, 1)
    if prompts.points is not None:
        for (x, y), label in zip(prompts.points[row].tolist(), prompts.labels[row].tolist()):
            if label != ABSENT:
                centre = (round((x + 0.5) * scale), round((y + 0.5) * scale))
                cv2.circle(picture, centre, 4, (0, 0, 0), -1, cv2.LINE_AA)
                cv2.circle(picture, centre, 3, CLICK[label == FOREGROUND], -1, cv2.LINE_AA)


def _short(caption: str, side: int) -> str:
    """What fits, the end being what tells objects of one image apart."""
    letters = side // 7
    return caption if len(caption) <= letters else "..." + caption[3 - letters :]


def grid(tiles: list[np.ndarray], columns: int = 6) -> np.ndarray:
    """Tiles of one size, row by row."""
    columns = min(columns, len(tiles))
    empty = np.zeros_like(tiles[0])
    tiles = tiles + [empty] * (-len(tiles) % columns)
    return np.vstack([np.hstack(tiles[i : i + columns]) for i in range(0, len(tiles), columns)])


def colour_of(number: int) -> tuple[int, int, int]:
    return COLOURS[number % len(COLOURS)]


def overlay(
    image: np.ndarray, masks: Sequence[np.ndarray], prompts: Sequence[ObjectPrompt] = (), names: Sequence[str] = ()
) -> np.ndarray:
    """masks: n of (H, W) bool; prompts: n, or none, in pixels of the image; names: n, or none, drawn above their objects.

    -> (H * k, W * k, 3), with a whole number k.
    """
    k = max(1, round(SMALLEST_SIDE / max(image.shape[:2])))
    picture = cv2.resize(image, None, fx=k, fy=k, interpolation=cv2.INTER_NEAREST)
    large = [cv2.resize(mask.astype(np.uint8), None, fx=k, fy=k, interpolation=cv2.INTER_NEAREST) for mask in masks]
    for number, mask in enumerate(large):
        tinted = (1 - OPACITY) * picture[mask > 0] + OPACITY * np.array(colour_of(number))
        picture[mask > 0] = np.round(tinted).astype(np.uint8)
    for number, mask in enumerate(large):
        outlines, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, outlines, -1, colour_of(number), 1)
    for number, prompt in enumerate(prompts):
        _draw_prompt(picture, prompt, k, colour_of(number))
    for number, name in enumerate(names):
        x, y, width, _ = cv2.boundingRect(large[number])
        if width:
            _write(picture, name, x, y - 4, colour_of(number))
    return picture


def _draw_prompt(picture: np.ndarray, prompt: ObjectPrompt, k: int, colour: tuple[int, int, int]) -> None:
    if prompt.box is not None:
        x0, y0, x1, y1 = (round(float(side) * k) for side in prompt.box)
        cv2.rectangle(picture, (x0, y0), (x1 - 1, y1 - 1), colour, 1)
    if prompt.points is not None:
        for (x, y), label in zip(prompt.points, prompt.labels):
            if label != ABSENT:
                centre = round((float(x) + 0.5) * k), round((float(y) + 0.5) * k)
                kind = cv2.MARKER_CROSS if label == FOREGROUND else cv2.MARKER_TILTED_CROSS  # + adds, x takes away
                cv2.drawMarker(picture, centre, (0, 0, 0), kind, 13, 4)
                cv2.drawMarker(picture, centre, (255, 255, 255) if label == FOREGROUND else (60, 60, 255), kind, 11, 2)


def _write(picture: np.ndarray, text: str, x: int, y: int, colour: tuple[int, int, int]) -> None:
    """On a ground of the object's colour, within the picture."""
    (width, height), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.45, 1)
    x, y = max(0, min(x, picture.shape[1] - width)), max(height + 2, y)
    cv2.rectangle(picture, (x, y - height - 2), (x + width, y + below), colour, -1)
    cv2.putText(picture, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
