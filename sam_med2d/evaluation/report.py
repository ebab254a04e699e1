"""report.html: one self-contained page of an evaluation, made from its rows. It opens offline and asks the network for nothing.

    rows = read_rows(folder)
    choices = choose_gallery(rows, modes=["bbox", "5pts"])          # whose tiles to draw
    write_report(folder, rows, results, [GalleryItem(choice.class_name, choice.rank, choice.mode, caption, tile), ...])

Every name that comes from data passes through the template's automatic escaping; the page's own policy
(Content-Security-Policy) forbids any script but ours and any request.
"""

import base64
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import matplotlib
import numpy as np
import pandas as pd
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from sam_med2d import drawing
from sam_med2d.evaluation import summary as tables
from segment_anything.files import replacing

TEMPLATE = Path(__file__).with_name("report_template.html")
RANKS = ("best", "median", "worst")
UNSCORED_LISTED = 500
OPEN_ROWS = 25  # breakdowns of more rows start collapsed
# readable on white and on near black; lines differ in dash and marker as well
COLOURS = ("#2f7ed8", "#d9730d", "#2e9e6b", "#c2508f", "#8468d8", "#8a8f2a", "#3aa3b8", "#b5533c")
DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
# colours that the page replaces by its own, so that a figure follows light and dark
INK, LINE = "#010203", "#040506"
STYLE = {
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


@dataclass(frozen=True)
class GalleryItem:
    """An object to show. image: (H, W, 3) uint8 BGR, as drawing.tile makes it; rank: one of RANKS."""

    class_name: str
    rank: str
    mode: str
    caption: str
    image: np.ndarray


class Choice(NamedTuple):
    """An object whose tile the gallery wants; image and mask as in the rows."""

    class_name: str
    rank: str
    mode: str
    image: str
    mask: str
    dice: float


def choose_gallery(rows: pd.DataFrame, modes: Sequence[str], classes_at_most: int = 12, each: int = 1) -> list[Choice]:
    """The best, median and worst objects by Dice of each class in each of `modes`.

    The classes are those with most objects (ties: by name), in order of name; `each` objects a rank, no object twice
    in one class and mode, fewer where there are fewer objects. Depends on the rows alone, not on their order.
    """
    rows = tables.scored(rows)
    rows = rows[rows["mode"].isin(modes)]
    counts = rows.drop_duplicates("mask")["class"].astype(str).value_counts().rename_axis("class").reset_index()
    classes = sorted(counts.sort_values(["count", "class"], ascending=[False, True])["class"][:classes_at_most])
    choices = []
    for name in classes:
        of_class = rows[rows["class"] == name]
        for mode in dict.fromkeys(modes):
            part = of_class[of_class["mode"] == mode]
            part = part.assign(name=part["mask"].astype(str)).sort_values(["dice", "name"]).to_dict("records")
            worst = part[:each]
            best = part[max(each, len(part) - each) :][::-1]
            rest = part[each : len(part) - each]
            middle = rest[max(0, (len(rest) - each) // 2) :][:each]
            choices += [
                Choice(name, rank, mode, str(row["image"]), str(row["mask"]), float(row["dice"]))
                for rank, chosen in zip(RANKS, (best, middle, worst))
                for row in chosen
            ]
    return choices


def write_report(
    folder: str | Path,
    rows: pd.DataFrame,
    results: dict,
    gallery: Sequence[GalleryItem] = (),
    made: dict[str, pd.DataFrame] | None = None,
) -> Path:
    """-> {folder}/report.html.

    rows: of tables.read_rows. results: of results.json; its plain values, and those of its parts "provenance", "flags" and
    "versions", are shown. made: tables.all_tables(rows), where they are at hand. Raises DataError where nothing was scored.
    """
    objects = tables.scored(rows)
    made = made or tables.all_tables(rows)
    flags = results.get("flags") if isinstance(results.get("flags"), dict) else {}
    script = Markup(SCRIPT)
    page = (
        Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        .from_string(TEMPLATE.read_text(encoding="utf-8"))
        .render(
            title=str(results.get("run_name") or flags.get("run_name") or Path(folder).resolve().name),
            facts=facts(rows, objects, results, flags),
            script=script,
            script_hash=base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode(),
            clusters=objects["cluster"].nunique(),
            overall=tables.grid_of(made["overall"]),
            noc=tables.grid_of(made["noc"]) if len(made["noc"]) else None,
            calibration=tables.grid_of(made["calibration"]) if len(made["calibration"]) else None,
            totals=TOTALS,
            breakdowns=[breakdown(made[by], by) for by in tables.GROUPS if by in made],
            figures=figures(made),
            gallery=gallery_by_class(gallery),
            classes=objects["class"].nunique(),
            legend=legend(),
            unscored=unscored_objects(rows),
            provenance=provenance(results),
        )
    )
    path = Path(folder) / "report.html"
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


# ---------------------------------------------------------------- what the page shows


def facts(rows: pd.DataFrame, objects: pd.DataFrame, results: dict, flags: dict) -> list[tuple[str, str]]:
    found = [
        ("objects", f"{objects['mask'].nunique():,}"),
        ("images", f"{objects['image'].nunique():,}"),
        ("clusters", f"{objects['cluster'].nunique():,}"),
    ]
    if len(tables.unscored(rows)):
        found.append(("not scored", f"{tables.unscored(rows)['mask'].nunique():,}"))
    for name in ("model_type", "image_size"):
        if (value := results.get(name, flags.get(name))) is not None:
            found.append((name.replace("_", " "), str(value)))
    return found


class Breakdown(NamedTuple):
    by: str
    rows: int
    opened: bool
    grids: list[tuple[str, tables.Grid]]  # (title of the metric, its table)


TOTALS = (tables.WEIGHTED, *(f"mean of {plural}" for plural in tables.GROUPS.values()))


def breakdown(table: pd.DataFrame, by: str) -> Breakdown:
    grids = []
    for metric in tables.MAIN_METRICS:
        if (table["n"][table["metric"] == metric] > 0).any():
            title = tables.METRICS[metric].title
            grids += [
                (title, tables.grid_of(table, metric)),
                (f"{title}, median", tables.grid_of(table, metric, medians=True)),
            ]
    rows = sum(row[0].text not in TOTALS for row in grids[0][1].body)
    return Breakdown(by, rows, rows <= OPEN_ROWS, grids)


def gallery_by_class(gallery: Sequence[GalleryItem]) -> list[tuple[str, list[tuple[str, list[dict]]]]]:
    """-> [(class, [(mode, [tile, ...]), ...]), ...], classes and modes in order of appearance, tiles by rank."""
    classes: dict[str, dict[str, list[GalleryItem]]] = {}
    for item in gallery:
        if item.rank not in RANKS:
            raise ValueError(f"a gallery item's rank is one of {', '.join(RANKS)}, not {item.rank!r}")
        classes.setdefault(item.class_name, {}).setdefault(item.mode, []).append(item)
    return [
        (
            name,
            [
                (mode, [tile(item) for item in sorted(items, key=lambda item: RANKS.index(item.rank))])
                for mode, items in modes.items()
            ],
        )
        for name, modes in classes.items()
    ]


def tile(item: GalleryItem) -> dict:
    # full colour resolution: outlines are a pixel wide
    settings = [cv2.IMWRITE_JPEG_QUALITY, 82, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    data = base64.b64encode(cv2.imencode(".jpg", item.image, settings)[1].tobytes()).decode()
    return {
        "rank": item.rank,
        "caption": item.caption,
        "height": item.image.shape[0],
        "width": item.image.shape[1],
        "source": f"data:image/jpeg;base64,{data}",
    }


def legend() -> list[tuple[str, str]]:
    """(meaning, CSS colour) of what drawing.tile draws."""
    marks = (
        ("prediction", drawing.PREDICTION),
        ("truth", drawing.TRUTH),
        ("box", drawing.BOX),
        ("click on the object", drawing.CLICK[True]),
        ("click off the object", drawing.CLICK[False]),
    )
    return [(meaning, "rgb({2}, {1}, {0})".format(*colour)) for meaning, colour in marks]


def unscored_objects(rows: pd.DataFrame) -> dict:
    objects = tables.unscored(rows)
    reasons = [(str(why), int(n)) for why, n in objects["status"].astype(str).value_counts().items()]
    return {
        "reasons": reasons,
        "count": objects["mask"].nunique(),
        "rest": max(0, len(objects) - UNSCORED_LISTED),
        "listed": [(str(row.mask), str(row.image), str(row.status)) for row in objects[:UNSCORED_LISTED].itertuples()],
    }


def provenance(results: dict) -> list[tuple[str, list[tuple[str, str]]]]:
    """[(part, [(name, value), ...]), ...]: the plain values of results.json, and of its parts that say what made it."""

    def plain(part: dict) -> list[tuple[str, str]]:
        return [
            (str(name), text(value))
            for name, value in part.items()
            if not isinstance(value, dict)
            and not (isinstance(value, list) and any(isinstance(one, dict | list) for one in value))
        ]

    def text(value: object) -> str:
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    parts = {"run": {name: value for name, value in results.items() if not isinstance(value, list)}}
    parts |= {
        name: results[name] for name in ("provenance", "versions", "flags") if isinstance(results.get(name), dict)
    }
    inside = parts.get("provenance", {})
    parts |= {name: inside[name] for name in ("versions", "flags") if isinstance(inside.get(name), dict)}
    return [(name, plain(part)) for name, part in parts.items() if plain(part)]


# ---------------------------------------------------------------- figures


def figures(made: dict[str, pd.DataFrame]) -> list[dict]:
    """title, caption and SVG of each figure that the rows have something to say to."""
    found = []
    if len(made["dice_by_clicks"]):
        found.append(
            (
                "clicks",
                "Dice against number of clicks",
                "Mean over objects; bands and bars are 95 % intervals, as in the other figures.",
                click_figure(made),
            )
        )
    if len(made["reached"]):
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
    if len(made["dice_by_jitter"]):
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


def new_figure():
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 3.5), layout="constrained")
        return figure, figure.add_subplot()


def draw_series(axes, x: Sequence[float], table: pd.DataFrame, label: str, i: int, scale: float = 100) -> None:
    """A line of means with their intervals as a band, or as a bar where there is one point only."""
    look = {
        "color": COLOURS[i % len(COLOURS)],
        "marker": MARKERS[i % len(MARKERS)],
        "linestyle": DASHES[i // len(COLOURS) % len(DASHES)],
    }
    x, mean, low, high = (np.asarray(values, float) for values in (x, table["mean"], table["low"], table["high"]))
    axes.plot(x, scale * mean, label=label, **look)
    if len(x) > 1:
        axes.fill_between(x, scale * low, scale * high, color=look["color"], alpha=0.15, linewidth=0)
    elif not np.isnan(low).any():
        axes.errorbar(x, scale * mean, yerr=scale * np.array([mean - low, high - mean]), color=look["color"], capsize=3)


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


# sorting by a click on a header, filtering long lists, switching the metric of breakdowns, all open for print
SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  table.querySelectorAll("th button").forEach((button, column) => button.addEventListener("click", () => {
    const head = button.parentElement, body = table.tBodies[0];
    const first = column ? "descending" : "ascending", second = column ? "ascending" : "descending";
    const order = head.getAttribute("aria-sort") === first ? second : first;
    table.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", order);
    const key = row => row.cells[column].dataset.value;
    const compare = (a, b) => key(a) === "" ? 1 : key(b) === "" ? -1 : (order === "ascending" ? 1 : -1) *
      (isNaN(key(a)) || isNaN(key(b)) ? key(a).localeCompare(key(b), undefined, {numeric: true}) : key(a) - key(b));
    const isTotal = row => row.classList.contains("total"), rows = [...body.rows];
    body.append(...rows.filter(row => !isTotal(row)).sort(compare), ...rows.filter(isTotal));
  }));
}
for (const part of document.querySelectorAll("details.breakdown")) {
  const tables = [...part.querySelectorAll("[data-metric]")];
  part.querySelector("select")?.addEventListener("change", event =>
    tables.forEach(table => table.hidden = table.dataset.metric !== event.target.value));
  part.querySelector("input")?.addEventListener("input", event => {
    const wanted = event.target.value.toLowerCase();
    part.querySelectorAll("tbody tr").forEach(row =>
      row.hidden = !row.classList.contains("total") && !row.cells[0].textContent.toLowerCase().includes(wanted));
  });
}
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(part => part.open = true));
"""
