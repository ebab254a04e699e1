"""Pictures for people: an object with its prediction, its truth and the prompts that led there.

Images are (H, W, 3) uint8 in BGR order, as OpenCV reads and writes them.
"""

from pathlib import Path

import cv2
import numpy as np
from torch import Tensor

from sam_med2d.data.datasets import Batch, Index, read_image
from sam_med2d.evaluation.evaluate import Scored, to_original_frame
from segment_anything import ABSENT, FOREGROUND, Prompts

PREDICTION = (0, 140, 255)  # orange, filled
TRUTH = (80, 220, 80)  # green, outline
BOX = (255, 200, 0)  # cyan
CLICK = {True: (80, 255, 80), False: (60, 60, 255)}  # foreground green, background red
CAPTION_HEIGHT = 18


def tiles_of(batch: Batch, scored: Scored, index: Index) -> list[np.ndarray]:
    """A tile for each object of one image in one mode, on the original picture, with its Dice."""
    image = read_image(index.path(batch.image_names[scored.image]))
    prompts = to_original_frame(scored.prompts, batch.content[scored.image].tolist(), image.shape[:2])
    return [
        tile(image, scored.masks[i], scored.truth[i], prompts, i, f"{Path(name).stem}  {scored.values['dice'][i]:.2f}")
        for i, name in enumerate(scored.names)
    ]


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
