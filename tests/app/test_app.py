"""The app as people use it: what a session does, and the page in headless Chromium."""

import json
import os
import shutil
import socket
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

pytest.importorskip("gradio", reason='gradio is not installed: pip install -e ".[app]"')

import gradio

from sam_med2d.app import page as app
from sam_med2d.data.reading import read_image
from sam_med2d.errors import DataError
from sam_med2d.inference import models as models_room
from sam_med2d.inference.session import AnnotationSession
from segment_anything import PromptError, SamPredictor, sam_model_registry
from tests.segment_anything.test_model import randomise

ROOT = Path(__file__).parents[2]
IMAGE = ROOT / "data_demo/images/mni152_axial_094.png"
OTHER_IMAGE = ROOT / "data_demo/images/mni152_axial_129.png"
WEIGHTS = ROOT / "pretrain_model/vit_t_phantoms.safetensors"
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


@pytest.fixture(scope="module")
def model():
    return sam_model_registry["vit_t"](image_size=128, encoder_adapter=False, checkpoint=str(WEIGHTS))


def expected(model, path: Path = IMAGE, **prompts) -> tuple[np.ndarray, float, np.ndarray]:
    """The best mask of the predictor."""
    predictor = SamPredictor(model)
    predictor.set_image(read_image(str(path)), "BGR")
    masks, iou, low_res = predictor.predict(**prompts)
    return masks[iou.argmax()], float(iou.max()), low_res[iou.argmax()]


def opened(model, path: Path = IMAGE) -> AnnotationSession:
    session = AnnotationSession({models_room.WITHOUT: model})
    session.open(path)
    return session


# ---------------------------------------------------------------- a session


def test_clicks_add_up_and_feed_the_last_mask_back(model):
    session = opened(model)
    first = session.click(110, 60, True)
    mask, iou, low_res = expected(model, point_coords=[[110, 60]], point_labels=[1])
    assert np.array_equal(first.mask, mask) and first.iou == pytest.approx(iou)
    second = session.click(40, 60, False)
    mask, _, _ = expected(model, point_coords=[[110, 60], [40, 60]], point_labels=[1, 0], mask_input=low_res)
    assert np.array_equal(second.mask, mask) and not np.array_equal(second.mask, first.mask)


def test_a_box_starts_anew_whichever_corner_it_starts_from(model):
    session = opened(model)
    session.click(110, 60, True)
    action = session.draw_box(150, 181, 80, 9)
    assert action.points == [] and np.array_equal(action.mask, expected(model, box=[80, 9, 150, 181])[0])


def test_undo_goes_back_one_step_at_a_time_and_ends_quietly(model):
    session = opened(model)
    first = session.click(110, 60, True)
    session.add_object("ventricle")
    session.click(70, 90, True)
    session.undo()
    assert session.shown() == {0: first} and session.objects[1] == "ventricle"
    session.undo()
    session.undo()
    assert session.shown() == {} and session.current == 0


def test_an_image_is_encoded_once(model, monkeypatch):
    calls = []
    encode = model.encode
    monkeypatch.setattr(model, "encode", lambda *a: calls.append(1) or encode(*a))
    session = opened(model)
    for x in (100, 105, 110):
        session.click(x, 60, True)
    assert len(calls) == 1


def test_adapters_can_be_left_out():
    model = randomise(sam_model_registry["vit_t"](image_size=64, encoder_adapter=True))
    plain = sam_model_registry["vit_t"](image_size=64, encoder_adapter=False)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "Adapter" not in k})
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        without = models_room.without_adapters(model)
        assert torch.equal(without.encode(images), plain.encode(images))
        assert not torch.allclose(model.encode(images), plain.encode(images), atol=1e-2)  # and the model still has them
    assert without.image_encoder.blocks[0].attn is model.image_encoder.blocks[0].attn  # no second copy in memory


