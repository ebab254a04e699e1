"""Places in a region of pixels."""

import cv2
import numpy as np


def innermost_pixel(region: np.ndarray) -> tuple[int, int]:
    """The pixel farthest from the region's edge, the picture's border being an edge; of several the first in reading
    order.

    region: (H, W) bool, with at least one pixel -> (x, y).
    """
    depth = depth_of(region)
    # Squared distances are whole numbers: rounded, since OpenCV's last digits would decide between pixels that are
    # alike.
    y, x = np.unravel_index(np.rint(depth.astype(np.float64) ** 2).argmax(), depth.shape)
    return int(x), int(y)


def depth_of(region: np.ndarray) -> np.ndarray:
    """How far each pixel lies from the nearest one outside, the picture's border being outside: (H, W) float32."""
    padded = np.pad(region, 1).astype(np.uint8)
    return cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
