"""The stock nninteractive-client, unmodified, against `sam-med2d serve` with the small model, on the MNI152 head."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import SimpleITK as sitk
from app_client import Running
from nilearn.datasets import load_mni152_template
from nnInteractive.inference.remote import SessionExpiredError, nnInteractiveRemoteInferenceSession
from serve_client import serving

from sam_med2d.commands import segment_volume
from sam_med2d.inference.models import SMALL, open_model
from sam_med2d.volumes.intensity import to_8_bits
from segment_anything import SamPredictor

TOKEN = "aWordOfTheTests"
MIDDLE = 4
# across the first axis: the head's outline, and the ventricles
HEAD, VENTRICLES = [[4, 5], [6, 112], [8, 92]], [[4, 5], [36, 78], [36, 64]]


@pytest.fixture(scope="module")
def volume() -> np.ndarray:
    """(z, y, x) float32, 8 axial slices of 2 mm around the ventricles."""
    head = np.asarray(load_mni152_template(resolution=2).dataobj, np.float32)
    return np.ascontiguousarray(head.transpose(2, 1, 0)[40:48] * 1000)


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Running]:
    with serving(tmp_path_factory.mktemp("serve"), "--token", TOKEN, "--seconds", "600") as one:
        yield one
    assert "Traceback" not in one.output, one.output


class Drawing:
    """A session of the client with an image, and its buffer."""

    def __init__(self, server: Running, volume: np.ndarray) -> None:
        self.session = nnInteractiveRemoteInferenceSession(server.address, api_key=TOKEN, read_timeout=600)
        self.session.set_image(volume[None], {"spacing": [2, 2, 2]})
        assert self.session.original_image_shape == (1, *volume.shape)
        self.buffer = np.zeros(volume.shape, np.uint8)
        self.session.set_target_buffer(self.buffer)


@pytest.fixture
def drawing(server, volume) -> Iterator[Drawing]:
    one = Drawing(server, volume)
    yield one
    one.session.close()


@pytest.fixture(scope="module")
def predictor(volume) -> SamPredictor:
    """Our own, on the middle slice."""
    one = SamPredictor(open_model(SMALL, device="cpu"))
    values = volume[MIDDLE]
    one.set_image(np.repeat(to_8_bits(values, values.min(), values.max())[..., None], 3, axis=2))
    return one


def best(found) -> np.ndarray:
    return found.masks[found.iou.argmax()]


def by_command(folder, volume: np.ndarray, *flags: object) -> np.ndarray:
    sitk.WriteImage(sitk.GetImageFromArray(volume), str(folder / "volume.nrrd"))
    words = ["--input", folder / "volume.nrrd", "--output", folder / "labels.nrrd", "--sam_checkpoint", SMALL, *flags]
    segment_volume.main([*map(str, words), "--device", "cpu"])
    return sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "labels.nrrd")))


def test_a_whole_session(drawing, predictor):
    session, buffer = drawing.session, drawing.buffer
    assert session.supported_interactions["lasso"] and session.supports_undo and session.supports_initial_label
    (_, (y0, y1), (x0, x1)) = HEAD
    session.add_bbox_interaction(HEAD, include_interaction=True)
    boxed = predictor.predict(box=[x0, y0, x1, y1])
    assert np.array_equal(buffer[MIDDLE], best(boxed)) and buffer[MIDDLE - 1].any() and buffer[MIDDLE + 1].any()
    first = buffer.copy()
    session.add_point_interaction([MIDDLE, 58, 50], include_interaction=False)
    low_res = boxed.low_res[boxed.iou.argmax()]
    assert np.array_equal(buffer[MIDDLE], best(predictor.predict([[50, 58]], [0], [x0, y0, x1, y1], low_res)))
    assert session.undo() and np.array_equal(buffer, first)
    assert session.undo() and not buffer.any() and not session.undo()

    scribble = np.zeros(buffer.shape, np.uint8)
    scribble[MIDDLE, 20:100:2, 50] = scribble[MIDDLE, 20:100, 51] = 1
    session.add_scribble_interaction(scribble, include_interaction=True)
    drawn = scribble[MIDDLE].astype(np.int8)
    assert np.array_equal(buffer[MIDDLE], best(predictor.predict(scribbles=drawn))) and buffer.any()
    session.reset_interactions()
    assert not buffer.any()

    (_, (y0, y1), (x0, x1)) = VENTRICLES
    lasso = np.ones((1, y1 - y0, x1 - x0), np.uint8)
    session.add_lasso_interaction(lasso, include_interaction=True, interaction_bbox=VENTRICLES)
    corners = [[x0, y0], [x1 - 1, y0], [x1 - 1, y1 - 1], [x0, y1 - 1]]
    assert np.array_equal(buffer[MIDDLE], best(predictor.predict(lasso=corners))) and buffer.any()
    session.reset_interactions()

    given = np.zeros(buffer.shape, np.uint8)
    given[2:6, 36:78, 36:64] = 1
    session.add_initial_seg_interaction(given)
    assert np.array_equal(buffer, given)
    session.add_point_interaction([MIDDLE, 58, 44], include_interaction=True)
    logits = predictor.logits_of(given[MIDDLE] > 0)
    assert np.array_equal(buffer[MIDDLE], best(predictor.predict([[44, 58]], [1], mask_input=logits)))
    others = [number for number in range(len(buffer)) if number != MIDDLE]
    assert np.array_equal(buffer[others], given[others])


def test_the_volume_is_that_of_segment_volume(drawing, volume, tmp_path):
    drawing.session.add_bbox_interaction(HEAD, include_interaction=True)
    (z0, z1), (y0, y1), (x0, x1) = HEAD
    assert np.array_equal(drawing.buffer, by_command(tmp_path, volume, "--box", x0, y0, z0, x1, y1, z1))
    drawing.session.reset_interactions()
    drawing.session.add_point_interaction([1, 50, 50], include_interaction=True, run_prediction=False)
    drawing.session.add_point_interaction([6, 50, 50], include_interaction=True)
    points = ("--point", 50, 50, 1, "--point", 50, 50, 6)
    assert np.array_equal(drawing.buffer, by_command(tmp_path, volume, *points)) and drawing.buffer.any()


def test_two_clients_at_once(server, volume, drawing):
    drawing.session.add_bbox_interaction(HEAD, include_interaction=True)
    alone, found = drawing.buffer, {}

    def work(number: int) -> None:
        turned = np.ascontiguousarray(volume[:, ::-1]) if number else volume
        one = Drawing(server, turned)
        one.session.add_bbox_interaction(HEAD, include_interaction=True)
        found[number] = one.buffer
        one.session.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert np.array_equal(found[0], alone) and found[1].any() and not np.array_equal(found[1], alone)


def test_a_lease_that_is_gone_is_said(drawing):
    assert drawing.session.ping() and drawing.session.heartbeat() > 500
    assert drawing.session.lease_status()["idle_timeout_seconds"] == 600
    drawing.session._http.post("/release")
    with pytest.raises(SessionExpiredError, match="has expired"):
        drawing.session.undo()
