"""Masks as COCO annotations and back: polygons where they can say it, run lengths where a mask has holes."""

from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from sam_med2d.errors import DataError

FAR = 16  # sizes of an image: coordinates that lie further from its centre are no places in it


def polygons(mask: np.ndarray) -> list[list[float]]:
    """(H, W) bool -> [[x, y, x, y, ...], ...], the outlines of its pieces; holes are not in them.

    They cover the centres of its pixels and of no others.
    """
    # Twice as large, so that the outline runs half-way between a pixel's centre and its edge: through the centres
    # themselves, a piece one pixel wide would have no area.
    large = cv2.resize(mask.astype(np.uint8), None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    outlines, _ = cv2.findContours(large, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [((outline.reshape(-1).astype(float) + 0.5) / 2).tolist() for outline in outlines]


def has_holes(mask: np.ndarray) -> bool:
    """mask: (H, W) bool."""
    _, hierarchy = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    return hierarchy is not None and bool((hierarchy[0, :, 3] >= 0).any())


def segmentation_of(mask: np.ndarray) -> list[list[float]] | dict[str, Any]:
    """(H, W) bool -> polygons, or a compressed run-length encoding where it has holes."""
    if not has_holes(mask):
        return polygons(mask)
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")}


def mask_of(segmentation: object, height: int, width: int, what: str) -> np.ndarray:
    """Polygons [[x, y, x, y, ...], ...] or a run-length encoding -> (H, W) bool: `segmentation_of` read back.

    what: the annotation, as an error shall name it. Raises DataError: see `sound`.
    """
    checked, _ = sound(segmentation, height, width, what)
    if isinstance(checked, list):
        encoded = coco_mask.merge(coco_mask.frPyObjects(checked, height, width))
    elif isinstance(checked["counts"], list):
        encoded = coco_mask.frPyObjects(checked, height, width)
    else:
        encoded = {"size": [height, width], "counts": checked["counts"].encode()}
    return coco_mask.decode(encoded).astype(bool)


def sound(segmentation: object, height: int, width: int, what: str) -> tuple[Any, int]:
    """What pycocotools may be given: it trusts its input, and a coordinate that is none ends the process.

    -> the segmentation, without parts that enclose nothing, and how many these were. what: see `mask_of`.
    Raises DataError: it is neither polygons nor run lengths, made for another size, has coordinates that are no numbers
    or far from the image, or nothing is left of it.
    """
    if isinstance(segmentation, dict):
        _check_run_lengths(segmentation, height, width, what)
        return segmentation, 0
    if not isinstance(segmentation, list):
        raise DataError(f"{what}: is neither polygons nor run lengths; correct or remove it")
    parts = [_points(part, height, width, what) for part in segmentation]
    good = [part for part in parts if len(part) >= 6]
    if not good:
        raise DataError(
            f"{what}: a polygon needs three points or more, as [x, y, x, y, x, y, ...]; correct or remove it"
        )
    return good, len(parts) - len(good)


def _points(part: object, height: int, width: int, what: str) -> list[float]:
    """Of one part of a polygon, checked. Raises DataError."""
    try:
        points = np.asarray(part, np.float64)
    except (TypeError, ValueError, OverflowError):
        points = np.zeros((0, 0))
    if points.ndim != 1 or len(points) % 2:
        raise DataError(f"{what}: a part of its polygon is not [x, y, x, y, x, y, ...]; correct or remove it")
    margin = FAR * max(height, width)
    bad = ~(np.abs(points - np.resize([width / 2, height / 2], len(points))) <= margin)  # of NaN too
    if bad.any():
        raise DataError(
            f"{what}: has the coordinate {points[bad][0]:g}, which is no place near an image of {width} x {height} "
            "pixels; correct or remove it"
        )
    return points.tolist()


def _check_run_lengths(encoded: dict[str, Any], height: int, width: int, what: str) -> None:
    """Raises DataError."""
    if encoded.get("size") != [height, width]:
        raise DataError(
            f"{what}: its run-length encoding is for {encoded.get('size')!s:.40} (height, width), not "
            f"[{height}, {width}]; correct or remove it"
        )
    counts = encoded.get("counts")
    if isinstance(counts, list):
        lengths = counts if all(type(count) is int and count >= 0 for count in counts) else []
    elif isinstance(counts, str):
        lengths = _unpacked(counts)
    else:
        raise DataError(f"{what}: has no run lengths; correct or remove it")
    if not lengths or min(lengths) < 0 or sum(lengths) != height * width:
        raise DataError(f"{what}: its run lengths do not add up to the image; correct or remove it")


def _unpacked(counts: str) -> list[int]:
    """Run lengths from COCO's text: five bits a character from 0 to o, those after the second less the last but one.

    Nothing where the text is none of these.
    """
    lengths: list[int] = []
    value = shift = 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 30:
            return []
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
            value = shift = 0
    return [] if shift else lengths


class Annotations:
    """A COCO document that grows image by image; `document` is ready for json.dump. Ids count from 1."""

    def __init__(self) -> None:
        self.document: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": [], "categories": []}
        self._categories: dict[str, int] = {}

    def add_image(self, file_name: str, size: tuple[int, int]) -> int:
        """size: (height, width). -> the image's id."""
        number = len(self.document["images"]) + 1
        self.document["images"].append({"id": number, "file_name": file_name, "height": size[0], "width": size[1]})
        return number

    def add_object(self, image: int, name: str, mask: np.ndarray, score: float | None = None) -> None:
        """mask: (H, W) bool, not empty; score: for example the predicted IoU."""
        if name not in self._categories:
            self._categories[name] = len(self._categories) + 1
            self.document["categories"].append({"id": self._categories[name], "name": name})
        x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
        self.document["annotations"].append(
            {
                "id": len(self.document["annotations"]) + 1,
                "image_id": image,
                "category_id": self._categories[name],
                "segmentation": segmentation_of(mask),
                "area": int(mask.sum()),
                "bbox": [x, y, width, height],
                "iscrowd": 0,
                **({} if score is None else {"score": round(float(score), 4)}),
            }
        )
