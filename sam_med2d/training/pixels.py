"""The terms of the loss that look at every pixel, all in one pass: the values, and their slopes while the pixels are at
hand. `losses.focal`, `losses.dice` and `metrics.iou` define them; the numbers are the same but for rounding.

Autograd would write a map of the masks' full size for each operation, read again from memory by the next one.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

ALPHA = 0.25  # of the focal loss, whose gamma is 2 here
SMOOTH = 1.0  # of the Dice loss


class PixelTerms(NamedTuple):
    """One value an object and output, (N, K): the focal loss, the Dice loss, and the IoU of the thresholded mask, which
    has no gradient."""

    focal: Tensor
    dice: Tensor
    iou: Tensor


def pixel_terms(logits: Tensor, masks: Tensor) -> PixelTerms:
    """logits: (N, K, H, W) float; masks: (N, 1, H, W) bool."""
    return PixelTerms(*_PixelTerms.apply(logits, masks))


def _parts(maps: Tensor, *others: Tensor) -> zip:
    """On a CPU object by object, whose maps then stay in its cache; elsewhere all objects at once."""
    rows = 1 if maps.device.type == "cpu" else max(1, len(maps))
    return zip(*(each.split(rows) for each in (maps, *others)))


class _PixelTerms(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        slopes, steepness = torch.empty_like(logits), torch.empty_like(logits)
        sums = [_sums(*part) for part in _parts(logits, masks.to(logits.dtype), slopes, steepness)]
        focal, overlap, size, hit, union = (torch.cat(each) for each in zip(*sums))
        ctx.save_for_backward(masks, slopes, steepness, overlap, size)
        iou = torch.where(union > 0, hit / union.clamp(min=1), 1.0)
        ctx.mark_non_differentiable(iou)
        return focal / masks[0].numel(), 1 - (2 * overlap + SMOOTH) / (size + SMOOTH), iou

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_focal: Tensor, of_dice: Tensor, _: Tensor) -> tuple[Tensor, None]:
        masks, slopes, steepness, overlap, size = ctx.saved_tensors
        everywhere = of_dice * (2 * overlap + SMOOTH) / (size + SMOOTH) ** 2
        on_object = -2 * of_dice / (size + SMOOTH)
        weights = (each[..., None, None] for each in (of_focal / masks[0].numel(), everywhere, on_object))
        gradient = torch.empty_like(slopes)
        for out, slope, steep, target, focal, all_over, inside in _parts(
            gradient, slopes, steepness, masks.to(slopes.dtype), *weights
        ):
            torch.mul(slope, focal, out=out).addcmul_(steep, torch.addcmul(all_over, inside, target))
        return gradient, None


def _sums(logits: Tensor, target: Tensor, slopes: Tensor, steepness: Tensor) -> tuple[Tensor, ...]:
    """Over the pixels of some objects, (n, K) each: the focal loss; overlap and size of Dice; the pixels of overlap and
    union of the thresholded mask.

    slopes: where the derivative of the focal loss by each logit is written; steepness: that of the probability.
    """
    over = (-2, -1)
    away = 1 - 2 * target  # where a logit should go: its sign the other way round
    wrong = torch.sigmoid(logits * away)  # the probability that is missing to the true class
    right = 1 - wrong
    cross_entropy = F.softplus(logits * away)
    weighed = (wrong * wrong).mul_((1 - ALPHA) * away.clamp(min=0) - ALPHA * away.clamp(max=0))
    focal = (weighed * cross_entropy).sum(dim=over)
    torch.mul(cross_entropy.mul_(right).mul_(2).add_(wrong), weighed.mul_(away), out=slopes)
    torch.mul(wrong, right, out=steepness)

    area = target.sum(dim=over)
    lost = (wrong * target).sum(dim=over)
    found = wrong.sum(dim=over) - lost  # off the object
    predicted = (logits > 0).to(target.dtype)
    hit = (predicted * target).sum(dim=over)
    union = predicted.sum(dim=over) + area - hit
    return focal, area - lost, area - lost + found + area, hit, union
