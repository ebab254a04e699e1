"""Finished runs of test.py side by side: means, the best in bold, and differences with an interval and a test.

    sam-med2d compare-runs workdir/sam workdir/ft-sam workdir/sam-med2d --names SAM FT-SAM SAM-Med2D
    sam-med2d compare-runs workdir/sam workdir/sam-med2d --by dataset --modes bbox 1pt --format latex
    sam-med2d compare-runs workdir/a workdir/b --metric hd95 --reference workdir/b --format csv > table.csv

In a clone, `python scripts/compare_runs.py ...` is the same.

The first command makes the paper's first table (models x modes and speed), the second its second table (data sets x
modes and models, with the mask-weighted row). Everything is computed on the objects that all runs scored, matched by
mask name. A difference is taken object by object; its 95 % interval resamples cases (images where no case is known),
and p is of Wilcoxon's signed-rank test on the mean differences of those cases or images, not corrected for the number
of comparisons. Runs that were not asked the same questions are refused, unless --allow_differences.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.stats

from sam_med2d.cli import add_flag, ending_in_one_line
from sam_med2d.errors import DataError, UsageError
from sam_med2d.evaluation import estimates as estimates_room
from sam_med2d.evaluation.columns import METRICS
from sam_med2d.evaluation.estimates import GROUPS, RESAMPLES, WEIGHTED, summarise
from sam_med2d.evaluation.grids import Cell, Grid, count, format_table, number, render
from sam_med2d.evaluation.rows import SCORED, read_rows

COMPARED = [name for name in METRICS if not name.startswith("never")]
MUST_AGREE = "pass --allow_differences to compare them all the same"


class Run(NamedTuple):
    name: str
    folder: Path
    rows: pd.DataFrame
    results: dict  # of results.json; {} where there is none

    def know(self, field: str) -> object:
        """A field of results.json, wherever it stands there; None where it does not."""
        for place in (self.results, self.results.get("provenance"), self.results.get("flags")):
            if isinstance(place, dict) and place.get(field) is not None:
                return place[field]
        return None


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="folders of finished runs")
    parser.add_argument(
        "--reference", help="the run, by folder or name, that others are compared with; default: the first"
    )
    parser.add_argument("--names", nargs="+", help="one for each run; default: the names of the folders")
    parser.add_argument("--metric", default="dice", choices=COMPARED)
    parser.add_argument("--modes", nargs="+", help="default: all that the runs share")
    parser.add_argument("--by", choices=[*GROUPS], help="a row a group, in place of a row a model")
    parser.add_argument("--format", default="markdown", choices=["markdown", "latex", "csv", "text"])
    add_flag(parser, "--differences", True, "False prints the means alone")
    add_flag(
        parser, "--allow_differences", False, "warn, in place of refusing, where runs differ in data, seed or prompts"
    )
    parser.add_argument("--resamples", type=int, default=RESAMPLES, help="of the bootstrap")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    args = parser.parse_args(argv)
    if len(args.runs) < 2:
        parser.error("name two or more runs")
    if args.names and len(args.names) != len(args.runs):
        parser.error(f"--names gives {len(args.names)} names for {len(args.runs)} runs")
    if args.resamples < 1:
        parser.error("--resamples must be at least 1")
    return args


@ending_in_one_line()
def main(argv: list[str] | None = None) -> None:
    print(compare(parse_args(argv)))


def compare(args: argparse.Namespace) -> str:
    runs = load_runs(args.runs, args.names)
    reference = find_run(runs, args.reference)
    modes = shared_modes(runs, args.modes)
    differences = [*other_data(runs, modes), *other_questions(runs, args.metric)]
    if differences and not args.allow_differences:
        raise UsageError(f"these runs cannot be compared fairly: {'; '.join(differences)}; {MUST_AGREE}")
    for difference in differences:
        warn(difference)
    sizes = {run.name: run.know("image_size") for run in runs}
    if len(set(sizes.values())) > 1:
        warn(
            "prompts were drawn in frames of different sizes, so clicks are not the same pixels: "
            + ", ".join(f"{name} {size}" for name, size in sizes.items())
        )
    if len({run.know("device") for run in runs}) > 1 and not args.by:
        warn(
            "speeds were measured on different devices: "
            + ", ".join(f"{run.name} {run.know('device')}" for run in runs)
        )

    values = common_objects(runs, reference, modes, args.metric)
    options = {
        "by": args.by,
        "metrics": [args.metric],
        "totals": args.by is not None,
        "resamples": args.resamples,
        "seed": args.seed,
    }
    means = pd.concat(
        [
            summarise(values.assign(**{args.metric: values[column(run.name)]}), **options).assign(model=run.name)
            for run in runs
        ],
        ignore_index=True,
    )
    paired = pd.concat(
        [
            difference_table(values, run.name, reference.name, args.metric, options)
            for run in runs
            if run is not reference
        ],
        ignore_index=True,
    )
    if args.format == "csv":
        keys = [*([args.by] if args.by else []), "mode", "model"]
        table = (
            means.merge(paired.drop(columns=["metric", "objects", "n", "clusters"]), on=keys, how="left")
            if args.differences
            else means
        )
        speeds = {run.name: run.know("images_per_second") for run in runs}
        table = table.assign(images_per_second=table["model"].map(speeds))
        return format_table(table[[*keys, *table.columns.drop(keys)]], "csv")
    grids = [means_by_group(means, runs, modes, args) if args.by else means_by_model(means, runs, modes, args.metric)]
    if args.differences:
        grids.append(differences_grid(paired, reference.name, args))
    objects, clusters = values["mask"].nunique(), values["cluster"].nunique()
    if clusters == 1:
        warn("everything is of one case: there is nothing to resample, so no intervals and no tests")
    notes = (
        f"{METRICS[args.metric].title}, means over {objects} objects, with 95 % bootstrap intervals that resample cases, or "
        f"images where no case is known ({clusters} in all).",
        f"Differences to {reference.name}, object by object; p: Wilcoxon signed-rank test on cluster means, not "
        "corrected for the number of comparisons.",
    )
    comment = "% " if args.format == "latex" else ""
    return "\n\n".join(f"{comment}{note}\n\n{render(grid, args.format)}" for grid, note in zip(grids, notes))


def warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)


# ---------------------------------------------------------------- runs, and whether they can be compared


def load_runs(folders: Sequence[str], names: Sequence[str] | None) -> list[Run]:
    """Raises DataError, and UsageError where two runs would have one name."""
    if names is None:
        names = [Path(folder).resolve().name for folder in folders]
        if len(set(names)) < len(names):
            names = list(folders)
    if len(set(names)) < len(names):
        raise UsageError(
            f"two runs are called {max(names, key=list(names).count)}; give each its own name with --names"
        )
    return [
        Run(name, Path(folder), read_run_rows(folder), read_results(Path(folder)))
        for name, folder in zip(names, folders)
    ]


def read_run_rows(folder: str) -> pd.DataFrame:
    rows = read_rows(folder)
    twice = rows.duplicated(["mask", "mode"])
    if twice.any():
        row = rows[twice].iloc[0]
        raise DataError(
            f"{folder}: has {row['mask']} twice in mode {row['mode']}, so that runs cannot be matched; "
            "correct the index and run test.py again"
        )
    return rows


def read_results(folder: Path) -> dict:
    """{} where there are rows alone."""
    path = folder / "results.json"
    if not path.is_file():
        return {}
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: is not readable JSON ({error}); run test.py again") from error
    if not isinstance(results, dict):
        raise DataError(f"{path}: is no results file of test.py; run test.py again")
    return results


def find_run(runs: Sequence[Run], wanted: str | None) -> Run:
    if wanted is None:
        return runs[0]
    for run in runs:
        if wanted == run.name or Path(wanted).resolve() == run.folder.resolve():
            return run
    raise UsageError(f"--reference {wanted} is none of the runs: use one of {', '.join(run.name for run in runs)}")


def shared_modes(runs: Sequence[Run], wanted: Sequence[str] | None) -> list[str]:
    """In the order asked for, else in that of the first run."""
    each = [[*run.rows["mode"].cat.categories] for run in runs]
    shared = [mode for mode in each[0] if all(mode in modes for modes in each)]
    if wanted:
        for mode in wanted:
            for run, modes in zip(runs, each):
                if mode not in modes:
                    raise UsageError(f"{run.name} has no mode {mode}: it has {', '.join(modes)}")
        return [*dict.fromkeys(wanted)]
    if not shared:
        raise UsageError(
            "the runs share no mode: " + "; ".join(f"{run.name} has {', '.join(m)}" for run, m in zip(runs, each))
        )
    left_out = [mode for mode in dict.fromkeys(sum(each, [])) if mode not in shared]
    if left_out:
        warn(f"left out, since not every run has them: {', '.join(left_out)}")
    return shared


def other_data(runs: Sequence[Run], modes: list[str]) -> list[str]:
    """One line for each way in which runs differ in objects or data. Raises UsageError where one name is two objects."""
    first = runs[0]
    differences = []
    areas = {}
    for run in runs:
        objects = run.rows[run.rows["mode"].isin(modes)].drop_duplicates("mask")
        areas[run.name] = objects.set_index(objects["mask"].astype(str))[["true_area", "image_area"]]
    for run in runs[1:]:
        mine, theirs = areas[first.name], areas[run.name]
        both = mine.index.intersection(theirs.index)
        if both.empty:
            raise UsageError(f"{first.name} and {run.name} have no object in common; score them on the same data")
        one, other = mine.loc[both], theirs.loc[both]
        changed = ((one != other) & (one.notna() | other.notna())).any(axis=1)
        if changed.any():
            raise UsageError(
                f"{first.name} and {run.name} were scored on other masks: {both[changed.to_numpy()][0]} has another "
                f"area, as have {changed.sum() - 1} more; score them on the same data"
            )
        only = len(mine) - len(both), len(theirs) - len(both)
        if any(only):
            differences.append(
                f"{first.name} has {only[0]} object(s) that {run.name} lacks, {run.name} {only[1]} that {first.name} "
                f"lacks ({len(both)} in common)"
            )
        scored = [
            set(frame["mask"][(frame["status"] == SCORED) & frame["mode"].isin(modes)])
            for frame in (first.rows, run.rows)
        ]
        one_only = (scored[0] ^ scored[1]) & set(both)
        if one_only:
            differences.append(
                f"{len(one_only)} object(s) were scored in only one of {first.name} and {run.name}, such as "
                f"{min(one_only)}"
            )
    return differences


def other_questions(runs: Sequence[Run], metric: str) -> list[str]:
    """One line for each way in which runs differ in how models were asked or scored, as far as they say."""
    first = runs[0]
    silent = [run.name for run in runs if not run.results]
    differences = (
        [f"no results.json in {', '.join(silent)}: data, seed and prompts cannot be checked"] if silent else []
    )
    told = [run for run in runs if run.results]
    fields = {"data_hash": "index of the data", "seed": "seed"}
    if metric == "nsd":
        fields["nsd_tolerance"] = "--nsd_tolerance"
    for field, what in fields.items():
        found = {run.name: run.know(field) for run in told}
        if len({json.dumps(value, sort_keys=True) for value in found.values()}) > 1:
            differences.append(
                f"not the same {what} ({', '.join(f'{name} {str(value)[:12]}' for name, value in found.items())})"
            )
    strategies = {run.name: "/".join(sorted(name for name in run.rows["strategy"].unique() if name)) for run in runs}
    if len(set(strategies.values())) > 1:
        told_of = ", ".join(f"{name} {value or 'none'}" for name, value in strategies.items())
        differences.append(f"not the same --click_strategy ({told_of})")
    for run in told[1:]:
        if told[0] is first and run.know("image_size") == first.know("image_size"):
            differences += other_prompts(first, run)
    return differences


def other_prompts(first: Run, other: Run) -> list[str]:
    """Boxes, the first click and clicks at once do not depend on the model: runs of one frame must agree on them."""

    def starts(run: Run) -> dict[str, dict[str, object]]:
        path = run.folder / "prompts.json"
        if not path.is_file():
            return {}
        try:
            objects = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: is not readable JSON ({error}); run test.py again") from error
        if not isinstance(objects, dict):
            raise DataError(f"{path}: is no prompts file of test.py; run test.py again")
        found = {}
        for name, entry in objects.items():
            if isinstance(entry, dict):
                found[name] = {"box": entry.get("boxes"), "first click": (entry.get("point_coords") or [None])[0]}
                for sequence, prompts in entry.get("others", {}).items():
                    found[name][f"{sequence} box"] = prompts.get("boxes")
                    if sequence.endswith("shot"):
                        found[name][sequence] = prompts.get("point_coords")
        return found

    one, two = starts(first), starts(other)
    changed: dict[str, list[str]] = {}
    for name in one.keys() & two.keys():
        for what in one[name].keys() & two[name].keys():
            if None not in (one[name][what], two[name][what]) and one[name][what] != two[name][what]:
                changed.setdefault(what, []).append(name)
    return [
        f"{first.name} and {other.name} got another {what} for {len(names)} object(s), such as {min(names)}"
        for what, names in sorted(changed.items())
    ]


# ---------------------------------------------------------------- numbers


def common_objects(runs: Sequence[Run], reference: Run, modes: list[str], metric: str) -> pd.DataFrame:
    """One row an object and mode that every run has a value of: the prepared rows of the reference, and `column(run)` of each.

    What groups objects (data set, class, size, case) is taken from the reference.
    """

    def keys(rows: pd.DataFrame) -> pd.MultiIndex:
        return pd.MultiIndex.from_arrays([rows["mask"].astype(str), rows["mode"].astype(str)])

    wide = estimates_room.scored(reference.rows)
    wide = wide[wide["mode"].isin(modes)].reset_index(drop=True)
    for run in runs:
        rows = estimates_room.scored(run.rows)
        wide[column(run.name)] = pd.Series(rows[metric].to_numpy(), keys(rows)).reindex(keys(wide)).to_numpy()
    complete = wide[[column(run.name) for run in runs]].notna().all(axis=1)
    without = wide["mode"][~complete].value_counts()
    wide = wide[complete]
    for mode, n in without.items():
        if n and (wide["mode"] == mode).any():
            warn(f"{mode}: {n} object(s) left out, for which not every run has a {METRICS[metric].title.rstrip(' %')}")
    if wide.empty:
        raise UsageError(
            f"the runs share no object with a {METRICS[metric].title.rstrip(' %')} in {', '.join(modes)}; "
            "choose another --metric or other --modes"
        )
    wide["mode"] = wide["mode"].cat.set_categories(modes)
    return wide


def column(run: str) -> str:
    return f"value of {run}"  # a run may be called like a column


def difference_table(values: pd.DataFrame, run: str, reference: str, metric: str, options: dict) -> pd.DataFrame:
    """-> as tables.summarise, of run - reference: difference, difference_low, difference_high, p; one row a group and mode."""
    values = values.assign(**{metric: values[column(run)] - values[column(reference)]})
    by = options["by"]
    table = summarise(values, **options)
    everyone = values.assign(**{by: WEIGHTED}) if by else values
    parts = [everyone] if not by else [values, everyone]
    keys = [*([by] if by else []), "mode"]
    p = {}
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


# ---------------------------------------------------------------- tables


def means_by_model(means: pd.DataFrame, runs: Sequence[Run], modes: list[str], metric: str) -> Grid:
    """Models x modes, and images a second where a run tells."""
    shown = [mode for mode in modes if (means["mode"] == mode).any()]
    best = {mode: best_of(means[means["mode"] == mode], metric) for mode in shown}
    speeds = {run.name: run.know("images_per_second") for run in runs}
    body = []
    for run in runs:
        mine = means[means["model"] == run.name].set_index("mode")
        row = [Cell(run.name)]
        for mode in shown:
            mean, low, high = mine.loc[mode, ["mean", "low", "high"]]
            row.append(number(METRICS[metric], mean, low, high, best=run.name in best[mode]))
        if any(speeds.values()):
            row.append(Cell("–" if speeds[run.name] is None else f"{speeds[run.name]:.1f}"))
        body.append(row)
    return Grid([METRICS[metric].title, *shown, *(["FPS"] if any(speeds.values()) else [])], body)


def means_by_group(means: pd.DataFrame, runs: Sequence[Run], modes: list[str], args: argparse.Namespace) -> Grid:
    """Groups x modes and models, means alone: intervals of so many columns fit no page (the CSV has them)."""
    shown = [mode for mode in modes if (means["mode"] == mode).any()]
    metric = METRICS[args.metric]
    body = []
    for group in means[args.by].drop_duplicates():
        here = means[means[args.by] == group]
        row = [Cell(str(group)), count(here["objects"].max())]
        for mode in shown:
            mean_of = here[here["mode"] == mode].set_index("model")["mean"]
            best = best_of(here[here["mode"] == mode], args.metric)
            row += [number(metric, mean_of.get(run.name, np.nan), best=run.name in best) for run in runs]
        body.append(row)
    return Grid(
        [f"{metric.title} by {args.by}", "objects", *[run.name for _ in shown for run in runs]],
        body,
        [("", 2), *((mode, len(runs)) for mode in shown)],
    )


def best_of(means: pd.DataFrame, metric: str) -> set[str]:
    """The models whose printed mean is the best of these; several where they print alike."""
    means = means[means["mean"].notna()]
    printed = [float(METRICS[metric].text(mean)) for mean in means["mean"]]
    top = max(printed, default=0) if METRICS[metric].higher_is_better else min(printed, default=0)
    return {model for model, mean in zip(means["model"], printed) if mean == top}


def differences_grid(paired: pd.DataFrame, reference: str, args: argparse.Namespace) -> Grid:
    names = [*([args.by] if args.by else []), "mode", "model"]
    body = []
    for row in paired.sort_values(names[:-1], key=in_order, kind="stable").itertuples():
        group = [row[1 + paired.columns.get_loc(args.by)]] if args.by else []
        body.append(
            [
                *(Cell(str(name)) for name in (*group, row.mode, row.model)),
                number(METRICS[args.metric], row.difference, row.difference_low, row.difference_high, sign="+"),
                Cell("–" if np.isnan(row.p) else "<0.001" if row.p < 0.001 else f"{row.p:.3f}"),
                count(row.n),
                count(row.clusters),
            ]
        )
    return Grid([*names, f"minus {reference}", "p", "objects", "clusters"], body, names=len(names))


def in_order(names: pd.Series) -> pd.Series:
    """A sort key: the order of first appearance."""
    return names.map({name: i for i, name in enumerate(names.unique())})


if __name__ == "__main__":
    main()
