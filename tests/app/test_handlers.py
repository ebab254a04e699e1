"""What events do to a session, and what the page is told of it, without a server and without a browser."""

import re

import cv2
import numpy as np
import pytest

from sam_med2d import drawing
from sam_med2d.app.handlers import EVENTS, act, lane_of
from sam_med2d.app.view import FINEST, path_of, picture_of, view_of
from sam_med2d.data.reading import read_image
from sam_med2d.errors import DataError, PromptError
from sam_med2d.inference.models import WITH, WITHOUT
from sam_med2d.inference.session import AnnotationSession
from tests.inference.test_session import IMAGE, OTHER_IMAGE, expected, model, opened

__all__ = ["model"]  # a fixture


def do(session: AnnotationSession, what: str, **values: object) -> None:
    act(session, {"do": what, **values})


# ---------------------------------------------------------------- events


def test_a_click_falls_on_the_pixel_it_is_in(model):
    session = opened(model)
    do(session, "click", x=110.99, y=60.01, on=True)
    assert session.shown()[0].points == [(110, 60)] and session.shown()[0].labels == [1]
    do(session, "click", x=159, y=192, on=False)  # the lower right edge of a picture of 159 x 192
    assert session.shown()[0].points == [(110, 60), (158, 191)] and session.shown()[0].labels == [1, 0]


def test_a_drag_is_a_box_between_pixels(model):
    session = opened(model)
    do(session, "box", x0=149.6, y0=180.8, x1=80.2, y1=9.4)
    assert session.shown()[0].box == (80, 9, 150, 181)
    assert np.array_equal(session.shown()[0].mask, expected(model, box=[80, 9, 150, 181])[0])


LASSO = [[81, 10], [150, 12], [149, 180], [82, 178]]


def indexes(line: list[list[float]]) -> list[list[float]]:
    """Of pixels, from places between their edges."""
    return [[x - 0.5, y - 0.5] for x, y in line]


def test_a_stroke_of_the_brush_is_heard_as_the_predictor_hears_scribbles(model):
    session = opened(model)
    line, off = [[100, 40], [118.5, 60], [120, 90]], [[30, 60], [40, 80]]
    do(session, "scribble", line=line, on=True)
    first = session.shown()[0]
    mask, _, low_res = expected(model, scribbles=[indexes(line)])
    assert np.array_equal(first.mask, mask) and first.points == []
    do(session, "scribble", line=off, on=False)
    do(session, "click", x=110.5, y=60.5, on=True)
    second, third = session.actions[1:]
    drawn = {"scribbles": [indexes(line), indexes(off)], "scribble_labels": [1, 0]}
    mask, _, fed_back = expected(model, mask_input=low_res, **drawn)
    assert np.array_equal(second.mask, mask)
    clicked = expected(model, point_coords=[[110, 60]], point_labels=[1], mask_input=fed_back, **drawn)
    assert np.array_equal(third.mask, clicked[0])
    told = view_of(session)["objects"][0]
    assert told["strokes"] == [[line, True], [off, False]] and told["lasso"] is None and len(told["clicks"]) == 1
    do(session, "undo")
    do(session, "undo")
    assert session.shown()[0] == first


def test_a_lasso_starts_anew_and_clicks_go_on_from_it(model):
    session = opened(model)
    do(session, "click", x=20, y=20, on=True)
    do(session, "lasso", line=LASSO)
    action = session.shown()[0]
    mask, _, low_res = expected(model, lasso=indexes(LASSO))
    assert np.array_equal(action.mask, mask) and action.points == [] and action.box == (80, 10, 151, 181)
    assert view_of(session)["objects"][0]["lasso"] == LASSO
    do(session, "click", x=110, y=60, on=True)
    mask = expected(model, point_coords=[[110, 60]], point_labels=[1], box=list(action.box), mask_input=low_res)[0]
    assert np.array_equal(session.shown()[0].mask, mask) and session.shown()[0].lasso == action.lasso


def test_lines_end_at_the_edges_of_the_picture(model):
    session = opened(model)
    do(session, "scribble", line=[[0, 0], [159, 192]], on=True)
    assert session.shown()[0].strokes == ((((0.0, 0.0), (158.0, 191.0)), 1),)


