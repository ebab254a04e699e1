"""What a person sees of a run: means for TensorBoard, validation, pictures, and a loss that is no longer finite."""

import argparse
import math
import time
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Subset
from tqdm import tqdm

from sam_med2d import drawing
from sam_med2d.data.batch import Batch, collate
from sam_med2d.data.datasets import TestingDataset, TrainingDataset, scoring_sample, test_loader
from sam_med2d.data.geometry import by_centres
from sam_med2d.data.index import Index
from sam_med2d.data.vanishing import Vanished, told
from sam_med2d.distributed import Processes
from sam_med2d.errors import DataError, UsageError
from sam_med2d.evaluation.evaluate import Means, evaluate
from sam_med2d.evaluation.sensitivity import sensitivity, values_of, with_swapped
from sam_med2d.prompts.annotators import SimulatedAnnotator
from sam_med2d.prompts.modes import parse_mode
from sam_med2d.training.boards import Boards
from segment_anything import Sam
from segment_anything.geometry import EXACT

PANEL_IMAGES = 4  # images drawn for TensorBoard after each epoch


def validation_loader(args: argparse.Namespace, processes: Processes):
    """Of this process's share of the images; None where the data has no index of a `val` split."""
    folder = Path(args.data_path)
    if not any((folder / f"{kind}_val.json").exists() for kind in ("image2label", "label2image")):
        return None
    closer = any(mode.zoomed for mode in args.modes)
    dataset = TestingDataset(args.data_path, args.image_size, "val", args.frame, closer)
    own = Subset(dataset, range(processes.rank, len(dataset), processes.count))
    return test_loader(own, args.batch_size, args.num_workers)


def check_finite(scalars: dict[str, float], step: int, folder: Path) -> None:
    """Raises UsageError with the terms of a loss that is no number. folder: where the last checkpoint is."""
    terms = {name: value for name, value in scalars.items() if name.startswith("loss/")}
    if not all(map(math.isfinite, terms.values())):
        said = ", ".join(f"{name.removeprefix('loss/')} {value:g}" for name, value in terms.items())
        raise UsageError(
            f"the loss is not finite in step {step}: {said}. Nothing was saved after the last checkpoint in "
            f"{folder}; lower --lr or switch --use_amp off, and --resume"
        )


class Late:
    """Scalars that a device may still be computing: they are on their way to the host, and nobody waits."""

    def __init__(self, scalars: dict[str, Tensor]) -> None:
        self.names = [*scalars]
        self.values = torch.stack([*scalars.values()])
        self.arrived = None
        if self.values.is_cuda:
            on_host = torch.empty(self.values.shape, dtype=self.values.dtype, pin_memory=True)
            on_host.copy_(self.values, non_blocking=True)
            self.values, self.arrived = on_host, torch.cuda.Event()
            self.arrived.record()

    def read(self) -> dict[str, float]:
        if self.arrived is not None:
            self.arrived.synchronize()
        return dict(zip(self.names, self.values.tolist()))