def test_files_hold_every_object(model, tmp_path):
    session = opened(model)
    session.rename("left half")
    left = session.draw_box(80, 9, 150, 181)
    session.add_object()
    right = session.draw_box(9, 9, 79, 181)
    written = {path.name: path for path in session.save(tmp_path)}
    labels = cv2.imread(str(written["mni152_axial_094_labels.png"]), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(labels == 2, right.mask) and np.array_equal(labels == 1, left.mask & ~right.mask)
    document = json.loads(written["mni152_axial_094_coco.json"].read_text())
    assert [c["name"] for c in document["categories"]] == ["left half", "object 2"]
    assert [a["area"] for a in document["annotations"]] == [left.mask.sum(), right.mask.sum()]


def test_a_volume_is_segmented_slice_by_slice_and_keeps_its_geometry(model, tmp_path):
    sitk = pytest.importorskip("SimpleITK", reason='SimpleITK is not installed: pip install -e ".[data]"')
    grey = np.stack([read_image(str(p))[..., 0] for p in (IMAGE, OTHER_IMAGE, IMAGE)]).astype(np.int16) * 4 - 1000
    source = sitk.GetImageFromArray(grey[:, ::-1])  # stored from the back to the front: not the way it is shown
    source.SetDirection((1, 0, 0, 0, -1, 0, 0, 0, 1))
    source.SetSpacing((0.7, 0.8, 2.5))
    source.SetOrigin((-10, 20, 30))
    sitk.WriteImage(source, str(tmp_path / "scan.nii.gz"))
    session = opened(model, tmp_path / "scan.nii.gz")
    assert session.slice == 1 and session.scan.slices.shape == grey.shape
    session.slice = 2
    action = session.draw_box(80, 9, 150, 181)
    written = {path.name: path for path in session.save(tmp_path / "out")}
    volume = sitk.ReadImage(str(written["scan_labels.nii.gz"]))
    assert np.allclose(volume.GetSpacing(), source.GetSpacing()) and np.allclose(volume.GetOrigin(), source.GetOrigin())
    assert volume.GetDirection() == source.GetDirection()
    values = sitk.GetArrayFromImage(volume)
    assert np.array_equal(values[2][::-1], action.mask) and not values[:2].any()
    assert np.array_equal(cv2.imread(str(written["scan_0002_labels.png"]), cv2.IMREAD_UNCHANGED), action.mask)


def test_a_dicom_file_opens(model, tmp_path):
    sitk = pytest.importorskip("SimpleITK", reason='SimpleITK is not installed: pip install -e ".[data]"')
    image = sitk.GetImageFromArray(read_image(str(IMAGE))[None, ..., 0].astype(np.int16))
    sitk.WriteImage(image, str(tmp_path / "slice.dcm"))
    session = opened(model, tmp_path / "slice.dcm")
    assert session.scan.slices.shape == (1, 192, 159)
    assert session.click(110, 60, True).mask.shape == (192, 159)


def test_bad_input_leaves_the_session_as_it_was(model, tmp_path):
    session = opened(model)
    action = session.click(110, 60, True)
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "broken.nii.gz").write_bytes(b"\x1f\x8b no volume")
    for name in ("text.png", "broken.nii.gz"):
        with pytest.raises(DataError, match=name):
            session.open(tmp_path / name)
    with pytest.raises(PromptError, match="outside"):
        session.click(500, 60, True)
    assert session.shown() == {0: action}
    with pytest.raises(DataError, match="nothing to save"):
        opened(model).save(tmp_path / "out")
    with pytest.raises(DataError, match="open an image"):
        AnnotationSession({models_room.WITHOUT: model}).click(1, 1, True)


def test_a_volume_without_the_packages_for_it_names_the_extra(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    (tmp_path / "scan.nii.gz").write_bytes(b"")
    with pytest.raises(
        DataError, match=r'^scan.nii.gz: .* SimpleITK is not installed: pip install "sam-med2d\[data\]"'
    ):
        opened(model, tmp_path / "scan.nii.gz")


# ---------------------------------------------------------------- the page


def test_examples_are_offered_where_there_are_any(model, tmp_path, monkeypatch):
    def example():
        page = app.build({models_room.WITHOUT: model})
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
            "([c, b]) => document.querySelectorAll('#canvas circle').length == c && "
            "document.querySelectorAll('#canvas rect:not(.band)').length == b",
            arg=[clicks, boxes],
        )

    def drag(self, x0: float, y0: float, x1: float, y1: float) -> None:
        self.page.mouse.move(*self.at(x0 - 0.5, y0 - 0.5))
        self.page.mouse.down()
        self.page.mouse.move(*self.at((x0 + x1) / 2, (y0 + y1) / 2))
        self.page.mouse.move(*self.at(x1 - 0.5, y1 - 0.5))
        self.page.mouse.up()

    def label_map(self) -> np.ndarray:
        """What "Make files" offers to download as PNG. Its address changes with its content, which must have changed."""
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
    mask, iou, low_res = expected(model, point_coords=[[110, 60]], point_labels=[1])
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
