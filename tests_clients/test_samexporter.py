"""samexporter: its inference, by class and by command, on the files of the target sam1024 with either input."""

import json

import cv2
import numpy as np
import pytest
from samexporter import inference
from samexporter.sam_onnx import SegmentAnythingONNX

from tests_clients.conftest import answers, mean_dice


@pytest.mark.parametrize("reads", ["x", "input_image"])
def test_its_class_shows_the_predictors_masks(exported, general, organs, reads) -> None:
    """It enlarges masks of 256 x 256 itself, which costs small organs their edges."""
    files = exported("sam1024", reads=reads)
    tool = SegmentAnythingONNX(f"{files}.encoder.onnx", f"{files}.decoder.onnx")
    theirs, last = [], None
    for organ in organs:
        if organ.image is not last:
            last = organ.image
            embedding = tool.encode(np.ascontiguousarray(last[..., ::-1]))
        mark = {"type": "rectangle", "data": organ.box.tolist()}
        theirs.append(tool.predict_masks(embedding, [mark])[0, 0] > 0)
    assert mean_dice(answers(general, organs, "box"), theirs) >= 0.985


def test_its_command_writes_a_picture(exported, organs, tmp_path) -> None:
    files, organ = exported("sam1024"), organs[0]
    cv2.imwrite(str(tmp_path / "image.png"), organ.image[..., ::-1])
    marks = [
        {"type": "rectangle", "data": organ.box.tolist()},
        {"type": "point", "data": organ.click.tolist(), "label": 1},
    ]
    (tmp_path / "prompt.json").write_text(json.dumps(marks))
    flags = ["--encoder_model", f"{files}.encoder.onnx", "--decoder_model", f"{files}.decoder.onnx"]
    flags += ["--image", str(tmp_path / "image.png"), "--prompt", str(tmp_path / "prompt.json")]
    assert inference.main([*flags, "--output", str(tmp_path / "result.png")]) == 0
    assert cv2.imread(str(tmp_path / "result.png")).shape == organ.image.shape
