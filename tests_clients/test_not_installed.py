"""Tools that no registry has, or that need what no machine here has: what they call, by shapes and names.

MedSAM             no package; its inference script calls the parts of the model one by one
QuPath's samapi    no package of that name can be had; its protocol is tested in tests/serve/test_pictures.py
CVAT               its browser plug-in and its nuclio functions run inside of CVAT, on Docker
Label Studio       a site of Django's, which asks a backend; label-studio-ml 1.0.9, which answers, pins Flask and
                   Jinja2 of 2022, beside which nothing else here installs
OHIF               a page of JavaScript; what it asks of MONAI Label is tested in tests/serve/test_monai_label.py
MONAI Label        its server imports DICOMweb, Girder and ITK clients, and a torchvision; its client is tested
                   in test_monai_label_client.py
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from segment_anything import SamPredictor, sam_model_registry
from segment_anything.frames import SAM
from tests.segment_anything.test_model import randomise


@torch.no_grad()
def test_medsams_inference_calls_the_parts_one_by_one() -> None:
    """A picture stretched to the frame and scaled to 0..1, boxes (B, 1, 4), one mask, and its probability above 0.5."""
    model = randomise(sam_model_registry["vit_t"](image_size=64, encoder_adapter=False, frame=SAM)).eval()
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    embedding = model.image_encoder(image)
    assert embedding.shape == (1, 256, 4, 4)
    box = torch.tensor([[10.0, 12, 50, 40]])
    if len(box.shape) == 2:
        box = box[:, None, :]
    sparse, dense = model.prompt_encoder(points=None, boxes=box, masks=None)
    assert sparse.shape == (1, 2, 256) and dense.shape == (1, 256, 4, 4)
    logits, scores = model.mask_decoder(
        image_embeddings=embedding,
        image_pe=model.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=False,
    )
    assert logits.shape == (1, 1, 16, 16) and scores.shape == (1, 1)
    mask = F.interpolate(torch.sigmoid(logits), size=(90, 120), mode="bilinear", align_corners=False)
    assert (mask.squeeze().numpy() > 0.5).astype(np.uint8).shape == (90, 120)
    predictor = SamPredictor(model)
    predictor.set_embedding(embedding, (64, 64))
    expected = predictor.predict(box=[10, 12, 50, 40], multimask_output=False).low_res
    assert expected == pytest.approx(logits[0].numpy(), abs=1e-4)