class Window:
    """Means of the scalars since it was opened."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = defaultdict(float)
        self.counts: dict[str, int] = defaultdict(int)
        self.count = self.images = 0
        self.opened = time.monotonic()

    def add(self, scalars: dict[str, float], images: int) -> None:
        self.latest = scalars
        self.count += 1
        self.images += images
        for name, value in scalars.items():
            self.sums[name] += value
            self.counts[name] += 1

    def mean(self, name: str) -> float:
        return self.sums[name] / self.counts[name]

    def latest_dice(self) -> float:
        """Of the last round."""
        rounds = [value for name, value in self.latest.items() if name.startswith(("dice/start", "dice/round"))]
        return rounds[-1]

    def images_per_second(self) -> float:
        return self.images / (time.monotonic() - self.opened)

    def write(self, board: Boards, step: int, rate: float) -> None:
        for name in self.sums:
            board.add_scalar(name, self.mean(name), step)
        board.add_scalar("lr", rate, step)
        board.add_scalar("images_per_second", self.images_per_second(), step)


def validate(
    model: Sam,
    loader,
    args: argparse.Namespace,
    board: Boards,
    step: int,
    processes: Processes,
    kind: str = "",
) -> dict[str, float]:
    """-> mean Dice of each prompt mode on the val split, the same in all processes and for any number of them.

    kind: of the weights, where they are not those of the step.
    """
    own: list[list[tuple[str, dict[str, list[float]]]]] = []  # of each image of this process, what each mode scored
    empty, vanished = 0, dict[str, Vanished]()
    batches = tqdm(
        loader, desc="validation", unit="batch", leave=False, dynamic_ncols=True, disable=not processes.leads
    )
    for batch, scored in evaluate(
        model,
        batches,
        with_swapped(args.modes),
        device=model.device,
        annotator=SimulatedAnnotator(args.seed),
        multimask=args.multimask,
        use_amp=args.use_amp,
    ):
        own += [
            [(one.mode.name, values_of(one)) for one in scored if one.image == image]
            for image in range(len(batch.images))
        ]
        empty += len(batch.skipped) - len(batch.vanished)
        vanished |= batch.vanished
    shares = processes.gather((own, empty, vanished))
    means = Means()
    for place in range(max(len(images) for images, *_ in shares)):
        for images, *_ in shares:
            for mode, values in images[place] if place < len(images) else ():
                means.add_values(mode, values)
    empty = sum(share[1] for share in shares)
    vanished = {name: one for share in shares for name, one in share[2].items()}
    if not means.objects:
        what = f"vanishes: {told(vanished, args.image_size)}" if vanished else "is empty; correct or remove that index"
        raise DataError(f"{args.data_path}: every mask of its val split {what}")
    prefix = f"{kind}_" if kind else ""
    for metric in args.metrics:
        for mode in args.modes:
            board.add_scalar(f"val_{prefix}{metric}/{mode.name}", means.of(metric)[mode.name], step)
    for name, value in sensitivity(means, args.modes).items():
        board.add_scalar(f"val_{prefix}{name}", value, step)
    of_modes = {mode.name: means.of("dice")[mode.name] for mode in args.modes}
    if processes.leads:
        said = "  ".join(f"{mode} {value:.4f}" for mode, value in of_modes.items())
        of = f"{means.objects} objects" + (f", {kind} weights" if kind else "")
        print(f"validation Dice of {of}: {said}" + (f"  ({empty} empty skipped)" if empty else ""))
        if vanished:
            print(f"not validated on: {told(vanished, args.image_size)}")
    return of_modes


def panel_of(dataset: TrainingDataset) -> Batch:
    """The training images that are drawn after each epoch; without those that cannot be read, if they may be left out.

    Raises DataError.
    """
    samples = []
    for i in range(min(PANEL_IMAGES, len(dataset.index))):
        try:
            samples.append(scoring_sample(dataset.index, i, dataset.image_size, dataset.frame))
        except DataError:
            if not dataset.skip_bad:
                raise
    return collate(samples)


def draw_panels(model: Sam, batch: Batch, index: Index, args: argparse.Namespace, board: Boards, step: int) -> None:
    """Some training images with predictions, truths and prompts, from a box and after three clicks."""
    from sam_med2d.evaluation.gallery import tiles_of  # loads pandas, which --help can do without

    paper = by_centres(model.frame, EXACT)
    for _, scored in evaluate(
        model,
        [batch],
        [parse_mode("bbox"), parse_mode("3pts")],
        device=model.device,
        annotator=SimulatedAnnotator(args.seed),
        multimask=args.multimask,
        use_amp=args.use_amp,
    ):
        for mode in ("bbox", "3pts"):
            tiles = [tile for one in scored if one.mode.name == mode for tile in tiles_of(batch, one, index, paper)]
            if tiles:
                board.add_image(
                    f"training_images/{mode}", drawing.grid(tiles)[..., ::-1].copy(), step, dataformats="HWC"
                )
