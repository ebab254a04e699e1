"""An annotation session: prompts that add up, undo, volumes, files, and bad input that leaves it as it was."""

import gc
import json
import sys
import weakref
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from sam_med2d.data.reading import read_image
from sam_med2d.errors import DataError
from sam_med2d.inference import models as models_room
from sam_med2d.inference.session import AnnotationSession, read_upload
from segment_anything import PromptError, SamPredictor, sam_model_registry
from segment_anything.images import to_bgr
from tests.conftest import ROOT
from tests.segment_anything.test_model import randomise

IMAGE = ROOT / "data_demo/images/mni152_axial_094.png"
OTHER_IMAGE = ROOT / "data_demo/images/mni152_axial_129.png"
WEIGHTS = ROOT / "pretrain_model/vit_t_phantoms.safetensors"


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


def test_long_ago_the_newest_of_each_object_stays(model, monkeypatch):
    monkeypatch.setattr("sam_med2d.inference.session.MOST_UNDONE", 3)
    session = opened(model)
    session.click(70, 90, True)
    other = session.click(72, 90, True)
    session.add_object("ventricle")
    actions = [session.click(100 + place, 60, True) for place in range(5)]
    assert session.actions == [other, *actions[1:]]
    assert session.drawn_bytes >= sum(action.nbytes for action in session.actions) > 5 * 32 * 32 * 4
    for before in actions[3:0:-1]:
        session.undo()
        assert session.last(1) is before
    session.undo()
    assert session.last(1) is None and session.shown() == {0: other}


def test_what_was_encoded_is_forgotten_and_encoded_again(model):
    """With the same answers as in a session that forgot nothing."""
    session, steady = opened(model), opened(model)
    assert session.draw_box(100, 50, 130, 70).closer and session.encoded_bytes >= 2 * 256 * 8 * 8 * 4
    steady.draw_box(100, 50, 130, 70)
    session.forget_encoded()
    assert session.encoded_bytes == 0 < session.drawn_bytes and not session.is_encoded()
    again, unforgotten = session.click(110, 60, True), steady.click(110, 60, True)
    assert np.array_equal(again.low_res, unforgotten.low_res) and np.array_equal(again.mask, unforgotten.mask)
    assert session.encoded_bytes > 0


def test_a_closed_session_holds_nothing_of_its_file(model):
    session = opened(model)
    session.click(110, 60, True)
    slices = weakref.ref(session.scan.slices)
    gc.disable()  # what is let go of goes at once, not when Python next looks for circles
    try:
        session.close()
        assert slices() is None
    finally:
        gc.enable()
    assert session.encoded_bytes == session.drawn_bytes == 0
    with pytest.raises(DataError, match="open an image first"):
        session.click(110, 60, True)


def test_an_image_is_encoded_once(model, monkeypatch):
    calls = []
    encode = model.encode
    monkeypatch.setattr(model, "encode", lambda *a: calls.append(1) or encode(*a))
    session = opened(model)
    session.zoom = "never"
    for x in (100, 105, 110):
        session.click(x, 60, True)
    assert len(calls) == 1
    assert not session.last(0).closer


def test_a_crop_is_encoded_once(model, monkeypatch):
    """Also where another object was looked at between; a slice that is shown again is encoded no second time."""
    calls = []
    encode = model.encode
    monkeypatch.setattr(model, "encode", lambda *a: calls.append(1) or encode(*a))
    session = opened(model)
    first = session.draw_box(100, 50, 130, 70)
    count = len(calls)
    session.draw_box(20, 20, 50, 60)
    between = len(calls)
    assert first.closer and between > count >= 2  # the slice and crops of it
    again = session.draw_box(100, 50, 130, 70)
    assert len(calls) == between and (again.mask == first.mask).all()
    session.zoom = "never"
    assert not session.draw_box(100, 50, 130, 70).closer and len(calls) == between


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


