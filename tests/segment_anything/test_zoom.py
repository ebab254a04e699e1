"""Looking closer: which crop, what of it comes back, when it grows, and how often the encoder is asked."""

import gc
import weakref

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from segment_anything import (
    ObjectPrompt,
    Prediction,
    PromptError,
    SammedPredictor,
    SamPredictor,
    UserError,
    sam_model_registry,
)
from segment_anything.closer import Closer
from segment_anything.zoom import Crop, Zoom, around_click, box_of, crop_around, grown
from tests.segment_anything.test_model import randomise

FRAME = 64
SIZE = (400, 512)


class Bright:
    """Stands for a model that sees what is bright, and says so of every pixel of the frame."""

    device = torch.device("cpu")
    image_size = FRAME

    def __init__(self) -> None:
        self.encoded = 0

    def encode(self, images, content=None):
        self.encoded += len(images)
        return F.pixel_unshuffle(images[:, :1].float(), 16)

    def predict(self, embeddings, prompts, multimask_output):
        seen = F.pixel_shuffle(embeddings, 16) / 255 * 20 - 10
        self.asked = prompts
        return Prediction(seen, torch.ones(len(seen), 1))

    def upscale(self, logits):
        return logits


class Coarse(Bright):
    """The same with masks of a quarter of the frame, which can be handed back."""

    def predict(self, embeddings, prompts, multimask_output):
        found = super().predict(embeddings, prompts, multimask_output)
        return found._replace(logits=F.avg_pool2d(found.logits, 4))

    def upscale(self, logits):
        return F.interpolate(logits, scale_factor=4, mode="nearest")


def ellipse(centre: tuple[int, int], radii: tuple[int, int]) -> np.ndarray:
    return cv2.ellipse(np.zeros(SIZE, np.uint8), centre, radii, 20, 0, 360, 1, -1) > 0


def tight(mask: np.ndarray) -> np.ndarray:
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    return np.array([x, y, x + width, y + height])


def shown(mask: np.ndarray, model: Bright, zoom: object = "auto") -> SamPredictor:
    predictor = SamPredictor(model, zoom=zoom)
    predictor.set_image(mask.astype(np.uint8) * 255, encode=False)
    return predictor


# ---------------------------------------------------------------- crops


def test_crops_hold_their_boxes_and_lie_in_the_picture() -> None:
    draw = np.random.default_rng(0)
    for _ in range(500):
        size = tuple(draw.integers(1, 300, 2).tolist())
        x, y = (np.sort(draw.choice(2 * side + 1, 2, replace=False)) / 2 for side in (size[1], size[0]))
        box, context = np.array([x[0], y[0], x[1], y[1]]), draw.uniform(1, 4)
        crop = crop_around(box, context, size)
        assert Crop.whole(size).holds(crop.box) and min(crop.width, crop.height) > 0
        for axis, side in ((0, size[1]), (1, size[0])):
            wanted, got = context * (box[axis + 2] - box[axis]), crop.box[axis + 2] - crop.box[axis]
            assert got >= min(side, wanted) and got <= min(side, max(8, wanted + 1))
        assert (crop.box[:2] <= box[:2] + 0.5).all() and (crop.box[2:] >= box[2:] - 0.5).all()


def test_a_crop_at_the_border_is_moved_inside() -> None:
    assert crop_around(np.array([0, 0, 20, 10]), 2, (100, 200)) == Crop(0, 0, 40, 20)
    assert crop_around(np.array([190, 95, 200, 100]), 2, (100, 200)) == Crop(180, 90, 20, 10)
    assert crop_around(np.array([0, 0, 200, 100]), 3, (100, 200)) == Crop.whole((100, 200))
    assert [crop.size for crop in around_click(np.array([3, 99]), (100, 200))] == [(50, 100)]


