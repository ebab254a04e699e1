"""Whether there is anything to see: images of almost one value, and objects that equal what is around them.

Such files come from a window that is not that of the data, most often from one in Hounsfield units on other numbers.
"""

import cv2
import numpy as np

NEARLY = 4  # of 255: values this close together count as one
AROUND = 3  # pixels around an object that are looked at


def is_flat(image: np.ndarray) -> bool:
    """Whether no channel of (H, W, 3) uint8 differs by more than NEARLY from pixel to pixel."""
    return bool((np.ptp(image.reshape(-1, image.shape[-1]), axis=0) <= NEARLY).all())


def is_hidden(image: np.ndarray, mask: np.ndarray) -> bool:
    """Whether an object and the AROUND pixels around it are of almost one value. mask: (H, W) bool, not empty."""
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    rows = slice(max(0, y - AROUND), y + height + AROUND)
    columns = slice(max(0, x - AROUND), x + width + AROUND)
    near = cv2.dilate(mask[rows, columns].astype(np.uint8), np.ones((2 * AROUND + 1,) * 2, np.uint8)) > 0
    return is_flat(image[rows, columns][near][:, None])
