"""Strokes and lassos: what is drawn lies where it should, is a function of the draw, and becomes maps and clicks."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from sam_med2d.prompts.annotators import SimulatedAnnotator, with_drawings
from sam_med2d.prompts.clicks import draw_boxes, human_clicks, largest_error
from sam_med2d.prompts.modes import mode_name, parse_mode, parse_modes
from sam_med2d.prompts.strokes import (
    Drawing,
    Stroke,
    clicks_along,
    corrective_scribble,
    drawn,
    lasso,
    scribble,
)
from sam_med2d.regions import depth_of
from segment_anything import ABSENT, BACKGROUND, FOREGROUND, Prompts
from segment_anything.drawings import enclosed

SIDE = 96


def disc(x: int, y: int, r: int) -> np.ndarray:
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return (rows - y) ** 2 + (columns - x) ** 2 <= r * r


def ring() -> np.ndarray:
    return disc(48, 48, 40) & ~disc(48, 48, 30)


def thin() -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[40, 10:80] = True
    return mask


def dot() -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[95, 0] = True
    return mask


# ---------------------------------------------------------------- strokes as data


def test_a_stroke_is_drawn_with_its_width_and_the_later_wins() -> None:
    on = Stroke((np.array([[10, 20], [30, 20]], np.float32),), FOREGROUND, 1)
    off = Stroke((np.array([[20, 10], [20, 30]], np.float32),), BACKGROUND, 3)
    ink = drawn([on], SIDE)
    assert ink[0].sum() == 21 and ink[0, 20, 10:31].all() and not ink[1].any()
    both = drawn([on, off], SIDE)
    assert both[1, 10:31, 19:22].all() and not (both[0] & both[1]).any()
    assert not drawn([Stroke()], SIDE).any()


def test_clicks_lie_along_a_stroke_and_skip_its_gaps() -> None:
    stroke = Stroke((np.array([[0, 5], [10, 5]], np.float32), np.array([[50, 5], [60, 5]], np.float32)), FOREGROUND)
    points, labels = clicks_along(stroke, 4)  # 20 pixels in all
    assert points[:, 0].tolist() == [2, 7, 52, 57]
    assert (points[:, 1] == 5).all() and (labels == FOREGROUND).all()
    assert (clicks_along(Stroke(), 3)[1] == ABSENT).all()


@pytest.mark.parametrize("region", [lambda: disc(40, 50, 25), ring, thin, dot], ids=["disc", "ring", "thin", "dot"])
def test_scribbles_stay_on_their_region(region: Callable[[], np.ndarray]) -> None:
    mask, lengths = region(), []
    for seed in range(30):
        stroke = scribble(mask, FOREGROUND, np.random.default_rng(seed))
        points = np.rint(np.concatenate(stroke.lines)).astype(int)
        assert mask[points[:, 1], points[:, 0]].all()
        clicked = clicks_along(stroke)[0].astype(int)
        assert mask[clicked[:, 1], clicked[:, 0]].all()
        ink = drawn([stroke], SIDE)[0]
        lengths.append(ink.sum())
        assert (ink & mask).sum() >= 0.9 * ink.sum()
    assert len(set(lengths)) > 5 or mask.sum() < 5  # of several kinds, widths and lengths
    again = scribble(mask, FOREGROUND, np.random.default_rng(3))
    other = scribble(mask, FOREGROUND, np.random.default_rng(3))
    np.testing.assert_array_equal(drawn([again], SIDE), drawn([other], SIDE))


def test_a_corrective_scribble_goes_through_the_largest_error() -> None:
    truth, predicted = disc(30, 30, 20), disc(30, 30, 20) | disc(75, 75, 12)
    predicted[28:32, 28:32] = False
    region, label = largest_error(truth, predicted)
    assert label == BACKGROUND and (region == disc(75, 75, 12)).all()
    stroke = corrective_scribble(truth, predicted, np.random.default_rng(0))
    x, y = np.rint(np.concatenate(stroke.lines)).astype(int).T
    assert stroke.label == BACKGROUND and region[y, x].all()
    assert corrective_scribble(truth, truth, np.random.default_rng(0)) == Stroke()


def test_a_lasso_encloses_its_object_but_for_a_little() -> None:
    for mask in (disc(40, 50, 20), ring(), disc(5, 90, 20), thin()):
        for seed in range(5):
            outline = lasso(mask, np.random.default_rng(seed))
            inside = enclosed(outline, (SIDE, SIDE))
            assert (outline >= 0).all() and (outline <= SIDE - 1).all()
            assert (inside & mask).sum() > 0.97 * mask.sum() and inside.sum() > mask.sum()
            assert inside.sum() < 3 * (np.ptp(np.nonzero(mask)[0]) + 9) * (np.ptp(np.nonzero(mask)[1]) + 9)


# ---------------------------------------------------------------- people


def test_people_click_near_the_middle_and_not_on_it() -> None:
    truth = torch.from_numpy(disc(40, 50, 20))[None, None]
    depth = depth_of(truth[0, 0].numpy())
    points = [
        human_clicks(truth, torch.zeros_like(truth), torch.tensor([[u]]))[0][0, 0].int().tolist()
        for u in np.linspace(0, 0.999, 50)
    ]
    assert all(depth[y, x] >= depth.max() / 2 for x, y in points)
    assert np.ptp([x for x, _ in points]) > 10 and np.ptp([y for _, y in points]) > 10
    assert (human_clicks(truth, truth, torch.tensor([[0.5]]))[1] == ABSENT).all()


def test_drawn_boxes_err_in_proportion_to_the_box() -> None:
    boxes = torch.tensor([[20.0, 30.0, 60.0, 40.0]])
    assert draw_boxes(boxes, torch.full((1, 4), 0.5), SIDE).tolist() == boxes.tolist()  # the median errs by nothing
    one_deviation = draw_boxes(boxes, torch.full((1, 4), 0.8413447), SIDE)
    assert one_deviation.tolist() == [[24.0, 31.0, 64.0, 41.0]]
    far = draw_boxes(boxes, torch.tensor([[1.0, 0.0, 0.0, 1.0]]), SIDE)[0]
    assert (far[2:] > far[:2]).all() and far[0] == 39 and far[2] == 41 and far[3] == 45 and far[1] == 25


# ---------------------------------------------------------------- what models hear


def test_a_stroke_is_heard_as_clicks_and_as_a_map() -> None:
    first = Drawing(Stroke((np.array([[10.0, 20.0], [30.0, 20.0]], np.float32),), FOREGROUND, 1))
    second = Drawing(Stroke((np.array([[20.0, 10.0], [20.0, 30.0]], np.float32),), BACKGROUND, 1))
    prompts = with_drawings(Prompts(), [first], SIDE, torch.device("cpu"))
    assert prompts.points.shape == (1, 5, 2) and (prompts.labels == FOREGROUND).all()
    assert prompts.strokes.shape == (1, 2, SIDE, SIDE) and prompts.strokes[0, 0, 20, 10:31].all()
    prompts = with_drawings(prompts, [second], SIDE, torch.device("cpu"))
    assert prompts.labels.tolist() == [[1] * 5 + [0] * 5]
    assert prompts.strokes[0, 1, 10:31, 20].all() and not prompts.strokes[0, 0, 20, 20]
    outline = np.array([[10, 10], [40, 10], [40, 30], [10, 30]], np.float32)
    round_it = with_drawings(Prompts(), [Drawing(lasso=outline)], SIDE, torch.device("cpu"))
    assert round_it.boxes.tolist() == [[10, 10, 41, 31]] and round_it.points is None
    assert round_it.masks.shape == (1, 1, SIDE // 4, SIDE // 4) and round_it.masks[0, 0, 4, 5] == 1


def test_what_is_drawn_depends_on_the_object_and_the_place_alone() -> None:
    masks = torch.from_numpy(np.stack([disc(40, 50, 20), ring()]))[:, None]
    empty = torch.zeros_like(masks)
    for name in ("scribble", "lasso", "bbox+scribble"):
        mode = parse_mode(name)
        both = SimulatedAnnotator(3).draw(mode, 0, masks, empty, ["x/a.png", "b.png"])
        alone = SimulatedAnnotator(3).draw(mode, 0, masks[1:], empty[1:], ["b.png"])
        for one, other in zip(both[1:], alone):
            assert str(one) == str(other)
        assert str(SimulatedAnnotator(4).draw(mode, 0, masks[1:], empty[1:], ["b.png"])) != str(alone)


# ---------------------------------------------------------------- names


def test_ranges_stand_for_their_modes() -> None:
    assert [mode.name for mode in parse_modes(["1..3pts", "3pts", "mask"])] == ["1pt", "2pts", "3pts", "mask"]
    assert [mode.name for mode in parse_modes(["bbox+0..2pts"])] == ["bbox", "bbox+1pt", "bbox+2pts"]
    assert [mode.name for mode in parse_modes(["1..2scribbles@best"])] == ["scribble@best", "2scribbles@best"]
    assert mode_name("1..20pts") == "1..20pts" and mode_name("3pt@best") == "3pts@best"
    for name in ("3..1pts", "0..3pts", "1..999pts", "1..3shot"):
        with pytest.raises(ValueError, match="prompt mode"):
            parse_modes([name])


@pytest.mark.parametrize(
    ("name", "sequence"),
    [
        ("scribble", "scribbles"),
        ("3scribbles", "scribbles"),
        ("bbox+scribble", "bbox+scribbles"),
        ("bbox_drawn+2scribbles", "bbox_drawn+scribbles"),
        ("bbox_drawn+2pts", "bbox_drawn"),
        ("lasso", "lasso"),
        ("5pts@best", "clicks"),
        ("bbox@swapped", "bbox"),
    ],
)
def test_names_of_drawn_modes(name: str, sequence: str) -> None:
    mode = parse_mode(name)
    assert (mode.name, mode.sequence) == (name, sequence)


def test_other_names_are_refused() -> None:
    for name in ("scribble@", "bbox@worst", "lasso+1pt", "bbox_drawn_jitter5", "0scribbles"):
        with pytest.raises(ValueError, match="unknown prompt mode"):
            parse_mode(name)
