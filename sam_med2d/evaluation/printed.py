"""Which tables a run prints, and how they were measured, for people."""

from collections.abc import Sequence

import pandas as pd

from sam_med2d.data.description import Describer
from sam_med2d.data.index import Index
from sam_med2d.errors import UsageError
from sam_med2d.evaluation.estimates import GROUPS, UNKNOWN
from sam_med2d.evaluation.grids import format_table
from sam_med2d.evaluation.surface import MILLIMETRES, Tolerance

NAMES = ("overall", "noc", *GROUPS, "case", "calibration", "elsewhere")  # that can be asked for

FORMATS = ("text", "markdown", "latex", "csv", "json")

TELL = (
    "metadata.csv of the data tells it, or file names of SA-Med2D-20M; --case tells cases too, and the name of a mask "
    "beyond that of its image its class"
)


def check_tables(names: Sequence[str], describer: Describer, index: Index) -> None:
    """Raises UsageError where a table is asked for that the names of this data cannot make."""
    for name in names:
        if name in ("dataset", "modality", "class", "case") and not any(describer.labels(index, name)[0]):
            raise UsageError(f"--tables {name}: the {name} of no mask is known; {TELL}")


def check_tolerance(tolerance: Tolerance, describer: Describer, index: Index) -> None:
    """Raises UsageError where a tolerance is in millimetres, and some picture's spacing is not known."""
    if tolerance.unit == MILLIMETRES:
        for _, masks in index:
            if masks and describer.spacing(masks[0]) is None:
                raise UsageError(
                    f"--nsd_tolerance {tolerance}: the spacing of {masks[0]} is not known; metadata.csv of the data "
                    "tells it, or give the tolerance in pixels or in % of the diagonal"
                )


def coarse_warning(tolerance: Tolerance, coarseness: Sequence[float]) -> str:
    """What is said where the tolerance is below one pixel of the frame, or "". coarseness: of every image, that pixel
    over the tolerance."""
    coarse = [one for one in coarseness if one > 1]
    if not coarse:
        return ""
    return (
        f"--nsd_tolerance {tolerance} is less than a pixel of the model's frame in {len(coarse)} of {len(coarseness)} "
        f"image(s), of which the largest is {max(coarse):.1f} times the tolerance: NSD then tells as much of the "
        "frame as of the model; take a larger tolerance or --image_size"
    )


def shown(tables: dict[str, pd.DataFrame], names: Sequence[str] | None, format: str) -> list[str]:
    """The tables as they are printed. names: of NAMES; None: overall, clicks, and classes and cases where they are
    known, or else data sets where there are several."""
    if names is None:
        several = "dataset" in tables and tables["dataset"]["dataset"].nunique() > 1
        classes = "class" in tables and bool((tables["class"]["class"] != UNKNOWN).any())
        names = ["overall", "noc", *(["class"] if classes else ["dataset"] if several else []), "case", "elsewhere"]
    return [format_table(tables[name], format) for name in names if name in tables and len(tables[name])]
