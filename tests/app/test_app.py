"""The page in headless Chromium, served by a process of its own."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("uvicorn", reason='uvicorn is not installed: pip install -e ".[app]"')

from sam_med2d.data.reading import read_image
from segment_anything import SamPredictor
from tests.app.running import Running, running
from tests.inference.test_session import IMAGE, OTHER_IMAGE, WEIGHTS, expected, model

__all__ = ["model"]  # a fixture


@pytest.fixture(scope="module")
def app(tmp_path_factory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("app"), "--sam_checkpoint", str(WEIGHTS), "--max_upload", "1") as one:
        yield one


class Tab:
    """One person's tab. faults: what the browser says of scripts and of what the page may not do."""

    def __init__(self, browser, address: str) -> None:
        self.requests: list[str] = []
        self.faults: list[str] = []
        self.page = browser.new_context(viewport={"width": 1360, "height": 800}).new_page()
        self.page.set_default_timeout(20_000)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("console", lambda said: self.faults.append(said.text) if "Content Security" in said.text else None)
        self.page.goto(address)
        self.page.wait_for_selector("body[data-ready]")

    def until(self, script: str, arg: object = None) -> None:
        """Ask again and again, since the page's policy lets no script wait that comes as a string."""
        end = time.monotonic() + 30
        while not self.page.evaluate(script, arg):
            assert time.monotonic() < end, f"{script}, while the page says {self.page.inner_text('body')}"
            self.page.wait_for_timeout(20)

    def upload(self, *paths: Path) -> None:
        """And wait until the last of them is shown."""
        self.page.set_input_files("#files-in", [str(path) for path in paths])

    def shows(self, name: str) -> None:
        self.until("name => document.querySelector('#file').textContent == name", arg=name)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """The middle of a pixel of the picture, on the screen."""
        picture = self.page.locator("#canvas .picture")
        box, size = picture.bounding_box(), picture.evaluate("e => e.dataset")
        return (
            box["x"] + (x + 0.5) / int(size["width"]) * box["width"],
            box["y"] + (y + 0.5) / int(size["height"]) * box["height"],
        )

    def wait_for(self, clicks: int, boxes: int) -> None:
        self.until(
            "([c, b]) => document.querySelectorAll('#canvas .click').length == c && "
            "document.querySelectorAll('#canvas .box').length == b",
            arg=[clicks, boxes],
        )

    def click(self, x: float, y: float, **options: str) -> None:
        self.page.mouse.click(*self.at(x, y), **options)

    def drag(self, x0: float, y0: float, x1: float, y1: float) -> None:
        self.page.mouse.move(*self.at(x0 - 0.5, y0 - 0.5))
        self.page.mouse.down()
        self.page.mouse.move(*self.at((x0 + x1) / 2, (y0 + y1) / 2))
        self.page.mouse.move(*self.at(x1 - 0.5, y1 - 0.5))
        self.page.mouse.up()

    def draw(self, places: list[tuple[float, float]], button: str = "left") -> None:
        """Press at the first place, and move over the others."""
        self.page.mouse.move(*self.at(*places[0]))
        self.page.mouse.down(button=button)
        for x, y in places[1:]:
            self.page.mouse.move(*self.at(x, y), steps=4)
        self.page.mouse.up(button=button)

    def heard(self, script: str, asked: list[tuple[float, float]]) -> list[list[float]]:
        """A line that the server tells, as the predictor takes it, after a look that it runs where it was drawn."""
        line = np.array(self.page.evaluate(script)) - 0.5
        for corner in np.array(asked):
            assert np.abs(line - corner).max(axis=1).min() < 1, corner
        assert np.abs(line[[0, -1]] - np.array(asked)[[0, -1]]).max() < 1
        return line.tolist()

    def wait_for_lines(self, strokes: int, lassos: int) -> None:
        self.until(
            "([s, l]) => document.querySelectorAll('#canvas .stroke').length == s && "
            "document.querySelectorAll('#canvas .lasso').length == l",
            arg=[strokes, lassos],
        )

    def text(self, selector: str, wanted: str) -> None:
        """Wait until an element says something."""
        self.until(
            "([selector, wanted]) => document.querySelector(selector).innerText.includes(wanted)",
            arg=[selector, wanted],
        )

    def label_map(self) -> np.ndarray:
        """What "Make files" offers as PNG. Its address is another one each time."""
        link = "#files a[download$='labels.png']"
        before = self.page.locator(link).first.get_attribute("href") if self.page.locator(link).count() else ""
        self.page.click("#save")
        self.until(
            "([link, before]) => { const found = document.querySelector(link); "
            "return found && found.getAttribute('href') != before; }",
            arg=[link, before],
        )
        with self.page.expect_download() as download:
            self.page.locator(link).first.click()
        return cv2.imread(str(download.value.path()), cv2.IMREAD_UNCHANGED)


