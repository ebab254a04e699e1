"""--recipe paper: what SAM-Med2D's public training code does otherwise than the paper says or this code does, so that
the two can be compared. Nothing here is meant for models that are to be used.

- Dice and the IoU that the model learns to expect are pooled over the objects of a batch, which lets a large object
  hide a small one; only the answer with the highest predicted IoU learns, output 0 never (`pooled_objective`).
- Every object of a batch starts from a box, or every one from a click (`Recipe.coin_a_batch`).
- The prompt encoder never learns, neither its points nor its mask branch; a new adapter starts at random behind a
  LayerNorm of scale one, so that the first step meets an encoder whose features are gone (`begin_as_published`).
"""

from torch import Tensor, nn

from sam_med2d.training.losses import weighed
from sam_med2d.training.pixels import pixel_terms
from segment_anything import MULTIPLE, Prediction, Sam, best_of
from segment_anything.modeling.image_encoder import Adapter

RECIPES = ("ours", "paper")


def pooled_objective(prediction: Prediction, logits: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """A loss as --loss takes it. prediction: all four outputs; logits: (N, 4, S, S); masks: (N, 1, S, S) bool."""
    chosen = best_of(Prediction(logits[:, MULTIPLE].float(), prediction.iou[:, MULTIPLE].float()))
    pooled, target = (  # one tall picture of all objects
        pixels.reshape(1, 1, -1, pixels.shape[-1]) for pixels in (chosen.logits, masks)
    )
    found = pixel_terms(pooled, target)
    terms = {
        "focal": found.focal.mean(),
        "dice": found.dice.mean(),
        "iou": ((chosen.iou - found.iou) ** 2).mean(),
    }
    return {"loss": weighed(terms), **terms}


def begin_as_published(model: Sam) -> None:
    """Freeze the prompt encoder, and let adapters that add nothing yet, which are new, add what they are at random."""
    model.prompt_encoder.requires_grad_(False)
    for layer in model.modules():
        if isinstance(layer, Adapter) and not layer.norm.weight.any():
            nn.init.ones_(layer.norm.weight)
