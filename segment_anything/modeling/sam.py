"""Sam: the encoder and decoder side together, and the functions that everything else calls:
`Sam.predict` (embeddings + prompts -> prediction), `best_of` (best of K), and `look` and `answer`, which are `encode`
and `predict` with whatever optional parts a model has.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..frames import SAM, SAM_MED2D, check_frame, mask_prompt
from .image_encoder import Adapter, ImageEncoder
from .mask_decoder import MaskDecoder
from .products import Linear
from .prompt_encoder import ABSENT, BACKGROUND, FOREGROUND, PromptEncoder
from .refinement import Refinement, marks_of
from .tuning import choose_trained

# The published SAM-Med2D weights saw BGR images normalised with these RGB figures in this order.
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)

SHAKE = 1.0  # of logits, up and down: how much of an answer stays then says how sure it is


class Prompts(NamedTuple):
    """One row an object, in the S x S frame, x before y.

    points: (N, P, 2) and labels: (N, P), 1 foreground, 0 background, -1 absent
    boxes: (N, 4) x0 y0 x1 y1
    masks: (N, 1, S/4, S/4), what `mask_prompt` of the model makes of logits
    strokes: (N, 2, S, S) bool, pixels drawn on the object and on the background, for the refinement network alone
    """

    points: Tensor | None = None
    labels: Tensor | None = None
    boxes: Tensor | None = None
    masks: Tensor | None = None
    strokes: Tensor | None = None

    def rows(self, index: Tensor) -> "Prompts":
        """The prompts of some objects. index: (M,) int64 or (N,) bool."""
        return Prompts(*(None if p is None else p[index] for p in self))

    def to(self, device: torch.device | str) -> "Prompts":
        return Prompts(*(None if p is None else p.to(device) for p in self))


class Prediction(NamedTuple):
    """logits: (N, K, S/4, S/4), or (N, K, S, S) where they are refined; iou: (N, K), the IoU that the model expects of
    each."""

    logits: Tensor
    iou: Tensor


def low_resolution(logits: Tensor, image_size: int) -> Tensor:
    """Logits that can be fed back: (N, K, S, S), or S/4 as they are -> (N, K, S/4, S/4), means of 4 x 4 pixels."""
    return F.avg_pool2d(logits, 4) if logits.shape[-1] == image_size else logits


class Segmenter(Protocol):
    """What predictors and evaluations need of a model. `Sam` is one; other runtimes offer the same."""

    @property
    def image_size(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    def encode(self, images: Tensor, content: Tensor | None = None) -> Tensor: ...

    def predict(self, embeddings: Tensor, prompts: Prompts, multimask_output: bool) -> Prediction: ...

    def upscale(self, logits: Tensor) -> Tensor: ...


class Chooser(Protocol):
    """A refinement network, as far as choosing between answers goes. choosing: see `ranked`."""

    choosing: Tensor


class Refiner(Segmenter, Protocol):
    """A model with a refinement network: its attribute `refinement` is not None."""

    refinement: Chooser

    def details(self, images: Tensor, content: Tensor | None = None) -> Tensor | None: ...

    def refined(self, details: Tensor, prediction: Prediction, prompts: Prompts) -> Prediction: ...


def refiner_of(model: Segmenter) -> Refiner | None:
    """The model itself, where it has a refinement network."""
    return cast(Refiner, model) if getattr(model, "refinement", None) is not None else None


class Seen(NamedTuple):
    """What the model keeps of pictures, or of the picture of each object.

    embeddings: (B, 256, S/16, S/16); details: (B, C, S/2, S/2), None for a model without a refinement network.
    """

    embeddings: Tensor
    details: Tensor | None = None

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self if part is not None)

    def rows(self, index: Tensor | slice) -> "Seen":
        """index: (M,) int64 or (B,) bool, such as the picture of each object; or a slice."""
        return Seen(self.embeddings[index], None if self.details is None else self.details[index])

    def for_each(self, rows: int) -> "Seen":
        """One picture's, for so many objects of it."""
        embeddings = self.embeddings.expand(rows, -1, -1, -1)
        return Seen(embeddings, None if self.details is None else self.details.expand(rows, -1, -1, -1))


