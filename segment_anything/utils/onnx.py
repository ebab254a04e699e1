"""`SamOnnxModel`: prompt encoder, mask decoder and enlarging, as SAM's ONNX clients call them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..automatic_mask_generator import stability_score
from ..modeling import Prediction, Sam

STABILITY_OFFSET = 1.0  # in logits; SAM's


class SamOnnxModel(nn.Module):
    """The decoder's side of a model, for one picture whose longest side was scaled to S.

    Clients append a padding point where there is no box; nothing is added to or taken from the points here. Trace
    `forward` with torch.onnx.export. (`sam-med2d export` writes graphs that more clients take.)
    """

    def __init__(
        self,
        model: Sam,
        return_single_mask: bool,
        use_stability_score: bool = False,
        return_extra_metrics: bool = False,
    ) -> None:
        """return_single_mask: the mask that SAM's rule selects: output 0 where there are more than two points (a
        padding point counts), else the best of outputs 1 to 3. use_stability_score: in place of the predicted IoU.
        """
        super().__init__()
        self.model, self.mask_decoder, self.img_size = model, model.mask_decoder, model.image_size
        self.mask_threshold = model.mask_threshold
        self.return_single_mask = return_single_mask
        self.use_stability_score = use_stability_score
        self.return_extra_metrics = return_extra_metrics

    @staticmethod
    def resize_longest_image_size(input_image_size: Tensor, longest_side: int) -> Tensor:
        """(height, width) as a tensor -> the same scaled to the longest side, int64."""
        size = input_image_size.to(torch.float32)
        return torch.floor(longest_side / size.max() * size + 0.5).to(torch.int64)

    @torch.no_grad()
    def forward(
        self,
        image_embeddings: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask_input: Tensor,
        orig_im_size: Tensor,
    ) -> tuple[Tensor, ...]:
        """image_embeddings: (1, 256, S/16, S/16); point_coords: (N, P, 2) in the frame; point_labels: (N, P) float, 2
        and 3 the corners of a box, -1 padding; mask_input: (1, 1, S/4, S/4) as `Sam.mask_prompt` makes it;
        has_mask_input: (1,); orig_im_size: (2,) float, height and width.
        -> masks (N, K, H, W), iou_predictions (N, K), low_res_masks (N, K, S/4, S/4), all logits; with
        return_extra_metrics masks, scores, stability_scores, areas, low_res_masks."""
        encoder = self.model.prompt_encoder
        tokens = encoder._embed_points(point_coords, point_labels)
        has = has_mask_input.reshape(-1, 1, 1, 1).float()
        dense = has * encoder.mask_downscaling(mask_input) + (1 - has) * encoder.no_mask_embed.weight.reshape(
            1, -1, 1, 1
        )
        low_res, scores = self.mask_decoder.predict_masks(image_embeddings, encoder.get_dense_pe(), tokens, dense)
        if self.use_stability_score:
            scores = self._stability(low_res)
        if self.return_single_mask:
            low_res, scores = self.select_masks(low_res, scores, point_coords.shape[1])
        masks = self.mask_postprocessing(low_res, orig_im_size)
        if self.return_extra_metrics:
            areas = (masks > self.mask_threshold).sum(dim=(-2, -1))
            return masks, scores, self._stability(masks), areas, low_res
        return masks, scores, low_res

    def select_masks(self, masks: Tensor, iou_preds: Tensor, num_points: int) -> Prediction:
        """Of all outputs (N, 4, ...) the one that SAM's rule selects: (N, 1, ...)."""
        # a large weight decides between output 0 and the others before the predicted IoU does
        prefer_first = torch.tensor([[1000.0] + [0.0] * (masks.shape[1] - 1)], device=iou_preds.device)
        best = (iou_preds + (num_points - 2.5) * prefer_first).argmax(dim=1, keepdim=True)
        chosen = best[..., None, None].expand(-1, -1, *masks.shape[2:])
        return Prediction(masks.gather(1, chosen), iou_preds.gather(1, best))

    def mask_postprocessing(self, masks: Tensor, orig_im_size: Tensor) -> Tensor:
        """Logits (N, K, S/4, S/4) -> (N, K, *orig_im_size), without the padding."""
        frame = (self.img_size, self.img_size)
        masks = F.interpolate(masks, size=frame, mode="bilinear", align_corners=False)
        height, width = self.resize_longest_image_size(orig_im_size, self.img_size)
        masks = masks[..., :height, :width]
        rows, columns = orig_im_size.to(torch.int64)
        return F.interpolate(masks, size=(rows, columns), mode="bilinear", align_corners=False)

    def _stability(self, logits: Tensor) -> Tensor:
        return stability_of(logits - self.mask_threshold)


def stability_of(logits: Tensor) -> Tensor:
    """(N, K, h, w) -> (N, K): the IoU of the masks that a higher and a lower threshold give."""
    return stability_score(logits.flatten(0, 1), STABILITY_OFFSET).reshape(logits.shape[:2])
