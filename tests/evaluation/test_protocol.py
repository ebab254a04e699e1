"""The original's protocol, read plainly, against evaluation.py: the same weights and prompts file, Dice mask for mask.

With `protocol="paper"`, whose way back to the image's own size is the original's. On the original's own
test slices with ViT-B, adapters and the stand-in weights. What is expected is computed here by
other means: PIL reads, numpy resizes and scores, and the three parts of the model are called one after the other.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from sam_med2d.data.datasets import TestingDataset, test_loader
from sam_med2d.evaluation.evaluate import evaluate
from sam_med2d.prompts.files import FrozenPrompts
from sam_med2d.prompts.modes import parse_mode
from segment_anything import Sam, sam_model_registry
from tests.segment_anything.test_model import stand_in  # noqa: F401

SIZE = 256
MODES = ["bbox", "1pt", "3pts", "4shot"]


def is_padded(array: np.ndarray) -> bool:
    return max(array.shape[:2]) < SIZE


def framed(array: np.ndarray) -> np.ndarray:
    """(H, W, ...) -> (SIZE, SIZE, ...): zeros around what is smaller, else the nearest pixel."""
    height, width = array.shape[:2]
    if is_padded(array):
        top, left = (SIZE - height) // 2, (SIZE - width) // 2
        return np.pad(array, ((top, SIZE - height - top), (left, SIZE - width - left), *[(0, 0)] * (array.ndim - 2)))
    return array[np.arange(SIZE) * height // SIZE][:, np.arange(SIZE) * width // SIZE]


def read(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


def prompts_of(mask: np.ndarray, draw: np.random.Generator) -> dict[str, list]:
    """As the original writes them: a box, and four clicks in the 256 x 256 frame."""
    y, x = np.nonzero(mask)
    inside, outside = np.argwhere(mask), np.argwhere(~mask)
    clicks = [*inside[draw.integers(len(inside), size=2)], *outside[draw.integers(len(outside), size=2)]]
    return {
        "boxes": [[int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1]],
        "point_coords": [[int(x), int(y)] for y, x in clicks],
        "point_labels": [1, 1, 0, 0],
    }


@torch.no_grad()
def plain_dice(model: Sam, image: np.ndarray, truth: np.ndarray, prompts: dict[str, list], mode: str) -> float:
    """One mask by itself, its image encoded for it alone, as the original does."""
    if image.ndim == 2:
        image = np.stack([image] * 3, axis=-1)
    # BGR, with SAM's figures in SAM's order
    pixels = (image[..., 2::-1] - np.float32([123.675, 116.28, 103.53])) / np.float32([58.395, 57.12, 57.375])
    embedding = model.image_encoder(torch.from_numpy(framed(pixels).transpose(2, 0, 1)[None].copy()))
    points = torch.tensor([prompts["point_coords"]], dtype=torch.float32)
    labels = torch.tensor([prompts["point_labels"]])

    def ask(points=None, boxes=None, masks=None) -> torch.Tensor:
        sparse, dense = model.prompt_encoder(points=points, boxes=boxes, masks=masks)
        logits, iou = model.mask_decoder(
            image_embeddings=embedding,
            image_pe=model.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=True,
        )
        return logits[:, [int(iou[0].argmax())]]

    if mode == "bbox":
        logits = ask(boxes=torch.tensor(prompts["boxes"], dtype=torch.float32))
    elif mode == "4shot":
        logits = ask((points, labels))
    else:
        logits = None
        for count in range(1, parse_mode(mode).clicks + 1):
            logits = ask(
                (points[:, :count], labels[:, :count]), masks=None if logits is None else torch.sigmoid(logits)
            )
    full = F.interpolate(logits, (SIZE, SIZE), mode="bilinear", align_corners=False)
    if is_padded(image):
        top, left = ((SIZE - side) // 2 for side in truth.shape)
        full = full[..., top : top + truth.shape[0], left : left + truth.shape[1]]
    else:
        full = F.interpolate(full, truth.shape, mode="bilinear", align_corners=False)
    predicted = torch.sigmoid(full)[0, 0].numpy() > 0.5
    return 2 * (predicted & truth).sum() / (predicted.sum() + truth.sum())


def test_dice_of_the_originals_protocol(stand_in, shared: Path, tmp_path: Path) -> None:
    model = sam_model_registry["vit_b"](image_size=SIZE).eval()
    stand_in.fill(model.state_dict())
    folder = shared / "data" / "sam_med2d" / "data_demo"
    files = json.loads((folder / "label2image_test.json").read_text())
    truths = {name: read(folder.parent / name) > 0 for name in files}
    images = {name: read(folder.parent / name) for name in set(files.values())}
    assert {is_padded(image) for image in images.values()} == {True, False}
    draw = np.random.default_rng(0)
    prompts = {Path(name).name: prompts_of(framed(truth), draw) for name, truth in truths.items()}
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps(prompts))

    dataset = TestingDataset(folder, SIZE, "test")
    modes = [parse_mode(mode) for mode in MODES]
    annotator = FrozenPrompts(path, SIZE)
    annotator.check([*files], modes)
    ours = {
        (name, one.mode.name): dice
        for _, scored in evaluate(
            model,
            test_loader(dataset, 1, 0),
            modes,
            device=torch.device("cpu"),
            annotator=annotator,
            protocol="paper",
        )
        for one in scored
        for name, dice in zip(one.names, one.values["dice"])
    }
    expected = {
        (name, mode): plain_dice(model, images[image], truths[name], prompts[Path(name).name], mode)
        for name, image in [*files.items()][::4]
        for mode in MODES  # every fourth mask, as each needs encoder passes
    }
    assert len(expected) == 12 and expected.keys() <= ours.keys() and len(ours) == 4 * len(files)
    assert {key: ours[key] for key in expected} == pytest.approx(expected, abs=1e-4)
    assert min(expected.values()) > 0 and len({round(value, 4) for value in expected.values()}) > 8
