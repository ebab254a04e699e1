"""One pass over a test set: each image is encoded once, then decoded for every object and prompt mode (`modes.py`).

Scores are taken at the original resolution. Every draw depends on the seed, the mode and the mask's file name alone.
"""

import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sam_med2d.data.datasets import Batch
from sam_med2d.evaluation.metrics import METRICS
from sam_med2d.prompts.clicks import (
    boxes_of,
    central_clicks,
    clicks_on,
    corrective_clicks,
    jitter_boxes,
    join_clicks,
    one_shot_clicks,
)
from sam_med2d.prompts.modes import Mode
from sam_med2d.utils import amp_dtype, seed_of
from segment_anything import Prediction, Prompts, Sam, best_of

PIXELS_AT_ONCE = 2**24  # of masks worked on together, 256 objects at 256 px (about 2 GB), however many an image has
CLICK_STRATEGIES = ("random", "center")


class Annotator(Protocol):
    """Who answers for some objects, masks (N, 1, S, S) bool with their names: drawn, or read from a file."""

    def start(self, mode: Mode, masks: Tensor, names: list[str]) -> Prompts:
        """What an object's sequence starts from."""

    def correct(
        self, mode: Mode, number: int, masks: Tensor, predicted: Tensor, names: list[str]
    ) -> tuple[Tensor, Tensor]:
        """The click that follows `number` clicks. predicted: (N, 1, S, S) bool -> points (N, 1, 2), labels (N, 1)."""


class SimulatedAnnotator:
    """Draws from the true masks. strategy: of iterative clicks, "random" wrong pixels, or "center" of the largest error."""

    def __init__(self, seed: int = 0, strategy: str = "random") -> None:
        self.seed = seed
        self.strategy = strategy

    def start(self, mode: Mode, masks: Tensor, names: list[str]) -> Prompts:
        if mode.start == "mask":
            return Prompts(masks=F.avg_pool2d(masks.float(), 4))
        if mode.start == "box":
            boxes = boxes_of(masks)
            if mode.jitter:  # one direction and share for all jitters: a curve over them is of one annotator
                boxes = jitter_boxes(
                    boxes, self._uniform(names, "jitter", 4).to(masks.device), masks.shape[-1], mode.jitter
                )
            return Prompts(boxes=boxes)
        if mode.start == "at_once":
            return Prompts(*one_shot_clicks(masks, self._uniform(names, mode.sequence, mode.clicks).to(masks.device)))
        if self.strategy == "center":
            return Prompts(*central_clicks(masks, torch.zeros_like(masks)))
        return Prompts(*clicks_on(masks, self._uniform(names, "clicks 0", 1).to(masks.device)))

    def correct(
        self, mode: Mode, number: int, masks: Tensor, predicted: Tensor, names: list[str]
    ) -> tuple[Tensor, Tensor]:
        if self.strategy == "center":
            return central_clicks(masks, predicted)
        return corrective_clicks(
            masks, predicted, self._uniform(names, f"{mode.sequence} {number}", 1).to(masks.device)
        )

    def _uniform(self, names: list[str], use: str, columns: int) -> Tensor:
        """(N, columns) in [0, 1), each row from the seed, the use and the mask's file name alone."""
        draws = [
            np.random.default_rng(seed_of(self.seed, use, os.path.basename(name))).random(columns, np.float32)
            for name in names
        ]
        return torch.from_numpy(np.stack(draws))


class Step(NamedTuple):
    """The chosen output after some prompts: logits (N, 1, S/4, S/4), iou (N, 1)."""

    prediction: Prediction
    prompts: Prompts


class Scored(NamedTuple):
    """The n objects of one image in one mode.

    masks, truth: (n, H, W) bool at the original size; prompts: the rows of these objects, in the S x S frame;
    values: n numbers for each of METRICS; predicted_iou: n.
    dice_by_click: (n, clicks) Dice after each click of an iterative sequence, None in other modes.
    """

    mode: Mode
    image: int  # its place in the batch
    names: list[str]
    masks: Tensor
    truth: Tensor
    prompts: Prompts
    values: dict[str, list[float]]
    predicted_iou: list[float]
    dice_by_click: np.ndarray | None


