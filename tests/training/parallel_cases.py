"""Eight steps of training in one process or a share of them in each of several: what test_parallel.py compares."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

from sam_med2d.data.batch import Batch
from sam_med2d.distributed import Processes, join_processes
from sam_med2d.training.averaging import Average
from sam_med2d.training.learner import Learner, Schedule
from sam_med2d.training.rounds import Recipe, Share, train_batch
from sam_med2d.training.teacher import Teacher
from segment_anything import Sam
from segment_anything.build_sam import build_sam
from segment_anything.modeling.lora import add_lora
from segment_anything.sizes import SIZES, Size
from tests.conftest import ROOT

SIDE = 32
STEPS = 8
OBJECTS = ((2, 1, 0, 1), (1, 0, 0, 0), (0, 0, 1, 2), (2, 1, 1, 1), (0, 0, 0, 0), (1, 1, 1, 1))  # of each image, by step


class Case(NamedTuple):
    tune: str = "adapters"
    drawings: float = 0.0
    double: bool = True
    images_at_once: int = 4
    keep_clicks: bool = False
    clip_norm: float | None = None
    optimizer: str = "adam"
    checkpointing: bool = False
    pull: float = 0.0


CASES = {
    "adapters": Case(),
    "decoder": Case(tune="decoder"),
    "accumulated, clipped": Case(
        images_at_once=1, clip_norm=0.5, keep_clicks=True, optimizer="adamw", checkpointing=True, pull=0.7
    ),
    "lora": Case(tune="lora", drawings=0.7),
    "all": Case(tune="all"),
    "float32": Case(double=False),
}


def images_of(step: int, rank: int, count: int) -> tuple[Batch, list[int]]:
    """A process's share of a step of four images -> it, and how many objects each process has."""
    objects = OBJECTS[step % len(OBJECTS)]
    draw = torch.Generator().manual_seed(step)
    images = torch.randint(0, 256, (4, 3, SIDE, SIDE), generator=draw, dtype=torch.uint8)
    masks = torch.zeros(sum(objects), 1, SIDE, SIDE, dtype=torch.bool)
    for mask in masks:
        x, y, w, h = torch.randint(3, 15, (4,), generator=draw).tolist()
        mask[0, y : y + h, x : x + w] = True
    index = torch.repeat_interleave(torch.arange(4), torch.tensor(objects))
    shares = [range(4 * r // count, 4 * (r + 1) // count) for r in range(count)]
    own = (index >= shares[rank].start) & (index < shares[rank].stop)
    batch = Batch(
        images=images[shares[rank].start : shares[rank].stop],
        content=torch.tensor([[0, 0, SIDE, SIDE]] * len(shares[rank])),
        masks=masks[own],
        image_index=index[own] - shares[rank].start,
        image_names=[str(i) for i in shares[rank]],
        mask_names=[str(i) for i in own.nonzero().flatten().tolist()],
        original_sizes=[(SIDE, SIDE)] * len(shares[rank]),
        original_masks=None,
        skipped=[],
        replayed=[i % 2 == 1 for i in shares[rank]],
    )
    return batch, [sum(objects[i] for i in share) for share in shares]


def model_of(case: Case) -> Sam:
    torch.manual_seed(0)
    with patch.dict(SIZES, mini=Size(channels=16, depth=2, heads=2, global_blocks=(1,), embedding=32)):
        model = build_sam(model_type="mini", image_size=SIDE, encoder_adapter=case.tune == "adapters")
    for adapter in model.image_encoder.adapters():
        torch.nn.init.constant_(adapter.norm.weight, 0.1)
    if case.tune == "lora":
        add_lora(model, 2, 4.0, ["qkv", "proj", "mlp", "decoder"], None, torch.Generator().manual_seed(5))
    model.train_for(case.tune)
    model.image_encoder.checkpointing = case.checkpointing
    return model.to(torch.float64 if case.double else torch.float32).train()


def run(case: Case, processes: Processes) -> dict[str, Tensor]:
    """-> weights, averages, the gradients of the first two rounds, and the scalars of every step."""
    given, kept = torch.get_default_dtype(), torch.Tensor.float
    if case.double:  # in double precision throughout: what training keeps in float32 would hide an error of 1e-8
        torch.set_default_dtype(torch.float64)
        torch.Tensor.float = torch.Tensor.double
    try:
        model = model_of(case)
        learner = Learner(
            model,
            lr=1e-3 if case.double else 1e-5,
            schedule=Schedule("cosine", 2, STEPS, warmup=3),
            clip_norm=case.clip_norm,
            optimizer=case.optimizer,
            weight_decay=0.1 if case.optimizer == "adamw" else 0.0,
            processes=processes,
        )
        average = Average(model, 0.9)
        found: dict[str, Tensor] = {}
        seen = []
        learner.optimizer.register_step_pre_hook(
            lambda *_: seen.append([None if p.grad is None else p.grad.clone() for p in learner.parameters])
        )
        recipe = Recipe(corrections=3, click_counts=(1, 2), keep_clicks=case.keep_clicks, seed=3)
        recipe = recipe._replace(scribble_share=case.drawings, lasso_share=case.drawings, rank_weight=case.drawings)
        if case.pull:
            recipe = recipe._replace(teacher=Teacher(model_of(Case(double=case.double, tune="all")).eval(), case.pull))
        for step in range(STEPS):
            batch, rows = images_of(step, processes.rank, processes.count)
            if not sum(rows):
                continue
            learner.set_rate(step)
            share = Share(sum(rows[: processes.rank]), sum(rows), all(rows))
            scalars = train_batch(model, batch.parts(case.images_at_once), learner, recipe, step, share)
            average.update(step)
            found |= {f"step {step} {name}": value.clone() for name, value in scalars.items()}
        for turn, gradients in enumerate(seen[:4]):
            found |= {f"gradient {turn} {i}": g for i, g in enumerate(gradients) if g is not None}
        found |= {f"average {name}": tensor for name, tensor in average.tensors.items()}
        return found | {f"weight {name}": tensor.clone() for name, tensor in model.state_dict().items()}
    finally:
        torch.set_default_dtype(given)
        torch.Tensor.float = kept


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(words: Sequence[object], count: int, **options: object) -> list[subprocess.Popen]:
    """The same Python command in so many processes that find one another, as torchrun starts them."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(count)}
    shared |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return [
        subprocess.Popen(
            [sys.executable, *map(str, words)],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            **options,
        )
        for rank in range(count)
    ]


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    processes = join_processes()
    torch.save({name: run(case, processes) for name, case in CASES.items()}, folder / f"{processes.rank}.pth")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
