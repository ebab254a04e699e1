"""Everything that is made from the rows of an evaluation: summaries with intervals, calibration, curves, and their text.

    rows = read_rows("workdir/sammed")                  # the folder of a run, or its rows.csv or rows.parquet
    tables = all_tables(rows)
    print(format_table(tables["overall"]))              # also "markdown", "latex", "csv", "json"

Conventions:
  - A row is one object in one mode. Rows whose status is not "ok" carry no metrics: they are counted and listed
    (`unscored`), and in no mean.
  - Numbers in tables are fractions and pixels. Only printed text shows per cent, and says so.
  - A cluster is a case where names tell the case (the same case name in two data sets is two cases), else an image.
    Intervals are 95 % percentile intervals of a bootstrap that resamples clusters: slices of one scan are no
    independent witnesses (Field and Welsh, Journal of the Royal Statistical Society B 69, 2007).
Definitions: docs/evaluation.md.
"""

import csv
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import scipy.sparse
from pyarrow.parquet import ParquetFile

from sam_med2d.data.datasets import DataError
from sam_med2d.evaluation.rows import COLUMNS, SCORED
from sam_med2d.prompts.modes import Mode, parse_mode
from sam_med2d.utils import seed_of

NAMES = tuple(name for name, kind in COLUMNS.items() if kind == pa.string())
NUMBERS = tuple(name for name in COLUMNS if name not in (*NAMES, "slice"))
UNKNOWN = "(not known)"
GROUPS = {"dataset": "datasets", "modality": "modalities", "class": "classes", "size": "sizes"}  # with their plurals
WEIGHTED = "mask-weighted mean"
RESAMPLES = 2000
WEIGHTS_AT_ONCE = 2**18  # of a bootstrap: 2 MB, so that they stay in the cache
SIZE_EDGES = (0.1, 0.3, 1, 3, 10, 30)  # % of the image's area; a bin includes its lower edge
CALIBRATION_BINS = 10


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


# ---------------------------------------------------------------- reading


