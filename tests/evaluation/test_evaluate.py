"""One pass: the protocol against a plain reading of it, one object at a time, and prompts that repeat exactly."""

import json
import os
from collections import Counter
from dataclasses import replace
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam_med2d.data.batch import Batch, Sample, collate
from sam_med2d.data.geometry import fit, restore, to_original_frame
from sam_med2d.errors import DataError
from sam_med2d.evaluation import evaluate as evaluation
from sam_med2d.evaluation.evaluate import Means, evaluate
from sam_med2d.evaluation.metrics import METRICS
from sam_med2d.prompts.annotators import SimulatedAnnotator
from sam_med2d.prompts.clicks import boxes_of, clicks_of, pick_pixels
from sam_med2d.prompts.files import FrozenPrompts, record_prompts, write_prompts
from sam_med2d.prompts.modes import DEFAULT_MODES, Mode, parse_mode
from segment_anything import Prediction, Prompts, Sam, sam_model_registry
from tests.segment_anything.test_host_reads import counted
from tests.segment_anything.test_model import randomise

SIDE = 64
CPU = torch.device("cpu")
ALL_MODES = [*DEFAULT_MODES, "1shot", "3shot", "6shot", "bbox+2pts", "bbox_jitter3", "bbox_jitter6+1pt", "mask"]


class Sketcher(nn.Module):
    """Stands in for Sam where results must agree bit by bit: each row is computed by itself, by sums and quotients.

    Dark places are objects; clicks and boxes mark or clear their surroundings. Wrong often enough for corrections.
    """

    image_size = SIDE
    upscale = Sam.upscale

    def encode(self, images: Tensor, content: Tensor | None = None) -> Tensor:
        return images[..., 2::4, 2::4].float() / 255

    def predict(self, embeddings: Tensor, prompts: Prompts, multimask_output: bool) -> Prediction:
        centre = torch.arange(SIDE // 4) * 4 + 2.0
        x, y = centre.view(1, 1, 1, -1), centre.view(1, 1, -1, 1)
        drawn = 0.3 - embeddings
        if prompts.boxes is not None:
            x0, y0, x1, y1 = prompts.boxes.view(-1, 4, 1, 1, 1).unbind(1)
            drawn = drawn + ((x >= x0) & (x < x1) & (y >= y0) & (y < y1)) * 0.5
        for number in range(0 if prompts.points is None else prompts.points.shape[1]):
            px, py = prompts.points[:, number].view(-1, 2, 1, 1, 1).unbind(1)
            sign = torch.tensor([-1.0, 1.0, 0.0])[prompts.labels[:, number]].view(-1, 1, 1, 1)  # of 0, 1, -1
            drawn = drawn + sign / (1 + ((x - px) ** 2 + (y - py) ** 2) / 40)
        if prompts.masks is not None:
            drawn = drawn + (prompts.masks - 0.5)
        iou = drawn[:, :, 8, 8]
        return Prediction(drawn, iou) if multimask_output else Prediction(drawn[:, :1], iou[:, :1])


@pytest.fixture(scope="module")
def model():
    return randomise(sam_model_registry["vit_t"](image_size=SIDE, encoder_adapter=False))


def sample(name: str, height: int, width: int, count: int, seed: int) -> Sample:
    """A noisy picture with `count` ellipses, some of two pieces, as TestingDataset makes it."""
    draw = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    masks = []
    for i in range(count):
        mask = np.zeros((height, width), bool)
        for _ in range(1 + i % 2):
            cy, cx = draw.uniform(0.2, 0.8, 2) * (height, width)
            ry, rx = draw.uniform(0.1, 0.3, 2) * (height, width)
            mask |= ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1
        masks.append(mask)
    image, framed, content = fit(draw.integers(0, 256, (height, width, 3), dtype=np.uint8), masks, SIDE)
    assert framed.any(axis=(1, 2)).all()
    return Sample(
        image=torch.from_numpy(image.transpose(2, 0, 1).copy()),
        content=content,
        masks=torch.from_numpy(framed)[:, None],
        image_name=f"images/{name}.png",
        mask_names=[f"masks/{name}_{i}.png" for i in range(count)],
        original_size=(height, width),
        original_masks=torch.from_numpy(np.array(masks).reshape(count, height, width)),
        skipped=[],
    )


def samples() -> list[Sample]:
    """Larger than the frame, padded into it, exactly of its size."""
    return [
        sample("large", 150, 90, 3, seed=1),
        sample("small", 40, 50, 2, seed=2),
        sample("exact", SIDE, SIDE, 4, seed=3),
    ]


class Result(NamedTuple):
    dice: float
    iou: float
    predicted_iou: float
    predicted_area: int


def results_of(scored: list[evaluation.Scored]) -> dict[tuple[str, str], Result]:
    """{(mask, mode): what came of it}"""
    return {
        (name, one.mode.name): Result(
            one.values["dice"][i], one.values["iou"][i], one.predicted_iou[i], int(one.masks[i].sum())
        )
        for one in scored
        for i, name in enumerate(one.names)
    }


def run(model, batches: list[Batch], modes: list[str], **options) -> dict[tuple[str, str], Result]:
    return results_of(scored_by(model, batches, modes, **options))


def scored_by(
    model,
    batches: list[Batch],
    modes: list[str],
    seed: int = 0,
    strategy: str = "random",
    frozen: FrozenPrompts | None = None,
    **options,
) -> list[evaluation.Scored]:
    found = evaluate(
        model,
        batches,
        [parse_mode(mode) for mode in modes],
        device=CPU,
        annotator=frozen or SimulatedAnnotator(seed, strategy),
        **options,
    )
    return [one for _, scored in found for one in scored]


def prompts_by(scored: list[evaluation.Scored]) -> dict[tuple[str, str], list]:
    """{(mask, mode): its prompts}"""
    return {
        (name, one.mode.name): [None if p is None else p[i].tolist() for p in one.prompts[:3]]
        for one in scored
        for i, name in enumerate(one.names)
    }


# ---------------------------------------------------------------- modes


@pytest.mark.parametrize(
    "name, mode",
    [
        ("bbox", Mode("bbox", "box", 0, 0)),
        ("1pt", Mode("1pt", "click", 1)),
        ("3pts", Mode("3pts", "click", 3)),
        ("3pt", Mode("3pts", "click", 3)),
        ("12pts", Mode("12pts", "click", 12)),
        ("1shot", Mode("1shot", "at_once", 1)),
        ("10shot", Mode("10shot", "at_once", 10)),
        ("mask", Mode("mask", "mask")),
        ("bbox_jitter5", Mode("bbox_jitter5", "box", 0, 5)),
        ("bbox+1pt", Mode("bbox+1pt", "box", 1)),
        ("bbox+2pt", Mode("bbox+2pts", "box", 2)),
        ("bbox_jitter10+3pts", Mode("bbox_jitter10+3pts", "box", 3, 10)),
    ],
)
def test_modes_are_read_from_their_names(name, mode):
    assert parse_mode(name) == mode


def test_modes_of_one_sequence():
    sequences = [
        parse_mode(name).sequence
        for name in ("1pt", "5pts", "bbox", "bbox+2pts", "bbox_jitter3", "bbox_jitter3+2pts", "3shot")
    ]
    assert sequences == ["clicks", "clicks", "bbox", "bbox", "bbox_jitter3", "bbox_jitter3", "3shot"]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "box",
        "bbox ",
        "pt",
        "0pts",
        "0shot",
        "-1pts",
        "1.5pts",
        "3",
        "3points",
        "x3pts",
        "03pts",
        "3shots",
        "3pts\n",
        "BBOX",
        "bbox_jitter",
        "bbox_jitter0",
        "bbox+",
        "bbox+0pts",
        "bbox+3",
        "mask+1pt",
        "3pts+bbox",
    ],
)
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match="unknown prompt mode.*use bbox"):
        parse_mode(name)


