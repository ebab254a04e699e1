"""prompts.py: boxes and clicks against a plain numpy reading of the same masks."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from sam_med2d.prompts.clicks import (
    boxes_of,
    central_clicks,
    clicks_on,
    corrective_clicks,
    jitter_boxes,
    one_shot_clicks,
    pick_pixels,
    shift_boxes,
)

ALMOST_ONE = float(np.nextafter(np.float32(1), np.float32(0)))  # the largest number that a caller may hand in


def uniform(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed))


def noise(rows: int, side: int, density: float, seed: int = 0) -> Tensor:
    """Masks of many pieces: (rows, 1, side, side) bool."""
    return torch.rand(rows, 1, side, side, generator=torch.Generator().manual_seed(seed)) < density


def pixels(side: int, *places: tuple[int, int]) -> Tensor:
    """One mask of single pixels at (y, x): (1, 1, side, side)."""
    mask = torch.zeros(1, 1, side, side, dtype=torch.bool)
    for y, x in places:
        mask[0, 0, y, x] = True
    return mask


def at(masks: Tensor, points: Tensor) -> Tensor:
    """What masks (N, 1, S, S) hold at points (N, P, 2), which must be whole: (N, P)."""
    assert torch.equal(points, points.round()) and points.min() >= 0 and points.max() < masks.shape[-1]
    x, y = points.long().unbind(-1)
    return masks[torch.arange(len(masks))[:, None], 0, y, x]


# ---------------------------------------------------------------- boxes

MASKS = torch.cat(
    [
        noise(4, 16, 0.05),
        noise(2, 16, 0.5),
        torch.ones(1, 1, 16, 16, dtype=torch.bool),
        pixels(16, (0, 0)),
        pixels(16, (15, 15)),
        pixels(16, (0, 15), (15, 0)),
        pixels(16, (7, 3)),
        pixels(16),
    ]
)


def test_a_box_is_tight_around_all_pieces():
    expected = []
    for mask in MASKS[:, 0].numpy():
        y, x = np.nonzero(mask)
        expected.append([x.min(), y.min(), x.max() + 1, y.max() + 1] if len(x) else [0, 0, 0, 0])
    boxes = boxes_of(MASKS)
    assert boxes.dtype == torch.float32
    assert boxes.tolist() == expected


def test_no_masks_no_boxes():
    assert boxes_of(MASKS[:0]).shape == (0, 4)


@pytest.mark.parametrize("width, height", [(1, 1), (1, 40), (2, 9), (3, 3), (7, 30), (9, 9), (10, 12), (60, 50)])
def test_a_shift_moves_within_its_limits(width, height):
    """Far from the border: the box keeps its size, and every whole shift up to the limit occurs, both ways."""
    box = torch.tensor([[20.0, 25.0, 20 + width, 25 + height]]).expand(600, 4)
    moved = shift_boxes(box, uniform(600, 2), 100) - box
    reach = min(5, min(width, height) // 2)
    assert torch.equal(moved[:, :2], moved[:, 2:])
    for axis in (0, 1):
        assert set(moved[:, axis].tolist()) == set(range(-reach, reach + 1))
    assert reach == 0 or (moved[:, 0] != moved[:, 1]).any()  # x and y are drawn apart


@pytest.mark.parametrize("value, direction", [(0.0, -1), (ALMOST_ONE, 1)])
def test_the_extreme_draws_shift_by_the_limit(value, direction):
    sides = torch.arange(1.0, 30.0)
    boxes = torch.stack([sides * 0 + 30, sides * 0 + 30, 30 + sides, 30 + sides], dim=1)
    moved = shift_boxes(boxes, torch.full((29, 2), value), 100) - boxes
    assert moved[:, 0].tolist() == [direction * min(5, side // 2) for side in range(1, 30)]


def test_a_shifted_box_stays_in_the_frame_and_is_not_empty():
    boxes = boxes_of(MASKS[:-1]).repeat(100, 1)
    moved = shift_boxes(boxes, uniform(len(boxes), 2), 16)
    assert moved.min() == 0 and moved.max() == 16
    assert (moved[:, 2:] > moved[:, :2]).all()


# ---------------------------------------------------------------- picking pixels


def test_every_pixel_of_a_region_is_as_likely_as_any_other():
    region = noise(1, 9, 0.4, seed=3)
    count = int(region.sum())
    points, found = pick_pixels(region, uniform(1, 400 * count))
    assert found.all() and at(region, points).all()
    _, hits = torch.unique(points[0], dim=0, return_counts=True)
    assert len(hits) == count
    chi_square = ((hits - 400) ** 2 / 400).sum()  # mean count - 1, deviation sqrt(2 (count - 1))
    assert chi_square < (count - 1) + 4 * (2 * (count - 1)) ** 0.5


@pytest.mark.parametrize(
    "region",
    [
        torch.ones(1, 1, 512, 512, dtype=torch.bool),
        pixels(512, (0, 0)),
        pixels(512, (511, 511)),
        pixels(512, (0, 511), (511, 0)),
        ~pixels(512, (511, 511), (0, 0)),
        ~pixels(512, (511, 510)),
    ],
    ids=["all", "first", "last", "two", "all but the corners", "all but one"],
)
def test_the_extreme_draws_are_the_first_and_the_last_pixel(region):
    points, found = pick_pixels(region, torch.tensor([[0.0, ALMOST_ONE]]))
    y, x = np.nonzero(region[0, 0].numpy())
    assert found.all()
    assert points[0].tolist() == [[x[0], y[0]], [x[-1], y[-1]]]


def test_the_rows_of_a_batch_do_not_touch_each_other():
    draws = uniform(len(MASKS), 20)
    together, found = pick_pixels(MASKS, draws)
    assert found.tolist() == MASKS.flatten(1).any(1).tolist()
    assert not found.all()
    assert at(MASKS, together)[found].all()
    for i in range(len(MASKS)):
        alone, _ = pick_pixels(MASKS[i : i + 1], draws[i : i + 1])
        assert torch.equal(alone[0], together[i])


# ---------------------------------------------------------------- clicks


def test_first_clicks_are_on_the_object():
    points, labels = clicks_on(MASKS, uniform(len(MASKS), 6))
    there = MASKS.flatten(1).any(1)
    assert labels.dtype == torch.int64 and labels.shape == (len(MASKS), 6)
    assert (labels[there] == 1).all() and at(MASKS, points)[there].all()
    assert (labels[~there] == -1).all()


@pytest.mark.parametrize("error, label", [("missed", 1), ("marked", 0), ("both", None), ("perfect", -1)])
def test_corrections_are_on_wrong_pixels_and_say_what_is_there(error, label):
    truth, other = noise(6, 16, 0.5, seed=1), noise(6, 16, 0.5, seed=2)
    predicted = {"missed": truth & other, "marked": truth | other, "both": other, "perfect": truth}[error]
    points, labels = corrective_clicks(truth, predicted, uniform(6, 30))
    if label is not None:
        assert (labels == label).all()
    if error != "perfect":
        assert at(truth ^ predicted, points).all()
        assert torch.equal(labels, at(truth, points).long())
    if error == "both":
        assert set(labels.flatten().tolist()) == {0, 1}


def test_a_perfect_row_leaves_the_others_their_corrections():
    truth = noise(3, 16, 0.5, seed=1)
    predicted = torch.stack([truth[0], ~truth[1], truth[2]])
    _, labels = corrective_clicks(truth, predicted, uniform(3, 4))
    assert (labels[[0, 2]] == -1).all() and (labels[1] != -1).all()


@pytest.mark.parametrize("clicks", [1, 2, 3, 5, 8])
def test_one_shot_clicks_are_half_on_the_object(clicks):
    masks = torch.cat([noise(5, 16, 0.5), torch.ones(1, 1, 16, 16, dtype=torch.bool), pixels(16)])
    points, labels = one_shot_clicks(masks, uniform(7, clicks))
    inside = max(1, clicks // 2)
    assert points.shape == (7, clicks, 2) and labels.dtype == torch.int64
    assert labels[:5].tolist() == [[1] * inside + [0] * (clicks - inside)] * 5
    assert torch.equal(at(masks[:5], points[:5]), labels[:5] == 1)
    assert labels[5].tolist() == [1] * inside + [-1] * (clicks - inside)  # no background to click on
    assert labels[6].tolist() == [-1] * inside + [0] * (clicks - inside)  # no object to click on


# ---------------------------------------------------------------- jitter


@pytest.mark.parametrize("jitter", [1, 4, 30])
def test_each_side_moves_on_its_own_and_a_pixel_is_left(jitter):
    boxes = torch.tensor([[20.0, 30, 40, 33], [5, 5, 6, 6], [0, 0, 64, 64], [10, 2, 60, 50]]).repeat(500, 1)
    moved = jitter_boxes(boxes, uniform(2000, 4), 64, jitter)
    assert torch.equal(moved, moved.round()) and moved.min() >= 0 and moved.max() <= 64
    assert (moved[:, 2:] - moved[:, :2]).min() >= 1
    difference = (moved - boxes)[3::4]  # a box that is large, and near no middle for a small jitter
    assert difference.abs().max() <= jitter
    if jitter == 4:
        assert {*difference[:, 0].tolist()} == {*range(-4, 5)} and {*difference[:, 1].tolist()} == {*range(-2, 5)}
        assert abs(np.corrcoef(difference.T.numpy()) - np.eye(4)).max() < 0.2


# ---------------------------------------------------------------- the centre of the largest error


def plain_centre(mask: np.ndarray, predicted: np.ndarray) -> tuple[list[float], int]:
    """By other means: scipy's regions and distances."""
    best, label = np.zeros_like(mask), -1
    for error, kind in ((mask & ~predicted, 1), (predicted & ~mask, 0)):
        regions, count = ndimage.label(error, np.ones((3, 3)))
        for number in range(1, count + 1):
            if (regions == number).sum() > best.sum():
                best, label = regions == number, kind
    if label < 0:
        return [0.0, 0.0], -1
    depth = ndimage.distance_transform_edt(np.pad(best, 1))[1:-1, 1:-1]
    y, x = np.argwhere(np.isclose(depth, depth.max()))[0]
    return [float(x), float(y)], label


