"""Means over objects with their intervals, for each mode and group of objects.

Conventions are those of summary.py, definitions are in docs/evaluation.md.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
import scipy.sparse

from sam_med2d.evaluation.columns import MAIN_METRICS, NOC_LEVELS
from sam_med2d.evaluation.rows import measured
from sam_med2d.prompts.modes import Mode, known_mode
from sam_med2d.seeds import seed_of

UNKNOWN = "(not known)"

GROUPS = {"dataset": "datasets", "modality": "modalities", "class": "classes", "size": "sizes"}  # with their plurals

WEIGHTED = "mask-weighted mean"

RESAMPLES = 2000

WEIGHTS_AT_ONCE = 2**18  # of a bootstrap: 2 MB, so that they stay in the cache

AUC_CLICKS = 5  # of the area under the curve

SIZE_EDGES = (0.1, 0.3, 1, 3, 10, 30)  # % of the image's area; a bin includes its lower edge


def _area(values: np.ndarray) -> np.ndarray:
    """Of each row, under its curve with steps of one, by trapezoids; scipy has this behind a slow import."""
    return (values[:, 1:] + values[:, :-1]).sum(axis=1) / 2


def scored(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows that carry metrics, with columns `cluster`, `size`, `nof80` ... added (NaN but for modes of clicks).

    Where a run has every step of a sequence of clicks or strokes (1..5pts), the last ones carry `interaction` too.
    An object that never reached a Dice is a failure: 1 in nof80 ..., and its noc80 ... become the cap, that is the
    clicks of the mode. Names that are not known become UNKNOWN. Rows that were prepared already come back as they are.
    """
    if "cluster" in rows:
        return rows
    rows = rows[measured(rows)].copy()
    case = rows["case"].astype(str)
    named = "case|" + rows["dataset"].astype(str) + "|" + case
    rows["cluster"] = named.where(case != "", "image|" + rows["image"].astype(str)).astype("category")
    rows["size"] = size_bins(rows["true_area"], rows["image_area"])
    modes = [*map(known_mode, rows["mode"].cat.categories)]
    iterative = np.array([mode.start == "click" and not mode.scored for mode in modes])[rows["mode"].cat.codes]
    for level in NOC_LEVELS:
        reached = rows[f"noc{level}"].notna()
        applies = iterative | rows["mode"].isin(rows.loc[reached, "mode"].unique())
        rows[f"nof{level}"] = (~reached).astype(float).where(applies)
        rows[f"noc{level}"] = rows[f"noc{level}"].where(reached, rows["clicks"]).where(applies)
    for name, values in interaction(rows).items():
        rows[name] = values
    for name in ("dataset", "modality", "class"):
        rows[name] = rows[name].astype(str).replace("", UNKNOWN).astype("category")
    return rows


def interaction(rows: pd.DataFrame) -> dict[str, np.ndarray]:
    """How each object fared click by click, in modes of which the run has every earlier step; NaN elsewhere.

    dice_auc, nsd_auc: the area under the curve over clicks 1 to AUC_CLICKS by trapezoids, in the mode of the last of
    these (CVPR 2025 challenge of interactive 3D segmentation); worse1, worse5: of the clicks from the second on, and
    from the first on after a box, the share that lowered Dice by more than 0.01 and 0.05.
    """
    found = {name: np.full(len(rows), np.nan) for name in ("dice_auc", "nsd_auc", "worse1", "worse5")}
    sequences: dict[str, dict[int, Mode]] = {}
    for mode in map(known_mode, rows["mode"].cat.categories):
        if mode.start in ("click", "stroke", "box") and not mode.scored:
            sequences.setdefault(mode.sequence, {})[mode.clicks] = mode
            if mode.start == "box" and not mode.clicks:  # corrections by strokes follow the same box
                sequences.setdefault(f"{mode.sequence}+scribbles", {})[0] = mode
    place = pd.Series(np.arange(len(rows)), [rows[name].astype(str) for name in ("mode", "image", "mask")])
    for steps in sequences.values():
        first = min(steps)
        here = [steps[k] for k in range(first, max(steps) + 1) if k in steps]
        if first > 1 or len(here) < 2 or len(here) <= max(steps) - first:
            continue
        own = place[here[0].name]
        at = np.stack([place[mode.name].reindex(own.index).to_numpy() for mode in here], axis=1)
        at = at[~np.isnan(at).any(axis=1)].astype(int)
        dice, nsd = (rows[name].to_numpy(float)[at] for name in ("dice", "nsd"))
        for k in range(1, len(here)):
            steps_down = dice[:, :k] - dice[:, 1 : k + 1]
            for name, by in (("worse1", 0.01), ("worse5", 0.05)):
                found[name][at[:, k]] = (steps_down > by).mean(axis=1)
        if AUC_CLICKS in steps:
            last = AUC_CLICKS - first
            for name, values in (("dice_auc", dice), ("nsd_auc", nsd)):
                found[name][at[:, last]] = _area(values[:, 1 - first : last + 1])
    return found


def unscored(rows: pd.DataFrame) -> pd.DataFrame:
    """-> columns image, mask, status, modes (how many): one row an object and reason, sorted by mask."""
    rows = rows[~measured(rows)]
    counted = rows.groupby(["image", "mask", "status"], observed=True, sort=False).size().rename("modes").reset_index()
    return counted.sort_values(["mask", "status"], key=lambda names: names.astype(str)).reset_index(drop=True)


def size_bins(area: pd.Series, image_area: pd.Series) -> pd.Series:
    """Bins of the object's share of the image's area, by SIZE_EDGES; ordered, smallest first."""
    share = 100 * area / image_area
    labels = [
        f"below {SIZE_EDGES[0]:g} %",
        *(f"{a:g} to {b:g} %" for a, b in pairwise(SIZE_EDGES)),
        f"{SIZE_EDGES[-1]:g} % and more",
    ]
    return pd.cut(share, [-np.inf, *SIZE_EDGES, np.inf], right=False, labels=labels)


def resampled_means(sums: np.ndarray, counts: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Cluster bootstrap of a mean over objects, a ratio of sums: clusters are drawn with replacement, as many as there
    are.

    sums, counts: (C, K), of the values of each of C clusters in K columns. -> (resamples, K), NaN where nothing was
    drawn that counts in a column.
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
    empty masks have none), clusters, mean, low, high, median. low and high are NaN where there are fewer than two
    clusters.
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

    A case may hold objects of several classes, so that groups are not independent: clusters are drawn with all that is
    in them, within each data set, since which data sets there are is no accident. No interval where a data set has one
    cluster.
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
