"""Runs side by side: their objects matched, means and paired differences, and the tables of these as printed."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.stats

from sam_med2d.errors import UsageError
from sam_med2d.evaluation.columns import METRICS
from sam_med2d.evaluation.estimates import RESAMPLES, WEIGHTED, scored, summarise
from sam_med2d.evaluation.grids import Cell, Grid, count, number
from sam_med2d.evaluation.runs import Run


class Common(NamedTuple):
    """values: one row an object and mode that every run has a value of: the prepared rows of the reference, and
    `column(run)` of each run. without: {mode: how many objects were left out, since some run has no value of them}.
    """

    values: pd.DataFrame
    without: dict[str, int]


def common_objects(runs: Sequence[Run], reference: Run, modes: list[str], metric: str) -> Common:
    """The objects that runs are compared on, matched by the names of their masks.

    What groups objects (data set, class, size, case) is taken from the reference. Raises UsageError: there are none.
    """

    def keys(rows: pd.DataFrame) -> pd.MultiIndex:
        return pd.MultiIndex.from_arrays([rows["mask"].astype(str), rows["mode"].astype(str)])

    wide = scored(reference.rows)
    wide = wide[wide["mode"].isin(modes)].reset_index(drop=True)
    for run in runs:
        rows = scored(run.rows)
        wide[column(run.name)] = pd.Series(rows[metric].to_numpy(), keys(rows)).reindex(keys(wide)).to_numpy()
    complete = wide[[column(run.name) for run in runs]].notna().all(axis=1)
    missing = wide["mode"][~complete].value_counts()
    wide = wide[complete]
    if wide.empty:
        raise UsageError(
            f"the runs share no object with a {METRICS[metric].name} in {', '.join(modes)}; "
            "choose another --metric or other --modes"
        )
    without = {str(mode): int(n) for mode, n in missing.items() if n and (wide["mode"] == mode).any()}
    return Common(wide.assign(mode=wide["mode"].cat.set_categories(modes)), without)


def column(run: str) -> str:
    """Of a run's values, by the run's name, which may be that of another column."""
    return f"value of {run}"


class Estimation(NamedTuple):
    """How means are taken. by: groups, None for all objects together; resamples, seed: of the bootstrap."""

    metric: str
    by: str | None = None
    resamples: int = RESAMPLES
    seed: int = 0

    def of(self, values: pd.DataFrame) -> pd.DataFrame:
        """As summarise gives it."""
        totals = self.by is not None
        return summarise(values, self.by, [self.metric], totals=totals, resamples=self.resamples, seed=self.seed)


def mean_table(values: pd.DataFrame, run: str, how: Estimation) -> pd.DataFrame:
    """-> as summarise, of one run."""
    return how.of(values.assign(**{how.metric: values[column(run)]})).assign(model=run)


def difference_table(values: pd.DataFrame, run: str, reference: str, how: Estimation) -> pd.DataFrame:
    """-> as summarise, of run - reference: difference, difference_low, difference_high, p; one row a group and mode."""
    metric, by = how.metric, how.by
    values = values.assign(**{metric: values[column(run)] - values[column(reference)]})
    table = how.of(values)
    everyone = values.assign(**{by: WEIGHTED}) if by else values
    parts = [everyone] if not by else [values, everyone]
    keys = [*([by] if by else []), "mode"]
    p: dict[tuple[str, ...], float] = {}
    for part in parts:
        for key, group in part.groupby(keys, observed=True):
            p[tuple(map(str, key))] = signed_rank(group.groupby("cluster", observed=True)[metric].mean().to_numpy())
    table["p"] = [p.get(tuple(map(str, key)), np.nan) for key in table[keys].itertuples(index=False)]
    return (
        table.drop(columns="median")
        .rename(columns={"mean": "difference", "low": "difference_low", "high": "difference_high"})
        .assign(model=run, reference=reference)
    )


def signed_rank(differences: np.ndarray) -> float:
    """p of Wilcoxon's signed-rank test, two-sided, zeros left out; 1 where nothing differs, NaN of a single cluster."""
    if len(differences) < 2:
        return np.nan
    return float(scipy.stats.wilcoxon(differences).pvalue) if np.any(differences != 0) else 1.0


