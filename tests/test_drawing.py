"""The painter: tiles, overlays and grids of any shape, and every mark at the pixels it means."""

import cv2
import numpy as np
import pytest
import torch

from sam_med2d.data.batch import Batch
from sam_med2d.data.geometry import to_original_frame
from sam_med2d.data.index import Index
from sam_med2d.drawing import (
    CAPTION_HEIGHT,
    CLICK,
    COLOURS,
    LEGEND_ROW,
    NOT_KNOWN,
    OPACITY,
    SIGN,
    TRUTH,
    class_colours,
    colour_of,
    draw_prompt,
    grid,
    overlay,
    tile,
    tile_of_masks,
    with_close_views,
    with_legend,
)
from sam_med2d.evaluation.evaluate import Scored
from sam_med2d.evaluation.gallery import tiles_of
from sam_med2d.prompts.modes import parse_mode
from segment_anything import ObjectPrompt, Prompts

SIDE = 256
NO_PROMPTS = Prompts()


def black(height: int, width: int) -> np.ndarray:
    return np.zeros((height, width, 3), np.uint8)


def nothing(height: int, width: int) -> torch.Tensor:
    return torch.zeros(height, width, dtype=torch.bool)


def draw(
    height: int, width: int, prompts: Prompts = NO_PROMPTS, row: int = 0, predicted=None, truth=None
) -> np.ndarray:
    """The tile of a black picture without its caption: (SIDE, SIDE, 3)."""
    predicted, truth = (nothing(height, width) if mask is None else mask for mask in (predicted, truth))
    return tile(black(height, width), predicted, truth, prompts, row, "", SIDE)[CAPTION_HEIGHT:]


def places(picture: np.ndarray, colour: tuple[int, int, int]) -> set[tuple[int, int]]:
    """(y, x) of the pixels of exactly this colour."""
    return set(zip(*(axis.tolist() for axis in np.nonzero((picture == colour).all(axis=2)))))


def outline(x0: int, y0: int, x1: int, y1: int) -> set[tuple[int, int]]:
    """The border pixels of a half-open box."""
    return {(y, x) for y in range(y0, y1) for x in range(x0, x1) if y in (y0, y1 - 1) or x in (x0, x1 - 1)}


# ---------------------------------------------------------------- tiles


@pytest.mark.parametrize("height, width", [(1, 1), (2, 1), (1, 5000), (5000, 1), (3, 700), (50, 80), (900, 700)])
@pytest.mark.parametrize("side", [SIDE, 100])
def test_a_tile_has_its_size_whatever_the_picture(height, width, side):
    everything = ~nothing(height, width)
    prompts = Prompts(
        torch.tensor([[[0.0, 0.0], [width - 1.0, height - 1.0]]]),
        torch.tensor([[1, 0]]),
        torch.tensor([[0.0, 0.0, width, height]]),
    )
    drawn = tile(black(height, width), everything, everything, prompts, 0, "a long caption " * 20, side)
    assert drawn.shape == (side + CAPTION_HEIGHT, side, 3) and drawn.dtype == np.uint8
    assert drawn[CAPTION_HEIGHT:].any() and drawn[:CAPTION_HEIGHT].any()


def test_the_picture_is_centred_and_fills_one_direction():
    image = np.full((32, 64, 3), 200, np.uint8)
    drawn = tile(image, nothing(32, 64), nothing(32, 64), NO_PROMPTS, 0, "", SIDE)[CAPTION_HEIGHT:]
    assert (drawn[64:192] == 200).all()
    assert not drawn[:64].any() and not drawn[192:].any()


def test_predictions_are_tinted_and_outlined_and_truths_outlined():
    mask = nothing(64, 64)
    mask[8:24, 16:40] = True
    filled = draw(64, 64, predicted=mask)
    border = outline(64, 32, 160, 96)
    inside = {(y, x) for y in range(32, 96) for x in range(64, 160)}
    assert places(filled, COLOURS[0]) == border
    assert places(filled, tuple(round(OPACITY * c) for c in COLOURS[0])) == inside - border
    assert set(zip(*filled.any(axis=2).nonzero())) == inside
    assert places(draw(64, 64, truth=mask), TRUTH) == border


