"""interactive.py: how rounds start, what is corrected, which output goes on."""

import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sam_med2d.evaluation.metrics import dice
from sam_med2d.prompts.clicks import boxes_of
from sam_med2d.training.losses import objective, ranking
from sam_med2d.training.rounds import (
    Recipe,
    Round,
    correction_prompts,
    drawn_start,
    judge,
    plan_of_corrections,
    predict_start,
    starting_prompts,
    uniform_from,
)
from segment_anything import Prediction, Prompts, sam_model_registry
from tests.segment_anything.test_model import randomise

SIDE = 64


@pytest.fixture(scope="module")
def model():
    return randomise(sam_model_registry["vit_t"](image_size=SIDE, encoder_adapter=False))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def objects(rows: int, seed: int = 0) -> Tensor:
    """Rectangles of different places and sizes: (rows, 1, S, S) bool."""
    masks = torch.zeros(rows, 1, SIDE, SIDE, dtype=torch.bool)
    for mask, (x, y, w, h) in zip(masks, torch.randint(1, 30, (rows, 4), generator=generator(seed)).tolist()):
        mask[0, y : y + h, x : x + w] = True
    return masks


def round_of(logits: Tensor, masks: Tensor) -> Round:
    """A finished round: logits (N, 1, S/4, S/4), its masks (N, 1, S, S)."""
    return Round("start", {}, Prediction(logits, torch.zeros(len(logits), 1)), masks, torch.zeros(len(logits)))


# ---------------------------------------------------------------- the plan


@pytest.mark.parametrize("rounds", range(10))
def test_the_mask_is_alone_at_the_end_and_once_before(rounds):
    """The mask alone: never in two rounds or fewer, from three on in the last, from five on in an earlier one as
    well.
    """
    earlier = set()
    for seed in range(100):
        plan = list(plan_of_corrections(rounds, [1, 3, 5, 9], random.Random(seed)))
        assert len(plan) == rounds
        assert set(plan) <= {0, 1, 3, 5, 9}
        alone = [i for i, clicks in enumerate(plan) if clicks == 0]
        assert len(alone) == (rounds > 2) + (rounds > 4)
        if alone:
            assert alone[-1] == rounds - 1
            earlier.update(alone[:-1])
    assert earlier == (
        set(range(1, rounds - 1)) if rounds > 4 else set()
    )  # any of rounds 1 .. rounds - 2, and only these


def test_every_count_of_clicks_is_drawn():
    draw = random.Random(0)
    drawn = {clicks for _ in range(50) for clicks in plan_of_corrections(8, [1, 3, 5, 9], draw)}
    assert drawn == {0, 1, 3, 5, 9}


# ---------------------------------------------------------------- the start


@pytest.mark.parametrize("rows", [1, 2, 5, 8])
def test_half_of_the_objects_start_from_a_box(rows):
    masks = objects(rows)
    start = starting_prompts(masks, uniform_from(generator()), odd_from_box=True)
    assert sorted(start.box_rows.tolist() + start.click_rows.tolist()) == list(range(rows))
    assert abs(len(start.box_rows) - len(start.click_rows)) == rows % 2
    assert start.boxes.points is start.boxes.masks is start.clicks.boxes is start.clicks.masks is None
    assert ((start.boxes.boxes - boxes_of(masks[start.box_rows])).abs() <= 5).all()
    assert start.clicks.points.shape == (len(start.click_rows), 1, 2)
    x, y = start.clicks.points[:, 0].long().unbind(1)
    assert masks[start.click_rows, 0, y, x].all() and (start.clicks.labels == 1).all()


def test_which_half_is_left_to_chance():
    uniform = uniform_from(generator())
    boxed = [set(starting_prompts(objects(4), uniform, True).box_rows.tolist()) for _ in range(100)]
    for row in range(4):
        assert 30 < sum(row in rows for rows in boxed) < 70


