"""Two processes of one thread each, that share every step, against one of them alone: benchmark.py processes.

Both hold the model, and take turns with one another: a step of the first alone, with its own images; then one of each
at the same time, which share nothing, so that this is what the machine has for two; then a step of both, each with as
many images, whose gradients are summed (gloo). The shares are those of twice the speed.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch
from timing import add_step_flags

from sam_med2d.data.batch import collate
from sam_med2d.data.datasets import TrainingDataset
from sam_med2d.distributed import join_processes
from sam_med2d.training.learner import Learner
from sam_med2d.training.rounds import Recipe, Share, train_batch
from segment_anything import sam_model_registry
from segment_anything.modeling.tuning import TUNE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_step_flags(parser, rounds=7)
    parser.add_argument(
        "--tune", default="adapters", choices=[*TUNE], help="What is trained, as in train.py. Default: %(default)s."
    )


def run(args: argparse.Namespace) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1]), "WORLD_SIZE": "2"}
    command = [sys.executable, __file__, json.dumps(vars(args))]
    started = [
        subprocess.Popen(command, env={**os.environ, **place, "RANK": str(rank), "OMP_NUM_THREADS": "1"})
        for rank in range(2)
    ]
    statuses = [process.wait() for process in started]
    if any(statuses):
        raise SystemExit(1)


def work(args: argparse.Namespace) -> None:
    """In each of the two."""
    torch.set_num_threads(1)
    processes = join_processes()
    torch.manual_seed(0)
    model = sam_model_registry[args.model_type](image_size=args.image_size, encoder_adapter=args.tune == "adapters")
    model.train_for(args.tune)
    model.train()
    dataset = TrainingDataset(args.data_path, args.image_size, "train", args.mask_num)
    images = range(processes.rank * args.batch_size, (processes.rank + 1) * args.batch_size)
    batch = collate([dataset[0, i % len(dataset)] for i in images])
    recipe = Recipe(corrections=args.iter_point)
    own, rows = Learner(model, lr=1e-5), [row for (row,) in processes.numbers([len(batch.mask_names)])]
    shared = Learner(model, lr=1e-5, processes=processes)
    share = Share(sum(rows[: processes.rank]), sum(rows))
    times: dict[str, list[float]] = {"alone": [], "apart": [], "both": []}
    for number in range(args.rounds + 1):
        for name, found in times.items():
            processes.wait()
            before = time.perf_counter()
            if name == "both":
                train_batch(model, [batch], shared, recipe, 0, share)
            elif processes.leads or name == "apart":
                train_batch(model, [batch], own, recipe, 0)
            if name == "apart":
                processes.wait()  # for the slower one, as a shared step does
            if number:  # the first round warms up
                found.append(time.perf_counter() - before)
    if processes.leads:
        alone, apart, both = (1000 * statistics.median(found) for found in times.values())
        ratios = [one / two for one, _, two in zip(*times.values())]
        print(
            f"{args.model_type}, {args.image_size} px, --tune {args.tune}, {args.batch_size} images and "
            f"{rows[0]} objects a process, {args.iter_point + 1} rounds, torch {torch.__version__}, median of "
            f"{args.rounds}"
        )
        print(f"one process of one thread       {alone:10.1f} ms   {1000 * args.batch_size / alone:6.2f} images/s")
        print(f"two that share nothing          {apart:10.1f} ms   {2000 * args.batch_size / apart:6.2f} images/s")
        print(f"two processes of one thread     {both:10.1f} ms   {2000 * args.batch_size / both:6.2f} images/s")
        print(f"share of twice the speed        {statistics.median(ratios):10.2f}      best {max(ratios):.2f}")
        print(f"share of two that share nothing {apart / both:10.2f}")


if __name__ == "__main__":
    work(argparse.Namespace(**json.loads(sys.argv[1])))
