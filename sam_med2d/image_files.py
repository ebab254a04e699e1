"""Pictures in and out of the scripts: found in folders, written as PNG, and drawn with several objects on them.

Images are (H, W, 3) uint8 in BGR order, as OpenCV reads and writes them.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from sam_med2d.errors import DataError, UsageError
from segment_anything.files import replacing

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


def find_images(source: Path) -> tuple[Path, list[str]]:
    """A file or folder -> the folder, and the images in it as paths below it. Raises DataError."""
    if source.is_file():
        return source.parent, [source.name]
    if not source.is_dir():
        raise DataError(f"{source}: does not exist; give an image or a folder of images")
    paths = (path for path in source.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file())
    names = sorted(path.relative_to(source).as_posix() for path in paths)
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


def without_endings(names: Sequence[str]) -> dict[str, str]:
    """a/b.png -> a/b, as the base of what is written for it; where two names would become one, they keep their endings."""
    bare = Counter(Path(name).with_suffix("") for name in names)
    return {
        name: name if bare[Path(name).with_suffix("")] > 1 else Path(name).with_suffix("").as_posix() for name in names
    }


def write_picture(path: Path, picture: np.ndarray) -> None:
    """As PNG, whole or not at all; folders are made. cv2.imwrite would fail on some names without a word."""
    with replacing(path) as temporary:
        temporary.write_bytes(cv2.imencode(".png", picture)[1].tobytes())


def write_image(folder: Path, name: str, image: np.ndarray) -> None:
    """As PNG, under its own name; a name with another ending gets .png added. imwrite would fail on some silently."""
    path = folder / (name if name.lower().endswith(".png") else f"{name}.png").lstrip("./")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", image)[1].tobytes())
