"""CVAT's interactors, which nuclio runs: `init_context` and `handler`, as examples/cvat/main.py hands them on.

The event's body is {"image": base64, "pos_points": [[x, y]], "neg_points": [[x, y]], "obj_bbox": [[x0, y0], [x1, y1]]};
the answer {"points": the largest outline, [[x, y]], "mask": (H, W) 0 or 255}. The environment says which weights:
SAM_MED2D_CHECKPOINT.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from sam_med2d.app.opening import Opener
from sam_med2d.app.store import Refused
from sam_med2d.errors import DataError, UserError
from sam_med2d.inference.models import SMALL, open_model
from sam_med2d.inference.shared import SharedModel
from sam_med2d.json_files import JsonError, parse_json
from sam_med2d.limits import MOST_VOXELS
from sam_med2d.serve.pictures import Asked, Pictures, bytes_of, find, outlines, rows_of
from sam_med2d.serve.service import Service

CHECKPOINT = "SAM_MED2D_CHECKPOINT"
MOST_BYTES = 50_000_000  # of a picture's file


def init_context(context: Any) -> None:
    """Open the model; nuclio calls it once a process. Raises CheckpointError."""
    model = open_model(os.environ.get(CHECKPOINT, SMALL))
    context.user_data.service = Service(SharedModel(model))
    folder = tempfile.TemporaryDirectory(prefix="sam_med2d_cvat_")
    context.user_data.folder = folder  # which is removed with it
    context.user_data.pictures = Pictures(Opener(60, 6000, MOST_VOXELS), Path(folder.name), MOST_BYTES, model.window)


def handler(context: Any, event: Any) -> Any:
    """An event of nuclio's -> `context.Response`; what cannot be is answered with a status and one line."""
    try:
        status, told = 200, answer(context.user_data.service, context.user_data.pictures, event.body)
    except UserError as error:
        status, told = error.http_status if isinstance(error, Refused) else 400, {"message": str(error)}
    return context.Response(body=json.dumps(told), headers={}, content_type="application/json", status_code=status)


def answer(service: Service, pictures: Pictures, body: object) -> dict[str, Any]:
    """body: of the event, JSON or what it holds. Raises DataError, PromptError, Refused."""
    values = _parsed(body)
    on, off = (rows_of(values.get(name), name, 2) for name in ("pos_points", "neg_points"))
    corners = rows_of(values.get("obj_bbox") or None, "obj_bbox", 2)
    if corners and len(corners) != 2:
        raise DataError(f"obj_bbox must be two corners, not {len(corners)}")
    box = None
    if corners:
        (x0, x1), (y0, y1) = (sorted(side) for side in zip(*corners))
        box = [x0, y0, x1, y1]
    picture = pictures.read(bytes_of(values.get("image"), "image"))
    found = find(service, picture, Asked([*on, *off], [1] * len(on) + [0] * len(off), box))
    pieces = outlines(found.mask)
    return {"points": pieces[0] if pieces else [], "mask": (found.mask * np.uint8(255)).tolist()}


def _parsed(body: object) -> dict[str, Any]:
    if isinstance(body, bytes | str):
        try:
            body = parse_json(body, 2 * MOST_BYTES)
        except JsonError as error:
            raise DataError(f"the event is not JSON ({error})") from error
    if not isinstance(body, dict):
        raise DataError(f"the event must be a JSON object, not {body!r:.40}")
    return body
