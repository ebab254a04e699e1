"""X-AnyLabeling: its own model classes, sam_med2d and segment_anything, opened by the YAML that the targets write."""

import cv2
import numpy as np
import pytest
import yaml
from anylabeling import config
from anylabeling.services.auto_labeling.sam_med2d import SAM_Med2D
from anylabeling.services.auto_labeling.segment_anything import SegmentAnything

from tests_clients.conftest import answers, mean_dice


@pytest.fixture(scope="module", autouse=True)
def settings(tmp_path_factory):
    """As the program begins: with a file of settings in the home folder."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder))
        config.set_work_directory(str(folder))
        config.get_default_config()  # writes it
        patch.setattr(config, "current_config_file", str(folder / ".xanylabelingrc"))
        yield


def opened(kind, files):
    path = files.with_suffix(".yaml")
    written = yaml.safe_load(path.read_text())
    assert set(kind.Meta.required_config_names) <= written.keys()
    return kind({**written, "config_file": str(path)}, lambda message: None)


def masks_of(tool, organs, kind: str) -> list[np.ndarray]:
    theirs, last = [], None
    for organ in organs:
        if organ.image is not last:
            last = organ.image
            embedding = tool.model.encode(last)
        mark = {"type": "rectangle", "data": organ.box.tolist()}
        if kind == "click":
            mark = {"type": "point", "data": organ.click.tolist(), "label": 1}
        theirs.append(tool.model.predict_masks(embedding, [mark])[0, 0] > 0)
    return theirs


@pytest.mark.parametrize("kind, least", [("box", 0.985), ("click", 0.98)])
def test_its_sam_med2d_shows_the_predictors_masks(exported, general, organs, kind, least) -> None:
    tool = opened(SAM_Med2D, exported("x-anylabeling"))
    assert mean_dice(answers(general, organs, kind), masks_of(tool, organs, kind)) >= least


def test_its_sam_med2d_draws_the_outline(exported, general, organs) -> None:
    """All the way to the polygon that a person gets, from a picture as Qt holds it."""
    from PyQt6.QtGui import QImage

    tool, organ = opened(SAM_Med2D, exported("x-anylabeling")), organs[0]
    height, width = organ.image.shape[:2]
    picture = QImage(
        np.ascontiguousarray(organ.image).data, width, height, 3 * width, QImage.Format.Format_RGB888
    ).convertToFormat(QImage.Format.Format_RGB32)
    tool.set_auto_labeling_marks([{"type": "rectangle", "data": organ.box.tolist()}])
    shapes = tool.predict_shapes(picture, None).shapes
    drawn = np.zeros((height, width), np.uint8)
    for shape in shapes:
        cv2.fillPoly(drawn, [np.array([[point.x(), point.y()] for point in shape.points], np.int32)], 1)
    (ours,) = answers(general, [organ], "box")
    assert shapes and mean_dice([ours], [drawn > 0]) > 0.95


def test_its_segment_anything_opens_the_frame_of_1024(exported, general, organs) -> None:
    """It shows pictures on a canvas of 1024 x 684 whatever their shape, so that less is left to see."""
    tool = opened(SegmentAnything, exported("sam1024", reads="input_image"))
    assert mean_dice(answers(general, organs, "box"), masks_of(tool, organs, "box")) >= 0.94
