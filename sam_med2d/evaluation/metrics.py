"""Dice and IoU, one value an object.

Masks are (..., H, W); the metric is taken over the last two dimensions and the others are kept. Predictions
come either as logits (a pixel is foreground where its logit is above 0, that is where its probability is above
0.5) or as booleans; callers say which, nothing is guessed from the values.

Empty masks: where truth and prediction are both empty, Dice and IoU are 1; where only one is empty, they are 0.

A function with `@metric` is computed for every object and mode; `columns.py` has a row of its name.
"""

from collections.abc import Callable

import torch
from torch import Tensor

MaskMetric = Callable[..., Tensor]  # (predicted, truth, *, from_logits), as dice

METRICS: dict[str, MaskMetric] = {}


def metric(function: MaskMetric) -> MaskMetric:
    """Adds a function to METRICS, by its name."""
    METRICS[function.__name__] = function
    return function


def binarise(predicted: Tensor, *, from_logits: bool) -> Tensor:
    """-> bool, the same shape."""
    if from_logits:
        return predicted > 0
    if predicted.dtype != torch.bool:
        raise TypeError(f"expected a bool mask, got {predicted.dtype}: threshold it, or say from_logits=True")
    return predicted


@metric
def dice(predicted: Tensor, truth: Tensor, *, from_logits: bool) -> Tensor:
    """2 |P and T| / (|P| + |T|). predicted, truth: (..., H, W), truth 0/1 or bool -> (...) float32."""
    overlap, predicted_area, true_area = _areas(predicted, truth, from_logits)
    return _ratio(2 * overlap, predicted_area + true_area)


@metric
def iou(predicted: Tensor, truth: Tensor, *, from_logits: bool) -> Tensor:
    """|P and T| / |P or T|. predicted, truth: (..., H, W), truth 0/1 or bool -> (...) float32."""
    overlap, predicted_area, true_area = _areas(predicted, truth, from_logits)
    return _ratio(overlap, predicted_area + true_area - overlap)


def metrics_of_nothing() -> dict[str, float]:
    """Of each metric its value for an object for which nothing was predicted."""
    nothing, something = torch.zeros(1, 1, dtype=torch.bool), torch.ones(1, 1, dtype=torch.bool)
    return {name: float(function(nothing, something, from_logits=False)) for name, function in METRICS.items()}


def _areas(predicted: Tensor, truth: Tensor, from_logits: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels of the overlap, of the prediction and of the truth."""
    predicted, truth = binarise(predicted, from_logits=from_logits), truth.bool()
    overlap, predicted_area, true_area = (mask.sum(dim=(-2, -1)) for mask in (predicted & truth, predicted, truth))
    return overlap, predicted_area, true_area


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    return torch.where(whole > 0, part / whole.clamp(min=1), 1.0)
