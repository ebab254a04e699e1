"""napari-segment-anything: its widget's loading of a model and its clicks, without a window, on our package."""

from types import SimpleNamespace

import numpy as np
from napari_segment_anything import utils
from napari_segment_anything._widget import SAMWidget

from segment_anything import SamPredictor
from tests_clients.conftest import mean_dice


def test_it_loads_and_shows_the_predictors_masks(plain_sam, organs, tmp_path, monkeypatch) -> None:
    """The file lies where the widget keeps what it downloads; what it reads of a viewer's layers stands in for them."""
    organ = organs[0]
    x0, y0, x1, y1 = organ.box
    monkeypatch.setenv("HOME", str(tmp_path))
    place = tmp_path / ".cache/napari-segment-anything" / utils.SAM_WEIGHTS_URL["vit_b"].rpartition("/")[2]
    place.parent.mkdir(parents=True)
    place.symlink_to(plain_sam)
    picture = SimpleNamespace(ndim=2, rgb=True, data=organ.image)
    blank = np.zeros((1, 1), int)
    widget = SimpleNamespace(
        _device="cpu",
        _im_layer_widget=SimpleNamespace(value=picture),
        _mask_layer=SimpleNamespace(data=blank),
        _labels_layer=SimpleNamespace(data=blank),
        _pts_layer=SimpleNamespace(data=organ.click[None, ::-1].astype(float), face_color=np.array([[0, 0, 1, 1.0]])),
        _boxes_layer=SimpleNamespace(data=[np.array([[y0, x0], [y0, x1], [y1, x1], [y1, x0]], float)]),
        _confirm_mask_btn=SimpleNamespace(enabled=False),
        _cancel_annot_btn=SimpleNamespace(enabled=False),
        _logits=None,
    )
    widget._load_image = lambda layer: SAMWidget._load_image(widget, layer)
    SAMWidget._load_model(widget, "vit_b")
    assert widget._predictor.is_image_set and widget._mask_layer.data.shape == organ.image.shape[:2]
    predictor = SamPredictor(widget._sam)
    predictor.set_image(organ.image)
    SAMWidget._on_interactive_run(widget)
    ours = predictor.predict([organ.click], [1], organ.box, multimask_output=False).masks[0]
    assert ours.any() and mean_dice([ours], [widget._mask_layer.data > 0]) == 1.0