@pytest.mark.parametrize("density", [0.02, 0.3, 0.6])
def test_central_clicks_against_scipy(density):
    masks, predicted = noise(12, 24, density, seed=1), noise(12, 24, density, seed=2)
    predicted[0], masks[1], predicted[1] = masks[0], True, False  # nothing wrong; all missed
    points, labels = central_clicks(masks, predicted)
    assert points.shape == (12, 1, 2) and labels.shape == (12, 1) and labels.dtype == torch.int64
    for i in range(12):
        assert (points[i, 0].tolist(), int(labels[i, 0])) == plain_centre(masks[i, 0].numpy(), predicted[i, 0].numpy())
    assert {*labels[:, 0].tolist()} == {-1, 0, 1}


def test_a_central_click_is_in_the_larger_region_and_away_from_the_border():
    mask = torch.zeros(1, 1, 32, 32, dtype=torch.bool)
    mask[0, 0, :11, :11] = True  # at the picture's corner: its middle, not the corner
    mask[0, 0, 20:25, 20:25] = True
    points, labels = central_clicks(mask, torch.zeros_like(mask))
    assert (points.tolist(), labels.tolist()) == ([[[5.0, 5.0]]], [[1]])
    points, labels = central_clicks(torch.zeros_like(mask), mask)
    assert (points.tolist(), labels.tolist()) == ([[[5.0, 5.0]]], [[0]])
