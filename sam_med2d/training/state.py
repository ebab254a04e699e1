"""What a checkpoint holds, with one writer and one reader.

    last.pth    {"model", "optimizer", "scaler", "progress", "flags"}: all that --resume needs; "average" with --ema
    best.pth    {"model", "flags", "epoch", the value it was chosen by}: weights alone, for test.py and for use; with
                --ema "averaged" says which weights
    epoch_N.pth a last.pth after epoch N, with --keep_last
    in the first two "made_by": versions, commit, command and the hash of the data's index

Files hold tensors and plain values. They are replaced in one step: whoever reads one sees the old or the new one.
"""

import argparse
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import NoneType
from typing import Any

from torch import Tensor

from sam_med2d.cli import REMEDIES, disk_line, impossible_values
from sam_med2d.device import best_device
from sam_med2d.distributed import Processes
from sam_med2d.errors import CheckpointError, UsageError
from sam_med2d.inference.models import weights_file
from sam_med2d.outputs import run_folder
from sam_med2d.provenance import provenance
from sam_med2d.training.averaging import Average
from sam_med2d.training.embeddings import AGAIN
from sam_med2d.training.learner import ALONE, Learner
from sam_med2d.training.start import tuned_without_the_flag
from segment_anything import Sam
from segment_anything.checkpoint import WeightFile, fit_weights
from segment_anything.frames import SAM_MED2D
from segment_anything.weight_files import FRAME, WINDOW, is_finite, read_checkpoint, save_checkpoint

MUST_AGREE = (
    "model_type",
    "image_size",
    "encoder_adapter",
    "frame",
    "tune",
    "tune_blocks",
    "lora_rank",
    "lora_alpha",
    "lora_targets",
    "embeddings",
    "refine",
    "seed",
    "mask_num",
    "augment",
    "augment_with",
    "loss",
    "recipe",
    "balance",
    "replay",
    "replay_share",
    "pull",
    "zoom_share",
    "iter_point",
    "point_list",
    "keep_clicks",
    "box_shift",
    "multimask",
    "scribble_share",
    "lasso_share",
    "rank_weight",
    "optimizer",
    "weight_decay",
    "ema",
)
KEPT = re.compile(r"epoch_(\d+)\.pth")
OLDER_THAN_THE_FLAG = {"frame": SAM_MED2D, "replay": []}  # what runs had that do not tell, and is no default now
OF_THE_PLACE = ("resume", "overwrite", "work_dir", "run_name", "device")  # flags that say where and on what a run runs
NOT_FLAGS = ("modes",)  # what parse_args makes of flags

# What a last.pth holds, all of which is checked before anything is restored: a dict is the keys that have to be there,
# EACH the values under any key, a tuple the types of a value.
EACH = "..."
WHOLE, NUMBER, TENSOR = (int,), (int, float), (Tensor,)
PLAIN = (NoneType, bool, int, float, str, list)
MOMENTS = {"step": TENSOR, "exp_avg": TENSOR, "exp_avg_sq": TENSOR}
GROUP = {"params": (list,), "lr": NUMBER, "betas": (tuple, list), "eps": NUMBER, "weight_decay": NUMBER}
STATE = {
    "model": {EACH: TENSOR},
    "optimizer": {"state": {EACH: MOMENTS}, "param_groups": {EACH: GROUP}},
    "scaler": {EACH: NUMBER},
    "progress": {
        "steps_an_epoch": WHOLE,
        "epoch": WHOLE,
        "step": WHOLE,
        "loss_sum": NUMBER,
        "loss_count": WHOLE,
        "best_name": (str,),
        "best": NUMBER,
        "best_epoch": WHOLE,
        "best_averaged": (bool,),
        "waited": WHOLE,
    },
    "made_by": {EACH: (*PLAIN, dict)},
    "flags": {"model_type": (str,), "image_size": WHOLE, "encoder_adapter": (bool,), EACH: PLAIN},
    "average": {EACH: TENSOR},
}
OPTIONAL = ("made_by", "average", "best_averaged", "waited")  # which runs have not always had, or do not all have


