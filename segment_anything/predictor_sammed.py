"""`SammedPredictor`: the predictor as callers of SAM-Med2D know it.

New code is better served by `SamPredictor`. What differs here, so that existing callers get what they got:
  - `multimask_output=True` answers with the best of the three guesses alone: masks (1, H, W).
  - `mask_input` reaches the model as it is. It should hold probabilities: published weights expect the sigmoid of the
    returned logits. Callers who hand in the logits themselves get what they got.
  - Boxes past the edge or without area, points outside the image, and no prompt at all are answered, not refused.
  - Masks are float32, 0 and 1, as callers compute with them.
  - `set_image` hands the channels on as they come ("BGR" turns them round). Published weights want what cv2.imread
    returns, although the original calls it RGB.
  - Masks, clicks and boxes are mapped as the original does it (`protocol="paper"` of `SamPredictor`), and the whole
    picture is looked at, whatever the object (`zoom="never"`).
"""

import numpy as np
import torch
from torch import Tensor

from .frames import SAM_MED2D
from .geometry import PAPER
from .modeling import Prediction, Prompts
from .predictor import ObjectPrompt, PromptError, SamPredictor, Segmenter, StretchToSquare, frame_of
from .zoom import NEVER

__all__ = ["PromptError", "SammedPredictor"]  # callers import the error from here too


class SammedPredictor(SamPredictor):
    needs_prompts = False

    def __init__(self, model: Segmenter) -> None:
        super().__init__(model, PAPER, NEVER)
        self.transform = StretchToSquare(model.image_size, PAPER)  # whatever the frame of the weights

    @property
    def devices(self) -> torch.device:
        return self.device

    def set_image(self, image: np.ndarray, image_format: str = "RGB", encode: bool = True) -> None:
        """image: (H, W, 3), and what else `SamPredictor.set_image` takes. "RGB": reaches the model as it is."""
        turned = {"RGB": "BGR", "BGR": "RGB"} if frame_of(self.model) == SAM_MED2D else {}  # SAM's turns them itself
        super().set_image(image, turned.get(image_format, image_format), encode)

    def predict_torch(
        self,
        point_coords: Tensor | None,
        point_labels: Tensor | None,
        boxes: Tensor | None = None,
        mask_input: Tensor | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        best: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As of `SamPredictor`, but masks are float32, 0 and 1, and multimask_output answers with the best alone."""
        masks, iou, low_res = super().predict_torch(
            point_coords, point_labels, boxes, mask_input, multimask_output, return_logits, best
        )
        return masks.float(), iou, low_res

    def _checked(self, prompt: ObjectPrompt, name: str) -> ObjectPrompt:
        """Any prompt is answered."""
        return prompt

    def decode(
        self, prompts: Prompts, multimask_output: bool, *, refine: bool = True, best: bool = False
    ) -> Prediction:
        return super().decode(prompts, multimask_output, refine=refine, best=best or multimask_output)

    def _probabilities(self, mask_input: Tensor) -> Tensor:
        return mask_input.float()  # logits as well, as they are: so does the original
