"""The report: which objects the gallery shows, what the page says, and the page in a real browser."""

import base64
import html
import re
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from sam_med2d.errors import DataError
from sam_med2d.evaluation import report
from sam_med2d.evaluation.columns import METRICS
from sam_med2d.evaluation.gallery import RANKS, GalleryItem, choose_gallery
from sam_med2d.evaluation.report import write_report
from sam_med2d.evaluation.results import Results
from sam_med2d.evaluation.rows import _tidy, read_rows
from sam_med2d.evaluation.summary import all_tables
from tests.evaluation.test_tables import few, synthetic_rows, write_run

CONTENT = {
    "model_type": "vit_t",
    "seed": 7,
    "data_hash": "d" * 16,
    "weights_hash": "c" * 16,
    "git_commit": "d3b54fc",
    "device": "cpu",
    "versions": {"torch": "2.13.0"},
    "dice": {"bbox": 0.123456},
    "flags": {"run_name": "sam-med2d", "image_size": 256, "prompt_modes": ["bbox", "1pt"], "prompt_path": None},
}
RESULTS = Results.of(CONTENT)
HOSTILE = '<img src=x onerror="pwned=1"><script>pwned=1</script>"\'&$x_1$'


def picture(value: int = 90) -> np.ndarray:
    return np.full((60, 50, 3), value, np.uint8)