def test_a_volume_that_claims_too_much_is_refused_by_its_header(tmp_path):
    """400 bytes that say they are a hundred gigabytes."""
    pytest.importorskip("SimpleITK", reason="the extra data is not installed")
    header = bytearray(400)
    header[0:4] = np.int32(348).tobytes()
    header[40:48] = np.array([3, 4000, 4000, 3000], "<i2").tobytes()
    header[70:74] = np.array([4, 16], "<i2").tobytes()
    header[76:92] = np.ones(4, "<f4").tobytes()
    header[344:348] = b"n+1\0"
    (tmp_path / "a.nii").write_bytes(header)
    with pytest.raises(DataError, match=r"a\.nii: has 4000 x 4000 x 3000 voxels, 48000 million, .* crop it first$"):
        read_upload(tmp_path / "a.nii")


def test_the_picture_is_the_slice_itself_and_a_copy(model):
    session = opened(model)
    assert session.size() == (192, 159) and np.array_equal(session.picture(), read_image(str(IMAGE)))
    session.picture()[:] = 0
    assert session.picture().any()
    with pytest.raises(DataError, match="open an image"):
        AnnotationSession({models_room.WITHOUT: model}).picture()


def test_a_volume_without_the_packages_for_it_names_the_extra(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    (tmp_path / "scan.nii.gz").write_bytes(b"")
    with pytest.raises(
        DataError, match=r'^scan.nii.gz: .* SimpleITK is not installed: pip install "sam-med2d\[data\]"'
    ):
        opened(model, tmp_path / "scan.nii.gz")


def volume_file(path: Path) -> Path:
    """One slice five times, as values of a scanner."""
    sitk = pytest.importorskip("SimpleITK", reason="the extra data is not installed")
    grey = np.stack([read_image(str(IMAGE))[..., 0]] * 5).astype(np.int16) * 4 - 1000
    sitk.WriteImage(sitk.GetImageFromArray(grey), str(path))
    return path


def test_an_object_is_carried_to_the_slices_beside_it_and_taken_back_at_once(model, tmp_path):
    session = opened(model, volume_file(tmp_path / "scan.nii.gz"))
    with pytest.raises(DataError, match="nothing to carry"):
        session.carry(1)
    first = session.draw_box(80, 9, 150, 181)
    assert session.slice == 2 and session.carry(1) == "" and session.slice == 3
    carried = session.last(0, 3)
    overlap = (carried.mask & first.mask).sum() / (carried.mask | first.mask).sum()
    assert overlap > 0.8 and carried.carried_from == 2  # the slices are alike
    assert session.carry(1) == "" and session.carry(1) == "end of the volume"
    session.turn_to(4)
    assert session.carry(-1) == "" and session.slice == 3  # over what was carried, not over a person's prompts
    assert session.carry(-1) == "slice 2 has prompts of its own" and session.slice == 3
    session.undo()
    assert session.slice == 2 and session.actions == [first]


def test_the_window_is_what_the_model_sees(model, tmp_path):
    path = volume_file(tmp_path / "scan.nii.gz")
    session = AnnotationSession({models_room.WITHOUT: model}, (-1000.0, -490.0))
    session.open(path)
    grey = read_image(str(IMAGE))[..., 0].astype(float) * 4 - 1000
    seen = np.clip(np.rint((grey + 1000) / 510 * 255), 0, 255)
    assert session.window == (-1000, -490) and np.abs(session.picture()[..., 0] - seen).max() <= 1
    assert session.doubt() == ""
    session.draw_box(80, 9, 150, 181)
    count = len(session.embeddings)
    session.set_window(None)
    assert "trained with the window -1000 to -490, and sees each slice" in session.doubt()
    assert np.abs(session.picture()[..., 0] - to_bgr((grey).astype(np.int16))[..., 0].astype(int)).max() <= 1
    session.draw_box(80, 9, 150, 181)
    assert len(session.embeddings) == count + 1  # another picture for the model
    for wrong in ((5, 5), (6, 5), (0, float("nan"))):
        with pytest.raises(DataError, match="lowest value must be below"):
            session.set_window(wrong)
    with pytest.raises(DataError, match="has no window"):
        opened(model).set_window((0, 1))
