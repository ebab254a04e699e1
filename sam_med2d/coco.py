"""Masks as COCO annotations and back: polygons where they can say it, run lengths where a mask has holes."""

from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from sam_med2d.errors import DataError


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


def mask_of(segmentation: list | dict[str, Any], height: int, width: int, what: str) -> np.ndarray:
    """Polygons [[x, y, x, y, ...], ...] or a run-length encoding -> (H, W) bool: `segmentation_of` read back.

    what: the annotation, as an error shall name it. Raises DataError: it is neither, or made for another size.
    """
    if isinstance(segmentation, list):
        good = [part for part in segmentation if isinstance(part, list) and len(part) >= 6 and len(part) % 2 == 0]
        if not good or len(good) < len(segmentation):
            raise DataError(
                f"{what}: a polygon needs three points or more, as [x, y, x, y, x, y, ...]; correct or remove it"
            )
        encoded = coco_mask.merge(coco_mask.frPyObjects(good, height, width))
    else:
        if segmentation.get("size") != [height, width]:
            raise DataError(
                f"{what}: its run-length encoding is for {segmentation.get('size')} (height, width), not "
                f"[{height}, {width}]; correct or remove it"
            )
        counts = segmentation.get("counts")
        if isinstance(counts, list):
            if sum(counts) != height * width:
                raise DataError(f"{what}: its run lengths do not add up to the image; correct or remove it")
            encoded = coco_mask.frPyObjects(segmentation, height, width)
        elif isinstance(counts, str):
            encoded = {"size": [height, width], "counts": counts.encode()}
        else:
            raise DataError(f"{what}: has no run lengths; correct or remove it")
    try:
        return coco_mask.decode(encoded).astype(bool)
    except ValueError as error:  # run lengths that do not add up
        raise DataError(f"{what}: cannot be decoded ({error}); correct or remove it") from error


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
