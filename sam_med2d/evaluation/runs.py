"""Finished runs of test.py, and whether they can be compared: the same objects, the same data, the same prompts."""

from collections.abc import Callable, Sequence, Set
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from sam_med2d.errors import DataError, UsageError
from sam_med2d.evaluation.results import Results, read_results
from sam_med2d.evaluation.rows import VANISHED, measured, read_rows
from sam_med2d.json_files import LARGE, read_json
from sam_med2d.prompts.modes import Mode, known_mode


class Run(NamedTuple):
    """What one run left in its folder."""

    name: str
    folder: Path
    rows: pd.DataFrame
    results: Results
    told: bool  # whether there is a results.json; else `results` says nothing


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
    runs = []
    for name, folder in zip(names, folders):
        results = read_results(Path(folder))
        runs.append(Run(name, Path(folder), _rows_of(folder), results or Results(), results is not None))
    return runs


def _rows_of(folder: str) -> pd.DataFrame:
    rows = read_rows(folder)
    twice = rows.duplicated(["mask", "mode"])
    if twice.any():
        row = rows[twice].iloc[0]
        raise DataError(
            f"{folder}: has {row['mask']} twice in mode {row['mode']}, so that runs cannot be matched; "
            "correct the index and run test.py again"
        )
    return rows


def find_run(runs: Sequence[Run], wanted: str | None) -> Run:
    """The run of a folder or name, by default the first. Raises UsageError: none is called so."""
    if wanted is None:
        return runs[0]
    for run in runs:
        if wanted == run.name or Path(wanted).resolve() == run.folder.resolve():
            return run
    raise UsageError(f"--reference {wanted} is none of the runs: use one of {', '.join(run.name for run in runs)}")


def shared_modes(runs: Sequence[Run], wanted: Sequence[str] | None) -> list[str]:
    """Modes that every run has, in the order asked for, else in that of the first run.

    Raises UsageError: a run lacks a mode that was asked for, or the runs share none.
    """
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
    return shared


def modes_left_out(runs: Sequence[Run], shared: Sequence[str]) -> list[str]:
    """Modes that some run has and others lack."""
    every = dict.fromkeys(mode for run in runs for mode in run.rows["mode"].cat.categories)
    return [mode for mode in every if mode not in shared]


def other_data(runs: Sequence[Run], modes: list[str]) -> list[str]:
    """One line for each way in which runs differ in objects. Raises UsageError where a name stands for two objects."""
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
        changed = ((one != other) & one.notna() & other.notna()).any(axis=1)  # of an empty mask there is no area
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
        compared = [frame[frame["mode"].isin(modes)] for frame in (first.rows, run.rows)]
        scored = [set(frame["mask"][measured(frame)]) for frame in compared]
        one_only = (scored[0] ^ scored[1]) & set(both)
        if one_only:
            gone = one_only & set().union(*(frame["mask"][frame["status"] == VANISHED] for frame in compared))
            remedy = (
                f" ({len(gone)} vanish in the frame of one: score both with test.py --vanished zero)" if gone else ""
            )
            differences.append(
                f"{len(one_only)} object(s) were scored in only one of {first.name} and {run.name}, such as "
                f"{min(one_only)}{remedy}"
            )
    return differences


def other_questions(runs: Sequence[Run], metric: str, modes: Sequence[str]) -> list[str]:
    """One line for each way in which runs differ in how models were asked or scored, as far as they say.

    What none of `modes`, those that are compared, made use of may differ: a seed where nothing was drawn, a choice of
    clicks where there were none.
    """
    first = runs[0]
    silent = [run.name for run in runs if not run.told]
    differences = (
        [f"no results.json in {', '.join(silent)}: data, seed and prompts cannot be checked"] if silent else []
    )
    told = [run for run in runs if run.told]
    fields: dict[str, Callable[[Results], object]] = {
        "index of the data": lambda results: results.data_hash,
        "--protocol": lambda results: results.protocol,
    }
    compared = [known_mode(mode) for mode in modes]
    if any(mode.clicks or mode.jitter or not mode.start for mode in compared):
        fields["seed"] = lambda results: results.seed
    if metric == "nsd":
        fields["--nsd_tolerance"] = lambda results: results.nsd_tolerance
    for what, field in fields.items():
        found = {run.name: field(run.results) for run in told}
        values = [*found.values()]
        if any(value != values[0] for value in values):
            differences.append(
                f"not the same {what} ({', '.join(f'{name} {str(value)[:12]}' for name, value in found.items())})"
            )
    used = {run.name: run.rows["strategy"][run.rows["mode"].isin(modes)] for run in runs}
    strategies = {name: "/".join(sorted(filter(None, values.unique()))) for name, values in used.items()}
    if len(set(strategies.values())) > 1:
        told_of = ", ".join(f"{name} {value or 'none'}" for name, value in strategies.items())
        differences.append(f"not the same --click_strategy ({told_of})")
    for run in told[1:]:
        if told[0] is first and run.results.image_size == first.results.image_size:
            differences += other_prompts(first, run, compared)
    return differences


def other_prompts(first: Run, other: Run, modes: Sequence[Mode]) -> list[str]:
    """Boxes, the first click and clicks at once do not depend on the model: runs of one frame must agree on them.

    modes: those that are compared; prompts of others may differ.
    """
    sequences = {mode.sequence for mode in modes}
    one, two = _starts(first, sequences), _starts(other, sequences)
    changed: dict[str, list[str]] = {}
    for name in one.keys() & two.keys():
        for what in one[name].keys() & two[name].keys():
            if None not in (one[name][what], two[name][what]) and one[name][what] != two[name][what]:
                changed.setdefault(what, []).append(name)
    return [
        f"{first.name} and {other.name} got another {what} for {len(names)} object(s), such as {min(names)}"
        for what, names in sorted(changed.items())
    ]


def _starts(run: Run, sequences: Set[str]) -> dict[str, dict[str, object]]:
    """{object: {what: coordinates}} of the prompts of these sequences that do not depend on a model."""
    path = run.folder / "prompts.json"
    if not path.is_file():
        return {}
    objects = read_json(path, "run test.py again", most=LARGE)
    if not isinstance(objects, dict):
        raise DataError(f"{path}: is no prompts file of test.py; run test.py again")
    found: dict[str, dict[str, object]] = {}
    for name, entry in objects.items():
        if isinstance(entry, dict):
            here = found[name] = {}
            if "bbox" in sequences:
                here["box"] = entry.get("boxes")
            if "clicks" in sequences:
                here["first click"] = (entry.get("point_coords") or [None])[0]
            for sequence in sequences & entry.get("others", {}).keys():
                prompts = entry["others"][sequence]
                here[f"{sequence} box"] = prompts.get("boxes")
                if sequence.endswith("shot"):
                    here[sequence] = prompts.get("point_coords")
    return found
