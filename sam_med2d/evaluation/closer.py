"""Modes such as bbox@zoom: objects of one picture, one by one, asked of a predictor that looks at small ones closer.

Prompts are made from the truth at the picture's own size and are in its pixels, as people give them. What is the same
as elsewhere: the objects, who annotates, how clicks follow one another, and how answers are scored.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sam_med2d.errors import DataError
from sam_med2d.prompts.annotators import Annotator
from sam_med2d.prompts.clicks import clicks_in, clicks_of, join_clicks
from sam_med2d.prompts.modes import Mode, longest_of
from segment_anything import ObjectPrompt, PromptError, Prompts, SamPredictor


class CloserAnswer(NamedTuple):
    """Of n objects in one mode. masks: (n, H, W) bool; iou: n, predicted; prompts: n rows, in pixels of the picture;
    by_click: the masks after each click of an iterative sequence, the last of them `masks`."""

    masks: Tensor
    iou: list[float]
    prompts: Prompts
    by_click: list[Tensor]


class _Step(NamedTuple):
    """Of one object. mask: (H, W) bool."""

    mask: Tensor
    iou: float
    prompts: Prompts


def answers_of(
    predictor: SamPredictor,
    picture: np.ndarray,
    truth: Tensor,
    names: Sequence[str],
    modes: Sequence[Mode],
    annotator: Annotator,
    multimask: bool,
) -> dict[Mode, CloserAnswer]:
    """picture: (H, W, 3) uint8 BGR; truth: (n, H, W) bool; modes: those that are zoomed, n > 0.

    Raises DataError: a prompts file has a prompt outside the picture.
    """
    predictor.set_image(picture, "BGR", encode=False)
    found = {}
    for sequence, mode in longest_of(modes).items():
        objects = [_sequence(predictor, mask, name, mode, annotator, multimask) for mask, name in zip(truth, names)]
        for wanted in (one for one in modes if one.sequence == sequence):
            last = wanted.clicks - 1 if mode.start == "click" else wanted.clicks
            steps = [one[last] for one in objects]
            found[wanted] = CloserAnswer(
                torch.stack([step.mask for step in steps]),
                [step.iou for step in steps],
                _stacked([step.prompts for step in steps]),
                [torch.stack([one[k].mask for one in objects]) for k in range(last + 1)],
            )
    return found


def _sequence(
    predictor: SamPredictor, truth: Tensor, name: str, mode: Mode, annotator: Annotator, multimask: bool
) -> list[_Step]:
    """The answers to a box or the first click, and to each click that follows. truth: (H, W) bool."""
    height, width = truth.shape
    square = _square(truth)
    prompts = annotator.start(mode, square, [name])
    if prompts.boxes is not None and (mode.jitter or mode.drawn):  # these end at the picture
        limit = prompts.boxes.new_tensor([width, height, width, height])
        prompts = prompts._replace(boxes=torch.minimum(prompts.boxes, limit))
    steps, low_res = [], None
    while True:
        points, labels, box = (None if part is None else part[0].cpu().numpy() for part in prompts[:3])
        try:
            found = predictor.predict_objects([ObjectPrompt(points, labels, box, low_res)], multimask, best=True)
        except PromptError as error:
            raise DataError(f"{name}: {error}; make the prompts file anew on these pictures") from error
        low_res = found.low_res[0, 0]
        steps.append(_Step(torch.from_numpy(found.masks[0, 0]), float(found.iou[0, 0]), prompts))
        if clicks_of(prompts) >= mode.clicks:
            return steps
        more = annotator.correct(mode, clicks_of(prompts), square, _square(steps[-1].mask), [name])
        prompts = prompts._replace(**dict(zip(("points", "labels"), join_clicks(clicks_in(prompts), more))))


def _square(mask: Tensor) -> Tensor:
    """(H, W) bool -> (1, 1, M, M), the longer side on both: annotators know square frames."""
    height, width = mask.shape
    side = max(height, width)
    return F.pad(mask, (0, side - width, 0, side - height))[None, None]


def _stacked(prompts: list[Prompts]) -> Prompts:
    """One row an object."""

    def rows(parts: tuple[Tensor | None, ...]) -> Tensor | None:
        there = [part for part in parts if part is not None]
        return torch.cat(there) if there else None

    return Prompts(*(rows(parts) for parts in zip(*(one[:3] for one in prompts))))
