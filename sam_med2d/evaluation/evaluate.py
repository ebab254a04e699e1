"""One pass over a test set: each image is encoded once, then decoded for every object and prompt mode.

Scores are taken at the original resolution. Every draw depends on the seed, the mode and the mask's file name alone.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sam_med2d.data.batch import Batch
from sam_med2d.data.geometry import by_centres, restore
from sam_med2d.device import amp_dtype
from sam_med2d.evaluation.metrics import METRICS
from sam_med2d.prompts.annotators import Annotator, SimulatedAnnotator
from sam_med2d.prompts.clicks import clicks_in, clicks_of, join_clicks
from sam_med2d.prompts.modes import Mode
from segment_anything import Prediction, Prompts, Sam, best_of
from segment_anything.frames import known_mask_prompt, mask_prompt
from segment_anything.geometry import EXACT
from segment_anything.predictor import frame_of

PIXELS_AT_ONCE = 2**24  # of masks worked on together, 256 objects at 256 px (about 2 GB), however many an image has


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
    annotator: Annotator | None = None,
    multimask: bool = True,
    use_amp: bool = False,
    protocol: str = EXACT,
) -> Iterator[tuple[Batch, list[Scored]]]:
    """Yields each batch with the scores of its images, image by image and then mode by mode.

    annotator: by default one that is simulated, with seed 0; protocol: how masks come back from the frame, one of
    segment_anything.geometry.PROTOCOLS. Raises what the annotator raises: DataError where a prompts file lacks an
    object.
    """
    paper = by_centres(frame_of(model), protocol)
    annotator = annotator or SimulatedAnnotator()
    model.eval()
    for batch in batches:
        here = batch.to(device)
        scored: list[Scored] = []
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
                    scored += score(model, batch, image, rows.start, modes, steps, paper)
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
    def join(values: tuple[Tensor | None, ...]) -> Tensor | None:
        return None if values[0] is None else torch.cat([value for value in values if value is not None])

    logits, iou = (torch.cat(parts) for parts in zip(*(chunk.prediction for chunk in chunks)))
    return Step(Prediction(logits, iou), Prompts(*map(join, zip(*(chunk.prompts for chunk in chunks)))))


def answer(
    model: Sam,
    embeddings: Tensor,
    masks: Tensor,
    names: list[str],
    modes: list[Mode],
    annotator: Annotator,
    multimask: bool,
) -> dict[str, list[Step]]:
    """All sequences of `modes` for N objects. embeddings: (N, C, h, w); masks: (N, 1, S, S) bool, what prompts come
    from.

    -> {sequence: its steps}, where the last one is of the mode with the most clicks.
    """
    longest: dict[str, Mode] = {}
    for mode in modes:
        if mode.clicks >= longest.get(mode.sequence, mode).clicks:
            longest[mode.sequence] = mode
    steps = {}
    for sequence, mode in longest.items():
        prompts = annotator.start(mode, masks, names)
        if prompts.masks is not None:
            prompts = prompts._replace(masks=known_mask_prompt(frame_of(model), prompts.masks))
        steps[sequence] = [Step(best_of(model.predict(embeddings, prompts, multimask)), prompts)]
        while clicks_of(prompts) < mode.clicks:
            last = steps[sequence][-1].prediction.logits
            more = annotator.correct(mode, clicks_of(prompts), masks, model.upscale(last) > 0, names)
            points, labels = join_clicks(clicks_in(prompts), more)
            prompts = Prompts(points, labels, prompts.boxes, mask_prompt(frame_of(model), last))
            steps[sequence].append(Step(best_of(model.predict(embeddings, prompts, multimask)), prompts))
    return steps


def score(
    model: Sam, batch: Batch, image: int, first: int, modes: list[Mode], steps: dict[str, list[Step]], paper: bool
) -> list[Scored]:
    """One image in every mode: the chosen outputs at its own size, compared with its true masks.

    first: the batch's row that is row 0 of `steps`; paper: masks come back by the original's mapping.
    """
    own = (batch.image_index == image).nonzero().squeeze(1)
    if not len(own):
        return []
    if batch.original_masks is None:
        raise ValueError("a batch of training has no masks at the original size to score against")
    rows = slice(int(own[0]) - first, int(own[-1]) + 1 - first)
    names, truth = batch.mask_names[rows.start + first : rows.stop + first], batch.original_masks[image]
    content, (height, width) = batch.content[image].tolist(), truth.shape[-2:]
    dice_by_click: dict[str, list[Tensor]] = {}
    scored = {}
    for sequence, answers in steps.items():
        here = [mode for mode in modes if mode.sequence == sequence]
        for step in answers:
            asked = [mode for mode in here if mode.clicks == clicks_of(step.prompts)]
            if not asked and here[0].start != "click":
                continue
            masks = full_size(model, step.prediction.logits[rows], content, (height, width), paper)
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


def full_size(model: Sam, logits: Tensor, content: list[int], size: tuple[int, int], paper: bool = False) -> Tensor:
    """Masks of one image's objects: logits (n, 1, S/4, S/4) -> (n, H, W) bool on the CPU."""
    return torch.cat(
        [
            (restore(model.upscale(logits[chunk]), content, size, paper) > 0).squeeze(1).cpu()
            for chunk in _chunks(slice(0, len(logits)), max(size[0] * size[1], model.image_size**2))
        ]
    )


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
