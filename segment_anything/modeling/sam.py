"""Sam: the encoder and decoder side together, and the two functions that everything else calls:
`Sam.predict` (embeddings + prompts -> prediction) and `best_of` (best of K)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..frames import SAM, SAM_MED2D, check_frame, mask_prompt
from .image_encoder import ImageEncoder
from .mask_decoder import MaskDecoder
from .prompt_encoder import PromptEncoder

# The published SAM-Med2D weights saw BGR images normalised with these RGB figures in this order.
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


class Prompts(NamedTuple):
    """One row an object, in the S x S frame, x before y.

    points: (N, P, 2) and labels: (N, P), 1 foreground, 0 background, -1 absent
    boxes: (N, 4) x0 y0 x1 y1
    masks: (N, 1, S/4, S/4), what `mask_prompt` of the model makes of logits
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

    mask_threshold = 0.0  # of the logits
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        image_encoder: ImageEncoder,
        prompt_encoder: PromptEncoder,
        mask_decoder: MaskDecoder,
        pixel_mean: Sequence[float] = PIXEL_MEAN,
        pixel_std: Sequence[float] = PIXEL_STD,
        frame: str | None = None,
    ) -> None:
        """pixel_mean, pixel_std: of the channels in the order of the frame, of values 0..255.

        frame: how pictures reach the model, one of segment_anything.frames.FRAMES; None: SAM-Med2D's with adapters,
        SAM's without. Raises ValueError: it is none of them.
        """
        super().__init__()
        self.frame = check_frame(frame or (SAM_MED2D if image_encoder.adapters() else SAM))
        self.image_encoder = image_encoder
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(3, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    @property
    def image_size(self) -> int:
        return self.image_encoder.img_size

    @property
    def image_format(self) -> str:
        """The order of colours that `preprocess` and `image_encoder` take: "RGB" in SAM's frame, else "BGR"."""
        return "RGB" if self.frame == SAM else "BGR"

    def preprocess(self, images: Tensor, content: Tensor | None = None) -> Tensor:
        """images: (B, 3, h, w) or (3, h, w), 0..255, colours as in `image_format` -> normalised float32, padded with
        zeros at the right and below to S x S.

        content: (B, 4) int, top, left, height, width of the picture in its frame; what lies outside is padding,
        which is zero after normalisation. None: the pictures fill what is given.
        """
        height, width = images.shape[-2:]
        values = normalised(images, content, self.pixel_mean, self.pixel_std)
        if max(height, width) > self.image_size:
            raise ValueError(f"images of {height} x {width} pixels do not fit the model's {self.image_size}")
        return F.pad(values, (0, self.image_size - width, 0, self.image_size - height))

    def encode(self, images: Tensor, content: Tensor | None = None) -> Tensor:
        """images: (B, 3, S, S), 0..255, BGR in every frame; content as in `preprocess` -> embeddings
        (B, 256, S / 16, S / 16)."""
        ordered = images if self.image_format == "BGR" else images.flip(1)
        return self.image_encoder(self.preprocess(ordered, content))

    def mask_prompt(self, logits: Tensor) -> Tensor:
        """The logits of an earlier prediction -> float32, what goes into `Prompts.masks`: in SAM's frame the logits
        themselves, else probabilities."""
        return mask_prompt(self.frame, logits)

    @torch.no_grad()
    def forward(self, batched_input: Sequence[dict[str, Any]], multimask_output: bool) -> list[dict[str, Tensor]]:
        """Whole pictures with their prompts, as SAM's own model takes them.

        batched_input: for each picture a dictionary. image: (3, h, w), in the frame, colours as in `image_format`;
        original_size: (height, width); any of point_coords (N, P, 2) with point_labels (N, P), boxes (N, 4), in
        coordinates of the frame, and mask_inputs (N, 1, S/4, S/4), see `mask_prompt`.
        -> for each a dictionary: masks (N, K, *original_size) bool, iou_predictions (N, K), low_res_logits
        (N, K, S/4, S/4).
        """
        embeddings = self.image_encoder(torch.stack([self.preprocess(one["image"]) for one in batched_input]))
        answers = []
        for one, embedding in zip(batched_input, embeddings):
            prompts = Prompts(*(one.get(name) for name in ("point_coords", "point_labels", "boxes", "mask_inputs")))
            logits, iou = self.predict(embedding.unsqueeze(0), prompts, multimask_output)
            masks = self.postprocess_masks(logits, one["image"].shape[-2:], one["original_size"])
            answers.append({"masks": masks > self.mask_threshold, "iou_predictions": iou, "low_res_logits": logits})
        return answers

    def postprocess_masks(self, masks: Tensor, input_size: tuple[int, int], original_size: tuple[int, int]) -> Tensor:
        """Logits (N, K, S/4, S/4) -> (N, K, *original_size), bilinear. input_size: (height, width) of the picture in
        the frame, whose padding falls away."""
        inside = self.upscale(masks)[..., : input_size[0], : input_size[1]]
        return F.interpolate(inside, tuple(original_size), mode="bilinear", align_corners=False)

    def predict(self, embeddings: Tensor, prompts: Prompts, multimask_output: bool | None) -> Prediction:
        """embeddings: (N, 256, h, w), one for each object: `encode(images)[image_index]`; or one for all.

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

    def train_for(self, encoder: str = "adapters") -> list[nn.Parameter]:
        """Decide, for the whole project, what is trained; returns those parameters.

        encoder: "adapters" (SAM-Med2D; with an encoder that has none this is the paper's FT-SAM: only the decoder
        side learns) or "all" (pretraining). The prompt encoder and the mask decoder always learn.
        """
        if encoder not in ("adapters", "all"):
            raise ValueError(f"encoder must be 'adapters' or 'all', not {encoder!r}")
        self.requires_grad_(True)
        if encoder == "adapters":
            self.image_encoder.requires_grad_(False)
            for adapter in self.image_encoder.adapters():
                adapter.requires_grad_(True)
        return [p for p in self.parameters() if p.requires_grad]
