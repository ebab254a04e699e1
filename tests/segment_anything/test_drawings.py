"""Scribbles and lassos in the predictor: what the model hears of them, and bad ones."""

import numpy as np
import pytest
import torch

from segment_anything import PromptError, SamPredictor
from segment_anything.build_sam import build_sam
from segment_anything.drawings import clicks_of_scribbles, region_of_lasso
from segment_anything.sizes import SIZES, Size

SIZE = (48, 80)  # height, width


@pytest.fixture(scope="module")
def predictor():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "tiny", Size(channels=32, depth=1, heads=2, global_blocks=(0,)))
        torch.manual_seed(0)
        model = build_sam(model_type="tiny", image_size=64, encoder_adapter=False)
    predictor = SamPredictor(model, zoom="never")
    predictor.set_image(np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8))
    return predictor


def test_a_polyline_is_five_clicks_along_it() -> None:
    points, labels = clicks_of_scribbles([[[10, 20], [60, 20]], [[5, 5]]], [1, 0], SIZE)
    assert points.tolist() == [[15, 20], [25, 20], [35, 20], [45, 20], [55, 20], *([[5, 5]] * 5)]
    assert labels.tolist() == [1] * 5 + [0] * 5


def test_a_mask_of_strokes_is_clicks_spread_over_each_piece() -> None:
    mask = np.zeros(SIZE, np.int8)
    mask[10, 20:61], mask[30:41, 70] = 1, -1
    points, labels = clicks_of_scribbles(mask, None, SIZE)
    assert labels.tolist() == [1] * 5 + [0] * 5
    assert sorted(points[:5, 0].tolist()) == [20, 30, 40, 50, 60] and (points[:5, 1] == 10).all()
    assert (points[5:, 0] == 70).all() and points[5:, 1].min() == 30 and points[5:, 1].max() == 40


def test_the_predictor_hears_drawings_as_their_prompts(predictor) -> None:
    drawn = predictor.predict([[3, 4]], [0], scribbles=[[[10, 20], [60, 20]]], return_logits=True)
    clicks = [[3, 4], *([x, 20] for x in (15, 25, 35, 45, 55))]
    expected = predictor.predict(clicks, [0, 1, 1, 1, 1, 1], return_logits=True)
    np.testing.assert_array_equal(drawn.masks, expected.masks)

    lasso = [[10, 10], [40, 10], [40, 30], [10, 30]]
    region = np.zeros(SIZE, bool)
    region[10:31, 10:41] = True
    drawn = predictor.predict(lasso=lasso, return_logits=True)
    expected = predictor.predict(box=[10, 10, 41, 31], mask_input=predictor.logits_of(region), return_logits=True)
    np.testing.assert_array_equal(drawn.masks, expected.masks)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"scribbles": [[[10, 20], [90, 20]]]}, r"scribble 0: \(90, 20\) lies outside the image of 80 x 48 pixels"),
        (
            {"scribbles": np.ones((10, 10))},
            r"scribbles of shape \(10, 10\); a mask of them has the image's, \(48, 80\)",
        ),
        ({"scribbles": np.zeros(SIZE)}, "nothing is drawn"),
        ({"scribbles": []}, "nothing is drawn"),
        ({"scribbles": [[1, 2, 3]]}, r"scribble 0 of shape \(3,\)"),
        ({"scribbles": [[[1, 2]]], "scribble_labels": [2]}, "must be 1 or 0 for each of 1"),
        ({"scribbles": [[[1, 2]]], "scribble_labels": [1, 1]}, "must be 1 or 0 for each of 1"),
        ({"lasso": [[1, 1], [5, 5]]}, "at least three corners"),
        ({"lasso": []}, "at least three corners"),
        ({"lasso": [[1, 1], [5, 5], [9, 9]]}, "encloses less than a pixel"),
        ({"lasso": [[10, 10], [40, 30], [40, 10], [10, 32]]}, "crosses itself"),
        ({"lasso": [[10, 10], [40, 10], [40, 99]]}, r"lasso: \(40, 99\) lies outside"),
        ({"lasso": [[10, 10], [40, 10], [40, 30]], "box": [1, 2, 3, 4]}, "give one of box and lasso"),
        ({"scribbles": [[[1, 2]]], "box": [[1, 2, 3, 4], [1, 2, 3, 4]]}, "are of one object"),
    ],
)
def test_bad_drawings_end_in_one_line(predictor, given, said) -> None:
    with pytest.raises(PromptError, match=said) as caught:
        predictor.predict(**given)
    assert "\n" not in str(caught.value)


def test_a_closed_lasso_is_one_that_ends_where_it_began() -> None:
    corners = [[10, 10], [40, 10], [40, 30], [10, 30]]
    np.testing.assert_array_equal(region_of_lasso([*corners, corners[0]], SIZE), region_of_lasso(corners, SIZE))
