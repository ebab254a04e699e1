"""losses.py: the three terms against their formulas in numpy, and what `objective` teaches which output."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sam_med2d.training.losses import SHARE_OF_OTHERS, WEIGHTS, dice, focal, iou_error, objective
from segment_anything import Prediction

SIDE = 16


def example(rows: int = 3, outputs: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """logits (rows, outputs, S, S) float64, target of 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(rows, outputs, SIDE, SIDE, generator=generator, dtype=torch.float64)
    target = (torch.rand(rows, 1, SIDE, SIDE, generator=generator) < 0.3).double().expand_as(logits)
    return logits, target


def square(side: int) -> Tensor:
    """(1, 1, S, S) bool."""
    mask = torch.zeros(1, 1, SIDE, SIDE, dtype=torch.bool)
    mask[..., :side, :side] = True
    return mask


def certain(masks: Tensor) -> Tensor:
    """Logits of a sure prediction of masks."""
    return torch.where(masks, 20.0, -20.0)


# ---------------------------------------------------------------- the terms


@pytest.mark.parametrize("gamma, alpha", [(2.0, 0.25), (0.0, 0.25), (1.0, 0.9), (5.0, 0.5)])
def test_focal_is_the_textbooks(gamma, alpha):
    logits, target = example()
    p, t = 1 / (1 + np.exp(-logits.numpy())), target.numpy().astype(bool)
    true_class = np.where(t, p, 1 - p)
    expected = (-np.where(t, alpha, 1 - alpha) * (1 - true_class) ** gamma * np.log(true_class)).mean(axis=(2, 3))
    np.testing.assert_allclose(focal(logits, target, gamma, alpha).numpy(), expected, rtol=1e-9)


def test_unfocused_focal_is_half_of_cross_entropy():
    logits, target = example()
    expected = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(dim=(2, 3)) / 2
    torch.testing.assert_close(focal(logits, target, gamma=0.0, alpha=0.5), expected)


@pytest.mark.parametrize("term", [focal, dice])
def test_extreme_logits_have_finite_values_and_gradients(term):
    logits = torch.tensor([-200.0, -90.0, 0.0, 90.0, 200.0]).repeat(2).view(1, 1, 2, 5).requires_grad_()
    target = torch.tensor([[0.0], [1.0]]).expand(1, 1, 2, 5)
    value = term(logits, target)
    value.sum().backward()
    assert value.isfinite().all() and logits.grad.isfinite().all()


@pytest.mark.parametrize("smooth", [1.0, 1e-3])
def test_dice_is_the_textbooks(smooth):
    logits, target = example()
    p, t = 1 / (1 + np.exp(-logits.numpy())), target.numpy()
    expected = 1 - (2 * (p * t).sum((2, 3)) + smooth) / (p.sum((2, 3)) + t.sum((2, 3)) + smooth)
    np.testing.assert_allclose(dice(logits, target, smooth).numpy(), expected, rtol=1e-9)


def test_the_target_of_a_predicted_iou_is_that_of_its_own_object_and_output():
    logits, target = example()
    p, t = logits.numpy() > 0, target.numpy() > 0
    true_iou = (p & t).sum((2, 3)) / (p | t).sum((2, 3))
    guess = torch.rand(3, 4, generator=torch.Generator().manual_seed(1))
    np.testing.assert_allclose(
        iou_error(guess, logits, target).numpy(), (guess.numpy() - true_iou) ** 2, rtol=1e-5, atol=1e-7
    )
    assert len(np.unique(true_iou)) == true_iou.size  # else a pooled target would pass


@pytest.mark.parametrize(
    "term",
    [focal, dice, lambda logits, target: iou_error(logits[..., 0, 0], logits, target)],
    ids=["focal", "dice", "iou"],
)
def test_an_objects_terms_do_not_depend_on_the_other_rows(term):
    logits, target = example()
    together = term(logits, target)
    assert together.shape == (3, 4)
    for i in range(3):
        torch.testing.assert_close(term(logits[i : i + 1], target[i : i + 1])[0], together[i])


