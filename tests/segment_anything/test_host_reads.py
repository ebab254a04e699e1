"""How often an answer waits for numbers to come back from the device: a GPU stands still each time."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from segment_anything import (
    Prompts,
    Sam,
    SamAutomaticMaskGenerator,
    SamPredictor,
    answer,
    look,
    sam_model_registry,
)

READS = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__")
SIDE = 64


@pytest.fixture(scope="module")
def model() -> Sam:
    torch.manual_seed(0)
    return sam_model_registry["vit_t"](image_size=SIDE, encoder_adapter=True, refine=True).for_inference()


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter]:
    """Reads of tensors by name."""
    found: Counter[str] = Counter()

    def counting(name: str):
        read = getattr(torch.Tensor, name)

        def reading(self: torch.Tensor, *args: object, **more: object) -> object:
            found[name] += 1
            return read(self, *args, **more)

        return reading

    with monkeypatch.context() as patch:
        for name in READS:
            patch.setattr(torch.Tensor, name, counting(name))
        yield found


@pytest.mark.parametrize("objects", [1, 10])
@pytest.mark.parametrize("best", [True, False])
def test_the_model_reads_nothing_back(model, objects, best, monkeypatch) -> None:
    prompts = Prompts(torch.rand(objects, 3, 2) * SIDE, torch.ones(objects, 3), None, torch.rand(objects, 1, 16, 16))
    with torch.inference_mode(), counted(monkeypatch) as reads:
        seen = look(model, torch.randint(0, 256, (1, 3, SIDE, SIDE)))
        model.upscale(answer(model, seen.for_each(objects), prompts, True, best=best).logits)
    assert not reads


@pytest.mark.parametrize("objects", [1, 10])
def test_a_click_brings_back_its_three_results(model, objects, monkeypatch) -> None:
    """Masks, predicted IoU and low-resolution logits, once for all objects with prompts of one kind."""
    predictor = SamPredictor(model, zoom="never")
    predictor.set_image(np.random.default_rng(0).integers(0, 256, (80, 70, 3), np.uint8))
    points = np.random.default_rng(1).uniform(5, 60, (objects, 2, 2))
    with counted(monkeypatch) as reads:
        predictor.predict(points, np.ones((objects, 2)), best=True)
    assert reads == {"cpu": 3, "numpy": 3}


def test_everything_mode_reads_back_batches_of_clicks_not_clicks(model, monkeypatch) -> None:
    """Of each batch the clicks, which were never elsewhere, the predicted IoU, stability and pixels."""
    picture = np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8)

    def reads(clicks_a_side: int) -> Counter:
        keeps_all = {"pred_iou_thresh": -9.0, "stability_score_thresh": -1.0, "mask_nms_thresh": 1.0, "zoom": "never"}
        generator = SamAutomaticMaskGenerator(model, clicks_a_side, points_per_batch=16, **keeps_all)
        with counted(monkeypatch) as found:
            generator.generate(picture)
        return found

    few, batch, four = reads(2), reads(4), reads(8)
    assert few == batch
    assert few["cpu"] == 4 and four["cpu"] == 4 * 4