# ---------------------------------------------------------------- one pass


@pytest.mark.parametrize("batch_size, chunk", [(1, 256), (2, 256), (3, 5)])
def test_every_image_is_encoded_once(model, monkeypatch, batch_size, chunk):
    monkeypatch.setattr(evaluation, "PIXELS_AT_ONCE", chunk * SIDE**2)
    images = [*samples(), sample("many", 70, 80, 12, seed=4)]
    batches = [collate(images[i : i + batch_size]) for i in range(0, len(images), batch_size)]
    seen = []
    hook = model.image_encoder.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].clone()))
    try:
        rows = run(model, batches, list(DEFAULT_MODES))
    finally:
        hook.remove()
    assert len(rows) == 21 * len(DEFAULT_MODES)
    assert [len(x) for x in seen] == [1] * len(images)  # on a CPU one by one, see evaluation._groups
    whole = collate(images)
    torch.testing.assert_close(torch.cat(seen), model.preprocess(whole.images, whole.content))


def test_all_objects_come_out_in_their_order_and_an_image_without_any_passes():
    images = [*samples(), sample("none", 30, 30, 0, seed=5)]
    batches = [collate(images[3:]), collate(images)]
    found = list(evaluate(Sketcher(), batches, [parse_mode("1pt"), parse_mode("bbox")], device=CPU))
    assert [batch for batch, _ in found] == batches
    assert found[0][1] == []
    assert [(one.mode.name, one.image) for one in found[1][1]] == [
        (mode, i) for i in range(3) for mode in ("1pt", "bbox")
    ]
    for one in found[1][1]:
        image = images[one.image]
        assert one.names == image.mask_names
        assert torch.equal(one.truth, image.original_masks)
        assert one.masks.shape == one.truth.shape and one.masks.dtype == torch.bool


def test_the_model_is_left_without_a_graph(model):
    one = scored_by(model.train(), [collate(samples())], ["3pts"])[0]
    assert not model.training and not one.prompts.points.requires_grad
    assert torch.is_grad_enabled()


# ---------------------------------------------------------------- the protocol, read plainly


def plainly_back(logits: Tensor, height: int, width: int) -> Tensor:
    """(1, 1, SIDE, SIDE) -> (1, 1, height, width), of a picture not smaller than the frame: linear between the pixels
    that OpenCV put there."""
    values = logits[0, 0].numpy()
    for size in (height, width):
        ruler = np.arange(size, dtype=np.float32)[None]
        shown = cv2.resize(ruler, (SIDE, 1), interpolation=cv2.INTER_NEAREST)[0]
        values = np.stack([np.interp(ruler[0], shown, column) for column in values.T])  # turned: the other axis next
    return torch.from_numpy(values)[None, None]


