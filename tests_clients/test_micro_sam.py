"""micro-sam: its loading, its embeddings and its prompts, on our package and the file of the target sam-pth."""

import numpy as np

from segment_anything import SamPredictor, sam_model_registry
from tests_clients.conftest import mean_dice, without_torchvision

without_torchvision()


def test_it_shows_the_predictors_masks(plain_sam, organs) -> None:
    from micro_sam.prompt_based_segmentation import segment_from_box, segment_from_points
    from micro_sam.util import get_sam_model, precompute_image_embeddings

    organ = organs[0]
    tool = get_sam_model("vit_b", device="cpu", checkpoint_path=str(plain_sam))
    embeddings = precompute_image_embeddings(tool, organ.image, ndim=2, verbose=False)
    x0, y0, x1, y1 = organ.box
    box = segment_from_box(tool, np.array([y0, x0, y1, x1]), image_embeddings=embeddings)
    click = segment_from_points(
        tool, organ.click[None, ::-1], np.array([1]), image_embeddings=embeddings, use_best_multimask=False
    )

    predictor = SamPredictor(sam_model_registry["vit_b"](plain_sam))
    predictor.set_image(organ.image)
    ours = [
        predictor.predict(box=organ.box, multimask_output=False).masks[0],
        predictor.predict([organ.click], [1], multimask_output=False).masks[0],
    ]
    assert all(mask.any() for mask in ours)
    assert min(mean_dice(ours[:1], [box[0] > 0]), mean_dice(ours[1:], [click[0] > 0])) >= 0.99
