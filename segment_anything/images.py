"""Arrays as people hold them -> 8-bit BGR pictures as the model reads them."""

import numpy as np

from .errors import ImageError

ROWS = 256  # that are scaled at a time


def to_8_bits(values: np.ndarray) -> np.ndarray:
    """Scale from their own minimum and maximum to 0..255, as the paper prepares its scans. -> uint8, the same shape.

    The upper 8 bits alone would leave a 12-bit scan nearly black. uint8 is returned as it is; a constant becomes 0.
    Raises ImageError: values that are not finite, or no numbers.
    """
    if values.dtype == np.uint8:
        return values
    if not (np.issubdtype(values.dtype, np.integer) or np.issubdtype(values.dtype, np.floating)):
        raise ImageError(f"image of type {values.dtype}; give integers or floating point numbers")
    if values.size == 0:
        raise ImageError(f"image of shape {values.shape} has no pixels")
    if values.dtype.kind == "f" and not all(
        np.isfinite(values[start : start + ROWS]).all() for start in range(0, len(values), ROWS)
    ):
        raise ImageError("image has values that are not finite; replace them")
    low, high = float(values.min()), float(values.max())
    scaled = np.empty(values.shape, np.uint8)
    for start in range(0, len(values), ROWS):  # in float64, which the whole of a large scan must not become at once
        rows = values[start : start + ROWS].astype(np.float64)
        scaled[start : start + ROWS] = np.round((rows - low) * (255 / max(high - low, 1e-12)))
    return scaled


def to_bgr(image: np.ndarray, image_format: str = "RGB") -> np.ndarray:
    """Any picture -> (H, W, 3) uint8, BGR. Grey is repeated, alpha dropped, other types go through `to_8_bits`.

    image: (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), the last in the order of image_format and then alpha.
    image_format: "RGB" or "BGR"; of no consequence for grey.
    Raises ImageError.
    """
    if image_format not in ("RGB", "BGR"):
        raise ImageError(f"image_format must be RGB or BGR, not {image_format!r}")
    image = np.asarray(image)
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4) or not image.size:
        raise ImageError(f"image of shape {image.shape}; it must be (height, width), or (height, width, 1, 3 or 4)")
    if image.shape[2] == 1:
        return np.repeat(to_8_bits(image), 3, axis=2)
    colours = to_8_bits(image[..., :3])
    return np.ascontiguousarray(colours if image_format == "BGR" else colours[..., ::-1])
