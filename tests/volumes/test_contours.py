"""Contours filled: even-odd, with the pixels whose centres lie on a contour."""

import cv2
import numpy as np
import pytest

from sam_med2d.volumes.contours import filled, inside, on_contour


def square(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)], float)


def test_inside_is_the_even_odd_rule_of_every_edge():
    draw = np.random.default_rng(3)
    for _ in range(50):
        polygon = draw.uniform(-5, 35, (draw.integers(3, 12), 2))  # crosses itself and the border
        got = inside(polygon, 28, 30)
        x, y = np.meshgrid(np.arange(30), np.arange(28))
        crossings = np.zeros((28, 30), int)
        for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0)):
            between = (y0 <= y) != (y1 <= y)
            crossings += between & (x0 + (y - y0) * (x1 - x0) / (y1 - y0) <= x)
        assert (got == (crossings % 2 == 1)).all()


@pytest.mark.parametrize("turned", [False, True])
def test_a_contour_through_the_centres_of_border_pixels_keeps_them(turned):
    polygon = square(5, 7, 14, 11)[:: -1 if turned else 1]
    expected = np.zeros((20, 20), bool)
    expected[7:12, 5:15] = True
    assert (filled([polygon], 20, 20) == expected).all()
    assert (filled([polygon + 0.004], 20, 20) == expected).all()  # rounded to hundredths of a millimetre
    assert filled([polygon + 0.2], 20, 20).sum() == 9 * 4  # not on a centre: even-odd alone


def test_masks_come_back_from_their_own_borders():
    """OpenCV's contours run through the centres of border pixels, diagonal steps included."""
    draw = np.random.default_rng(5)
    for _ in range(20):
        mask = cv2.GaussianBlur(draw.random((40, 50)).astype(np.float32), (0, 0), 3) > 0.5
        mask = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
        contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        solid = cv2.drawContours(np.zeros_like(mask), contours, -1, 1, cv2.FILLED)
        got = np.zeros(mask.shape, bool)
        for contour in contours:
            got |= filled([contour[:, 0].astype(float)], *mask.shape)
        assert (got == (solid > 0)).all() and got.any()


def test_a_hole_loses_its_inside_and_keeps_the_pixels_on_its_contour():
    got = filled([square(2, 2, 17, 17), square(6, 6, 11, 11)], 20, 20)
    expected = np.zeros((20, 20), bool)
    expected[2:18, 2:18] = True
    expected[7:11, 7:11] = False
    assert (got == expected).all()


def test_sloping_edges_hold_the_centres_they_run_through():
    rim = on_contour(np.array([(0, 0), (8, 4), (0, 4)], float), 10, 10)
    assert {(x, y) for y, x in np.argwhere(rim)} == {
        *((2 * y, y) for y in range(5)),
        *((x, 4) for x in range(9)),
        *((0, y) for y in range(5)),
    }


def test_contours_beyond_the_picture_are_cut_off():
    assert filled([square(-50, -50, 500, 500)], 6, 8).all()
    assert not filled([square(-50, -50, -10, 500)], 6, 8).any() and not filled([square(0, 9, 7, 20)], 6, 8).any()
