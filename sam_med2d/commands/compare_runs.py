"""Finished runs of test.py side by side: means, the best in bold, and differences with an interval and a test.

    sam-med2d compare-runs workdir/sam workdir/ft-sam workdir/sam-med2d --names SAM FT-SAM SAM-Med2D
    sam-med2d compare-runs workdir/sam workdir/sam-med2d --by dataset --modes bbox 1pt --format latex
    sam-med2d compare-runs workdir/sam workdir/sam-med2d --tables class case --format latex > tables.tex
    sam-med2d compare-runs workdir/a workdir/b --metric hd95 --reference workdir/b --format csv > table.csv

In a clone, `python scripts/compare_runs.py ...` is the same.

The first command makes the paper's first table (models x modes and speed), the second its second table (data sets x
modes and models, with the mask-weighted row). Everything is computed on the objects that all runs scored, matched by
mask name. A difference is taken object by object; its 95 % interval resamples cases (images where no case is known),
and p is of Wilcoxon's signed-rank test on the mean differences of those cases or images, not corrected for the number
of comparisons. Runs that were not asked the same questions are refused, unless --allow_differences.
"""

import argparse
import sys

import pandas as pd

from sam_med2d.cli import Parser, add_flag, ending_in_one_line
from sam_med2d.errors import DataError, UsageError
from sam_med2d.evaluation.cases import FILE as CASES_FILE
from sam_med2d.evaluation.cases import read_cases
from sam_med2d.evaluation.columns import CASES, METRICS, computed_from
from sam_med2d.evaluation.comparison import (
    Estimation,
    common_objects,
    difference_table,
    differences_grid,
    mean_table,
    means_by_group,
    means_by_model,
)
from sam_med2d.evaluation.estimates import GROUPS, RESAMPLES, WEIGHTED
from sam_med2d.evaluation.grids import format_table, render
from sam_med2d.evaluation.runs import (
    Run,
    find_run,
    load_runs,
    modes_left_out,
    other_data,
    other_questions,
    shared_modes,
)

BY = (*GROUPS, "case")  # what a table may have a row of

MUST_AGREE = "pass --allow_differences to compare them all the same"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    # fmt: off
    parser.add_argument("runs", nargs="+", help="Folders of finished runs of test.py, two or more.")
    parser.add_argument("--reference",
        help="The run, by folder or name, that others are compared with. Default: the first.")
    parser.add_argument("--names", nargs="+",
        help="What the runs are called in tables, one name for each. Default: the names of their folders.")
    parser.add_argument("--metric", default="dice", choices=[*METRICS],
        help="The metric that runs are compared by. Default: %(default)s.")
    parser.add_argument("--modes", nargs="+", help="Prompt modes to compare. Default: all that the runs share.")
    parser.add_argument("--by", choices=BY,
        help="Print one table with a row for each of these groups, in place of a row a model.")
    parser.add_argument("--tables", nargs="+", choices=["overall", *BY], metavar="TABLE",
        help="Tables to print one after the other: overall, with a row a model, or a row a group, of "
             f"{', '.join(BY)}; case pools the slices of a case, class by class. Default: overall.")
    parser.add_argument("--format", default="markdown", choices=["markdown", "latex", "csv", "text"],
        help="How tables are printed. Default: %(default)s.")
    add_flag(parser, "--differences", True, "Print tables of differences too; False prints the means alone.")
    add_flag(parser, "--allow_differences", False,
        "Warn, in place of refusing, where runs differ in data, seed or prompts.")
    parser.add_argument("--resamples", type=int, default=RESAMPLES,
        help="Number of resamples of the bootstrap. Default: %(default)s.")
    parser.add_argument("--seed", type=int, default=0,
        help="What the bootstrap draws is a function of this number. Default: %(default)s.")
    # fmt: on
    args = parser.parse_args(argv)
    if len(args.runs) < 2:
        parser.error("name two or more runs")
    if args.names and len(args.names) != len(args.runs):
        parser.error(f"--names gives {len(args.names)} names for {len(args.runs)} runs")
    if args.tables and args.by:
        parser.error("--by asks for one of the --tables: give one of the two")
    args.tables = args.tables or [args.by or "overall"]
    if args.format == "csv" and len(args.tables) > 1:
        parser.error("--format csv holds one table: name one in --tables")
    if args.metric in computed_from(CASES) and set(args.tables) != {"case"}:
        parser.error(f"--metric {args.metric} is of whole cases: ask for --tables case")
    if args.resamples < 1:
        parser.error("--resamples must be at least 1")
    return args


@ending_in_one_line()
def main(argv: list[str] | None = None) -> None:
    print(compare(parse_args(argv)))


