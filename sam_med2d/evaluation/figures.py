"""The figures of the report, as SVG text."""

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

# readable on white and on near black; lines differ in dash and marker as well
COLOURS = ("#2f7ed8", "#d9730d", "#2e9e6b", "#c2508f", "#8468d8", "#8a8f2a", "#3aa3b8", "#b5533c")

DASHES = ("-", "--", "-.", ":")

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

# colours that the page replaces by its own, so that a figure follows light and dark
INK, LINE = "#010203", "#040506"

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "legend.frameon": False,
}


def figures(made: dict[str, pd.DataFrame]) -> list[dict]:
    """title, caption and SVG of each figure that the rows have something to say to."""
    found = []
    if any(len(part) > 1 for _, part in made["dice_by_clicks"].groupby("series")):  # a point alone is no curve
        found.append(
            (
                "clicks",
                "Dice against number of clicks",
                "Mean over objects; bands and bars are 95 % intervals, as in the other figures.",
                click_figure(made),
            )
        )
    if made["reached"]["clicks"].nunique() > 1:
        mode = made["reached"]["mode"].iloc[0]
        found.append(
            (
                "reached",
                "Objects that reached a Dice",
                f"Share of all objects that got there within so many clicks ({mode}).",
                reached_figure(made["reached"]),
            )
        )
    if "size" in made:
        found.append(
            (
                "size",
                "Dice against object size",
                "Mean over the objects of a bin, by the share of the image that the object covers.",
                size_figure(made["size"]),
            )
        )
    if len(made["dice_by_jitter"]) > 1:
        found.append(
            (
                "jitter",
                "Dice against box jitter",
                "Each side of the box moved by up to so many pixels; 0 is the exact box.",
                jitter_figure(made["dice_by_jitter"]),
            )
        )
    if len(made["calibration_bins"]):
        found.append(
            (
                "calibration",
                "Predicted against true IoU",
                "Means of the objects in each tenth of the predicted IoU, larger marks for more "
                "objects; on the diagonal the prediction is right on average.",
                calibration_figure(made["calibration_bins"]),
            )
        )
    return [
        {"name": name, "title": title, "caption": caption, "svg": svg_of(figure, name)}
        for name, title, caption, figure in found
    ]


def new_figure() -> tuple[Figure, Axes]:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 3.5), layout="constrained")
        return figure, figure.add_subplot()


def draw_series(axes: Axes, x: Sequence[float], table: pd.DataFrame, label: str, i: int, scale: float = 100) -> None:
    """A line of means with their intervals as a band, or as a bar where there is one point only."""
    look: dict[str, Any] = {
        "color": COLOURS[i % len(COLOURS)],
        "marker": MARKERS[i % len(MARKERS)],
        "linestyle": DASHES[i // len(COLOURS) % len(DASHES)],
    }
    at, mean, low, high = (np.asarray(values, float) for values in (x, table["mean"], table["low"], table["high"]))
    axes.plot(at, scale * mean, label=label, **look)
    if len(at) > 1:
        axes.fill_between(at, scale * low, scale * high, color=look["color"], alpha=0.15, linewidth=0)
    elif not np.isnan(low).any():
        axes.errorbar(
            at, scale * mean, yerr=scale * np.array([mean - low, high - mean]), color=look["color"], capsize=3
        )


def click_figure(made: dict[str, pd.DataFrame]) -> Figure:
    figure, axes = new_figure()
    curves = made["dice_by_clicks"]
    for i, (series, part) in enumerate(curves.groupby("series", sort=False)):
        draw_series(axes, part["clicks"], part, series, i)
    box = made["overall"].query("mode == 'bbox' and metric == 'dice'")
    if len(box) and "box, then clicks" not in set(curves["series"]):
        axes.axhline(100 * box["mean"].iloc[0], color=INK, linewidth=1, linestyle=(0, (1, 2)), label="box alone")
    axes.set(xlabel="clicks", ylabel="Dice, %", xticks=sorted(curves["clicks"].unique()))
    with matplotlib.rc_context(STYLE):
        axes.legend()
    return figure


def reached_figure(reached: pd.DataFrame) -> Figure:
    figure, axes = new_figure()
    for i, (level, part) in enumerate(reached.groupby("level")):
        axes.plot(
            part["clicks"], 100 * part["share"], color=COLOURS[i], marker=MARKERS[i], label=f"Dice {level / 100:.2f}"
        )
    axes.set(xlabel="clicks", ylabel="objects, %", xticks=sorted(reached["clicks"].unique()), ylim=(0, 100))
    with matplotlib.rc_context(STYLE):
        axes.legend()
    return figure


def size_figure(sizes: pd.DataFrame) -> Figure:
    figure, axes = new_figure()
    sizes = sizes[sizes["metric"] == "dice"]
    bins = [*sizes["size"].unique()]
    for i, (mode, part) in enumerate(sizes.groupby("mode", sort=False)):
        draw_series(axes, [bins.index(name) for name in part["size"]], part, mode, i)
    names = [
        name.replace("below ", "<").replace(" to ", "–").replace(" and more", "+").replace(" %", "") for name in bins
    ]
    axes.set(xlabel="object, % of the image's area", ylabel="Dice, %", xticks=range(len(bins)), xticklabels=names)
    with matplotlib.rc_context(STYLE):
        axes.legend(ncols=2 if sizes["mode"].nunique() > 4 else 1)
    return figure


def jitter_figure(curve: pd.DataFrame) -> Figure:
    figure, axes = new_figure()
    draw_series(axes, curve["jitter"], curve, "box", 0)
    axes.set(xlabel="box jitter, pixels at most", ylabel="Dice, %", xticks=curve["jitter"])
    return figure


def calibration_figure(bins: pd.DataFrame) -> Figure:
    """Markers grow with the number of objects they stand for."""
    figure, axes = new_figure()
    axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=(0, (1, 2)))
    for i, (mode, part) in enumerate(bins.groupby("mode", sort=False)):
        colour = COLOURS[i % len(COLOURS)]
        axes.plot(
            part["predicted"],
            part["true"],
            color=colour,
            linewidth=1,
            alpha=0.6,
            linestyle=DASHES[i // len(COLOURS) % len(DASHES)],
        )
        axes.scatter(
            part["predicted"],
            part["true"],
            8 + 90 * part["n"] / part["n"].sum(),
            colour,
            marker=MARKERS[i % len(MARKERS)],
            alpha=0.85,
            linewidths=0,
            label=mode,
        )
    axes.set(xlabel="predicted IoU", ylabel="true IoU", xlim=(-0.02, 1.04), ylim=(-0.02, 1.04))
    with matplotlib.rc_context(STYLE):
        handles = axes.legend(ncols=2 if bins["mode"].nunique() > 4 else 1).legend_handles
    for handle in handles:
        if isinstance(handle, PathCollection):
            handle.set_sizes([30])
    return figure


def svg_of(figure: Figure, name: str) -> Markup:
    """Inline SVG in the page's colours and fonts; the same figure is the same text."""
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}):
        figure.savefig(
            buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor").replace(LINE, "var(--line)")
    # the page says what the figure is; ids are shared by all figures of a page
    for kind in (
        "figure_1",
        "axes_1",
        "patch_",
        "line2d_",
        "text_",
        "matplotlib.axis_",
        "xtick_",
        "ytick_",
        "legend_",
        "PathCollection_",
        "LineCollection_",
        "FillBetweenPolyCollection_",
    ):
        svg = svg.replace(f'id="{kind}', f'id="{name}_{kind}')
    return Markup(svg)