@pytest.fixture
def tab(browser, app) -> Iterator[Tab]:
    one = Tab(browser, app.address)
    yield one
    assert not one.faults
    one.page.context.close()


def test_upload_click_undo_box_download_in_a_browser(tab, app, model):
    tab.upload(IMAGE)
    tab.shows(IMAGE.name)
    tab.click(110, 60)
    tab.wait_for(clicks=1, boxes=0)
    mask, iou, _ = expected(model, point_coords=[[110, 60]], point_labels=[1])
    assert f"IoU {iou:.2f}" in tab.page.inner_text("#objects")
    assert np.array_equal(tab.label_map(), mask)

    tab.click(40, 60, button="right")
    tab.wait_for(clicks=2, boxes=0)
    tab.page.click("#undo")
    tab.wait_for(clicks=1, boxes=0)
    tab.page.click("#undo")
    tab.wait_for(clicks=0, boxes=0)

    tab.drag(80, 9, 150, 181)
    tab.wait_for(clicks=0, boxes=1)
    tab.page.click("#add")
    tab.until("document.querySelectorAll('#objects tr').length == 2")
    tab.click(40, 100)
    tab.wait_for(clicks=1, boxes=1)
    second = expected(model, point_coords=[[40, 100]], point_labels=[1])[0]
    first = expected(model, box=[80, 9, 150, 181])[0]
    labels = tab.label_map()
    assert np.array_equal(labels == 2, second) and np.array_equal(labels == 1, first & ~second)

    tab.page.click("#reset")
    tab.wait_for(clicks=0, boxes=0)
    elsewhere = [url for url in tab.requests if not url.startswith((app.address, "blob:"))]
    assert not elsewhere, f"the page asked other machines: {elsewhere}"


def test_brush_and_lasso_in_a_browser(tab, model):
    """A stroke on the object and one off it, undone one by one; a lasso; and with either tool a click is a click."""
    tab.upload(IMAGE)
    tab.shows(IMAGE.name)
    tab.page.keyboard.press("b")
    assert tab.page.is_checked("[name=tool][value=brush]")
    on, off = [(100, 40), (118, 60), (120, 90)], [(30, 60), (40, 80)]
    tab.draw(on)
    tab.wait_for_lines(strokes=1, lassos=0)
    drawn = {"scribbles": [tab.heard("view.objects[0].strokes[0][0]", on)], "scribble_labels": [1]}
    mask, _, low_res = expected(model, **drawn)
    assert np.array_equal(tab.label_map(), mask)
    tab.draw(off, button="right")
    tab.wait_for_lines(strokes=2, lassos=0)
    assert tab.page.evaluate("view.objects[0].strokes.map(([, on]) => on)") == [True, False]
    second = tab.heard("view.objects[0].strokes[1][0]", off)
    drawn = {"scribbles": [*drawn["scribbles"], second], "scribble_labels": [1, 0]}
    assert np.array_equal(tab.label_map(), expected(model, mask_input=low_res, **drawn)[0])
    tab.click(60, 120)
    tab.wait_for(clicks=1, boxes=0)
    for strokes in (2, 1, 0):
        tab.page.click("#undo")
        tab.wait_for_lines(strokes=strokes, lassos=0)

    tab.page.check("[name=tool][value=lasso]")
    around = [(81, 10), (150, 12), (149, 180), (82, 178), (81, 14)]
    tab.draw(around)
    tab.wait_for_lines(strokes=0, lassos=1)
    assert np.array_equal(tab.label_map(), expected(model, lasso=tab.heard("view.objects[0].lasso", around))[0])
    tab.draw([(10, 10), (60, 60), (60, 10), (10, 100)])
    tab.text("#message", "lasso crosses itself")
    tab.wait_for_lines(strokes=0, lassos=1)
    tab.page.keyboard.press("c")
    tab.drag(80, 9, 150, 181)
    tab.wait_for(clicks=0, boxes=1)
    tab.wait_for_lines(strokes=0, lassos=0)


def test_a_small_object_is_looked_at_closer_in_a_browser(tab, model):
    """A box on a small part, a click more in the crop that it was seen in, and a large box, which needs none."""
    tab.upload(IMAGE)
    tab.shows(IMAGE.name)
    box = [90, 60, 140, 110]
    tab.drag(*box)
    tab.wait_for(clicks=0, boxes=1)
    tab.text("#objects", "seen closer")
    predictor = SamPredictor(model)
    predictor.set_image(read_image(str(IMAGE)), "BGR")
    first = predictor.predict(box=box, best=True)
    assert predictor.crops[0].width < predictor.original_size[1]
    assert np.array_equal(tab.label_map(), first.masks[0])
    far = SamPredictor(model, zoom="never")
    far.set_image(read_image(str(IMAGE)), "BGR")
    assert not np.array_equal(first.masks[0], far.predict(box=box, best=True).masks[0])
    tab.click(115, 85)
    tab.wait_for(clicks=1, boxes=1)
    again = predictor.predict([[115, 85]], [1], box, first.low_res[0], best=True)
    assert np.array_equal(tab.label_map(), again.masks[0])
    tab.drag(20, 9, 150, 181)
    tab.wait_for(clicks=0, boxes=1)
    assert "seen closer" not in tab.page.inner_text("#objects")


