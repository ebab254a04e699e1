"""A case as one: the objects of one class in all slices of a case pooled, as papers on volumes score them.

    pool = pool_of(keys, predicted, truth, surfaces, spacing)   # image by image, in the processes of a run
    write_cases(folder / "cases.csv", pools)    # a line a case, class, axis and mode
    summarise(read_cases(folder), "class")      # means over cases

Of one image the masks of a class are joined, predicted ones and true ones, and over the slices that a case has along
one axis their pixels are counted together: Dice is 2 |P and T| / (|P| + |T|) of all voxels, NSD and HD95 are of the
pixels of all outlines, whose distances are measured within their slices, as in the rows. A slice in which nothing of
the class was predicted has the diagonal of the picture for a distance, at each pixel of its true outline.
"""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sam_med2d.errors import DataError
from sam_med2d.evaluation.columns import CASES, computed_from
from sam_med2d.evaluation.estimates import UNKNOWN
from sam_med2d.evaluation.surface import Spacing, Surfaces, outline, surface_distances
from segment_anything.files import replacing

FILE = "cases.csv"

KEYS = ("dataset", "modality", "class", "case", "axis", "mode")  # of what is pooled

CASE_METRICS = ("dice", "nsd", "hd95", *computed_from(CASES))

COUNTS = ("slices", "objects", "true_volume", "predicted_volume")  # the volumes in voxels

COLUMNS = (*KEYS, *COUNTS, *CASE_METRICS)

Histogram = list[list[float]]  # [[distance, how many], ...]

Pool = dict[str, Any]  # of one image, class and mode: KEYS, counts, and histograms of distances


def pool_of(
    keys: dict[str, object],
    predicted: np.ndarray,
    truth: np.ndarray,
    surfaces: Surfaces | None,
    spacing: Spacing | None,
) -> Pool:
    """What one image adds to a case. predicted, truth: (H, W) bool, of one class; surfaces: of these two, None where
    distances are not asked for; spacing: where it is known, and distances are in millimetres too."""
    pool: Pool = {
        **keys,
        "overlap": int((predicted & truth).sum()),
        "predicted_volume": int(predicted.sum()),
        "true_volume": int(truth.sum()),
    }
    if surfaces is None:
        return pool
    if surfaces.there is not None and surfaces.back is not None:
        there, back = surfaces.there, surfaces.back
        millimetres = (there, back) if spacing is None else _in_millimetres(predicted, truth, there, back, spacing)
    else:  # nothing predicted
        there, back = np.zeros(0), np.full(int(outline(truth).sum()), surfaces.diagonal)
        scale = 1.0 if spacing is None else float(np.hypot(*np.multiply(truth.shape, spacing))) / surfaces.diagonal
        millimetres = there, back * scale
    pool |= {"near": surfaces.near, "outline": len(there) + len(back), "px": [*map(_histogram, (there, back))]}
    return pool | ({} if spacing is None else {"mm": [*map(_histogram, millimetres)]})


def _in_millimetres(
    predicted: np.ndarray, truth: np.ndarray, there: np.ndarray, back: np.ndarray, spacing: Spacing
) -> tuple[np.ndarray, np.ndarray]:
    if spacing[0] == spacing[1]:
        return there * spacing[0], back * spacing[0]
    return surface_distances(predicted, truth, spacing)


def _histogram(distances: np.ndarray) -> Histogram:
    values, counts = np.unique(np.round(distances, 9), return_counts=True)
    return [list(pair) for pair in zip(values.tolist(), counts.tolist())]


class Case:
    """All that is known of one case, class, axis and mode so far."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys((*COUNTS, "overlap", "near", "outline"), 0)
        self.distances: dict[str, tuple[dict, dict]] = {unit: ({}, {}) for unit in ("px", "mm")}
        self.lacking: set[str] = set()  # units in which some slice has no distances

    def add(self, pool: Pool) -> None:
        self.counts["slices"] += pool["objects"] > 0
        for name in self.counts.keys() - {"slices"}:
            self.counts[name] += pool.get(name, 0)
        for unit, both in self.distances.items():
            if unit not in pool:
                self.lacking |= {unit} if pool["objects"] else set()
                continue
            for sums, histogram in zip(both, pool[unit]):
                for distance, count in histogram:
                    sums[distance] = sums.get(distance, 0) + count

    def line(self) -> dict[str, float | int | None]:
        """COUNTS and CASE_METRICS; None where a metric was not asked for, or no spacing is known."""
        overlap, true, predicted = (self.counts[name] for name in ("overlap", "true_volume", "predicted_volume"))
        found: dict[str, float | int | None] = {name: self.counts[name] for name in COUNTS}
        found["dice"] = 2 * overlap / (true + predicted)
        if not self.counts["outline"]:  # everything vanished in the frame
            self.lacking = {*self.distances}
        found["nsd"] = None if "px" in self.lacking else self.counts["near"] / self.counts["outline"]
        for name, unit in (("hd95", "px"), ("hd95_mm", "mm")):
            found[name] = None if unit in self.lacking else max(map(_percentile_95, self.distances[unit]))
        found["volume_error"] = abs(predicted - true) / true
        return found


def _percentile_95(sums: dict[float, int]) -> float:
    if not sums:
        return 0.0  # of an outline without a pixel: the other direction tells
    values = np.array(sorted(sums))
    return float(np.percentile(np.repeat(values, [sums[value] for value in values.tolist()]), 95))


def write_cases(path: Path, pools: Iterable[Pool]) -> int:
    """pools: of all images, in the order of the index. -> the number of lines; without any there is no file."""
    cases: dict[tuple[str, ...], dict[str, Case]] = {}  # modes of a case stand together
    for pool in pools:
        *unit, mode = (str(pool[key] or "") for key in KEYS)
        cases.setdefault(tuple(unit), {}).setdefault(mode, Case()).add(pool)
    if not cases:
        path.unlink(missing_ok=True)  # of an earlier run
        return 0
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        lines = [
            {**dict(zip(KEYS, (*unit, mode))), **case.line()}
            for unit, modes in cases.items()
            for mode, case in modes.items()
        ]
        writer.writerows(lines)
    return len(lines)


def read_cases(folder: str | Path) -> pd.DataFrame | None:
    """The cases that test.py left in a folder, as rows that `summarise` takes; None where it left none.

    A row is a case and class in one mode: `mask` names it, `cluster` is its case. Raises DataError: no such table.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        return None
    try:
        table = pd.read_csv(
            path,
            dtype=dict.fromkeys(KEYS, str),
            keep_default_na=False,
            encoding="utf-8",
            na_values={name: [""] for name in (*COUNTS, *CASE_METRICS)},
        )
        table = table[list(COLUMNS)].astype(dict.fromkeys((*COUNTS, *CASE_METRICS), float))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); run test.py again") from error
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise DataError(f"{path}: is no table of cases of test.py ({error}); run test.py again") from error
    if table.empty or table[["dice", "true_volume"]].isna().any(axis=None):
        raise DataError(f"{path}: is no whole table of cases of test.py; run test.py again")
    names = table["dataset"] + "|" + table["case"]
    table["mask"] = names + "|" + table["class"] + "|" + table["axis"]
    table["cluster"] = names.astype("category")
    for name in ("dataset", "modality", "class"):
        table[name] = table[name].replace("", UNKNOWN).astype("category")
    table["mode"] = pd.Categorical(table["mode"], [*dict.fromkeys(table["mode"])])
    return table
