"""What a model costs, whatever the machine: parameters, and floating-point operations of a picture and of an answer.

    cost = count(model)
    print(cost)             # 92.7 M parameters; 101.9 GFLOPs a picture, 2.94 GFLOPs an answer

A multiplication and its addition are two operations, as torch counts them; those of matrix products, convolutions and
attention are counted, which are nearly all. Nothing is computed: tensors have shapes and no values.
"""

from typing import NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from .modeling import FOREGROUND, Prompts, Sam, answer
from .modeling.sam import Seen


class Cost(NamedTuple):
    """parameters, and how many of them learn; operations of what a picture takes once (the encoder, and what a
    refinement network keeps of it) and of the three answers to one click."""

    parameters: int
    trained: int
    picture: int
    answer: int

    def __str__(self) -> str:
        return (
            f"{self.parameters / 1e6:.4g} M parameters; {self.picture / 1e9:.4g} GFLOPs a picture, "
            f"{self.answer / 1e9:.4g} GFLOPs an answer"
        )


def count(model: Sam) -> Cost:
    """Of one picture at the size of the model's frame, and one click on it. The model is left as it is."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    side, device = model.image_size, model.device
    with torch.enable_grad(), FakeTensorMode(allow_non_fake_inputs=True):  # the counter needs both
        image = torch.zeros(1, 3, side, side, device=device)
        with FlopCounterMode(display=False) as picture:
            seen = Seen(model.image_encoder(model.prepared(image)), model.details(image))
        click = Prompts(torch.zeros(1, 1, 2, device=device), torch.full((1, 1), FOREGROUND, device=device))
        with FlopCounterMode(display=False) as answered:
            answer(model, seen, click, multimask_output=True)
    return Cost(
        sum(size for size, _ in sizes),
        sum(size for size, learns in sizes if learns),
        picture.get_total_flops(),
        answered.get_total_flops(),
    )
