"""Tools that send a picture with each request: X-AnyLabeling's remote, QuPath's samapi, CVAT's interactor."""

import base64
import json
from collections.abc import Iterator
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import yaml
from scipy.ndimage import binary_fill_holes

pytest.importorskip("blosc2", reason='blosc2 is not installed: pip install -e ".[serve]"')

from sam_med2d.inference.models import SMALL, open_model
from sam_med2d.serve import cvat
from sam_med2d.serve.samapi import at_edge
from segment_anything import SamAutomaticMaskGenerator, SamPredictor
from tests.conftest import ROOT
from tests.serve.serving import Running, serving_here

IMAGE = ROOT / "data_demo/images/mni152_axial_094.png"
DATA = base64.b64encode(IMAGE.read_bytes()).decode()
BOX = [20, 20, 150, 180]
POINTS, LABELS = [[90, 100], [10, 10]], [1, 0]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving_here("--max_picture", "1") as one:
        yield one


@pytest.fixture(scope="module")
def predictor() -> SamPredictor:
    one = SamPredictor(open_model(SMALL, device="cpu"))
    one.set_image(cv2.imread(str(IMAGE)), "BGR")
    return one


def best(found) -> np.ndarray:
    return found.masks[found.iou.argmax()]


def ask(server: Running, path: str, body: object) -> tuple[int, dict]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    status, _, content = server.ask("POST", path, data)
    return status, json.loads(content)


def painted(rings: list, shape: tuple[int, int]) -> np.ndarray:
    """The pixels whose centres lie in closed rings, each of which turns what is inside of it over."""
    mask = np.zeros(shape, bool)
    for ring in rings:  # which run a quarter of a pixel from edges, and centres lie half-way between these
        one = np.zeros((4 * shape[0], 4 * shape[1]), np.uint8)
        cv2.fillPoly(one, [np.rint(np.array(ring) * 4).astype(np.int32)], 1)
        mask ^= one[2::4, 2::4] > 0
    return mask


def test_x_anylabeling(server, predictor):
    status, _, body = server.ask("GET", "/v1/models")
    assert status == 200 and "button_add_point" in str(json.loads(body)["data"]["sam-med2d"]["widgets"])
    marks = [{"type": "rectangle", "data": BOX, "label": 1}]
    for asked, wanted in (
        (marks, best(predictor.predict(box=BOX))),
        (
            [*marks, *({"type": "point", "data": xy, "label": on} for xy, on in zip(POINTS, LABELS))],
            best(predictor.predict(POINTS, LABELS, BOX)),
        ),
    ):
        body = {"model": "sam-med2d", "image": f"data:image/png;base64,{DATA}", "params": {"marks": asked}}
        status, told = ask(server, "/v1/predict", body)
        shapes = told["data"]["shapes"]
        assert status == 200 and {one["shape_type"] for one in shapes} == {"polygon"}
        whole = binary_fill_holes(wanted)  # polygons have no holes
        assert np.array_equal(painted([one["points"] for one in shapes], wanted.shape), whole)
        body["params"]["epsilon_factor"] = 0.01
        fewer = ask(server, "/v1/predict", body)[1]["data"]["shapes"][0]["points"]
        assert len(fewer) < len(shapes[0]["points"])
    for params in ({}, {"marks": [{"type": "point", "data": [1, 2], "label": 0}]}):
        body["params"] = params
        assert ask(server, "/v1/predict", body) == (
            200, {"data": {"shapes": [], "description": "", "replace": False}}
        )  # fmt: skip


