"""Nothing waits for the device within a training step, nor while a test's objects are answered.

The loops run on torch's device "meta", whose tensors have shapes and no values: whatever asks for one (`item`,
`tolist`, `cpu`, `bool`, a mask that selects rows) fails there, as it would make the host of a GPU wait.
"""

from contextlib import nullcontext

import pytest
import torch

from sam_med2d.data.batch import Batch
from sam_med2d.evaluation.evaluate import answer
from sam_med2d.prompts.annotators import SimulatedAnnotator
from sam_med2d.prompts.modes import DEFAULT_MODES, parse_mode
from sam_med2d.training.averaging import Average
from sam_med2d.training.learner import Learner
from sam_med2d.training.rounds import Recipe, train_batch
from segment_anything import Sam, look
from segment_anything.build_sam import build_sam
from segment_anything.sizes import SIZES, Size

SIDE, VALUELESS = 64, torch.device("meta")


@pytest.fixture(autouse=True)
def without_autocast(monkeypatch) -> None:
    """It does not know the device."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())


@pytest.fixture(scope="module")
def model() -> Sam:
    with pytest.MonkeyPatch.context() as patch, VALUELESS:
        patch.setitem(SIZES, "tiny", Size(channels=32, depth=2, heads=2, global_blocks=(0,)))
        return build_sam(model_type="tiny", image_size=SIDE, refine=True, encoder_adapter=True)


def batch() -> Batch:
    """Two pictures of three objects, on the CPU."""
    index, names = torch.tensor([0, 0, 0, 1, 1, 1]), [f"mask {i}" for i in range(6)]
    images, content = torch.zeros(2, 3, SIDE, SIDE, dtype=torch.uint8), torch.tensor([[0, 0, SIDE, SIDE]] * 2)
    masks = torch.zeros(6, 1, SIDE, SIDE, dtype=torch.bool)
    return Batch(images, content, masks, index, ["a", "b"], names, [(SIDE, SIDE)] * 2, None, [])


@pytest.mark.parametrize("read", [float, bool, torch.Tensor.tolist, torch.Tensor.cpu, torch.nonzero])
def test_the_device_lets_nobody_read(read) -> None:
    with pytest.raises((RuntimeError, NotImplementedError)):
        read(torch.ones((), device=VALUELESS))


@pytest.mark.parametrize(
    ("parts", "learning", "ways"),
    [(1, {}, {}), (2, {"clip_norm": 1.0, "optimizer": "adamw"}, {"keep_clicks": True, "rank_weight": 0.5})],
)
def test_a_training_step_reads_nothing_from_its_device(model, parts, learning, ways) -> None:
    model.train().train_for("adapters")
    average = Average(model, 0.9)
    learner = Learner(model, lr=1e-4, **learning)
    recipe = Recipe(corrections=5, **ways)
    scalars = train_batch(model, [*batch().parts(2 // parts)], learner, recipe, step=0)
    average.update(0)
    assert {"loss/loss", "loss/refined", "dice/round_5", "grad/norm_corrections"} <= scalars.keys()
    assert all(value.device == VALUELESS for value in scalars.values())


def test_answers_to_a_test_read_nothing_from_their_device(model) -> None:
    objects = batch().to(VALUELESS)
    with torch.inference_mode():
        seen = look(model.eval(), objects.images, objects.content).rows(objects.image_index)
        modes = [parse_mode(name) for name in DEFAULT_MODES]
        steps = answer(model, seen, objects.masks, objects.mask_names, modes, SimulatedAnnotator(0), True)
    assert {name: len(each) for name, each in steps.items()} == {"bbox": 1, "clicks": 5}
    assert all(step.prediction.logits.device == VALUELESS for each in steps.values() for step in each)