def test_a_hole_is_outlined_and_not_tinted():
    mask = nothing(SIDE, SIDE)
    mask[40:200, 40:200] = True
    mask[100:140, 90:150] = False
    filled = draw(SIDE, SIDE, predicted=mask)
    corners = {(y, x) for y in (99, 140) for x in (89, 150)}
    assert not filled[100:140, 90:150].any()
    assert places(filled, COLOURS[0]) == outline(40, 40, 200, 200) | (outline(89, 99, 151, 141) - corners)


def test_a_truth_lies_above_the_prediction_and_darkens_what_is_beside_it():
    mask = ~nothing(SIDE, SIDE)
    square = nothing(SIDE, SIDE)
    square[100:150, 100:150] = True
    white = np.full((SIDE, SIDE, 3), 255, np.uint8)
    drawn = tile(white, mask, square, NO_PROMPTS, 0, "", SIDE)[CAPTION_HEIGHT:]
    assert places(drawn, TRUTH) == outline(100, 100, 150, 150)
    for y in (99, 101):
        assert (drawn[y, 120] < 0.5 * drawn[y - 20 if y < 100 else y + 20, 120]).all()


def test_a_picture_shows_through_and_is_not_changed():
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    kept = image.copy()
    drawn = tile(image, ~nothing(64, 64), ~nothing(64, 64), Prompts(boxes=torch.tensor([[0.0, 0, 64, 64]])), 0, "x", 64)
    assert np.array_equal(image, kept)
    assert len(np.unique(drawn[CAPTION_HEIGHT + 5 : -5, 5:-5].reshape(-1, 3), axis=0)) > 1000


# ---------------------------------------------------------------- prompts


@pytest.mark.parametrize(
    "height, width, top, left, scale",
    [(64, 64, 0, 0, 4), (32, 64, 64, 0, 4), (64, 16, 0, 96, 4), (512, 512, 0, 0, 0.5)],
)
def test_a_box_is_drawn_on_the_pixels_it_holds(height, width, top, left, scale):
    box = [2, 10, 14, 30]
    x0, y0, x1, y1 = (int(v * scale) for v in box)
    drawn = draw(height, width, Prompts(boxes=torch.tensor([box]).float()))
    assert places(drawn, COLOURS[0]) == outline(left + x0, top + y0, left + x1, top + y1)


@pytest.mark.parametrize("label", [1, 0])
@pytest.mark.parametrize("x, y", [(32, 32), (50, 5), (9, 60)])
def test_a_click_is_a_disc_in_the_middle_of_its_pixel_with_its_sign(x, y, label):
    drawn = draw(64, 64, Prompts(torch.tensor([[[x, y]]]).float(), torch.tensor([[label]])))
    on, (row, column) = label == 1, (4 * y + 2, 4 * x + 2)
    disc = np.array(sorted(places(drawn, CLICK[on])))
    assert not places(drawn, CLICK[not on])
    assert disc.mean(axis=0) == pytest.approx([row, column], abs=0.5)
    assert np.ptp(disc, axis=0).tolist() == [6, 6]
    across = {(row, x) for x in range(column - 2, column + 3)}
    down = {(y, column) for y in range(row - 2, row + 3)}
    near = drawn[row - 2 : row + 3, column - 2 : column + 3]
    signs = {(y + row - 2, x + column - 2) for y, x in places(near, SIGN[on])}
    assert signs == (across | down if on else across)


@pytest.mark.parametrize("ground", [0, 255])
def test_a_click_has_a_dark_rim_on_any_ground(ground):
    picture = np.full((SIDE, SIDE, 3), ground, np.uint8)
    draw_prompt(picture, ObjectPrompt(np.array([[100, 100]]), np.array([0])), COLOURS[0])
    assert (picture[104, 100] < 60).all() and (picture[100, 96] < 60).all()
    assert (picture[110, 100] == ground).all()


