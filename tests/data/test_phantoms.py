"""Tests of the phantom generator."""

import numpy as np
import pytest

from sam_med2d.data import phantoms


def test_same_seed_same_phantoms():
    first, second = np.random.default_rng(7), np.random.default_rng(7)
    for _ in range(10):
        for a, b in zip(phantoms.phantom(first, 64), phantoms.phantom(second, 64), strict=True):
            np.testing.assert_array_equal(a, b)


def test_other_seed_other_phantom():
    a, _ = phantoms.phantom(np.random.default_rng(0), 64)
    b, _ = phantoms.phantom(np.random.default_rng(1), 64)
    assert (a != b).any()


@pytest.mark.parametrize("objects", [1, 4, 9])
def test_number_of_objects(objects):
    _, masks = phantoms.phantom(np.random.default_rng(3), 64, objects)
    assert masks.shape == (objects, 64, 64)


@pytest.mark.parametrize("size", [64, 128])
def test_images_and_masks(size):
    rng = np.random.default_rng(size)
    areas, pieces, spread = [], [], []
    for _ in range(100):
        image, masks = phantoms.phantom(rng, size)
        assert image.shape == (size, size, 3) and image.dtype == np.uint8
        assert masks.shape == (4, size, size) and masks.dtype == bool
        assert (image == image[..., :1]).all()
        areas.append(masks.mean(axis=(1, 2)))
        pieces += [phantoms.main_piece(m) for m in masks]
        spread.append(image.std())
    areas = np.array(areas)
    assert areas.min() >= phantoms.MIN_AREA and areas.max() <= phantoms.MAX_AREA
    assert areas.min() < 0.03 and areas.max() > 0.3
    assert min(pieces) >= phantoms.MIN_MAIN_PIECE_PAIR
    assert np.median(pieces) > 0.95
    assert min(spread) > 2.0  # grey levels: no image is flat


def test_intermediate_images_are_finite():
    rng = np.random.default_rng(5)
    for cells in (3, 8, 32):
        field = phantoms.smooth_field(rng, 64, cells, 2)
        assert field.shape == (64, 64, 2) and np.isfinite(field).all()
        assert 0.5 < field.std() < 1.6
    for _ in range(20):
        assert np.isfinite(phantoms.warp_map(rng, 64)).all()


def test_depth_is_the_distance_to_the_outside():
    mask = np.zeros((64, 64), bool)
    mask[16:48, 16:48] = True
    inside = phantoms.depth(mask)
    assert (inside[~mask] == 0).all()
    assert inside.max() == pytest.approx(16 / 64, rel=0.05)
    assert phantoms.depth(np.ones((64, 64), bool))[0, 0] > 0  # the border of the image is outside


def test_subtree_table():
    scene = phantoms.Scene(np.random.default_rng(0), 64, 0.0)
    head = scene.region(0)
    brain = scene.region(head)
    ventricle = scene.region(brain)
    other = scene.region(0)
    inside = scene.inside()
    assert set(np.flatnonzero(inside[head])) == {head, brain, ventricle}
    assert set(np.flatnonzero(inside[other])) == {other}
