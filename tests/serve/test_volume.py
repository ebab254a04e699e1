"""One client's object: each kind of prompt against our own predictor, the volume against segment-volume, undo."""

import gc
import weakref

import numpy as np
import pytest
import SimpleITK as sitk

from sam_med2d.commands import segment_volume
from sam_med2d.errors import DataError, PromptError
from sam_med2d.inference.models import SMALL, open_model
from sam_med2d.inference.shared import SharedModel
from sam_med2d.serve.service import Service
from sam_med2d.serve.volume import VolumeSession
from sam_med2d.volumes.intensity import to_8_bits
from segment_anything import SamPredictor
from tests.serve.serving import blobs

VOLUME = next(blobs())
MIDDLE = 4
DOTS = np.kron(np.ones((1, 20, 20), bool), [[[1, 0], [0, 0]]])
BOX = [[MIDDLE, MIDDLE + 1], [10, 31], [20, 41]]


@pytest.fixture(scope="module")
def model():
    return SharedModel(open_model(SMALL, device="cpu"))


@pytest.fixture
def session(model) -> "Drawing":
    return Drawing(Service(model))


class Drawing:
    """A session and the volume that a client would have of it."""

    def __init__(self, service: Service, volume: np.ndarray = VOLUME, **more) -> None:
        self.session = VolumeSession(service)
        self.session.take(volume, **more)
        self.seen = np.zeros(volume.shape, np.uint8)

    def show(self, change) -> np.ndarray:
        if change is not None:
            self.seen[tuple(slice(*side) for side in change.box)] = change.values
        return self.seen.copy()

    def predict(self) -> np.ndarray:
        return self.show(self.session.predict())


def at(model, number: int) -> SamPredictor:
    """Our own predictor on a slice across the first axis."""
    predictor = SamPredictor(model)
    values = VOLUME[number]
    predictor.set_image(np.repeat(to_8_bits(values, values.min(), values.max())[..., None], 3, axis=2))
    return predictor


def best(found) -> np.ndarray:
    return found.masks[found.iou.argmax()]


def by_command(tmp_path, *flags: object, volume: np.ndarray = VOLUME) -> np.ndarray:
    sitk.WriteImage(sitk.GetImageFromArray(volume), str(tmp_path / "volume.nrrd"))
    words = ["--input", tmp_path / "volume.nrrd", "--output", tmp_path / "labels.nrrd", "--sam_checkpoint", SMALL]
    segment_volume.main([*map(str, [*words, "--device", "cpu", *flags])])
    return sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "labels.nrrd")))


def test_a_box_is_answered_as_by_segment_volume(session, model, tmp_path):
    session.session.draw_box(BOX, foreground=True)
    found = session.predict()
    assert np.array_equal(found, by_command(tmp_path, "--box", 20, 10, MIDDLE, 41, 31, MIDDLE + 1))
    assert np.array_equal(found[MIDDLE], best(at(model, MIDDLE).predict(box=[20, 10, 41, 31])))
    assert found[MIDDLE - 1].any() and found[MIDDLE + 1].any()


def test_clicks_on_two_slices_are_answered_as_by_segment_volume(session, tmp_path):
    session.session.click((3, 20, 30), foreground=True)
    session.session.click((5, 20, 30), foreground=True)
    session.session.click((5, 40, 5), foreground=False)
    points = ("--point", 30, 20, 3, "--point", 30, 20, 5, "--background", 5, 40, 5)
    assert np.array_equal(session.predict(), by_command(tmp_path, *points))


def test_a_thick_box_bounds_as_in_segment_volume(session, tmp_path):
    session.session.draw_box([[3, 6], [10, 31], [20, 41]], foreground=True)
    found = session.predict()
    assert np.array_equal(found, by_command(tmp_path, "--box", 20, 10, 3, 41, 31, 6))
    assert np.flatnonzero(found.any((1, 2))).tolist() == [3, 4, 5]
    with pytest.raises(PromptError, match="slice 8 has prompts"), session.session.or_as_it_was():
        session.session.click((8, 20, 30), foreground=True)
        session.session.predict()
    assert np.array_equal(session.predict(), found)