@pytest.mark.parametrize("side, radius, width", [(256, 3, 1), (512, 5, 1), (2000, 20, 4)])
def test_marks_grow_with_the_picture(side, radius, width):
    picture = np.zeros((side, side, 3), np.uint8)
    middle = side // 2
    prompt = ObjectPrompt(np.array([[middle, middle]]), np.array([0]), np.array([20, 20, side - 20, side - 20]))
    draw_prompt(picture, prompt, COLOURS[3])
    assert (picture[middle, :middle] == COLOURS[3]).all(axis=1).sum() == pytest.approx(width, abs=1)
    disc = np.array([*places(picture, CLICK[False]), *places(picture, SIGN[False])])
    assert np.ptp(disc, axis=0).tolist() == [2 * radius, 2 * radius]


def test_absent_points_and_other_objects_are_not_drawn():
    points = torch.tensor([[[10.0, 10], [40, 40], [20, 50]], [[60, 60], [5, 30], [33, 7]], [[1, 1], [2, 2], [3, 3]]])
    labels = torch.tensor([[1, -1, 0], [0, 1, -1], [-1, -1, -1]])
    boxes = torch.tensor([[4.0, 4, 9, 9], [20, 20, 40, 60], [0, 0, 64, 64]])
    for row, present in ((0, [0, 2]), (1, [0, 1])):
        alone = draw(
            64, 64, Prompts(points[row : row + 1, present], labels[row : row + 1, present], boxes[row : row + 1])
        )
        assert np.array_equal(draw(64, 64, Prompts(points, labels, boxes), row=row), alone)
        assert places(alone, CLICK[True]) and places(alone, CLICK[False])
    assert not draw(64, 64, Prompts(points, labels), row=2).any()


# ---------------------------------------------------------------- several objects


def test_an_overlay_draws_each_object_and_its_box_in_a_colour_of_its_own():
    masks = [nothing(SIDE, SIDE).numpy() for _ in range(2)]
    masks[0][20:60, 20:60] = masks[1][100:180, 120:200] = True
    prompts = [ObjectPrompt(), ObjectPrompt(box=np.array([110, 90, 210, 190]))]
    drawn = overlay(black(SIDE, SIDE), masks, prompts)
    assert drawn.shape == (2 * SIDE, 2 * SIDE, 3)
    assert places(drawn, COLOURS[0]) == outline(40, 40, 120, 120)
    assert places(drawn, COLOURS[1]) == outline(240, 200, 400, 360) | outline(220, 180, 420, 380)
    assert not places(drawn, TRUTH)


def test_a_tile_of_masks_colours_them_in_order_and_names_them():
    masks = [nothing(SIDE, SIDE).numpy() for _ in range(12)]
    for number, mask in enumerate(masks):
        mask[100:110, 20 * number + 5 : 20 * number + 15] = True
    drawn = tile_of_masks(black(SIDE, SIDE), masks, "")
    for number in range(12):
        found = places(drawn[CAPTION_HEIGHT:], colour_of(number))
        assert found == outline(20 * number + 5, 100, 20 * number + 15, 110)
    named = tile_of_masks(black(SIDE, SIDE), masks[:1], "", names=["liver"])
    assert len(places(named, COLOURS[0])) > len(places(tile_of_masks(black(SIDE, SIDE), masks[:1], ""), COLOURS[0]))


def test_no_two_of_many_objects_have_one_colour():
    assert len({colour_of(number) for number in range(60)}) == 60
    assert {TRUTH, *CLICK.values()}.isdisjoint(colour_of(number) for number in range(255))


# ---------------------------------------------------------------- grids


