"""One pass over a test set: each image is encoded once, then decoded for every object and prompt mode.

Scores are taken at the original resolution. Every draw depends on the seed, the mode and the mask's file name alone.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sam_med2d.data.batch import Batch
from sam_med2d.data.geometry import by_centres, restore
from sam_med2d.device import amp_dtype
from sam_med2d.evaluation.closer import answers_of
from sam_med2d.evaluation.metrics import METRICS
from sam_med2d.prompts.annotators import Annotator, SimulatedAnnotator, with_drawings
from sam_med2d.prompts.clicks import clicks_in, clicks_of, join_clicks
from sam_med2d.prompts.modes import BEST, SWAPPED, Mode, longest_of
from sam_med2d.prompts.strokes import Drawing
from segment_anything import Prediction, Prompts, Sam, SamPredictor, Seen, best_of, look, low_resolution
from segment_anything import answer as answer_of
from segment_anything.frames import mask_prompt
from segment_anything.geometry import EXACT
from segment_anything.predictor import frame_of
from segment_anything.zoom import AUTO

PIXELS_AT_ONCE = 2**24  # of masks worked on together, 256 objects at 256 px (about 2 GB), however many an image has


class Step(NamedTuple):
    """The chosen output after some prompts: logits (N, 1, S/4, S/4), or S where they are refined; iou (N, 1).

    given: how many clicks or strokes there were; drawings: of each object, what was drawn.
    guesses: all K outputs' logits, where they are asked for.
    """

    prediction: Prediction
    prompts: Prompts
    given: int = 0
    drawings: tuple[tuple[Drawing, ...], ...] = ()
    guesses: Tensor | None = None


class Scored(NamedTuple):
    """The n objects of one image in one mode.

    masks, truth: (n, H, W) bool at the original size; prompts: the rows of these objects, in the S x S frame, or in
    pixels of the picture where the mode is zoomed;
    values: n numbers for each of METRICS; predicted_iou: n.
    dice_by_click: (n, clicks) Dice after each click of an iterative sequence, None in other modes.
    drawings: of each object, what was drawn.
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
    drawings: tuple[tuple[Drawing, ...], ...] = ()


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
    framed, zoomed = ([mode for mode in modes if mode.zoomed == wanted] for wanted in (False, True))
    predictor = SamPredictor(model, protocol, zoom=AUTO)
    for batch in batches:
        here = batch.to(device)
        scored: list[Scored] = []
        for images, rows in _groups(batch, device):
            parts = []
            with torch.autocast(device.type, amp_dtype(device), enabled=use_amp):
                if framed:
                    seen = look(model, here.images[images], here.content[images])
                    parts = [
                        answer(
                            model,
                            seen.rows(here.image_index[part] - images.start),
                            here.masks[part],
                            batch.mask_names[part],
                            framed,
                            annotator,
                            multimask,
                        )
                        for part in _chunks(rows, model.image_size**2)
                    ]
            steps = {
                sequence: [_joined(chunk) for chunk in zip(*(part[sequence] for part in parts))]
                for sequence in (parts[0] if parts else ())
            }
            for image in range(images.start, images.stop):
                of_mode = {one.mode: one for one in score(model, batch, image, rows.start, framed, steps, paper)}
                if zoomed:
                    with torch.autocast(device.type, amp_dtype(device), enabled=use_amp):
                        of_mode |= score_closer(predictor, batch, image, zoomed, annotator, multimask)
                scored += [of_mode[mode] for mode in modes if mode in of_mode]
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
    return Step(
        Prediction(logits, iou),
        Prompts(*map(join, zip(*(chunk.prompts for chunk in chunks)))),
        chunks[0].given,
        tuple(drawing for chunk in chunks for drawing in chunk.drawings),
        join(tuple(chunk.guesses for chunk in chunks)),
    )


def answer(
    model: Sam,
    seen: Seen,
    masks: Tensor,
    names: list[str],
    modes: list[Mode],
    annotator: Annotator,
    multimask: bool,
) -> dict[str, list[Step]]:
    """All sequences of `modes` for N objects. seen: of each object's picture; masks: (N, 1, S, S) bool, what prompts
    come from.

    -> {sequence: its steps}, where the last one is of the mode with the most clicks.
    """
    steps: dict[str, list[Step]] = {}
    for sequence, mode in longest_of(modes).items():
        wanted = {mode.clicks for mode in modes if mode.sequence == sequence and mode.scored == BEST}
        step = start(mode, masks, names, annotator)
        steps[sequence] = [answered(model, seen, step, multimask, step.given in wanted)]
        while step.given < mode.clicks:
            step = follow(model, mode, steps[sequence][-1], masks, names, annotator)
            steps[sequence].append(answered(model, seen, step, multimask, step.given in wanted))
    return steps


UNANSWERED = Prediction(torch.empty(0), torch.empty(0))


def start(mode: Mode, masks: Tensor, names: list[str], annotator: Annotator) -> Step:
    """What a sequence starts from, without an answer yet."""
    if mode.start not in ("stroke", "lasso"):
        prompts = annotator.start(mode, masks, names)
        return Step(UNANSWERED, prompts, clicks_of(prompts))
    drawings = annotator.draw(mode, 0, masks, torch.zeros_like(masks), names)
    prompts = with_drawings(Prompts(), drawings, masks.shape[-1], masks.device)
    return Step(UNANSWERED, prompts, mode.start == "stroke", tuple((drawing,) for drawing in drawings))