def compare(args: argparse.Namespace) -> str:
    """-> what is printed. Raises DataError, UsageError."""
    runs = load_runs(args.runs, args.names)
    reference = find_run(runs, args.reference)
    modes = shared_modes(runs, args.modes)
    check_fairness(runs, modes, args)
    return "\n\n".join(table_of(name, runs, reference, modes, args) for name in args.tables)


def table_of(name: str, runs: list[Run], reference: Run, modes: list[str], args: argparse.Namespace) -> str:
    """name: overall, or one of BY -> what is printed. Raises DataError, UsageError."""
    by, of_cases = {"overall": None, "case": "class"}.get(name, name), name == "case"
    if of_cases:
        runs = [with_cases(run) for run in runs]
        reference = next(run for run in runs if run.name == reference.name)
    values, without = common_objects(runs, reference, modes, args.metric)
    for mode, n in without.items():
        warn(f"{mode}: {n} object(s) left out, for which not every run has a {METRICS[args.metric].name}")
    how = Estimation(args.metric, by, args.resamples, args.seed)
    means = pd.concat([mean_table(values, run.name, how) for run in runs], ignore_index=True)
    others = [run for run in runs if run is not reference]
    paired = pd.concat([difference_table(values, run.name, reference.name, how) for run in others], ignore_index=True)
    if of_cases:  # a patient has no more votes for more classes
        means, paired = (table[table[by] != WEIGHTED] for table in (means, paired))
    if args.format == "csv":
        return numbers_as_csv(means, paired, runs, by, args.differences)
    grids = [
        means_by_group(means, runs, modes, args.metric, by, of_cases)
        if by
        else means_by_model(means, runs, modes, args.metric)
    ]
    if args.differences:
        grids.append(differences_grid(paired, reference.name, args.metric, by, of_cases))
    objects, clusters = values["mask"].nunique(), values["cluster"].nunique()
    if clusters == 1:
        warn("everything is of one case: there is nothing to resample, so no intervals and no tests")
    what = f"{clusters} case(s), class by class (their slices pooled)" if of_cases else f"{objects} objects"
    resampled = "them" if of_cases else f"cases, or images where no case is known ({clusters} in all)"
    notes = (
        f"{METRICS[args.metric].title}, means over {what}, with 95 % bootstrap intervals that resample {resampled}.",
        f"Differences to {reference.name}, {'case by case' if of_cases else 'object by object'}; p: Wilcoxon "
        "signed-rank test on cluster means, not corrected for the number of comparisons.",
    )
    comment = "% " if args.format == "latex" else ""
    return "\n\n".join(f"{comment}{note}\n\n{render(grid, args.format)}" for grid, note in zip(grids, notes))


def with_cases(run: Run) -> Run:
    """With a row a case and class. Raises DataError: test.py left no such rows."""
    cases = read_cases(run.folder)
    if cases is None:
        raise DataError(
            f"{run.folder}: holds no {CASES_FILE}, as its cases are not known or it is of an earlier version; run "
            "test.py again, with --case where neither metadata.csv nor file names tell the cases"
        )
    return run._replace(rows=cases)


def check_fairness(runs: list[Run], modes: list[str], args: argparse.Namespace) -> None:
    """Raises UsageError where runs were not asked the same questions, unless that is allowed; warns of what remains."""
    if not args.modes and (left_out := modes_left_out(runs, modes)):
        warn(f"left out, since not every run has them: {', '.join(left_out)}")
    differences = [*other_data(runs, modes), *other_questions(runs, args.metric, modes)]
    if differences and not args.allow_differences:
        raise UsageError(f"these runs cannot be compared fairly: {'; '.join(differences)}; {MUST_AGREE}")
    for difference in differences:
        warn(difference)
    sizes = {run.name: run.results.image_size for run in runs}
    if len(set(sizes.values())) > 1:
        warn(
            "prompts were drawn in frames of different sizes, so clicks are not the same pixels: "
            + ", ".join(f"{name} {size}" for name, size in sizes.items())
        )
    if len({run.results.device for run in runs}) > 1 and "overall" in args.tables:
        warn(
            "speeds were measured on different devices: "
            + ", ".join(f"{run.name} {run.results.device}" for run in runs)
        )


def numbers_as_csv(
    means: pd.DataFrame, paired: pd.DataFrame, runs: list[Run], by: str | None, differences: bool
) -> str:
    """Everything, unrounded, one line a group, mode and model."""
    keys = [*([by] if by else []), "mode", "model"]
    table = means
    if differences:
        table = means.merge(paired.drop(columns=["metric", "objects", "n", "clusters"]), on=keys, how="left")
    speeds = {run.name: run.results.images_per_second for run in runs}
    table = table.assign(images_per_second=table["model"].map(speeds))
    return format_table(table[[*keys, *table.columns.drop(keys)]], "csv")


def warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)


if __name__ == "__main__":
    main()