@torch.inference_mode()
def evaluate(
    model: Sam,
    batches: Iterable[Batch],
    modes: list[Mode],
    *,
    device: torch.device,
    annotator: Annotator = SimulatedAnnotator(),
    multimask: bool = True,
    use_amp: bool = False,
) -> Iterator[tuple[Batch, list[Scored]]]:
    """Yields each batch with the scores of its images, image by image and then mode by mode.

    Raises what the annotator raises: DataError where a prompts file lacks an object.
    """
    model.eval()
    for batch in batches:
        here = batch.to(device)
        scored = []
        for images, rows in _groups(batch, device):
            with torch.autocast(device.type, amp_dtype(device), enabled=use_amp):
                embeddings = model.encode(here.images[images], here.content[images])
                parts = [
                    answer(
                        model,
                        embeddings[here.image_index[part] - images.start],
                        here.masks[part],
                        batch.mask_names[part],
                        modes,
                        annotator,
                        multimask,
                    )
                    for part in _chunks(rows, model.image_size**2)
                ]
            if parts:
                steps = {
                    sequence: [_joined(chunk) for chunk in zip(*(part[sequence] for part in parts))]
                    for sequence in parts[0]
                }
                for image in range(images.start, images.stop):
                    scored += score(model, batch, image, rows.start, modes, steps)
        yield batch, scored


def _groups(batch: Batch, device: torch.device) -> Iterator[tuple[slice, slice]]:
    """(images, their objects) that go through the model together.

    On a CPU one image at a time: as fast, and the last digits of a result then do not depend on what shared its batch.
    """
    step = 1 if device.type == "cpu" else len(batch.images)
    ends = torch.bincount(batch.image_index, minlength=len(batch.images)).cumsum(0).tolist()
    for start in range(0, len(batch.images), step):
        stop = min(start + step, len(batch.images))
        yield slice(start, stop), slice(ends[start - 1] if start else 0, ends[stop - 1])


