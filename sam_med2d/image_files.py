"""Pictures in and out of the scripts: found in folders, written as PNG, and drawn with several objects on them.

Images are (H, W, 3) uint8 in BGR order, as OpenCV reads and writes them.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from sam_med2d.data.reading import DataError
from sam_med2d.utils import UsageError
from segment_anything import ABSENT, FOREGROUND, ObjectPrompt
from segment_anything.files import replacing

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
# Of the same lightness and far apart in hue, so that no object stands out; in BGR.
COLOURS = (
    (0, 140, 255),
    (230, 160, 60),
    (100, 200, 60),
    (200, 100, 220),
    (60, 200, 230),
    (120, 90, 250),
    (190, 190, 70),
    (150, 210, 150),
    (70, 110, 200),
    (240, 130, 160),
)
OPACITY = 0.4
SMALLEST_SIDE = 512  # of the longer side in pixels: smaller pictures are enlarged, so that lines and names can be read


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
            "scripts/segment_volume.py"
        )
    return source, names


def check_output(output: Path, source: Path) -> None:
    """Raises UsageError where results would lie among the images, and be taken for images the next time."""
    folder = source.resolve() if source.is_dir() else source.resolve().parent
    if output.resolve() == folder or source.is_dir() and output.resolve().is_relative_to(folder):
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


def colour_of(number: int) -> tuple[int, int, int]:
    return COLOURS[number % len(COLOURS)]


def overlay(
    image: np.ndarray, masks: Sequence[np.ndarray], prompts: Sequence[ObjectPrompt] = (), names: Sequence[str] = ()
) -> np.ndarray:
    """masks: n of (H, W) bool; prompts: n, or none, in pixels of the image; names: n, or none, drawn above their objects.

    -> (H * k, W * k, 3), with a whole number k.
    """
    k = max(1, round(SMALLEST_SIDE / max(image.shape[:2])))
    picture = cv2.resize(image, None, fx=k, fy=k, interpolation=cv2.INTER_NEAREST)
    large = [cv2.resize(mask.astype(np.uint8), None, fx=k, fy=k, interpolation=cv2.INTER_NEAREST) for mask in masks]
    for number, mask in enumerate(large):
        tinted = (1 - OPACITY) * picture[mask > 0] + OPACITY * np.array(colour_of(number))
        picture[mask > 0] = np.round(tinted).astype(np.uint8)
    for number, mask in enumerate(large):
        outlines, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, outlines, -1, colour_of(number), 1)
    for number, prompt in enumerate(prompts):
        _draw_prompt(picture, prompt, k, colour_of(number))
    for number, name in enumerate(names):
        x, y, width, _ = cv2.boundingRect(large[number])
        if width:
            _write(picture, name, x, y - 4, colour_of(number))
    return picture


def _draw_prompt(picture: np.ndarray, prompt: ObjectPrompt, k: int, colour: tuple[int, int, int]) -> None:
    if prompt.box is not None:
        x0, y0, x1, y1 = (round(float(side) * k) for side in prompt.box)
        cv2.rectangle(picture, (x0, y0), (x1 - 1, y1 - 1), colour, 1)
    if prompt.points is not None:
        for (x, y), label in zip(prompt.points, prompt.labels):
            if label != ABSENT:
                centre = round((float(x) + 0.5) * k), round((float(y) + 0.5) * k)
                kind = cv2.MARKER_CROSS if label == FOREGROUND else cv2.MARKER_TILTED_CROSS  # + adds, x takes away
                cv2.drawMarker(picture, centre, (0, 0, 0), kind, 13, 4)
                cv2.drawMarker(picture, centre, (255, 255, 255) if label == FOREGROUND else (60, 60, 255), kind, 11, 2)


def _write(picture: np.ndarray, text: str, x: int, y: int, colour: tuple[int, int, int]) -> None:
    """On a ground of the object's colour, within the picture."""
    (width, height), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.45, 1)
    x, y = max(0, min(x, picture.shape[1] - width)), max(height + 2, y)
    cv2.rectangle(picture, (x, y - height - 2), (x + width, y + below), colour, -1)
    cv2.putText(picture, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
