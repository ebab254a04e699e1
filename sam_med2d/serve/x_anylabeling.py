"""X-AnyLabeling's remote server, as its model `remote_server` speaks it.

    GET  /v1/models     {"data": {"sam-med2d": {"display_name": ..., "widgets": [...]}}}
    POST /v1/predict    {"model": "sam-med2d", "image": "data:image/png;base64,...", "params": {"marks": [...]}}

A mark is {"type": "point", "data": [x, y], "label": 1 or 0} or {"type": "rectangle", "data": [x0, y0, x1, y1]}; all
marks are of one object, and its pieces come back as polygons, without their holes.
"""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sam_med2d.app.server import Lane, answering
from sam_med2d.errors import DataError
from sam_med2d.serve.pictures import MOST_PROMPTS, Asked, Pictures, bytes_of, find, json_of, numbers_of, outlines
from sam_med2d.serve.service import MODEL, Service

LABEL = "AUTOLABEL_OBJECT"  # what the tool asks a person to name
WIDGETS = ("button_add_point", "button_remove_point", "button_add_rect", "button_clear", "button_finish_object")
FINENESS = "mask_fineness_slider"


class XAnyLabeling:
    """The routes, over one service."""

    def __init__(self, service: Service, pictures: Pictures, lane: Lane) -> None:
        self._service, self._pictures, self._lane = service, pictures, lane

    def routes(self) -> list[Route]:
        return [
            Route("/v1/models", answering(self._models, "detail"), methods=["GET"]),
            Route("/v1/predict", answering(self._predict, "detail"), methods=["POST"]),
        ]

    async def _models(self, request: Request) -> Response:
        told = {
            "display_name": "SAM-Med2D",
            "widgets": [{"name": name, "value": None} for name in (*WIDGETS, FINENESS)],
            "batch_processing_mode": None,  # a person's marks are of one picture
        }
        return JSONResponse({"data": {MODEL: told}})

    async def _predict(self, request: Request) -> Response:
        values = await json_of(request, self._pictures.most_bytes)
        if values.get("model") != MODEL:
            raise DataError(f"there is no model {values.get('model')!r:.40}; there is {MODEL}")
        params = values.get("params")
        if not isinstance(params, dict):
            raise DataError(f"params must be a JSON object, not {params!r:.40}")
        asked, data = asked_of(params.get("marks")), bytes_of(values.get("image"), "image")
        (fineness,) = numbers_of([params.get("epsilon_factor", 0)], "epsilon_factor", 1)

        def work() -> list[dict[str, Any]]:
            if asked is None:
                return []
            found = find(self._service, self._pictures.read(data), asked)
            return [
                {"label": LABEL, "shape_type": "polygon", "points": [*one, one[0]], "score": round(found.iou, 4)}
                for one in outlines(found.mask, fineness)
            ]

        return JSONResponse({"data": {"shapes": await self._lane.run(work), "description": "", "replace": False}})


def asked_of(marks: object) -> Asked | None:
    """None where there are no marks, or none that says where the object is. Raises DataError."""
    if marks is None or marks == []:
        return None
    if not isinstance(marks, list) or len(marks) > MOST_PROMPTS:
        raise DataError(f"marks must be a list of at most {MOST_PROMPTS}, not {marks!r:.60}")
    points, labels, box = [], [], None
    for mark in marks:
        kind = mark.get("type") if isinstance(mark, dict) else None
        if kind == "point":
            points.append(numbers_of(mark.get("data"), "the data of a point", 2))
            labels.append(int(mark.get("label") == 1))
        elif kind == "rectangle":
            if box is not None:
                raise DataError("there are two rectangles, and all marks are of one object: draw one")
            x0, y0, x1, y1 = numbers_of(mark.get("data"), "the data of a rectangle", 4)
            box = [min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)]
        else:
            raise DataError(f"a mark is of the type point or rectangle, not {kind!r:.40}")
    return Asked(points, labels, box) if box is not None or 1 in labels else None
