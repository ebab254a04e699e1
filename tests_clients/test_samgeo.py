"""samgeo: its SamGeo with prompts, on our package and the file of the target sam-pth."""

import numpy as np

from segment_anything import SamPredictor
from tests_clients.conftest import mean_dice


def test_it_shows_the_predictors_masks(plain_sam, organs) -> None:
    from samgeo.samgeo import SamGeo

    organ = organs[0]
    tool = SamGeo(model_type="vit_b", automatic=False, device="cpu", checkpoint=str(plain_sam))
    tool.set_image(organ.image)
    predictor = SamPredictor(tool.sam)
    predictor.set_image(organ.image)
    for theirs, ours in (
        (tool.predict(boxes=organ.box.astype(float).tolist(), return_results=True), predictor.predict(box=organ.box)),
        (
            tool.predict(point_coords=[organ.click.tolist()], point_labels=1, return_results=True),
            predictor.predict([organ.click], [1]),
        ),
    ):
        masks = np.reshape(theirs[0], (-1, *organ.image.shape[:2]))
        assert all(mask.any() for mask in ours.masks)
        assert mean_dice([*ours.masks], [mask > 0 for mask in masks]) >= 0.99