def plain_dice(model, image: Sample, row: int, mode: str, multimask: bool, seed: int, protocol: str = "exact") -> float:
    """One object by itself: the iterative clicks or the box, scored at the original size."""
    name, mask = image.mask_names[row], image.masks[row, 0].numpy()
    embedding = model.encode(image.image[None], torch.tensor([image.content]))

    def predict(**prompts: list | Tensor | None) -> Tensor:
        prompts = {k: v if v is None or isinstance(v, Tensor) else torch.tensor([v]) for k, v in prompts.items()}
        logits, iou = model.predict(embedding, Prompts(**prompts), multimask)
        return logits[:, [int(np.argmax(iou[0].numpy()))]]

    def enlarge(logits: Tensor, height: int, width: int) -> Tensor:
        return F.interpolate(logits, size=(height, width), mode="bilinear", align_corners=False)

    if mode == "bbox":
        y, x = np.nonzero(mask)
        logits = predict(boxes=[float(v) for v in (x.min(), y.min(), x.max() + 1, y.max() + 1)])
    else:
        count = parse_mode(mode).clicks
        points, labels, fed_back, region = [], [], None, mask
        for number in range(count):
            draw = SimulatedAnnotator(seed)._uniform([name], f"clicks {number}", 1)[0, 0].numpy()
            candidates = np.argwhere(region)  # row by row
            if len(candidates):
                y, x = candidates[int(draw * np.float32(len(candidates)))].tolist()
                points.append([float(x), float(y)])
                labels.append(int(mask[y, x]))
            else:
                points.append([0.0, 0.0])
                labels.append(-1)
            logits = predict(points=points, labels=labels, masks=fed_back)
            fed_back = logits.sigmoid()
            region = mask ^ (enlarge(logits, SIDE, SIDE)[0, 0] > 0).numpy()

    logits = enlarge(logits, SIDE, SIDE)
    height, width = image.original_size
    if height < SIDE and width < SIDE:
        top, left = (SIDE - height) // 2, (SIDE - width) // 2
        logits = logits[..., top : top + height, left : left + width]
    elif (height, width) != (SIDE, SIDE):
        logits = (enlarge if protocol == "paper" else plainly_back)(logits, height, width)
    predicted, truth = (logits[0, 0] > 0).numpy(), image.original_masks[row].numpy()
    return 2 * (predicted & truth).sum() / (predicted.sum() + truth.sum())


@pytest.mark.parametrize("multimask, protocol", [(True, "exact"), (False, "exact"), (True, "paper")])
def test_scores_are_those_of_the_protocol(multimask, protocol):
    sketcher, images = Sketcher(), samples()
    rows = run(sketcher, [collate(images)], list(DEFAULT_MODES), multimask=multimask, seed=5, protocol=protocol)
    expected = {
        (name, mode): plain_dice(sketcher, image, i, mode, multimask, 5, protocol)
        for image in images
        for i, name in enumerate(image.mask_names)
        for mode in DEFAULT_MODES
    }
    assert rows.keys() == expected.keys()
    for key, row in rows.items():
        assert row.dice == pytest.approx(expected[key], abs=1e-6), key
        assert row.iou == pytest.approx(row.dice / (2 - row.dice), abs=1e-6)
    assert len({round(value, 4) for value in expected.values()}) > len(expected) // 2  # not all alike


class Truthful(Sketcher):
    """Says of every pixel of the frame what the picture shows there: bright ones are the object."""

    image_size = 256

    def encode(self, images: Tensor, content: Tensor | None = None) -> Tensor:
        return images[:, :1].float() / 255 * 20 - 10

    def predict(self, embeddings: Tensor, prompts: Prompts, multimask_output: bool) -> Prediction:
        return Prediction(embeddings.expand(-1, 3, -1, -1), torch.ones(len(embeddings), 3))

    def upscale(self, logits: Tensor) -> Tensor:
        return logits


@pytest.mark.parametrize("height, width", [(200, 150), (384, 384), (384, 288), (512, 1024), (1500, 900)])
def test_a_perfect_answer_is_scored_as_one(height: int, width: int) -> None:
    """Dice 0.99 at a factor of 1.5, and no shift at any."""
    made, frame = sample("bright", height, width, 1, seed=4), Truthful.image_size
    truth = made.original_masks[0].numpy()
    picture = np.repeat(truth[..., None], 3, axis=2).astype(np.uint8) * 255
    image, framed, content = fit(picture, [truth], frame)
    seen = torch.from_numpy(image.transpose(2, 0, 1).copy())
    made = replace(made, image=seen, content=content, masks=torch.from_numpy(framed)[:, None])
    found = {}
    for protocol in ("exact", "paper"):
        (scored,) = scored_by(Truthful(), [collate([made])], ["bbox"], protocol=protocol)
        found[protocol] = scored.masks[0].numpy()
    dice = {name: 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) for name, mask in found.items()}
    shift = np.argwhere(found["exact"]).mean(axis=0) - np.argwhere(truth).mean(axis=0)
    if max(height, width) < frame:
        assert dice == {"exact": 1, "paper": 1}
    else:
        assert dice["exact"] >= (0.99 if max(height, width) <= 1.5 * frame else 0.98)
        assert dice["exact"] > dice["paper"] and np.abs(shift).max() < 0.25