def test_two_people_do_not_see_each_others_image(browser, app, model):
    one, other = Tab(browser, app.address), Tab(browser, app.address)
    one.upload(IMAGE)
    one.shows(IMAGE.name)
    assert other.page.locator("#canvas .picture").count() == 0
    other.upload(OTHER_IMAGE)
    other.shows(OTHER_IMAGE.name)
    for tab in (one, other):
        tab.click(100, 80)
        tab.wait_for(clicks=1, boxes=0)
    for tab, path in ((one, IMAGE), (other, OTHER_IMAGE)):
        assert np.array_equal(tab.label_map(), expected(model, path, point_coords=[[100, 80]], point_labels=[1])[0])


def test_another_file_takes_the_place_of_the_files_that_were_made(tab):
    tab.upload(IMAGE)
    tab.shows(IMAGE.name)
    tab.click(110, 60)
    tab.wait_for(clicks=1, boxes=0)
    tab.label_map()
    tab.upload(OTHER_IMAGE)
    tab.shows(OTHER_IMAGE.name)
    assert tab.page.locator("#files a").count() == 0 and tab.page.locator("#canvas .click").count() == 0


def test_bad_files_end_in_a_message(tab, tmp_path):
    (tmp_path / "notes.png").write_text("no picture")
    tab.upload(tmp_path / "notes.png")
    tab.text("#message", "notes.png: not an image that OpenCV can decode")
    assert str(tmp_path) not in tab.page.inner_text("body")
    (tmp_path / "large.png").write_bytes(bytes(2_000_000))
    tab.upload(tmp_path / "large.png")
    tab.text("#message", "large.png: has more than 1 MB")
    tab.upload(IMAGE)
    tab.shows(IMAGE.name)
    assert not tab.page.locator("#message").is_visible()


def test_names_are_no_markup(tab, tmp_path):
    path = tmp_path / "<img src=x onerror=alert(1)>.png"
    shutil.copy(IMAGE, path)
    tab.upload(path)
    tab.page.wait_for_selector("#canvas .picture")
    tab.page.fill("#name", "<b onclick=alert(1)>left</b> & right")
    tab.page.press("#name", "Enter")
    tab.text("#objects", "<b onclick=alert(1)>left</b> & right")
    assert not tab.page.locator("#objects b, #file img").count()
    tab.page.fill("#name", "x")
    tab.page.evaluate("document.querySelector('#name').maxLength = 10000")
    tab.page.fill("#name", "y" * 5000)
    tab.page.press("#name", "Enter")
    tab.text("#message", "a name has at most 100 letters")


def test_keys(tab):
    tab.upload(IMAGE)
    tab.shows(IMAGE.name)
    tab.click(110, 60)
    tab.wait_for(clicks=1, boxes=0)
    tab.page.keyboard.press("n")
    tab.page.wait_for_selector("#objects tr:nth-child(2).current")
    tab.page.keyboard.press("1")
    tab.page.wait_for_selector("#objects tr:nth-child(1).current")
    tab.page.keyboard.press("m")
    assert not tab.page.locator("#canvas .outline").count() and not tab.page.is_checked("#masks")
    tab.page.keyboard.press("z")
    tab.wait_for(clicks=0, boxes=0)
    tab.page.focus("#name")
    tab.page.keyboard.press("n")  # in a field, keys are letters
    tab.page.keyboard.press("Escape")
    assert tab.page.locator("#objects tr").count() == 2


