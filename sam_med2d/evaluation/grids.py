"""Tables as text: for terminals, Markdown, LaTeX, CSV and JSON."""

import io
import json
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from sam_med2d.evaluation.columns import METRICS, Metric

FEW = 10  # clusters: percentile intervals of fewer are too narrow

MARK = "†"

MARKED = (
    f"{MARK} from fewer than {FEW} clusters (cases, or images where no case is known): the interval is too narrow to "
    "be relied on"
)

LATEX = {
    MARK: r"\textdagger{}",
    "\\": r"\textbackslash{}",
    "–": "--",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{c: f"\\{c}" for c in "&%$#_{}"},
}


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
    spans: Sequence[tuple[str, int]] = ()
    names: int = 1


def number(
    metric: Metric,
    mean: float,
    low: float = np.nan,
    high: float = np.nan,
    sign: str = "",
    best: bool = False,
    n: int | None = None,
    clusters: int | None = None,
) -> Cell:
    """A mean with its interval, in brackets with one digit less; n where it is not of all objects.

    clusters: that the interval was taken from; MARK tells where they are few.
    """
    short = metric._replace(digits=max(1, metric.digits - 1))
    detail = "" if np.isnan(low) else f"[{short.text(low, sign)}, {short.text(high, sign)}]"
    if detail and clusters is not None and clusters < FEW:
        detail += MARK
    if n is not None:
        detail = f"{detail} n {n}".strip()
    return Cell(metric.text(mean, sign), detail, None if np.isnan(mean) else float(mean), best)


def count(n: int) -> Cell:
    return Cell(f"{n}", value=int(n))


def grid_of(table: pd.DataFrame, metric: str = "dice", medians: bool = False) -> Grid:
    """A table of all_tables as it is printed. metric, medians: of a breakdown.

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
    found = dict(zip(zip(table[rows], table[columns]), table.itertuples()))
    both = by == "mode" and "dice" in titles  # of a number of clicks, and of a share, the median says little
    body = []
    for i, name in enumerate(names):
        here = [found.get((name, title)) for title in titles]
        row = [Cell(str(name), value=i if by == "size" else str(name)), count(max(one.objects for one in here if one))]
        for one in here:
            cells = [Cell("–")] * (1 + both)
            if one:
                missing = one.n if one.n < one.objects else None
                mean = number(METRICS[one.metric], one.mean, one.low, one.high, n=missing, clusters=one.clusters)
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


CASE_METRIC = "volume_error"  # that tables of cases alone have


def grid_of_cases(table: pd.DataFrame) -> Grid:
    """The table `case` as it is printed: rows classes and modes, columns metrics.

    A case that was cut along several axes, or in a mean of classes, is still one case.
    """
    shown = table[table.groupby("metric")["n"].transform("max") > 0]  # no millimetres without a spacing
    metrics = [*dict.fromkeys(shown["metric"])]
    body = []
    for (name, mode), part in shown.groupby(["class", "mode"], sort=False, observed=True):
        found = {row.metric: row for row in part.itertuples()}
        cells = [
            number(METRICS[one.metric], one.mean, one.low, one.high, clusters=one.clusters)
            for one in map(found.get, metrics)
            if one is not None
        ]
        body.append([Cell(str(name), value=str(name)), Cell(str(mode)), count(part["clusters"].max()), *cells])
    return Grid(["class", "mode", "cases", *(METRICS[metric].title for metric in metrics)], body, names=2)


def _plain_grid(table: pd.DataFrame) -> Grid:
    body = [[_plain_cell(value) for value in row] for row in table.itertuples(index=False)]
    return Grid([str(column).replace("_", " ") for column in table.columns], body)


def _plain_cell(value: str | int | float | np.generic) -> Cell:
    if isinstance(value, str):
        return Cell(value, value=value)
    if isinstance(value, int | np.integer):
        return count(int(value))
    return Cell("–" if np.isnan(value) else f"{value:.3f}", value=float(value))


def format_table(table: pd.DataFrame, format: str = "text", metric: str = "dice") -> str:
    """format: "text" (aligned, for a terminal), "markdown", "latex" (booktabs), "csv" or "json" (every number,
    unrounded).

    metric: of a breakdown; in CSV and JSON all are there.
    """
    if format == "csv":
        buffer = io.StringIO()
        table.to_csv(buffer, index=False, lineterminator="\n")
        return buffer.getvalue().rstrip("\n")
    if format == "json":
        return json.dumps(to_records(table), indent=1, ensure_ascii=False)
    of_cases = "metric" in table and CASE_METRIC in set(table["metric"])
    return render(grid_of_cases(table) if of_cases else grid_of(table, metric), format)


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
    """format: "text", "markdown" or "latex". Below a table with intervals from few clusters stands what MARK means."""
    table = {"text": _text, "markdown": _markdown, "latex": _latex}[format](grid)
    if not any(MARK in cell.detail for row in grid.body for cell in row):
        return table
    note = f"{{\\footnotesize {_in_latex(MARKED)}}}" if format == "latex" else MARKED
    return f"{table}\n{note}" if format == "text" else f"{table}\n\n{note}"


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
    header, *body = ("| " + " | ".join(line) + " |" for line in lines)
    return "\n".join([header, rule, *body])


def _in_latex(text: str) -> str:
    return "".join(LATEX.get(letter, letter) for letter in " ".join(text.split()))


def _latex(grid: Grid) -> str:
    escaped = _in_latex

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
