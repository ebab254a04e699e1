"""Slices that are encoded at once before they are asked for, and guesses that cannot be taken: the same answers."""

import numpy as np
import pytest
import torch

from sam_med2d.volumes import propagation
from sam_med2d.volumes.intensity import Intensity
from sam_med2d.volumes.propagation import Rule, Slices, propagate
from segment_anything import ObjectPrompt, Sam, SamPredictor, sam_model_registry
from segment_anything.predictor import Likeness
from segment_anything.zoom import Crop

ENDLESS = Rule(least_iou=-9, least_area=1, shrink=0, grow=1e9, least_contrast=-1e9)


@pytest.fixture(scope="module")
def model() -> Sam:
    torch.manual_seed(0)
    model = sam_model_registry["vit_t"](image_size=64, encoder_adapter=False, refine=True)
    torch.nn.init.normal_(model.refinement.write.weight, std=0.5)  # or it would add nothing
    return model.for_inference()


@pytest.fixture(scope="module")
def scan() -> np.ndarray:
    z, y, x = np.mgrid[0:20, 0:80, 0:72]
    inside = (y - 40) ** 2 + (x - 36) ** 2 < (14 + 3 * np.sin(z / 4)) ** 2
    return (60 + 120 * inside + np.random.default_rng(0).normal(0, 5, z.shape)).astype(np.float32)


def followed(model: Sam, scan: np.ndarray, zoom: str, rule: Rule = ENDLESS) -> tuple[dict, list[int]]:
    """What is found on each slice, and how many pictures each call of the encoder had."""
    batches: list[int] = []
    handle = model.image_encoder.register_forward_hook(lambda _, images, __: batches.append(len(images[0])))
    try:
        sliced = Slices(SamPredictor(model, zoom=zoom), scan, 0, Intensity(by_volume=True))
        found = propagate(sliced, {10: ObjectPrompt(box=np.array([20, 24, 52, 56], np.float32))}, rule)
    finally:
        handle.remove()
    return found.slices, batches


@pytest.mark.parametrize("zoom", ["never", "auto"])
def test_what_is_encoded_ahead_is_what_would_be_asked_for(model, scan, zoom, monkeypatch) -> None:
    ahead, batches = followed(model, scan, zoom)
    assert len(ahead) == len(scan)
    monkeypatch.setattr(propagation, "batches_pay", lambda model: False)
    one_by_one, alone = followed(model, scan, zoom)
    assert set(alone) == {1} and len(batches) < len(alone)
    assert ahead.keys() == one_by_one.keys()
    for number, one in ahead.items():
        assert (one.mask == one_by_one[number].mask).all()
        np.testing.assert_allclose(one.low_res, one_by_one[number].low_res, atol=1e-4)


def test_no_slice_is_encoded_twice_and_few_for_nothing(model, scan) -> None:
    """Whole slices: all that are asked for once; an object that ends at once leaves one behind in each direction."""
    _, batches = followed(model, scan, "never")
    assert sum(batches) == len(scan)
    ended, batches = followed(model, scan, "never", Rule(least_area=10**6))
    assert len(ended) == 1 and sum(batches) <= 1 + 2 + 4


@pytest.mark.parametrize("zoom", ["never", "always"])
def test_guesses_that_cannot_be_taken_are_not_refined(model, scan, zoom, monkeypatch) -> None:
    picture = np.repeat(scan[5].astype(np.uint8)[..., None], 3, axis=2)
    prompt = ObjectPrompt(box=np.array([20, 24, 52, 56], np.float32))
    like = np.zeros(picture.shape[:2], bool)
    like[30:60, 10:50] = True
    predictor = SamPredictor(model, zoom=zoom)
    predictor.set_image(picture)
    iou, decided = model.predict, {}
    refined: list[int] = []
    handle = model.refinement.register_forward_hook(lambda *_: refined.append(1))
    try:
        for expected in ([0.9, 0.8, 0.7], [0.9, 0.0, -0.3], [0.2, 0.9, 0.9]):
            expect = torch.tensor([expected])
            monkeypatch.setattr(model, "predict", lambda *asked: iou(*asked)._replace(iou=expect))
            every = predictor.predict_objects([prompt], return_logits=True)
            refined.clear()
            one = predictor.predict_objects([prompt], return_logits=True, like=like)
            decided[tuple(expected)] = len(refined)
            scores = every.iou[0].clip(0) * Likeness(like).of(every.masks[0] > 0)
            best = int(scores.argmax())
            np.testing.assert_allclose(one.masks[0, 0], every.masks[0, best], atol=1e-5)
            assert one.iou[0, 0] == every.iou[0, best] and one.masks.shape[:2] == (1, 1)
    finally:
        handle.remove()
    assert decided[0.9, 0.0, -0.3] <= 2 < 3 == len(decided)


def test_likeness_is_iou_in_the_whole_picture() -> None:
    draw = np.random.default_rng(1)
    wanted, found = draw.random((12, 9)) > 0.5, np.zeros((12, 9), bool)
    crop = Crop(2, 3, 5, 6)
    found[crop.pixels] = draw.random(crop.size) > 0.4
    whole = (wanted & found).sum() / (wanted | found).sum()
    assert Likeness(wanted).of(found) == pytest.approx(whole)
    assert Likeness(wanted).inside(crop).of(found[crop.pixels]) == pytest.approx(whole)
