"""A session as HTML: the picture with its masks and prompts, and the table of its objects.

Masks are painted into the picture; prompts lie above it as vectors, with the look that sam_med2d/drawing.py gives them
elsewhere, so that they stay sharp when the page enlarges the picture.
"""

import base64
import html

from sam_med2d import drawing
from sam_med2d.image_files import encode_png
from sam_med2d.inference.session import Action, AnnotationSession


def canvas_of(session: AnnotationSession) -> str:
    """The slice that is shown, as one element that fits its column."""
    if session.scan is None:
        return "<div class='empty'>Open an image, or choose an example.</div>"
    picture, shown = session.picture(), session.shown()
    drawing.draw_masks(picture, [one.mask for one in shown.values()], [drawing.colour_of(number) for number in shown])
    height, width = picture.shape[:2]
    marks = [_marks(one, drawing.colour_of(number), max(height, width)) for number, one in shown.items()]
    data = base64.b64encode(encode_png(picture)).decode()
    return (
        f"<div class='picture' data-width='{width}' data-height='{height}' style='aspect-ratio: {width} / {height}'>"
        f"<img draggable='false' src='data:image/png;base64,{data}'>"
        f"<svg viewBox='0 0 {width} {height}'>{''.join(marks)}<rect class='band'/></svg></div>"
    )


def table_of(session: AnnotationSession) -> str:
    """The objects with their colours, and what the model thinks of their masks on the slice that is shown."""
    rows, shown = [], session.shown()
    for number, name in enumerate(session.objects):
        action = shown.get(number)
        told = f"IoU {action.iou:.2f}</td><td>{int(action.mask.sum())} px" if action else "</td><td>"
        rows.append(
            f"<tr class='{'current' if number == session.current else ''}'><td><span class='swatch' "
            f"style='background: {drawing.css(drawing.colour_of(number))}'></span>{html.escape(name)}</td>"
            f"<td>{told}</td></tr>"
        )
    return f"<table class='objects'>{''.join(rows)}</table>"


def _marks(action: Action, colour: drawing.Colour, side: int) -> str:
    """The prompts of one object as SVG. side: of the picture, the longer."""
    box = [_box(action.box, colour, side)] if action.box else []
    clicks = [_click(x, y, bool(label), side) for (x, y), label in zip(action.points, action.labels)]
    return "".join(box + clicks)


def _box(box: tuple[float, ...], colour: drawing.Colour, side: int) -> str:
    x0, y0, x1, y1 = box
    width = drawing.line_width(side)
    rect = f"<rect x='{x0:g}' y='{y0:g}' width='{x1 - x0:g}' height='{y1 - y0:g}' fill='none' stroke="
    return (
        f"<g class='box'>{rect}'black' stroke-opacity='{drawing.RIM}' stroke-width='{3 * width:.3f}'/>"
        f"{rect}'{drawing.css(colour)}' stroke-width='{width:.3f}'/></g>"
    )


def _click(x: float, y: float, foreground: bool, side: int) -> str:
    radius, rim = drawing.click_radius(side), drawing.line_width(side)
    arm = drawing.SIGN_LENGTH * radius
    sign = f"M{-arm:.3f} 0H{arm:.3f}" + (f"M0 {-arm:.3f}V{arm:.3f}" if foreground else "")
    return (
        f"<g class='click' transform='translate({x + 0.5:g} {y + 0.5:g})'>"
        f"<circle r='{radius + rim / 2:.3f}' fill='{drawing.css(drawing.CLICK[foreground])}' "
        f"stroke='{drawing.css(drawing.RIM_OF_CLICK)}' stroke-width='{rim:.3f}'/>"
        f"<path d='{sign}' stroke='{drawing.css(drawing.SIGN[foreground])}' stroke-width='{radius / 4:.3f}'/></g>"
    )
