"""Contenders timed side by side, the limits of the machine, and the sheet of figures, for scripts/benchmark.py."""

import argparse
import contextlib
import json
import platform
import re
import statistics
import time
import unittest.mock
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from segment_anything import sam_model_registry
from segment_anything.modeling import Adapter, mask_decoder, products, transformer
from segment_anything.modeling.products import linear

Work = Callable[[], object]


class Megabytes(float):
    """What a work returns that measured the memory of a process of its own."""


class Contender(NamedTuple):
    """precision: whose ceiling bounds it, a key of `ceilings`; gflop: what it must compute, 0 where nobody counted;
    items: images, or clicks, that one call works on, so that their rate is printed too."""

    work: Work
    precision: str = "float32"
    gflop: float = 0.0
    items: int = 0


class Figure(NamedTuple):
    """Of one contender: milliseconds, the ratio of the median to that of the first, billions of operations a second
    and their share of what the machine can do in this precision, items a second, and megabytes of the device's memory
    at most (of a GPU, or of a process that is a contender); None where it is not known."""

    area: str
    name: str
    median: float
    low: float
    high: float
    ratio: float
    gflops: float | None = None
    share: float | None = None
    rate: float | None = None
    memory: float | None = None

    def line(self) -> str:
        parts = [f"{self.name:46} {self.median:10.2f} ms [{self.low:.2f}, {self.high:.2f}]   x {self.ratio:.2f}"]
        if self.rate is not None:
            parts.append(f"{self.rate:.4g}/s")
        if self.gflops is not None:
            parts.append(f"{self.gflops / 1000:.3g} TFLOP/s")
        if self.share is not None:
            parts.append(f"{100 * self.share:.0f} % of the limit")
        if self.memory is not None:
            parts.append(f"{self.memory:.0f} MB")
        return "   ".join(parts)


class Sheet:
    """The figures of one run. device: waited for where it computes asynchronously; ceilings: see `ceilings`."""

    def __init__(self, rounds: int, device: torch.device, limits: dict[str, float] | None = None) -> None:
        self.rounds, self.device, self.limits = rounds, device, limits or {}
        self.figures: list[Figure] = []

    def compare(self, area: str, contenders: dict[str, Contender | Work]) -> list[Figure]:
        """Print and keep a figure each. The contenders take turns; a first turn warms up."""
        asked = {name: c if isinstance(c, Contender) else Contender(c) for name, c in contenders.items()}
        times: dict[str, list[float]] = {name: [] for name in asked}
        memory: dict[str, float] = {}
        for i in range(self.rounds + 1):
            for name, contender in asked.items():
                with self._peak(name, memory):
                    started = time.perf_counter()
                    result = contender.work()
                    self.wait()
                if isinstance(result, Megabytes):
                    memory[name] = max(result, memory.get(name, 0))
                if i:
                    times[name].append(1000 * (time.perf_counter() - started))
        first = statistics.median(next(iter(times.values())))
        figures = [self._figure(area, name, c, times[name], first, memory.get(name)) for name, c in asked.items()]
        for figure in figures:
            print(figure.line(), flush=True)
        self.figures += figures
        return figures

    def _figure(
        self, area: str, name: str, contender: Contender, times: list[float], first: float, memory: float | None
    ) -> Figure:
        median = statistics.median(times)
        gflops = contender.gflop / median * 1000 if contender.gflop else None
        limit = self.limits.get(contender.precision)
        return Figure(
            area, name, median, min(times), max(times), median / first, gflops,
            gflops / limit if gflops and limit else None,
            1000 * contender.items / median if contender.items else None, memory,
        )  # fmt: skip

    def wait(self) -> None:
        """Until the device has done what it was asked for."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @contextlib.contextmanager
    def _peak(self, name: str, memory: dict[str, float]) -> Iterator[None]:
        if self.device.type != "cuda":
            yield
            return
        torch.cuda.reset_peak_memory_stats(self.device)
        yield
        memory[name] = torch.cuda.max_memory_allocated(self.device) / 1e6

    def save(self, path: Path, **about: Any) -> None:
        figures = [figure._asdict() for figure in self.figures]
        content = {"machine": machine(self.device), **about, "gflops_at_most": self.limits, "figures": figures}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def print_beside(self, path: Path) -> None:
        """The ratio of each figure to that of the same name in another run's file."""
        other = json.loads(path.read_text(encoding="utf-8"))
        medians = {(figure["area"], figure["name"]): figure["median"] for figure in other["figures"]}
        print(f"\nbeside {path} ({other['machine']}):")
        for figure in self.figures:
            before = medians.get((figure.area, figure.name))
            ratio = "is not there" if before is None else f"x {figure.median / before:.2f}"
            print(f"{figure.area:10} {figure.name:46} {ratio}")


def add_step_flags(parser: argparse.ArgumentParser, rounds: int) -> None:
    """Of the benchmarks of training steps. rounds: how many are measured unless told otherwise."""
    # fmt: off
    parser.add_argument("--model_type", default="vit_b", choices=[*sam_model_registry],
        help="Size of the model. Default: %(default)s.")
    parser.add_argument("--image_size", type=int, default=256,
        help="Side of the frame, in pixels. Default: %(default)s.")
    parser.add_argument("--batch_size", type=int, default=2, help="Number of images of a step. Default: %(default)s.")
    parser.add_argument("--mask_num", type=int, default=5, help="Number of masks of each image. Default: %(default)s.")
    parser.add_argument("--iter_point", type=int, default=8,
        help="Number of corrections after the first prompt. Default: %(default)s.")
    parser.add_argument("--data_path", default="data_demo",
        help="Folder of the data that is trained on. Default: %(default)s.")
    parser.add_argument("--rounds", type=int, default=rounds,
        help="Number of rounds that are measured; one more warms up. Default: %(default)s.")
    # fmt: on