def _chunks(rows: slice, pixels: int) -> Iterator[slice]:
    """Slices of rows, of so many pixels each, that are worked on together."""
    step = max(1, PIXELS_AT_ONCE // pixels)
    return (slice(start, min(start + step, rows.stop)) for start in range(rows.start, rows.stop, step))


def _joined(chunks: tuple[Step, ...]) -> Step:
    join = lambda values: None if values[0] is None else torch.cat(values)
    predictions, prompts = zip(*chunks)
    return Step(Prediction(*map(join, zip(*predictions))), Prompts(*map(join, zip(*prompts))))


def answer(
    model: Sam,
    embeddings: Tensor,
    masks: Tensor,
    names: list[str],
    modes: list[Mode],
    annotator: Annotator,
    multimask: bool,
) -> dict[str, list[Step]]:
    """All sequences of `modes` for N objects. embeddings: (N, C, h, w); masks: (N, 1, S, S) bool, what prompts come from.

    -> {sequence: its steps}, where the last one is of the mode with the most clicks.
    """
    longest = {}
    for mode in modes:
        if mode.clicks >= longest.get(mode.sequence, mode).clicks:
            longest[mode.sequence] = mode
    steps = {}
    for sequence, mode in longest.items():
        prompts = annotator.start(mode, masks, names)
        steps[sequence] = [Step(best_of(model.predict(embeddings, prompts, multimask)), prompts)]
        while clicks_of(prompts) < mode.clicks:
            last = steps[sequence][-1].prediction.logits
            more = annotator.correct(mode, clicks_of(prompts), masks, model.upscale(last) > 0, names)
            points, labels = join_clicks(None if prompts.points is None else (prompts.points, prompts.labels), more)
            prompts = Prompts(points, labels, prompts.boxes, last.float().sigmoid())
            steps[sequence].append(Step(best_of(model.predict(embeddings, prompts, multimask)), prompts))
    return steps


def clicks_of(prompts: Prompts) -> int:
    return 0 if prompts.points is None else prompts.points.shape[1]


def score(
    model: Sam, batch: Batch, image: int, first: int, modes: list[Mode], steps: dict[str, list[Step]]
) -> list[Scored]:
    """One image in every mode: the chosen outputs at its own size, compared with its true masks.

    first: the batch's row that is row 0 of `steps`.
    """
    own = (batch.image_index == image).nonzero().squeeze(1)
    if not len(own):
        return []
    rows = slice(int(own[0]) - first, int(own[-1]) + 1 - first)
    names, truth = batch.mask_names[rows.start + first : rows.stop + first], batch.original_masks[image]
    content = batch.content[image].tolist()
    dice_by_click: dict[str, list[Tensor]] = {}
    scored = {}
    for sequence, answers in steps.items():
        here = [mode for mode in modes if mode.sequence == sequence]
        for step in answers:
            asked = [mode for mode in here if mode.clicks == clicks_of(step.prompts)]
            if not asked and here[0].start != "click":
                continue
            masks = full_size(model, step.prediction.logits[rows], content, truth.shape[-2:])
            values = {name: metric(masks, truth, from_logits=False) for name, metric in METRICS.items()}
            dice_by_click.setdefault(sequence, []).append(values["dice"])
            for mode in asked:
                scored[mode] = Scored(
                    mode,
                    image,
                    names,
                    masks,
                    truth,
                    Prompts(*(None if p is None else p[rows].cpu() for p in step.prompts)),
                    {name: value.tolist() for name, value in values.items()},
                    step.prediction.iou[rows].squeeze(1).float().tolist(),
                    torch.stack(dice_by_click[sequence], dim=1).numpy() if mode.start == "click" else None,
                )
    return [scored[mode] for mode in modes]


def full_size(model: Sam, logits: Tensor, content: list[int], size: tuple[int, int]) -> Tensor:
    """Masks of one image's objects: logits (n, 1, S/4, S/4) -> (n, H, W) bool on the CPU."""
    return torch.cat(
        [
            (restore(model.upscale(logits[chunk]), content, size) > 0).squeeze(1).cpu()
            for chunk in _chunks(slice(0, len(logits)), max(size[0] * size[1], model.image_size**2))
        ]
    )


def restore(logits: Tensor, content: list[int], size: tuple[int, int]) -> Tensor:
    """From the S x S frame to the original picture: crop the padding, or bilinear where it was resized.

    logits: (n, 1, S, S); content: top, left, height, width in the frame -> (n, 1, *size).
    """
    top, left, height, width = content
    logits = logits[..., top : top + height, left : left + width]
    if logits.shape[-2:] == tuple(size):
        return logits
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)


def to_original_frame(prompts: Prompts, content: list[int], size: tuple[int, int]) -> Prompts:
    """Points and boxes of one image, from the S x S frame to pixels of the original picture (height, width)."""
    top, left, height, width = content
    offset = torch.tensor([left, top])
    scale = torch.tensor([size[1] / width, size[0] / height])
    points = None if prompts.points is None else (prompts.points - offset) * scale
    boxes = None if prompts.boxes is None else (prompts.boxes - offset.repeat(2)) * scale.repeat(2)
    return prompts._replace(points=points, boxes=boxes)


class Means:
    """Unweighted means over objects, mode by mode, of values that are not kept."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, str], list[float]] = {}

    def add(self, scored: Scored) -> None:
        for metric, values in scored.values.items():
            self._values.setdefault((metric, scored.mode.name), []).extend(values)

    @property
    def objects(self) -> int:
        return max(map(len, self._values.values()), default=0)

    def of(self, metric: str) -> dict[str, float]:
        return {mode: float(np.mean(values)) for (name, mode), values in self._values.items() if name == metric}
