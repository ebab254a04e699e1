"""Where scalars and pictures of a run go: TensorBoard, a JSON line an epoch, and Weights & Biases if it is asked for.

    with boards_of(args, logs, state, resumed=False) as board:
        board.add_scalar("loss/loss", 0.3, step)
        board.end_epoch(1, step)

What is told is what `SummaryWriter` of TensorBoard takes.
"""

import argparse
import json
import secrets
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from sam_med2d.cli import REMEDIES
from sam_med2d.image_files import encode_png
from sam_med2d.json_files import parse_json
from sam_med2d.training.state import RunState
from segment_anything import flops
from segment_anything.files import replacing
from segment_anything.modeling.tuning import count_trained

LOG = "log.jsonl"


class EpochLog:
    """A JSON line an epoch: its number, its step, when it ended, and the last value of every scalar of it.

    The file is replaced in one step. What it cannot be told does not end a run.
    """

    def __init__(self, path: Path, epochs: int) -> None:
        """epochs: that are done; lines of later ones, from before a run was resumed, go."""
        self.path = path
        self.lines = _lines_up_to(path, epochs)
        self.scalars: dict[str, float] = {}

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        self.scalars[tag] = float(scalar_value)

    def add_image(self, tag: str, img_tensor: np.ndarray, global_step: int, *, dataformats: str) -> None:
        """Pictures are no part of it."""

    def end_epoch(self, epoch: int, step: int) -> None:
        """epoch: counted from 1."""
        place = {"epoch": epoch, "step": step, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        self.lines.append(json.dumps(place | self.scalars))
        self.scalars = {}
        try:
            with replacing(self.path) as temporary:
                temporary.write_text("".join(f"{line}\n" for line in self.lines), encoding="utf-8")
        except OSError as error:
            print(f"{self.path}: {error.strerror}; the epoch is not in it", file=sys.stderr)

    def close(self) -> None:
        """Nothing is left to be written."""


def _lines_up_to(path: Path, epochs: int) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return []
    kept = []
    for line in lines:
        try:
            content = parse_json(line.encode())
        except ValueError:
            continue
        if isinstance(content, dict) and isinstance(content.get("epoch"), int) and content["epoch"] <= epochs:
            kept.append(line)
    return kept


class WandbBoard:
    """A run of Weights & Biases, which a resumed training goes on with. WANDB_MODE=offline keeps it on this machine."""

    def __init__(self, project: str, name: str, folder: Path, flags: dict[str, Any], resumed: bool) -> None:
        """folder: where its files lie, and what says which run it is. Raises ModuleNotFoundError: not installed."""
        import wandb

        self._wandb = wandb
        known = folder / "wandb_run.txt"
        own = known.read_text(encoding="utf-8").strip() if resumed and known.exists() else secrets.token_hex(4)
        known.write_text(own, encoding="utf-8")
        self.run = wandb.init(project=project, name=name, id=own, resume="allow", dir=str(folder), config=flags)

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        self.run.log({tag: float(scalar_value)}, step=global_step)

    def add_image(self, tag: str, img_tensor: np.ndarray, global_step: int, *, dataformats: str) -> None:
        self.run.log({tag: self._wandb.Image(img_tensor)}, step=global_step)

    def close(self) -> None:
        self.run.finish()


class Boards:
    """Several that are told the same."""

    def __init__(self, boards: Sequence[Any]) -> None:
        self.boards = boards

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        for board in self.boards:
            board.add_scalar(tag, scalar_value, global_step)

    def add_image(self, tag: str, img_tensor: np.ndarray, global_step: int, *, dataformats: str) -> None:
        """img_tensor: (h, w, 3) uint8, RGB."""
        for board in self.boards:
            board.add_image(tag, img_tensor, global_step, dataformats=dataformats)

    def end_epoch(self, epoch: int, step: int) -> None:
        """epoch: counted from 1, that is over."""
        for board in self.boards:
            if isinstance(board, EpochLog):
                board.end_epoch(epoch, step)

    def __enter__(self) -> "Boards":
        self._hook, threading.excepthook = threading.excepthook, self._of_a_thread
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """A board that cannot be closed hides no error that ends the run."""
        try:
            for board in self.boards:
                board.close()
        except OSError:
            if kind is None:
                raise
        finally:
            threading.excepthook = self._hook

    def _of_a_thread(self, args: threading.ExceptHookArgs) -> None:
        """TensorBoard writes in a thread; where its disk is full, the next call of the board says so."""
        if not (isinstance(args.exc_value, OSError) and args.exc_value.errno in REMEDIES):
            self._hook(args)


class TensorBoard(SummaryWriter):
    """TensorBoard, told the flags of the run, which its tab HPARAMS compares between runs beside their scores."""

    def __init__(self, folder: Path, purge_step: int | None, flags: dict[str, Any], scores: Iterable[str]) -> None:
        """scores: tags of the scalars to compare. purge_step: what a resumed run had logged from there on goes."""
        super().__init__(str(folder), purge_step=purge_step)
        experiment, session, _ = hparams({k: _plain(v) for k, v in flags.items()}, dict.fromkeys(scores, 0.0))
        for told in (experiment, session):
            self._get_file_writer().add_summary(told)

    def add_image(
        self,
        tag: str,
        img_tensor: np.ndarray,
        global_step: int | None = None,
        walltime: float | None = None,
        dataformats: str = "HWC",
    ) -> None:
        """img_tensor: (h, w, 3) uint8, RGB. Compressed in half the time that Pillow takes, by a fifth less."""
        if dataformats != "HWC":
            raise ValueError(f"pictures of the layout {dataformats}, not HWC")
        height, width, _ = img_tensor.shape
        picture = encode_png(img_tensor[..., ::-1], level=1)
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=picture)
        self._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), global_step, walltime)