def machine(device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return f"{name}, torch {torch.__version__}, {torch.get_num_threads()} threads"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def compare(contenders: dict[str, Work], rounds: int, device: torch.device | None = None) -> dict[str, float]:
    """Print the median of each in milliseconds and its ratio to the first. -> medians in milliseconds."""
    figures = Sheet(rounds, device or torch.device("cpu")).compare("", {**contenders})
    return {figure.name: figure.median for figure in figures}


def gflop_of(work: Work) -> float:
    """Billions of operations (a multiplication and an addition are two) in the products of one call."""
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:  # without gradients attention is not counted
        work()
    return counter.get_total_flops() / 1e9


KINDS = {  # of a step's work, by the names of PyTorch's operations
    "losses": re.compile(r".*_PixelTerms.*"),  # with all that is called inside
    "products": re.compile(
        r"aten::(mm|addmm|bmm|baddbmm|mkldnn_convolution|convolution_backward|_slow_conv2d_\w+|_scaled_dot_product\w+)"
        r"|mkldnn::_linear_pointwise"
    ),
    "copies": re.compile(r"aten::(copy_|cat|fill_|zero_|im2col|col2im|index|_index_put_impl_)"),
    "optimizer": re.compile(r"aten::(_fused_adam_|linalg_vector_norm)|Optimizer\..*"),
}


def shares_of(work: Work) -> dict[str, float]:
    """Where the time of one call goes on a CPU: KINDS and "the rest" -> shares that add up to 1."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        work()
    spent: Counter[str] = Counter()
    for event in profile.events():
        spent[_kind_of(event)] += event.self_cpu_time_total
    return {kind: spent[kind] / spent.total() for kind in (*KINDS, "the rest")}


def _kind_of(event: Any) -> str:
    around = event
    while around is not None:
        if KINDS["losses"].fullmatch(around.name):
            return "losses"
        around = around.cpu_parent
    return next((kind for kind, pattern in KINDS.items() if pattern.fullmatch(event.name)), "the rest")


SHAPES = {"mlp": (256, 768, 3072), "qkv": (256, 768, 2304)}  # (tokens of an image, in, out) of ViT-B at 256 px


@torch.inference_mode()
def ceilings(device: torch.device, images: int = 8, rounds: int = 15) -> dict[str, float]:
    """What the machine does at most: billions of operations a second of the model's largest products for a batch of
    `images`, by precision, and under "copy" billions of bytes a second read and written.

    "int8" is left out where PyTorch has no product of int8 there.
    """
    sheet = Sheet(rounds, device)
    found: dict[str, float] = {}
    kinds: dict[str, tuple[torch.dtype, bool]] = {
        "float32": (torch.float32, False),
        "bfloat16": (torch.bfloat16, False),
    }
    if device.type == "cuda":
        kinds |= {"tf32": (torch.float32, True), "float16": (torch.float16, False)}
    for kind, (dtype, tf32) in kinds.items():
        with products_in_tf32(tf32):
            found[kind] = max(_product_rate(shape, images, dtype, sheet) for shape in SHAPES.values())
    with contextlib.suppress(RuntimeError):
        found["int8"] = _product_rate(SHAPES["mlp"], images, torch.int8, sheet)
    block = torch.empty(1 << (28 if device.type == "cuda" else 25), device=device).normal_()
    target = torch.empty_like(block)
    found["copy"] = 8e-9 * block.numel() / statistics.median(_times(lambda: target.copy_(block), sheet))
    return found


def _product_rate(shape: tuple[int, int, int], images: int, dtype: torch.dtype, sheet: Sheet) -> float:
    """Billions of operations a second."""
    tokens, wide, out = shape
    a = torch.randint(-9, 9, (images * tokens, wide), device=sheet.device).to(dtype)
    b = torch.randint(-9, 9, (out, wide), device=sheet.device).to(dtype).t()
    ways: list[Work] = [lambda: (torch._int_mm if dtype == torch.int8 else torch.mm)(a, b)]
    if dtype == torch.float32:
        ways.append(lambda: linear(a, b.t()))
    return 2e-9 * images * tokens * wide * out / min(statistics.median(_times(way, sheet)) for way in ways)


def _times(work: Work, sheet: Sheet) -> list[float]:
    """Seconds of each call, ten at once, so that the way to the device is not what is measured."""
    times = []
    for i in range(sheet.rounds + 1):
        started = time.perf_counter()
        for _ in range(10):
            work()
        sheet.wait()
        if i:
            times.append((time.perf_counter() - started) / 10)
    return times


@contextlib.contextmanager
def products_in_tf32(allowed: bool) -> Iterator[None]:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def by_mkl(work: Work) -> Work:
    """The same work, all of whose float32 products are those of `torch.nn.functional.linear`."""

    def plain() -> object:
        with unittest.mock.patch.object(products, "prefers_onednn", lambda: False):
            return work()

    return plain


def decoder_as_defined(work: Work) -> Work:
    """The same work, where the decoder's attention and upscaling are computed as they are defined."""

    def plain() -> object:
        defined = {"may_be_shortened": lambda x: False}
        with (
            unittest.mock.patch.multiple(transformer, **defined),
            unittest.mock.patch.multiple(mask_decoder, **defined),
        ):
            return work()

    return plain


def by_convolutions(work: Work) -> Work:
    """The same work, where a CPU computes adapters by the convolutions that they are defined by, as other devices
    do.
    """

    def plain() -> object:
        with unittest.mock.patch.object(Adapter, "_spatial_products", lambda self, x: self.spatial(x)):
            return work()

    return plain
