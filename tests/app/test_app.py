"""The page in headless Chromium, and what starts it."""

import os
import shutil
import socket
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("gradio", reason='gradio is not installed: pip install -e ".[app]"')

import gradio

from sam_med2d.app import page as app
from sam_med2d.inference.models import WITHOUT
from tests.conftest import ROOT
from tests.inference.test_session import IMAGE, OTHER_IMAGE, expected, model

__all__ = ["model"]  # a fixture

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


# ---------------------------------------------------------------- the page


def test_examples_are_offered_where_there_are_any(model, tmp_path, monkeypatch):
    def example():
        page = app.build({WITHOUT: model})
        return next(block for block in page.blocks.values() if block.elem_id == "example")

    monkeypatch.chdir(ROOT)
    assert example().visible and IMAGE.name in [name for name, _ in example().choices]
    monkeypatch.chdir(tmp_path)
    assert not example().visible and not example().choices


@pytest.fixture(scope="module")
def address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    args = app.parse_args(["--port", str(port), "--max_upload", "1"])
    app.launch(args, prevent_thread_lock=True, quiet=True)
    yield f"http://127.0.0.1:{port}"
    gradio.close_all(verbose=False)


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install playwright"
    )
    with playwright.sync_playwright() as control:
        chromium = control.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


class Page:
    """One person's tab."""

    def __init__(self, browser, address: str) -> None:
        self.requests: list[str] = []
        self.page = browser.new_context(viewport={"width": 1360, "height": 800}).new_page()
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(address)
        self.page.wait_for_selector("#canvas .empty")

    def upload(self, path: Path) -> None:
        self.page.locator("#upload input[type=file]").set_input_files(str(path))

    def at(self, x: float, y: float) -> tuple[float, float]:
        """The middle of a pixel of the picture, on the screen."""
        box, size = (
            self.page.locator("#canvas .picture").bounding_box(),
            self.page.locator("#canvas .picture").evaluate("e => e.dataset"),
        )
        return box["x"] + (x + 0.5) / int(size["width"]) * box["width"], box["y"] + (y + 0.5) / int(
            size["height"]
        ) * box["height"]

    def wait_for(self, clicks: int, boxes: int) -> None:
        self.page.wait_for_function(
            "([c, b]) => document.querySelectorAll('#canvas .click').length == c && "
            "document.querySelectorAll('#canvas .box').length == b",
            arg=[clicks, boxes],
        )

    def drag(self, x0: float, y0: float, x1: float, y1: float) -> None:
        self.page.mouse.move(*self.at(x0 - 0.5, y0 - 0.5))
        self.page.mouse.down()
        self.page.mouse.move(*self.at((x0 + x1) / 2, (y0 + y1) / 2))
        self.page.mouse.move(*self.at(x1 - 0.5, y1 - 0.5))
        self.page.mouse.up()

    def label_map(self) -> np.ndarray:
        """What "Make files" offers as PNG. Its address changes with its content, which must have changed."""
        link = "#files a[download$='labels.png']"
        before = self.page.locator(link).first.get_attribute("href") if self.page.locator(link).count() else ""
        self.page.click("#save")
        self.page.wait_for_function(
            "([link, before]) => { const found = document.querySelector(link); "
            "return found && found.getAttribute('href') != before; }",
            arg=[link, before],
        )
        with self.page.expect_download() as download:
            self.page.locator(link).first.click()
        return cv2.imread(str(download.value.path()), cv2.IMREAD_UNCHANGED)


def test_upload_click_undo_box_download_in_a_browser(browser, address, model):
    tab = Page(browser, address)
    tab.upload(IMAGE)
    tab.page.wait_for_selector("#canvas .picture")
    tab.page.mouse.click(*tab.at(110, 60))
    tab.wait_for(clicks=1, boxes=0)
    mask, iou, _ = expected(model, point_coords=[[110, 60]], point_labels=[1])
    assert f"IoU {iou:.2f}" in tab.page.inner_text("#objects")
    assert np.array_equal(tab.label_map(), mask)

    tab.page.mouse.click(*tab.at(40, 60), button="right")
    tab.wait_for(clicks=2, boxes=0)
    tab.page.click("#undo")
    tab.wait_for(clicks=1, boxes=0)
    tab.page.click("#undo")
    tab.wait_for(clicks=0, boxes=0)

    tab.drag(80, 9, 150, 181)
    tab.wait_for(clicks=0, boxes=1)
    tab.page.click("#add")
    tab.page.wait_for_function("document.querySelectorAll('#objects tr').length == 2")
    tab.page.mouse.click(*tab.at(40, 100))
    tab.wait_for(clicks=1, boxes=1)
    second = expected(model, point_coords=[[40, 100]], point_labels=[1])[0]
    first = expected(model, box=[80, 9, 150, 181])[0]
    labels = tab.label_map()
    assert np.array_equal(labels == 2, second) and np.array_equal(labels == 1, first & ~second)

    tab.page.click("#reset")
    tab.wait_for(clicks=0, boxes=0)
    elsewhere = [url for url in tab.requests if not url.startswith((address, "data:", "blob:"))]
    assert not elsewhere, f"the page asked other machines: {elsewhere}"


def test_two_people_do_not_see_each_others_image(browser, address, model):
    one, other = Page(browser, address), Page(browser, address)
    one.upload(IMAGE)
    one.page.wait_for_selector("#canvas .picture")
    assert other.page.locator("#canvas .picture").count() == 0
    other.upload(OTHER_IMAGE)
    other.page.wait_for_selector("#canvas .picture")
    for tab in (one, other):
        tab.page.mouse.click(*tab.at(100, 80))
        tab.wait_for(clicks=1, boxes=0)
    for tab, path in ((one, IMAGE), (other, OTHER_IMAGE)):
        assert np.array_equal(tab.label_map(), expected(model, path, point_coords=[[100, 80]], point_labels=[1])[0])


def test_bad_files_end_in_a_message(browser, address, tmp_path):
    tab = Page(browser, address)
    (tmp_path / "notes.png").write_text("no picture")
    tab.upload(tmp_path / "notes.png")
    tab.page.wait_for_selector("text=not an image that OpenCV can decode")
    assert "Traceback" not in tab.page.content() and str(Path(app.__file__).parent) not in tab.page.inner_text("body")
    (tmp_path / "large.png").write_bytes(bytes(2_000_000))
    tab.page.reload()
    tab.page.wait_for_selector("#canvas .empty")
    tab.upload(tmp_path / "large.png")
    tab.page.wait_for_selector("text=/exceeds|too large|maximum/i")


def test_it_listens_on_this_machine_alone_unless_asked():
    args = app.parse_args([])
    assert args.host == "127.0.0.1" and not args.share and os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
