"""Who answers for the objects of a test run: one that is simulated from the true masks, or the prompts in a file."""

import os
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sam_med2d.prompts.clicks import (
    boxes_of,
    central_clicks,
    clicks_in,
    clicks_on,
    corrective_clicks,
    draw_boxes,
    human_clicks,
    jitter_boxes,
    join_clicks,
    mask_prompts,
    one_shot_clicks,
)
from sam_med2d.prompts.files import FrozenPrompts
from sam_med2d.prompts.modes import Mode
from sam_med2d.prompts.strokes import Drawing, clicks_along, corrective_scribble, drawn, lasso
from sam_med2d.seeds import seed_of
from segment_anything import Prompts
from segment_anything.drawings import enclosed
from segment_anything.frames import SAM_MED2D

CLICK_STRATEGIES = ("random", "center", "human")


class Annotator(Protocol):
    """Who answers for some objects, masks (N, 1, S, S) bool with their names: drawn, or read from a file.

    strategy: of CLICK_STRATEGIES, how iterative clicks are chosen.
    """

    strategy: str

    def check(self, names: list[str], modes: list[Mode]) -> None:
        """Raises DataError where it has no answer for an object in a mode: before a run, not in its middle."""

    def start(self, mode: Mode, masks: Tensor, names: list[str]) -> Prompts:
        """What an object's sequence starts from."""

    def correct(
        self, mode: Mode, number: int, masks: Tensor, predicted: Tensor, names: list[str]
    ) -> tuple[Tensor, Tensor]:
        """The click that follows `number` clicks. predicted: (N, 1, S, S) bool -> points (N, 1, 2), labels (N, 1)."""

    def draw(self, mode: Mode, number: int, masks: Tensor, predicted: Tensor, names: list[str]) -> list[Drawing]:
        """What is drawn, of each object, after `number` strokes of a mode: a stroke, or the lasso of one of lassos."""


def with_drawings(prompts: Prompts, drawings: list[Drawing], side: int, device: torch.device) -> Prompts:
    """Earlier prompts, and what was drawn now, all of one kind. side: S.

    A stroke is heard as clicks along it, and by a refinement network as a map. A lasso is heard as its box and, as a
    mask prompt, what it encloses.
    """
    if drawings[0].lasso is not None:
        inside = np.stack([enclosed(one.lasso, (side, side)) for one in drawings if one.lasso is not None])
        masks = torch.from_numpy(inside)[:, None].to(device)
        return prompts._replace(boxes=boxes_of(masks), masks=mask_prompts(masks))
    strokes = [one.stroke for one in drawings if one.stroke is not None]
    points, labels = (torch.from_numpy(np.stack(part)).to(device) for part in zip(*map(clicks_along, strokes)))
    points, labels = join_clicks(clicks_in(prompts), (points, labels))
    ink = torch.from_numpy(np.stack([drawn([stroke], side) for stroke in strokes])).to(device)
    if prompts.strokes is not None:
        ink = ink | (prompts.strokes & ~ink.flip(1))  # what is drawn over means what it was drawn as last
    return prompts._replace(points=points, labels=labels, strokes=ink)


def annotator_of(
    seed: int, strategy: str, prompt_path: str | os.PathLike | None, image_size: int, frame: str = SAM_MED2D
) -> Annotator:
    """The annotator that flags ask for: the prompts of an earlier run, or a simulated one.

    image_size: the side S of the frame, in pixels; frame: one of segment_anything.frames.FRAMES.
    Raises DataError: a prompts file that cannot be read, is none, or is of another frame.
    """
    return FrozenPrompts(prompt_path, image_size, frame) if prompt_path else SimulatedAnnotator(seed, strategy)


class SimulatedAnnotator:
    """Draws from the true masks.

    strategy: "random" wrong pixels are clicked, or the "center" of the largest error, or near it, as a "human" does.
    """

    def __init__(self, seed: int = 0, strategy: str = "random") -> None:
        self.seed = seed
        self.strategy = strategy

    def check(self, names: list[str], modes: list[Mode]) -> None:
        """It has an answer for everything."""

    def start(self, mode: Mode, masks: Tensor, names: list[str]) -> Prompts:
        if mode.start == "mask":
            return Prompts(masks=mask_prompts(masks))
        if mode.start == "box":
            boxes = boxes_of(masks)
            if mode.drawn:
                boxes = draw_boxes(boxes, self._uniform(names, "drawn box", 4).to(masks.device), masks.shape[-1])
            if mode.jitter:  # one direction and share for all jitters: a curve over them is of one annotator
                boxes = jitter_boxes(
                    boxes, self._uniform(names, "jitter", 4).to(masks.device), masks.shape[-1], mode.jitter
                )
            return Prompts(boxes=boxes)
        if mode.start == "at_once":
            return Prompts(*one_shot_clicks(masks, self._uniform(names, mode.sequence, mode.clicks).to(masks.device)))
        if self.strategy == "center":
            return Prompts(*central_clicks(masks, torch.zeros_like(masks)))
        if self.strategy == "human":
            return Prompts(*human_clicks(masks, torch.zeros_like(masks), self._uniform(names, "clicks 0", 1)))
        return Prompts(*clicks_on(masks, self._uniform(names, "clicks 0", 1).to(masks.device)))

    def correct(
        self, mode: Mode, number: int, masks: Tensor, predicted: Tensor, names: list[str]
    ) -> tuple[Tensor, Tensor]:
        if self.strategy == "center":
            return central_clicks(masks, predicted)
        uniform = self._uniform(names, f"{mode.sequence} {number}", 1)
        if self.strategy == "human":
            return human_clicks(masks, predicted, uniform)
        return corrective_clicks(masks, predicted, uniform.to(masks.device))

    def draw(self, mode: Mode, number: int, masks: Tensor, predicted: Tensor, names: list[str]) -> list[Drawing]:
        drawings = []
        for name, mask, guess in zip(names, masks[:, 0].cpu().numpy(), predicted[:, 0].cpu().numpy()):
            rng = self._generator(name, f"{mode.sequence} {number}")
            if mode.start == "lasso":
                drawings.append(Drawing(lasso=lasso(mask, rng)))
            else:
                drawings.append(Drawing(corrective_scribble(mask, guess, rng)))
        return drawings

    def _uniform(self, names: list[str], use: str, columns: int) -> Tensor:
        """(N, columns) in [0, 1), each row from the seed, the use and the mask's file name alone."""
        return torch.from_numpy(np.stack([self._generator(name, use).random(columns, np.float32) for name in names]))

    def _generator(self, name: str, use: str) -> np.random.Generator:
        return np.random.default_rng(seed_of(self.seed, use, os.path.basename(name)))