def test_samapi(server, predictor):
    status, headers, _ = server.ask("GET", "/sam/version/")
    assert status == 200 and headers["content-type"].startswith("text/plain")
    wanted = best(predictor.predict(POINTS, LABELS, BOX))
    body = {"type": "vit_b", "bbox": BOX, "point_coords": POINTS, "point_labels": LABELS, "b64img": DATA}
    status, (feature,) = ask(server, "/sam/", body)
    rings = [ring for piece in feature["geometry"]["coordinates"] for ring in piece]
    assert status == 200 and all(ring[0] == ring[-1] for ring in rings)
    assert np.array_equal(painted(rings, wanted.shape), wanted)
    assert feature["properties"]["quality"] == pytest.approx(float(predictor.predict(POINTS, LABELS, BOX).iou.max()))
    mask = np.zeros(wanted.shape, np.uint8)
    mask[40:120, 40:140] = 255
    given = base64.b64encode(cv2.imencode(".png", mask)[1].tobytes()).decode()
    status, (feature,) = ask(server, "/sam/", {"b64img": DATA, "b64mask": given})
    again = best(predictor.predict(mask_input=predictor.logits_of(mask > 0)))
    rings = [ring for piece in feature["geometry"]["coordinates"] for ring in piece]
    assert np.array_equal(painted(rings, wanted.shape), again)


def test_samapi_of_everything(server, predictor):
    """As QuPath's command "SAM auto mask" asks, and what the generator itself finds."""
    options = {"points_per_side": 5, "pred_iou_thresh": 0.3, "stability_score_thresh": 0.5, "crop_n_layers": 0}
    found = SamAutomaticMaskGenerator(predictor.model, **options).generate(cv2.imread(str(IMAGE)), "BGR")
    shape = found[0]["segmentation"].shape
    assert len(found) > 2

    def told(output_type: str, edge: bool = True) -> list[tuple[bytes, float]]:
        body = {"type": "vit_b", "b64img": DATA, "output_type": output_type, "include_image_edge": edge, **options}
        status, features = ask(server, "/sam/automask/", body)
        assert status == 200 and [one["properties"]["object_idx"] for one in features] == [*range(len(features))]
        return [
            (
                painted([ring for piece in one["geometry"]["coordinates"] for ring in piece], shape).tobytes(),
                one["properties"]["quality"],
            )
            for one in features
        ]

    everything = [(one["segmentation"].tobytes(), pytest.approx(one["predicted_iou"])) for one in found]
    assert told("Multi-mask (all)") == everything
    assert len({tuple(one["point_coords"][0]) for one in found}) == len(told("Single Mask"))
    largest = {tuple(one["point_coords"][0]): one["area"] for one in sorted(found, key=lambda one: one["area"])}
    assert sorted(sum(mask) for mask, _ in told("Multi-mask (largest)")) == sorted(largest.values())
    inside = [bytes(mask) for mask, _ in told("Multi-mask (all)", edge=False)]
    assert inside == [one["segmentation"].tobytes() for one in found if not at_edge(one["segmentation"])]


@pytest.mark.parametrize(
    "change, said",
    [
        ({"points_per_side": 65}, "points_per_side must be a number from 1 to 64"),
        ({"points_per_side": 2.5}, "points_per_side"),
        ({"pred_iou_thresh": "high"}, "pred_iou_thresh"),
        ({"pred_iou_thresh": float("nan")}, "pred_iou_thresh"),
        ({"crop_n_layers": True}, "crop_n_layers"),
        ({"output_type": "some"}, "output_type must be one of Single Mask"),
        ({"b64img": "?"}, "b64img is no base64"),
    ],
)
def test_everything_that_makes_no_sense(server, change, said):
    status, told = ask(server, "/sam/automask/", {"b64img": DATA, **change})
    assert status == 400 and said in told["detail"] and "\n" not in told["detail"]


def test_at_the_edge():
    mask = np.zeros((5, 6), bool)
    mask[1:4, 1:5] = True
    assert not at_edge(mask)
    for place in ((0, 2), (4, 2), (2, 0), (2, 5)):
        touching = mask.copy()
        touching[place] = True
        assert at_edge(touching)