def best_of(prediction: Prediction) -> Prediction:
    """The output with the highest predicted IoU of each object: logits (N, 1, h, w), iou (N, 1)."""
    logits, iou = prediction
    best = iou.argmax(dim=1, keepdim=True)  # gathered: tracing would fix the number of rows of an arange
    return Prediction(logits.gather(1, best[..., None, None].expand(-1, -1, *logits.shape[2:])), iou.gather(1, best))


def agreement(logits: Tensor, points: Tensor, labels: Tensor, enough: float = 1.0) -> Tensor:
    """How far answers say of clicked pixels what the clicks say: the mean probability of that, 1 without clicks.

    logits: (N, K, h, w); points: (N, P, 2) in a frame of S = 4 h; labels: (N, P); enough: the probability from which on
    a click is agreed with wholly -> (N, K).
    """
    height, width = logits.shape[-2:]
    x, y = (points.float() / 4).floor().long().unbind(-1)
    place = y.clamp(0, height - 1) * width + x.clamp(0, width - 1)  # N, P
    at = logits.float().flatten(2).gather(2, place[:, None].expand(-1, logits.shape[1], -1)).sigmoid()
    foreground, background = ((labels == kind).float()[:, None] for kind in (FOREGROUND, BACKGROUND))
    on, off = ((share / enough).clamp(max=1) for share in (at, 1 - at))
    agreed = (on * foreground + off * background).sum(dim=2)
    clicks = (foreground + background).sum(dim=2)
    return torch.where(clicks > 0, agreed / clicks.clamp(min=1), 1.0)


def stability(logits: Tensor) -> Tensor:
    """Which share of an answer stays where logits must exceed 1 in place of -1: (N, K, h, w) -> (N, K)."""
    sure, possible = ((logits.float() > level).flatten(2).sum(dim=2) for level in (SHAKE, -SHAKE))
    return sure / possible.clamp(min=1)


def ranked(prediction: Prediction, prompts: Prompts, choosing: Tensor | None = None) -> Prediction:
    """With the predicted IoU of each output lowered by what the clicks deny, so that another one is chosen.

    prediction: of logits (N, K, S/4, S/4). choosing: (1,), of a refinement network. 1: of objects with a single click,
    which most answers agree with, it is lowered by how unsure the answer is of its pixels (`stability`), and not by how
    sure it is of the click; 0 and None: as of several clicks.
    """
    logits, iou = prediction
    if prompts.points is None or prompts.labels is None:
        return prediction
    agreed = agreement(logits, prompts.points, prompts.labels)
    if choosing is not None:
        by_both = agreement(logits, prompts.points, prompts.labels, enough=0.5) * stability(logits)
        once = (prompts.labels != ABSENT).sum(dim=1, keepdim=True) == 1
        agreed = torch.where(once & (choosing > 0), by_both, agreed)  # nothing is read from the device
    return Prediction(logits, iou * agreed)


def look(model: Segmenter, images: Tensor, content: Tensor | None = None) -> Seen:
    """images as in `Sam.preprocess` -> all that `answer` needs of them.

    Under autocast the encoder alone computes in 16 bits: embeddings are float32, and so is all that follows.
    """
    embeddings, refiner = model.encode(images, content), refiner_of(model)
    if embeddings.dtype in (torch.bfloat16, torch.float16):
        embeddings = embeddings.float()
    with _no_autocast(embeddings.device):
        return Seen(embeddings, refiner.details(images, content) if refiner else None)


def _no_autocast(device: torch.device) -> torch.autocast:
    """For answers: roundings in decoder and refinement moved Dice of objects by up to 3 points, while those of the
    encoder leave its mean where it is (docs/performance.md, "In 16 bits")."""
    return torch.autocast(device.type, enabled=False)


