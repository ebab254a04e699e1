"""What a mask is: the one rule by which the pixels of a file become one object, or the values of a label map.

Training, make-index and check-index all go by it. Values are read raw: of a palette its indices, of a picture with
transparency its colours and its alpha.

    two greys       the lighter is the object
    a palette       index 0 is the ground
    transparency    what is more opaque is the object, whatever its colour
    two colours     black is the ground, else what most of the picture's border shows

Where two of these contradict each other, the first stands only if the border agrees; else the mask is refused. A mask
of one value is empty if that is black, index 0 or transparent, and else fills its picture. More than two values are
refused, unless a threshold is given: compressed and antialiased masks need one.
"""

from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from sam_med2d.data.decoding import INVERSE, PictureFile, decode, no_image, turned
from sam_med2d.data.headers import OTHERS, open_with_pillow
from sam_med2d.errors import DataError

CLEAR = 2 / 3  # of the border: what shows there is the ground


class Raw(NamedTuple):
    """values: (H, W), greys or a palette's indices, or (H, W, 3), RGB, of which not all pixels are grey.

    alpha: (H, W); None where nothing is transparent, or everything half so. palette: (256, 3) uint8, the RGB of each
    index.
    """

    values: np.ndarray
    alpha: np.ndarray | None = None
    palette: np.ndarray | None = None


def read_raw(file: PictureFile) -> Raw:
    """Raises DataError."""
    if file.header.palette:
        return _indices(file)
    if file.header.grey_and_alpha and file.header.kind == "TIFF":  # of which OpenCV drops the alpha
        grey, alpha = np.moveaxis(_as_stored(np.asarray(_with_pillow(file)), file), 2, 0)
        return Raw(grey, None if alpha.min() == alpha.max() != 0 else alpha)
    # UNCHANGED: a 16-bit mask of 0 and 1 would else be reduced to its upper 8 bits, all zero, and alpha be dropped.
    pixels = decode(file, cv2.IMREAD_UNCHANGED)
    if pixels.ndim == 2:
        return Raw(pixels, _level_of_transparency(file, pixels))
    if pixels.shape[2] not in (3, 4):
        raise no_image(file.path)
    alpha = pixels[..., 3] if pixels.shape[2] == 4 else None
    if alpha is not None and alpha.min() == alpha.max() != 0:
        alpha = None
    blue, green, red = cv2.split(pixels)[:3]
    if np.array_equal(blue, green) and np.array_equal(green, red):
        return Raw(blue, alpha)
    return Raw(np.dstack([red, green, blue]), alpha)


def _indices(file: PictureFile) -> Raw:
    """By Pillow, as OpenCV turns indices into colours. Alpha: what their transparency comes to."""
    image = _with_pillow(file)
    indices = _as_stored(np.asarray(image), file)
    listed = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)[:256]
    palette = np.zeros((256, 3), np.uint8)  # an index that is not listed is black
    palette[: len(listed)] = listed
    if indices.ndim == 3:
        indices = indices[..., 0]
    transparency = image.info.get("transparency")
    if isinstance(transparency, int):
        transparency = bytes([255] * transparency + [0])
    opaque = np.full(256, 255, np.uint8)
    if isinstance(transparency, bytes):
        opaque[: len(transparency)] = np.frombuffer(transparency[:256], np.uint8)
    shades = opaque[indices] if (opaque < 255).any() else None
    return Raw(indices, None if shades is None or shades.min() == shades.max() else shades, palette)


def _with_pillow(file: PictureFile) -> Image.Image:
    """Decoded. Raises DataError."""
    image = open_with_pillow(file.data, ("PNG", "TIFF", *OTHERS))
    if image is None:
        raise no_image(file.path)
    try:
        image.load()
    except Exception as error:  # of any kind: see open_with_pillow
        raise DataError(f"{file.path}: cannot be decoded ({error}); copy or export it again") from error
    return image