def read_rows(path: str | Path) -> pd.DataFrame:
    """The rows that test.py left in a folder, or a rows.csv or rows.parquet itself.

    -> columns COLUMNS: names as categories ("" where not known; modes in the order of the run), numbers as float64
    with NaN for empty, slice as Int64. Raises DataError: missing, empty, or not such a file.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in ("rows.csv", "rows.parquet") if (path / name).is_file()]
        if len(found) != 1:
            raise DataError(
                f"{path}: holds both rows.csv and rows.parquet; name the one you mean"
                if found
                else f"{path}: holds no rows.csv and no rows.parquet; name the folder of a finished run of test.py"
            )
        path = found[0]
    elif not path.is_file():
        raise DataError(f"{path}: not found; name the folder of a finished run of test.py")
    rows = _read_parquet(path) if path.suffix == ".parquet" else _read_csv(path)
    if rows.empty:
        raise DataError(f"{path}: holds no objects; run test.py again")
    spoiled = rows["status"].eq("") | rows["mask"].eq("") | rows["mode"].eq("")
    if spoiled.any():
        raise DataError(f"{path}: line {_line(spoiled)} is incomplete (no mask, mode or status); run test.py again")
    spoiled = rows["status"].eq(SCORED) & rows[["dice", "true_area", "image_area"]].isna().any(axis=1)
    if spoiled.any():
        raise DataError(f"{path}: line {_line(spoiled)} has status {SCORED} but no Dice or area; run test.py again")
    return rows


def _line(spoiled: pd.Series) -> int:
    """The line of the first True in a CSV file with a header, from 1."""
    return int(np.argmax(spoiled.to_numpy())) + 2


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    missing = [column for column in COLUMNS if column not in columns]
    if missing:
        raise DataError(
            f"{path}: is no rows file of this test.py (has no column {', '.join(missing[:3])}"
            + f" and {len(missing) - 3} more" * (len(missing) > 3)
            + "); run test.py again"
        )


def _read_csv(path: Path) -> pd.DataFrame:
    try:
        with open(path, newline="", encoding="utf-8") as file:
            _check_columns(path, next(csv.reader(file), []))
        # a class may be called "NA" or "None": only in columns of numbers does an empty field mean nothing is there
        kinds = {name: "category" for name in NAMES} | {name: "float64" for name in NUMBERS} | {"slice": "Int64"}
        rows = pd.read_csv(
            path,
            usecols=COLUMNS,
            dtype=kinds,
            keep_default_na=False,
            encoding="utf-8",
            na_values={name: ["", "nan"] for name in (*NUMBERS, "slice")},
        )
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not a text file; name the rows.csv of a finished run of test.py") from error
    except (ValueError, csv.Error) as error:  # among them pandas' ParserError
        raise DataError(f"{path}: cannot be read as rows of test.py ({error}); run test.py again") from error
    return _tidy(rows)


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        with ParquetFile(path) as file:
            _check_columns(path, file.schema_arrow.names)
            rows = file.read(columns=list(COLUMNS)).to_pandas()
        for name in NUMBERS:
            rows[name] = rows[name].astype("float64")
        rows["slice"] = rows["slice"].astype("float64").astype("Int64")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (pa.ArrowException, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: cannot be read as rows of test.py ({error}); run test.py again") from error
    return _tidy(rows)


def _tidy(rows: pd.DataFrame) -> pd.DataFrame:
    for name in NAMES:
        values = rows[name].astype(object)
        rows[name] = values.where(values.notna(), "").astype(str).astype("category")
    rows["mode"] = rows["mode"].cat.reorder_categories([*rows["mode"].unique()])
    return rows[list(COLUMNS)]


# ---------------------------------------------------------------- rows, prepared


def scored(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows that carry metrics, with columns `cluster`, `size`, `never80` ... added (NaN but for modes of clicks).

    Where a Dice was never reached, noc80 ... become the cap, that is the clicks of the mode. Names that are not known
    become UNKNOWN. Rows that were prepared already come back as they are.
    """
    if "cluster" in rows:
        return rows
    rows = rows[rows["status"] == SCORED].copy()
    case = rows["case"].astype(str)
    named = "case|" + rows["dataset"].astype(str) + "|" + case
    rows["cluster"] = named.where(case != "", "image|" + rows["image"].astype(str)).astype("category")
    rows["size"] = size_bins(rows["true_area"], rows["image_area"])
    iterative = np.array([known_mode(mode).start == "click" for mode in rows["mode"].cat.categories])[
        rows["mode"].cat.codes
    ]
    for level in NOC_LEVELS:
        reached = rows[f"noc{level}"].notna()
        applies = iterative | rows["mode"].isin(rows.loc[reached, "mode"].unique())
        rows[f"never{level}"] = (~reached).astype(float).where(applies)
        rows[f"noc{level}"] = rows[f"noc{level}"].where(reached, rows["clicks"]).where(applies)
    for name in ("dataset", "modality", "class"):
        rows[name] = rows[name].astype(str).replace("", UNKNOWN).astype("category")
    return rows


def unscored(rows: pd.DataFrame) -> pd.DataFrame:
    """-> columns image, mask, status, modes (how many): one row an object and reason, sorted by mask."""
    rows = rows[rows["status"] != SCORED]
    counted = rows.groupby(["image", "mask", "status"], observed=True, sort=False).size().rename("modes").reset_index()
    return counted.sort_values(["mask", "status"], key=lambda names: names.astype(str)).reset_index(drop=True)


def size_bins(area: pd.Series, image_area: pd.Series) -> pd.Series:
    """Bins of the object's share of the image's area, by SIZE_EDGES; ordered, smallest first."""
    share = 100 * area / image_area
    labels = [
        f"below {SIZE_EDGES[0]:g} %",
        *(f"{a:g} to {b:g} %" for a, b in zip(SIZE_EDGES, SIZE_EDGES[1:])),
        f"{SIZE_EDGES[-1]:g} % and more",
    ]
    return pd.cut(share, [-np.inf, *SIZE_EDGES, np.inf], right=False, labels=labels)


# ---------------------------------------------------------------- means and intervals