@pytest.mark.parametrize(
    "event, said",
    [
        ({"do": "scribble", "line": [], "on": True}, r"scribble 0 of shape \(0,\)"),
        ({"do": "scribble", "line": [[1, 2]]}, "needs on, true or false"),
        ({"do": "scribble", "line": [[1, 2, 3]], "on": True}, r"needs line, a list of places \[x, y\]"),
        ({"do": "scribble", "line": [[1, 500]], "on": True}, "needs y, a number from 0 to 192"),
        ({"do": "scribble", "line": [[1, 1]] * 501, "on": True}, "a line has at most 500 places, not 501"),
        ({"do": "lasso", "line": [[1, 1], [9, 9]]}, "at least three corners"),
        ({"do": "lasso", "line": [[1, 1], [9, 9], [9, 1], [1, 30]]}, "lasso crosses itself; draw its line once"),
        ({"do": "lasso", "line": [[5, 5], [5, 5], [5, 5]]}, "encloses less than a pixel"),
        ({"do": "lasso", "line": "around"}, "needs line, a list of places"),
        ({"do": "lasso", "line": [[float("nan"), 1], [2, 3], [4, 4]]}, "needs x, a number from 0 to 159"),
    ],
)
def test_lines_that_are_none_leave_the_session_as_it_was(model, event, said):
    session = opened(model)
    do(session, "click", x=110, y=60, on=True)
    before = view_of(session)
    with pytest.raises((DataError, PromptError), match=said):
        act(session, event)
    assert view_of(session) == before


def test_an_object_hears_so_many_strokes_and_no_more(model, monkeypatch):
    monkeypatch.setattr("sam_med2d.inference.session.MOST_CLICKS", 10)
    session = opened(model)
    for _ in range(2):
        do(session, "scribble", line=[[100, 40], [120, 90]], on=True)
    with pytest.raises(DataError, match="10 clicks are the most"):
        do(session, "scribble", line=[[100, 40], [120, 90]], on=True)


def test_objects_are_added_named_chosen_and_taken_back(model):
    session = opened(model)
    do(session, "rename", name="  left\n half ")
    do(session, "add")
    do(session, "add", name="tumour")
    assert session.objects == ["left half", "object 2", "tumour"] and session.current == 2
    do(session, "choose", number=0.0)  # JSON has one kind of number
    assert session.current == 0
    do(session, "click", x=110, y=60, on=True)
    do(session, "undo")
    assert session.shown() == {}
    do(session, "reset")
    assert session.objects == ["object 1"]


def test_slices_are_turned_to_those_that_there_are(model):
    session = opened(model)
    session.scan = session.scan._replace(slices=np.stack([read_image(str(IMAGE))[..., 0].astype(np.float32)] * 3))
    do(session, "slice", number=2)
    assert session.slice == 2
    session.scan.slices[0] = np.nan
    for number, said in (
        (0, "slice 0"),
        (3, "a whole number from 0 to 2"),
        (1.5, "whole"),
        (-1, "from 0 to 2"),
    ):
        with pytest.raises(DataError, match=said):
            do(session, "slice", number=number)
        assert session.slice == 2


def test_adapters_are_switched_where_there_are_any(model):
    session = AnnotationSession({WITH: model, WITHOUT: model})
    assert view_of(session)["adapters"] is True
    do(session, "adapters", on=False)
    assert session.model == WITHOUT and view_of(session)["adapters"] is False
    without = opened(model)
    assert view_of(without)["adapters"] is None  # no box for what is not there
    with pytest.raises(DataError, match="not there with adapters"):
        do(without, "adapters", on=True)


def test_whatever_fails_leaves_the_session_as_it_was(model, monkeypatch):
    session = opened(model)
    do(session, "click", x=110, y=60, on=True)
    before, scan = view_of(session), session.scan

    def spoil(session: AnnotationSession, values: object) -> None:
        session.actions.clear()
        session.objects.append("a")
        session.scan, session.slice, session.current, session.window = None, 7, 9, (0, 1)
        raise PromptError("in the middle")

    monkeypatch.setitem(EVENTS, "spoil", spoil)
    with pytest.raises(PromptError):
        do(session, "spoil")
    assert view_of(session) == before and session.scan is scan


def test_what_encodes_does_not_go_before_clicks(model):
    session = opened(model)
    session.zoom = "never"
    click = {"do": "click", "x": 1, "y": 1, "on": True}
    assert lane_of(AnnotationSession({WITHOUT: model}), click) == "click"  # refused at once
    assert lane_of(session, click) == "encode" and lane_of(session, {"do": "undo"}) == "click"
    session.predictor()
    assert lane_of(session, click) == "click" and lane_of(session, {"do": "carry", "step": 1}) == "encode"
    session.zoom = "auto"
    assert lane_of(session, click) == "crop" and lane_of(session, {"do": "undo"}) == "click"
    session.zoom, session.scan = "never", session.scan._replace(slices=np.zeros((1, 4000, 3000), np.uint8))
    assert lane_of(session, click) == lane_of(session, {"do": "undo"}) == "encode"


