"""ISAT: its own SegAny on the file of the target isat. Strict where ISAT is not: every tensor has to arrive."""

import numpy as np
import torch

from sam_med2d.export.job import Job
from sam_med2d.export.weight_targets import write_isat
from segment_anything import sam_model_registry
from tests.segment_anything.test_model import randomise
from tests_clients.conftest import answers, mean_dice, without_torchvision

without_torchvision()


def test_it_shows_the_predictors_masks(organs, tmp_path) -> None:
    from ISAT.segment_any.segment_any import SegAny

    model = randomise(sam_model_registry["vit_b"](image_size=256, encoder_adapter=True)).requires_grad_(False)
    write_isat(Job(model, tmp_path, "mine", []))
    tool = SegAny(str(tmp_path / "mine_med2d.pth"), use_bfloat16=False)
    assert tool.model_source == "sam_med2d"
    theirs = tool.predictor.model.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(theirs[name], tensor), name
    chosen, boxes, clicks, last = organs[::6], [], [], None
    for organ in chosen:
        if organ.image is not last:
            tool.set_image(last := organ.image)
        boxes.append(np.asarray(tool.predict_with_box_prompt(organ.box)[0]) > 0)
        clicks.append(np.asarray(tool.predict_with_point_prompt([organ.click], [1])[0]) > 0)
    assert mean_dice(answers(model, chosen, "click", "paper"), clicks) >= 0.99
    assert mean_dice(answers(model, chosen, "box", "paper", multimask=False), boxes) >= 0.99
