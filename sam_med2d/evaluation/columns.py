"""Every metric once: its column, how it is printed, which direction is better, and where it is computed.

A new metric is a function where its `source` says, a row in the table below, and a test. Rows, tables, the report and
the flags that name metrics are made from this table. What each metric means: docs/evaluation.md.
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa

MASKS = "masks"  # a function of this name in metrics.py, for all objects of an image at once

SURFACES = "surfaces"  # a function of this name in surface.py, object by object, in threads beside the model

CLICKS = "clicks"  # the number of clicks until Dice first reached `level`, empty where it never did (record.py)

TABLES = "tables"  # no column of the rows: made from others when the rows are read (estimates.py)

CASES = "cases"  # no column of the rows: of all slices of a case together (cases.py)

NOC_LEVELS = (80, 85, 90)  # of Dice, in per cent


class Metric(NamedTuple):
    """A value * scale is printed with so many digits. source: one of the five above; level: of Dice, for clicks."""

    column: str
    title: str
    scale: float
    digits: int
    higher_is_better: bool
    source: str
    type: pa.DataType = pa.float64()
    level: int = 0

    @property
    def name(self) -> str:
        """The title without its unit."""
        return self.title.removesuffix(" %").removesuffix(" px")

    def text(self, value: float, sign: str = "") -> str:
        """The value as it is printed; a dash where there is none."""
        return "–" if np.isnan(value) else f"{value * self.scale:{sign}.{self.digits}f}"


TABLE = (
    Metric("dice", "Dice %", 100, 2, True, MASKS),
    Metric("iou", "IoU %", 100, 2, True, MASKS),
    Metric("nsd", "NSD %", 100, 2, True, SURFACES),
    Metric("hd95", "HD95 px", 1, 2, False, SURFACES),
    *(
        metric
        for level in NOC_LEVELS
        for metric in (
            Metric(f"noc{level}", f"NoC@{level}", 1, 2, False, CLICKS, pa.int32(), level),  # number of clicks
            Metric(
                f"nof{level}", f"NoF@{level} %", 100, 1, False, TABLES, level=level
            ),  # number of failures, as a share
        )
    ),
    Metric("hd95_mm", "HD95 mm", 1, 2, False, CASES),
    Metric("volume_error", "volume error %", 100, 1, False, CASES),  # |P - T| / T
    Metric("dice_auc", "Dice AUC", 1, 3, True, TABLES),  # over the first five clicks, at most 4
    Metric("nsd_auc", "NSD AUC", 1, 3, True, TABLES),
    Metric("worse1", "worse by 0.01 %", 100, 1, False, TABLES),  # share of clicks that lowered Dice by more
    Metric("worse5", "worse by 0.05 %", 100, 1, False, TABLES),
)

METRICS = {metric.column: metric for metric in TABLE}


def computed_from(*sources: str) -> tuple[str, ...]:
    """The columns of the metrics with these sources, in the order of the table."""
    return tuple(metric.column for metric in TABLE if metric.source in sources)


MAIN_METRICS = computed_from(MASKS, SURFACES)  # of every scored object

NOC_METRICS = computed_from(CLICKS, TABLES)  # of modes of iterative clicks
