"""How time and memory grow with an image's size, the batch, objects, clicks and slices: a picture and a table.

    python scripts/benchmark.py curves --picture docs/images/cost_curves.png
    python scripts/benchmark.py curves --model_type vit_b --what size batch --picture workdir/vit_b.png

Each point is a process of its own, so that no other has warmed or filled its memory: the median of three calls after
one that warms up, in seconds of the processor, which other work on the machine disturbs least (OMP_NUM_THREADS=1: no
thread waits for another), and how far the memory of the process rises above what it had before. The table says how the
time grows against the work: beside counted operations (encoder, decoder) or slices, from the first point on.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from benchmark_use import ENDLESS, phantom
from process_memory import forget_peak, resident
from timing import gflop_of

from sam_med2d.memory import keep_freed_memory
from sam_med2d.volumes.intensity import Intensity
from sam_med2d.volumes.propagation import Slices, propagate
from segment_anything import FOREGROUND, ObjectPrompt, Prompts, Sam, SamPredictor, answer, look, sam_model_registry

Point = tuple[Callable[[], object], Callable[[], float]]  # what is timed, and what counts its work
CALLS = 3
FASTER = 1.25  # times the work: more is said in capitals
CURVES: dict[str, tuple[str, tuple[int, ...]]] = {
    "size": ("side of the image, pixels", (256, 512, 1024)),
    "batch": ("images encoded at once", (1, 2, 4, 8, 16)),
    "objects": ("objects of an image, one click each", (1, 4, 16, 64, 256)),
    "clicks": ("clicks on one object", (1, 2, 5, 10, 20, 40)),
    "slices": ("slices of a volume", (10, 20, 40, 80)),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--what", nargs="+", choices=[*CURVES], default=[*CURVES], help="The curves to measure. Default: all."
    )
    parser.add_argument(
        "--model_type", default="vit_t", choices=[*sam_model_registry], help="Size of the model. Default: %(default)s."
    )
    parser.add_argument("--picture", type=Path, metavar="FILE.png", help="Draw the curves into this file.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="Keep the points in this file.")
    parser.add_argument("--point", nargs=2, metavar=("WHAT", "VALUE"), help="Measure one point alone, in this process.")


def run(args: argparse.Namespace) -> None:
    if args.point:
        what, value = args.point
        print(json.dumps(measured(what, int(value), args.model_type)))
        return
    points = {what: [elsewhere(what, value, args.model_type) for value in CURVES[what][1]] for what in args.what}
    for what, found in points.items():
        print(f"\n{what}: {CURVES[what][0]}, {args.model_type}")
        for one in found:
            print(line_of(one, found[0]))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(points, indent=1) + "\n", encoding="utf-8")
    if args.picture:
        draw(points, args.model_type, args.picture)
        print(f"\n{args.picture}")


def line_of(one: dict[str, float], first: dict[str, float]) -> str:
    work, growth = one["work"] / first["work"], one["seconds"] / first["seconds"]
    fast = "   FASTER THAN ITS WORK" * (growth > FASTER * work)
    told = f"{one['value']:6.0f} {1000 * one['seconds']:10.1f} ms {one['megabytes']:8.0f} MB"
    return f"{told}   work x {work:.2f}, time x {growth:.2f}: {growth / work:.2f}{fast}"


# ---------------------------------------------------------------- one point


def elsewhere(what: str, value: int, model_type: str) -> dict[str, float]:
    """`measured`, in a process of its own. Raises CalledProcessError."""
    line = [sys.executable, str(Path(__file__).with_name("benchmark.py")), "curves", "--model_type", model_type]
    done = subprocess.run([*line, "--point", what, str(value)], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


@torch.inference_mode()
def measured(what: str, value: int, model_type: str) -> dict[str, float]:
    keep_freed_memory()
    work, amount = POINTS[what](value, model_type)  # counted last: it takes memory
    before = resident()
    forget_peak()
    times = []
    for _ in range(CALLS + 1):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return {
        "value": value,
        "seconds": statistics.median(times[1:]),
        "megabytes": (resident(most=True) - before) / 1e6,
        "work": amount(),
    }


def model_of(model_type: str, side: int, **parts: bool) -> Sam:
    return sam_model_registry[model_type](image_size=side, encoder_adapter=True, **parts).for_inference()


def encoding(model: Sam, count: int) -> Point:
    images = torch.randint(0, 256, (count, 3, model.image_size, model.image_size))
    return lambda: model.encode(images), lambda: count * gflop_of(lambda: model.encode(images[:1]))


def answering(model_type: str, objects: int, clicks: int) -> Point:
    model = model_of(model_type, 256)
    seen = look(model, torch.randint(0, 256, (1, 3, 256, 256)))
    points = torch.rand(objects, clicks, 2) * 256
    prompts = Prompts(points, torch.full((objects, clicks), FOREGROUND))

    def work() -> torch.Tensor:
        return model.upscale(answer(model, seen.for_each(objects), prompts, True, best=True).logits)

    return work, lambda: gflop_of(work)


def following(model_type: str, slices: int) -> Point:
    model, scan = model_of(model_type, 256), phantom(slices)
    prompt = ObjectPrompt(box=np.array([85, 72, 176, 168], np.float32))

    def work() -> None:
        sliced = Slices(SamPredictor(model, zoom="never"), scan, 0, Intensity(by_volume=True))
        found = propagate(sliced, {slices // 2: prompt}, ENDLESS)
        assert len(found.slices) == slices, "the object goes on"
        sliced.assemble(found.slices)

    return work, lambda: slices


POINTS: dict[str, Callable[[int, str], Point]] = {
    "size": lambda value, model_type: encoding(model_of(model_type, value), 1),
    "batch": lambda value, model_type: encoding(model_of(model_type, 256), value),
    "objects": lambda value, model_type: answering(model_type, value, 1),
    "clicks": lambda value, model_type: answering(model_type, 1, value),
    "slices": lambda value, model_type: following(model_type, value),
}


# ---------------------------------------------------------------- the picture


def draw(points: dict[str, list[dict[str, float]]], model_type: str, path: Path) -> None:
    """Time above, memory below, each against what grows; dashed, as much as the work grows from the first point."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(points), 5.6), layout="constrained")
    above, below = figure.subplots(2, len(points), squeeze=False)
    for column, (what, found) in enumerate(points.items()):
        at = [one["value"] for one in found]
        time_of, memory_of = above[column], below[column]
        time_of.plot(at, [1000 * one["seconds"] for one in found], "o-", color="#2f7ed8", label="time")
        by_work = [1000 * found[0]["seconds"] * one["work"] / found[0]["work"] for one in found]
        time_of.plot(at, by_work, "--", color="#777777", label="as the work grows")
        memory_of.plot(at, [one["megabytes"] for one in found], "s-", color="#d9730d", label="memory")
        for axes in (time_of, memory_of):
            axes.set_xscale("log", base=2)
            axes.set_xticks(at, [f"{value:g}" for value in at])
            axes.grid(color="#dddddd", linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
        time_of.set_yscale("log")
        memory_of.set_ylim(bottom=0)
        time_of.set_title(what)
        memory_of.set_xlabel(CURVES[what][0])
    above[0].set_ylabel("processor time, milliseconds")
    below[0].set_ylabel("MB above the model")
    above[0].legend(frameon=False)
    figure.suptitle(f"{model_type}: time and memory, {torch.get_num_threads()} thread(s)")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
