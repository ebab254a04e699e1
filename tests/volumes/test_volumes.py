"""Propagation through a volume, and the command segment-volume: orientation, prompts, where objects end, bad input."""

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import SimpleITK as sitk
import torch
import torch.nn.functional as F

from sam_med2d.commands import segment_volume as script
from sam_med2d.volumes.intensity import Intensity
from sam_med2d.volumes.prompts import Object3d
from sam_med2d.volumes.propagation import (
    Propagated,
    Rule,
    Slice,
    Slices,
    brightness_around,
    fuse,
    propagate,
    refine_along,
)
from sam_med2d.volumes.scans import canonical, stem_of
from sam_med2d.volumes.segmentation import Result, row_of, spread_slices
from segment_anything import ObjectPrompt, Prediction, PromptError, SamPredictor, sam_model_registry
from segment_anything.checkpoint import save_weights
from tests.segment_anything.test_model import randomise

FRAME = 128
SIZE = (40, 48, 56)  # z, y, x


class Bright:
    """Stands for a model: the object is the bright piece that a click or a box is on; it is certain of large pieces."""

    image_size = FRAME
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.asked: list = []
        self.encoded = 0

    def encode(self, images, content=None):
        self.encoded += 1
        return F.pixel_unshuffle(images[:, :1, 2::4, 2::4].float(), 4)

    def predict(self, embeddings, prompts, multimask_output):
        self.asked.append(prompts)
        bright = (F.pixel_shuffle(embeddings, 4)[0, 0] > 100).numpy().astype(np.uint8)
        _, pieces = cv2.connectedComponents(bright)
        if prompts.boxes is not None:
            x0, y0, x1, y1 = (prompts.boxes[0] / 4).tolist()
            inside = pieces[int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))]
            counts = np.bincount(inside.ravel(), minlength=pieces.max() + 1)
            counts[0] = 0
            piece = counts.argmax() if counts.any() else -1
        elif prompts.points is not None:
            x, y = (prompts.points[0, 0] / 4).long().tolist()
            piece = pieces[y, x] or -1
        else:
            known = prompts.masks[0, 0].numpy() > 0.5
            counts = np.bincount(pieces[known], minlength=2)
            counts[0] = 0
            piece = counts.argmax() if counts.any() else -1
        own = torch.from_numpy((pieces == piece).astype(np.float32))
        logits = torch.stack([own * 20 - 10] * 3)[None]
        good = 0.95 if own.sum() >= 3 else 0.1
        return Prediction(logits, torch.tensor([[good, 0.0, 0.0]]))

    def upscale(self, logits):
        return F.interpolate(logits, size=(FRAME, FRAME), mode="bilinear")


