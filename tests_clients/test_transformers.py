"""Hugging Face's SamModel and SamProcessor on the folder of the target transformers."""

import torch
from transformers import SamModel, SamProcessor

from sam_med2d.export.job import Job
from sam_med2d.export.weight_targets import write_transformers
from segment_anything import SamPredictor
from segment_anything.frames import SAM
from tests_clients.conftest import mean_dice


def test_it_shows_the_predictors_masks(general, organs, tmp_path) -> None:
    """Of the same weights in SAM's frame, which is the one that its processor knows."""
    write_transformers(Job(general, tmp_path, "mine", []))
    model, processor = SamModel.from_pretrained(tmp_path), SamProcessor.from_pretrained(tmp_path)
    ours, theirs, frame = [], [], general.frame
    general.frame = SAM
    try:
        predictor = SamPredictor(general)
        for organ in organs[::4]:
            predictor.set_image(organ.image)
            answer = predictor.predict(box=organ.box)
            ours.append(answer.masks[answer.iou.argmax()])
            inputs = processor(organ.image, input_boxes=[[organ.box.tolist()]], return_tensors="pt")
            with torch.no_grad():
                found = model(**inputs)
            masks = processor.post_process_masks(
                found.pred_masks, inputs["original_sizes"], inputs["reshaped_input_sizes"]
            )[0][0]
            theirs.append(masks[found.iou_scores[0, 0].argmax()].numpy() > 0)
    finally:
        general.frame = frame
    assert mean_dice(ours, theirs) >= 0.985