def test_it_grows_to_the_sides_that_are_touched_alone() -> None:
    crop, size = Crop(40, 30, 20, 10), (100, 200)
    mask = np.zeros(crop.size, bool)
    mask[2:5, 3:9] = True
    assert grown(crop, mask, size) is None
    mask[3, 0] = True
    assert grown(crop, mask, size) == Crop(20, 30, 40, 10)
    mask[-1, 5] = mask[3, -1] = True
    assert grown(crop, mask, size) == Crop(20, 30, 60, 20)
    assert grown(Crop(0, 0, 200, 100), np.ones((100, 200), bool), size) is None  # nothing is beyond


def test_the_box_of_what_was_clicked() -> None:
    mask = np.zeros((50, 60), bool)
    mask[5:10, 5:12], mask[30:40, 20:50] = True, True
    assert box_of(mask, np.array([[6, 6]])).tolist() == [5, 5, 12, 10]
    assert box_of(mask, np.zeros((0, 2))).tolist() == [5, 5, 50, 40]
    assert box_of(mask, np.array([[55, 45]])).tolist() == [5, 5, 56, 46]  # of nothing: all, and the click
    assert box_of(mask & False, np.array([[55, 45]])) is None


@pytest.mark.parametrize("value", ["sometimes", "", 0.5, -1, True, float("nan"), "inf"])
def test_a_zoom_that_is_none_is_refused(value) -> None:
    with pytest.raises(UserError, match="zoom must be auto, always, never, or a number of at least 1") as caught:
        SamPredictor(Bright(), zoom=value)
    assert "\n" not in str(caught.value)


def test_what_zooms_there_are() -> None:
    small, large = np.array([0, 0, 99, 49]), np.array([0, 0, 101, 49])
    wanted = {"auto": [True, False], "always": [True, True], "never": [False, False], "2.5": [True, True]}
    for value, answers in wanted.items():
        assert [Zoom.of(value).wants(box, (200, 200)) for box in (small, large)] == answers
    assert Zoom.of(2.5).box_context == Zoom.of("2.5").context == 2.5


# ---------------------------------------------------------------- boxes


@pytest.mark.parametrize("centre", [(200, 150), (8, 390), (505, 6)])
def test_a_small_object_comes_back_to_the_pixel(centre) -> None:
    mask = ellipse(centre, (11, 6))
    far, near = (shown(mask, Bright(), zoom).predict(box=tight(mask)).masks[0] for zoom in ("never", "auto"))
    assert (near == mask).all()
    assert (far != mask).sum() > 0.1 * mask.sum()


def test_what_the_crop_does_not_show_is_no_object() -> None:
    """A second object beyond the crop is not marked, and its logits say so."""
    one, other = ellipse((200, 150), (11, 6)), ellipse((300, 250), (11, 6))
    predictor = shown(one | other, Bright())
    logits = predictor.predict(box=tight(one), return_logits=True).masks[0]
    assert ((logits > 0) == one).all() and (logits[other] < -5).all()
    assert predictor.crops == [crop_around(tight(one), 1.5, SIZE)]


def test_the_crop_grows_until_nothing_is_cut_off() -> None:
    mask = ellipse((250, 200), (90, 50))
    predictor = shown(mask, Bright())
    found = predictor.predict(box=[240, 190, 260, 210]).masks[0]
    assert Crop(*predictor.crops[0]).holds(tight(mask)) and predictor.crops[0] != Crop.whole(SIZE)
    assert 2 * (found & mask).sum() / (found.sum() + mask.sum()) > 0.97
    everything = shown(np.ones(SIZE, bool), Bright())
    assert everything.predict(box=[240, 190, 260, 210]).masks.all() and everything.crops == [Crop.whole(SIZE)]


def test_large_objects_are_asked_of_the_whole_picture() -> None:
    mask, model = ellipse((250, 200), (180, 90)), Bright()
    predictor, far = shown(mask, model), shown(mask, Bright(), "never")
    assert (predictor.predict(box=tight(mask)).masks == far.predict(box=tight(mask)).masks).all()
    assert predictor.crops == far.crops == [Crop.whole(SIZE)] and model.encoded == 1


