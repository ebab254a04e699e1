"""X-AnyLabeling's class RemoteServer, unmodified, against `sam-med2d serve`: clicks and a box on a picture."""

import json
from collections.abc import Iterator

import cv2
import numpy as np
import pytest

pytest.importorskip("anylabeling", reason="x-anylabeling-cvhub is not installed")

import anylabeling.config
from anylabeling.services.auto_labeling.remote_server import RemoteServer
from app_client import Running
from PyQt6.QtGui import QImage
from serve_client import serving

from sam_med2d.inference.models import SMALL, open_model
from segment_anything import SamPredictor
from tests.conftest import ROOT

IMAGE = ROOT / "data_demo/images/mni152_axial_094.png"
BOX = [20, 20, 150, 180]


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Running]:
    with serving(tmp_path_factory.mktemp("serve"), "--token", "aWordOfTheTests") as one:
        yield one
    assert "Traceback" not in one.output, one.output


def test_marks_become_polygons(server, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))  # where the tool keeps its settings
    settings = {"remote_server_settings": {"server_url": server.address, "api_key": "aWordOfTheTests"}}
    monkeypatch.setattr(anylabeling.config, "current_config_file", json.dumps(settings))
    config = {"type": "remote_server", "name": "remote_server", "display_name": "Remote Server", "timeout": 300}
    said: list[str] = []
    client = RemoteServer(config, said.append)
    assert [*client.get_available_models()] == ["sam-med2d"]
    client.set_model_id("sam-med2d")
    predictor = SamPredictor(open_model(SMALL, device="cpu"))
    predictor.set_image(cv2.imread(str(IMAGE)), "BGR")
    for marks, prompts in (
        ([{"type": "rectangle", "data": BOX, "label": 1}], (None, None, BOX)),
        ([{"type": "point", "data": [90, 100], "label": 1}], ([[90, 100]], [1], None)),
    ):
        client.set_auto_labeling_marks(marks)
        shapes = client.predict_shapes(QImage(str(IMAGE)), str(IMAGE)).shapes
        assert shapes, (said, json.dumps(marks))
        found = predictor.predict(*prompts)
        wanted = found.masks[found.iou.argmax()]
        painted = np.zeros([4 * side for side in wanted.shape], np.uint8)
        for shape in shapes:
            ring = np.array([[point.x(), point.y()] for point in shape.points])
            cv2.fillPoly(painted, [np.rint(4 * ring).astype(np.int32)], 1)
        mask = painted[2::4, 2::4] > 0
        assert 2 * (mask & wanted).sum() / (mask.sum() + wanted.sum()) > 0.99
