"""Into the square frame that the model sees, and back."""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from segment_anything import Prompts
from segment_anything.frames import SAM, SAM_MED2D, longest_side
from segment_anything.geometry import back, is_paper, stretch
from segment_anything.utils.transforms import ResizeLongestSide

Content = tuple[int, int, int, int]  # top, left, height, width of the picture inside the frame


def fit(
    image: np.ndarray, masks: Sequence[np.ndarray], size: int, frame: str = SAM_MED2D
) -> tuple[np.ndarray, np.ndarray, Content]:
    """Bring an image and its masks into the S x S frame.

    SAM-Med2D's: smaller than the frame on both sides: centred, padded with 0. Any other: stretched to S x S, nearest
    neighbour, for image and masks alike (what the published weights were trained on). At exactly S x S nothing changes.
    SAM's: the longest side becomes S, bilinear for the image and nearest neighbour for masks; padded with 0 at the
    right and below.

    image: (H, W, 3); masks: n of (H, W) bool, n may be 0.
    Returns (S, S, 3), (n, S, S) bool and the picture's (top, left, height, width) in the frame.
    """
    shrunk = [shrink(mask, size, frame) for mask in masks]
    image = shrink(image, size, frame)
    return pad(image, np.array(shrunk, bool).reshape(len(masks), *image.shape[:2]), size, frame)


def shrink(array: np.ndarray, size: int, frame: str = SAM_MED2D) -> np.ndarray:
    """The first half of `fit`, of an image or a mask (bool): S x S, unless it is smaller than the frame on both sides;
    in SAM's frame always with a longest side of S."""
    height, width = array.shape[:2]
    if frame == SAM:
        if array.ndim == 3:
            return ResizeLongestSide(size).apply_image(array)
        inside = longest_side((height, width), size)
        return cv2.resize(array.view(np.uint8), inside[::-1], interpolation=cv2.INTER_NEAREST).view(array.dtype)
    if height < size and width < size:
        return array
    resized = cv2.resize(array.view(np.uint8), (size, size), interpolation=cv2.INTER_NEAREST)
    return resized.view(array.dtype)


def pad(
    image: np.ndarray, masks: np.ndarray, size: int, frame: str = SAM_MED2D
) -> tuple[np.ndarray, np.ndarray, Content]:
    """The second half of `fit`: centre (h, w, 3) and (n, h, w) in the frame, zeros around; SAM's has them at its top
    left."""
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return image, masks, (0, 0, size, size)
    top, left = (0, 0) if frame == SAM else ((size - height) // 2, (size - width) // 2)
    rows, columns = slice(top, top + height), slice(left, left + width)
    framed = np.zeros((size, size, 3), image.dtype)
    framed[rows, columns] = image
    framed_masks = np.zeros((len(masks), size, size), bool)
    framed_masks[:, rows, columns] = masks
    return framed, framed_masks, (top, left, height, width)


def restore(logits: Tensor, content: list[int], size: tuple[int, int], paper: bool = False) -> Tensor:
    """From the S x S frame to the original picture: crop the padding, or linear where it was resized.

    logits: (n, 1, S, S); content: top, left, height, width in the frame; paper: by the original's mapping, which is
    also that of SAM's frame.
    -> (n, 1, *size).
    """
    top, left, height, width = content
    return back(logits[..., top : top + height, left : left + width], size, paper)


def by_centres(frame: str, protocol: str) -> bool:
    """What `paper` means here, for a frame and a protocol: whether frame pixels stand for the middle of what they show.

    Raises ValueError: a protocol that is unknown.
    """
    return is_paper(protocol) or frame == SAM


def to_original_frame(prompts: Prompts, content: list[int], size: tuple[int, int], paper: bool = False) -> Prompts:
    """Points and boxes of one image, from the S x S frame to pixels of the original picture (height, width)."""
    top, left, height, width = content
    offset = torch.tensor([left, top])
    points = None if prompts.points is None else prompts.points - offset
    boxes = None if prompts.boxes is None else prompts.boxes - offset.repeat(2)
    if (height, width) != tuple(size):  # else it was padded, and may have clicks outside the picture
        axes = stretch(size[1], width, paper), stretch(size[0], height, paper)
        if points is not None:
            x, y = (axis.points_to_source(values) for axis, values in zip(axes, points.numpy().T))
            points = _as(points, np.stack([x, y]))
        if boxes is not None:
            x0, y0, x1, y1 = (axis.edges_to_source(values) for axis, values in zip(axes * 2, boxes.numpy().T))
            boxes = _as(boxes, np.stack([x0, y0, x1, y1]))
    return prompts._replace(points=points, boxes=boxes)


def _as(before: Tensor, coordinates: np.ndarray) -> Tensor:
    """Coordinates, first their kind, then as `before.T` -> the shape and type of `before`."""
    return torch.from_numpy(coordinates.T.copy()).to(before)