def means_by_model(means: pd.DataFrame, runs: Sequence[Run], modes: list[str], metric: str) -> Grid:
    """As printed: models x modes, and images a second where a run tells."""
    shown = [mode for mode in modes if (means["mode"] == mode).any()]
    best = {mode: best_of(means[means["mode"] == mode], metric) for mode in shown}
    speeds = {run.name: run.results.images_per_second for run in runs}
    body = []
    for run in runs:
        mine = means[means["model"] == run.name].set_index("mode")
        row = [Cell(run.name)]
        for mode in shown:
            mean, low, high, clusters = mine.loc[mode, ["mean", "low", "high", "clusters"]]
            row.append(number(METRICS[metric], mean, low, high, best=run.name in best[mode], clusters=clusters))
        if any(speeds.values()):
            speed = speeds[run.name]
            row.append(Cell("–" if speed is None else f"{speed:.1f}"))
        body.append(row)
    return Grid([METRICS[metric].title, *shown, *(["FPS"] if any(speeds.values()) else [])], body)


def means_by_group(
    means: pd.DataFrame, runs: Sequence[Run], modes: list[str], metric: str, by: str, of_cases: bool = False
) -> Grid:
    """As printed: groups x modes and models, each mean with its interval. of_cases: means are over cases, which are
    the clusters, not over objects."""
    shown = [mode for mode in modes if (means["mode"] == mode).any()]
    body = []
    for group in means[by].drop_duplicates():
        here = means[means[by] == group]
        row = [Cell(str(group)), count(here["clusters" if of_cases else "objects"].max())]
        for mode in shown:
            of_mode = here[here["mode"] == mode]
            found, best = {one.model: one for one in of_mode.itertuples()}, best_of(of_mode, metric)
            for run in runs:
                one = found.get(run.name)
                row.append(
                    number(METRICS[metric], one.mean, one.low, one.high, best=run.name in best, clusters=one.clusters)
                    if one
                    else Cell("–")
                )
        body.append(row)
    return Grid(
        [
            f"{METRICS[metric].title} by {by}",
            "cases" if of_cases else "objects",
            *[run.name for _ in shown for run in runs],
        ],
        body,
        [("", 2), *((mode, len(runs)) for mode in shown)],
    )


def best_of(means: pd.DataFrame, metric: str) -> set[str]:
    """The models whose printed mean is the best of these; several where they print alike."""
    means = means[means["mean"].notna()]
    printed = [float(METRICS[metric].text(mean)) for mean in means["mean"]]
    top = max(printed, default=0) if METRICS[metric].higher_is_better else min(printed, default=0)
    return {model for model, mean in zip(means["model"], printed) if mean == top}


def differences_grid(paired: pd.DataFrame, reference: str, metric: str, by: str | None, of_cases: bool = False) -> Grid:
    """As printed: each mode and model, in each group, against the reference. of_cases: as of `means_by_group`."""
    names = [*([by] if by else []), "mode", "model"]
    body = []
    for row in paired.sort_values(names[:-1], key=in_order, kind="stable").itertuples():
        group = [row[1 + paired.columns.get_loc(by)]] if by else []
        body.append(
            [
                *(Cell(str(name)) for name in (*group, row.mode, row.model)),
                number(
                    METRICS[metric],
                    row.difference,
                    row.difference_low,
                    row.difference_high,
                    sign="+",
                    clusters=row.clusters,
                ),
                Cell("–" if np.isnan(row.p) else "<0.001" if row.p < 0.001 else f"{row.p:.3f}"),
                *([] if of_cases else [count(row.n)]),
                count(row.clusters),
            ]
        )
    counted = ["cases"] if of_cases else ["objects", "clusters"]
    return Grid([*names, f"minus {reference}", "p", *counted], body, names=len(names))


def in_order(names: pd.Series) -> pd.Series:
    """A sort key: the order of first appearance."""
    return names.map({name: i for i, name in enumerate(names.unique())})