def answer(
    model: Segmenter,
    seen: Seen,
    prompts: Prompts,
    multimask_output: bool,
    *,
    best: bool = False,
    likeness: Callable[[Tensor], float] | None = None,
) -> Prediction:
    """`predict`; ranked and refined where the model has a refinement network and `seen` what it needs.

    seen: of the picture of each object. best: only the output with the highest predicted IoU. likeness: of one object,
    how far a refined output (1, 1, S, S) is what is looked for, 0 to 1; see `_refined_as_needed`.
    """
    with _no_autocast(seen.embeddings.device):
        prediction = model.predict(seen.embeddings, prompts, multimask_output)
        refiner = refiner_of(model)
        if seen.details is None or refiner is None:
            return best_of(prediction) if best else prediction
        prediction = ranked(prediction, prompts, refiner.refinement.choosing)
        if likeness is not None:
            return _refined_as_needed(refiner, seen.details, prediction, prompts, likeness)
        return refiner.refined(seen.details, best_of(prediction) if best else prediction, prompts)


def _refined_as_needed(
    refiner: Refiner, details: Tensor, prediction: Prediction, prompts: Prompts, likeness: Callable[[Tensor], float]
) -> Prediction:
    """One object's outputs for who takes the one with the highest predicted IoU (0 where it is below) times likeness.

    They are refined in falling predicted IoU, until what is left cannot be taken: that is only made as large.
    """
    logits = [*prediction.logits.split(1, dim=1)]
    expected = prediction.iou[0].tolist()
    highest, outputs = -1.0, [*refiner.upscale(prediction.logits).split(1, dim=1)]
    for number in sorted(range(len(expected)), key=lambda number: -expected[number]):
        possible = max(0.0, expected[number])
        if possible < highest:
            break
        one = Prediction(logits[number], prediction.iou[:, number : number + 1])
        outputs[number] = refiner.refined(details, one, prompts).logits
        highest = max(highest, possible * likeness(outputs[number]))
    return Prediction(torch.cat(outputs, dim=1), prediction.iou)


