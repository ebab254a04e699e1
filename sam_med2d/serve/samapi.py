"""samapi, the protocol of QuPath's extension SAM.

    GET  /sam/version/  text
    GET  /sam/weights/  [{"type": ..., "name": ..., "url": ...}]: the one model that there is
    POST /sam/          {"b64img": ..., "bbox": [x0, y0, x1, y1], "point_coords": [[x, y]], "point_labels": [1],
                         "b64mask": ..., "multimask_output": false} -> GeoJSON features with their "quality"
    POST /sam/automask/  {"b64img": ..., "points_per_side": 16, "output_type": "Multi-mask (all)", ...} -> features

`type` and `checkpoint_url` name weights of others; this server has its own, and says so in "sam_model".
"""

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from sam_med2d import __version__
from sam_med2d.app.server import Lane, answering
from sam_med2d.errors import DataError
from sam_med2d.serve.pictures import Asked, Found, Pictures, bytes_of, find, json_of, numbers_of, rows_of
from sam_med2d.serve.service import MODEL, Service
from segment_anything import SamAutomaticMaskGenerator

MOST_CLICKS = 64  # a side of everything mode's grid
OPTIONS: dict[str, tuple[type, float, float]] = {  # of everything mode, by SAM's names: kind, least, most
    "points_per_side": (int, 1, MOST_CLICKS),
    "points_per_batch": (int, 1, 1024),
    "pred_iou_thresh": (float, 0, 1),
    "stability_score_thresh": (float, 0, 1),
    "stability_score_offset": (float, 0, 10),
    "box_nms_thresh": (float, 0, 1),
    "crop_n_layers": (int, 0, 2),
    "crop_nms_thresh": (float, 0, 1),
    "crop_overlap_ratio": (float, 0, 0.9),
    "crop_n_points_downscale_factor": (int, 1, 8),
    "min_mask_region_area": (int, 0, 10**9),
}
KEYS: dict[str, Callable[[dict[str, Any]], float]] = {  # by output_type: which mask of a click is kept
    "Single Mask": lambda mask: mask["predicted_iou"],
    "Multi-mask (best quality)": lambda mask: mask["predicted_iou"],
    "Multi-mask (largest)": lambda mask: mask["area"],
    "Multi-mask (smallest)": lambda mask: -mask["area"],
}
ALL = "Multi-mask (all)"


class SamApi:
    """The routes, over one service."""

    def __init__(self, service: Service, pictures: Pictures, lane: Lane) -> None:
        self._service, self._pictures, self._lane = service, pictures, lane

    def routes(self) -> list[Route]:
        return [
            Route("/sam/version/", answering(self._version, "detail"), methods=["GET"]),
            Route("/sam/weights/", answering(self._weights, "detail"), methods=["GET"]),
            Route("/sam/", answering(self._predict, "detail"), methods=["POST"]),
            Route("/sam/automask/", answering(self._everything, "detail"), methods=["POST"]),
        ]

    async def _version(self, request: Request) -> Response:
        return PlainTextResponse(__version__)

    async def _weights(self, request: Request) -> Response:
        return JSONResponse([{"type": MODEL, "name": "default", "url": ""}])

    async def _predict(self, request: Request) -> Response:
        values = await json_of(request, self._pictures.most_bytes)
        box = values.get("bbox")
        points = rows_of(values.get("point_coords"), "point_coords", 2)
        labels = values.get("point_labels") or []
        if not isinstance(labels, list) or len(labels) != len(points) or any(one not in (0, 1) for one in labels):
            raise DataError("point_labels must be 1 (on the object) or 0 (off it), one for each of point_coords")
        box = None if box is None else numbers_of(box, "bbox", 4)
        image = bytes_of(values.get("b64img"), "b64img")
        given = bytes_of(values["b64mask"], "b64mask") if values.get("b64mask") else None

        def work() -> Found:
            mask = None if given is None else self._pictures.read(given)[..., 0] > 0
            return find(self._service, self._pictures.read(image), Asked(points, labels, box, mask))

        return JSONResponse([feature_of(await self._lane.run(work))])

    async def _everything(self, request: Request) -> Response:
        values = await json_of(request, self._pictures.most_bytes)
        image = bytes_of(values.get("b64img"), "b64img")
        options: dict[str, Any] = {
            name: _number(values[name], name) for name in OPTIONS if values.get(name) is not None
        }
        kept = values.get("output_type", "Single Mask")
        if kept not in (*KEYS, ALL):
            raise DataError(f"output_type must be one of {', '.join([*KEYS, ALL])}, not {kept!r:.40}")
        generator = SamAutomaticMaskGenerator(self._service.model, **options)

        def work() -> list[dict[str, Any]]:
            masks = generator.generate(self._pictures.read(image), "BGR")
            masks = masks if kept == ALL else one_a_click(masks, KEYS[kept])
            if not values.get("include_image_edge"):
                masks = [mask for mask in masks if not at_edge(mask["segmentation"])]
            return [feature_of(Found(mask["segmentation"], mask["predicted_iou"]), i) for i, mask in enumerate(masks)]

        return JSONResponse(await self._lane.run(work))


def one_a_click(masks: Sequence[dict[str, Any]], key: Callable[[dict[str, Any]], float]) -> list[dict[str, Any]]:
    """Of the masks of `SamAutomaticMaskGenerator` that came of the same click the one with the highest key."""
    best: dict[tuple[float, ...], dict[str, Any]] = {}
    for mask in masks:
        click = tuple(mask["point_coords"][0])
        if click not in best or key(mask) > key(best[click]):
            best[click] = mask
    return [*best.values()]


def at_edge(mask: np.ndarray) -> bool:
    """Whether a mask (H, W) bool reaches the border of its picture."""
    return bool(mask[[0, -1]].any() or mask[:, [0, -1]].any())


def _number(value: object, name: str) -> float:
    """An option of everything mode. Raises DataError."""
    kind, least, most = OPTIONS[name]
    kinds = (int,) if kind is int else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= most:
        raise DataError(f"{name} must be a number from {least:g} to {most:g}, not {value!r:.40}")
    return value


def feature_of(found: Found, number: int = 0) -> dict[str, Any]:
    """GeoJSON of a mask, the object of that number: its pieces with their holes, along the edges of pixels."""
    return {
        "type": "Feature",
        "geometry": {"type": "MultiPolygon", "coordinates": pieces_of(found.mask)},
        "properties": {
            "object_idx": number,
            "label": "object",
            "quality": found.iou,
            "sam_model": MODEL,
        },
    }


def pieces_of(mask: np.ndarray) -> list[list[list[list[float]]]]:
    """(H, W) bool -> of each piece its outline and those of its holes, closed rings of [x, y].

    They run half-way between the centres of pixels and their edges, as `sam_med2d.coco.polygons` does.
    """
    large = cv2.resize(mask.astype(np.uint8), None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    found, hierarchy = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    rings = [((one.reshape(-1, 2) + 0.5) / 2).tolist() for one in found]
    pieces: dict[int, list] = {}
    for number, ring in enumerate(rings):
        parent = int(hierarchy[0][number][3])
        if parent < 0:
            pieces[number] = [[*ring, ring[0]], *pieces.get(number, [])]
    for number, ring in enumerate(rings):
        parent = int(hierarchy[0][number][3])
        if parent >= 0:
            pieces[parent].append([*ring, ring[0]])
    return [*pieces.values()]