def test_one_sequence_serves_all_numbers_of_clicks():
    batches = [collate(samples())]
    combined = scored_by(Sketcher(), batches, ["1pt", "3pts", "5pts"])
    rows = results_of(combined)
    prompts = prompts_by(combined)
    for mode in ("1pt", "3pts"):
        alone = scored_by(Sketcher(), batches, [mode])
        assert results_of(alone).items() <= rows.items()
        for key, (points, labels, _) in prompts_by(alone).items():
            longest = prompts[key[0], "5pts"]
            assert longest[0][: len(points)] == points == prompts[key][0]
            assert longest[1][: len(points)] == labels
    assert len({row.dice for row in rows.values()}) > 9  # clicks matter


# ---------------------------------------------------------------- what draws depend on


def shuffled(image: Sample) -> Sample:
    order = list(range(len(image.mask_names)))[::-1]
    return Sample(
        image.image,
        image.content,
        image.masks[order],
        image.image_name,
        [image.mask_names[i] for i in order],
        image.original_size,
        image.original_masks[order],
        [],
    )


@pytest.mark.parametrize(
    "arrange",
    [
        lambda images: [collate([image]) for image in images],
        lambda images: [collate(images[2:]), collate(images[:2])],
        lambda images: [collate([shuffled(image) for image in reversed(images)])],
    ],
    ids=["one by one", "in two batches", "backwards"],
)
def test_batches_and_order_change_nothing(arrange):
    expected = scored_by(Sketcher(), [collate(samples())], ALL_MODES)
    got = scored_by(Sketcher(), arrange(samples()), ALL_MODES)
    assert prompts_by(got) == prompts_by(expected)
    assert results_of(got) == results_of(expected)


def test_chunks_of_objects_change_nothing(monkeypatch):
    whole = run(Sketcher(), [collate(samples())], ALL_MODES)
    monkeypatch.setattr(evaluation, "PIXELS_AT_ONCE", 2 * SIDE**2)
    assert run(Sketcher(), [collate(samples())], ALL_MODES) == whole


@pytest.mark.parametrize("change, same", [("seed", False), ("name", False), ("folder", True), ("nothing", True)])
def test_clicks_depend_on_seed_and_file_name(change, same):
    image, moved = samples()[0], samples()[0]
    if change == "name":
        moved.mask_names = [name.replace("large", "renamed") for name in moved.mask_names]
    if change == "folder":
        moved.mask_names = [f"elsewhere/{os.path.basename(name)}" for name in moved.mask_names]
    modes = ["3pts", "1shot", "6shot"]
    first = [p for one in scored_by(Sketcher(), [collate([image])], modes) for p in one.prompts.points]
    second = scored_by(Sketcher(), [collate([moved])], modes, seed=int(change == "seed"))
    second = [p for one in second for p in one.prompts.points]
    assert all(torch.equal(a, b) is same for a, b in zip(first, second))


def test_draws_of_different_uses_are_different():
    names, annotator = [f"{i}.png" for i in range(20)], SimulatedAnnotator(0)
    draws = torch.cat([annotator._uniform(names, use, 3) for use in ("clicks 0", "clicks 1", "5shot", "jitter")], dim=1)
    assert draws.min() >= 0 and draws.max() < 1 and len(draws.unique()) == 240


def test_prompts_lie_where_they_should():
    """In the S x S frame: the tight box, first clicks on the object, half of those at once, jittered boxes near it."""
    images = samples()
    prompts = prompts_by(scored_by(Sketcher(), [collate(images)], ALL_MODES))
    moved = set()
    for image in images:
        boxes = boxes_of(image.masks).tolist()
        for name, mask, box in zip(image.mask_names, image.masks[:, 0], boxes):
            assert (
                prompts[name, "bbox"]
                == [None, None, box]
                == [*prompts[name, "bbox+2pts"][:0], None, None, prompts[name, "bbox+2pts"][2]]
            )
            assert prompts[name, "mask"] == [None, None, None]
            for jitter, mode in ((3, "bbox_jitter3"), (6, "bbox_jitter6+1pt")):
                differences = [a - b for a, b in zip(prompts[name, mode][2], box)]
                assert all(abs(d) <= jitter and d == int(d) for d in differences)
                moved.update((jitter, d) for d in differences)
            for mode in ALL_MODES:
                points, labels, _ = prompts[name, mode]
                assert len(points or []) == parse_mode(mode).clicks
                assert [bool(mask[int(y), int(x)]) for x, y in points or []] == [label == 1 for label in labels or []]
                if parse_mode(mode).start in ("click", "at_once"):
                    assert labels[0] == 1
            assert [prompts[name, mode][1] for mode in ("1shot", "3shot", "6shot")] == [
                [1],
                [1, 0, 0],
                [1] * 3 + [0] * 3,
            ]
    assert {d for jitter, d in moved if jitter == 3} == {-3, -2, -1, 0, 1, 2, 3}
    corrections = Counter(label for (_, mode), p in prompts.items() if mode == "5pts" for label in p[1][1:])
    assert corrections[0] and corrections[1]


def test_central_clicks_need_no_draw():
    """The same for every seed, the first in the middle of the object; and other answers than random clicks give."""
    batches = [collate(samples())]
    modes = ["1pt", "4pts", "bbox+2pts"]
    first, second = (scored_by(Sketcher(), batches, modes, seed=seed, strategy="center") for seed in (0, 9))
    assert prompts_by(first) == prompts_by(second) and results_of(first) == results_of(second)
    assert results_of(first) != run(Sketcher(), batches, modes)
    for (name, _), (points, labels, _) in prompts_by(first).items():
        image = next(image for image in samples() if name in image.mask_names)
        mask = image.masks[image.mask_names.index(name), 0]
        assert [bool(mask[int(y), int(x)]) for x, y in points] == [label == 1 for label in labels]