def test_cvat(predictor, monkeypatch):
    monkeypatch.setenv(cvat.CHECKPOINT, SMALL)
    context = SimpleNamespace(user_data=SimpleNamespace(), Response=SimpleNamespace)
    cvat.init_context(context)
    event = {"image": DATA, "pos_points": POINTS[:1], "neg_points": POINTS[1:], "obj_bbox": [BOX[2:], BOX[:2]]}
    wanted = best(predictor.predict(POINTS, LABELS, BOX))
    for body in (event, json.dumps(event).encode()):  # as nuclio parses it, and as it comes
        answer = cvat.handler(context, SimpleNamespace(body=body))
        told = json.loads(answer.body)
        assert answer.status_code == 200 and answer.content_type == "application/json"
        assert np.array_equal(np.array(told["mask"], np.uint8), wanted * np.uint8(255))
        assert all(len(xy) == 2 for xy in told["points"])
    for body in (b"{", {"image": "no base64!"}, {"image": DATA, "pos_points": [[1e6, 2]]}, {"image": DATA}):
        answer = cvat.handler(context, SimpleNamespace(body=body))
        assert answer.status_code == 400 and "\n" not in json.loads(answer.body)["message"]
    context.user_data.folder.cleanup()


def test_cvats_function_is_what_cvat_reads():
    function = yaml.safe_load((ROOT / "examples/cvat/function.yaml").read_text())
    told = function["metadata"]["annotations"]
    assert (told["type"], told["version"], told["startswith_box_optional"]) == ("interactor", "2", "true")
    assert {"min_pos_points", "min_neg_points", "help_message", "animated_gif", "name"} <= told.keys()
    assert function["spec"]["handler"] == "main:handler" and "handler" in (ROOT / "examples/cvat/main.py").read_text()


MARKED = {"model": "sam-med2d", "image": DATA, "params": {"marks": [{"type": "rectangle", "data": BOX}]}}
WRONG = {
    "no JSON": ("/sam/", b"{", 400, "not JSON"),
    "no picture": ("/sam/", {"bbox": BOX}, 400, "b64img"),
    "no base64": ("/sam/", {"b64img": "\u00e4", "bbox": BOX}, 400, "base64"),
    "no picture's bytes": ("/sam/", {"b64img": "aGFsbG8=", "bbox": BOX}, 400, "picture"),
    "half a picture": ("/sam/", {"b64img": DATA[: len(DATA) // 8 * 4], "bbox": BOX}, 400, "picture"),
    "too large a picture": ("/sam/", {"b64img": "A" * 1_400_000, "bbox": BOX}, 413, "1 MB"),
    "too large a request": ("/sam/", b'"' + b"A" * 1_500_000, 413, "MB"),
    "no prompts": ("/sam/", {"b64img": DATA}, 400, "prompt"),
    "labels of others": ("/sam/", {"b64img": DATA, "point_coords": POINTS, "point_labels": [1]}, 400, "point_labels"),
    "a box outside": ("/sam/", {"b64img": DATA, "bbox": [0, 0, 999, 9]}, 400, "outside"),
    "a box of NaN": ("/sam/", b'{"b64img": "aGFsbG8=", "bbox": [NaN, 1, 2, 3]}', 400, "bbox"),
    "another model": ("/v1/predict", {**MARKED, "model": "yolo"}, 400, "no model"),
    "another mark": ("/v1/predict", {**MARKED, "params": {"marks": [{"type": "text"}]}}, 400, "point or rectangle"),
    "two boxes": ("/v1/predict", {**MARKED, "params": {"marks": 2 * MARKED["params"]["marks"]}}, 400, "two rectangles"),
    "marks of anything": ("/v1/predict", {**MARKED, "params": {"marks": 3}}, 400, "marks"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_gets_one_line(server, name):
    path, body, wanted, says = WRONG[name]
    status, told = ask(server, path, body)
    assert status == wanted and says in told["detail"] and "\n" not in told["detail"], (status, told)