def _plain(value: Any) -> int | float | str:
    """What the tab HPARAMS can show."""
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)


def boards_of(args: argparse.Namespace, folder: Path, state: RunState, resumed: bool) -> Boards:
    """Those that the flags of a run ask for, told what is trained. folder: of its logs, which is there.

    Raises ModuleNotFoundError where --wandb is given and it is not installed.
    """
    progress = state.progress
    step = progress.step + 1 if resumed else None
    flags = {name: value for name, value in vars(args).items() if name != "modes"}
    scores = ["loss/loss", *(f"val_{metric}/{mode.name}" for metric in args.metrics for mode in args.modes)]
    boards: list[Any] = [EpochLog(folder / LOG, progress.epoch), TensorBoard(folder, step, flags, scores)]
    if args.wandb:
        boards.append(WandbBoard(args.wandb, args.run_name, folder, flags, resumed))
    board = Boards(boards)
    for group, count in count_trained(state.model).items():
        board.add_scalar(f"trained/{group.replace(' ', '_')}", count, progress.step)
    if args.count_flops:
        for name, value in flops.count(state.model)._asdict().items():
            board.add_scalar(f"cost/{name}", value, progress.step)
    return board


class Waits:
    """The batches of a loader, with the time that an epoch takes and the part of it spent waiting for them."""

    def __init__(self, loader: Iterable) -> None:
        self.loader = loader
        self.begun = time.monotonic()
        self.waited = 0.0  # seconds

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator:
        batches = iter(self.loader)
        while True:
            asked = time.monotonic()
            batch = next(batches, None)
            self.waited += time.monotonic() - asked
            if batch is None:
                return
            yield batch

    def scalars(self, device: torch.device) -> dict[str, float]:
        """Of the epoch so far: seconds, the share of them spent waiting for data, memory in GB."""
        seconds = time.monotonic() - self.begun
        return {
            "epoch/seconds": seconds,
            "epoch/waiting_for_data": self.waited / max(seconds, 1e-9),
            "epoch/memory_gb": memory_high_water(device) / 1e9,
        }


def memory_high_water(device: torch.device) -> int:
    """Bytes: the most that the device's tensors took so far; on a CPU, the most of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024
