"""Pictures of tools that send them whole with every request, and what is found in them.

picture = pictures.read(data)                       # (H, W, 3) uint8, BGR; decoded once
found = find(service, picture, Asked(points=[[80, 90]], labels=[1]))
"""

import base64
import binascii
import hashlib
import secrets
import shutil
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from starlette.requests import Request

from sam_med2d.app.opening import Opener
from sam_med2d.app.server import chunks_of
from sam_med2d.app.store import Refused
from sam_med2d.coco import polygons
from sam_med2d.data.windows import Window
from sam_med2d.errors import DataError
from sam_med2d.json_files import JsonError, parse_json
from sam_med2d.serve.service import Service
from segment_anything.predictor import ObjectPrompt

KEPT_BYTES = 1 << 28  # of decoded pictures: 80 of 1024 x 1024
MOST_PROMPTS = 200


class Pictures:
    """What is sent as the bytes of a file, decoded in a process of its own, and kept by its content."""

    def __init__(self, opener: Opener, folder: Path, most_bytes: int, window: Window | None = None) -> None:
        """folder: for files while they are read; most_bytes: of a file; window: of those with more than 8 bits, None:
        minimum to maximum.
        """
        self.most_bytes = most_bytes
        self._opener, self._folder, self._window = opener, folder, window
        self._kept: OrderedDict[bytes, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, data: bytes) -> np.ndarray:
        """(H, W, 3) uint8 BGR. Raises DataError, Refused."""
        if len(data) > self.most_bytes:
            raise Refused(f"the picture has more than {self.most_bytes / 1e6:g} MB, the most that is taken", 413)
        key = hashlib.blake2b(data, digest_size=20).digest()
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        picture = self._decoded(data)
        with self._lock:
            self._kept[key] = picture
            while sum(one.nbytes for one in self._kept.values()) > KEPT_BYTES and len(self._kept) > 1:
                self._kept.popitem(last=False)
        return picture

    def _decoded(self, data: bytes) -> np.ndarray:
        folder = self._folder / secrets.token_hex(16)
        (folder / "opened").mkdir(parents=True, mode=0o700)
        try:
            (folder / "picture").write_bytes(data)
            scan = self._opener.open(folder / "picture", folder / "opened", KEPT_BYTES)
            if len(scan.slices) != 1:
                raise DataError("the picture is a volume; send one of its slices")
            return scan.picture(0, self._window)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


class Asked(NamedTuple):
    """One object: points (P, 2) xy and labels, 1 on it and 0 off it; box x0 y0 x1 y1; mask (H, W) bool."""

    points: Sequence[Sequence[float]] = ()
    labels: Sequence[int] = ()
    box: Sequence[float] | None = None
    mask: np.ndarray | None = None


class Found(NamedTuple):
    """mask: (H, W) bool; iou: predicted."""

    mask: np.ndarray
    iou: float


def find(service: Service, picture: np.ndarray, asked: Asked) -> Found:
    """The best answer for one object. Raises PromptError."""
    predictor = service.predictor()
    predictor.set_image(picture, "BGR", encode=False)
    points = np.array(asked.points, np.float32) if len(asked.points) else None
    labels = np.array(asked.labels, int) if len(asked.points) else None
    box = None if asked.box is None else np.array(asked.box, np.float32)
    mask = None if asked.mask is None else predictor.logits_of(asked.mask)
    found = predictor.predict_objects([ObjectPrompt(points, labels, box, mask)], best=True)
    return Found(found.masks[0, 0], float(found.iou[0, 0]))


def outlines(mask: np.ndarray, fineness: float = 0.0) -> list[list[list[float]]]:
    """(H, W) bool -> the outlines of its pieces, [[x, y], ...] each, the largest first; holes are not in them.

    fineness: how far an outline may run beside the true one, as a share of its length; 0: nowhere.
    """
    found = []
    for flat in polygons(mask):
        one = np.array(flat, np.float32).reshape(-1, 1, 2)
        if fineness > 0:
            one = np.asarray(cv2.approxPolyDP(one, fineness * cv2.arcLength(one, True), True), np.float32)
        if len(one) > 2:
            found.append(one)
    return [one.reshape(-1, 2).tolist() for one in sorted(found, key=cv2.contourArea, reverse=True)]


# ---------------------------------------------------------------- what arrives


async def json_of(request: Request, most_bytes: int) -> dict[str, Any]:
    """The body of a request, with a picture in it. most_bytes: of the picture's file. Raises DataError, Refused."""
    most = most_bytes * 4 // 3 + (1 << 16)  # base64
    parts, size = [], 0
    async for chunk in chunks_of(request, "the request"):
        size += len(chunk)
        if size > most:
            raise Refused(f"the request has more than {most / 1e6:.0f} MB, the most that is taken", 413)
        parts.append(chunk)
    try:
        values = parse_json(b"".join(parts), most)
    except JsonError as error:
        raise DataError(f"the request is not JSON ({error})") from error
    if not isinstance(values, dict):
        raise DataError(f"the request must be a JSON object, not {values!r:.40}")
    return values


def bytes_of(text: object, name: str) -> bytes:
    """base64, or a data URI of it. Raises DataError."""
    if not isinstance(text, str) or not text:
        raise DataError(f"{name} must be a picture as base64")
    try:
        return base64.b64decode(text.rpartition(",")[2] if text.startswith("data:") else text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"{name} is no base64 ({error})") from error


def numbers_of(value: object, name: str, count: int) -> list[float]:
    """Raises DataError."""
    if isinstance(value, list) and len(value) == count and all(map(_is_number, value)):
        return [float(one) for one in value]
    raise DataError(f"{name} must be {count} numbers, not {value!r:.60}")


def rows_of(value: object, name: str, count: int) -> list[list[float]]:
    """A list of `count` numbers each; nothing where there is none. Raises DataError."""
    if value is None:
        return []
    if not isinstance(value, list) or len(value) > MOST_PROMPTS:
        raise DataError(f"{name} must be a list of at most {MOST_PROMPTS}, not {value!r:.60}")
    return [numbers_of(one, f"each of {name}", count) for one in value]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9  # NaN is not below
