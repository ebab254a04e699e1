"""Everything mode: the grid, the crops, what is kept, the three encodings, and scripts/amg.py."""

import json
import re

import cv2
import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from sam_med2d.commands import amg
from segment_anything import Prediction, SamAutomaticMaskGenerator, sam_model_registry
from segment_anything.automatic_mask_generator import point_grid, remove_small_regions, run_lengths, stability_score
from segment_anything.checkpoint import save_weights
from tests.segment_anything.test_model import randomise

SIDE = 64


class Discs:
    """Stands for a model: the image's value at a click says which object it is on, and each value is an object.

    The three guesses are the object, the object eroded by a pixel of the quarter frame, and the whole frame.
    """

    image_size = SIDE
    device = torch.device("cpu")

    def __init__(self, scores: tuple[float, float, float] = (0.9, 0.8, 0.1)) -> None:
        self.scores = scores
        self.encoded = 0

    def encode(self, images, content=None):
        self.encoded += 1
        return images[:, :1, 2::4, 2::4].float().repeat_interleave(4, 2)[:, :, :4, :4] * 0 + self._keep(images)

    def _keep(self, images):
        self.values = images[0, 0, 2::4, 2::4]  # the quarter frame
        return 0

    def predict(self, embeddings, prompts, multimask_output):
        x, y = (prompts.points[:, 0] / 4).long().clamp(0, SIDE // 4 - 1).unbind(1)
        own = self.values == self.values[y, x][:, None, None]
        eroded = -torch.nn.functional.max_pool2d(-own.float(), 3, 1, 1) > 0
        logits = torch.stack([own, eroded, torch.ones_like(own)], dim=1).float() * 20 - 10
        return Prediction(logits, torch.tensor(self.scores).expand(len(x), 3))

    def upscale(self, logits):
        return torch.nn.functional.interpolate(logits.float(), size=(SIDE, SIDE), mode="nearest")


@pytest.fixture
def image() -> np.ndarray:
    """Two rectangles and the ground. -> (64, 96)."""
    picture = np.full((64, 96), 10, np.uint8)
    picture[8:40, 12:48] = 100
    picture[44:60, 60:90] = 200
    return picture


def generated(image, model=None, **options):
    return SamAutomaticMaskGenerator(
        model or Discs(), **{"points_per_side": 6, "pred_iou_thresh": 0.5, **options}
    ).generate(image)


# ---------------------------------------------------------------- what is found


def test_every_object_once_with_all_that_is_known_of_it(image) -> None:
    found = generated(image)
    assert sorted(found[0]) == [
        "area",
        "bbox",
        "crop_box",
        "point_coords",
        "predicted_iou",
        "segmentation",
        "stability_score",
    ]
    assert [mask["predicted_iou"] for mask in found] == sorted((mask["predicted_iou"] for mask in found), reverse=True)
    objects = [mask for mask in found if mask["predicted_iou"] > 0.85]
    assert len(objects) == 3  # two rectangles and the ground, from 36 clicks
    for mask in found:
        pixels = mask["segmentation"]
        rows, columns = np.nonzero(pixels)
        assert pixels.shape == image.shape and pixels.dtype == bool and mask["area"] == pixels.sum()
        x, y, width, height = mask["bbox"]
        assert (x, y, x + width, y + height) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        ((click_x, click_y),) = mask["point_coords"]
        assert pixels[int(click_y), int(click_x)] or mask["predicted_iou"] < 0.85
        assert mask["crop_box"] == [0, 0, 96, 64]
        assert mask["stability_score"] > 0.85  # pixels half-way between an object and its neighbour have a logit of 0
    values = {int(np.median(image[mask["segmentation"]])) for mask in objects}
    assert values == {10, 100, 200}


def test_thresholds_drop_what_is_below(image) -> None:
    assert generated(image, pred_iou_thresh=0.95) == []
    assert {mask["predicted_iou"] > 0.85 for mask in generated(image, pred_iou_thresh=0.85)} == {True}
    blurred = Discs()
    blurred.upscale = lambda logits: torch.nn.functional.interpolate(logits, size=(SIDE, SIDE), mode="bilinear")
    stable = [
        mask["stability_score"]
        for mask in generated(image, blurred, stability_score_offset=5.0, stability_score_thresh=0.0)
    ]
    assert min(stable) < 0.8 < max(stable)
    kept = [
        mask["stability_score"]
        for mask in generated(image, blurred, stability_score_offset=5.0, stability_score_thresh=0.8)
    ]
    assert kept and min(kept) >= 0.8 and len(kept) < len(stable)


def test_duplicates_go_by_masks_and_on_request_by_boxes() -> None:
    """A frame around a square has nearly its box, and is another object."""
    picture = np.zeros((SIDE, SIDE), np.uint8)
    picture[8:56, 8:56] = 100
    picture[12:52, 12:52] = 200
    model = Discs(scores=(0.9, 0.0, 0.0))
    areas = lambda **options: sorted(mask["area"] for mask in generated(picture, model, points_per_side=16, **options))
    assert areas() == [48 * 48 - 40 * 40, 40 * 40, SIDE * SIDE - 48 * 48]
    assert len(areas(box_nms_thresh=0.6)) == 2  # the boxes of square and frame have an IoU of 0.69
    assert len(areas(mask_nms_thresh=1.0)) == 256  # every click its own mask


def test_pieces_change_nothing(image, monkeypatch) -> None:
    """However few masks are held at full size at a time, also where none is left."""

    def all_of(found: list[dict]) -> list[tuple]:
        return [(*(v for k, v in mask.items() if k != "segmentation"), mask["segmentation"].tolist()) for mask in found]

    for options in ({}, {"crop_n_layers": 1, "min_mask_region_area": 30}, {"pred_iou_thresh": 2}):
        whole = all_of(generated(image, **options))
        sizes = []

        class Watched(Discs):
            def upscale(self, logits):
                sizes.append(len(logits))
                return super().upscale(logits)

        with monkeypatch.context() as patch:
            patch.setattr("segment_anything.automatic_mask_generator.PIXELS_AT_ONCE", 2 * 64 * 96)
            assert all_of(generated(image, Watched(), **options)) == whole
        assert max(sizes, default=0) <= (3 if options.get("crop_n_layers") else 2) and bool(sizes) == bool(whole)


def test_batches_of_points_change_nothing(image) -> None:
    one, many = generated(image, points_per_batch=1), generated(image, points_per_batch=1000)
    assert [mask["area"] for mask in one] == [mask["area"] for mask in many]


def test_crops_find_what_the_whole_image_loses() -> None:
    picture = np.full((128, 128), 10, np.uint8)
    picture[26:34, 106:114] = 250  # between the clicks of the whole image, and under those of small crops
    picture[70:110, 20:60] = 100
    small = lambda found: [mask for mask in found if np.median(picture[mask["segmentation"]]) == 250]
    model = Discs()
    assert not small(generated(picture, model, points_per_side=4)) and model.encoded == 1
    found = generated(picture, model, points_per_side=4, crop_n_layers=2, crop_overlap_ratio=0.25)
    assert model.encoded == 1 + 1 + 4 + 16
    assert len(small(found)) == 1 and small(found)[0]["crop_box"] != [0, 0, 128, 128] and small(found)[0]["area"] <= 100
    for mask in found:  # nothing that a crop's edge has cut
        x, y, width, height = mask["crop_box"]
        left, top, wide, high = mask["bbox"]
        assert x <= left and y <= top and left + wide <= x + width and top + high <= y + height
        assert (left > x or x == 0) and (left + wide < x + width or x + width == 128)


def test_small_regions_go(image) -> None:
    mask = np.zeros((40, 40), bool)
    mask[5:30, 5:30] = True
    mask[10:12, 10:12] = False
    mask[35, 35] = True
    cleaned = remove_small_regions(mask, 5)
    assert cleaned[10, 10] and not cleaned[35, 35] and cleaned.sum() == 625
    assert (remove_small_regions(mask, 1) == mask).all()
    lone = np.zeros((9, 9), bool)
    lone[4, 4] = True
    assert (remove_small_regions(lone, 50) == lone).all()  # an object is not emptied
    assert remove_small_regions(np.zeros((9, 9), bool), 5).sum() == 0
    picture = image.copy()
    picture[20:24, 20:24] = 10  # a hole in the rectangle
    filled = generated(picture, min_mask_region_area=40)
    area = 32 * 35  # of 36 columns; the last lies half-way between one of the rectangle and one of the ground
    assert area in {mask["area"] for mask in filled} and area not in {mask["area"] for mask in generated(picture)}


# ---------------------------------------------------------------- a second look


class Sharp(Discs):
    """The same with masks of the frame's own size, so that nothing but the frame stands between picture and mask."""

    def _keep(self, images):
        self.values = images[0, 0]
        return 0

    def predict(self, embeddings, prompts, multimask_output):
        x, y = prompts.points[:, 0].long().clamp(0, SIDE - 1).unbind(1)
        own = (self.values == self.values[y, x][:, None, None])[:, None].float().repeat(1, 3, 1, 1)
        return Prediction(own * 20 - 10, torch.tensor(self.scores).expand(len(x), 3))

    def upscale(self, logits):
        return logits


@pytest.fixture
def slide() -> tuple[np.ndarray, np.ndarray]:
    """A large picture with a small object, and a large one beside it. -> (200, 320), and the small one's mask."""
    picture = np.full((200, 320), 10, np.uint8)
    picture[20:180, 20:200] = 100
    small = cv2.ellipse(np.zeros((200, 320), np.uint8), (263, 91), (19, 9), 25, 0, 360, 1, -1) > 0
    picture[small] = 200
    return picture, small


def test_what_is_small_is_looked_at_again_and_put_back_to_the_pixel(slide) -> None:
    picture, small = slide
    of_small = lambda found: next(one for one in found if np.median(picture[one["segmentation"]]) == 200)
    model, options = Sharp((0.9, 0.0, 0.0)), {"points_per_side": 16}
    first, second = generated(picture, model, **options), generated(picture, model, zoom="auto", **options)
    assert model.encoded == 1 + 1 + 1  # the picture twice, and one crop: the others are no small ones
    assert (of_small(first)["segmentation"] != small).sum() > 10 and of_small(first)["crop_box"] == [0, 0, 320, 200]
    assert (of_small(second)["segmentation"] == small).all() and of_small(second)["area"] == small.sum()
    x, y, width, height = of_small(second)["crop_box"]
    assert (x < 244 and y < 82 and width < 80 and height < 50) and of_small(second)["point_coords"] == (
        of_small(first)["point_coords"]
    )
    others = [
        [one["area"] for one in found if np.median(picture[one["segmentation"]]) != 200] for found in (first, second)
    ]
    assert others[0] == others[1] and len(others[0]) == 2


@pytest.mark.parametrize("closer", ["unsure", "another object"])
def test_a_second_look_that_is_worse_or_of_something_else_changes_nothing(slide, closer) -> None:
    picture, _ = slide

    class Fickle(Sharp):
        def predict(self, embeddings, prompts, multimask_output):
            found = super().predict(embeddings, prompts, multimask_output)
            if prompts.boxes is None:  # the grid's clicks
                return found
            return (
                Prediction(found.logits, found.iou / 9) if closer == "unsure" else Prediction(-found.logits, found.iou)
            )

    scores = (0.9, 0.0, 0.0)
    areas = [
        [(one["area"], one["crop_box"]) for one in generated(picture, Fickle(scores), points_per_side=16, zoom=zoom)]
        for zoom in ("never", 2)
    ]
    assert areas[0] == areas[1] and len(areas[0]) == 3


# ---------------------------------------------------------------- encodings and options


def test_encodings_say_the_same(image) -> None:
    masks, plain, coco = (
        generated(image, output_mode=mode) for mode in ("binary_mask", "uncompressed_rle", "coco_rle")
    )
    assert len(masks) == len(plain) == len(coco) > 2
    for mask, counts, text in zip(masks, plain, coco):
        pixels = mask["segmentation"]
        assert (coco_mask.decode(json.loads(json.dumps(text["segmentation"]))) == pixels).all()
        assert (coco_mask.decode(coco_mask.frPyObjects(counts["segmentation"], *image.shape)) == pixels).all()
    assert run_lengths(np.ones((2, 2), bool)) == [0, 4] and run_lengths(np.zeros((2, 2), bool)) == [4]
    assert run_lengths(np.array([[0, 1], [1, 1]])) == [1, 3]


def test_grid_and_stability() -> None:
    assert np.allclose(point_grid(2), [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]])
    logits = torch.tensor([[[2.0, 0.5, -0.5, -2.0]]])
    assert stability_score(logits, 1.0).tolist() == [pytest.approx(1 / 3)]
    assert stability_score(logits - 9, 1.0).tolist() == [0]


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(points_per_side=None), "points_per_side"),
        (dict(point_grids=[point_grid(2)]), "points_per_side"),
        (dict(points_per_side=None, point_grids=[point_grid(2)], crop_n_layers=1), "2"),
        (dict(output_mode="polygons"), "output_mode"),
        (dict(points_per_side=0), "at least 1"),
        (dict(points_per_batch=0), "at least 1"),
        (dict(zoom="sometimes"), "zoom must be auto, always, never, or a number"),
    ],
)
def test_options_without_sense(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        SamAutomaticMaskGenerator(Discs(), **options)


def test_given_points(image) -> None:
    found = generated(image, points_per_side=None, point_grids=[np.array([[0.3, 0.4]])], pred_iou_thresh=0.85)
    assert len(found) == 1 and image[found[0]["segmentation"]].min() == 100


# ---------------------------------------------------------------- a real model, and the script


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_weights(randomise(sam_model_registry["vit_t"](image_size=SIDE, encoder_adapter=False)).state_dict(), path)
    return path


@pytest.fixture
def run(weights, tmp_path, image):
    (tmp_path / "images" / "deep").mkdir(parents=True)
    for name in ("a.png", "deep/b.png"):
        assert cv2.imwrite(str(tmp_path / "images" / name), image)

    def run(*flags):
        amg.main(
            [
                "--input",
                str(tmp_path / "images"),
                "--output",
                str(tmp_path / "out"),
                "--checkpoint",
                str(weights),
                "--device",
                "cpu",
                "--points-per-side",
                "3",
                "--pred-iou-thresh",
                "-9",
                "--stability-score-thresh",
                "0",
                *map(str, flags),
            ]
        )
        return tmp_path / "out"

    return run


def test_the_script_writes_what_sams_does(run, image, weights, capsys) -> None:
    out = run()
    masks = SamAutomaticMaskGenerator(
        sam_model_registry["vit_t"](image_size=SIDE, encoder_adapter=False, checkpoint=str(weights)),
        points_per_side=3,
        pred_iou_thresh=-9,
        stability_score_thresh=0,
    ).generate(image)
    assert masks
    for folder in (out / "a", out / "deep" / "b"):
        lines = (folder / "metadata.csv").read_text().splitlines()
        assert lines[0].startswith("id,area,bbox_x0,bbox_y0,bbox_w,bbox_h,point_input_x") and len(lines) == 1 + len(
            masks
        )
        for number, mask in enumerate(masks):
            written = cv2.imread(str(folder / f"{number}.png"), cv2.IMREAD_UNCHANGED)
            assert ((written == 255) == mask["segmentation"]).all() and {*np.unique(written)} <= {0, 255}
            assert lines[1 + number].split(",")[1] == str(mask["area"])
    assert (out / "a_overlay.png").is_file() and f"{2 * len(masks)} masks in 2 images" in capsys.readouterr().out
    (out / "a" / "notes.png").write_bytes(b"")
    run("--pred-iou-thresh", 99)
    assert sorted(path.name for path in (out / "a").iterdir()) == [
        "metadata.csv",
        "notes.png",
    ]  # no mask of the first run is left


def test_what_was_dropped_is_counted_and_adds_up(image) -> None:
    """36 clicks give 108 candidates with predicted IoUs of 0.9, 0.8 and 0.1."""
    generator = SamAutomaticMaskGenerator(Discs(), points_per_side=6, pred_iou_thresh=0.5)
    assert generator.generate(image)
    dropped = generator.dropped
    assert (dropped.candidates, dropped.uncertain, dropped.unstable) == (108, 36, 0)
    assert dropped.best_iou == pytest.approx(0.9) and 0.8 < dropped.best_stability <= 1
    generator.pred_iou_thresh = 0.95
    assert generator.generate(image) == [] and generator.dropped.uncertain == generator.dropped.candidates == 108


def test_an_image_without_masks_says_which_threshold_dropped_how_many(run, capsys) -> None:
    run("--pred-iou-thresh", 9)
    said = capsys.readouterr().out
    match = re.search(
        r"2 image\(s\) without a mask, such as a.png: of 54 candidates 54 are below --pred-iou-thresh 9 "
        r"\(the best has (-?\d+\.\d\d)\); lower --pred-iou-thresh\n",
        said,
    )
    assert match and float(match[1]) < 9
    run("--stability-score-thresh", 1.5)
    assert re.search(
        r"54 are below --stability-score-thresh 1.5 \(the best has [01]\.\d\d\); lower --stab", capsys.readouterr().out
    )
    run()
    assert "without a mask" not in capsys.readouterr().out


def test_the_script_writes_run_lengths(run) -> None:
    out = run("--convert-to-rle", "--save_overlays", "False", "--zoom", "always")
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()) == [
        "a.json",
        "deep/b.json",
    ]
    for mask in json.loads((out / "a.json").read_text()):
        assert coco_mask.decode(mask["segmentation"]).sum() == mask["area"]


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--input", "nowhere"), "nowhere: does not exist"),
        (("--points-per-side", 0), "at least 1"),
        (("--checkpoint", "nowhere.pth"), "nowhere.pth"),
    ],
)
def test_bad_input_ends_in_one_line(run, flags, message) -> None:
    with pytest.raises(SystemExit) as end:
        run(*flags)
    assert message in str(end.value.code) and "\n" not in str(end.value.code)
