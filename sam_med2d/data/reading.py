"""Image and mask files -> arrays, and the error that bad input ends in.

    image = read_image("data_demo/images/mni152_axial_094.png")         # (H, W, 3)
    mask = read_mask("data_demo/masks/mni152_axial_094_thalamus_000.png", image.shape[:2])

Images are (H, W, 3) uint8 in BGR order, as OpenCV reads them; masks are (H, W) bool, one object a file.
"""

import cv2
import numpy as np

from sam_med2d.errors import DataError
from segment_anything.images import ImageError, to_8_bits


def read_image(path: str) -> np.ndarray:
    """Read an image file -> (H, W, 3) uint8, BGR. Grey is repeated, alpha dropped.

    Images of more than 8 bits are scaled from their own minimum and maximum to 0..255, as the paper prepares its scans:
    the upper 8 bits alone would leave a 12-bit scan nearly black.
    Raises DataError: missing, unreadable, truncated or not an image, or values that are no numbers.
    """
    try:
        return to_8_bits(_decode(path, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH))
    except ImageError as error:
        raise DataError(f"{path}: {error}") from error


def read_mask(path: str, image_size: tuple[int, int], image_path: str = "its image") -> np.ndarray:
    """Read the mask of one object -> (H, W) bool.

    The larger of two values is the object; a mask of one value is all object, or empty if that value is 0.

    image_size: (height, width) the mask must have, that of image_path.
    Raises DataError: as read_image; another size than the image; more than two values.
    """
    # Without ANYDEPTH, a 16-bit mask of 0 and 1 would be reduced to its upper 8 bits: all zero.
    values = _decode(path, cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH)
    if values.shape != tuple(image_size):
        (height, width), (image_height, image_width) = values.shape, image_size
        raise DataError(
            f"{path}: mask of {width} x {height} pixels, but {image_path} has {image_width} x {image_height}; "
            "give both the same size",
            kind="size",
        )
    low, high = values.min(), values.max()
    if low == high:
        return np.full(values.shape, bool(high))
    mask = values == high
    if np.count_nonzero(mask) + np.count_nonzero(values == low) != values.size:
        raise DataError(
            f"{path}: more than two values ({low} to {high}); split it, one object a file of 0 and 255, saved as PNG",
            kind="values",
        )
    return mask


def _decode(path: str, flags: int) -> np.ndarray:
    """Read and decode a file. From bytes, as cv2.imread fails on some names and passes truncated files."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions") from error
    if _is_truncated(data):
        raise DataError(f"{path}: truncated, its end is missing; copy or export it again")
    try:
        # imdecode raises on an empty buffer and on an image over its pixel limit, and returns None on other failures.
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        decoded = None
    if decoded is None:
        raise DataError(f"{path}: not an image that OpenCV can decode; export it again, as PNG for instance")
    return decoded


def _is_truncated(data: bytes) -> bool:
    """Whether a PNG or JPEG lacks its end. Decoders differ: some return the first rows and only warn on stderr.

    Bytes after the end are legal (cameras append previews), so the marker is looked for, not expected last.
    """
    if data.startswith(b"\x89PNG"):
        return data.rfind(b"IEND\xaeB`\x82") < 0
    if data.startswith(b"\xff\xd8"):
        # Neither marker can occur inside compressed data. A thumbnail in the header has an end of its own, but
        # it comes before the last start of scan.
        return data.rfind(b"\xff\xd9") <= data.rfind(b"\xff\xda")
    return False