def test_prompts_arrive_where_the_crop_shows_them() -> None:
    mask, model = ellipse((200, 150), (11, 6)), Bright()
    predictor = shown(mask, model, "2")
    predictor.predict([[200, 150], [5, 5]], [1, 0], box=[190, 140, 206, 156])
    assert predictor.crops == [Crop(182, 132, 32, 32)]  # each of its pixels is two of the frame
    assert model.asked.boxes.tolist() == [[16, 16, 48, 48]]
    assert model.asked.points.tolist() == [[[36.5, 36.5]]]  # the click beyond the crop says nothing in it


def test_many_objects_are_as_one_by_one() -> None:
    masks = [ellipse(centre, (11, 6)) for centre in ((200, 150), (300, 250))] + [ellipse((250, 200), (180, 90))]
    predictor = shown(np.any(masks, axis=0), Coarse())
    boxes = [tight(mask) for mask in masks]
    together = predictor.predict(box=boxes)
    crops = predictor.crops
    for i, box in enumerate(boxes):
        alone = predictor.predict(box=box)
        assert (together.masks[i] == alone.masks).all() and (together.iou[i] == alone.iou).all()
        assert crops[i] == predictor.crops[0]
    assert len({*crops}) == 3 and crops[2] == Crop.whole(SIZE)


# ---------------------------------------------------------------- clicks, and how often is encoded


def test_a_click_finds_an_object_that_the_whole_picture_hides() -> None:
    """Every eighth column is seen of the whole picture: none of the object's."""
    mask = np.zeros(SIZE, bool)
    mask[101:104, 201:206] = True
    predictor = shown(mask, Bright())
    assert (predictor.predict([[203, 102]], [1]).masks[0] == mask).all()
    assert predictor.crops[0].width <= FRAME
    assert not shown(mask, Bright(), "never").predict([[203, 102]], [1]).masks.any()


def test_a_further_prompt_costs_no_encoding() -> None:
    mask, model = ellipse((200, 150), (11, 6)), Coarse()
    predictor = shown(mask, model)
    first = predictor.predict([[200, 150]], [1])
    looks = model.encoded  # the whole, around the click, around the answer, and once further out
    assert looks == 1 + len(around_click(np.array([200, 150]), SIZE)) + 2
    (crop,) = predictor.crops
    for clicks in ([[200, 150], [250, 150]], [[200, 150], [250, 150], [201, 149]]):
        again = predictor.predict(clicks, [1, 0, 1][: len(clicks)], mask_input=first.low_res[0])
        assert model.encoded == looks and (again.masks == first.masks).all() and model.asked.masks is not None
        assert predictor.crops == [crop]
    predictor.predict(box=tight(mask))
    predictor.predict(box=tight(mask))
    assert model.encoded == looks + 1
    predictor.set_image(mask.astype(np.uint8) * 255, encode=False)
    predictor.predict(box=tight(mask))
    assert model.encoded == looks + 2  # of another picture, and that as a whole never


def test_a_mask_of_before_is_fed_back_as_it_was_seen() -> None:
    """In its crop: the logits of the frame themselves, and not what the whole picture's frame keeps of them."""
    mask, model = ellipse((200, 150), (11, 6)), Coarse()
    predictor = shown(mask, model)
    first = predictor.predict(box=tight(mask))
    (crop,) = predictor.crops
    inside = model.asked
    predictor.predict([[200, 150]], [1], box=tight(mask), mask_input=first.low_res[0])
    seen = Closer(predictor, predictor.zoom, predictor._kept)._recall(first.low_res[0])
    assert predictor.crops == [crop] and seen.crop == crop and inside.masks is None
    assert torch.equal(model.asked.masks[0, 0], torch.from_numpy(seen.low_res).sigmoid())


def test_a_mask_from_elsewhere_is_of_the_whole_picture() -> None:
    mask, model = ellipse((200, 150), (22, 18)), Coarse()
    predictor = shown(mask, model)
    handed = predictor.logits_of(mask)
    found = predictor.predict(mask_input=handed)
    assert predictor.crops[0] != Crop.whole(SIZE) and predictor.crops[0].holds(tight(mask))
    share = model.asked.masks[0, 0]
    assert share[8, 8] > 0.9 and share[0, 0] < 0.1  # in the crop it lies in the middle
    assert 2 * (found.masks[0] & mask).sum() / (found.masks.sum() + mask.sum()) > 0.85