@pytest.mark.parametrize("rows", [1, 3])
def test_the_odd_object_starts_as_told(rows):
    for odd_from_box in (True, False):
        start = starting_prompts(objects(rows), uniform_from(generator()), odd_from_box)
        assert len(start.box_rows) == rows // 2 + odd_from_box


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_a_start_is_predicted_in_the_objects_order(model, rows):
    masks = objects(rows)
    embeddings = torch.randn(rows, 256, SIDE // 16, SIDE // 16, generator=generator())
    start = starting_prompts(masks, uniform_from(generator(3)), True)
    with torch.no_grad():
        together = predict_start(model, embeddings, start)
        assert together.logits.shape == (rows, 4, SIDE // 4, SIDE // 4) and together.iou.shape == (rows, 4)
        for own, prompts in ((start.box_rows, start.boxes), (start.click_rows, start.clicks)):
            for i, row in enumerate(own.tolist()):
                alone = model.predict(embeddings[row : row + 1], prompts.rows(torch.tensor([i])), None)
                torch.testing.assert_close(together.logits[row], alone.logits[0], atol=1e-4, rtol=1e-4)
                torch.testing.assert_close(together.iou[row], alone.iou[0], atol=1e-4, rtol=1e-4)
    if rows == 5:  # the draw is one where the order matters, and so does its direction
        order = torch.cat([start.box_rows, start.click_rows])
        assert not torch.equal(order, order.argsort())


# ---------------------------------------------------------------- corrections


@pytest.mark.parametrize("clicks", [0, 1, 9])
def test_a_correction_is_the_last_mask_with_clicks_on_its_errors(clicks):
    masks = objects(4, seed=0)
    logits = 10 * torch.randn(4, 1, SIDE // 4, SIDE // 4, generator=generator())
    predicted = torch.cat([objects(4, seed=1)[:3], masks[3:]])  # the last one is perfect
    prompts = correction_prompts(round_of(logits, predicted), masks, clicks, uniform_from(generator()))
    assert prompts.boxes is None
    torch.testing.assert_close(prompts.masks, 1 / (1 + (-logits).exp()))  # probabilities, not logits
    assert prompts.masks.min() >= 0 and prompts.masks.max() <= 1
    if not clicks:
        assert prompts.points is prompts.labels is None
        return
    x, y = prompts.points.long().unbind(-1)
    rows = torch.arange(4)[:, None]
    assert prompts.labels.shape == (4, clicks)
    assert (masks ^ predicted)[rows, 0, y, x][:3].all()
    assert torch.equal(prompts.labels[:3], masks[rows, 0, y, x][:3].long())
    assert (prompts.labels[3] == -1).all()


def test_the_fed_back_mask_is_float32_under_mixed_precision():
    logits = torch.randn(2, 1, SIDE // 4, SIDE // 4, generator=generator()).bfloat16()
    prompts = correction_prompts(round_of(logits, objects(2)), objects(2), 0, uniform_from(generator()))
    assert prompts.masks.dtype == torch.float32


# ---------------------------------------------------------------- judging


@pytest.mark.parametrize("multimask", [True, False])
def test_the_output_that_goes_on(model, multimask):
    """Of outputs 1 to 3 the one with the highest predicted IoU, whatever output 0 expects; or output 0."""
    masks = objects(6)
    logits = torch.randn(6, 4, SIDE // 4, SIDE // 4, generator=generator(), requires_grad=True)
    expected = torch.rand(6, 4, generator=generator(4))
    expected[:, 0] = torch.tensor([2.0, -1, 2, -1, 2, -1])  # above or below all the others
    expected.requires_grad_()
    judged = judge(model, "clicks", Prediction(logits, expected), masks, multimask)

    best = [1 + max(range(3), key=row[1:].__getitem__) for row in expected.tolist()] if multimask else [0] * 6
    assert not multimask or set(best) == {1, 2, 3}
    for row, output in enumerate(best):
        assert torch.equal(judged.chosen.logits[row, 0], logits[row, output])
        assert judged.chosen.iou[row, 0] == expected[row, output]
    assert judged.kind == "clicks"
    assert torch.equal(judged.masks, model.upscale(judged.chosen.logits) > 0)
    assert torch.equal(judged.dice, dice(judged.masks[:, 0], masks[:, 0], from_logits=False))

    judged.losses["loss"].backward()  # of all four outputs, while what goes on is cut from the graph
    assert (logits.grad.abs().amax(dim=(2, 3)) > 0).all() and (expected.grad != 0).all()
    assert not any(t.requires_grad for t in (*judged.chosen, judged.masks, judged.dice))


def test_rounds_follow_one_another_on_a_model(model):
    """Start, mask alone, clicks, mask alone: what is corrected is the round before, and its mask branch learns."""
    masks = objects(3)
    embeddings = torch.randn(3, 256, SIDE // 16, SIDE // 16, generator=generator())
    uniform = uniform_from(generator())
    last = judge(model, "start", predict_start(model, embeddings, starting_prompts(masks, uniform, True)), masks, True)
    for clicks in (0, 3, 0):
        prompts = correction_prompts(last, masks, clicks, uniform)
        assert torch.equal(prompts.masks, last.chosen.logits.sigmoid())
        last = judge(model, "mask", model.predict(embeddings, prompts, None), masks, True)
        weight = model.prompt_encoder.mask_downscaling[0].weight
        assert torch.autograd.grad(last.losses["loss"], weight)[0].abs().sum() > 0


# ---------------------------------------------------------------- a refinement network


def test_a_refinement_network_learns_and_its_answer_goes_on() -> None:
    torch.manual_seed(0)
    model = sam_model_registry["vit_t"](image_size=SIDE, encoder_adapter=False, refine=True)
    masks, details = objects(2), model.details(torch.randint(0, 256, (2, 3, SIDE, SIDE)))
    prediction = Prediction(torch.randn(2, 4, SIDE // 4, SIDE // 4, requires_grad=True), torch.rand(2, 4))
    points, labels = torch.tensor([[[5.0, 5.0]], [[40.0, 9.0]]]), torch.tensor([[1], [0]])
    plain = judge(model, "clicks", prediction, masks, multimask=True)
    refined = judge(model, "clicks", prediction, masks, True, details, Prompts(points, labels))
    assert "refined" not in plain.losses
    torch.testing.assert_close(refined.losses["loss"], plain.losses["loss"] + refined.losses["refined"])
    assert refined.masks[0, 0, 5, 5] and not refined.masks[1, 0, 9, 40]  # as the clicks say
    assert refined.chosen.logits.shape == (2, 1, SIDE // 4, SIDE // 4)

    refined.losses["refined"].backward()
    assert prediction.logits.grad is None  # the decoder learns by its own loss
    assert model.refinement.write.weight.grad.abs().sum() > 0


# ---------------------------------------------------------------- strokes and lassos


def test_strokes_and_lassos_take_the_place_of_clicks_and_boxes() -> None:
    masks = objects(4)
    start = starting_prompts(masks, uniform_from(generator()), True)
    assert drawn_start(start, masks, Recipe(), step=0) is start
    drawn = drawn_start(start, masks, Recipe(scribble_share=1.0, lasso_share=1.0), step=0)
    assert drawn.clicks.points.shape == (2, 5, 2) and (drawn.clicks.labels == 1).all()
    assert (drawn.clicks.strokes[:, 0] & masks[start.click_rows, 0]).flatten(1).any(dim=1).all()
    x, y = drawn.clicks.points.long().unbind(-1)
    assert masks[start.click_rows][torch.arange(2)[:, None], 0, y, x].all()
    tight = boxes_of(masks[start.box_rows])
    assert (drawn.boxes.boxes[:, :2] <= tight[:, :2]).all() and (drawn.boxes.boxes[:, 2:] >= tight[:, 2:]).all()

    everyone = drawn.of_all()
    assert everyone.points.shape == (4, 5, 2) and (everyone.labels[start.box_rows] == -1).all()
    assert not everyone.masks[start.click_rows].any() and everyone.masks[start.box_rows].amax(dim=(1, 2, 3)).eq(1).all()
    assert not everyone.strokes[start.box_rows].any() and everyone.strokes.shape == (4, 2, SIDE, SIDE)


def test_a_stroke_corrects_what_is_wrong_and_is_kept() -> None:
    masks = objects(2)
    last = round_of(torch.zeros(2, 1, SIDE // 4, SIDE // 4), torch.zeros_like(masks))
    first = correction_prompts(last, masks, 3, uniform_from(generator()), strokes_seed=5)
    assert first.points.shape == (2, 5, 2) and first.strokes[:, 0].flatten(1).any(dim=1).all()
    again = correction_prompts(last, masks, 3, uniform_from(generator()), first)
    assert again.points.shape == (2, 8, 2) and torch.equal(again.strokes, first.strokes)
    assert torch.equal(again.points[:, :5], first.points) and again.masks.eq(0.5).all()


def test_guesses_are_ranked_by_what_they_are_worth() -> None:
    true = torch.tensor([[0.9, 0.2, 0.5]])
    right, wrong = ranking(torch.tensor([[0.8, 0.1, 0.4]]), true), ranking(torch.tensor([[0.1, 0.8, 0.4]]), true)
    assert right < 0.2 < wrong
    shares = (true[0] / 0.1).softmax(0)
    assert ranking(true, true).item() == pytest.approx(-(shares * shares.log()).sum().item())
    prediction = Prediction(torch.randn(2, 4, 16, 16, generator=generator()), torch.rand(2, 4, generator=generator()))
    logits, masks = F.interpolate(prediction.logits, scale_factor=4), objects(2)
    plain, with_rank = objective(prediction, logits, masks), objective(prediction, logits, masks, rank_weight=0.5)
    assert "rank" not in plain
    torch.testing.assert_close(with_rank["loss"], plain["loss"] + 0.5 * with_rank["rank"])
