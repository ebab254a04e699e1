"""The command predict and what it writes: masks, overlays, COCO; prompts files, good and bad; weights' own settings."""

import csv
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from sam_med2d.coco import has_holes, segmentation_of
from sam_med2d.commands import predict as script
from sam_med2d.drawing import CLICK, SIGN, colour_of, overlay
from segment_anything import ObjectPrompt, SamPredictor, sam_model_registry
from segment_anything.checkpoint import save_weights
from tests.segment_anything.test_model import randomise

SIDE = 64
BOX = [10, 12, 60, 50]


@pytest.fixture(scope="module")
def model():
    return randomise(sam_model_registry["vit_t"](image_size=SIDE, encoder_adapter=True))


@pytest.fixture(scope="module")
def weights(model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_weights(model.state_dict(), path)
    return path


def picture(seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return cv2.resize(coarse, (80, 60), interpolation=cv2.INTER_CUBIC)


@pytest.fixture
def images(tmp_path) -> Path:
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    for seed, name in enumerate(("a.png", "b.png", "deep/c.png")):
        assert cv2.imwrite(str(folder / name), picture(seed))
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def run(images, weights, tmp_path):
    def run(*flags: object, source: Path = images) -> Path:
        script.main(
            [
                "--input",
                str(source),
                "--output",
                str(tmp_path / "out"),
                "--sam_checkpoint",
                str(weights),
                "--device",
                "cpu",
                *map(str, flags),
            ]
        )
        return tmp_path / "out"

    return run


def prompts_file(tmp_path: Path, content: object, name: str = "prompts.json") -> Path:
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def written(path: Path) -> np.ndarray:
    mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert mask is not None and {*np.unique(mask)} <= {0, 255}
    return mask > 0


def wanted(model, image: np.ndarray, **prompt) -> tuple[np.ndarray, float]:
    predictor = SamPredictor(model)
    predictor.set_image(image, "BGR")
    masks, iou, _ = predictor.predict(**prompt)
    return masks[iou.argmax()], iou.max()


def rows_of(out: Path) -> list[dict[str, str]]:
    with open(out / "objects.csv", newline="") as file:
        return list(csv.DictReader(file))


# ---------------------------------------------------------------- what is written


def test_boxes_of_one_image_by_flags(run, images, model) -> None:
    out = run("--box", *BOX, "--box", 5, 5, 40, 30, "--name", "nodule", source=images / "a.png")
    for number, box in enumerate((BOX, [5, 5, 40, 30])):
        mask, iou = wanted(model, picture(0), box=box)
        assert (written(out / "masks" / f"a_nodule_{number:03d}.png") == mask).mean() > 0.999
        assert float(rows_of(out)[number]["predicted_iou"]) == pytest.approx(iou, abs=1e-3)
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()) == [
        "annotations.json",
        "masks/a_nodule_000.png",
        "masks/a_nodule_001.png",
        "objects.csv",
        "overlays/a.png",
    ]


def test_clicks_of_a_folder_by_flags(run, model) -> None:
    out = run("--point", 40, 30, "--background", 5, 5, "--multimask", "False")
    for seed, name in enumerate(("a", "b", "deep/c")):
        predictor = SamPredictor(model)
        predictor.set_image(picture(seed), "BGR")
        mask = predictor.predict([[40, 30], [5, 5]], [1, 0], multimask_output=False).masks[0]
        assert (written(out / "masks" / f"{name}_object_000.png") == mask).mean() > 0.999


def test_zoom_is_the_predictors(run, images, model, capsys) -> None:
    """And the command says how many objects were looked at closer."""
    for zoom in ("1.5", "never"):
        out = run("--box", *BOX, "--zoom", zoom, source=images / "a.png")
        predictor = SamPredictor(model, zoom=zoom)
        predictor.set_image(picture(0), "BGR")
        masks, iou, _ = predictor.predict(box=BOX)
        assert (written(out / "masks/a_object_000.png") == masks[iou.argmax()]).all()
        closer = predictor.crops[0].size != (60, 80)
        assert ("1 looked at closer (--zoom 1.5)" in capsys.readouterr().out) == closer
    with pytest.raises(SystemExit):
        run("--box", *BOX, "--zoom", "2x")
    assert "zoom must be auto, always, never, or a number of at least 1" in capsys.readouterr().err


def test_names_that_differ_in_their_ending_alone(run, images) -> None:
    (images / "a.bmp").write_bytes(cv2.imencode(".bmp", picture(5))[1].tobytes())
    out = run("--point", 40, 30)
    assert sorted(path.name for path in (out / "masks").glob("*.png")) == [
        "a.bmp_object_000.png",
        "a.png_object_000.png",
        "b_object_000.png",
    ]


def test_what_was_done_before_an_error_is_kept(run, images) -> None:
    (images / "b.png").write_bytes(b"no image")
    ends_with("b.png: not an image", run, "--point", 40, 30)
    out = images.parent / "out"
    assert [row["image"] for row in rows_of(out)] == ["a.png"] and len(
        json.loads((out / "annotations.json").read_text())["images"]
    ) == 1


JSON = {
    "a.png": [
        {"name": "liver", "box": BOX},
        {"name": "liver", "points": [[40, 30], [5, 5]], "labels": [1, 0], "box": BOX},
    ],
    "c.png": [{"name": "the spleen", "points": [[40, 30]]}],
}
CSV = f"""image,name,x0,y0,x1,y1,x,y,label
a.png,liver,{",".join(map(str, BOX))},,,
a.png,liver 2,{",".join(map(str, BOX))},40,30,1
a.png,liver 2,,,,,5,5,0
deep/c.png,,,,,,40,30,
"""


@pytest.mark.parametrize("kind", ["json", "csv", "semicolons"])
def test_prompts_from_a_file(kind, run, tmp_path, model, capsys) -> None:
    content = {"json": JSON, "csv": CSV, "semicolons": CSV.replace(",", ";").replace("40;30", "40,0;30,0")}[kind]
    kind = "json" if kind == "json" else "csv"
    content = content if kind == "json" else content.replace("deep/", "deep\\")  # as on Windows
    out = run("--prompts", prompts_file(tmp_path, content, f"prompts.{kind}"))
    names = {
        "json": ["a_liver_000", "a_liver_001", "deep/c_the_spleen_000"],
        "csv": ["a_liver_000", "a_liver_2_000", "deep/c_object_000"],
    }[kind]
    prompts = [
        dict(box=BOX),
        dict(box=BOX, point_coords=[[40, 30], [5, 5]], point_labels=[1, 0]),
        dict(point_coords=[[40, 30]], point_labels=[1]),
    ]
    for name, prompt, seed in zip(names, prompts, (0, 0, 2)):
        assert (written(out / "masks" / f"{name}.png") == wanted(model, picture(seed), **prompt)[0]).mean() > 0.999
    assert [row["mask"] for row in rows_of(out)] == [f"{name}.png" for name in names]
    said = capsys.readouterr().out
    assert "1 of 3 images have no prompts" in said and "3 objects in 2 images" in said


def test_a_mask_file_as_prompt(run, tmp_path, model) -> None:
    mask = np.zeros((60, 80), np.uint8)
    mask[15:40, 20:60] = 255
    assert cv2.imwrite(str(tmp_path / "coarse.png"), mask)
    out = run("--prompts", prompts_file(tmp_path, {"a.png": [{"name": "lesion", "mask": "coarse.png"}]}))
    predictor = SamPredictor(model)
    predictor.set_image(picture(0), "BGR")
    found = predictor.predict(mask_input=predictor.logits_of(mask))
    assert (written(out / "masks" / "a_lesion_000.png") == found.masks[found.iou.argmax()]).mean() > 0.999


def test_coco_has_every_mask(run, tmp_path) -> None:
    out = run("--prompts", prompts_file(tmp_path, JSON))
    document = json.loads((out / "annotations.json").read_text())
    assert [(one["file_name"], one["width"], one["height"]) for one in document["images"]] == [
        ("a.png", 80, 60),
        ("deep/c.png", 80, 60),
    ]
    assert [one["name"] for one in document["categories"]] == ["liver", "the spleen"]
    rows = [row for row in rows_of(out) if int(row["area"])]
    assert rows and len(document["annotations"]) == len(rows)
    for annotation, row in zip(document["annotations"], rows):
        mask = written(out / "masks" / row["mask"])
        assert (decoded(annotation["segmentation"], mask.shape) == mask).all() and annotation["area"] == mask.sum()
        x, y, width, height = annotation["bbox"]
        assert mask[y : y + height, x : x + width].sum() == mask.sum() and annotation["iscrowd"] == 0
        assert annotation["score"] == pytest.approx(float(row["predicted_iou"]), abs=1e-3)


def decoded(segmentation: list | dict, size: tuple[int, int]) -> np.ndarray:
    encoded = (
        coco_mask.merge(coco_mask.frPyObjects(segmentation, *size)) if isinstance(segmentation, list) else segmentation
    )
    return coco_mask.decode(encoded).astype(bool)


def test_polygons_give_back_every_pixel() -> None:
    generator = np.random.default_rng(0)
    kinds = set()
    for _ in range(60):
        noise = cv2.GaussianBlur(generator.random((30, 40)).astype(np.float32), (0, 0), generator.uniform(0.5, 4))
        mask = noise > np.quantile(noise, generator.uniform(0.3, 0.95))
        segmentation = segmentation_of(mask)
        kinds.add(type(segmentation))
        assert isinstance(segmentation, dict) == has_holes(mask) and (decoded(segmentation, mask.shape) == mask).all()
    assert kinds == {list, dict}
    for mask in (
        np.eye(5, dtype=bool),
        np.pad(np.ones((1, 1), bool), 2),
        np.ones((4, 6), bool),
        np.pad(np.ones((1, 5), bool), 1),
    ):
        assert (decoded(segmentation_of(mask), mask.shape) == mask).all()


def test_an_overlay_shows_masks_prompts_and_names() -> None:
    image = np.full((40, 60, 3), 100, np.uint8)
    mask = np.zeros((40, 60), bool)
    mask[10:30, 10:40] = True
    bare = overlay(image, [])
    assert bare.shape == (40 * 9, 60 * 9, 3) and (bare == 100).all() and (image == 100).all()
    tinted = overlay(image, [mask])
    changed = (tinted != 100).any(axis=2)
    assert (
        changed == cv2.resize(mask.astype(np.uint8), None, fx=9, fy=9, interpolation=cv2.INTER_NEAREST)
    ).mean() > 0.99
    click = ObjectPrompt(np.array([[50.0, 5.0]]), np.array([1]), np.array([2.0, 2.0, 58.0, 38.0]))
    prompted = overlay(image, [mask], [click])
    row, column = 5 * 9 + 4, 50 * 9 + 4  # the middle of an enlarged pixel
    assert (prompted[row, column] == SIGN[True]).all() and (prompted[row + 4, column] == CLICK[True]).all()
    assert (prompted[2 * 9, 100:200] == colour_of(0)).all()
    assert (overlay(image, [mask], [click], ["name"]) != overlay(image, [mask], [click])).any()


# ---------------------------------------------------------------- weights say what they are


def test_flags_about_the_model_are_not_needed(run, capsys) -> None:
    run("--point", 40, 30)
    assert "vit_t, 64 px, adapters" in capsys.readouterr().out
    run("--point", 40, 30, "--encoder_adapter", "False", "--image_size", 96)
    said = capsys.readouterr().out
    assert "left out: adapters of 12 blocks" in said and "resized to 96 px" in said


def test_exported_models_take_the_place_of_weights(run, model, monkeypatch) -> None:
    """What the runtimes compute is compared with the model where they are tested."""
    asked = []
    monkeypatch.setattr(
        "sam_med2d.inference.models.open_runtime", lambda *files, **options: asked.append((files, options)) or model
    )
    out = run(
        "--box",
        *BOX,
        "--backend",
        "openvino",
        "--encoder_model",
        "e.onnx",
        "--decoder_model",
        "d.onnx",
        "--precision",
        "bfloat16",
        "--threads",
        2,
    )
    assert asked == [(("openvino", "e.onnx", "d.onnx", None), {"threads": 2, "precision": "bfloat16"})]
    assert (written(out / "masks" / "a_object_000.png") == wanted(model, picture(0), box=BOX)[0]).mean() > 0.999
    ends_with(
        "needs --encoder_model and --decoder_model",
        run,
        "--box",
        *BOX,
        "--backend",
        "onnxruntime",
        "--encoder_model",
        "e.onnx",
    )
    ends_with("say with which --backend", run, "--box", *BOX, "--encoder_model", "e.onnx")
    ends_with("say with which --backend", run, "--box", *BOX, "--encoder_model", "e.onnx", "--backend", "torch")
    files = ("--encoder_model", "e.onnx", "--decoder_model", "d.onnx")
    ends_with("--compile is for --backend pytorch", run, "--box", *BOX, "--backend", "openvino", *files, "--compile")
    ends_with("--threads must be at least 1, not 0", run, "--box", *BOX, "--threads", 0)


def test_the_small_weights_have_a_name_and_the_default_says_where_to_get_it(run, capsys, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    run("--point", 40, 30, "--sam_checkpoint", "small")
    assert "vit_t_small.safetensors (vit_t, 192 px, no adapters, a refinement network)" in capsys.readouterr().out
    ends_with(
        "sam-med2d_b.pth: is not in this folder; download it .* --sam_checkpoint small",
        run,
        "--point",
        40,
        30,
        "--sam_checkpoint",
        "pretrain_model/sam-med2d_b.pth",
    )


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "not valid JSON"),
        ([], "must hold"),
        ({}, "holds no prompts"),
        ({"a.png": []}, "must hold"),
        ({"c.png": [{"box": BOX}], "deep/c.png": [{"box": BOX}]}, "names an image twice"),
        ({"z.png": [{"box": BOX}]}, "names z.png, which is not in"),
        ({"a.png": [{"name": "liver"}]}, "object 0: has neither"),
        ({"a.png": [{"bbox": BOX}]}, "nothing else"),
        ({"a.png": [{"box": [1, 2, 3]}]}, r"write box as \[x0"),
        ({"a.png": [{"points": [1, 2]}]}, r"write points as \[\[x, y\]"),
        ({"a.png": [{"points": [[1, 2]], "labels": [2]}]}, "labels must be"),
        ({"a.png": [{"points": [[1, 2]], "labels": [1, 0]}]}, "labels must be"),
        ({"a.png": [{"points": [[100, 2]]}]}, r"a.png: point \(100, 2\) lies outside the image of 80 x 60"),
        ({"a.png": [{"box": BOX}, {"box": [5, 5, 5, 9]}]}, "a.png: object 1: box .* no area"),
        ({"a.png": [{"mask": "gone.png"}]}, "gone.png: cannot be read"),
        ({"a.png": [{"mask": "a\0b.png"}]}, "holds what is no letter"),
        ({"a.png": [{"name": "\ud800", "box": BOX}]}, "holds what is no letter"),
        (
            {"a.png": [{"points": [[1, 2]], "labels": [0]}]},
            "object 0: its clicks all have label 0, .* add a click",
        ),
        ({"a.png": [{"points": [[float("inf"), 2]]}]}, "object 0: inf is no place in a picture"),
        ({"a.png": [{"box": [1, 2, float("nan"), 9]}]}, "object 0: nan is no place in a picture"),
        ({"a.png": [{"box": [1, 2, int("9" * 400), 9]}]}, r"write box as \[x0"),
    ],
)
def test_bad_json(content, message, run, tmp_path) -> None:
    ends_with(message, run, "--prompts", prompts_file(tmp_path, content))


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "must name columns"),
        ("picture,x,y\na.png,1,2", "must name columns"),
        ("image,x,y,z\na.png,1,2,3", "it has 'z'"),
        ("image,x,y\n,1,2", "line 2: names no image"),
        ("image,x,y\na.png,,", "line 2: has neither"),
        ("image,x,y\na.png,1,", "line 2: x,y are 1,; write a number"),
        ("image,x,y,label\na.png,1,2,9", "line 2: label '9'"),
        ("image,x,y,label\na.png,1,2,0", "line 2: its clicks all have label 0"),
        ("image,x,y\na.png,1,inf", "line 2: inf is no place in a picture"),
        ("image,x,y\na.png,1," + "9" * 400, "line 2: inf is no place in a picture"),
        ('image,x,y\na.png,1,2\n"' + "a" * 200_000, "line 3: is no row of a table"),
        ("image,x,y\na\0.png,1,2", "names a.*which is not in|contains NUL"),
        ("image,name,x0,y0,x1,y1\na.png,s,1,1,5,5\na.png,s,2,2,6,6", "line 3: a second box of s in a.png"),
    ],
)
def test_bad_csv(content, message, run, tmp_path) -> None:
    ends_with(message, run, "--prompts", prompts_file(tmp_path, content, "prompts.csv"))