def test_a_box_on_another_plane_is_of_slices_across_that(model, tmp_path):
    volume = np.ascontiguousarray(VOLUME.transpose(1, 0, 2))
    drawing = Drawing(Service(model), volume)
    drawing.session.draw_box([[10, 31], [MIDDLE, MIDDLE + 1], [20, 41]], foreground=True)
    flags = ("--box", 20, MIDDLE, 10, 41, MIDDLE + 1, 31, "--axis", "y")
    assert np.array_equal(drawing.predict(), by_command(tmp_path, *flags, volume=volume))
    with pytest.raises(PromptError, match="across axis 1"):
        drawing.session.draw_box([[20, 21], [2, 6], [20, 41]], foreground=True)


def test_a_further_click_comes_with_the_mask_of_before(session, model):
    session.session.draw_box(BOX, foreground=True)
    session.predict()
    session.session.click((MIDDLE, 22, 24), foreground=False)
    predictor = at(model, MIDDLE)
    before = predictor.predict(box=[20, 10, 41, 31])
    after = predictor.predict([[24, 22]], [0], [20, 10, 41, 31], before.low_res[before.iou.argmax()])
    found = session.predict()[MIDDLE]
    assert np.array_equal(found, best(after)) and not np.array_equal(found, best(before))


def test_a_scribble_is_heard_as_our_predictor_hears_it(session, model):
    mask = np.zeros((1, 3, 12), np.uint8)
    mask[0, 1] = 1
    drawn = np.zeros(VOLUME.shape[1:], np.int8)
    drawn[19:22, 24:36] = mask[0]
    session.session.scribble(mask, (MIDDLE, 19, 24), foreground=True)
    found = session.predict()
    assert np.array_equal(found[MIDDLE], best(at(model, MIDDLE).predict(scribbles=drawn)))
    assert found[MIDDLE + 1].any()


def test_a_lasso_is_heard_as_our_predictor_hears_it(session, model):
    inside = np.zeros(VOLUME.shape[1:], np.uint8)
    inside[12:29, 22:41] = 1
    lined = inside.copy()
    lined[13:28, 23:40] = 0
    wanted = best(at(model, MIDDLE).predict(lasso=[[22, 12], [40, 12], [40, 28], [22, 28]]))
    for drawn in (inside, lined):  # what it encloses, or its line
        session.session.reset()
        session.seen[:] = 0
        session.session.lasso(drawn[None], (MIDDLE, 0, 0), foreground=True)
        assert np.array_equal(session.predict()[MIDDLE], wanted)


def test_what_is_off_the_object_alone_answers_nothing(session):
    session.session.click((MIDDLE, 2, 2), foreground=False)
    session.session.draw_box([[2, 3], [2, 6], [2, 6]], foreground=False)
    session.session.lasso(np.ones((1, 4, 4), np.uint8), (1, 1, 1), foreground=False)
    assert session.session.predict() is None


def test_an_initial_segmentation_is_corrected_where_it_is_prompted(session, model):
    given = (VOLUME > 500).astype(np.uint8)
    session.session.start_from(given, refine=False)
    session.seen[:] = given
    session.session.click((3, 20, 24), foreground=True)
    found = session.predict()
    predictor = at(model, 3)
    wanted = best(predictor.predict([[24, 20]], [1], mask_input=predictor.logits_of(given[3] > 0)))
    assert np.array_equal(found[3], wanted) and not np.array_equal(wanted, given[3])
    others = [number for number in range(len(VOLUME)) if number != 3]
    assert np.array_equal(found[others], given[others])
    assert np.array_equal(session.show(session.session.undo()), given)


def test_an_initial_segmentation_is_refined_where_that_is_asked(session, model):
    given = (VOLUME > 500).astype(np.uint8)
    session.session.start_from(given, refine=True)
    found, predictor = session.predict(), at(model, MIDDLE)
    y, x = np.nonzero(given[MIDDLE])
    box = [x.min(), y.min(), x.max() + 1, y.max() + 1]
    wanted = best(predictor.predict(box=box, mask_input=predictor.logits_of(given[MIDDLE] > 0)))
    assert np.array_equal(found[MIDDLE], wanted)


