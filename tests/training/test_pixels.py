"""pixels.py: one pass over the pixels gives what the definitions of the terms give, values and gradients."""

import pytest
import torch
from torch import Tensor

from sam_med2d.evaluation.metrics import iou
from sam_med2d.training.losses import dice, focal
from sam_med2d.training.pixels import pixel_terms


def example(dtype: torch.dtype, rows: int = 3, side: int = 12) -> tuple[Tensor, Tensor]:
    """Logits (rows, 4, side, side), some of them 0 and very far from it, and masks, one of them empty."""
    draw = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(rows, 4, side, side, generator=draw, dtype=dtype)
    logits[:, 1, :2, :6] = torch.tensor([0.0, 200.0, -200.0, 25.0, -25.0, 90.0], dtype=dtype)
    masks = torch.rand(rows, 1, side, side, generator=draw) < 0.3
    masks[0] = False
    return logits, masks


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-8), (torch.float32, 2e-5)])
def test_values_and_gradients_are_those_of_the_definitions(dtype, tolerance):
    logits, masks = example(dtype)
    weights = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(1), dtype=dtype)
    target = masks.to(dtype).expand_as(logits)
    apart, together = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    expected = focal(apart, target), dice(apart, target), iou(apart.detach(), target, from_logits=True)
    found = pixel_terms(together, masks)
    for value, right in zip(found, expected):
        torch.testing.assert_close(value.float(), right.float(), rtol=1e-6, atol=1e-6)
    (expected[0] * weights[0] + expected[1] * weights[1]).sum().backward()
    (found.focal * weights[0] + found.dice * weights[1]).sum().backward()
    torch.testing.assert_close(together.grad, apart.grad, rtol=tolerance, atol=tolerance / 100)
    assert together.grad.isfinite().all() and (together.grad[1:, 0] != 0).all()
    assert not found.iou.requires_grad


def test_the_gradient_is_that_of_differences():
    logits, masks = example(torch.float64, rows=2, side=6)
    logits = logits.clamp(-4, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda logits: pixel_terms(logits, masks)[:2], (logits,))


def test_an_object_has_the_same_bits_whatever_stands_beside_it():
    logits, masks = example(torch.float32)
    together = pixel_terms(logits, masks)
    for i in range(3):
        for value, alone in zip(together, pixel_terms(logits[i : i + 1], masks[i : i + 1])):
            assert torch.equal(value[i], alone[0])