def test_a_box_stays_while_clicks_are_added():
    images, asked = samples(), []

    class Listening(Sketcher):
        def predict(self, embeddings, prompts, multimask_output):
            asked.append(prompts)
            return super().predict(embeddings, prompts, multimask_output)

    scored_by(Listening(), [collate(images[:1])], ["bbox", "bbox+2pts"])
    assert [(p.boxes is not None, clicks_of(p), p.masks is not None) for p in asked] == [
        (True, 0, False),
        (True, 1, True),
        (True, 2, True),
    ]
    assert torch.equal(asked[0].boxes, asked[2].boxes)


def test_the_mask_prompt_is_the_truth_at_a_quarter():
    images, asked = samples(), []

    class Listening(Sketcher):
        def predict(self, embeddings, prompts, multimask_output):
            asked.append(prompts)
            return super().predict(embeddings, prompts, multimask_output)

    scored_by(Listening(), [collate(images[:1])], ["mask"])
    expected = images[0].masks.float().unfold(2, 4, 4).unfold(3, 4, 4).mean(dim=(4, 5))
    assert torch.equal(asked[0].masks, expected) and asked[0].points is None and asked[0].boxes is None


def test_the_best_of_the_answers_is_the_truths_choice(model):
    """Not the one with the highest predicted IoU; and what goes on is the chosen one."""
    batches = [collate(samples())]
    rows = run(model, batches, ["1pt", "2pts", "1pt@best", "2pts@best"])
    single = [run(model_of_output(model, k), batches, ["1pt"]) for k in range(3)]
    names = {mask for mask, _ in rows}
    for mask in names:
        assert rows[mask, "1pt@best"].dice == max(one[mask, "1pt"].dice for one in single)
        assert rows[mask, "2pts@best"].dice >= rows[mask, "2pts"].dice
        assert rows[mask, "1pt@best"].predicted_iou == rows[mask, "1pt"].predicted_iou
    assert any(rows[mask, "1pt@best"].dice > rows[mask, "1pt"].dice for mask in names)
    plain = run(model, batches, ["1pt", "2pts"])
    assert all(rows[key] == value for key, value in plain.items())


def model_of_output(model, k: int):
    """The model with one of its three guesses alone."""

    class Only:
        image_size = model.image_size
        device = model.device
        upscale = staticmethod(model.upscale)
        encode = staticmethod(model.encode)
        eval = staticmethod(lambda: None)

        def predict(self, embeddings, prompts, multimask_output):
            logits, iou = model.predict(embeddings, prompts, True)
            return Prediction(logits[:, k : k + 1], iou[:, k : k + 1])

    return Only()


def test_swapped_prompts_are_those_of_the_next_object_of_the_picture():
    images = samples()
    scored = scored_by(Truthful(), [collate(images)], ["bbox", "bbox@swapped"])
    for image, (plain, swapped) in zip(images, zip(scored[::2], scored[1::2])):
        count = len(image.mask_names)
        for row in range(count):
            answered, truth = plain.masks[(row + 1) % count], image.original_masks[row]
            assert torch.equal(swapped.masks[row], answered)
            expected = METRICS["dice"](answered[None], truth[None], from_logits=False).item()
            assert swapped.values["dice"][row] == pytest.approx(expected)
        assert swapped.dice_by_click is None


def test_dice_after_each_click_is_that_of_the_shorter_modes():
    """Also of numbers of clicks that no mode asks for."""
    batches = [collate(samples())]
    every = run(Sketcher(), batches, ["1pt", "2pts", "3pts", "4pts", "5pts"])
    for one in scored_by(Sketcher(), batches, ["3pts", "5pts", "bbox", "bbox+2pts"]):
        if one.mode.start != "click":
            assert one.dice_by_click is None
            continue
        assert one.dice_by_click.shape == (len(one.names), one.mode.clicks)
        for name, values in zip(one.names, one.dice_by_click.tolist()):
            assert values == [
                every[name, parse_mode(f"{number}pts" if number > 1 else "1pt").name].dice
                for number in range(1, one.mode.clicks + 1)
            ]


# ---------------------------------------------------------------- geometry


