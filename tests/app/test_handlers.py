"""The controls of the page and its HTML, without Gradio and without a browser."""

import base64
import re
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import cv2
import numpy as np
import pytest

from sam_med2d import drawing
from sam_med2d.app import handlers
from sam_med2d.app.canvas import canvas_of, table_of
from sam_med2d.data.reading import read_image
from sam_med2d.errors import DataError
from sam_med2d.inference.models import WITH, WITHOUT
from sam_med2d.inference.session import AnnotationSession
from tests.inference.test_session import IMAGE, OTHER_IMAGE, expected, model, opened

__all__ = ["model"]  # a fixture


def picture_in(canvas: str) -> np.ndarray:
    data = re.search(r"data:image/png;base64,([^']*)'", canvas)[1]
    return cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_UNCHANGED)


def marks_in(canvas: str, kind: str) -> list[ElementTree.Element]:
    svg = re.search(r"<svg.*</svg>", canvas)[0]
    return ElementTree.fromstring(svg).findall(f".//g[@class='{kind}']")


# ---------------------------------------------------------------- handlers


def test_a_click_falls_on_the_pixel_it_is_in(model):
    session = opened(model)
    handlers.point(session, (110.99, 60.01), None, True)
    assert session.shown()[0].points == [(110, 60)] and session.shown()[0].labels == [1]
    handlers.point(session, (159, 192), None, False)  # the lower right edge of a picture of 159 x 192
    assert session.shown()[0].points == [(110, 60), (158, 191)] and session.shown()[0].labels == [1, 0]


def test_a_drag_is_a_box_between_pixels(model):
    session = opened(model)
    handlers.point(session, (149.6, 180.8), (80.2, 9.4), True)
    assert session.shown()[0].box == (80, 9, 150, 181)
    assert np.array_equal(session.shown()[0].mask, expected(model, box=[80, 9, 150, 181])[0])


def test_a_click_before_an_image_is_open_is_an_error_for_people(model):
    session = AnnotationSession({WITHOUT: model})
    with pytest.raises(DataError, match="open an image first"):
        handlers.point(session, (1, 1), None, True)


def test_an_upload_is_read_and_deleted_and_nothing_else_is(model, tmp_path):
    session = AnnotationSession({WITHOUT: model})
    upload = tmp_path / "scan.png"
    shutil.copy(IMAGE, upload)
    handlers.open_upload(session, str(upload))
    assert session.scan.name == "scan.png" and not upload.exists()
    handlers.open_upload(session, None)
    assert session.scan.name == "scan.png"
    other = tmp_path / "example.png"
    shutil.copy(OTHER_IMAGE, other)
    handlers.open_file(session, other)
    assert session.scan.name == "example.png" and other.exists()


def test_a_bad_upload_is_deleted_and_its_folder_is_not_told(model, tmp_path):
    upload = tmp_path / "text.png"
    upload.write_text("no picture")
    session = opened(model)
    with pytest.raises(DataError, match=r"^text\.png") as caught:
        handlers.open_upload(session, str(upload))
    assert str(tmp_path) not in str(caught.value) and not upload.exists() and session.scan.name == IMAGE.name


def test_slices_are_turned_no_further_than_there_are(model):
    session = opened(model)
    session.scan = session.scan._replace(slices=np.stack([read_image(str(IMAGE))[..., 0].astype(np.float32)] * 3))
    handlers.turn_to(session, 1.0)
    assert session.slice == 1
    handlers.turn_to(session, 7)
    assert session.slice == 2
    session.scan.slices[0] = np.nan
    with pytest.raises(DataError, match="slice 0"):
        handlers.turn_to(session, 0)
    assert session.slice == 2 and handlers.view_of(session).slice == 2


def test_adapters_are_switched(model):
    session = AnnotationSession({WITH: model, WITHOUT: model})
    for on, name in ((False, WITHOUT), (True, WITH)):
        handlers.use_adapters(session, on)
        assert session.model == name


