"""report.html: one self-contained page of an evaluation, made from its rows. It opens offline and asks for no network.

    rows = read_rows(folder)
    choices = choose_gallery(rows, modes=["bbox", "5pts"])          # whose tiles to draw
    write_report(folder, rows, results, [GalleryItem(choice.class_name, choice.rank, choice.mode, caption, tile), ...])

Every name that comes from data passes through the template's automatic escaping; the page's own policy
(Content-Security-Policy) forbids any script but ours and any request.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import pandas as pd
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from sam_med2d import drawing
from sam_med2d.evaluation.columns import MAIN_METRICS, METRICS
from sam_med2d.evaluation.estimates import GROUPS, WEIGHTED, scored, unscored
from sam_med2d.evaluation.figures import figures
from sam_med2d.evaluation.gallery import RANKS, GalleryItem
from sam_med2d.evaluation.grids import MARK, Grid, grid_of, grid_of_cases
from sam_med2d.evaluation.results import Results
from sam_med2d.evaluation.rows import VANISHED
from sam_med2d.evaluation.summary import all_tables
from segment_anything.files import replacing

TEMPLATE = Path(__file__).with_name("report_template.html")

UNSCORED_LISTED = 500

OPEN_ROWS = 25  # breakdowns of more rows start collapsed


def write_report(
    folder: str | Path,
    rows: pd.DataFrame,
    results: Results,
    gallery: Sequence[GalleryItem] = (),
    made: dict[str, pd.DataFrame] | None = None,
) -> Path:
    """-> {folder}/report.html.

    rows: of read_rows. results: what the run was made from, which is shown; Results() where that is not known.
    made: all_tables(rows), where they are at hand. Raises DataError where nothing was scored.
    """
    objects = scored(rows)
    made = made or all_tables(rows)
    script = Markup(SCRIPT)
    page = (
        Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        .from_string(TEMPLATE.read_text(encoding="utf-8"))
        .render(
            title=str(results.flags.get("run_name") or Path(folder).resolve().name),
            facts=facts(rows, objects, results),
            mark=MARK,
            script=script,
            script_hash=base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode(),
            clusters=objects["cluster"].nunique(),
            overall=grid_of(made["overall"]),
            elsewhere=grid_of(made["elsewhere"]) if "elsewhere" in made else None,
            noc=grid_of(made["noc"]) if len(made["noc"]) else None,
            calibration=grid_of(made["calibration"]) if len(made["calibration"]) else None,
            cases=grid_of_cases(made["case"]) if "case" in made else None,
            totals=TOTALS,
            breakdowns=[breakdown(made[by], by) for by in GROUPS if by in made],
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


def facts(rows: pd.DataFrame, objects: pd.DataFrame, results: Results) -> list[tuple[str, str]]:
    """What stands at the head of the page: (name, value)."""
    found = [
        ("objects", f"{objects['mask'].nunique():,}"),
        ("images", f"{objects['image'].nunique():,}"),
        ("clusters", f"{objects['cluster'].nunique():,}"),
    ]
    if len(unscored(rows)):
        found.append(("not scored", f"{unscored(rows)['mask'].nunique():,}"))
    if gone := rows["mask"][rows["status"] == VANISHED].nunique():
        found.append(("vanish in the frame", f"{gone:,}"))
    told = (("model type", results.model_type), ("image size", results.image_size))
    return found + [(name, str(value)) for name, value in told if value is not None]


class Breakdown(NamedTuple):
    """The tables of one way to group objects, one a metric; rows: groups, opened: whether the section starts open."""

    by: str
    rows: int
    opened: bool
    grids: list[tuple[str, Grid]]  # (title of the metric, its table)


TOTALS = (WEIGHTED, *(f"mean of {plural}" for plural in GROUPS.values()))


def breakdown(table: pd.DataFrame, by: str) -> Breakdown:
    """table: of all_tables, by data set, modality, class or size."""
    grids: list[tuple[str, Grid]] = []
    for metric in MAIN_METRICS:
        if (table["n"][table["metric"] == metric] > 0).any():
            title = METRICS[metric].title
            grids += [
                (title, grid_of(table, metric)),
                (f"{title}, median", grid_of(table, metric, medians=True)),
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


def tile(item: GalleryItem) -> dict[str, object]:
    """What the page needs of a picture; the picture itself as a JPEG in base64."""
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
    """(meaning, CSS of its mark) of what drawing.tile draws."""
    prediction, truth = drawing.css(drawing.colour_of(0)), drawing.css(drawing.TRUTH)
    on, off = (drawing.css(drawing.CLICK[foreground]) for foreground in (True, False))
    return [
        ("prediction", f"background: {prediction}"),
        ("truth", f"border: 2px solid {truth}; outline: 1px solid #666; border-radius: 50%"),
        ("box", f"border: 2px solid {prediction}; outline: 1px solid #666; border-radius: 0"),
        ("click on the object (plus)", f"background: {on}; border: 1px solid black; border-radius: 50%"),
        ("click off the object (minus)", f"background: {off}; border: 1px solid black; border-radius: 50%"),
    ]


def unscored_objects(rows: pd.DataFrame) -> dict[str, object]:
    """How many objects could not be scored, why, and the first of them by name."""
    objects = unscored(rows)
    reasons = [(str(why), int(n)) for why, n in objects["status"].astype(str).value_counts().items()]
    return {
        "reasons": reasons,
        "count": objects["mask"].nunique(),
        "rest": max(0, len(objects) - UNSCORED_LISTED),
        "listed": [(str(row.mask), str(row.image), str(row.status)) for row in objects[:UNSCORED_LISTED].itertuples()],
    }


def provenance(results: Results) -> list[tuple[str, list[tuple[str, str]]]]:
    """[(part, [(name, value), ...]), ...]: what made the results, from which plain values are shown."""

    def text(value: object) -> str:
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    def plain(part: dict[str, object]) -> list[tuple[str, str]]:
        return [(str(name), text(value)) for name, value in part.items() if not isinstance(value, dict)]

    versions = results.provenance.get("versions")
    parts = {
        "run": plain(results.facts() | results.provenance),
        "versions": plain(versions) if isinstance(versions, dict) else [],
        "flags": plain(results.flags),
    }
    return [(name, values) for name, values in parts.items() if values]


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
