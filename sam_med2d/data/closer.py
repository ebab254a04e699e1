"""Training pictures looked at closer, as predictors look at small objects: crops around objects, at drawn scales."""

import cv2
import numpy as np

from sam_med2d.data.geometry import shrink
from segment_anything.frames import SAM
from segment_anything.zoom import Crop, crop_around

LEAST = 1.2  # the sides of the closest crop, as a multiple of those of the object's box


def drawn_crop(mask: np.ndarray, generator: np.random.Generator) -> Crop:
    """A crop in which an object lies whole, anywhere; how many times as long as the object's box its sides are is drawn
    log-uniformly between LEAST and the whole picture.

    mask: (H, W) bool, not empty.
    """
    height, width = mask.shape
    x, y, across, down = cv2.boundingRect(mask.astype(np.uint8))
    most = max(width / across, height / down)
    context = LEAST * (max(most, LEAST) / LEAST) ** generator.random()
    crop = crop_around(np.array([x, y, x + across, y + down], float), context, (height, width))
    left, top = (
        int(generator.integers(max(0, start + length - side), min(start, whole - side) + 1))
        for start, length, side, whole in ((x, across, crop.width, width), (y, down, crop.height, height))
    )
    return crop._replace(left=left, top=top)


def filling(array: np.ndarray, size: int, frame: str) -> np.ndarray:
    """A crop of an image or a mask (bool) that fills the frame, also where it is smaller, as predictors have it: the
    picture as a whole would be padded then.
    """
    array = np.ascontiguousarray(array)
    if frame == SAM:
        return shrink(array, size, frame)
    return cv2.resize(array.view(np.uint8), (size, size), interpolation=cv2.INTER_NEAREST).view(array.dtype)