# ---------------------------------------------------------------- the objective


def test_a_large_object_does_not_hide_a_small_one():
    """The large one is found, the small one is missed: the mean of the two, not of their pixels."""
    masks = torch.cat([square(15), square(2)])
    logits = certain(torch.cat([square(15), square(0)])).expand(-1, 4, -1, -1)
    losses = objective(Prediction(logits, torch.tensor([[1.0], [0.0]]).expand(2, 4)), logits, masks)
    missed = 1 - 1 / (4 + 1)
    assert losses["dice"].item() == pytest.approx(missed / 2, abs=1e-3)
    assert losses["iou"].item() == pytest.approx(0, abs=1e-6)


def test_a_perfect_prediction_costs_nothing():
    masks = torch.cat([square(3), square(9), square(16)])
    logits = certain(masks).expand(-1, 4, -1, -1)
    losses = objective(Prediction(logits, torch.ones(3, 4)), logits, masks)
    assert set(losses) == {"loss", "focal", "dice", "iou"}
    assert all(abs(value.item()) < 1e-4 for value in losses.values())
    worst = objective(Prediction(-logits, torch.ones(3, 4)), -logits, masks)
    assert worst["loss"] > 100


def test_every_output_and_every_predicted_iou_learns_from_every_object():
    logits, target = example(rows=5)
    logits = logits.float().requires_grad_()
    guess = torch.rand(5, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    objective(Prediction(logits, guess), logits, target[:, :1].bool())["loss"].backward()
    assert (logits.grad.abs().amax(dim=(2, 3)) > 0).all()
    assert (guess.grad != 0).all()


def test_a_predicted_iou_does_not_teach_the_mask():
    """The squared error of the IoU moves the predicted IoU alone."""
    logits, target = example()
    logits = logits.float().requires_grad_()
    guess = torch.zeros(3, 4, requires_grad=True)
    losses = objective(Prediction(logits, guess), logits, target[:, :1].bool())
    assert torch.autograd.grad(losses["iou"], logits, retain_graph=True, allow_unused=True)[0] is None
    assert torch.autograd.grad(losses["iou"], guess)[0].abs().sum() > 0


@pytest.mark.parametrize("best", [(1, 2, 3), (3, 3, 1)])
def test_what_an_output_learns(best):
    """Half of an object's loss is output 0's; of the guesses the object's own best one takes all but a small share."""
    logits, target = example(rows=3)
    logits = logits.float() * 0.1
    masks = target[:, :1].bool()
    for row, output in enumerate(best):
        logits[row, output] = certain(masks[row, 0]) / 10  # better than noise, not perfect
    guess = torch.rand(3, 4, generator=torch.Generator().manual_seed(1))
    losses = objective(Prediction(logits, guess), logits, masks)
    for name, term in (("focal", focal), ("dice", dice)):
        values = term(logits, target.float())
        expected = []
        for row, output in enumerate(best):
            others = [values[row, o] for o in (1, 2, 3) if o != output]
            guesses = (1 - SHARE_OF_OTHERS) * values[row, output] + SHARE_OF_OTHERS * sum(others) / 2
            expected.append((values[row, 0] + guesses) / 2)
        torch.testing.assert_close(losses[name], torch.stack(expected).mean())
    torch.testing.assert_close(losses["iou"], iou_error(guess, logits, target.float()).mean())
    torch.testing.assert_close(losses["loss"], 20 * losses["focal"] + losses["dice"] + losses["iou"])
    assert WEIGHTS == {"focal": 20.0, "dice": 1.0, "iou": 1.0}


def test_equal_outputs_cost_what_one_does():
    """The shares of an object add up to one, so the loss keeps the scale of the paper's."""
    logits, target = example(outputs=1)
    four = logits.float().expand(-1, 4, -1, -1)
    losses = objective(Prediction(four, torch.zeros(3, 4)), four, target.bool())
    torch.testing.assert_close(losses["dice"], dice(logits, target).mean().float())
    torch.testing.assert_close(losses["focal"], focal(logits, target).mean().float())