def _as_stored(pixels: np.ndarray, file: PictureFile) -> np.ndarray:
    """Pixels of Pillow, which turns TIFFs by their orientation and no other kind."""
    if file.header.kind != "TIFF" or file.header.orientation == 1:
        return pixels
    return turned(pixels, INVERSE[file.header.orientation])


def _level_of_transparency(file: PictureFile, pixels: np.ndarray) -> np.ndarray | None:
    level = file.header.transparent
    if level is None:
        return None
    if file.header.bits < 8:  # OpenCV spreads 1, 2 and 4 bits over 0 to 255
        level = level * 255 // (2**file.header.bits - 1)
    alpha = np.where(pixels == level, 0, 255).astype(np.uint8)
    return None if alpha.all() else alpha


# ---------------------------------------------------------------- one object


def object_of(raw: Raw, path: str, threshold: float | None = None) -> np.ndarray:
    """-> (H, W) bool. threshold: from this value on a pixel is of the object, where there are more than two values.

    Raises DataError, of the kind "values": more than two, or it is not clear which of two is the object.
    """
    plain = raw.alpha is None and raw.palette is None and raw.values.ndim == 2  # by far the most
    codes = raw.values if plain else _codes(raw, path)
    low, high = codes.min(), codes.max()
    if codes.dtype.kind == "f" and not np.isfinite([low, high]).all():
        raise DataError(f"{path}: has values that are not finite; export it again, with 0 and 255", kind="values")
    upper = codes == high
    if low == high:
        return np.full(codes.shape, _is_object(raw))
    if np.count_nonzero(upper) + np.count_nonzero(codes == low) != codes.size:
        if threshold is None:
            raise DataError(f"{path}: {_too_many(raw)}", kind="values")
        return _levels(raw) >= threshold
    if plain:
        return upper
    return ~upper if _ground_is_upper(raw, upper, path) else upper


def _codes(raw: Raw, path: str) -> np.ndarray:
    """(H, W) whole numbers: one for each different kind of pixel. What is transparent has no colour."""
    values = raw.values
    if values.ndim == 3:
        bits = 8 * values.itemsize
        red, green, blue = (values[..., k].astype(np.uint32 if bits == 8 else np.uint64) for k in range(3))
        codes = red << 2 * bits | green << bits | blue
    else:
        codes = values
    if raw.alpha is None or raw.palette is not None:
        return codes
    if not raw.alpha.any():
        if codes.min() != codes.max():
            raise DataError(
                f"{path}: is transparent everywhere, and has more than one colour; export it again, with 0 and 255",
                kind="values",
            )
        return codes
    codes = np.where(raw.alpha == 0, 0, codes).astype(np.uint64) << raw.alpha.itemsize * 8
    return codes | raw.alpha


def _is_object(raw: Raw) -> bool:
    """Of a mask of one value."""
    if raw.alpha is not None and not raw.alpha.any():
        return False
    return bool(np.any(raw.values[0, 0]))


def _ground_is_upper(raw: Raw, upper: np.ndarray, path: str) -> bool:
    """Of two kinds of pixels, whether the ground is `upper` or the others. Raises DataError where that is not clear."""
    places = [np.unravel_index(int(kind.argmax()), kind.shape) for kind in (~upper, upper)]
    votes = _votes(raw, places)
    edge = np.concatenate([upper[0], upper[-1], upper[1:-1, 0], upper[1:-1, -1]]).mean()  # share of the border
    plain_colours = raw.palette is None and raw.values.ndim == 3 and raw.alpha is None
    if plain_colours and max(edge, 1 - edge) >= CLEAR:
        votes.append(bool(edge > 0.5))
    if votes and (len(set(votes)) == 1 or (edge > 0.5 if votes[0] else edge < 0.5)):
        return votes[0]
    raise DataError(
        f"{path}: it is not clear which of its two values is the object: {_shown(raw, places)}; export it again, with "
        "0 for the ground and 255 for the object",
        kind="values",
    )


