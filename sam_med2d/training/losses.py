"""The loss: `objective` weighs and averages three terms, which it has from `pixels.pixel_terms` in one pass.

`focal`, `dice` and `iou_error` are their definitions, one value an object and output: for losses of one's own, for soft
masks, and as what that pass is tested against.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sam_med2d.evaluation.metrics import iou
from sam_med2d.training.pixels import ALPHA, SMOOTH, PixelTerms, pixel_terms
from segment_anything import ABSENT, MULTIPLE, Prediction, Prompts
from segment_anything.modeling.refinement import gaussians

WEIGHTS = {"focal": 20.0, "dice": 1.0, "iou": 1.0}  # SAM paper, appendix A, "Losses"; SAM-Med2D paper, 3.3

# Of the three guesses the best one learns from an object, and the others a little: a guess that is never the
# best would otherwise never learn (relaxed winner-takes-all, Rupprecht et al. 2017, eq. 11).
SHARE_OF_OTHERS = 0.1

RANK_TEMPERATURE = 0.1  # of IoU

# Around a click a pixel of the refined logits counts more: there a person looks whether it was heard.
NEAR_CLICKS, NEAR_SIGMA = 4.0, 6.0  # how much more at the click itself, and the pixels that it reaches


def focal(logits: Tensor, target: Tensor, gamma: float = 2.0, alpha: float = ALPHA) -> Tensor:
    """Mean over pixels (Lin et al. 2017, eq. 5). logits, target: (N, K, H, W) float -> (N, K)."""
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    missing = 1 - torch.exp(-cross_entropy)  # 1 - p of the true class
    weight = (2 * alpha - 1) * target + (1 - alpha)  # alpha on the object, 1 - alpha off it
    return (weight * missing**gamma * cross_entropy).mean(dim=(2, 3))


def dice(logits: Tensor, target: Tensor, smooth: float = SMOOTH) -> Tensor:
    """1 - soft Dice (Milletari et al. 2016, eq. 2, with plain sums below). (N, K, H, W) float -> (N, K)."""
    probability = logits.sigmoid()
    overlap = (probability * target).sum(dim=(2, 3))
    size = probability.sum(dim=(2, 3)) + target.sum(dim=(2, 3))
    return 1 - (2 * overlap + smooth) / (size + smooth)


def refinement_loss(logits: Tensor, masks: Tensor, prompts: Prompts) -> Tensor:
    """Cross-entropy, weighted around clicks, plus Dice of the refined logits, a scalar.

    logits: (N, 1, S, S); masks: (N, 1, S, S) bool.
    """
    logits, target = logits.float(), masks.float()
    weight = torch.ones_like(target)
    if prompts.points is not None and prompts.labels is not None:
        near = gaussians(prompts.points, prompts.labels != ABSENT, NEAR_SIGMA, masks.shape[-1], 1)
        weight = weight + NEAR_CLICKS * near[:, None]
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (weight * cross_entropy).mean() + dice(logits, target).mean()


def iou_error(predicted_iou: Tensor, logits: Tensor, target: Tensor) -> Tensor:
    """Squared error of the predicted IoU. predicted_iou: (N, K); logits, target: (N, K, H, W) -> (N, K)."""
    return (predicted_iou.float() - iou(logits.detach(), target, from_logits=True)) ** 2


def ranking(predicted_iou: Tensor, true_iou: Tensor) -> Tensor:
    """Cross-entropy between which guess is predicted to be the best and which is: (N, K) both -> (N,).

    Both as softmax at RANK_TEMPERATURE (ListNet's loss, Cao et al. 2007): guesses that are nearly alike need no order.
    """
    wanted = (true_iou / RANK_TEMPERATURE).softmax(dim=1)
    return -(wanted * (predicted_iou.float() / RANK_TEMPERATURE).log_softmax(dim=1)).sum(dim=1)


def weighed(terms: dict[str, Tensor]) -> Tensor:
    """The sum of the terms "focal", "dice" and "iou", each with its weight of WEIGHTS."""
    focal_part, dice_part, iou_part = (WEIGHTS[name] * terms[name] for name in WEIGHTS)
    return focal_part + dice_part + iou_part


def objective(prediction: Prediction, logits: Tensor, masks: Tensor, rank_weight: float = 0.0) -> dict[str, Tensor]:
    """What training lowers, averaged over objects.

    prediction: all four outputs of N objects; logits: (N, 4, S, S), the same enlarged to the masks' size;
    masks: (N, 1, S, S) bool. -> scalars: "loss" and its unweighted terms "focal", "dice", "iou"; with a rank_weight
    above 0 also "rank", the `ranking` of the guesses.

    Output 0 learns from every object; of outputs 1..3 the best one, see SHARE_OF_OTHERS. Every predicted IoU
    learns, since it is what chooses between them.
    """
    found = pixel_terms(logits.float(), masks)
    terms = averaged(found, prediction.iou)
    loss = weighed(terms)
    if rank_weight:
        terms["rank"] = ranking(prediction.iou[:, MULTIPLE], found.iou[:, MULTIPLE]).mean()
        loss = loss + rank_weight * terms["rank"]
    return {"loss": loss, **terms}


def averaged(found: PixelTerms, predicted_iou: Tensor) -> dict[str, Tensor]:
    """The unweighted terms "focal", "dice" and "iou" of N objects as scalars, each output with its `output_shares`.

    found: of the four outputs; predicted_iou: (N, 4).
    """
    share = output_shares((WEIGHTS["focal"] * found.focal + WEIGHTS["dice"] * found.dice).detach())
    return {
        "focal": (share * found.focal).sum(dim=1).mean(),
        "dice": (share * found.dice).sum(dim=1).mean(),
        "iou": ((predicted_iou.float() - found.iou) ** 2).mean(),
    }


def output_shares(cost: Tensor) -> Tensor:
    """How much each output learns from an object. cost: (N, 4) -> (N, 4): half to output 0, half to the guesses."""
    guesses = cost.shape[1] - 1
    share = torch.full_like(cost, SHARE_OF_OTHERS / (guesses - 1))
    share.scatter_(1, 1 + cost[:, 1:].argmin(dim=1, keepdim=True), 1 - SHARE_OF_OTHERS)
    share[:, 0] = 1.0
    return share / 2