def models_folder(args: argparse.Namespace) -> Path:
    """Raises UsageError where --run_name is no name of a folder there."""
    return run_folder(Path(args.work_dir) / "models", args.run_name)


def room_for_checkpoints(model: Sam, folder: Path, averaged: bool = False, kept: int = 0) -> int:
    """Bytes that must be free in `folder`: for best.pth, and for last.pth twice, as one is replaced by the other.

    averaged: whether a last.pth has the average of what is trained too. kept: states of epochs that are kept.
    """
    weights = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    last = weights + (3 if averaged else 2) * trained
    names = {"best.pth", "last.pth", *(path.name for path in kept_states(folder))}
    there = sum(path.stat().st_size for name in names if (path := folder / name).exists())
    return max(0, weights + (2 + kept) * last - there)


def kept_states(folder: Path) -> list[Path]:
    """The states of epochs in a folder that --keep_last keeps, the oldest first."""
    found = {int(name[1]): path for path in folder.glob("epoch_*.pth") if (name := KEPT.fullmatch(path.name))}
    return [found[epoch] for epoch in sorted(found)]


def images_a_step(flags: dict[str, Any]) -> int:
    """Of all processes, which decides what a step learns from."""
    return flags["batch_size"] * flags["accumulate"] * flags["processes"]


