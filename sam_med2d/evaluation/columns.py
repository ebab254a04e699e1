"""The metrics that tables show: their titles, units and direction."""

from typing import NamedTuple

import numpy as np


class Metric(NamedTuple):
    """How a column is printed: value * scale with so many digits."""

    title: str
    scale: float
    digits: int
    higher_is_better: bool

    def text(self, value: float, sign: str = "") -> str:
        return "–" if np.isnan(value) else f"{value * self.scale:{sign}.{self.digits}f}"


MAIN_METRICS = ("dice", "iou", "nsd", "hd95")

NOC_LEVELS = (80, 85, 90)

NOC_METRICS = tuple(f"{kind}{level}" for level in NOC_LEVELS for kind in ("noc", "never"))

METRICS = {
    "dice": Metric("Dice %", 100, 2, True),
    "iou": Metric("IoU %", 100, 2, True),
    "nsd": Metric("NSD %", 100, 2, True),
    "hd95": Metric("HD95 px", 1, 2, False),
    **{f"noc{level}": Metric(f"NoC@{level}", 1, 2, False) for level in NOC_LEVELS},
    **{f"never{level}": Metric(f"never {level}, %", 100, 1, False) for level in NOC_LEVELS},
}