@pytest.mark.parametrize("count, columns", [(1, 6), (3, 6), (6, 6), (7, 6), (5, 2), (4, 1)])
def test_a_grid_is_filled_row_by_row(count, columns):
    tiles = [np.full((5, 4, 3), 1 + i, np.uint8) for i in range(count)]
    drawn = grid(tiles, columns)
    across = min(columns, count)
    down = -(-count // across)
    assert drawn.shape == (5 * down, 4 * across, 3)
    cells = [drawn[5 * y : 5 * y + 5, 4 * x : 4 * x + 4] for y in range(down) for x in range(across)]
    assert [np.unique(cell).tolist() for cell in cells] == [[1 + i] for i in range(count)] + [[0]] * (
        down * across - count
    )
    assert len(tiles) == count


def test_the_tiles_of_an_image_are_drawn_on_the_original(tmp_path):
    """Prompts come in the 64 x 64 frame; the picture has 32 x 128 pixels."""
    image = np.random.default_rng(0).integers(0, 256, (32, 128, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "image.png"), image)
    names = ["a/one.png", "a/two.png"]
    index = Index(str(tmp_path), "index", {"image.png": names})
    batch = Batch(
        images=torch.zeros(1, 3, 64, 64, dtype=torch.uint8),
        content=torch.tensor([[0, 0, 64, 64]]),
        masks=torch.zeros(2, 1, 64, 64, dtype=torch.bool),
        image_index=torch.tensor([0, 0]),
        image_names=["image.png"],
        mask_names=names,
        original_sizes=[(32, 128)],
        original_masks=[torch.zeros(2, 32, 128, dtype=torch.bool)],
        skipped=[],
    )
    masks = torch.rand(2, 32, 128, generator=torch.Generator().manual_seed(0)) < 0.5
    prompts = Prompts(boxes=torch.tensor([[4.0, 8, 20, 40], [0, 0, 64, 64]]))
    scored = Scored(parse_mode("bbox"), 0, names, masks, ~masks, prompts, {"dice": [0.5, 0.5]}, [0.4, 0.4], None)
    tiles = tiles_of(batch, scored, index)
    for i, drawn in enumerate(tiles):
        there = to_original_frame(prompts, [0, 0, 64, 64], (32, 128))
        assert there.boxes.tolist() == [[8, 4, 40, 20], [0, 0, 128, 32]]
        expected = tile(image, masks[i], ~masks[i], there, i, "")
        assert np.array_equal(drawn[CAPTION_HEIGHT:], expected[CAPTION_HEIGHT:])
    assert len(tiles) == 2 and not np.array_equal(tiles[0][:CAPTION_HEIGHT], tiles[1][:CAPTION_HEIGHT])


# ---------------------------------------------------------------- classes, and objects that are small in their picture


def square_in(side: int, x: int, y: int, width: int) -> np.ndarray:
    mask = np.zeros((side, side), bool)
    mask[y : y + width, x : x + width] = True
    return mask


def test_a_small_object_of_a_large_picture_fills_its_tile_and_the_corner_says_where_it_lies():
    """16 pixels in 1024 would be 4 of a tile of 256; the crop of 64 is shown at 4 times its size."""
    mask = torch.from_numpy(square_in(1024, 900, 100, 16))
    prompts = Prompts(torch.tensor([[[908.0, 108]]]), torch.tensor([[1]]), torch.tensor([[900.0, 100, 916, 116]]))
    drawn = tile(black(1024, 1024), mask, torch.zeros_like(mask), Prompts(), 0, "", SIDE)[CAPTION_HEIGHT:]
    assert places(drawn, COLOURS[0]) == outline(96, 96, 160, 160)
    with_prompts = tile(black(1024, 1024), mask, torch.zeros_like(mask), prompts, 0, "", SIDE)[CAPTION_HEIGHT:]
    assert np.array(sorted(places(with_prompts, CLICK[True]))).mean(axis=0) == pytest.approx([130, 130], abs=0.5)
    corner = drawn[-96:, -96:]  # the object is in the middle of its crop: every corner is as far
    rows, columns = np.nonzero((corner[1:-1, 1:-1] == 255).all(axis=2))
    scale = 96 / 1024
    assert [columns.min() + 1, rows.min() + 1] == pytest.approx([876 * scale, 76 * scale], abs=1)
    assert [columns.max() + 2, rows.max() + 2] == pytest.approx([940 * scale, 140 * scale], abs=1)


@pytest.mark.parametrize("side, width, whole", [(256, 10, True), (1024, 16, False), (1024, 171, True)])
def test_only_what_a_tile_would_shrink_to_little_is_shown_closer(side, width, whole):
    mask = torch.from_numpy(square_in(side, 30, 30, width))
    drawn = tile(black(side, side), mask, mask, Prompts(), 0, "", SIDE)[CAPTION_HEIGHT:]
    assert whole == (not (drawn == 255).all(axis=2).any())


def test_a_wrong_answer_far_away_is_not_cut_off():
    truth, predicted = (torch.from_numpy(square_in(1024, at, at, 16)) for at in (100, 900))
    drawn = tile(black(1024, 1024), predicted, truth, Prompts(), 0, "", SIDE)[CAPTION_HEIGHT:]
    assert places(drawn, COLOURS[0]) == outline(225, 225, 229, 229) and places(drawn, TRUTH)


def test_a_sheet_shows_the_smallest_object_in_a_corner():
    masks = [square_in(1024, 500, 500, 300), square_in(1024, 40, 40, 16)]
    drawn = tile_of_masks(black(1024, 1024), masks, "")[CAPTION_HEIGHT:]
    assert places(drawn[:160, :160], colour_of(1)) >= outline(10, 10, 14, 14)
    assert places(drawn[160:, 160:], colour_of(1)) == outline(36, 36, 60, 60)  # 16 of 64 pixels, drawn on 96
    alone = tile_of_masks(black(1024, 1024), masks[:1], "")[CAPTION_HEIGHT:]
    assert not (alone == 255).all(axis=2).any()


def test_a_caption_keeps_the_end_of_a_name():
    def caption(text: str) -> bytes:
        return tile_of_masks(black(8, 8), [], text)[:CAPTION_HEIGHT].tobytes()

    long = "case_" * 20
    assert caption(long + "017") != caption(long + "018")
    assert caption("a" + long + "017") == caption("b" + long + "017")


def test_a_class_has_one_colour_and_the_legend_names_it():
    colours = class_colours(["liver", "", "spleen", "liver"])
    assert colours == {"liver": colour_of(0), "spleen": colour_of(1), "": NOT_KNOWN}
    assert class_colours(["", ""]) == {}
    picture = np.full((50, 300, 3), 77, np.uint8)
    drawn = with_legend(picture, colours)
    assert drawn.shape == (50 + LEGEND_ROW, 300, 3) and (drawn[:50] == 77).all()
    assert [len(places(drawn, colour)) for colour in colours.values()] == [144, 144, 144]  # 12 x 12 pixels each
    many = with_legend(picture, class_colours(f"class number {i}" for i in range(9)))
    assert many.shape[0] == 50 + 5 * LEGEND_ROW  # two a row
    assert all(len(places(many, colour_of(i))) == 144 for i in range(9))
    assert with_legend(picture, {}) is not None and with_legend(picture, {}).shape == picture.shape
    narrow = with_legend(picture[:, :100], {"a name that is longer than the picture is wide": COLOURS[0]})
    assert narrow.shape == (50 + LEGEND_ROW, 100, 3)


def test_small_objects_of_an_overlay_are_shown_below_it_the_smallest_first():
    image = np.zeros((1024, 1024, 3), np.uint8)
    masks = [square_in(1024, 300, 300, 32), square_in(1024, 100, 100, 400), square_in(1024, 800, 800, 16)]
    colours = [colour_of(i) for i in range(3)]
    picture = overlay(image, masks)
    drawn = with_close_views(picture, image, masks, [ObjectPrompt()] * 3, ["a", "b", "c"], colours)
    assert drawn.shape == (1024 + CAPTION_HEIGHT + 256, 1024, 3) and np.array_equal(drawn[:1024], picture)
    views = drawn[1024 + CAPTION_HEIGHT :]
    for number, columns in ((2, slice(0, 256)), (0, slice(256, 512))):
        assert places(views[:, columns], colours[number]) == outline(96, 96, 160, 160)
    assert not views[:, 512:].any()
    large = with_close_views(picture, image, masks[1:2], [ObjectPrompt()], ["b"], colours)
    assert large.shape == picture.shape
