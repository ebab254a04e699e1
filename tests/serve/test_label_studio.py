"""Label Studio's backend over real sockets: key points and a rectangle become a brush, of the right pixels."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import cv2
import numpy as np
import pytest

pytest.importorskip("blosc2", reason='blosc2 is not installed: pip install -e ".[serve]"')

from sam_med2d.inference.models import SMALL, open_model
from sam_med2d.serve.label_studio import KEY, run_lengths
from segment_anything import SamPredictor
from tests.conftest import ROOT
from tests.serve.serving import Running, serving_here

IMAGE = ROOT / "data_demo/images/mni152_axial_094.png"
HEIGHT, WIDTH = cv2.imread(str(IMAGE)).shape[:2]
URI = f"data:image/png;base64,{base64.b64encode(IMAGE.read_bytes()).decode()}"
CONFIG = """<View><Image name="scan" value="$image"/>
<BrushLabels name="brush" toName="scan"><Label value="liver"/><Label value="head"/></BrushLabels>
<KeyPointLabels name="points" toName="scan" smart="true"><Label value="head"/></KeyPointLabels>
<RectangleLabels name="box" toName="scan" smart="true"><Label value="head"/></RectangleLabels></View>"""


class Studio(BaseHTTPRequestHandler):
    """Gives the picture to whoever has the key, and sends others elsewhere."""

    def do_GET(self) -> None:
        good = self.path == "/data/upload/1/a.png" and self.headers["Authorization"] == "Token aKey"
        self.send_response(200 if good else 302)
        self.send_header("Location", self.path)
        self.end_headers()
        self.wfile.write(IMAGE.read_bytes() if good else b"")

    def log_message(self, *told: object) -> None:
        pass


@pytest.fixture(scope="module")
def studio() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Studio)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def server(studio) -> Iterator[Running]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEY, "aKey")
        with serving_here("--label_studio", studio) as one:
            yield one


def ask(server: Running, path: str, body: object) -> tuple[int, dict]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    status, _, content = server.ask("POST", f"/label-studio/{path}", data)
    return status, json.loads(content)


def point(x: int, y: int, on: bool = True) -> dict:
    value = {"x": (x + 0.5) / WIDTH * 100, "y": (y + 0.5) / HEIGHT * 100, "width": 0.5, "keypointlabels": ["head"]}
    return {"type": "keypointlabels", "value": value, "is_positive": on}


def box(x0: int, y0: int, x1: int, y1: int) -> dict:
    value = {"x": x0 / WIDTH * 100, "y": y0 / HEIGHT * 100, "rectanglelabels": ["head"]}
    value |= {"width": (x1 - x0) / WIDTH * 100, "height": (y1 - y0) / HEIGHT * 100}
    return {"type": "rectanglelabels", "value": value}


def body(*drawn: object, image: object = URI, config: object = CONFIG) -> dict:
    tasks = [{"id": 1, "data": {"image": image}}]
    return {"tasks": tasks, "label_config": config, "params": {"context": {"result": [*drawn]}}}


def unpacked(data: list[int]) -> np.ndarray:
    """By the format: the values of a brush."""
    bits, place = "".join(f"{one:08b}" for one in data), 0

    def number(count: int) -> int:
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    count, word = number(32), number(5) + 1
    lengths = [number(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < count:
        same = number(1)
        run = number(lengths[number(2)]) + 1
        values += [number(word)] * run if same else [number(word) for _ in range(run)]
    return np.array(values)


@pytest.mark.parametrize("mask", [np.zeros((3, 5), bool), np.ones((300, 400), bool), np.eye(7, dtype=bool)])
def test_a_brush_is_the_mask(mask):
    values = unpacked(run_lengths(mask)).reshape(*mask.shape, 4)
    assert np.array_equal(values, np.repeat(mask[..., None] * 255, 4, axis=2))


@pytest.mark.parametrize("image", [URI, "/data/upload/1/a.png"], ids=["in the task", "on Label Studio"])
def test_what_is_drawn_becomes_a_brush(server, image):
    predictor = SamPredictor(open_model(SMALL, device="cpu"))
    predictor.set_image(cv2.imread(str(IMAGE)), "BGR")
    wanted = predictor.predict([[90, 100], [10, 10]], [1, 0], [20, 20, 150, 180])
    drawn = (point(90, 100), point(10, 10, on=False), box(20, 20, 150, 180), {"type": "brushlabels", "value": {}})
    status, told = ask(server, "predict", body(*drawn, image=image))
    assert status == 200, told
    ((region,),) = [one["result"] for one in told["results"]]
    assert (region["from_name"], region["to_name"], region["type"]) == ("brush", "scan", "brushlabels")
    assert (region["original_width"], region["original_height"]) == (WIDTH, HEIGHT)
    assert region["value"]["brushlabels"] == ["head"] and region["value"]["format"] == "rle"
    found = unpacked(region["value"]["rle"]).reshape(HEIGHT, WIDTH, 4)[..., 3] > 0
    assert np.array_equal(found, wanted.masks[wanted.iou.argmax()]) and found.any()
    assert region["score"] == pytest.approx(float(wanted.iou.max()), abs=1e-3)


def test_what_is_asked_without_a_drawing(server):
    assert server.ask("GET", "/label-studio/health")[0] == 200
    assert ask(server, "setup", {"project": "1"})[1]["model_version"].startswith("sam-med2d")
    assert ask(server, "webhook", {"action": "ANNOTATION_CREATED"}) == (200, {})
    for asked in ({"tasks": [{}, {}]}, body(point(3, 3, on=False))):
        status, told = ask(server, "predict", asked)
        assert status == 200 and [one["result"] for one in told["results"]] == [[]] * len(asked["tasks"])


CLICK = point(90, 100)
WRONG = {
    "no JSON": (b"{", "not JSON"),
    "no tasks": ({"tasks": 3}, "tasks"),
    "no brush": (body(CLICK, config='<View><Image name="a" value="$image"/></View>'), "no BrushLabels"),
    "no XML": (body(CLICK, config="<View>"), "not XML"),
    "entities": (body(CLICK, config='<!DOCTYPE a [<!ENTITY b "c">]><View>&b;</View>'), "declarations"),
    "no picture": (body(CLICK, image=None), "no picture"),
    "another host": (body(CLICK, image="http://127.0.0.1:1/a.png"), "lies elsewhere"),
    "a file": (body(CLICK, image="file:///etc/passwd"), "lies elsewhere"),
    "a redirection": (body(CLICK, image="/data/other.png"), "does not give the picture"),
    "two rectangles": (body(box(1, 1, 9, 9), box(1, 1, 9, 9)), "two rectangles"),
    "beyond the picture": (body({"type": "keypointlabels", "value": {"x": 101, "y": 1}}), "from 0 to 100"),
    "a context of text": ({**body(), "params": {"context": "a"}}, "context"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_gets_one_line(server, name):
    asked, says = WRONG[name]
    status, told = ask(server, "predict", asked)
    assert status == 400 and says in told["detail"] and "\n" not in told["detail"], (status, told)