def test_files_are_there_until_the_next_are_made(model):
    session = opened(model)
    handlers.point(session, (110, 60), None, True)
    first = handlers.save(session)
    assert {Path(path).name for path in first} >= {"mni152_axial_094_labels.png", "mni152_axial_094_coco.json"}
    assert all(Path(path).is_file() for path in first)
    second = handlers.save(session)
    assert all(Path(path).is_file() for path in second) and not any(Path(path).exists() for path in first)


# ---------------------------------------------------------------- what is shown


def test_the_view_says_what_the_session_holds(model):
    session = opened(model)
    session.rename("left <half>")
    session.add_object()
    handlers.choose(session, 0)
    view = handlers.view_of(session)
    assert view.choices == ["1: left <half>", "2: object 2"]
    assert (view.chosen, view.name, view.slices, view.slice) == ("1: left <half>", "left <half>", 1, 0)


def test_nothing_is_shown_before_an_image_is_open(model):
    view = handlers.view_of(AnnotationSession({WITHOUT: model}))
    assert "class='empty'" in view.canvas and "<img" not in view.canvas and view.slices == 1


def test_the_canvas_shows_masks_in_the_colours_of_their_objects(model):
    session = opened(model)
    assert np.array_equal(picture_in(canvas_of(session)), read_image(str(IMAGE)))
    session.add_object()
    action = session.draw_box(80, 9, 150, 181)  # of the second object alone
    drawn, plain = picture_in(canvas_of(session)), read_image(str(IMAGE))
    assert np.array_equal(drawn[~action.mask], plain[~action.mask])
    inside = cv2.erode(np.pad(action.mask, 1).astype(np.uint8), np.ones((3, 3)))[1:-1, 1:-1] > 0
    tint = np.round((1 - drawing.OPACITY) * plain[inside] + drawing.OPACITY * np.array(drawing.colour_of(1)))
    assert inside.sum() > 1000 and np.array_equal(drawn[inside], tint)
    outline = (drawn == drawing.colour_of(1)).all(axis=2)
    assert outline.sum() > 100 and (action.mask[outline]).all()


def test_the_canvas_draws_prompts_with_the_painters_look(model):
    session = opened(model)
    session.draw_box(80, 9, 150, 181)
    session.click(110, 60, True)
    session.click(40, 60, False)
    canvas = canvas_of(session)
    assert "data-width='159' data-height='192'" in canvas and "viewBox='0 0 159 192'" in canvas
    (box,) = marks_in(canvas, "box")
    rim, line = box
    assert [line.get(name) for name in ("x", "y", "width", "height")] == ["80", "9", "70", "172"]
    assert line.get("stroke") == drawing.css(drawing.colour_of(0))
    assert float(rim.get("stroke-width")) == pytest.approx(3 * 192 / 500, abs=1e-3)
    on, off = marks_in(canvas, "click")
    assert on.get("transform") == "translate(110.5 60.5)" and off.get("transform") == "translate(40.5 60.5)"
    for mark, foreground in ((on, True), (off, False)):
        disc, sign = mark
        assert disc.get("fill") == drawing.css(drawing.CLICK[foreground])
        assert sign.get("stroke") == drawing.css(drawing.SIGN[foreground])
        assert ("V" in sign.get("d")) == foreground  # a plus, or a minus


def test_names_of_people_are_no_markup(model):
    session = opened(model)
    session.rename("<script>alert(1)</script>")
    table = table_of(session)
    assert "<script>" not in table and "&lt;script&gt;" in table and drawing.css(drawing.colour_of(0)) in table


def test_the_table_tells_iou_and_area_of_the_slice_that_is_shown(model):
    session = opened(model)
    action = session.click(110, 60, True)
    table = table_of(session)
    assert f"IoU {action.iou:.2f}" in table and f"{action.mask.sum()} px" in table
    assert table.count("class='current'") == 1
