"""Image and mask files -> arrays, and the error that bad input ends in.

    image = read_image("data_demo/images/mni152_axial_094.png")         # (H, W, 3)
    mask = read_mask("data_demo/masks/mni152_axial_094_thalamus_000.png", image.shape[:2])

Images are (H, W, 3) uint8 in BGR order, as OpenCV reads them; masks are (H, W) bool, one object a file: masks.py has
the rule. Decoding and what is refused everywhere is in decoding.py.
"""

from collections.abc import Sequence

import cv2
import numpy as np

from sam_med2d.data.decoding import PictureFile, decode, is_turned, no_image, open_picture, turned
from sam_med2d.data.masks import label_values, object_of, read_raw
from sam_med2d.errors import DataError
from segment_anything.images import ImageError, to_8_bits


def read_image(path: str, masks: Sequence[str | tuple[int, int]] = (), *, keep_grey: bool = False) -> np.ndarray:
    """Read an image file -> (H, W, 3) uint8, BGR. Grey is repeated, alpha dropped.

    Images of more than 8 bits are scaled from their own minimum and maximum to 0..255, as the paper prepares its scans:
    the upper 8 bits alone would leave a 12-bit scan nearly black.

    masks: files that were made on the image, or (height, width) of such. Where its EXIF orientation is not 1, they say
        whether it is turned or read as stored; without them it is turned, as every viewer shows it.
    keep_grey: a file of one channel becomes (H, W).
    Raises DataError: missing, unreadable, truncated or not an image, too large, of several pages, values that are no
    numbers, or an orientation that its masks leave open.
    """
    file = open_picture(path)
    turn = file.header.orientation != 1 and is_turned(file, _sizes(masks) if masks else None, "its masks")
    try:
        pixels = to_8_bits(decode(file, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH))
    except ImageError as error:
        raise DataError(f"{path}: {error}") from error
    if turn:
        pixels = turned(pixels, file.header.orientation)
    return _in_channels(pixels, file, keep_grey)


def _in_channels(pixels: np.ndarray, file: PictureFile, keep_grey: bool) -> np.ndarray:
    if keep_grey and file.header.grey:
        return pixels if pixels.ndim == 2 else np.ascontiguousarray(pixels[..., 0])
    if pixels.ndim == 2:
        return cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR)
    if pixels.shape[2] not in (3, 4):
        raise no_image(file.path)
    return pixels if pixels.shape[2] == 3 else np.ascontiguousarray(pixels[..., :3])


def _sizes(masks: Sequence[str | tuple[int, int]]) -> list[tuple[int, int]]:
    """(height, width) of each, read from the headers of files; those that cannot be read are told of later."""
    sizes = []
    for mask in masks:
        if not isinstance(mask, str):
            sizes.append(mask)
            continue
        try:
            header = open_picture(mask).header
        except DataError:
            continue
        sizes.append(header.size)
    return sizes


def read_mask(
    path: str, image_size: tuple[int, int], image_path: str = "its image", threshold: float | None = None
) -> np.ndarray:
    """Read the mask of one object -> (H, W) bool, by the rule of masks.py.

    image_size: (height, width) the mask must have, that of image_path.
    threshold: where the mask has more than two values, from this one on a pixel is of the object.
    Raises DataError: as read_image; another size than the image; more than two values; two that do not tell which of
    them is the object.
    """
    file, turn = _open_for(path, image_size, image_path, "mask")
    mask = object_of(read_raw(file), path, threshold)
    return turned(mask, file.header.orientation) if turn else mask


def read_label_map(path: str, image_size: tuple[int, int], image_path: str, colours: bool) -> np.ndarray:
    """-> (H, W) numbers: the values, of a palette image its indices; with `colours`, 0xRRGGBB.

    image_size, image_path: as of read_mask. Raises DataError as it does, and for JPEGs.
    """
    file, turn = _open_for(path, image_size, image_path, "label map")
    if file.header.kind == "JPEG":
        raise DataError(f"{path}: a label map cannot be a JPEG, which changes its values; export it again as PNG")
    values = label_values(read_raw(file), path, colours)
    if file.header.bits == 1 and not file.header.palette and not colours:
        values = (values > 0).astype(np.uint8)  # of one bit a pixel, which OpenCV spreads to 0 and 255
    return turned(values, file.header.orientation) if turn else values


def _open_for(path: str, image_size: tuple[int, int], image_path: str, what: str) -> tuple[PictureFile, bool]:
    """-> a file that was made on an image, and whether it is to be turned. Raises DataError: of another size."""
    file = open_picture(path)
    turn = file.header.orientation != 1 and is_turned(file, [tuple(image_size)], "its image")
    height, width = file.header.size_turned if turn else file.header.size
    if (height, width) == tuple(image_size):
        return file, turn
    image_height, image_width = image_size
    raise DataError(
        f"{path}: {what} of {width} x {height} pixels, but {image_path} has {image_width} x {image_height}; "
        "give both the same size",
        kind="size",
    )