def ends_with(message: str, run, *flags: object, **more) -> None:
    with pytest.raises(SystemExit) as end:
        run(*flags, **more)
    line = str(end.value.code)
    assert "\n" not in line
    assert re.search(message, line), line


def test_other_bad_input(run, images, tmp_path) -> None:
    ends_with("does not exist", run, "--point", 1, 1, source=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    ends_with("holds no image", run, "--point", 1, 1, source=tmp_path / "empty")
    ends_with("not an image", run, "--point", 1, 1, source=images / "notes.txt")
    ends_with("gone.json: cannot be read", run, "--prompts", tmp_path / "gone.json")
    ends_with("is where the images are", run, "--point", 1, 1, "--output", images)
    ends_with("is where the images are", run, "--point", 1, 1, "--output", images / "deep" / "out")
    ends_with("is where the images are", run, "--point", 1, 1, "--output", images, source=images / "a.png")
    ends_with("multiple of 32", run, "--point", 1, 1, "--image_size", 100)
    ends_with("gone.pth: cannot be opened", run, "--point", 1, 1, "--sam_checkpoint", "gone.pth")
    assert sorted(path.name for path in images.rglob("*") if path.is_file()) == ["a.png", "b.png", "c.png", "notes.txt"]


@pytest.mark.parametrize(
    "flags, message",
    [
        ((), "say what to segment"),
        (("--prompts", "p.json", "--point", 1, 1), "say what to segment"),
        (("--background", 1, 1), "--background alone"),
        (("--point", 1, 1, "--box", *BOX, "--box", *BOX), "several boxes"),
    ],
)
def test_contradicting_flags(flags, message, run, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        run(*flags)
    assert end.value.code == 2 and message in capsys.readouterr().err
