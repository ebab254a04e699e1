"""Draw docs/images/app.png and docs/images/report.png anew, with the page, the report and the weights as they are.

    python scripts/screenshots.py
    python scripts/screenshots.py --only app --output workdir

Needs the extras app and dev, and an installed Chromium. The report is that of `python test.py --sam_checkpoint small`
on data_demo, whose run lies in --work_dir; half a minute on two cores.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from app_client import running
from playwright.sync_api import Browser, Page, sync_playwright

from segment_anything.files import replacing

PICTURES = ("app", "report")
IMAGE = ROOT / "data_demo/images/mni152_axial_094.png"
MODES = ("bbox", "1pt", "3pts", "5pts")
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # fmt: off
    parser.add_argument("--only", choices=PICTURES, nargs="+", default=PICTURES,
        help="The pictures to draw. Default: all.")
    parser.add_argument("--sam_checkpoint", default="small", help="The weights that answer. Default: %(default)s.")
    parser.add_argument("--output", type=Path, default=ROOT / "docs/images",
        help="Folder of the pictures. Default: docs/images.")
    parser.add_argument("--work_dir", type=Path, default=Path("workdir"),
        help="Folder of the run that is reported. Default: %(default)s.")
    # fmt: on
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    drawn = {}
    with sync_playwright() as control:
        chromium = control.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        if "app" in args.only:
            with (
                tempfile.TemporaryDirectory() as folder,
                running(Path(folder), "--sam_checkpoint", args.sam_checkpoint) as app,
            ):
                drawn["app"] = picture_of_app(chromium, app.address)
        if "report" in args.only:
            drawn["report"] = picture_of_report(chromium, test_run(args.sam_checkpoint, args.work_dir))
        chromium.close()
    for name, png in drawn.items():
        with replacing(args.output / f"{name}.png") as path:
            path.write_bytes(png)
        print(args.output / f"{name}.png")


def picture_of_app(chromium: Browser, address: str) -> bytes:
    """Three objects: of a lasso, of a stroke on it, one off it and a click, and of a box that is looked at closer."""
    page = chromium.new_page(viewport={"width": 1360, "height": 800})
    page.goto(address)
    page.wait_for_selector("body[data-ready]")
    page.set_input_files("#files-in", str(IMAGE))
    page.wait_for_selector("#canvas .picture")
    _lasso(page)
    _next_object(page)
    _brush(page)
    _next_object(page)
    _box(page)
    return page.screenshot()


def _lasso(page: Page) -> None:
    page.keyboard.press("l")
    _draw(page, [(84, 14), (107, 12), (137, 35), (152, 81), (150, 121), (132, 166), (102, 179), (86, 171)])
    _until(page, "document.querySelectorAll('#canvas .lasso').length == 1")
    _name(page, "left half")


def _brush(page: Page) -> None:
    page.keyboard.press("b")
    _draw(page, [(41, 61), (37, 81), (43, 101), (41, 121), (47, 141)])
    _until(page, "document.querySelectorAll('#canvas .stroke').length == 1")
    _draw(page, [(11, 61), (9, 91), (12, 111)], button="right")
    _until(page, "document.querySelectorAll('#canvas .stroke').length == 2")
    page.keyboard.press("c")
    page.mouse.click(*_at(page, 53, 49))
    _until(page, "document.querySelectorAll('#canvas .click').length == 1")
    _name(page, "right white matter")


def _box(page: Page) -> None:
    _draw(page, [(57, 66), (70, 90), (80, 121)])
    _until(page, "document.querySelector('#objects').innerText.includes('seen closer')")
    _name(page, "ventricle")


def _next_object(page: Page) -> None:
    before = page.locator("#objects tr").count()
    page.keyboard.press("n")
    _until(page, f"document.querySelectorAll('#objects tr').length == {before + 1}")


def _name(page: Page, name: str) -> None:
    page.fill("#name", name)
    page.press("#name", "Enter")
    _until(page, f"document.querySelector('#objects').innerText.includes('{name}')")
    page.evaluate("document.activeElement.blur()")


def _at(page: Page, x: float, y: float) -> tuple[float, float]:
    """The middle of a pixel of the picture, on the screen."""
    box = page.locator("#canvas .picture").bounding_box()
    assert box is not None
    width, height = page.evaluate(
        "['width', 'height'].map(side => +document.querySelector('#canvas .picture').dataset[side])"
    )
    return box["x"] + (x + 0.5) / width * box["width"], box["y"] + (y + 0.5) / height * box["height"]


def _draw(page: Page, places: list[tuple[float, float]], button: str = "left") -> None:
    page.mouse.move(*_at(page, *places[0]))
    page.mouse.down(button=button)  # type: ignore[arg-type]
    for place in places[1:]:
        page.mouse.move(*_at(page, *place), steps=6)
    page.mouse.up(button=button)  # type: ignore[arg-type]


def _until(page: Page, script: str) -> None:
    """Asked again and again: the page's policy lets no script wait that comes as a string."""
    end = time.monotonic() + 60
    while not page.evaluate(script):
        if time.monotonic() > end:
            raise TimeoutError(f"the page did not come to {script}: {page.inner_text('body')}")
        page.wait_for_timeout(50)


def test_run(weights: str, work_dir: Path) -> Path:
    """-> the report of a test run on data_demo."""
    command = [sys.executable, ROOT / "test.py", "--sam_checkpoint", weights, "--data_path", ROOT / "data_demo"]
    flags = ["--prompt_modes", *MODES, "--run_name", "small", "--work_dir", work_dir]
    subprocess.run([*command, *flags], check=True)
    return work_dir / "small/report.html"


def picture_of_report(chromium: Browser, report: Path) -> bytes:
    """From the top of the page to the first figures."""
    page = chromium.new_page(viewport={"width": 1200, "height": 1000}, color_scheme="light")
    page.goto(report.resolve().as_uri())
    page.evaluate("Promise.all([...document.images].map(image => image.decode()))")
    bottom = page.evaluate("document.querySelector('.figures figure').getBoundingClientRect().bottom")
    return page.screenshot(full_page=True, clip={"x": 0, "y": 0, "width": 1200, "height": bottom + 16})


if __name__ == "__main__":
    main()
