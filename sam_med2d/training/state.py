"""What a checkpoint holds, with one writer and one reader.

    last.pth    {"model", "optimizer", "scaler", "progress", "flags"}: all that --resume needs
    best.pth    {"model", "flags", "epoch", the value it was chosen by}: weights alone, for test.py and for use

Files hold tensors and plain values. They are replaced in one step: whoever reads one sees the old or the new one.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import torch

from sam_med2d.errors import UsageError
from sam_med2d.outputs import run_folder
from sam_med2d.training.learner import Learner
from segment_anything import Sam
from segment_anything.checkpoint import CheckpointError, fit_weights, read_checkpoint
from segment_anything.files import replacing

MUST_AGREE = (
    "model_type",
    "image_size",
    "encoder_adapter",
    "seed",
    "batch_size",
    "mask_num",
    "augment",
    "balance",
    "iter_point",
    "point_list",
    "keep_clicks",
    "box_shift",
    "multimask",
)
OF_THE_PLACE = ("resume", "overwrite", "work_dir", "run_name", "device")  # flags that say where and on what a run runs
NOT_FLAGS = ("modes",)  # what parse_args makes of flags


def models_folder(args: argparse.Namespace) -> Path:
    """Raises UsageError where --run_name is no name of a folder there."""
    return run_folder(Path(args.work_dir) / "models", args.run_name)


def room_for_checkpoints(model: Sam, folder: Path) -> int:
    """Bytes that must be free in `folder`: for best.pth, and for last.pth twice, as one is replaced by the other."""
    weights = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    moments = 2 * sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    there = sum(path.stat().st_size for name in ("best.pth", "last.pth") if (path := folder / name).exists())
    return max(0, weights + 2 * (weights + moments) - there)


class Progress:
    """Where the run is: `epoch`, `step` (batches since its start), the best epoch so far, the losses of this epoch."""

    def __init__(self, steps_an_epoch: int) -> None:
        self.steps_an_epoch = steps_an_epoch
        self.epoch = self.step = 0
        self.loss_sum, self.loss_count = 0.0, 0
        self.best_name, self.best, self.best_epoch = "", math.inf, 0
        self.improved = False

    def add_loss(self, loss: float) -> None:
        self.loss_sum += loss
        self.loss_count += 1

    def end_epoch(self, validation_dice: dict[str, float] | None) -> None:
        """Judge the epoch by the mean of the modes' validation Dice; by the training loss where the data has no val
        index ({}); not at all where this is not an epoch for it (None)."""
        self.epoch += 1
        if validation_dice:
            name, value = "validation Dice", sum(validation_dice.values()) / len(validation_dice)
            better = value > self.best
        else:
            name, value = "training loss", self.loss_sum / max(1, self.loss_count)
            better = value < self.best
        self.improved = validation_dice is not None and (name != self.best_name or better)
        if self.improved:
            self.best_name, self.best, self.best_epoch = name, value, self.epoch
        self.loss_sum, self.loss_count = 0.0, 0

    def state_dict(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "improved"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


class SavedRun:
    """A last.pth, read once. Raises CheckpointError where it is none."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.content = read_checkpoint(path)
        if "progress" not in self.content:
            raise CheckpointError(
                f"{path}: holds weights but no state of a run; name a last.pth of this project, or give "
                "the weights to --sam_checkpoint"
            )
        self.flags: dict[str, Any] = self.content["flags"]

    def flags_to_go_on_with(self) -> dict[str, Any]:
        """The flags that the run was started with, but for those that say where and on what it runs."""
        return {name: value for name, value in self.flags.items() if name not in OF_THE_PLACE}


class RunState:
    """Everything a run is made of that outlives its process: model, learner, progress, flags."""

    def __init__(self, args: argparse.Namespace, model: Sam, learner: Learner, progress: Progress) -> None:
        self.args = args
        self.folder = models_folder(args)
        self.model = model
        self.learner = learner
        self.progress = progress

    def start(self) -> None:
        """With --overwrite the weights of another run would stand there until this one is judged: they go."""
        (self.folder / "best.pth").unlink(missing_ok=True)

    def restore(self, saved: SavedRun, defaults: dict[str, Any]) -> None:
        """Go on where a saved run was.

        defaults: the flags that nobody gave; one that is newer than the file was at its default.
        Raises UsageError where the run had other flags of MUST_AGREE or another number of batches an epoch, and
        CheckpointError where its weights do not fit.
        """
        flags = defaults | saved.flags
        changed = [name for name in MUST_AGREE if getattr(self.args, name) != flags[name]]
        if changed:
            raise UsageError(
                f"{saved.path}: its run had "
                + ", ".join(f"--{name} {flags[name]}" for name in changed)
                + "; resume with the same, or start a new run from its weights with --sam_checkpoint"
            )
        batches = saved.content["progress"]["steps_an_epoch"]
        if batches != self.progress.steps_an_epoch:
            raise UsageError(
                f"{saved.path}: its run had {batches} batches an epoch, this one has "
                f"{self.progress.steps_an_epoch}; resume with the same data and --batch_size"
            )
        print(fit_weights(self.model, saved.content["model"], saved.path))
        self.learner.load_state_dict(saved.content)
        self.progress.load_state_dict(saved.content["progress"])
        if not (self.folder / "best.pth").exists():  # the run goes on under another name
            self.progress.best_name = ""

    def save(self) -> None:
        """After an epoch: last.pth, and best.pth where the epoch was the best so far."""
        progress = self.progress
        if progress.improved:
            judged = {"epoch": progress.best_epoch, progress.best_name.replace(" ", "_").lower(): progress.best}
            self.write("best.pth", judged)
        self.save_last()

    def save_last(self) -> None:
        self.write("last.pth", {**self.learner.state_dict(), "progress": self.progress.state_dict()})

    def write(self, name: str, content: dict[str, Any]) -> None:
        """One file, with the model and the flags beside the content.

        Raises UsageError for weights that are not finite: the last step can break them without a loss that shows it.
        """
        weights = self.model.state_dict()
        broken = [name for name, tensor in weights.items() if not tensor.isfinite().all()]
        if broken:
            raise UsageError(
                f"{len(broken)} tensors of the model are not finite, such as {broken[0]}. Nothing was saved after the "
                f"last checkpoint in {self.folder}; lower --lr or switch --use_amp off, and --resume"
            )
        flags = {name: value for name, value in vars(self.args).items() if name not in NOT_FLAGS}
        with replacing(self.folder / name) as temporary:
            torch.save({"model": weights, **content, "flags": flags}, temporary)