def ball(centre: tuple[float, float, float], radius: float) -> np.ndarray:
    """(Z, Y, X) bool."""
    z, y, x = np.indices(SIZE)
    return (z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2 < radius**2


@pytest.fixture(scope="module")
def scene() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A volume with two bright balls, and where they are. No two of its views look alike."""
    first, second = ball((18, 16, 18), 11), ball((24, 34, 42), 8)
    volume = np.zeros(SIZE, np.int16)
    volume[first | second] = 200
    return volume, first, second


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * (one & other).sum() / (one.sum() + other.sum())


def slices_of(volume: np.ndarray, axis: int, model=None, zoom="auto") -> Slices:
    return Slices(SamPredictor(model or Bright(), zoom=zoom), volume, axis, Intensity(window=(0, 200)))


# ---------------------------------------------------------------- propagation


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("carry", [("box",), ("mask",), ("point",), ("box", "mask", "point")])
def test_an_object_is_followed_to_both_its_ends(axis, carry, scene) -> None:
    volume, first, second = scene
    sliced = slices_of(volume, axis)
    middle = (18, 16, 18)[axis]
    x, y = [c for i, c in enumerate((18, 16, 18)) if i != axis][::-1]
    y = y if axis == 0 else sliced.size[0] - 1 - y
    found = propagate(
        sliced,
        {middle: ObjectPrompt(np.array([[x, y]], np.float32), np.array([1]))},
        Rule(carry, least_area=3, shrink=0.1),
    )
    mask = sliced.assemble(found.slices) > 0.5
    assert dice(mask, first) > 0.9 and not (mask & second).any()
    assert min(found.slices) - 1 <= middle - 10 and max(found.slices) + 1 >= middle + 10
    assert all(end.startswith("the next") for end in found.ends)


def test_what_is_carried(scene) -> None:
    model = Bright()
    sliced = slices_of(scene[0], 0, model)
    propagate(sliced, {18: ObjectPrompt(box=np.array([5, 3, 32, 30], np.float32))}, Rule(("box", "mask", "point")))
    first, *others = model.asked
    assert first.points is None and first.masks is None and others
    for prompts in others:
        assert (
            prompts.boxes.shape == (1, 4)
            and prompts.points.shape == (1, 1, 2)
            and prompts.masks.shape == (1, 1, FRAME // 4, FRAME // 4)
        )


def test_an_object_does_not_jump_to_what_it_lies_in(scene) -> None:
    """Where the model offers the part and the whole, and is surer of the whole, the one like the last mask is taken."""

    class Ambiguous(Bright):
        def predict(self, embeddings, prompts, multimask_output):
            part = super().predict(embeddings, prompts, multimask_output).logits[:, :1]
            whole = torch.full_like(part, 10.0)
            return Prediction(torch.cat([whole, part, whole], dim=1), torch.tensor([[0.95, 0.7, 0.1]]))

    volume, first, _ = scene
    sliced = slices_of(volume, 0, Ambiguous())
    prompt = ObjectPrompt(box=np.array([5, 3, 32, 30], np.float32))
    assert sliced.predict(18, prompt).mask.all()
    like = sliced.predict(18, prompt, like=first[17])
    assert dice(like.mask, first[18]) > 0.9 and like.iou == pytest.approx(0.7)
    again = sliced.assemble(refine_along(sliced, first, Rule(least_area=3))) > 0.5
    assert dice(again, first) > 0.85


def test_every_slice_is_encoded_once(scene) -> None:
    model = Bright()
    sliced = slices_of(scene[0], 0, model, zoom="never")
    for box in ([5, 3, 32, 30], [30, 24, 54, 44]):
        propagate(sliced, {20: ObjectPrompt(box=np.array(box, np.float32))}, Rule(least_area=3, shrink=0.1))
    assert model.encoded <= SIZE[0] and len(model.asked) > 30


def test_a_small_object_is_followed_in_crops(scene) -> None:
    box = {18: ObjectPrompt(box=np.array([5, 3, 32, 30], np.float32))}
    rule = Rule(least_area=3, shrink=0.1)
    found = {}
    for zoom in ("never", "2"):
        sliced = slices_of(scene[0], 0, zoom=zoom)
        found[zoom] = dice(sliced.assemble(propagate(sliced, box, rule).slices) > 0.5, scene[1])
    assert found["2"] >= found["never"] > 0.9


def test_embeddings_kept_are_bounded(scene, monkeypatch) -> None:
    monkeypatch.setattr("sam_med2d.volumes.propagation.KEPT_BYTES", 3 * FRAME * FRAME // 16 * 4)
    sliced = slices_of(scene[0], 0)
    found = propagate(
        sliced, {18: ObjectPrompt(box=np.array([5, 3, 32, 30], np.float32))}, Rule(least_area=3, shrink=0.1)
    )
    assert len(sliced._kept) == 3 and dice(sliced.assemble(found.slices) > 0.5, scene[1]) > 0.9


def test_rules_end_an_object(scene) -> None:
    volume = scene[0].copy()
    box = {18: ObjectPrompt(box=np.array([5, 3, 32, 30], np.float32))}
    ends = lambda volume, **rule: (
        propagate(slices_of(volume, 0), box, Rule(**{"least_area": 1, "shrink": 0.0, **rule})).ends
    )
    assert "predicted IoU of 0.10" in ends(volume)[0]
    assert "falls from" in ends(volume, least_area=120)[1]
    leak = volume.copy()
    leak[23, 2:40, 2:40] = 200
    assert "rises from" in ends(leak, carry=("point",))[1]
    empty = propagate(slices_of(volume * 0, 0), box, Rule())
    assert [*empty.slices] == [18] and empty.ends == ("nothing found where it was prompted",) * 2
    tube = volume * 0
    tube[:, 10:30, 10:30] = 200
    whole = propagate(slices_of(tube, 0), box, Rule())
    assert whole.ends == ("end of the volume",) * 2 and len(whole.slices) == SIZE[0]
    part = propagate(slices_of(tube, 0), box, Rule(), bounds=(15, 30))
    assert part.ends == ("end of the box",) * 2 and sorted(part.slices) == [*range(15, 30)]
    assert propagate(slices_of(tube, 0), box, Rule(), bounds=(0, 30)).ends == ("end of the volume", "end of the box")


def test_two_seeds_meet_half_way() -> None:
    """A tube that moves sideways at once in its middle: each half needs its own seed."""
    volume = np.zeros(SIZE, np.int16)
    volume[:20, 5:20, 5:20] = 200
    volume[20:, 25:45, 30:50] = 200
    box = lambda x, y: ObjectPrompt(box=np.array([x, y, x + 22, y + 22], np.float32))
    one = propagate(slices_of(volume, 0), {5: box(3, 3)}, Rule())
    both = propagate(slices_of(volume, 0), {5: box(3, 3), 34: box(29, 24)}, Rule())
    assert max(one.slices) == 19 and sorted(both.slices) == [*range(SIZE[0])]
    assert dice(slices_of(volume, 0).assemble(both.slices) > 0.5, volume > 0) > 0.9


def test_other_axes_mend_what_one_axis_gets_wrong(scene) -> None:
    volume, first, _ = scene
    wrong = first.copy()
    wrong[18:20] = ball((18, 16, 18), 6)[18:20]  # two slices that came out too small
    looked = [wrong.astype(np.float16)]
    covered = [np.ones((SIZE[0], 1, 1), bool)]
    for axis in (1, 2):
        sliced = slices_of(volume, axis)
        again = refine_along(sliced, wrong, Rule(least_area=3))
        looked.append(sliced.assemble(again))
        where = np.zeros(len(sliced), bool)
        where[list(again)] = True
        covered.append(where.reshape([-1 if i == axis else 1 for i in range(3)]))
    fused = fuse(looked, covered) > 0.5
    assert dice(fused, first) > dice(wrong, first) and dice(wrong[18:20], first[18:20]) < 0.5 < 0.85 < dice(
        fused[18:20], first[18:20]
    )


def test_assembled_slices_lie_where_they_were_cut() -> None:
    volume = np.random.default_rng(0).integers(0, 200, SIZE).astype(np.int16)
    for axis in range(3):
        sliced = slices_of(volume, axis)

        slices = {i: Slice((sliced.image(i) / 256).astype(np.float16), None, 1.0) for i in range(len(sliced))}
        assert np.allclose(sliced.assemble(slices) * 256, np.round(volume.astype(float) * 255 / 200), atol=0.2)


# ---------------------------------------------------------------- the script


@pytest.fixture
def run(tmp_path, monkeypatch):
    """segment_volume.py with the model above. -> the labels and the table."""
    monkeypatch.setattr(script, "load_segmenter", lambda args: Bright())

    def run(source: Path, *flags: object, output: str = "out.nii.gz") -> tuple[sitk.Image, list[dict[str, str]]]:
        path = tmp_path / "results" / output
        script.main(
            [
                "--input",
                str(source),
                "--output",
                str(path),
                "--least_area",
                "3",
                "--shrink",
                "0.1",
                "--window",
                "100",
                "200",
                *map(str, flags),
            ]
        )
        with open(path.with_name(f"{stem_of(path)}.csv"), newline="") as file:
            return sitk.ReadImage(str(path)), list(csv.DictReader(file))

    return run


def image_of(volume: np.ndarray, orientation: str = "LPS") -> sitk.Image:
    """Turned, with spacing, origin and a tilt, so that nothing is by chance the same."""
    image = sitk.GetImageFromArray(volume)
    image.SetSpacing((0.8, 0.9, 2.5))
    image.SetOrigin((-30, 12, 7))
    tilt = sitk.Euler3DTransform((0, 0, 0), 0.1, 0.05, 0)
    image.SetDirection(tilt.GetMatrix())
    return sitk.DICOMOrient(image, orientation)


def stored(
    tmp_path: Path, volume: np.ndarray, orientation: str = "LPS", name: str = "ct.nii.gz"
) -> tuple[Path, sitk.Image]:
    path = tmp_path / name
    sitk.WriteImage(image_of(volume, orientation), str(path))
    return path, sitk.ReadImage(str(path))


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "PIR", "ASL"])
@pytest.mark.parametrize("axis", ["z", "y", "x"])
def test_labels_lie_on_the_volume_however_it_is_stored(orientation, axis, run, tmp_path, scene) -> None:
    volume, first, second = scene
    path, image = stored(tmp_path, volume, orientation)
    array = sitk.GetArrayFromImage(image) > 0
    truth = [sitk.GetArrayFromImage(image_of(mask.astype(np.uint8), orientation)) > 0 for mask in (first, second)]
    clicks = [np.argwhere(mask).mean(axis=0).round().astype(int)[::-1] for mask in truth]
    prompts = tmp_path / "prompts.json"
    prompts.write_text(
        json.dumps(
            {
                "objects": [
                    {"label": label, "name": name, "axis": axis, "points": [click.tolist()]}
                    for label, name, click in ((7, "one", clicks[0]), (300, "two", clicks[1]))
                ]
            }
        )
    )
    labels, rows = run(path, "--prompts", prompts)
    assert labels.GetSize() == image.GetSize() and np.allclose(labels.GetOrigin(), image.GetOrigin(), atol=1e-4)
    assert np.allclose(labels.GetDirection(), image.GetDirection(), atol=1e-5) and np.allclose(
        labels.GetSpacing(), image.GetSpacing()
    )
    got = sitk.GetArrayFromImage(labels)
    assert {*np.unique(got)} == {0, 7, 300}
    assert dice(got == 7, truth[0]) > 0.9 and dice(got == 300, truth[1]) > 0.85 and array.shape == got.shape
    for row, label in zip(rows, (7, 300)):
        along = {"x": 0, "y": 1, "z": 2}[axis]
        numbers = [
            np.flatnonzero((got == label).any(axis=tuple(i for i in range(3) if i != axis_))) for axis_ in range(3)
        ]
        assert [int(row["first_slice"]), int(row["last_slice"])] in [
            [found[0], found[-1]] for found in numbers
        ] and along < 3
        assert int(row["voxels"]) == (got == label).sum() and float(row["millilitres"]) == pytest.approx(
            int(row["voxels"]) * 1.8e-3, abs=1e-3
        )
        assert int(row["first_slice"]) < int(row["last_slice"])


@pytest.mark.parametrize("orientation", ["LPS", "RAI"])
def test_boxes_thin_and_rough(orientation, run, tmp_path, scene) -> None:
    path, _ = stored(tmp_path, scene[0], orientation)
    first = sitk.GetArrayFromImage(image_of(scene[1].astype(np.uint8), orientation)) > 0
    low, high = np.argwhere(first).min(axis=0)[::-1], np.argwhere(first).max(axis=0)[::-1] + 1
    middle = (low[2] + high[2]) // 2
    thin, _ = run(path, "--box", *low[:2], middle, *high[:2], middle + 1)
    assert dice(sitk.GetArrayFromImage(thin) > 0, first) > 0.9
    rough, rows = run(path, "--box", *(low - 1), *(high + 1))
    assert dice(sitk.GetArrayFromImage(rough) > 0, first) > 0.9
    cut, rows = run(path, "--box", *low[:2], low[2] + 4, *high[:2], high[2] - 4)
    planes = np.flatnonzero((sitk.GetArrayFromImage(cut) > 0).any(axis=(1, 2)))
    assert (planes[0], planes[-1]) == (low[2] + 4, high[2] - 5) and rows[0]["first_end"] == rows[0][
        "last_end"
    ] == "end of the box"
    inside, _ = run(path, "--box", *(low - 1), *(high + 1), "--point", *((low + high) // 2))
    assert dice(sitk.GetArrayFromImage(inside) > 0, first) > 0.9


def test_fused_axes_and_pictures(run, tmp_path, scene) -> None:
    path, _ = stored(tmp_path, scene[0])
    labels, _ = run(path, "--point", 18, 16, 18, "--fuse", output="fused.nrrd")
    assert dice(sitk.GetArrayFromImage(labels) > 0, scene[1]) > 0.9
    shown = cv2.imread(str(tmp_path / "results" / "fused.png"))
    assert shown is not None and min(shown.shape[:2]) > 300


def test_a_dicom_series(run, tmp_path, scene) -> None:
    folder = tmp_path / "series"
    folder.mkdir()
    image = image_of(scene[0])
    for number in range(image.GetSize()[2]):
        one = image[:, :, number]
        tags = {
            "0008|0060": "CT",
            "0010|0020": "p1",
            "0020|000d": "1.2.3",
            "0020|000e": "1.2.3.4",
            "0008|0018": f"1.2.3.4.{number + 1}",
            "0020|0013": str(number),
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
            "0020|0032": "\\".join(f"{v:.6f}" for v in image.TransformIndexToPhysicalPoint((0, 0, number))),
            "0020|0037": "\\".join(f"{image.GetDirection()[i]:.8f}" for i in (0, 3, 6, 1, 4, 7)),
        }
        for key, value in tags.items():
            one.SetMetaData(key, value)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(folder / f"{99 - number}.dcm"))
        writer.Execute(one)
    labels, _ = run(folder, "--point", 18, 16, 18, output="labels.mha")
    assert labels.GetSize() == image.GetSize() and np.allclose(labels.GetOrigin(), image.GetOrigin(), atol=1e-3)
    assert dice(sitk.GetArrayFromImage(labels) > 0, scene[1]) > 0.9


def test_with_a_real_model_from_its_file(tmp_path, scene) -> None:
    weights = tmp_path / "tiny.safetensors"
    save_weights(randomise(sam_model_registry["vit_t"](image_size=64, encoder_adapter=False)).state_dict(), weights)
    path, image = stored(tmp_path, scene[0][14:22], name="ct.mha")
    script.main(
        [
            "--input",
            str(path),
            "--output",
            str(tmp_path / "labels.nii.gz"),
            "--box",
            "5",
            "3",
            "4",
            "32",
            "30",
            "5",
            "--least_iou",
            "-9",
            "--sam_checkpoint",
            str(weights),
            "--device",
            "cpu",
        ]
    )
    assert sitk.ReadImage(str(tmp_path / "labels.nii.gz")).GetSize() == image.GetSize()


def test_the_volume_itself_is_never_written(run, tmp_path, scene) -> None:
    path, _ = stored(tmp_path, scene[0])
    before = path.read_bytes()
    ends_with(
        "is the volume itself",
        lambda: script.main(["--input", str(path), "--output", str(path), "--point", "18", "16", "18"]),
    )
    assert path.read_bytes() == before


def ends_with(message: str, call) -> None:
    with pytest.raises(SystemExit) as end:
        call()
    assert message in str(end.value.code) and "\n" not in str(end.value.code)


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--point", 56, 1, 1), "point (56, 1, 1) of object lies outside the volume of 56 x 48 x 40 voxels"),
        (("--box", 1, 1, 1, 1, 5, 5), "is empty"),
        (("--box", 1, 1, 1, 99, 5, 5), "reaches outside"),
        (("--box", 1, 1, 1, 9, 9, 9, "--box", 1, 1, 1, 9, 9, 9), "more than one box that is thicker"),
        (("--box", 1, 1, 5, 9, 9, 6, "--box", 2, 2, 5, 9, 9, 6), "two boxes on slice 5"),
        (("--point", 9, 9, 20, "--background", 9, 9, 21), "only background clicks on slice 21"),
        (("--box", 1, 1, 1, 9, 9, 9, "--point", 4, 4, 20), "outside its rough box"),
    ],
)
def test_bad_prompts_in_flags(flags, message, run, tmp_path, scene) -> None:
    path, _ = stored(tmp_path, scene[0])
    ends_with(message, lambda: run(path, *flags))


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "not valid JSON"),
        ({}, "must hold"),
        ({"objects": []}, "at least one"),
        ({"objects": [3]}, "object 1 must hold"),
        ({"objects": [{"box": [1]}]}, "nothing else"),
        ({"objects": [{"name": "a"}]}, "neither points nor boxes"),
        ({"objects": [{"points": [[1, 2]]}]}, "rows of 3 numbers"),
        ({"objects": [{"points": [[1, 2, 3]], "point_labels": [4]}]}, "point_labels must be"),
        ({"objects": [{"points": [[1, 2, 3]], "label": 0}]}, "label must be"),
        ({"objects": [{"points": [[1, 2, 3]], "axis": "w"}]}, "axis must be"),
        ({"objects": [{"points": [[1, 2, 3]], "label": 2}, {"points": [[1, 2, 3]]}]}, "same label"),
    ],
)
def test_bad_prompts_files(content, message, run, tmp_path, scene) -> None:
    path, _ = stored(tmp_path, scene[0])
    prompts = tmp_path / "prompts.json"
    prompts.write_text(content if isinstance(content, str) else json.dumps(content))
    ends_with(message, lambda: run(path, "--prompts", prompts))


def test_other_bad_input(run, tmp_path, scene) -> None:
    ends_with(
        "give centre and width", lambda: run(stored(tmp_path, scene[0])[0], "--point", 1, 1, 1, "--window", "wide")
    )
    ends_with("does not exist", lambda: run(tmp_path / "gone.nii.gz", "--point", 1, 1, 1))
    (tmp_path / "text.nii.gz").write_text("no volume")
    ends_with("text.nii.gz", lambda: run(tmp_path / "text.nii.gz", "--point", 1, 1, 1))
    (tmp_path / "empty").mkdir()
    ends_with("holds no files", lambda: run(tmp_path / "empty", "--point", 1, 1, 1))
    path, _ = stored(tmp_path, np.full(SIZE, np.nan, np.float32), name="nan.nii.gz")
    ends_with("no finite numbers", lambda: run(path, "--point", 1, 1, 1))
    four = tmp_path / "four.nii.gz"
    sitk.WriteImage(sitk.JoinSeries([image_of(scene[0])] * 2), str(four))
    ends_with("--frame", lambda: run(four, "--point", 1, 1, 1))
    labels, _ = run(four, "--point", 18, 16, 18, "--frame", 1)
    assert labels.GetDimension() == 3


def test_an_object_ends_where_its_contrast_ends(scene) -> None:
    """A model that carries the mask on whatever is there: empty slices, and darker tissue in the same place."""

    class Sticky(Bright):
        def predict(self, embeddings, prompts, multimask_output):
            if prompts.masks is None:
                return super().predict(embeddings, prompts, multimask_output)
            logits = torch.logit(prompts.masks.clamp(1e-4, 1 - 1e-4))
            return Prediction(logits.expand(-1, 3, -1, -1), torch.tensor([[0.95, 0.0, 0.0]]))

    volume = np.full(SIZE, 20, np.int16)
    volume[10:26, 5:30, 5:30] = 200
    volume[26:, 5:30, 5:30] = 70
    seeds = {18: ObjectPrompt(box=np.array([3, 3, 32, 32], np.float32))}
    found = propagate(slices_of(volume, 0, Sticky()), seeds, Rule())
    assert sorted(found.slices) == [*range(10, 26)]
    # 28 % by the object itself, whose edges lie between the places of this model's quarter
    assert found.ends[0] == "the next has 0% of its contrast" and found.ends[1] == "the next has 21% of its contrast"
    lenient = propagate(slices_of(volume, 0, Sticky()), seeds, Rule(least_contrast=0.2))
    assert sorted(lenient.slices) == [*range(10, SIZE[0])]
    ignored = propagate(slices_of(volume, 0, Sticky()), seeds, Rule(least_contrast=-10))
    assert len(ignored.slices) == SIZE[0]


def test_brightness_around_an_object() -> None:
    image = np.full((40, 40), 20, np.uint8)
    mask = np.zeros((40, 40), bool)
    mask[10:20, 10:20] = True
    image[mask] = 120
    image[:, 30:] = 255  # too far away to count
    assert brightness_around(image, mask) == (20, 100)
    assert brightness_around(255 - image, mask) == (235, -100)
    assert brightness_around(image, np.ones((40, 40), bool)) == (0, 0)


def test_a_model_that_is_never_sure_is_held_against_itself(scene) -> None:
    """Predicted IoUs of 0.4 everywhere: a prompt that was answered so does not end at its first neighbour."""

    class Unsure(Bright):
        def predict(self, embeddings, prompts, multimask_output):
            found = super().predict(embeddings, prompts, multimask_output)
            return Prediction(found.logits, found.iou * 0.4)

    seeds = {18: ObjectPrompt(box=np.array([5, 3, 32, 30], np.float32))}
    found = propagate(slices_of(scene[0], 0, Unsure()), seeds, Rule(least_area=3, shrink=0.1))
    assert dice(slices_of(scene[0], 0).assemble(found.slices) > 0.5, scene[1]) > 0.9


def test_an_object_that_runs_away_is_named_in_capitals_at_the_end(run, tmp_path, capsys) -> None:
    tube = np.zeros(SIZE, np.int16)
    tube[:, 10:30, 10:30] = 200
    path, _ = stored(tmp_path, tube)
    _, (row,) = run(path, "--point", 20, 20, 18)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.isupper() and "OBJECT REACHES BOTH ENDS OF THE VOLUME" in last and row["doubt"].startswith("reaches")
    assert "TWO MORE SLICES" in last and "IN 3D" in last
    for flags in (
        ("--point", 20, 20, 0, "--point", 20, 20, 20),  # asked for at an end
        ("--box", 8, 8, 5, 32, 32, 30),
    ):
        _, (row,) = run(path, *flags)
        assert capsys.readouterr().out.splitlines()[-1].startswith("labels: ") and row["doubt"] == ""
    cone = np.zeros(SIZE, np.int16)
    for z in range(5, 30):
        cone[z, 3 : 6 + z, 3 : 6 + z] = 200
    path, _ = stored(tmp_path, cone)
    prompts = tmp_path / "two.json"
    content = {"objects": [{"name": "cone", "points": [[5, 5, 8]]}, {"name": "same", "points": [[5, 5, 29]]}]}
    prompts.write_text(json.dumps(content))
    _, rows = run(path, "--prompts", prompts)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.isupper() and "CONE GROWS TO" in last and "SAME" not in last
    areas = [(3 + z) ** 2 for z in range(5, 30)]
    assert float(rows[0]["doubt"].split()[2]) == pytest.approx(areas[-1] / areas[3], rel=0.2) and rows[1]["doubt"] == ""


def test_a_window_that_shows_nothing_is_said(run, tmp_path, scene, capsys) -> None:
    path, _ = stored(tmp_path, scene[0])
    run(path, "--point", 18, 16, 18, "--window", 5000, 100)
    assert "warning" in capsys.readouterr().out
    run(path, "--point", 18, 16, 18)
    assert "warning" not in capsys.readouterr().out


def test_both_geometries_of_a_nifti_stay_and_what_it_contradicts_is_said(run, tmp_path, scene, capsys) -> None:
    path, _ = stored(tmp_path, scene[0], name="ct.nii")
    raw = bytearray(path.read_bytes())
    raw[254:256] = np.array([4], "<i2").tobytes()  # sform_code
    shift = np.frombuffer(raw[292:296], "<f4") + 6  # of the sform along x
    raw[292:296] = shift.astype("<f4").tobytes()
    path.write_bytes(raw)
    run(path, "--point", 18, 16, 18, output="labels.nii")
    written = (tmp_path / "results" / "labels.nii").read_bytes()
    assert written[252:328] == bytes(raw[252:328]) and written[76:92] == bytes(raw[76:92])
    said = f"note: {path}: its qform and its sform lie up to 6 mm apart; the sform is taken"
    assert said in capsys.readouterr().out.splitlines()
    ends_with("56 x 48 x 40 voxels", lambda: run(path, "--point", 18, 16, 18, "--max_voxels", 1000))


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--background", 1, 1, 1), "say what to segment"),
        (("--point", 1, 1, 1, "--prompts", "p.json"), "say what to segment"),
        (("--point", 1, 1, 1, "--grow", 0.5), "--grow above 1"),
        (("--point", 1, 1, 1, "--output", "labels.png"), "must end in"),
    ],
)
def test_contradicting_flags(flags, message, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        script.main(["--input", "ct.nii.gz", *map(str, flags)])
    assert end.value.code == 2 and message in capsys.readouterr().err


def test_a_prompt_that_is_no_prompt(scene) -> None:
    with pytest.raises(PromptError):
        propagate(slices_of(scene[0], 0), {5: ObjectPrompt(box=np.array([5, 5, 99, 9], np.float32))}, Rule())


def test_slices_to_look_at_are_spread_over_the_objects():
    labels = np.zeros((30, 8, 9), np.uint8)
    assert spread_slices(labels, 0, 4) == [15] and spread_slices(labels, 2, 4) == [4]
    labels[10:13, 2, 2] = labels[25, 3, 7] = 1
    assert spread_slices(labels, 0, 12) == [10, 11, 12, 25]
    assert spread_slices(labels, 0, 2) == [10, 25] and spread_slices(labels, 2, 5) == [2, 7]


@pytest.mark.parametrize("orientation, axes", [("LPS", "xyz"), ("RAI", "xyz"), ("PIR", "yzx")])
@pytest.mark.parametrize("number", [0, 7])
def test_an_object_of_one_slice_is_numbered_along_its_own_axis(orientation, axes, number):
    """axes: of the patient, in the order in which the volume is stored."""
    stored = image_of(np.zeros((20, 21, 22), np.uint8), orientation)
    scan = canonical(stored)
    labels = np.zeros(scan.GetSize()[::-1], np.uint8)
    for axis in "xyz":
        wanted = Object3d(1, "small", axis, np.zeros((0, 3)), np.zeros(0, int), [])
        found = Propagated({number: Slice(np.zeros((2, 2), np.float16), None, 0.9)}, ("before", "after"))
        row = row_of(Result(wanted, labels, found), labels, stored, scan)
        size = stored.GetSize()[axes.index(axis)]
        runs_back = orientation[axes.index(axis)] not in "LPS"
        place = size - 1 - number if runs_back else number
        assert (row["first_slice"], row["last_slice"]) == (place, place)