@pytest.mark.parametrize("height, width", [(1, 1), (40, 50), (63, 3)])
def test_padding_is_cropped(height, width):
    logits = torch.randn(2, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    top, left = (SIDE - height) // 2, (SIDE - width) // 2
    restored = restore(logits, [top, left, height, width], (height, width))
    assert torch.equal(restored, logits[..., top : top + height, left : left + width])


def test_a_picture_of_the_frames_size_is_left_alone():
    logits = torch.randn(2, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    assert torch.equal(restore(logits, [0, 0, SIDE, SIDE], (SIDE, SIDE)), logits)


@pytest.mark.parametrize("height, width", [(128, 128), (200, 100), (40, 300), (1000, 64)])
def test_a_resized_picture_is_restored_linearly_in_the_paper(height, width):
    """A ramp over the frame is a ramp over the picture: pixel j covers j .. j + 1, its middle counts."""
    ramp = torch.arange(SIDE) + 0.5
    logits = torch.stack([ramp.expand(SIDE, SIDE), ramp.view(-1, 1).expand(SIDE, SIDE)]).unsqueeze(1)
    x, y = restore(logits, [0, 0, SIDE, SIDE], (height, width), paper=True)
    for got, size in ((x[0], width), (y[0].T, height)):
        expected = ((torch.arange(size) + 0.5) * SIDE / size).clamp(0.5, SIDE - 0.5)
        torch.testing.assert_close(got, expected.expand_as(got), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(
    "height, width", [(40, 50), (63, 3), (SIDE, SIDE), (150, 90), (40, 300), (1000, 64), (128, 192)]
)
def test_prompts_go_back_to_the_original_picture(height, width):
    """A click lands on the object it was placed on, a box around it, to within a pixel of the coarser grid."""
    mask = np.zeros((height, width), bool)
    mask[height // 4 : height // 2, width // 3 :] = True
    _, framed, content = fit(np.zeros((height, width, 3), np.uint8), [mask], SIDE)
    framed = torch.from_numpy(framed)[:, None]
    points, _ = pick_pixels(framed, torch.rand(1, 500, generator=torch.Generator().manual_seed(0)))
    labels = torch.ones(1, 500, dtype=torch.int64)
    there = to_original_frame(Prompts(points, labels, boxes_of(framed)), list(content), (height, width))
    x, y = there.points[0].floor().long().unbind(1)
    assert mask[y, x].all()
    assert there.labels is labels and there.masks is None
    exact = torch.tensor([width // 3, height // 4, width, height // 2])
    coarse = torch.tensor([max(1, width / SIDE), max(1, height / SIDE)]).repeat(2)
    padded = height < SIDE and width < SIDE
    assert ((there.boxes[0] - exact).abs() <= (0 if padded else coarse)).all()


def test_only_the_prompts_that_are_there_go_back():
    boxes = to_original_frame(Prompts(boxes=torch.tensor([[10.0, 12, 20, 32]])), [7, 5, 50, 54], (50, 54))
    assert boxes.points is None and boxes.boxes.tolist() == [[5, 5, 15, 25]]
    points = to_original_frame(Prompts(torch.tensor([[[8.0, 16]]]), torch.tensor([[1]])), [0, 0, SIDE, SIDE], (128, 32))
    assert points.boxes is None and points.points.tolist() == [[[4, 32]]]


# ---------------------------------------------------------------- frozen prompts


def freeze(path, scored: list[evaluation.Scored], key_of=os.path.basename) -> FrozenPrompts:
    """Through a file, as test.py does."""
    held = {}
    for one in scored:
        record_prompts(held, one.mode, [*map(key_of, one.names)], one.prompts, one.drawings)
    with open(path, "w") as file:
        write_prompts(file, {"image_size": SIDE}, iter(held.items()))
    return FrozenPrompts(path, SIDE)


def write(path, entries) -> FrozenPrompts:
    path.write_text(json.dumps(entries))
    return FrozenPrompts(path, SIDE)


@pytest.mark.parametrize(
    "kind, chunk, order",
    [
        ("sketcher", 256, ALL_MODES),
        ("sketcher", 2, ALL_MODES),
        ("sketcher", 256, ALL_MODES[::-1]),
        ("sam", 256, ["bbox", "1pt", "3pts", "3shot", "bbox+1pt"]),
    ],
)
def test_recorded_prompts_repeat_every_row(model, tmp_path, monkeypatch, kind, chunk, order):
    """Whatever the seed, the chunks, the order of the modes, and the modes asked along with one."""
    monkeypatch.setattr(evaluation, "PIXELS_AT_ONCE", chunk * SIDE**2)
    model = Sketcher() if kind == "sketcher" else model
    batches = [collate(samples() if kind == "sketcher" else samples()[:1])]
    first = scored_by(model, batches, order)
    frozen = freeze(tmp_path / "prompts.json", first)
    rows = results_of(first)
    assert run(model, batches, order, frozen=frozen, seed=99) == rows
    assert run(model, batches, order, seed=99) != rows
    for mode in order:
        assert run(model, batches, [mode], frozen=frozen).items() <= rows.items()


DRAWN = ["scribble", "3scribbles", "bbox_drawn+2scribbles", "bbox+scribble", "bbox_drawn", "bbox_drawn+1pt", "lasso"]


def test_what_was_drawn_is_recorded_too(tmp_path):
    batches = [collate(samples())]
    first = scored_by(Sketcher(), batches, DRAWN)
    frozen = freeze(tmp_path / "prompts.json", first)
    frozen.check(batches[0].mask_names, [parse_mode(mode) for mode in DRAWN])
    rows = results_of(first)
    assert run(Sketcher(), batches, DRAWN, frozen=frozen, seed=99) == rows
    assert run(Sketcher(), batches, DRAWN, seed=99) != rows
    for mode in DRAWN:
        assert run(Sketcher(), batches, [mode], frozen=frozen).items() <= rows.items()


@pytest.mark.parametrize(
    "others, mode, message",
    [
        ({}, "scribble", "0 of the 1 scribble(s)"),
        ({"scribbles": {"scribbles": [{"lines": [[[1, 2]]], "label": 1}]}}, "2scribbles", "1 of the 2 scribble(s)"),
        ({"scribbles": {"scribbles": [{"label": 1}]}}, "scribble", "a scribble without lines"),
        ({"scribbles": {"scribbles": [{"lines": [[[1, 2]]], "label": 7}]}}, "scribble", "a label other than"),
        ({"scribbles": {"scribbles": [{"lines": [[[1, 99]]], "label": 1}]}}, "scribble", "outside the frame"),
        ({"scribbles": {"scribbles": [{"lines": [[[1, 2]]], "label": 1, "width": 0}]}}, "scribble", "of width 0"),
        ({"lasso": {"lasso": [[1, 2], [3, 4]]}}, "lasso", "2 of the 3 lasso corner(s)"),
        ({"lasso": {"lasso": [[1, 2], [3, 4], [5, 99]]}}, "lasso", "outside the frame"),
        ({"bbox_drawn": {}}, "bbox_drawn", "0 of the 1 box"),
    ],
)
def test_a_drawing_that_is_unusable_is_named(tmp_path, others, mode, message):
    frozen = write(tmp_path / "frozen.json", {"a.png": {"boxes": [[1, 2, 3, 4]], "others": others}})
    with pytest.raises(DataError, match=r"frozen\.json: a\.png") as caught:
        frozen.check(["a.png"], [parse_mode(mode)])
    assert message in str(caught.value)


def test_a_recorded_file_has_the_originals_shape(tmp_path):
    scored = scored_by(Sketcher(), [collate(samples())], list(DEFAULT_MODES))
    held = freeze(tmp_path / "prompts.json", scored).objects
    prompts = prompts_by(scored)
    assert held.keys() == {os.path.basename(mask) for mask, _ in prompts}
    for (mask, mode), (points, labels, box) in prompts.items():
        entry = held[os.path.basename(mask)]
        assert entry.keys() == {"boxes", "point_coords", "point_labels"}
        if mode == "bbox":
            assert entry["boxes"] == [box]
        if mode == "5pts":
            assert (entry["point_coords"], entry["point_labels"]) == (points, labels)


@pytest.mark.parametrize("nest", [lambda v: v, lambda v: [v], lambda v: [[v]]], ids=["as written", "nested", "twice"])
def test_the_originals_prompt_file_is_read(tmp_path, nest):
    frozen = write(
        tmp_path / "prompts.json",
        {
            f"{i}.png": {
                "boxes": nest([[i, 2, 30, 40]]),
                "point_coords": nest([[i, 5], [6, 7], [8, 9]]),
                "point_labels": nest([1, 0, 1 - i]),
            }
            for i in range(2)
        },
    )
    names, masks = ["somewhere/1.png", "0.png"], torch.zeros(2, 1, SIDE, SIDE, dtype=torch.bool)
    assert frozen.start(parse_mode("bbox"), masks, names).boxes.tolist() == [[1, 2, 30, 40], [0, 2, 30, 40]]
    at_once = frozen.start(parse_mode("3shot"), masks, names)
    clicks = [
        frozen.start(parse_mode("3pts"), masks, names)[:2],
        *(frozen.correct(parse_mode("3pts"), number, masks, masks, names) for number in (1, 2)),
    ]
    for points, labels in ((at_once.points, at_once.labels), (torch.cat(part, dim=1) for part in zip(*clicks))):
        assert points.tolist() == [[[1, 5], [6, 7], [8, 9]], [[0, 5], [6, 7], [8, 9]]]
        assert labels.tolist() == [[1, 0, 0], [1, 0, 1]]
        assert points.dtype == torch.float32 and labels.dtype == torch.int64
    assert clicks[0][0].tolist() == [[[1, 5]], [[0, 5]]]


def test_masks_of_one_file_name_keep_their_own_prompts(tmp_path):
    images = samples()
    for folder, image in zip(("", "a/", "b/"), images):
        image.mask_names = [f"{folder}{i}.png" for i in range(len(image.mask_names))]
    batches = [collate(images)]
    assert len({os.path.basename(name) for name in batches[0].mask_names}) < len(batches[0].mask_names)
    first = scored_by(Sketcher(), batches, ALL_MODES)
    frozen = freeze(tmp_path / "prompts.json", first, key_of=lambda mask: mask)
    rows = results_of(first)
    assert run(Sketcher(), batches, ALL_MODES, frozen=frozen, seed=99) == rows


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "cannot be read"),
        ("{", "not valid JSON"),
        ("", "not valid JSON"),
        ("\x00", "not valid JSON"),
        ("[]", "must hold"),
        ('"text"', "must hold"),
        ('{"a.png": [1, 2]}', "must hold"),
        ('{"a.png": null}', "must hold"),
    ],
)
def test_a_bad_prompts_file_is_named(tmp_path, text, message):
    path = tmp_path / "frozen.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=rf"frozen\.json.*{message}"):
        FrozenPrompts(path, SIDE)


@pytest.mark.parametrize(
    "change, mode, message",
    [
        (None, "bbox", "no prompts for masks/large_1.png"),
        ({"boxes": []}, "bbox", "0 of the 1 box"),
        ({"boxes": None}, "bbox", "0 of the 1 box"),
        ({"boxes": [[1, 2, 3]]}, "bbox", "no readable box"),
        ({"boxes": [["a", 2, 3, 4]]}, "bbox", "no readable box"),
        ({"boxes": {"x": 1}}, "bbox", "no readable box"),
        ({"boxes": [[10**400, 2, 3, 4]]}, "bbox", "no readable box"),
        ({"boxes": [[1, 2, 3, 65]]}, "bbox", "outside the frame"),
        ({"boxes": [[-1, 2, 3, 4]]}, "bbox", "outside the frame"),
        ({"boxes": [[5, 2, 5, 4]]}, "bbox", "a box without any pixel"),
        ({"boxes": [[5, 4, 6, 2]]}, "bbox", "a box without any pixel"),
        ({"point_coords": [[5, 66]] * 3}, "3pts", "outside the frame"),
        ({"others": {}}, "bbox_jitter3", "0 of the 1 box"),
        ({"others": {"bbox_jitter3": {"boxes": [[1, 2, 3, 4]]}}}, "bbox_jitter3+2pts", "0 of the 2 click"),
        ({}, "bbox+1pt", "0 of the 1 click"),
        ({"others": [1]}, "bbox+1pt", "0 of the 1 click"),
        ({"point_coords": None}, "1pt", "0 of the 1 click"),
        ({"point_coords": [[5, 6]] * 3}, "5pts", "3 of the 5 click"),
        ({"point_coords": [[5, 6]] * 3}, "5shot", "3 of the 5 click"),
        ({"point_labels": [1]}, "3pts", "1 of the 3 click label"),
        ({"point_coords": [[1, 2], [3]]}, "3pts", "no readable click"),
        ({"point_coords": "here"}, "3shot", "no readable click"),
        ({"point_labels": [-(10**400), 1, 0]}, "3pts", "no readable click label"),
    ],
)
def test_a_prompt_that_lacks_is_named(tmp_path, change, mode, message):
    """The file, the mask and what is missing, where the other objects have all they need."""
    whole = {"boxes": [[1, 2, 3, 4]], "point_coords": [[5, 6]] * 5, "point_labels": [1, 0, 1, 0, 1]}
    entries = {
        f"large_{i}.png": {**whole, "others": {"5shot": whole, "3shot": whole, "bbox": whole, "bbox_jitter3": whole}}
        for i in range(3)
    }
    frozen = write(tmp_path / "frozen.json", entries)
    assert len(run(Sketcher(), [collate(samples()[:1])], [mode], frozen=frozen)) == 3
    entries["large_1.png"] = {**whole, **(change or {})}
    if change is None:
        del entries["large_1.png"]
    frozen = write(tmp_path / "frozen.json", entries)
    with pytest.raises(DataError, match=r"frozen\.json") as caught:
        frozen.check(samples()[0].mask_names, [parse_mode(mode)])
    assert message in str(caught.value) and "large_1.png" in str(caught.value)


def test_a_mask_listed_twice_has_two_rows(tmp_path):
    frozen = write(tmp_path / "frozen.json", {"a.png": {"point_coords": [[5, 6]], "point_labels": [1]}})
    masks = torch.zeros(2, 1, SIDE, SIDE, dtype=torch.bool)
    assert frozen.start(parse_mode("1pt"), masks, ["a.png", "a.png"]).points.shape == (2, 1, 2)


def test_iterative_clicks_do_not_stand_in_for_one_shot_clicks(tmp_path):
    frozen = freeze(tmp_path / "frozen.json", scored_by(Sketcher(), [collate(samples())], ["5pts", "3shot"]))
    with pytest.raises(DataError, match=r"frozen\.json"):
        run(Sketcher(), [collate(samples())], ["5shot"], frozen=frozen)


@pytest.mark.parametrize(
    "change",
    [
        {"point_labels": [7]},
        {"point_labels": [None]},
        {"point_labels": [0.5]},
        {"point_coords": [[None, 3]]},
        {"others": [1]},
    ],
)
def test_numbers_that_mean_nothing_are_refused(tmp_path, change):
    frozen = write(tmp_path / "frozen.json", {"a.png": {"point_coords": [[5, 6]], "point_labels": [1], **change}})
    with pytest.raises(DataError, match=r"frozen\.json.*a\.png"):
        frozen.check(["a.png"], [parse_mode("1shot")])


# ---------------------------------------------------------------- means


def test_a_mean_counts_every_object_once():
    means = Means()
    for mode, image, dice in (("1pt", 0, [1.0]), ("1pt", 1, [0.0, 0.5]), ("bbox", 0, [0.25])):
        names = [f"{image}_{i}" for i in range(len(dice))]
        means.add(
            evaluation.Scored(
                parse_mode(mode),
                image,
                names,
                None,
                None,
                None,
                {"dice": dice, "iou": [d / 2 for d in dice]},
                [0.0] * len(dice),
                None,
            )
        )
    assert means.of("dice") == {"1pt": 0.5, "bbox": 0.25} and means.of("iou") == {"1pt": 0.25, "bbox": 0.125}
    assert [*means.of("dice")] == ["1pt", "bbox"] and means.objects == 3


@pytest.mark.parametrize("names", [("bbox",), DEFAULT_MODES])
def test_reads_from_the_device_do_not_grow_with_the_objects(model, names, monkeypatch) -> None:
    """A GPU stands still at each: they are of images, steps and modes."""

    def reads(objects: int) -> Counter:
        batch = collate([sample("one", 80, 70, objects, seed=4)])
        with counted(monkeypatch) as found:
            [(_, scored)] = evaluate(model, [batch], [parse_mode(name) for name in names], device=CPU)
        assert len(scored) == len(names) and len(scored[0].masks) == objects
        return found

    assert reads(2) == reads(7) == reads(1)
    assert reads(7)["tolist"] > 0