def items(rows: pd.DataFrame, modes: tuple[str, ...] = ("bbox", "5pts")) -> list[GalleryItem]:
    return [
        GalleryItem(c.class_name, c.rank, c.mode, f"{c.mask} {c.dice:.2f}", picture())
        for c in choose_gallery(rows, modes)
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with everything in it, hostile names among it."""
    folder = tmp_path_factory.mktemp("run")
    rows = synthetic_rows(90, unscored=2)
    rows.loc[rows["class"] == "organ 1", "class"] = HOSTILE
    rows.loc[rows["dataset"] == "AMOS22", "dataset"] = HOSTILE
    rows.loc[rows["mode"] == "bbox+2pts", "mode"] = "bbox$\\frac<b>"
    rows["mask"] += HOSTILE
    rows = read_rows(write_run(folder, rows))
    return write_report(
        folder, rows, Results.of(CONTENT | {"note": HOSTILE, "flags": {"data_path": HOSTILE}}), items(rows)
    )


class Page(HTMLParser):
    """Tags with their attributes, and the text outside scripts and styles."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, text: str) -> None:
        if self.tags and self.tags[-1][0] not in ("script", "style"):
            self.texts.append(text)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


# ---------------------------------------------------------------- which objects


def test_gallery_shows_best_median_and_worst() -> None:
    rows = few({"A/1": [0.5, 0.1, 0.9, 0.3, 0.7]})
    assert [(c.rank, c.dice) for c in choose_gallery(rows, ["bbox"])] == [
        ("best", 0.9),
        ("median", 0.5),
        ("worst", 0.1),
    ]
    many = few({"A/1": [i / 20 for i in range(20)]})
    found = [(c.rank, round(20 * c.dice)) for c in choose_gallery(many, ["bbox"], each=2)]
    assert found == [("best", 19), ("best", 18), ("median", 9), ("median", 10), ("worst", 0), ("worst", 1)]


@pytest.mark.parametrize("count, ranks", [(1, ["worst"]), (2, ["best", "worst"]), (3, [*RANKS]), (4, [*RANKS])])
def test_gallery_shows_no_object_twice(count: int, ranks: list[str]) -> None:
    choices = choose_gallery(few({"A/1": [0.5] * count}), ["bbox"])
    assert [c.rank for c in choices] == ranks and len({c.mask for c in choices}) == len(choices)


def test_gallery_takes_the_classes_with_most_objects_whatever_the_order_of_rows() -> None:
    rows = synthetic_rows(60, ("bbox", "1pt"), classes=7)
    rows = _tidy(rows[~rows["class"].isin(["organ 2", "organ 5"]) | (rows["slice"] > 5)])
    choices = choose_gallery(rows, ["1pt", "bbox", "1pt"], classes_at_most=5)
    assert list(dict.fromkeys(c.class_name for c in choices)) == ["organ 0", "organ 1", "organ 3", "organ 4", "organ 6"]
    assert len(choices) == 5 * 2 * 3
    assert choices == choose_gallery(rows.sample(frac=1, random_state=3), ["1pt", "bbox"], classes_at_most=5)
    for choice in choices:
        row = rows[(rows["mask"] == choice.mask) & (rows["mode"] == choice.mode)].iloc[0]
        assert (row["dice"], row["class"], row["image"]) == (choice.dice, choice.class_name, choice.image)


def test_gallery_leaves_out_what_was_not_scored(tmp_path: Path) -> None:
    rows = read_rows(write_run(tmp_path, synthetic_rows(12, unscored=6)))
    assert not {c.mask for c in choose_gallery(rows, ["bbox"], each=9)} & set(rows["mask"][rows["status"] != "ok"])
    assert choose_gallery(rows, ["no such mode"]) == []


# ---------------------------------------------------------------- the page


def test_page_shows_the_numbers_of_the_tables(tmp_path: Path) -> None:
    rows = read_rows(write_run(tmp_path, synthetic_rows(40, unscored=3)))
    text = Page(write_report(tmp_path, rows, RESULTS, items(rows))).text
    tables = all_tables(rows)
    for name, metric in (
        ("overall", "dice"),
        ("overall", "hd95"),
        ("dataset", "nsd"),
        ("class", "dice"),
        ("size", "iou"),
        ("noc", "noc85"),
    ):
        for row in tables[name].query("metric == @metric").itertuples():
            assert METRICS[metric].text(row.mean) in text
    for expected in (
        "sam-med2d",
        "3 object(s) could not be scored",
        "3 empty truth",
        "mask-weighted mean",
        "c" * 16,
        "d3b54fc",
        "2.13.0",
        '["bbox", "1pt"]',
        "Dice against number of clicks",
        "Dice against object size",
        "Dice against box jitter",
        "Predicted against true IoU",
        "NoF@85 %",
    ):
        assert expected in text, expected
    assert "0.123456" not in text  # a summary is no provenance


def test_page_holds_the_pictures_and_nothing_from_elsewhere(made: Path) -> None:
    page = Page(made)
    sources = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert len(sources) == 4 * 2 * 3 and all(source.startswith("data:image/jpeg;base64,") for source in sources)
    found = cv2.imdecode(np.frombuffer(base64.b64decode(sources[0].partition(",")[2]), np.uint8), cv2.IMREAD_COLOR)
    assert found.shape == (60, 50, 3) and abs(int(found.mean()) - 90) <= 2
    links = [
        attributes[name]
        for _, attributes in page.tags
        for name in ("href", "xlink:href", "srcset", "action")
        if name in attributes
    ]
    assert links and all(link.startswith("#") for link in links)
    assert not {"link", "iframe", "object", "embed"} & {tag for tag, _ in page.tags}
    assert not re.search(r"@import|url\((?!#)", made.read_text(encoding="utf-8"))


def test_names_are_text_and_no_markup(made: Path) -> None:
    page = Page(made)
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not any("onerror" in attributes for _, attributes in page.tags)
    source = made.read_text(encoding="utf-8")
    assert (
        HOSTILE not in source
        and source.count(html.escape(HOSTILE).replace("&#x27;", "&#39;").replace("&quot;", "&#34;")) > 10
    )
    assert page.text.count(" ".join(HOSTILE.split())) > 10


def test_ids_are_unique_and_every_link_has_its_target(made: Path) -> None:
    page = Page(made)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids)), [name for name in ids if ids.count(name) > 1][:5]
    links = [attributes[name] for _, attributes in page.tags for name in ("href", "xlink:href") if name in attributes]
    assert {link[1:] for link in links} <= set(ids)


def test_same_rows_make_the_same_page(tmp_path: Path) -> None:
    pages = []
    for name in ("one", "two"):
        rows = read_rows(write_run(tmp_path / name, synthetic_rows(30)))
        pages.append(write_report(tmp_path / name, rows, RESULTS, items(rows)).read_bytes())
    assert pages[0] == pages[1]


def test_report_of_boxes_alone_without_names_or_results(tmp_path: Path) -> None:
    """The least there can be: no clicks, no classes, no prediction of IoU, one image."""
    rows = synthetic_rows(3, ("bbox",), named=False).assign(predicted_iou=np.nan, image="a.png")
    rows = read_rows(write_run(tmp_path / "least", rows))
    page = Page(write_report(tmp_path / "least", rows, Results(), []))
    assert (
        page.text.startswith("least")
        and "Every object was scored." in page.text
        and "Dice against object size" in page.text
    )
    assert "Dice against number of clicks" not in page.text and "Gallery" not in page.text


