"""Sam: the encoder and decoder side together, and the two functions that everything else calls:
`Sam.predict` (embeddings + prompts -> prediction) and `best_of` (best of K)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .image_encoder import ImageEncoder
from .mask_decoder import MaskDecoder
from .prompt_encoder import PromptEncoder
from .tuning import choose_trained

# The published SAM-Med2D weights saw BGR images normalised with these RGB figures in this order.
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


class Prompts(NamedTuple):
    """One row an object, in the S x S frame, x before y.

    points: (N, P, 2) and labels: (N, P), 1 foreground, 0 background, -1 absent
    boxes: (N, 4) x0 y0 x1 y1
    masks: (N, 1, S/4, S/4) probabilities (SAM itself feeds logits; SAM-Med2D's weights expect the sigmoid)
    """

    points: Tensor | None = None
    labels: Tensor | None = None
    boxes: Tensor | None = None
    masks: Tensor | None = None

    def rows(self, index: Tensor) -> "Prompts":
        """The prompts of some objects. index: (M,) int64 or (N,) bool."""
        return Prompts(*(None if p is None else p[index] for p in self))

    def to(self, device: torch.device | str) -> "Prompts":
        return Prompts(*(None if p is None else p.to(device) for p in self))


class Prediction(NamedTuple):
    """logits: (N, K, S/4, S/4); iou: (N, K), the IoU that the model expects of each."""

    logits: Tensor
    iou: Tensor


def best_of(prediction: Prediction) -> Prediction:
    """The output with the highest predicted IoU of each object: logits (N, 1, h, w), iou (N, 1)."""
    logits, iou = prediction
    best = iou.argmax(dim=1, keepdim=True)  # gathered: tracing would fix the number of rows of an arange
    return Prediction(logits.gather(1, best[..., None, None].expand(-1, -1, *logits.shape[2:])), iou.gather(1, best))


def normalised(images: Tensor, content: Tensor | None, mean: Tensor, std: Tensor) -> Tensor:
    """As `Sam.preprocess`, for whoever has no Sam. mean, std: (3, 1, 1)."""
    values = (images.float() - mean) / std
    if content is None:
        return values
    position = torch.arange(images.shape[-1], device=images.device)
    top, left, height, width = (side.unsqueeze(1) for side in content.unbind(1))
    inside_y = (position >= top) & (position < top + height)
    inside_x = (position >= left) & (position < left + width)
    return values * (inside_y.unsqueeze(2) & inside_x.unsqueeze(1)).unsqueeze(1)


class Sam(nn.Module):
    """The whole model: image encoder, prompt encoder and mask decoder, under SAM's names."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, image_encoder: ImageEncoder, prompt_encoder: PromptEncoder, mask_decoder: MaskDecoder) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder
        self.register_buffer("pixel_mean", torch.tensor(PIXEL_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(PIXEL_STD).view(3, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    @property
    def image_size(self) -> int:
        return self.image_encoder.img_size

    def preprocess(self, images: Tensor, content: Tensor | None = None) -> Tensor:
        """images: (B, 3, S, S), 0..255, BGR -> normalised float32.

        content: (B, 4) int, top, left, height, width of the picture in its frame; what lies outside is padding,
        which is zero after normalisation. None: the pictures fill their frames.
        """
        return normalised(images, content, self.pixel_mean, self.pixel_std)

    def encode(self, images: Tensor, content: Tensor | None = None) -> Tensor:
        """images as in `preprocess` -> embeddings (B, 256, S / 16, S / 16)."""
        return self.image_encoder(self.preprocess(images, content))

    def predict(self, embeddings: Tensor, prompts: Prompts, multimask_output: bool | None) -> Prediction:
        """embeddings: (N, 256, h, w), one for each object: `encode(images)[image_index]`.

        multimask_output: True for the three guesses, False for the single mask, None for all four
        (the single mask first).
        """
        points = None
        if prompts.points is not None:
            assert prompts.labels is not None, "points come with labels"
            points = (prompts.points, prompts.labels)
        sparse, dense = self.prompt_encoder(points=points, boxes=prompts.boxes, masks=prompts.masks)
        return Prediction(
            *self.mask_decoder(
                image_embeddings=embeddings,
                image_pe=self.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=multimask_output,
            )
        )

    def upscale(self, logits: Tensor) -> Tensor:
        """logits: (N, K, S/4, S/4) -> float32 (N, K, S, S), bilinear."""
        size = (self.image_size, self.image_size)
        return F.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)

    def train_for(self, tune: str = "adapters", last_blocks: int | None = None) -> list[nn.Parameter]:
        """Decide, for the whole project, what is trained; returns those parameters. See `tuning.choose_trained`.

        tune: a row of the table `tuning.TUNE`: "adapters" (SAM-Med2D; with an encoder that has none only the decoder
        side learns), "decoder" (the paper's FT-SAM), "lora" or "all". The prompt encoder and the mask decoder always
        learn.
        """
        return choose_trained(self, tune, last_blocks)