def test_a_click_falls_on_its_pixel_however_the_picture_is_enlarged_and_moved(tab, tmp_path, model):
    large = np.zeros((1500, 2000, 3), np.uint8)
    large[200:900, 300:1200] = cv2.resize(read_image(str(IMAGE)), (900, 700), interpolation=cv2.INTER_NEAREST)
    cv2.imwrite(str(tmp_path / "large.png"), large)
    tab.upload(tmp_path / "large.png")
    tab.shows("large.png")
    before = tab.page.locator("#canvas .picture").bounding_box()
    assert before["width"] < 2000 and before["height"] <= tab.page.locator("#canvas").bounding_box()["height"]
    pointed = tab.at(700, 500)
    tab.page.mouse.move(*pointed)
    tab.page.mouse.wheel(0, -800)
    tab.until(
        "least => document.querySelector('#canvas .picture').getBoundingClientRect().width > least",
        arg=3 * before["width"],
    )
    still = tab.at(700, 500)
    assert still == pytest.approx(
        pointed, abs=8
    )  # what is under the pointer stays there, but for parts of a pixel, enlarged
    tab.page.keyboard.down("Shift")
    tab.page.mouse.down()
    tab.page.mouse.move(pointed[0] + 60, pointed[1] + 40)
    tab.page.mouse.up()
    tab.page.keyboard.up("Shift")
    moved = tab.at(700, 500)
    assert moved[0] - still[0] == pytest.approx(60, abs=1) and moved[1] - still[1] == pytest.approx(40, abs=1)
    assert not tab.page.locator("#canvas .click").count()  # moving is no click
    tab.click(720, 480)
    tab.wait_for(clicks=1, boxes=0)
    assert np.array_equal(
        tab.label_map(), expected(model, tmp_path / "large.png", point_coords=[[720, 480]], point_labels=[1])[0]
    )
    tab.page.keyboard.press("0")
    assert tab.page.locator("#canvas .picture").bounding_box() == pytest.approx(before, abs=1)


def test_brightness_changes_what_is_seen_and_not_what_is_found(tab, model):
    tab.upload(IMAGE)
    tab.shows(IMAGE.name)
    tab.page.fill("#brightness", "2")
    assert "brightness(2)" in tab.page.locator("#canvas img").evaluate("e => e.style.filter")
    tab.click(110, 60)
    tab.wait_for(clicks=1, boxes=0)
    assert np.array_equal(tab.label_map(), expected(model, point_coords=[[110, 60]], point_labels=[1])[0])
    assert not tab.page.locator("#window").is_visible() and not tab.page.locator("#adapters").is_visible()


def test_a_series_as_a_disc_has_it_its_window_and_an_object_carried_through_its_slices(tab, tmp_path, model):
    """Files without an ending; level and width, which the model sees; slices, carrying and undo by keys and buttons."""
    pytest.importorskip("pydicom", reason="the extra data is not installed")
    from tests.volumes.dicom_files import write_series

    grey = read_image(str(IMAGE))[..., 0].astype(np.uint16)
    series = write_series(tmp_path / "DICOM", np.stack([grey * 4] * 4), RescaleIntercept=-1000)
    assert not any(path.suffix for path in series)
    tab.upload(*series)
    tab.text("#slice-shown", "of 0 to 3")
    assert tab.page.inner_text("#slice-shown") == "2 of 0 to 3" and tab.page.locator("#window").is_visible()
    tab.page.select_option("#window-preset", "abdomen")
    tab.until("document.querySelector('#window-width').value == 400")
    assert tab.page.input_value("#window-level") == "50"
    tab.page.fill("#window-width", "510")
    tab.page.press("#window-width", "Enter")
    tab.until("document.querySelector('#window-preset').value == 'other' && view.window.values[0] == -205")
    tab.page.fill("#window-level", "-745")
    tab.page.press("#window-level", "Enter")
    tab.until("view.window.values[0] == -1000 && view.window.values[1] == -490")
    tab.page.evaluate("document.activeElement.blur()")
    tab.click(110, 60)
    tab.wait_for(clicks=1, boxes=0)
    predictor = SamPredictor(model)
    seen = np.clip(np.rint(grey * 4 / 510 * 255), 0, 255).astype(np.uint8)
    predictor.set_image(np.repeat(seen[..., None], 3, axis=2), "BGR")
    found = predictor.predict([[110, 60]], [1], best=True)
    tab.text("#objects", f"{found.masks[0].sum()} px")

    tab.page.keyboard.press("]")
    tab.text("#slice-shown", "3 of 0 to 3")
    tab.text("#marked", "marked: 2, 3")
    assert not tab.page.locator("#canvas .click").count() and tab.page.locator("#canvas .outline").count() == 1
    tab.page.keyboard.press("z")
    tab.text("#slice-shown", "2 of 0 to 3")
    tab.until("document.querySelector('#marked').textContent == 'marked: 2'")
    tab.page.click("#carry-back")
    tab.text("#marked", "marked: 0, 1, 2")
    tab.text("#slice-shown", "0 of 0 to 3")
    tab.page.keyboard.press("ArrowUp")
    tab.text("#slice-shown", "1 of 0 to 3")
    assert tab.page.locator("#canvas .outline").count() == 1


def test_a_session_ends_with_its_tab(browser, app):
    others = {*app.folder.iterdir()}
    tab = Tab(browser, app.address)
    tab.upload(IMAGE)
    tab.shows(IMAGE.name)
    (folder,) = {*app.folder.iterdir()} - others
    assert any(folder.rglob("slices.npy"))
    tab.page.goto("about:blank")
    end = time.monotonic() + 20
    while folder.exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert not folder.exists()