def test_undo_goes_back_one_interaction_at_a_time(session):
    seen = [session.seen.copy()]
    for act in (
        lambda: session.session.click((MIDDLE, 20, 30), True),
        lambda: session.session.click((2, 20, 30), True),
        lambda: session.session.draw_box(BOX, True),
        lambda: session.session.click((MIDDLE, 12, 22), False),
    ):
        act()
        seen.append(session.predict())
    assert not np.array_equal(seen[2], seen[3])
    for wanted in reversed(seen[:-1]):
        assert np.array_equal(session.show(session.session.undo()), wanted)
    assert not session.session.can_undo


def test_without_propagation_slices_without_prompts_stay_empty(model):
    drawing = Drawing(Service(model, propagate=False))
    drawing.session.draw_box(BOX, foreground=True)
    drawing.predict()
    drawing.session.click((2, 20, 30), foreground=True)
    assert np.flatnonzero(drawing.predict().any((1, 2))).tolist() == [2, MIDDLE]


def test_slices_for_which_there_is_no_time_come_with_the_next_answer(model, session):
    service = Service(model, seconds=0)
    drawing = Drawing(service)
    drawing.session.draw_box(BOX, foreground=True)
    assert np.flatnonzero(drawing.predict().any((1, 2))).tolist() == [MIDDLE]
    service.seconds = 60
    session.session.draw_box(BOX, foreground=True)
    assert np.array_equal(drawing.predict(), session.predict())


@pytest.mark.parametrize(
    "shape, spacing, flag, axis",
    [
        ((9, 48, 64), None, None, 0),
        ((9, 48, 64), (1, 1, 1), None, 0),
        ((48, 64, 9), (1, 1, 5), None, 2),
        ((48, 64, 9), (1, 1, 5), 1, 1),
        ((48, 1, 64), (9, 1, 1), 0, 1),
    ],
)
def test_which_slices_a_click_is_of(model, shape, spacing, flag, axis):
    drawing = Drawing(Service(model, propagate=False, axis=flag), np.ones(shape, np.int16), spacing=spacing)
    drawing.session.click([side // 2 for side in shape], foreground=True)
    assert drawing.session._drawn.axis == axis


@pytest.mark.parametrize(
    "act, says",
    [
        (lambda one: one.click((9, 0, 0), True), "outside"),
        (lambda one: one.click((-1, 0, 0), True), "outside"),
        (lambda one: one.draw_box([[0, 1], [5, 5], [0, 3]], True), "empty"),
        (lambda one: one.draw_box([[0, 1], [5, 9], [0, 65]], True), "outside"),
        (lambda one: one.draw_box([[0, 2], [5, 9], [0, 5]], False), "one voxel thick"),
        (lambda one: one.scribble(np.zeros((1, 2, 2)), (0, 0, 0), True), "nothing is drawn"),
        (lambda one: one.scribble(np.ones((1, 2, 2)), (8, 47, 0), True), "outside"),
        (lambda one: one.scribble(DOTS, (0, 0, 0), True), "pieces"),
        (lambda one: one.start_from(np.ones((2, 2, 2)), False), "shape"),
        (lambda one: one.undo(), "nothing to undo"),
        (lambda one: one.take(np.full((2, 2, 2), np.nan)), "finite"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_and_leaves_the_object_as_it_was(session, act, says):
    before = session.session._drawn
    with pytest.raises((PromptError, DataError), match=says):
        act(session.session)
    assert session.session._drawn is before


def test_clicks_of_a_slice_have_an_end(session):
    for number in range(200):
        session.session.click((MIDDLE, 20, number % 60), True)
    with pytest.raises(PromptError, match="200 clicks"):
        session.session.click((MIDDLE, 20, 30), True)


def test_a_closed_session_holds_nothing_of_its_volume(model):
    volume = VOLUME.copy()
    session = Drawing(Service(model), volume).session
    session.click([MIDDLE, 20, 30], True)
    kept = weakref.ref(volume)
    del volume
    session.close()
    gc.collect()
    assert session.scan is None and kept() is None
    with pytest.raises(DataError, match="there is no image yet"):
        session.click([MIDDLE, 20, 30], True)
