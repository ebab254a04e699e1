"""Places in a region of pixels."""

import cv2
import numpy as np


def innermost_pixel(region: np.ndarray) -> tuple[int, int]:
    """The pixel farthest from the region's edge, the picture's border being an edge; of several the first in reading
    order.

    region: (H, W) bool, with at least one pixel -> (x, y).
    """
    padded = np.pad(region, 1).astype(np.uint8)
    depth = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    # Squared distances are whole numbers: rounded, since OpenCV's last digits would decide between pixels that are
    # alike.
    y, x = np.unravel_index(np.rint(depth.astype(np.float64) ** 2).argmax(), depth.shape)
    return int(x), int(y)
