"""What a checkpoint holds: written, read back, and checked against the flags of the run that goes on."""

import argparse
import math
from pathlib import Path

import torch

from sam_med2d.errors import UsageError
from segment_anything import Sam
from segment_anything.checkpoint import CheckpointError, load_checkpoint, read_checkpoint
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


def models_folder(args: argparse.Namespace) -> Path:
    return Path(args.work_dir) / "models" / args.run_name


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
        """Judge the epoch by the mean of the modes' validation Dice; by the training loss where the data has no val index
        ({}); not at all where this is not an epoch for it (None)."""
        self.epoch += 1
        name, value, better = "training loss", self.loss_sum / max(1, self.loss_count), lambda a, b: a < b
        if validation_dice:
            name, value, better = (
                "validation Dice",
                sum(validation_dice.values()) / len(validation_dice),
                lambda a, b: a > b,
            )
        self.improved = validation_dice is not None and (name != self.best_name or better(value, self.best))
        if self.improved:
            self.best_name, self.best, self.best_epoch = name, value, self.epoch
        self.loss_sum, self.loss_count = 0.0, 0

    def state(self) -> dict:
        return {name: value for name, value in vars(self).items() if name != "improved"}

    def load(self, state: dict, args: argparse.Namespace) -> None:
        if state["steps_an_epoch"] != self.steps_an_epoch:
            raise UsageError(
                f"{args.resume}: its run had {state['steps_an_epoch']} batches an epoch, this one has "
                f"{self.steps_an_epoch}; resume with the same data and --batch_size"
            )
        vars(self).update(state)
        if not (models_folder(args) / "best.pth").exists():  # the run goes on under another name
            self.best_name = ""


def resume(args: argparse.Namespace, defaults: dict, model: Sam, optimizer, scaler) -> dict:
    """Restore a last.pth into model, optimizer and scaler. -> the state of its Progress.

    defaults: the flags nobody gave; one that is newer than the file was at its default.
    """
    saved = read_checkpoint(args.resume)
    if "progress" not in saved:
        raise CheckpointError(
            f"{args.resume}: holds weights but no state of a run; name a last.pth of this project, or give "
            "the weights to --sam_checkpoint"
        )
    flags = defaults | saved["flags"]
    changed = [name for name in MUST_AGREE if getattr(args, name) != flags[name]]
    if changed:
        raise UsageError(
            f"{args.resume}: its run had "
            + ", ".join(f"--{name} {flags[name]}" for name in changed)
            + "; resume with the same, or start a new run from its weights with --sam_checkpoint"
        )
    print(load_checkpoint(model, args.resume))
    scales = [group["lr_scale"] for group in optimizer.param_groups]
    optimizer.load_state_dict(saved["optimizer"])
    for group, scale in zip(optimizer.param_groups, scales):
        group["lr_scale"] = scale  # --lr and --adapter_lr of this run, not of the one that was saved
    if saved["scaler"] and scaler.is_enabled():
        scaler.load_state_dict(saved["scaler"])
    return saved["progress"]


def flags_of_run(path: str) -> dict:
    """The flags that a run was started with, but for those that say where and on what it runs."""
    flags = read_checkpoint(path).get("flags", {})
    return {
        name: value
        for name, value in flags.items()
        if name not in ("resume", "overwrite", "work_dir", "run_name", "device")
    }


def save(args: argparse.Namespace, model: Sam, optimizer, scaler, progress: Progress) -> None:
    """After an epoch: last.pth, and best.pth where the epoch was the best so far."""
    if progress.improved:
        write_checkpoint(
            args,
            "best.pth",
            {
                "model": model.state_dict(),
                "flags": flags_of(args),
                "epoch": progress.best_epoch,
                progress.best_name.replace(" ", "_").lower(): progress.best,
            },
        )
    save_last(args, model, optimizer, scaler, progress)


def save_last(args: argparse.Namespace, model: Sam, optimizer, scaler, progress: Progress) -> None:
    write_checkpoint(
        args,
        "last.pth",
        {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scaler": scaler.state_dict(),
            "progress": progress.state(),
            "flags": flags_of(args),
        },
    )


def write_checkpoint(args: argparse.Namespace, name: str, content: dict) -> None:
    """Raises UsageError for weights that are not finite: the last step can break them without a loss that shows it."""
    broken = [name for name, tensor in content["model"].items() if not tensor.isfinite().all()]
    if broken:
        raise UsageError(
            f"{len(broken)} tensors of the model are not finite, such as {broken[0]}. Nothing was saved after the "
            f"last checkpoint in {models_folder(args)}; lower --lr or switch --use_amp off, and --resume"
        )
    with replacing(models_folder(args) / name) as temporary:
        torch.save(content, temporary)


def flags_of(args: argparse.Namespace) -> dict:
    return {name: value for name, value in vars(args).items() if name != "modes"}
