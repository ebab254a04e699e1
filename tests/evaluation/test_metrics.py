"""Dice and IoU against the textbook, and at its edges."""

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, jaccard_score

from sam_med2d.evaluation.metrics import METRICS, binarise, dice, iou


def masks(*shape: int, seed: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < 0.4


@pytest.mark.parametrize("shape", [(), (1,), (5,), (3, 2), (2, 1, 3)])
def test_dice_and_iou_are_the_textbooks(shape):
    predicted, truth = masks(*shape, 7, 11, seed=1), masks(*shape, 7, 11, seed=2)
    got_dice, got_iou = (METRICS[name](predicted, truth, from_logits=False) for name in ("dice", "iou"))
    assert got_dice.shape == got_iou.shape == shape
    for place in np.ndindex(shape):
        p, t = ({(y, x) for y, x in mask[place].nonzero().tolist()} for mask in (predicted, truth))
        assert got_dice[place].item() == pytest.approx(2 * len(p & t) / (len(p) + len(t)))
        assert got_iou[place].item() == pytest.approx(len(p & t) / len(p | t))


@pytest.mark.parametrize("density", [0.0, 0.003, 0.5, 1.0])
def test_dice_and_iou_are_scikit_learns(density):
    """Which knows them as F1 and Jaccard scores of pixels; with its answer to 0 / 0 set to ours."""
    draw = torch.Generator().manual_seed(0)
    predicted, truth = (torch.rand(20, 13, 17, generator=draw) < d for d in (density, max(density, 0.003)))
    for metric, theirs in ((dice, f1_score), (iou, jaccard_score)):
        expected = [theirs(t.flatten(), p.flatten(), zero_division=1.0) for p, t in zip(predicted, truth)]
        assert metric(predicted, truth, from_logits=False).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("predicted, truth, value", [(0, 0, 1), (1, 0, 0), (0, 1, 0), (1, 1, 1)])
@pytest.mark.parametrize("metric", [dice, iou])
def test_empty_masks(metric, predicted, truth, value):
    """Both empty: 1; one empty: 0. A neighbour in the batch changes nothing."""
    predicted, truth = (torch.stack([torch.full((4, 4), bool(v)), masks(4, 4, seed=3)]) for v in (predicted, truth))
    assert metric(predicted, truth, from_logits=False).tolist() == [value, 1]


@pytest.mark.parametrize("metric", [dice, iou])
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32])
def test_truth_may_be_bool_or_numbers(metric, dtype):
    predicted, truth = masks(3, 5, 5, seed=1), masks(3, 5, 5, seed=2)
    assert torch.equal(
        metric(predicted, truth.to(dtype), from_logits=False), metric(predicted, truth, from_logits=False)
    )


def test_logits_are_cut_above_zero():
    logits = torch.tensor([[-1.0, -1e-30, 0.0, 1e-30, 0.4]])
    assert binarise(logits, from_logits=True).tolist() == [[False, False, False, True, True]]
    truth = torch.tensor([[False, False, False, True, True]])
    assert dice(logits, truth, from_logits=True) == iou(logits, truth, from_logits=True) == 1


@pytest.mark.parametrize("metric", [dice, iou])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_nothing_is_guessed_from_numbers(metric, dtype):
    with pytest.raises(TypeError, match="from_logits"):
        metric(masks(4, 4, seed=1).to(dtype), masks(4, 4, seed=2), from_logits=False)
