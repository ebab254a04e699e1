"""`SammedPredictor`: the predictor as callers of SAM-Med2D know it.

New code is better served by `SamPredictor`. What differs here, so that existing callers get what they got:
  - `multimask_output=True` answers with the best of the three guesses alone: masks (1, H, W).
  - `mask_input` holds probabilities: callers apply the sigmoid to the returned logits themselves.
  - `set_image` hands the channels on as they come ("BGR" turns them round). Published weights want what cv2.imread
    returns, although the original calls it RGB.
  - Masks, clicks and boxes are mapped as the original does it (`protocol="paper"` of `SamPredictor`), and the whole
    picture is looked at, whatever the object (`zoom="never"`).
"""

import numpy as np
import torch
from torch import Tensor

from .errors import PromptError
from .geometry import PAPER
from .modeling import Prediction, Prompts, best_of
from .predictor import SamPredictor, Segmenter
from .zoom import NEVER


class SammedPredictor(SamPredictor):
    def __init__(self, model: Segmenter) -> None:
        super().__init__(model, PAPER, NEVER)

    @property
    def devices(self) -> torch.device:
        return self.device

    def set_image(self, image: np.ndarray, image_format: str = "RGB", encode: bool = True) -> None:
        """image: (H, W, 3), and what else `SamPredictor.set_image` takes. "RGB": reaches the model as it is."""
        turned = {"RGB": "BGR", "BGR": "RGB"}
        super().set_image(image, turned.get(image_format, image_format), encode)

    def decode(self, prompts: Prompts, multimask_output: bool, *, refine: bool = True) -> Prediction:
        prediction = super().decode(prompts, multimask_output, refine=refine)
        return best_of(prediction) if multimask_output else prediction

    def _probabilities(self, mask_input: Tensor) -> Tensor:
        if mask_input.numel() and not (mask_input.min() >= 0 and mask_input.max() <= 1):
            raise PromptError(
                "mask_input holds values outside 0 to 1; apply the sigmoid to the logits that predict returned"
            )
        return mask_input.float()