def follow(model: Sam, mode: Mode, last: Step, masks: Tensor, names: list[str], annotator: Annotator) -> Step:
    """One more click or stroke on what is wrong with the last answer, which is fed back."""
    logits = last.prediction.logits
    predicted = model.upscale(logits) > 0
    prompts = last.prompts._replace(masks=mask_prompt(frame_of(model), low_resolution(logits, model.image_size)))
    if mode.by_strokes:
        more = annotator.draw(mode, last.given, masks, predicted, names)
        drawings = tuple((*earlier, drawing) for earlier, drawing in zip(last.drawings or [()] * len(more), more))
        prompts = with_drawings(prompts, more, masks.shape[-1], masks.device)
        return Step(UNANSWERED, prompts, last.given + 1, drawings)
    points, labels = join_clicks(clicks_in(prompts), annotator.correct(mode, last.given, masks, predicted, names))
    return Step(UNANSWERED, prompts._replace(points=points, labels=labels), last.given + 1)


def answered(model: Sam, seen: Seen, step: Step, multimask: bool, all_guesses: bool) -> Step:
    """With the chosen answer, and all of them where they are asked for."""
    if not all_guesses:
        return step._replace(prediction=answer_of(model, seen, step.prompts, multimask, best=True))
    every = answer_of(model, seen, step.prompts, multimask)
    return step._replace(prediction=best_of(every), guesses=every.logits)


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
    content, size = batch.content[image].tolist(), truth.shape[-2:]
    scored = {}
    for sequence, answers in steps.items():
        here = [mode for mode in modes if mode.sequence == sequence]
        by_click: list[Tensor] = []
        for step in answers:
            asked = [mode for mode in here if mode.clicks == step.given]
            if not asked and here[0].start != "click":
                continue
            chosen = full_size(model, step.prediction.logits[rows], content, size, paper)
            by_click.append(METRICS["dice"](chosen, truth, from_logits=False))
            for mode in asked:
                masks, iou = chosen, step.prediction.iou[rows].squeeze(1).float().tolist()
                if mode.scored == BEST and step.guesses is not None:
                    masks = best_guess(model, step.guesses[rows], truth, content, paper)
                elif mode.scored == SWAPPED:
                    masks = chosen.roll(-1, 0)
                values = {name: metric(masks, truth, from_logits=False) for name, metric in METRICS.items()}
                clicked = mode.start == "click" and not mode.scored
                scored[mode] = Scored(
                    mode,
                    image,
                    names,
                    masks,
                    truth,
                    Prompts(*(None if p is None else p[rows].cpu() for p in step.prompts)),
                    {name: value.tolist() for name, value in values.items()},
                    iou,
                    torch.stack(by_click, dim=1).numpy() if clicked else None,
                    step.drawings[rows],
                )
    return [scored[mode] for mode in modes]


def score_closer(
    predictor: SamPredictor, batch: Batch, image: int, modes: list[Mode], annotator: Annotator, multimask: bool
) -> dict[Mode, Scored]:
    """One image in modes that are zoomed. Raises DataError: a prompts file has a prompt outside the picture."""
    names = [name for name, place in zip(batch.mask_names, batch.image_index.tolist()) if place == image]
    if not names:
        return {}
    if batch.original_masks is None or batch.pictures is None:
        raise ValueError("modes with @zoom need the pictures: TestingDataset(..., pictures=True)")
    truth = batch.original_masks[image]
    found = answers_of(predictor, batch.pictures[image], truth, names, modes, annotator, multimask)
    scored = {}
    for mode, (masks, iou, prompts, by_click) in found.items():
        values = {name: metric(masks, truth, from_logits=False).tolist() for name, metric in METRICS.items()}
        dice = [METRICS["dice"](one, truth, from_logits=False) for one in by_click]
        clicks = torch.stack(dice, dim=1).numpy() if mode.start == "click" else None
        scored[mode] = Scored(mode, image, names, masks, truth, prompts, values, iou, clicks)
    return scored


def best_guess(model: Sam, guesses: Tensor, truth: Tensor, content: list[int], paper: bool) -> Tensor:
    """Of each object's K answers, (n, K, h, w) logits, the one with the highest Dice. truth: (n, H, W) -> the same."""
    each = [full_size(model, guesses[:, k : k + 1], content, truth.shape[-2:], paper) for k in range(guesses.shape[1])]
    dice = torch.stack([METRICS["dice"](masks, truth, from_logits=False) for masks in each])
    return torch.stack(each)[dice.argmax(dim=0), torch.arange(len(truth))]


def full_size(model: Sam, logits: Tensor, content: list[int], size: Sequence[int], paper: bool = False) -> Tensor:
    """Masks of one image's objects: logits (n, 1, S/4, S/4) -> (n, H, W) bool on the CPU."""
    return torch.cat(
        [
            (restore(model.upscale(logits[chunk]), content, (size[0], size[1]), paper) > 0).squeeze(1).cpu()
            for chunk in _chunks(slice(0, len(logits)), max(size[0] * size[1], model.image_size**2))
        ]
    )


class Means:
    """Unweighted means over objects, mode by mode, of values that are not kept."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, str], list[float]] = {}

    def add(self, scored: Scored) -> None:
        self.add_values(scored.mode.name, scored.values)

    def add_values(self, mode: str, metrics: dict[str, list[float]]) -> None:
        """metrics: of each the values of some objects."""
        for metric, values in metrics.items():
            self._values.setdefault((metric, mode), []).extend(values)

    @property
    def objects(self) -> int:
        return max(map(len, self._values.values()), default=0)

    def of(self, metric: str) -> dict[str, float]:
        return {mode: float(np.mean(values)) for (name, mode), values in self._values.items() if name == metric}
