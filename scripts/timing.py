"""Contenders timed side by side, for scripts/benchmark.py; and what ours is compared with."""

import statistics
import time
import unittest.mock
from collections.abc import Callable

import torch

from segment_anything.modeling import Adapter


def compare(
    contenders: dict[str, Callable[[], object]], rounds: int, device: torch.device | None = None
) -> dict[str, float]:
    """Print the median of each in milliseconds and its ratio to the first. The contenders take turns.

    -> medians in milliseconds. device: waited for where it computes asynchronously.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for i in range(rounds + 1):
        for name, work in contenders.items():
            started = time.perf_counter()
            work()
            if device is not None and device.type == "cuda":
                torch.cuda.synchronize(device)
            if i:  # the first round warms up
                times[name].append(time.perf_counter() - started)
    medians = {name: 1000 * statistics.median(values) for name, values in times.items()}
    baseline = next(iter(medians.values()))
    for name, value in medians.items():
        print(f"{name:44} {value:10.1f} ms   x {value / baseline:.2f}")
    return medians


def by_convolutions(work: Callable[[], object]) -> Callable[[], object]:
    """The same work, where a CPU computes adapters by the convolutions that they are defined by, as other devices
    do.
    """

    def plain() -> object:
        with unittest.mock.patch.object(Adapter, "_spatial_products", lambda self, x: self.spatial(x)):
            return work()

    return plain
