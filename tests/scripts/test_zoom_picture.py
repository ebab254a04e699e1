"""The sheet of slices from which docs/images/zoom.png is drawn."""

import importlib.util

import numpy as np

from sam_med2d.data.index import read_index
from sam_med2d.data.reading import read_image, read_mask
from tests.conftest import ROOT


def test_slices_and_masks_lie_where_the_sheet_has_them() -> None:
    spec = importlib.util.spec_from_file_location("zoom_picture", ROOT / "scripts/zoom_picture.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sheet, masks = module.film()
    assert sheet.shape == (960, 1440, 3) and set(masks) == set(module.SHOWN)
    index = read_index(ROOT / "data_demo", "test")
    name, mask_names = index[0]
    image = read_image(index.path(name))
    height, width = image.shape[:2]
    there = np.s_[(240 - height) // 2 :, (240 - width) // 2 :]
    assert np.array_equal(sheet[there][:height, :width], image)
    (own,) = (one for one in mask_names if "left_white_matter" in one)
    truth = read_mask(index.path(own), (height, width))
    assert np.array_equal(masks["left_white_matter"][there][:height, :width], truth)
    assert all(0 < mask.sum() < 0.02 * mask.size for mask in masks.values())
