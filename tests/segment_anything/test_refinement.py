"""The refinement network: its maps, that a new one adds nothing, what is ranked, and weights with and without it."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from segment_anything import Prediction, Prompts, Sam, SamPredictor, Seen, answer, best_of, look, low_resolution, ranked
from segment_anything.build_sam import build_sam
from segment_anything.checkpoint import BEHAVIOUR, load_checkpoint, save_weights
from segment_anything.modeling import refinement
from segment_anything.modeling.refinement import CLICK_SIGMA, SETTLING, SURE, box_maps, gaussians, marks_of, pixels_of
from segment_anything.sizes import SIZES, Size

SIDE = 64
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def tiny() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "tiny", Size(channels=32, depth=1, heads=2, global_blocks=(0,)))
        yield


def build(refine: bool, seed: int = 0) -> Sam:
    torch.manual_seed(seed)
    return build_sam(model_type="tiny", image_size=SIDE, encoder_adapter=False, refine=refine)


def trained(model: Sam) -> Sam:
    """As if it had learned: its last layer is no longer zero."""
    assert model.refinement is not None
    torch.nn.init.normal_(model.refinement.write.weight, std=0.5, generator=torch.Generator().manual_seed(1))
    return model


def pictures(count: int = 1) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)


# ---------------------------------------------------------------- maps


def test_clicks_are_gaussians_of_the_frame() -> None:
    points = torch.tensor([[[10.0, 20.0], [40.0, 30.0], [5.0, 5.0]]])
    wanted = torch.tensor([[True, True, False]])
    whole = gaussians(points, wanted, CLICK_SIGMA, SIDE, 1)
    assert whole.shape == (1, SIDE, SIDE)
    assert whole[0, 20, 10] == 1 and whole[0, 30, 40] == 1
    assert whole[0, 20, 13].item() == pytest.approx(math.exp(-0.5))
    assert whole[0, 5, 5] < 1e-6  # the one that does not count
    half = gaussians(points, wanted, CLICK_SIGMA, SIDE, 2)  # of cell 5 the middle lies at pixel 10.5
    assert half[0, 10, 5].item() == pytest.approx(math.exp(-2 * 0.5**2 / (2 * CLICK_SIGMA**2)))


def test_no_clicks_are_zeros() -> None:
    assert not gaussians(torch.zeros(2, 0, 2), torch.zeros(2, 0, dtype=torch.bool), 3.0, SIDE, 2).any()


def test_a_box_covers_its_cells() -> None:
    boxes = box_maps(torch.tensor([[2.0, 4.0, 7.0, 6.0], [0.0, 0.0, 0.0, 0.0]]), SIDE, 2)
    assert boxes[0, 2, 1:4].tolist() == [1, 1, 0.5]
    assert boxes[0].sum() == 2.5 and not boxes[1].any()


def test_marks_say_who_is_sure() -> None:
    strokes = torch.zeros(1, 2, SIDE, SIDE, dtype=torch.bool)
    strokes[0, 1, 50, 10:20] = True
    points, labels = torch.tensor([[[10.0, 20.0], [30.0, 40.0], [0.0, 0.0]]]), torch.tensor([[1, 0, -1]])
    marks = marks_of(SIDE, 1, CPU, points, labels, None, strokes)
    assert marks.sure[0, 0].nonzero().tolist() == [[20, 10]]
    assert marks.sure[0, 1].nonzero().tolist() == [[40, 30], *([50, x] for x in range(10, 20))]
    assert marks.maps[0, 1, 25, 5:10].eq(1).all()  # drawn on the background, at half the size
    assert marks.maps[0, 4].eq(0).all()  # no box


# ---------------------------------------------------------------- what is answered


def test_a_new_one_adds_nothing() -> None:
    model = build(refine=True)
    plain = build(refine=False, seed=5)
    plain.load_state_dict({n: t for n, t in model.state_dict().items() if not n.startswith("refinement.")})
    prompts = Prompts(torch.tensor([[[20.0, 20.0]]]), torch.tensor([[-1]]), torch.tensor([[8.0, 8.0, 40.0, 40.0]]))
    with torch.no_grad():
        with_it = answer(model, look(model, pictures()), prompts, True)
        without = answer(plain, look(plain, pictures()), prompts, True)
    assert with_it.logits.shape == (1, 3, SIDE, SIDE)
    torch.testing.assert_close(with_it.logits, plain.upscale(without.logits))
    torch.testing.assert_close(with_it.iou, without.iou)


def test_without_details_the_decoder_answers() -> None:
    model = trained(build(refine=True))
    prompts = Prompts(boxes=torch.tensor([[8.0, 8.0, 40.0, 40.0]]))
    with torch.no_grad():
        seen = look(model, pictures())
        alone = answer(model, Seen(seen.embeddings), prompts, True, best=True)
        expected = best_of(model.predict(seen.embeddings, prompts, True))
    torch.testing.assert_close(alone, expected)


def test_a_clicked_pixel_is_what_the_click_says() -> None:
    model = trained(build(refine=True))
    points = torch.tensor([[[20.0, 20.0], [50.0, 9.0], [20.0, 60.0]]])
    for labels in ([[1, 0, 1]], [[0, 1, 0]]):
        prompts = Prompts(points, torch.tensor(labels))
        with torch.no_grad():
            logits = answer(model, look(model, pictures()), prompts, True).logits
        for (x, y), label in zip(points[0].int().tolist(), labels[0]):
            assert ((logits[0, :, y, x] >= SURE) if label else (logits[0, :, y, x] <= -SURE)).all()


def test_objects_do_not_see_one_another() -> None:
    model = trained(build(refine=True))
    prompts = Prompts(torch.tensor([[[20.0, 20.0]], [[50.0, 9.0]]]), torch.tensor([[1], [0]]))
    with torch.no_grad():
        seen = look(model, pictures(2))
        both = answer(model, seen, prompts, True, best=True)
        for row in range(2):
            index = torch.tensor([row])
            alone = answer(model, seen.rows(index), prompts.rows(index), True, best=True)
            torch.testing.assert_close(both.logits[index], alone.logits, atol=1e-4, rtol=1e-4)


def test_an_answer_that_denies_clicks_is_not_chosen() -> None:
    logits = torch.full((1, 2, 16, 16), -4.0)
    logits[0, 1, 4:8, 4:8] = 4.0
    prediction = Prediction(logits, torch.tensor([[0.9, 0.7]]))
    sigmoid = 1 / (1 + math.exp(-4))
    found = ranked(prediction, Prompts(torch.tensor([[[18.0, 18.0], [60.0, 60.0]]]), torch.tensor([[1, 0]])))
    expected = [0.9 * (1 - sigmoid + sigmoid) / 2, 0.7 * sigmoid]
    assert found.iou[0].tolist() == pytest.approx(expected)
    assert best_of(found).iou.item() == pytest.approx(expected[1])
    absent = Prompts(torch.zeros(1, 1, 2), torch.full((1, 1), -1))
    torch.testing.assert_close(ranked(prediction, absent).iou, prediction.iou)
    assert ranked(prediction, Prompts(boxes=torch.zeros(1, 4))) is prediction


def test_an_unsure_answer_is_not_chosen_and_how_sure_it_is_of_a_click_does_not_count() -> None:
    logits = torch.full((1, 3, 16, 16), -4.0)
    logits[0, 0, :8, :8] = 4.0
    logits[0, 1, :8, :8], logits[0, 1, 8:, :8] = 1.5, 0.5  # half of what it may be is sure
    logits[0, 2, 8:, 8:] = 4.0  # denies the click
    prediction = Prediction(logits, torch.tensor([[0.8, 0.9, 0.9]]))
    prompts = Prompts(torch.tensor([[[18.0, 18.0]]]), torch.tensor([[1]]))
    denied = 2 / (1 + math.exp(4))
    assert ranked(prediction, prompts, torch.ones(1)).iou[0].tolist() == pytest.approx([0.8, 0.45, 0.9 * denied])
    torch.testing.assert_close(ranked(prediction, prompts, torch.zeros(1)), ranked(prediction, prompts))
    assert ranked(prediction, Prompts(boxes=torch.zeros(1, 4)), torch.ones(1)) is prediction
    more = Prompts(torch.tensor([[[18.0, 18.0], [60.0, 60.0]]]), torch.tensor([[1, 0]]))
    torch.testing.assert_close(ranked(prediction, more, torch.ones(1)), ranked(prediction, more))
    padded = Prompts(more.points, torch.tensor([[1, -1]]))  # an absent point is no click
    torch.testing.assert_close(ranked(prediction, padded, torch.ones(1)), ranked(prediction, prompts, torch.ones(1)))


def test_a_file_of_before_goes_on_choosing_as_it_did_and_does_not_settle(tmp_path: Path) -> None:
    model = trained(build(refine=True))
    model.refinement.settling.fill_(SETTLING)
    state = model.state_dict()
    assert state["refinement.choosing"].tolist() == [1]  # that of new ones, kept with the weights
    save_weights(state, tmp_path / "new.safetensors")
    old = {name: tensor for name, tensor in state.items() if name not in BEHAVIOUR}
    save_weights(old, tmp_path / "old.safetensors")
    seen, prompts = look(model, pictures()), Prompts(torch.tensor([[[20.0, 20.0]]]), torch.tensor([[1]]))
    with torch.no_grad():
        raw = model.predict(seen.embeddings, prompts, True)
        for name, choosing in (("new", 1), ("old", 0)):
            other = build(refine=True, seed=3)
            load_checkpoint(other, tmp_path / f"{name}.safetensors")
            assert other.refinement.choosing.tolist() == [choosing]
            assert other.refinement.settling.tolist() == [SETTLING if choosing else 0]
            expected = ranked(raw, prompts, torch.ones(1) if choosing else None)
            torch.testing.assert_close(answer(other, seen, prompts, True).iou, expected.iou)


def after(clicks: int, **more: torch.Tensor) -> Prompts:
    """Of an object with so many clicks, the newest at (8, 8)."""
    places = torch.tensor([[[40.0, 40.0], [50.0, 20.0], [20.0, 50.0], [44.0, 60.0], [8.0, 8.0]]])[:, -clicks:]
    return Prompts(places, torch.ones(1, clicks, dtype=torch.long), **more)


def test_far_from_the_newest_click_of_many() -> None:
    corners = torch.tensor([[1, 0, 1, 1, -1, 2, 3]])  # the fourth is the newest: what follows is no click
    points = torch.tensor([[[40.0, 40.0], [50.0, 9.0], [20.0, 60.0], [8.0, 8.0], [0.0, 0.0], [2.0, 2.0], [60.0, 60.0]]])
    far = marks_of(SIDE, 1, CPU, points, corners, None, None).far
    assert far.shape == (1, 1, SIDE // 4, SIDE // 4)
    assert far[0, 0, 1, 1] < 0.1 and far[0, 0, 15, 15] > 0.999  # pixels 4 to 7, and 60 to 63
    assert far[0, 0, 1, 3].item() == pytest.approx(1 - math.exp(-(2.5**2 + 5.5**2) / (2 * (SIDE / 8) ** 2)), abs=1e-6)
    three = torch.tensor([[1, 0, 1, -1, -1, 2, 3]])
    assert not marks_of(SIDE, 1, CPU, points, three, None, None).far.any()
    assert marks_of(SIDE, 1, CPU, points[:, :3], three[:, :3], None, None).far is None
    assert marks_of(SIDE, 1, CPU, None, None, points[:, :2].flatten(1), None).far is None
    drawn = torch.zeros(2, 2, SIDE, SIDE, dtype=torch.bool)
    drawn[1, 0, 30, 30] = True
    both = marks_of(SIDE, 2, CPU, points.expand(2, -1, -1), corners.expand(2, -1), None, drawn).far
    torch.testing.assert_close(both[:1], far)
    assert not both[1].any()  # whether the stroke or the click is newer is not known


def test_late_clicks_leave_what_is_far_half_way_to_what_it_was() -> None:
    model, mask, before = trained(build(refine=True)), torch.full((1, 1, 16, 16), 0.9), math.log(0.9 / 0.1)
    seen = look(model, pictures())

    @torch.no_grad()
    def answers(share: float, clicks: int, **more: torch.Tensor) -> torch.Tensor:
        model.refinement.settling.fill_(share)
        return answer(model.eval(), seen, after(clicks, **more), True, best=True).logits

    for clicks in (4, 5):
        plain, settled = answers(0, clicks, masks=mask), answers(SETTLING, clicks, masks=mask)
        far, near = (..., slice(48, 60), slice(24, 40)), (..., slice(4, 12), slice(4, 12))  # no other click is there
        was, now = (low_resolution(logits, SIDE)[..., 12:15, 6:10] - before for logits in (plain, settled))
        assert (now.abs().mean() / was.abs().mean()).item() == pytest.approx(SETTLING, abs=0.05)
        assert (settled - plain)[near].abs().max() < 0.2 * (settled - plain)[far].abs().max()
        for x, y in after(clicks).points[0].int().tolist():
            assert settled[0, 0, y, x] >= SURE
    torch.testing.assert_close(answers(SETTLING, 3, masks=mask), answers(0, 3, masks=mask), rtol=0, atol=0)  # not yet
    torch.testing.assert_close(answers(SETTLING, 4), answers(0, 4), rtol=0, atol=0)  # nothing was before
    none = torch.zeros(1, 1, 16, 16)
    torch.testing.assert_close(answers(SETTLING, 4, masks=none), answers(0, 4, masks=none), rtol=0, atol=0)
    model.refinement.settling.fill_(SETTLING)
    with torch.no_grad():
        learning = answer(model.train(), seen, after(4, masks=mask), True, best=True)
    torch.testing.assert_close(learning.logits, answers(0, 4, masks=mask))  # it learns to answer by itself


def test_answers_settle_once_a_network_learned() -> None:
    model = build(refine=True)
    assert model.refinement is not None
    assert model.refinement.settling.tolist() == [0]  # a new one adds nothing
    model.train_for("decoder")
    assert (model.refinement.choosing.tolist(), model.refinement.settling.tolist()) == ([1], [SETTLING])


def test_what_is_fed_back_are_means() -> None:
    whole = torch.arange(SIDE * SIDE, dtype=torch.float32).reshape(1, 1, SIDE, SIDE)
    small = low_resolution(whole, SIDE)
    assert small.shape == (1, 1, 16, 16) and small[0, 0, 0, 0] == whole[0, 0, :4, :4].mean()
    assert low_resolution(small, SIDE) is small


def test_the_predictor_refines_and_feeds_back() -> None:
    model = trained(build(refine=True))
    image = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    predictor = SamPredictor(model)
    predictor.set_image(image)
    logits, iou, low_res = predictor.predict([[30, 20]], [1], return_logits=True)
    assert logits.shape == (3, 48, 80) and low_res.shape == (3, 16, 16)
    assert (logits[:, 20, 30] > 0).all()
    again = predictor.predict([[30, 20], [60, 40]], [1, 0], mask_input=low_res[iou.argmax()]).masks
    other = SamPredictor(model)
    other.set_embedding(predictor.seen(), image.shape[:2])  # what a cache of slices does
    np.testing.assert_array_equal(
        other.predict([[30, 20], [60, 40]], [1, 0], mask_input=low_res[iou.argmax()]).masks, again
    )
    other.set_embedding(predictor.get_image_embedding(), image.shape[:2])  # what other tools do
    with torch.no_grad():
        frame = torch.from_numpy(predictor.apply_coords(np.array([[[30, 20]]])))
        raw = model.predict(predictor.get_image_embedding(), Prompts(frame, torch.tensor([[1]])), True)
    np.testing.assert_allclose(other.predict([[30, 20]], [1]).low_res, raw.logits[0].numpy(), atol=1e-5)


def test_the_best_alone_is_what_the_best_of_all_is() -> None:
    model = trained(build(refine=True))
    asked: list[int] = []
    refine = model.refinement.forward
    model.refinement.forward = lambda *given: (asked.append(len(given[1])), refine(*given))[1]
    image = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    predictor = SamPredictor(model, zoom="never")
    predictor.set_image(image)
    for more in ({}, {"multimask_output": False}, {"box": [[5, 5, 40, 40], [30, 10, 70, 40]]}):
        given = dict(more) if "box" in more else {"point_coords": [[30, 20]], "point_labels": [1], **more}
        every = predictor.predict(**given, return_logits=True)
        asked.clear()
        alone = predictor.predict(**given, return_logits=True, best=True)
        assert len(asked) == 1
        place = every.iou.argmax(axis=-1)[..., None]
        np.testing.assert_array_equal(alone.iou, np.take_along_axis(every.iou, place, -1))
        for got, want in ((alone.masks, every.masks), (alone.low_res, every.low_res)):
            np.testing.assert_allclose(got, np.take_along_axis(want, place[..., None, None], -3), atol=1e-5)


def test_clicked_pixels_are_those_nearest_to_the_clicks() -> None:
    points = torch.tensor([[[10.4, 20.6], [63.0, 0.0], [63.6, 5.0], [30.0, 30.0]]])
    found = pixels_of(points, torch.tensor([[True, True, True, False]]), SIDE)
    assert found.nonzero().tolist() == [[0, 0, 63], [0, 21, 10]]  # the third rounds to a pixel beyond the frame
    assert not pixels_of(torch.zeros(2, 0, 2), torch.zeros(2, 0, dtype=torch.bool), SIDE).any()


# ---------------------------------------------------------------- weights


def test_weights_with_it_fill_a_model_without_and_the_other_way_round(tmp_path: Path) -> None:
    full, plain = trained(build(refine=True)), build(refine=False, seed=7)
    save_weights(full.state_dict(), tmp_path / "full.safetensors")
    report = load_checkpoint(plain, tmp_path / "full.safetensors")
    assert str(report).splitlines()[0].endswith("64 px, no adapters, a refinement network)")
    assert "left out: the refinement network" in str(report)
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(tensor, full.state_dict()[name])

    save_weights(plain.state_dict(), tmp_path / "plain.safetensors")
    other = build(refine=True, seed=9)
    before = {name: tensor.clone() for name, tensor in other.refinement.state_dict().items()}
    report = load_checkpoint(other, tmp_path / "plain.safetensors")
    assert "newly started: the refinement network (no-op)" in str(report) and "left out: none" in str(report)
    for name, tensor in other.refinement.state_dict().items():
        torch.testing.assert_close(tensor, before[name])

    again = build(refine=True, seed=11)
    assert load_checkpoint(again, tmp_path / "full.safetensors").new == []
    torch.testing.assert_close(again.state_dict(), full.state_dict())


def test_the_layout_in_memory_changes_rounding_alone(monkeypatch) -> None:
    """On a CPU a pixel's channels lie side by side; the layers as they are defined, map by map, say the same."""
    side, rows = 64, 3
    net = refinement.Refinement()
    torch.nn.init.normal_(net.write.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    draw = torch.Generator().manual_seed(1)
    images, logits = (torch.randn(*shape, generator=draw) for shape in ((rows, 3, side, side), (rows, 1, 16, 16)))
    points, labels = torch.rand(rows, 2, 2, generator=draw) * side, torch.tensor([[1, 0]] * rows)
    marks = refinement.marks_of(side, rows, images.device, points, labels, None, None)

    def answer() -> tuple[torch.Tensor, torch.Tensor]:
        net.zero_grad()
        logits_of_all = net(net.look(images), logits, None, marks)
        logits_of_all.square().mean().backward()
        return logits_of_all.detach(), net.look_at[1].weight.grad.clone()

    found = answer()
    monkeypatch.setattr(refinement, "_by_pixels", lambda x: x)
    for ours, defined in zip(found, answer()):
        torch.testing.assert_close(ours, defined, rtol=1e-4, atol=1e-5)
        assert defined.abs().max() > 1e-3
