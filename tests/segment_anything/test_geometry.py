"""The way into the frame and back: what was seen at a place comes back to it."""

import cv2
import numpy as np
import pytest
import torch

from sam_med2d.evaluation.metrics import dice
from segment_anything.geometry import Stretch, back, source_places

SIDES = [33, 64, 96, 128, 130, 150, 192, 193, 300, 512, 700]
FRAME = 128


def ellipse(height: int, width: int) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    cv2.ellipse(mask, (int(0.45 * width), int(0.55 * height)), (int(0.3 * width), int(0.2 * height)), 20, 0, 360, 1, -1)
    return mask.astype(bool)


def perfect(mask: np.ndarray, frame: int = FRAME) -> torch.Tensor:
    """Logits of a model that says of every frame pixel what is there."""
    seen = cv2.resize(mask.astype(np.uint8), (frame, frame), interpolation=cv2.INTER_NEAREST)
    return torch.from_numpy(seen)[None, None].float() * 20 - 10


@pytest.mark.parametrize("side", SIDES)
def test_places_are_opencvs(side: int) -> None:
    numbers = np.arange(side, dtype=np.float32)
    seen = cv2.resize(np.tile(numbers[:, None], (1, 3)), (3, FRAME), interpolation=cv2.INTER_NEAREST)[:, 0]
    assert source_places(side, FRAME).tolist() == seen.tolist()


@pytest.mark.parametrize("size", [(192, 192), (512, 512), (96, 300), (200, 128), (700, 512)])
def test_a_perfect_answer_comes_back_without_a_shift(size: tuple[int, int]) -> None:
    """Against the mapping of the paper, which moves everything by (s - 1) / 2 pixels."""
    mask = ellipse(*size)
    found = back(perfect(mask), size)[0, 0] > 0
    assert dice(found, torch.from_numpy(mask), from_logits=False) >= (0.99 if max(size) <= 300 else 0.975)
    centre = np.argwhere(found.numpy()).mean(axis=0) - np.argwhere(mask).mean(axis=0)
    shift = [(side / FRAME - 1) / 2 for side in size]
    assert (np.abs(centre) <= np.maximum(0.25 * np.abs(shift), 0.25)).all()
    if size == (512, 512):
        old = back(perfect(mask), size, paper=True)[0, 0] > 0
        assert np.argwhere(old.numpy()).mean(axis=0) - np.argwhere(mask).mean(axis=0) == pytest.approx(shift, abs=0.2)


def test_what_the_frame_shows_comes_back_exactly() -> None:
    """At the source pixels that the frame shows, the logit is the frame's own."""
    logits = torch.randn(2, 1, FRAME, FRAME, generator=torch.Generator().manual_seed(0))
    found = back(logits, (300, 512))
    rows, columns = source_places(300, FRAME), source_places(512, FRAME)
    assert torch.allclose(found[..., rows, :][..., columns], logits)


@pytest.mark.parametrize("side", SIDES)
def test_points_and_edges_go_there_and_back(side: int) -> None:
    axis = Stretch(side, FRAME)
    shown = np.unique(axis.places)
    there = axis.points_to_frame(shown)
    assert axis.points_to_source(there) == pytest.approx(shown, abs=0.51)
    assert axis.places[np.rint(there).astype(int)].tolist() == shown.tolist()
    if side >= FRAME:
        assert axis.points_to_source(there).tolist() == shown.tolist()
    edges = np.arange(FRAME + 1)
    if side >= FRAME:  # every frame edge has source edges of its own
        assert axis.edges_to_frame(axis.edges_to_source(edges)).tolist() == edges.tolist()
    assert (axis.edges_to_frame(0), axis.edges_to_frame(side)) == (0, FRAME)


@pytest.mark.parametrize("side", SIDES)
def test_a_box_covers_in_the_frame_what_it_covers_in_the_picture(side: int) -> None:
    axis = Stretch(side, FRAME)
    for start, stop in [(0, side), (3, 20), (side // 2, side // 2 + 9), (side - 7, side)]:
        first, end = axis.edges_to_frame([start, stop])
        inside = (axis.places >= start) & (axis.places < stop)
        assert np.flatnonzero(inside).tolist() == list(range(int(first), int(end)))


def test_a_box_between_the_pixels_that_are_shown_keeps_its_width() -> None:
    """Of 512 pixels the frame shows each fourth: nothing of 5 to 7, but much of 5 to 9."""
    axis = Stretch(512, FRAME)
    (first, hidden), (end, last) = axis.spans_to_frame(np.array([5, 5]), np.array([9, 7]))
    assert (first, end) == (2, 3) and axis.places[2] == 8
    assert last - hidden == pytest.approx(2 / 4) and (hidden + last) / 2 == pytest.approx(5.5 / 4 + 0.5)


def test_the_papers_mapping_is_torchs() -> None:
    logits = torch.randn(1, 2, 32, 32)
    expected = torch.nn.functional.interpolate(logits, size=(50, 70), mode="bilinear", align_corners=False)
    assert torch.equal(back(logits, (50, 70), paper=True), expected)
    axis = Stretch(64, 32, paper=True)
    assert (axis.points_to_frame(10), axis.points_to_source(5), axis.edges_to_frame(64)) == (5, 10, 32)