def sure_answers(model: Segmenter, seen: Seen, prompts: Prompts, least_iou: float) -> tuple[Tensor, Tensor]:
    """The decoder's three guesses, of which only those masks come to be that it is sure enough of.

    seen: of the picture of each object -> logits (M, S/4, S/4), object by object, of those whose predicted IoU is at
    least so much; predicted IoU of all (N, 3).
    """
    with _no_autocast(seen.embeddings.device):
        if isinstance(model, Sam):
            return model.predict_sure(seen.embeddings, prompts, least_iou)
        logits, iou = model.predict(seen.embeddings, prompts, True)
        return logits[iou >= least_iou], iou


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
        refinement: Refinement | None = None,
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
        # what encodes in place of the encoder: something that remembers embeddings, which no longer change
        self.remembered: Callable[[Tensor, Tensor | None], Tensor] | None = None
        self.refinement = refinement
        # (lowest, highest) value of a scanner's that became 0 and 255 in the pictures of the training, if one did
        self.window: tuple[float, float] | None = None
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
        if self.remembered is not None:
            return self.remembered(images, content)
        return self.image_encoder(self.prepared(images, content))

    def prepared(self, images: Tensor, content: Tensor | None = None) -> Tensor:
        """images as in `encode` -> what the encoder reads: `preprocess`, after their colours are put in its order.

        Raises ValueError where they have another size: what is no whole frame would be padded without a word.
        """
        if images.shape[1:] != (3, self.image_size, self.image_size):
            size = f"{self.image_size}, {self.image_size}"
            raise ValueError(f"expected images (B, 3, {size}), got {tuple(images.shape)}")
        return self.preprocess(images if self.image_format == "BGR" else images.flip(1), content)

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

    def details(self, images: Tensor, content: Tensor | None = None) -> Tensor | None:
        """images as in `encode` -> what the refinement network keeps of them, (B, C, S/2, S/2), if there is one."""
        return None if self.refinement is None else self.refinement.look(self.prepared(images, content))

    def refined(self, details: Tensor, prediction: Prediction, prompts: Prompts) -> Prediction:
        """Logits (N, K, S/4, S/4) -> (N, K, S, S), by the refinement network, output by output.

        details: of the picture of each object.
        """
        assert self.refinement is not None, "asked of a model that has the part"
        points, labels, boxes, earlier, strokes = prompts
        if earlier is not None and self.frame == SAM:
            earlier = earlier.sigmoid()
        marks = marks_of(self.image_size, len(details), details.device, points, labels, boxes, strokes)
        outputs = [self.refinement(details, logits, earlier, marks) for logits in prediction.logits.split(1, dim=1)]
        return Prediction(torch.cat(outputs, dim=1), prediction.iou)

    def predict(self, embeddings: Tensor, prompts: Prompts, multimask_output: bool | None) -> Prediction:
        """embeddings: (N, 256, h, w), one for each object: `encode(images)[image_index]`; or one for all.

        multimask_output: True for the three guesses, False for the single mask, None for all four
        (the single mask first).
        """
        return Prediction(*self.mask_decoder(*self._read(embeddings, prompts), multimask_output=multimask_output))

    def predict_sure(self, embeddings: Tensor, prompts: Prompts, least_iou: float) -> tuple[Tensor, Tensor]:
        """The three guesses as of `predict`, but only the masks whose predicted IoU is at least so much.

        -> logits (M, S/4, S/4), object by object; predicted IoU of all (N, 3).
        """
        return self.mask_decoder.predict_sure(*self._read(embeddings, prompts), least_iou)

    def _read(self, embeddings: Tensor, prompts: Prompts) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the mask decoder is given: embeddings, their positions, tokens and the dense map of the prompts."""
        points = None
        if prompts.points is not None:
            assert prompts.labels is not None, "points come with labels"
            points = (prompts.points, prompts.labels)
        sparse, dense = self.prompt_encoder(points=points, boxes=prompts.boxes, masks=prompts.masks)
        return embeddings, self.prompt_encoder.get_dense_pe(), sparse, dense

    def upscale(self, logits: Tensor) -> Tensor:
        """logits: (N, K, S/4, S/4) -> float32 (N, K, S, S), bilinear; refined ones are of that size."""
        size = (self.image_size, self.image_size)
        return F.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)

    def for_inference(self, precision: torch.dtype = torch.float32, compiled: bool = False) -> "Sam":
        """Make this model one that answers and learns no more; -> itself.

        precision: of the encoder, whose weights are cast once: float32, bfloat16 or float16; its embeddings stay
        float32, and so does the decoder. Weights are packed once where that is faster (`products.Packed`); those of an
        encoder in bfloat16 then take as much memory as in float32. compiled: by torch.compile, which takes a minute at
        the first picture and again at another batch size. Precision and compiling change answers by rounding alone;
        docs/performance.md says by how much.
        """
        self.eval().requires_grad_(False)
        self.image_encoder.to(precision)
        self._pack(self.mask_decoder)  # the encoder in float32 gains little, and would take twice its memory
        if compiled:
            self.image_encoder.compile(dynamic=False)
        elif precision != torch.float32:
            self._pack(self.image_encoder)
        return self

    @staticmethod
    def _pack(part: nn.Module) -> None:
        for layer in part.modules():
            if isinstance(layer, (Linear, Adapter)):
                layer.pack()

    def train_for(self, tune: str = "adapters", last_blocks: int | None = None) -> list[nn.Parameter]:
        """Decide, for the whole project, what is trained; returns those parameters. See `tuning.choose_trained`.

        tune: a row of the table `tuning.TUNE`: "adapters" (SAM-Med2D; with an encoder that has none only the decoder
        side learns), "decoder" (the paper's FT-SAM), "lora" or "all". Prompt encoder, mask decoder and refinement
        network always learn.
        """
        if self.refinement is not None:
            self.refinement.will_learn()
        return choose_trained(self, tune, last_blocks)
