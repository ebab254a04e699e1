"""What a model costs, against torch's own counter on real tensors and against products by hand."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from segment_anything import Prompts, answer, look, sam_model_registry
from segment_anything.flops import count


@pytest.mark.parametrize("refine", [False, True])
def test_operations_are_those_of_a_real_picture_and_a_real_click(refine):
    side = 64
    model = sam_model_registry["vit_t"](image_size=side, refine=refine)
    cost = count(model)
    with FlopCounterMode(display=False) as picture:
        seen = look(model, torch.zeros(1, 3, side, side))
    with FlopCounterMode(display=False) as click:
        answered = answer(model, seen, Prompts(torch.tensor([[[9.0, 7]]]), torch.tensor([[1]])), True)
    assert (cost.picture, cost.answer) == (picture.get_total_flops(), click.get_total_flops())
    assert cost.picture > 0 and cost.answer > 0
    assert type(answered.logits) is torch.Tensor  # nothing of the counted model, which has no values, was kept


def test_the_encoder_by_hand():
    """Two operations a multiplication with its addition: patches, then in each block qkv, proj, attention and MLP."""
    model = sam_model_registry["vit_b"](image_size=224, encoder_adapter=False)
    side, channels, neck = 14, 768, 256  # one window, in the blocks that have windows
    tokens = side * side
    patches = 2 * tokens * channels * 3 * 16 * 16
    a_block = 2 * tokens * channels * channels * (3 + 1 + 8) + 2 * 2 * tokens * tokens * channels
    positions = 2 * 2 * tokens * side * channels  # relative ones, of rows and of columns
    necks = 2 * tokens * channels * neck + 2 * tokens * neck * neck * 9
    assert count(model).picture == patches + 12 * (a_block + positions) + necks


def test_parameters_are_counted_and_those_that_learn():
    model = sam_model_registry["vit_t"](image_size=64)
    learning = model.train_for("decoder")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    cost = count(model)
    assert cost.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert cost.trained == sum(parameter.numel() for parameter in learning) < cost.parameters
    assert str(cost).startswith(f"{cost.parameters / 1e6:.4g} M parameters; {cost.picture / 1e9:.4g} GFLOPs a picture")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