@pytest.mark.parametrize("modes, curve", [(("1pt",), False), (("bbox", "1pt"), False), (("1pt", "3pts"), True)])
def test_one_point_is_no_curve(tmp_path: Path, modes: tuple[str, ...], curve: bool) -> None:
    rows = read_rows(write_run(tmp_path, synthetic_rows(6, modes)))
    text = Page(write_report(tmp_path, rows, Results(), [])).text
    assert ("Dice against number of clicks" in text, "Objects that reached a Dice" in text) == (curve, curve)
    assert "Dice against object size" in text


def test_nothing_scored_is_an_error_and_leaves_no_page(tmp_path: Path) -> None:
    rows = read_rows(write_run(tmp_path, synthetic_rows(3, unscored=3)))
    with pytest.raises(DataError, match="3 x empty truth|x empty truth"):
        write_report(tmp_path, rows, RESULTS)
    assert not list(tmp_path.glob("*.html*"))


def test_an_unknown_rank_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="best, median, worst, not 'good'"):
        write_report(
            tmp_path, few({"A/1": [0.5, 0.6]}), Results(), [GalleryItem("liver", "good", "bbox", "", picture())]
        )


def test_a_long_list_of_the_unscored_is_cut_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "UNSCORED_LISTED", 4)
    rows = read_rows(write_run(tmp_path, synthetic_rows(20, ("bbox",), unscored=9)))
    assert (
        "9 object(s) could not be scored" in (text := Page(write_report(tmp_path, rows, Results())).text)
        and "And 5 more" in text
    )


# ---------------------------------------------------------------- in a browser


def test_page_opens_without_an_error_or_a_request(browser, made: Path) -> None:
    said, asked = [], []
    for scheme, width in (("light", 1280), ("dark", 1280), ("light", 390)):
        page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 900})
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(made.as_uri())
        page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
        page.evaluate("Promise.all([...document.images].map(image => image.decode()))")
        assert page.evaluate("typeof pwned") == "undefined"
        assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
        assert page.evaluate("document.documentElement.scrollWidth") <= width  # tables scroll, the page does not
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (background == "rgb(255, 255, 255)") == (scheme == "light")
        page.close()
    assert not said
    assert {url for url in asked if not url.startswith("data:")} == {made.as_uri()}


def test_tables_sort_filter_and_change_their_metric(browser, tmp_path: Path) -> None:
    rows = read_rows(write_run(tmp_path, synthetic_rows(120, ("bbox", "1pt"), classes=30)))
    page = browser.new_page()
    page.goto(write_report(tmp_path, rows, RESULTS).as_uri())
    cells = """column => [...document.querySelectorAll("#by-class [data-metric]:not([hidden]) tbody tr:not([hidden])")]
        .map(row => parseFloat(row.cells[column].innerText))"""
    names = """() => [...document.querySelectorAll("#by-class [data-metric]:not([hidden]) tbody tr:not([hidden])")]
        .map(row => row.cells[0].innerText)"""
    assert page.evaluate("document.querySelector('#by-class').open") is False  # 30 classes: a long list starts closed
    page.click("#by-class summary")
    before = page.evaluate(names)
    assert before[-2:] == ["mean of classes", "mask-weighted mean"] and len(before) == 32
    page.click("#by-class th:nth-child(3) button")
    values = page.evaluate(cells, 2)[:-2]
    assert values == sorted(values, reverse=True) and page.evaluate(names)[-2:] == before[-2:]  # totals stay below
    page.click("#by-class th:nth-child(3) button")
    assert page.evaluate(cells, 2)[:-2] == values[::-1]
    page.click("#by-class th:nth-child(1) button")
    assert page.evaluate(names)[:3] == ["organ 0", "organ 1", "organ 2"]  # numbers in names as numbers
    page.fill("#by-class input", "ORGAN 2")
    assert page.evaluate(names) == ["organ 2", *(f"organ {i}" for i in range(20, 30)), *before[-2:]]
    page.select_option("#by-class select", "IoU %, median")
    assert page.evaluate("document.querySelector('#by-class [data-metric]:not([hidden]) th').innerText").startswith(
        "IoU %, median, by class"
    )
    page.click("#by-size th:nth-child(1) button")
    sizes = page.evaluate(
        "[...document.querySelectorAll('#by-size [data-metric]:not([hidden]) tbody td:first-child')]"
        ".map(cell => cell.innerText)"
    )
    assert sizes[0] == "below 0.1 %" and sizes[-1] == "30 % and more"
    page.close()
