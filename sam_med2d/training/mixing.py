"""Weights between those that training started from and those that it ended with.

On a straight line between the two, what was learned before comes back faster than what was learned last goes (Wortsman
et al. 2022, "Robust fine-tuning of zero-shot models", arXiv 2109.01903, section 3): a share of the way can be better
than either end. No training is needed, only a few evaluations.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from sam_med2d.errors import CheckpointError
from sam_med2d.evaluation.elsewhere import dice_on
from sam_med2d.inference.models import Plan
from sam_med2d.prompts.modes import Mode
from segment_anything import Sam
from segment_anything.checkpoint import WeightFile, check_is_sam, fit_weights
from segment_anything.weight_files import GAUSSIAN

# What a new part begins with at zero, and by which it adds nothing. LoRA pairs are merged into their layers, so that a
# share of the way has that share of them.
GATE = re.compile(r"image_encoder\.blocks\.\d+\.Adapter\.norm\..*|refinement\.write\..*")
SAME_CODE = 1e-2  # of what coordinates are coded by: float16, or bfloat16, rounds it by less


class Mixture:
    """A model whose weights can be anywhere between a start and an end.

    Of a part that the start has not, such as adapters, only the gate is mixed, from zero: at share 0 it adds nothing,
    between it adds that share of what the end's would, from the same features. Buffers are the end's.
    """

    def __init__(self, end: Plan, start: WeightFile) -> None:
        """Raises CheckpointError where the two are not of one descent."""
        check_descent(end.file, start)
        self.model = end.build(lambda _: None).requires_grad_(False)
        self.end = {name: tensor.clone() for name, tensor in self.model.named_parameters()}
        buffers = {name: tensor.clone() for name, tensor in self.model.named_buffers()}
        self.report = fit_weights(self.model, start)  # what the start has not stays the end's
        self.start = {name: tensor.clone() for name, tensor in self.model.named_parameters()}
        for name in self.report.new:
            if GATE.fullmatch(name):
                self.start[name].zero_()
        for name, tensor in self.model.named_buffers():
            tensor.copy_(buffers[name])
        self.model.window = end.file.window

    def to(self, device: torch.device) -> None:
        self.model.to(device)
        self.start, self.end = (
            {name: tensor.to(device) for name, tensor in one.items()} for one in (self.start, self.end)
        )

    def at(self, share: float) -> Sam:
        """The model with the start's weights at 0, the end's at 1, bit for bit, and a share of the way between."""
        for name, parameter in self.model.named_parameters():
            parameter.copy_(torch.lerp(self.start[name], self.end[name], share))
        return self.model


def check_descent(end: WeightFile, start: WeightFile) -> None:
    """Raises CheckpointError where weights cannot have been trained from the others, so that between is nothing."""
    kinds = [check_is_sam(file) for file in (end, start)]
    sizes = [(kind.channels, kind.depth) for kind in kinds]
    if sizes[0] != sizes[1]:
        raise CheckpointError(
            f"{end.path}: is {kinds[0]}, but {start.path} is {kinds[1]}; name what its training started from"
        )
    ours, theirs = (file.tensors.get(GAUSSIAN) for file in (end, start))
    if ours is None or theirs is None or ours.shape != theirs.shape:
        return  # a file that is not whole: it is named where its weights are read
    if (ours.float() - theirs.float()).abs().max() > SAME_CODE * ours.float().abs().max():
        raise CheckpointError(
            f"{end.path}: codes coordinates by other numbers ({GAUSSIAN}) than {start.path}, so its training started "
            "from other weights; name those"
        )


class Judged(NamedTuple):
    """A share of the way, and mean Dice: own, of each mode on the data's val split, elsewhere, of each set and
    mode."""

    share: float
    own: dict[str, float]
    elsewhere: dict[str, float]

    @property
    def own_mean(self) -> float:
        return float(np.mean([*self.own.values()]))

    @property
    def elsewhere_mean(self) -> float:
        return float(np.mean([*self.elsewhere.values()]))


def judge(
    mixture: Mixture, shares: Iterable[float], own: Dataset, modes: list[Mode], also: dict[str, Dataset]
) -> list[Judged]:
    """Each share of the way. own: the val split of what was trained on; also: pictures of other kinds, by name.

    Raises DataError where a set has no object.
    """
    judged, device = [], mixture.model.device
    for share in shares:
        model = mixture.at(share)
        here = {mode: float(np.mean(v)) for (_, mode), v in dice_on(model, {"val": own}, device, modes).items()}
        there = {" ".join(key): float(np.mean(v)) for key, v in dice_on(model, also, device).items()}
        judged.append(Judged(share, here, there))
    return judged


def choose(judged: Sequence[Judged], most_lost: float) -> Judged:
    """The best elsewhere of those that are at most `most_lost` of mean Dice below the best on the own val split.

    Of shares that are alike elsewhere, the one nearest to the end.
    """
    best = max(one.own_mean for one in judged)
    return max(
        (one for one in judged if one.own_mean >= best - most_lost), key=lambda one: (one.elsewhere_mean, one.share)
    )


def draw(judged: Sequence[Judged], chosen: Judged, output: Path) -> None:
    """A PNG: own val and elsewhere over the share, and which was chosen."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    shares = [one.share for one in judged]
    axes.plot(shares, [100 * one.own_mean for one in judged], "o-", label="own, val split")
    axes.plot(shares, [100 * one.elsewhere_mean for one in judged], "s--", label="elsewhere")
    axes.axvline(chosen.share, color="0.6", linestyle=":", label=f"chosen: {chosen.share:g}")
    axes.set(xlabel="share of the way from start (0) to end (1)", ylabel="mean Dice, %")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(output, dpi=110, format="png")