def test_a_mask_that_cannot_be_read_is_said_to_be() -> None:
    predictor = shown(ellipse((200, 150), (22, 18)), Coarse())
    for box in (None, [190, 140, 206, 156]):
        with pytest.raises(PromptError, match="instead of"):
            predictor.predict(box=box, mask_input=np.full((5, 5), -3.0))
        with pytest.raises(PromptError, match="values of 0 to 1 only"):
            predictor.predict(box=box, mask_input=np.full((16, 16), 0.5))


def test_what_is_kept_is_bounded(monkeypatch) -> None:
    monkeypatch.setattr("segment_anything.closer.KEPT_BYTES", 3 * 4 * FRAME**2)
    predictor = shown(ellipse((200, 150), (22, 18)), Coarse())
    for x in range(100, 300, 20):
        predictor.predict(box=[x, 100, x + 10, 110])
    assert len(predictor._kept.features) == 3


def test_pictures_go_with_their_predictor() -> None:
    """At once, and not when Python next looks for circles: that may be after gigabytes, on a GPU too."""
    mask, model = ellipse((200, 150), (11, 6)), Coarse()
    gc.disable()
    try:
        predictor = shown(mask, model)
        predictor.predict([[200, 150]], [1])
        predictor.predict(box=tight(mask))
        there = weakref.ref(predictor), weakref.ref(predictor.seen().embeddings)
        del predictor
        assert [one() for one in there] == [None, None]
    finally:
        gc.enable()


# ---------------------------------------------------------------- whose predictor it is


def test_where_there_is_no_picture_nothing_is_looked_at_closer() -> None:
    mask = ellipse((200, 150), (11, 6))
    predictor, far = shown(mask, Bright()), shown(mask, Bright(), "never")
    embedding = far.get_image_embedding()
    predictor.set_embedding(embedding, SIZE)
    assert (predictor.predict(box=tight(mask)).masks == far.predict(box=tight(mask)).masks).all()
    predictor.set_embedding(embedding, SIZE, predictor_picture(mask))
    assert (predictor.predict(box=tight(mask)).masks[0] == mask).all()


def predictor_picture(mask: np.ndarray) -> np.ndarray:
    return np.repeat(mask[..., None].astype(np.uint8) * 255, 3, axis=2)


def test_the_originals_predictor_never_looks_closer() -> None:
    mask, model = ellipse((200, 150), (11, 6)), Bright()
    predictor = SammedPredictor(model)
    predictor.set_image(predictor_picture(mask))
    predictor.predict(box=tight(mask))
    assert model.encoded == 1 and predictor.crops == [Crop.whole(SIZE)]


def test_with_a_real_model_a_crop_is_a_picture_of_its_own(monkeypatch) -> None:
    monkeypatch.setattr("segment_anything.closer.grown", lambda *_: None)  # random answers lie at every edge
    model = randomise(sam_model_registry["vit_t"](image_size=64, encoder_adapter=True))
    picture = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    picture = cv2.resize(picture[::9, ::9], (120, 90), interpolation=cv2.INTER_CUBIC)
    predictor, alone = SamPredictor(model), SamPredictor(model, zoom="never")
    predictor.set_image(picture)
    prompts = [ObjectPrompt(box=np.array([30, 40, 62, 60], np.float32))]
    found = predictor.predict_objects(prompts, return_logits=True)
    (crop,) = predictor.crops
    assert crop == Crop(22, 35, 48, 30)
    alone.set_image(picture[crop.pixels])
    want = alone.predict(box=prompts[0].box - np.tile(crop.box[:2], 2), return_logits=True)
    np.testing.assert_allclose(found.masks[0][:, crop.pixels[0], crop.pixels[1]], want.masks, atol=1e-4)
    np.testing.assert_allclose(found.iou[0], want.iou, atol=1e-5)