class Progress:
    """Where the run is: `epoch`, `step` (batches since its start), the best epoch so far and for how many validations
    it has been, the losses of this epoch.
    """

    def __init__(self, steps_an_epoch: int) -> None:
        self.steps_an_epoch = steps_an_epoch
        self.epoch = self.step = 0
        self.loss_sum, self.loss_count = 0.0, 0
        self.best_name, self.best, self.best_epoch = "", math.inf, 0
        self.best_averaged = False
        self.waited = 0
        self.improved = False

    def add_loss(self, loss: float) -> None:
        self.loss_sum += loss
        self.loss_count += 1

    def end_epoch(
        self, validation_dice: dict[str, float] | None, averaged_dice: dict[str, float] | None = None
    ) -> None:
        """Judge the epoch by the mean of the modes' validation Dice, of the weights or their average, whichever is
        better; by the training loss where the data has no val index ({}); not at all where this is not an epoch for
        it (None).
        """
        self.epoch += 1
        averaged = False
        if validation_dice:
            name, value = "validation Dice", sum(validation_dice.values()) / len(validation_dice)
            if averaged_dice and (other := sum(averaged_dice.values()) / len(averaged_dice)) > value:
                value, averaged = other, True
            better = value > self.best
        else:
            name, value = "training loss", self.loss_sum / max(1, self.loss_count)
            better = value < self.best
        self.improved = validation_dice is not None and (name != self.best_name or better)
        if self.improved:
            self.best_name, self.best, self.best_epoch, self.best_averaged = name, value, self.epoch, averaged
            self.waited = 0
        elif validation_dice is not None:
            self.waited += 1
        self.loss_sum, self.loss_count = 0.0, 0

    def state_dict(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "improved"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


class SavedRun:
    """A last.pth, read once, with all that `STATE` declares. Raises CheckpointError where it is none."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.content = read_checkpoint(path)
        if "progress" not in self.content:
            raise CheckpointError(
                f"{path}: holds weights but no state of a run; name a last.pth of this project, or give "
                "the weights to --sam_checkpoint"
            )
        problem = next(misfits(self.content, STATE), None) or _impossible_place(self.content["progress"])
        if problem:
            raise CheckpointError(
                f"{path}: is no last.pth of this project: {problem}; take another, or give the weights to "
                "--sam_checkpoint"
            )
        self.flags: dict[str, Any] = self.content["flags"]
        self.flags.setdefault("tune", tuned_without_the_flag(self.flags["encoder_adapter"]))
        self.flags.setdefault("embeddings", AGAIN)

    def flags_to_go_on_with(self, parser: argparse.ArgumentParser) -> dict[str, Any]:
        """The flags that the run was started with, but for those that say where and on what it runs.

        Raises CheckpointError for values that no flag of the parser can have.
        """
        flags = {name: value for name, value in self.flags.items() if name not in OF_THE_PLACE}
        flags = OLDER_THAN_THE_FLAG | flags
        impossible = impossible_values(parser, flags)
        if impossible:
            raise CheckpointError(f"{self.path}: says that its run had {', '.join(impossible)}, which no run has")
        return flags


def made_by(args: argparse.Namespace) -> dict[str, Any]:
    """The versions, the commit, the words and the index of the data of a run, as plain values; None for unknown ones.

    To be asked for at the start, when the files are those that are read.
    """
    found = (Path(args.data_path) / f"{kind}_train.json" for kind in ("image2label", "label2image"))
    index = next((path for path in found if path.exists()), Path(args.data_path))
    files: dict[str, str | os.PathLike] = {"data": index}
    if args.pull:
        files["start"] = weights_file(args.sam_checkpoint)
    return {"command": [str(word) for word in sys.argv], **provenance(best_device(args.device), files)}


def misfits(content: object, form: dict | tuple[type, ...], place: str = "it") -> Iterator[str]:
    """What a content lacks of a form as `STATE` has them, a phrase each: "progress has no 'epoch'"."""
    if isinstance(form, tuple):
        if not isinstance(content, form) or (isinstance(content, bool) and bool not in form):
            wanted = " or ".join(kind.__name__ for kind in form)
            yield f"{place} is of type {type(content).__name__.lstrip('_')}, not {wanted}"
        return
    if not isinstance(content, dict | list):
        yield f"{place} is of type {type(content).__name__.lstrip('_')}, not dict"
        return
    parts = dict(enumerate(content)) if isinstance(content, list) else content
    yield from (
        f"{place} has no {name!r}" for name in form if name != EACH and name not in parts and name not in OPTIONAL
    )
    if form.keys() == {EACH} and not parts and place in ("model", "optimizer/param_groups"):
        yield f"{place} is empty"
    for name, part in parts.items():
        if own := form.get(name, form.get(EACH)):
            inside = str(name) if place == "it" else f"{place}/{name}"
            yield from misfits(part, own, inside)


def _impossible_place(progress: dict[str, Any]) -> str:
    """What is wrong with where a run says that it is; "" where nothing is."""
    negative = [name for name, value in progress.items() if isinstance(value, int) and value < 0]
    steps, start = progress["steps_an_epoch"], progress["step"] - progress["epoch"] * progress["steps_an_epoch"]
    if negative:
        return f"progress/{negative[0]} is {progress[negative[0]]}"
    if not steps or not 0 <= start <= steps:
        return f"progress has step {progress['step']} in epoch {progress['epoch']} of {steps} batches each"
    return ""


class RunState:
    """Everything a run is made of that outlives its process: model, learner, progress, flags."""

    def __init__(
        self,
        args: argparse.Namespace,
        model: Sam,
        learner: Learner,
        progress: Progress,
        average: Average | None = None,
        processes: Processes = ALONE,
    ) -> None:
        """args: the flags, and `processes`, their number. processes: of which the first one writes."""
        self.args = args
        self.folder = models_folder(args)
        self.model = model
        self.learner = learner
        self.progress = progress
        self.average = average
        self.processes = processes
        self.bad: set[str] = set()  # what was said of images that cannot be read
        self.failed = False  # whether the last checkpoint could not be written
        self.saved_at = time.monotonic()
        self.made_by = made_by(args)

    def start(self) -> None:
        """With --overwrite the weights of another run would stand there until this one is judged: they go."""
        if self.processes.leads:
            for path in (self.folder / "best.pth", *kept_states(self.folder)):
                path.unlink(missing_ok=True)

    def restore(self, saved: SavedRun, defaults: dict[str, Any]) -> None:
        """Go on where a saved run was.

        defaults: the flags that nobody gave; one that is newer than the file was at its default.
        Raises UsageError where the run had other flags of MUST_AGREE or another number of batches an epoch, and
        CheckpointError where its weights do not fit.
        """
        # runs that do not tell are older than any other frame, and than several processes
        flags = {"processes": 1} | defaults | OLDER_THAN_THE_FLAG | saved.flags
        changed = [name for name in MUST_AGREE if getattr(self.args, name) != flags[name]]
        if changed:
            raise UsageError(
                f"{saved.path}: its run had "
                + ", ".join(f"--{name} {flags[name]}" for name in changed)
                + "; resume with the same, or start a new run from its weights with --sam_checkpoint"
            )
        own, theirs = images_a_step(vars(self.args)), images_a_step(flags)
        if own != theirs:
            raise UsageError(
                f"{saved.path}: its run took {theirs} images a step (--batch_size {flags['batch_size']} --accumulate "
                f"{flags['accumulate']} in {flags['processes']} process(es)), this one takes {own} in "
                f"{self.args.processes}; resume with such a --batch_size and --accumulate that it is as many"
            )
        batches = saved.content["progress"]["steps_an_epoch"]
        if batches != self.progress.steps_an_epoch:
            raise UsageError(
                f"{saved.path}: its run had {batches} batches an epoch, this one has "
                f"{self.progress.steps_an_epoch}; resume with the same data and --batch_size"
            )
        before, now = (one.get("start_hash") for one in (saved.content.get("made_by", {}), self.made_by))
        if before != now:
            raise UsageError(
                f"{self.args.sam_checkpoint}: is another file than when the run of {saved.path} began, whose answers "
                "--pull keeps to; name the same weights with --sam_checkpoint"
            )
        problem = self._other_optimizer(saved.content["optimizer"]) or self._other_average(saved.content)
        if problem:
            raise CheckpointError(f"{saved.path}: does not fit the model: {problem}; take another last.pth")
        print(fit_weights(self.model, WeightFile(Path(saved.path), saved.content["model"], frame=flags["frame"])))
        self.learner.load_state_dict(saved.content)
        self.progress.load_state_dict(saved.content["progress"])
        if self.average:
            self.average.load_state_dict(saved.content["average"])
        if not (self.folder / "best.pth").exists():  # the run goes on under another name
            self.progress.best_name = ""

    def _other_optimizer(self, state: dict[str, Any]) -> str:
        """What of an optimizer's state is not of this run's parameters; "" where all is."""
        groups, own = state["param_groups"], self.learner.optimizer.param_groups
        sizes, wanted = ([len(group["params"]) for group in some] for some in (groups, own))
        if sizes != wanted:
            return f"its optimizer has groups of {sizes} tensors, this run of {wanted}"
        names = [name for group in groups for name in group["params"]]
        parameters = dict(zip(names, (parameter for group in own for parameter in group["params"])))
        if len(parameters) < len(names) or not all(isinstance(name, int) for name in names):
            return "its optimizer's groups do not name each tensor once"
        for name, moments in state["state"].items():
            if name not in parameters:
                return f"optimizer/state/{name} is of no tensor"
            for part in ("exp_avg", "exp_avg_sq"):
                if moments[part].shape != parameters[name].shape:
                    return (
                        f"optimizer/state/{name}/{part} has the shape {tuple(moments[part].shape)} instead of "
                        f"{tuple(parameters[name].shape)}"
                    )
            if moments["step"].numel() != 1:
                return f"optimizer/state/{name}/step is no number"
        return ""

    def _other_average(self, content: dict[str, Any]) -> str:
        """What of a state's average is not of this run's parameters; "" where all is."""
        if not self.average:
            return ""
        tensors = content.get("average", {})
        for name, own in self.average.tensors.items():
            if name not in tensors or tensors[name].shape != own.shape:
                return f"average/{name} is missing or has another shape than {tuple(own.shape)}"
        return ""

    def save_is_due(self) -> bool:
        """Within an epoch: after --save_every steps, and after --save_minutes."""
        every, minutes = self.args.save_every, self.args.save_minutes
        late = minutes and time.monotonic() - self.saved_at > 60 * minutes
        return bool((every and self.progress.step % every == 0) or late)

    def save(self) -> None:
        """After an epoch: last.pth, best.pth where the epoch was the best so far, and what --keep_last asks for."""
        self._keep_going(self._save_epoch, final=self.progress.epoch == self.args.epochs)

    def save_last(self, final: bool = False) -> None:
        """final: training ends here."""
        self._keep_going(lambda: self.write("last.pth", self._state()), final)

    def _keep_going(self, save: Callable[[], None], final: bool) -> None:
        """Save; where the disk does not take it, training goes on until the next time.

        Raises OSError where it has failed before, or this is the last chance.
        """
        if not self.processes.leads:
            return
        self.saved_at = time.monotonic()
        try:
            save()
            self.failed = False
        except OSError as error:
            if error.errno not in REMEDIES or self.failed or final:
                raise
            self.failed = True
            print(
                f"warning: {disk_line(error)}. The checkpoint before is whole; training goes on, and ends where the "
                "next one cannot be written either",
                file=sys.stderr,
            )

    def _save_epoch(self) -> None:
        progress = self.progress
        if progress.improved:
            judged: dict[str, Any] = {
                "epoch": progress.best_epoch,
                progress.best_name.replace(" ", "_").lower(): progress.best,
            }
            weights = None
            if self.average:
                judged["averaged"] = progress.best_averaged
                weights = self.average.weights(self.model) if progress.best_averaged else None
            name, progress.best_name = progress.best_name, ""  # until it is there: the next epoch is better than none
            self.write("best.pth", judged, weights)
            progress.best_name = name
        self.write("last.pth", self._state())
        if self.args.keep_last:
            self._keep(self.folder / f"epoch_{progress.epoch}.pth")

    def _keep(self, path: Path) -> None:
        """What last.pth is now stays under this name, and as many of the others as --keep_last says."""
        path.unlink(missing_ok=True)
        try:
            os.link(self.folder / "last.pth", path)
        except OSError:  # a file system without links
            shutil.copyfile(self.folder / "last.pth", path)
        for old in kept_states(self.folder)[: -self.args.keep_last]:
            old.unlink()

    def _state(self) -> dict[str, Any]:
        average = {"average": self.average.tensors} if self.average else {}
        return {**self.learner.state_dict(), "progress": self.progress.state_dict(), **average}

    def write(self, name: str, content: dict[str, Any], weights: dict[str, Tensor] | None = None) -> None:
        """One file, with the weights (by default the model's) and the flags beside the content.

        Raises UsageError for weights that are not finite: the last step can break them without a loss that shows it.
        """
        weights = weights or self.model.state_dict()
        broken = [name for name, tensor in weights.items() if not is_finite(tensor)]
        if broken:
            raise UsageError(
                f"{len(broken)} tensors of the model are not finite, such as {broken[0]}. Nothing was saved after the "
                f"last checkpoint in {self.folder}; lower --lr or switch --use_amp off, and --resume"
            )
        flags = {name: value for name, value in vars(self.args).items() if name not in NOT_FLAGS}
        about = {FRAME: self.model.frame} | ({WINDOW: list(self.model.window)} if self.model.window else {})
        content = {"model": weights, **about, **content, "made_by": self.made_by, "flags": flags}
        save_checkpoint(content, self.folder / name)
