"""What the page shows of a session, as JSON: names, numbers, outlines and prompts. No markup: the page makes elements.

The picture itself is asked for once a slice (`picture_of`); masks and prompts are drawn over it as vectors, which stay
sharp when it is enlarged, with the look that sam_med2d/drawing.py gives them elsewhere.
"""

from typing import Any

import cv2
import numpy as np

from sam_med2d import drawing
from sam_med2d.image_files import encode_png
from sam_med2d.inference.models import WITH, WITHOUT
from sam_med2d.inference.session import Action, AnnotationSession, Line

FINEST = 2048  # pixels of the longer side of a mask that are outlined one by one; larger ones are halved until they fit


def view_of(session: AnnotationSession) -> dict[str, Any]:
    scan, shown = session.scan, session.shown()
    height, width = session.size() if scan else (0, 0)
    side = max(height, width)
    return {
        "file": scan.name if scan else "",
        "opened": session.opened,
        "width": width,
        "height": height,
        "slices": len(scan.slices) if scan else 0,
        "slice": session.slice,
        "picture": _picture_key(session),
        "window": {
            "there": bool(scan and scan.has_window),
            "values": session.window,
            "trained": session.trained_window,
            "range": _range_of(session),
        },
        "doubt": session.doubt(),
        "adapters": session.model == WITH if {WITH, WITHOUT} <= session.models.keys() else None,
        "current": session.current,
        "objects": [_object(session, number, shown.get(number)) for number in range(len(session.objects))],
        "marked": sorted({action.slice for action in session.actions}),
        "look": {
            "line": drawing.line_width(side),
            "radius": drawing.click_radius(side),
            "sign": drawing.SIGN_LENGTH,
            "tint": drawing.OPACITY,
            "rim": drawing.RIM,
            "on": [drawing.css(drawing.CLICK[True]), drawing.css(drawing.SIGN[True])],
            "off": [drawing.css(drawing.CLICK[False]), drawing.css(drawing.SIGN[False])],
        },
    }


def _object(session: AnnotationSession, number: int, action: Action | None) -> dict[str, Any]:
    colour = drawing.css(drawing.colour_of(number))
    found: dict[str, Any] = {"name": session.objects[number], "colour": colour, "found": action is not None}
    if action is not None:
        found |= {
            "iou": round(action.iou, 4),
            "area": action.area,
            "box": action.box,
            "clicks": [[x + 0.5, y + 0.5, bool(label)] for (x, y), label in zip(action.points, action.labels)],
            "strokes": [[_line(line), bool(label)] for line, label in action.strokes],
            "lasso": _line(action.lasso) if action.lasso else None,
            "carried": action.carried_from is not None,
            "closer": action.closer,
            "path": path_of(action.mask) if action.area else "",
        }
    return found


def _line(line: Line) -> list[list[float]]:
    """Between pixels' edges, as clicks are shown."""
    return [[x + 0.5, y + 0.5] for x, y in line]


def path_of(mask: np.ndarray) -> str:
    """(H, W) bool, with a pixel -> its outlines and those of its holes, as a path of SVG with the fill rule evenodd.

    They run half-way between the centres of its outer pixels and their edges, as `sam_med2d.coco.polygons` does, and so
    have the centres of its pixels inside and no others.
    """
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    step = 1
    while max(width, height) > FINEST * step:
        step *= 2
    part = mask[y : y + height : step, x : x + width : step].astype(np.uint8)
    large = cv2.resize(part, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    outlines, _ = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    pieces = []
    for outline in outlines:
        places = (outline[:, 0].astype(float) + 0.5) / 2 * step + (x, y)
        pieces.append("M" + "L".join(f"{i:g} {j:g}" for i, j in places.tolist()) + "Z")
    return "".join(pieces)


def picture_of(session: AnnotationSession) -> bytes:
    """The slice that is shown, without masks, as PNG. Raises DataError: nothing is open."""
    picture = session.picture()
    grey = session.scan is not None and session.scan.slices.ndim == 3
    return encode_png(picture[..., 0] if grey else picture, 1)


def _picture_key(session: AnnotationSession) -> str:
    """Another one where the picture is another one; nothing where there is none."""
    return f"{session.opened} {session.slice} {session.window}" if session.scan else ""


def _range_of(session: AnnotationSession) -> tuple[float, float] | None:
    """The lowest and the highest value of the slice that is shown, between which a window may be set."""
    if session.scan is None or not session.scan.has_window:
        return None
    values = session.scan.slices[session.slice]
    return float(values.min()), float(values.max())