def resampled_means(sums: np.ndarray, counts: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Cluster bootstrap of a mean over objects, a ratio of sums: clusters are drawn with replacement, as many as there are.

    sums, counts: (C, K), of the values of each of C clusters in K columns. -> (resamples, K), NaN where nothing was drawn
    that counts in a column.
    """
    totals = resampled_totals(np.concatenate([sums, counts], axis=1).astype(float), resamples=resamples, seed=seed)
    sums, counts = np.split(totals, 2, axis=1)
    return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)


def resampled_totals(values: np.ndarray | scipy.sparse.csr_array, *, resamples: int, seed: int) -> np.ndarray:
    """Sums over C clusters drawn with replacement from C. values: (C, K) -> (resamples, K).

    Memory stays bounded however many clusters there are.
    """
    clusters = values.shape[0]
    totals = np.empty((resamples, values.shape[1]))
    generator = np.random.default_rng(seed)
    step = max(1, WEIGHTS_AT_ONCE // clusters)
    for start in range(0, resamples, step):
        part = totals[start : start + step]
        drawn = generator.integers(clusters, size=(len(part), clusters))
        drawn += clusters * np.arange(len(part))[:, None]
        weights = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
        part[:] = weights.astype(float) @ values
    return totals


def interval(means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(resamples, K) -> the 2.5th and the 97.5th percentile, (K,) each, of what is not NaN; NaN where nothing is."""
    limits = np.full((2, means.shape[1]), np.nan)
    missing = np.isnan(means)
    some, every = ~missing.all(axis=0), ~missing.any(axis=0)
    limits[:, every] = np.percentile(means[:, every], [2.5, 97.5], axis=0)
    if (some & ~every).any():  # nanpercentile goes column by column: 10 times slower
        limits[:, some & ~every] = np.nanpercentile(means[:, some & ~every], [2.5, 97.5], axis=0)
    return limits[0], limits[1]


def summarise(
    rows: pd.DataFrame,
    by: str | None = None,
    metrics: Sequence[str] = MAIN_METRICS,
    *,
    totals: bool = False,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Means over objects, for each mode, or for each mode and group.

    by: "dataset", "modality", "class" or "size". totals: also the unweighted mean of the known groups ("mean of
    datasets") and the mean of all objects (WEIGHTED), as in the second table of the paper.
    -> one row a group, mode and metric: [by,] mode, metric, objects (scored), n (of them with a value: distances of
    empty masks have none), clusters, mean, low, high, median. low and high are NaN where there are fewer than two clusters.
    """
    rows = scored(rows)
    if by is None:
        return _estimate(rows, metrics, resamples, seed_of(seed, "all"))
    tables = [
        _estimate(part, metrics, resamples, seed_of(seed, by, name)).assign(**{by: str(name)})
        for name, part in rows.groupby(by, observed=True, sort=True)
    ]
    if totals:
        known = rows[rows[by] != UNKNOWN]
        if len(known):
            tables.append(_mean_of_groups(known, by, metrics, resamples, seed).assign(**{by: f"mean of {GROUPS[by]}"}))
        tables.append(summarise(rows, metrics=metrics, resamples=resamples, seed=seed).assign(**{by: WEIGHTED}))
    table = pd.concat(tables, ignore_index=True)
    return table[[by, *table.columns.drop(by)]]


def _estimate(rows: pd.DataFrame, metrics: Sequence[str], resamples: int, seed: int) -> pd.DataFrame:
    """As summarise gives it, of all these rows, one row a mode and metric."""
    present, place = np.unique(rows["mode"].cat.codes, return_inverse=True)
    modes = rows["mode"].cat.categories[present]
    # clusters by name, not by place in the file: rows in another order give the same interval
    clusters, cluster = np.unique(rows["cluster"].cat.codes, return_inverse=True)
    cells = cluster * len(modes) + place
    values = rows[list(metrics)].to_numpy(float)  # (rows, metrics)
    shape = (len(clusters), len(modes))
    sums, counts = (np.empty((*shape, len(metrics))) for _ in range(2))
    for k in range(len(metrics)):
        there = ~np.isnan(values[:, k])
        counts[..., k] = np.bincount(cells[there], minlength=np.prod(shape)).reshape(shape)
        sums[..., k] = np.bincount(cells[there], values[there, k], minlength=np.prod(shape)).reshape(shape)
    flat = (len(clusters), -1)
    total, n, witnesses = sums.sum(axis=0).ravel(), counts.sum(axis=0).ravel(), (counts > 0).sum(axis=0).ravel()
    means = resampled_means(sums.reshape(flat), counts.reshape(flat), resamples=resamples, seed=seed)
    means[:, witnesses < 2] = np.nan
    low, high = interval(means)
    medians = rows.groupby("mode", observed=True)[list(metrics)].median().to_numpy().ravel()
    return pd.DataFrame(
        {
            "mode": np.repeat(modes, len(metrics)),
            "metric": np.tile(metrics, len(modes)),
            "objects": np.repeat(np.bincount(place, minlength=len(modes)), len(metrics)),
            "n": n.astype(int),
            "clusters": witnesses,
            "mean": np.divide(total, n, out=np.full_like(total, np.nan), where=n > 0),
            "low": low,
            "high": high,
            "median": medians,
        }
    )


def _mean_of_groups(rows: pd.DataFrame, by: str, metrics: Sequence[str], resamples: int, seed: int) -> pd.DataFrame:
    """Unweighted mean of the groups' means, as rows of `_estimate` without `by`.

    A case may hold objects of several classes, so that groups are not independent: clusters are drawn with all that is in
    them, within each data set, since which data sets there are is no accident. No interval where a data set has one cluster.
    """
    tables = []
    for mode, part in rows.groupby("mode", observed=True):
        groups, group = np.unique(part[by].astype(str), return_inverse=True)
        width = len(metrics) * len(groups)
        values = part[list(metrics)].to_numpy(float)
        there = ~np.isnan(values)
        lines, which = np.nonzero(there)
        column = which * len(groups) + group[lines]
        data = np.concatenate([values[there], np.ones(len(lines))])
        line, column = np.tile(lines, 2), np.concatenate([column, column + width])
        everything = scipy.sparse.csr_array((data, (line, column)), shape=(len(part), 2 * width))  # sums | counts
        totals, lonely = np.zeros((resamples, 2 * width)), False
        for dataset, places in part.reset_index().groupby("dataset", observed=True).indices.items():
            clusters, cluster = np.unique(part["cluster"].cat.codes.to_numpy()[places], return_inverse=True)
            gather = scipy.sparse.csr_array((np.ones(len(places)), (cluster, places)), shape=(len(clusters), len(part)))
            totals += resampled_totals(gather @ everything, resamples=resamples, seed=seed_of(seed, by, dataset))
            lonely |= len(clusters) < 2
        sums, counts = everything.sum(axis=0).reshape(2, len(metrics), len(groups))
        means = _mean_of_ratios(sums, counts)
        low, high = interval(
            _mean_of_ratios(*np.split(totals.reshape(resamples, 2, len(metrics), -1), 2, axis=1))[:, 0]
        )
        tables.append(
            pd.DataFrame(
                {
                    "mode": str(mode),
                    "metric": metrics,
                    "objects": len(part),
                    "n": counts.sum(axis=1).astype(int),
                    "clusters": part["cluster"].nunique(),
                    "mean": means,
                    "low": np.nan if lonely else low,
                    "high": np.nan if lonely else high,
                    "median": np.nan,
                }
            )
        )
    return pd.concat(tables, ignore_index=True)


def _mean_of_ratios(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(..., G) -> (...): the mean of sums / counts over those of G groups that have a count; NaN without any."""
    ratios = np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)
    n = (counts > 0).sum(axis=-1)
    return np.divide(ratios.sum(axis=-1), n, out=np.full(n.shape, np.nan), where=n > 0)


# ---------------------------------------------------------------- calibration and curves


def known_mode(name: str) -> Mode:
    """With start "" for a name that is no mode of this version: such rows are in the tables, and on no curve."""
    try:
        return parse_mode(name)
    except ValueError:
        return Mode(name, start="")


def calibration(rows: pd.DataFrame) -> pd.DataFrame:
    """Predicted against true IoU, object by object.

    -> a row a mode: mode, n, mean_absolute_error, bias (predicted minus true), correlation (Pearson; NaN where one of the
    two does not vary).
    """
    table = []
    for mode, part in _with_prediction(rows).groupby("mode", observed=True):
        error = part["predicted_iou"] - part["iou"]
        varies = len(part) > 1 and min(part["predicted_iou"].std(), part["iou"].std()) > 0
        table.append(
            {
                "mode": str(mode),
                "n": len(part),
                "mean_absolute_error": error.abs().mean(),
                "bias": error.mean(),
                "correlation": np.corrcoef(part["predicted_iou"], part["iou"])[0, 1] if varies else np.nan,
            }
        )
    return pd.DataFrame(table, columns=["mode", "n", "mean_absolute_error", "bias", "correlation"])


def calibration_bins(rows: pd.DataFrame) -> pd.DataFrame:
    """-> mode, bin_from, bin_to, n, predicted (mean), true (mean): CALIBRATION_BINS equal bins of the predicted IoU in 0..1.

    The head is not confined to 0..1: what it predicts outside counts in the first or the last bin. Empty bins are left out.
    """
    rows = _with_prediction(rows)
    place = np.clip(np.floor(rows["predicted_iou"] * CALIBRATION_BINS), 0, CALIBRATION_BINS - 1).astype(int)
    groups = rows.assign(bin=place).groupby(["mode", "bin"], observed=True)
    table = groups.agg(n=("iou", "size"), predicted=("predicted_iou", "mean"), true=("iou", "mean")).reset_index()
    table.insert(1, "bin_from", table["bin"] / CALIBRATION_BINS)
    table.insert(2, "bin_to", (table["bin"] + 1) / CALIBRATION_BINS)
    return table.drop(columns="bin").astype({"mode": str})


def _with_prediction(rows: pd.DataFrame) -> pd.DataFrame:
    rows = scored(rows)
    return rows[rows["predicted_iou"].notna() & rows["iou"].notna()]


def click_curves(overall: pd.DataFrame) -> pd.DataFrame:
    """Dice against the number of clicks, from summarise(rows).

    -> series, clicks, mean, low, high, n: "iterative clicks" (1pt 3pts ...), "clicks at once" (5shot), "box, then clicks"
    (bbox counting as no click).
    """
    series = {"click": "iterative clicks", "at_once": "clicks at once", "box": "box, then clicks"}
    found = []
    for row in overall[overall["metric"] == "dice"].itertuples():
        mode = known_mode(row.mode)
        if mode.start in series and not mode.jitter:
            found.append((series[mode.start], mode.clicks, row.mean, row.low, row.high, row.n))
    curves = pd.DataFrame(found, columns=["series", "clicks", "mean", "low", "high", "n"])
    if not (curves["clicks"][curves["series"] == "box, then clicks"] > 0).any():
        curves = curves[curves["series"] != "box, then clicks"]  # a box alone is no curve
    return curves.sort_values(["series", "clicks"]).reset_index(drop=True)


def jitter_curve(overall: pd.DataFrame) -> pd.DataFrame:
    """Dice against box jitter, from summarise(rows) -> jitter (pixels, at most), mean, low, high, n; empty without such modes."""
    found = []
    for row in overall[overall["metric"] == "dice"].itertuples():
        mode = known_mode(row.mode)
        if mode.start == "box" and not mode.clicks:
            found.append((mode.jitter, row.mean, row.low, row.high, row.n))
    curve = pd.DataFrame(found, columns=["jitter", "mean", "low", "high", "n"])
    return curve.sort_values("jitter", ignore_index=True) if (curve["jitter"] > 0).any() else curve[:0]


def reached_curves(rows: pd.DataFrame) -> pd.DataFrame:
    """Share of objects that have reached a Dice within so many clicks, in the longest mode of iterative clicks.

    -> mode, level (80, 85, 90), clicks, share; empty without such a mode.
    """
    rows = scored(rows)
    modes = [mode for mode in map(known_mode, rows["mode"].unique()) if mode.start == "click"]
    found = []
    if modes:
        mode = max(modes, key=lambda mode: mode.clicks)
        part = rows[rows["mode"] == mode.name]
        for level in NOC_LEVELS:
            clicks = part[f"noc{level}"].where(part[f"never{level}"] == 0)
            found += [(mode.name, level, k, (clicks <= k).mean()) for k in range(1, mode.clicks + 1)]
    return pd.DataFrame(found, columns=["mode", "level", "clicks", "share"])


def all_tables(rows: pd.DataFrame, *, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, pd.DataFrame]:
    """Every table of a run by name; breakdowns by names that no row tells are left out.

    overall, noc, dataset, modality, class, size (as of summarise); calibration, calibration_bins, dice_by_clicks,
    reached, dice_by_jitter.
    """
    objects = scored(rows)
    if objects.empty:
        reasons = ", ".join(f"{n} x {why}" for why, n in unscored(rows)["status"].value_counts().items() if n)
        raise DataError(f"no object could be scored ({reasons}); correct the data")
    options = {"resamples": resamples, "seed": seed}
    overall = summarise(objects, metrics=(*MAIN_METRICS, *NOC_METRICS), **options)
    is_noc = overall["metric"].isin(NOC_METRICS)
    noc = overall[is_noc & (overall["n"] > 0)]
    several = noc[~noc["mode"].isin(["1pt"])]  # with a cap of one click every NoC is 1
    tables = {"overall": overall[~is_noc], "noc": several if len(several) else noc}
    for by in GROUPS:
        if any(name != UNKNOWN for name in objects[by].unique()):
            tables[by] = summarise(objects, by, totals=by != "size" and objects[by].nunique() > 1, **options)
    tables |= {
        "calibration": calibration(objects),
        "calibration_bins": calibration_bins(objects),
        "dice_by_clicks": click_curves(tables["overall"]),
        "reached": reached_curves(objects),
        "dice_by_jitter": jitter_curve(tables["overall"]),
    }
    return {name: table.reset_index(drop=True) for name, table in tables.items()}


# ---------------------------------------------------------------- text


class Cell(NamedTuple):
    """text, its interval or other detail, what to sort by, and whether it is the best of its kind (bold)."""

    text: str
    detail: str = ""
    value: float | str | None = None
    best: bool = False


class Grid(NamedTuple):
    """A table as it is printed. The first columns, `names` of them, are names; the others are numbers.

    spans: for a second line of headers, [(title, columns), ...] from the first column on; "" for none.
    """

    header: list[str]
    body: list[list[Cell]]
    spans: list[tuple[str, int]] = []
    names: int = 1


def number(
    metric: Metric,
    mean: float,
    low: float = np.nan,
    high: float = np.nan,
    sign: str = "",
    best: bool = False,
    n: int | None = None,
) -> Cell:
    """A mean with its interval, in brackets with one digit less; n where it is not of all objects."""
    short = metric._replace(digits=max(1, metric.digits - 1))
    detail = "" if np.isnan(low) else f"[{short.text(low, sign)}, {short.text(high, sign)}]"
    if n is not None:
        detail = f"{detail} n {n}".strip()
    return Cell(metric.text(mean, sign), detail, None if np.isnan(mean) else float(mean), best)


def count(n: int) -> Cell:
    return Cell(f"{n}", value=int(n))


def grid_of(table: pd.DataFrame, metric: str = "dice", medians: bool = False) -> Grid:
    """A table of all_tables as it is printed.

    Of a breakdown: rows groups, columns modes, means of one metric, or its medians. Of "overall" and "noc": rows modes,
    columns metrics; beside means of "overall", medians. Of others: as they are.
    """
    if "metric" not in table:
        return _plain_grid(table)
    by = table.columns[0]
    if by != "mode":
        table = table[table["metric"] == metric]
    rows, columns = ("mode", "metric") if by == "mode" else (by, "mode")
    names, titles = ([*dict.fromkeys(table[column])] for column in (rows, columns))
    found = {key: row for key, row in zip(zip(table[rows], table[columns]), table.itertuples())}
    both = by == "mode" and "dice" in titles  # of a number of clicks, and of a share, the median says little
    body = []
    for i, name in enumerate(names):
        here = [found.get((name, title)) for title in titles]
        row = [Cell(str(name), value=i if by == "size" else str(name)), count(max(one.objects for one in here if one))]
        for one in here:
            cells = [Cell("–")] * (1 + both)
            if one:
                missing = one.n if one.n < one.objects else None
                mean = number(METRICS[one.metric], one.mean, one.low, one.high, n=missing)
                median = number(METRICS[one.metric], one.median)
                cells = [mean, median] if both else [median if medians else mean]
            row += cells
        body.append(row)
    printed = [
        text
        for title in titles
        for text in (
            [METRICS[title].title, "median"] if both else [METRICS[title].title] if columns == "metric" else [title]
        )
    ]
    corner = by if by == "mode" else f"{METRICS[metric].title}{', median,' if medians else ''} by {by}"
    return Grid([corner, "objects", *printed], body)


def _plain_grid(table: pd.DataFrame) -> Grid:
    body = []
    for row in table.itertuples(index=False):
        body.append(
            [
                Cell(str(v), value=v)
                if isinstance(v, str | int | np.integer)
                else Cell("–" if np.isnan(v) else f"{v:.3f}", value=float(v))
                for v in row
            ]
        )
    return Grid([str(column).replace("_", " ") for column in table.columns], body)


def format_table(table: pd.DataFrame, format: str = "text", metric: str = "dice") -> str:
    """format: "text" (aligned, for a terminal), "markdown", "latex" (booktabs), "csv" or "json" (every number, unrounded).

    metric: of a breakdown; in CSV and JSON all are there.
    """
    if format == "csv":
        buffer = io.StringIO()
        table.to_csv(buffer, index=False, lineterminator="\n")
        return buffer.getvalue().rstrip("\n")
    if format == "json":
        return json.dumps(to_records(table), indent=1, ensure_ascii=False)
    return render(grid_of(table, metric), format)


def to_records(table: pd.DataFrame) -> list[dict]:
    """For a JSON file: plain values, None for NaN."""
    return [
        {
            key: None
            if isinstance(value, float) and np.isnan(value)
            else value.item()
            if isinstance(value, np.generic)
            else value
            for key, value in row.items()
        }
        for row in table.astype(object).to_dict("records")
    ]


def render(grid: Grid, format: str = "text") -> str:
    """format: "text", "markdown" or "latex"."""
    return {"text": _text, "markdown": _markdown, "latex": _latex}[format](grid)


def _flat_header(grid: Grid) -> list[str]:
    above = [title for title, width in grid.spans for _ in range(width)] or [""] * len(grid.header)
    return [f"{title} {name}".strip() for title, name in zip(above, grid.header)]


def _text(grid: Grid) -> str:
    lines = [_flat_header(grid)] + [
        [f"{cell.text}{'*' * cell.best} {cell.detail}".strip() for cell in row] for row in grid.body
    ]
    lines = [[" ".join(text.split()) for text in line] for line in lines]
    widths = [max(len(line[i]) for line in lines) for i in range(len(grid.header))]
    return "\n".join(
        "  ".join(
            text.ljust(width) if i < grid.names else text.rjust(width)
            for i, (text, width) in enumerate(zip(line, widths))
        ).rstrip()
        for line in lines
    )


def _markdown(grid: Grid) -> str:
    def escaped(text: str) -> str:
        return re.sub(r"([\\|<>*_`\[\]])", r"\\\1", " ".join(text.split()))

    def cell(one: Cell) -> str:
        text = f"**{escaped(one.text)}**" if one.best else escaped(one.text)
        return f"{text} {one.detail}".strip()

    lines = [[escaped(title) for title in _flat_header(grid)]] + [[cell(one) for one in row] for row in grid.body]
    rule = "|" + "---|" * grid.names + "--:|" * (len(grid.header) - grid.names)
    lines = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([lines[0], rule, *lines[1:]])


LATEX = {
    "\\": r"\textbackslash{}",
    "–": "--",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{c: f"\\{c}" for c in "&%$#_{}"},
}


def _latex(grid: Grid) -> str:
    def escaped(text: str) -> str:
        return "".join(LATEX.get(letter, letter) for letter in " ".join(text.split()))

    def cell(one: Cell) -> str:
        text = rf"\textbf{{{escaped(one.text)}}}" if one.best else escaped(one.text)
        return text + (rf" {{\scriptsize {escaped(one.detail)}}}" if one.detail else "")

    lines = [rf"\begin{{tabular}}{{{'l' * grid.names}{'r' * (len(grid.header) - grid.names)}}}", r"\toprule"]
    if grid.spans:
        lines.append(
            " & ".join(rf"\multicolumn{{{width}}}{{c}}{{{escaped(title)}}}" for title, width in grid.spans) + r" \\"
        )
        start = 1
        for title, width in grid.spans:
            if title:
                lines.append(rf"\cmidrule(lr){{{start}-{start + width - 1}}}")
            start += width
    lines += [" & ".join(map(escaped, grid.header)) + r" \\", r"\midrule"]
    lines += [" & ".join(map(cell, row)) + r" \\" for row in grid.body]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])