def _votes(raw: Raw, places: list) -> list[bool]:
    """Whether the second of two pixels is the ground, by each rule that says something, the strongest first."""
    votes = []
    values = [raw.values[place] for place in places]
    if raw.alpha is not None:
        lower, upper = (int(raw.alpha[place]) for place in places)
        if lower != upper:
            votes.append(upper < lower)
            if raw.palette is None and not min(lower, upper):
                return votes  # what is transparent has no colour
    if raw.palette is not None:
        if 0 in values:
            votes.append(bool(values[1] == 0))
        colours = [raw.palette[index] for index in values]
    else:
        colours = [np.broadcast_to(value, 3) for value in values]
    grey = [len(set(colour.tolist())) == 1 for colour in colours]
    if all(grey) and colours[0][0] != colours[1][0]:
        votes.append(bool(colours[1][0] < colours[0][0]))
    elif colours[0].any() != colours[1].any():  # one is black
        votes.append(not colours[1].any())
    return votes


def _shown(raw: Raw, places: list) -> str:
    if raw.palette is not None:
        return " and ".join(f"index {raw.values[place]} of its palette" for place in places)
    return " and ".join("the colour " + ", ".join(map(str, np.atleast_1d(raw.values[place]))) for place in places)


def _levels(raw: Raw) -> np.ndarray:
    """(H, W) numbers, the larger the surer: alpha where it alone varies, else brightness, dimmed by transparency."""
    values = raw.palette[raw.values] if raw.palette is not None else raw.values
    values = values.max(axis=2) if values.ndim == 3 else values
    if raw.alpha is None:
        return values
    visible = values[raw.alpha > 0]
    if visible.size and visible.min() == visible.max():
        return raw.alpha
    return values * (raw.alpha / np.iinfo(raw.alpha.dtype).max)


def _too_many(raw: Raw) -> str:
    low, high = (raw.values.min(), raw.values.max()) if raw.alpha is None else (raw.alpha.min(), raw.alpha.max())
    what = "values" if raw.alpha is None else "values of colour and alpha"
    middle = 128 if high <= 255 else 2 ** (int(high).bit_length() - 1)
    return (
        f"more than two {what} ({low} to {high}); split it, one object a file of 0 and 255, saved as PNG; or, where "
        f"compression or antialiasing made them, make-index masks --threshold {middle}; or, where each is a class, "
        "make-index labelmaps"
    )


# ---------------------------------------------------------------- label maps


def label_values(raw: Raw, path: str, colours: bool) -> np.ndarray:
    """(H, W) of numbers as stored, 0 where a pixel is transparent; with `colours`, 0xRRGGBB. Raises DataError."""
    values, alpha = raw.values, None if raw.palette is not None and not colours else raw.alpha
    if colours:
        values = _as_colours(raw, path)
    elif values.ndim == 3:
        found = np.unique(values.reshape(-1, 3), axis=0)
        shown = ", ".join("#" + "".join(f"{channel:02x}" for channel in colour) for colour in found[:8])
        raise DataError(
            f"{path}: is colour-coded ({len(found)} colours: {shown}); give --classes with a colour a class"
        )
    if alpha is None:
        return values
    opaque = alpha == alpha.max()
    if not (opaque | (alpha == 0)).all():
        raise DataError(f"{path}: has half-transparent pixels, whose class is not clear; export it again without alpha")
    if not alpha.any():
        return np.zeros_like(values)
    if not values[opaque].any():  # black on transparent: alpha alone says where the object is
        return np.where(opaque, 0xFFFFFF if colours else 255, 0).astype(np.int32 if colours else np.uint8)
    return np.where(opaque, values, 0).astype(values.dtype)


def _as_colours(raw: Raw, path: str) -> np.ndarray:
    values = raw.values
    if raw.palette is not None:
        values = raw.palette[values]
    if values.dtype != np.uint8:
        raise DataError(f"{path}: colours of {values.dtype}; a colour-coded label map has 8 bits a channel")
    values = values.astype(np.int32)
    red, green, blue = (values[..., k] for k in range(3)) if values.ndim == 3 else (values,) * 3
    return red << 16 | green << 8 | blue
