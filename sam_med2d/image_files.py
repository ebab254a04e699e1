"""Picture files: found in folders, named, and written as PNG."""

from pathlib import Path

import cv2
import numpy as np

from sam_med2d.errors import DataError, UsageError
from segment_anything.files import replacing

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


ARCHIVE_LEFTOVERS = "__MACOSX"  # a folder of archives made on a Mac, of files that have the names of pictures


def is_hidden(name: str) -> bool:
    """Of a file or folder by its own name: what systems put beside people's files, such as ._a.png."""
    return name.startswith(".") or name == ARCHIVE_LEFTOVERS


def find_images(source: Path) -> tuple[Path, list[str]]:
    """A file or folder -> the folder, and the images in it as paths below it, without hidden ones. Raises DataError."""
    if source.is_file():
        return source.parent, [source.name]
    if not source.is_dir():
        raise DataError(f"{source}: does not exist; give an image or a folder of images")
    paths = (path for path in source.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file())
    below = (path.relative_to(source) for path in paths)
    names = sorted(path.as_posix() for path in below if not any(map(is_hidden, path.parts)))
    if not names:
        raise DataError(
            f"{source}: holds no image ({', '.join(ENDINGS)}); volumes and DICOM series are for "
            "sam-med2d segment-volume"
        )
    return source, names


def check_output(output: Path, source: Path) -> None:
    """Raises UsageError where results would lie among the images, and be taken for images the next time."""
    folder = source.resolve() if source.is_dir() else source.resolve().parent
    if output.resolve() == folder or (source.is_dir() and output.resolve().is_relative_to(folder)):
        raise UsageError(f"--output {output}: is where the images are; choose a folder outside {folder}")


def encode_png(image: np.ndarray, level: int | None = None) -> bytes:
    """(H, W) stays grey, (H, W, 3) is BGR; uint8, or bool, which becomes 0 and 255.

    level: of compression, up to 9, the smallest and slowest; None: OpenCV's own, which is fast.
    Raises ValueError for arrays of other types and shapes.
    """
    if image.dtype == bool:
        image = image.astype(np.uint8) * 255
    if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)):
        raise ValueError(f"an array of shape {image.shape} and type {image.dtype} is no picture; convert it first")
    settings = [] if level is None else [cv2.IMWRITE_PNG_COMPRESSION, level]
    return cv2.imencode(".png", image, settings)[1].tobytes()


def write_png(path: Path, image: np.ndarray, level: int | None = None) -> None:
    """As PNG, whole or not at all; folders are made. image, level: see `encode_png`.

    Not by cv2.imwrite, which fails on some names without a word.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(encode_png(image, level))