def test_there_is_an_end_to_clicks_and_objects(model, monkeypatch):
    monkeypatch.setattr("sam_med2d.inference.session.MOST_CLICKS", 2)
    session = opened(model)
    for x in (100, 105):
        do(session, "click", x=x, y=60, on=True)
    with pytest.raises(DataError, match="2 clicks are the most"):
        do(session, "click", x=110, y=60, on=True)
    do(session, "box", x0=10, y0=10, x1=90, y1=90)
    monkeypatch.setattr("sam_med2d.inference.session.MOST_ACTIONS", 3)
    with pytest.raises(DataError, match="3 clicks are the most of a session"):
        do(session, "box", x0=10, y0=10, x1=90, y1=90)
    for _ in range(254):
        do(session, "add")
    with pytest.raises(DataError, match="255 objects"):
        do(session, "add")


# ---------------------------------------------------------------- what the page is told


def test_the_view_says_what_the_session_holds(model):
    session = opened(model)
    session.rename("left <half>")
    session.add_object()
    do(session, "choose", number=0)
    action = session.draw_box(80, 9, 150, 181)
    session.click(110, 60, True)
    view = view_of(session)
    assert [one["name"] for one in view["objects"]] == ["left <half>", "object 2"] and view["current"] == 0
    assert (view["slices"], view["slice"], view["width"], view["height"]) == (1, 0, 159, 192)
    assert view["file"] == IMAGE.name and view["marked"] == [0] and not view["window"]["there"]
    first, second = view["objects"]
    assert first["box"] == action.box and first["clicks"] == [[110.5, 60.5, True]]
    last = session.last(0)
    assert first["iou"] == pytest.approx(last.iou, abs=1e-4) and first["area"] == last.mask.sum()
    assert first["colour"] == drawing.css(drawing.colour_of(0)) and not second["found"]
    assert view["look"]["on"] == [drawing.css(drawing.CLICK[True]), drawing.css(drawing.SIGN[True])]


def test_nothing_is_shown_before_an_image_is_open(model):
    session = AnnotationSession({WITHOUT: model})
    view = view_of(session)
    assert view["slices"] == 0 and view["picture"] == "" and view["file"] == ""
    with pytest.raises(DataError, match="open an image first"):
        picture_of(session)


@pytest.mark.parametrize("path", [IMAGE, OTHER_IMAGE])
def test_the_picture_is_the_slice_and_has_a_key_of_its_own(model, path):
    session = opened(model, path)
    shown = cv2.imdecode(np.frombuffer(picture_of(session), np.uint8), cv2.IMREAD_COLOR)
    assert np.array_equal(shown, read_image(str(path)))
    key = view_of(session)["picture"]
    session.click(80, 60, True)
    assert view_of(session)["picture"] == key
    session.open(path)
    assert view_of(session)["picture"] != key


def painted(path: str, shape: tuple[int, int]) -> np.ndarray:
    """The pixels whose centres are within a path, by the rule evenodd: an independent reading of it."""
    height, width = shape
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    inside = np.zeros(shape, bool)
    for piece in re.findall(r"M([^Z]*)Z", path):
        corners = np.array([[float(n) for n in place.split()] for place in piece.split("L")]) - 0.5
        for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0)):
            if y0 != y1:
                crosses = ((y0 > y) != (y1 > y)) & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
                inside ^= crosses
    return inside


def test_an_outline_has_the_pixels_of_its_mask_inside_and_no_others():
    rng = np.random.default_rng(0)
    blobs = cv2.GaussianBlur(rng.random((60, 80)).astype(np.float32), (0, 0), 3)
    masks = [blobs > 0.5, rng.random((20, 30)) > 0.5, np.ones((7, 9), bool), np.pad(np.ones((1, 1), bool), 5)]
    ring = np.ones((30, 30), bool)
    ring[5:25, 5:25] = False
    ring[10:20, 10:20] = True  # with an island in its hole
    for mask in (*masks, ring):
        assert np.array_equal(painted(path_of(mask), mask.shape), mask)


def test_outlines_of_large_masks_are_coarser():
    mask = np.zeros((5000, 6000), bool)
    mask[100:4900, 200:5800] = True
    path = path_of(mask)
    places = np.array([[float(n) for n in place.split()] for place in path[1:-1].split("L")])
    assert len(places) == 4 and 2 * FINEST < 5600
    assert np.abs(places.min(axis=0) - (200, 100)).max() <= 4 and np.abs(places.max(axis=0) - (5800, 4900)).max() <= 4
