"""How other tools prepare pictures and prompts for a model: what an export answers them, compared with the predictor.

Written after the tools themselves, in the versions of docs/interop.md; tests_clients/ drives the real ones.
"""

from collections.abc import Sequence
from typing import Protocol

import cv2
import numpy as np
import torch
from PIL import Image

from sam_med2d.evaluation.metrics import dice
from sam_med2d.export.frame1024 import LOW_RES, WHOLE
from sam_med2d.inference.backends import Session
from segment_anything import ABSENT, Sam, SamPredictor
from segment_anything.frames import SAMS_SIZE, longest_side
from segment_anything.modeling.prompt_encoder import BOTTOM_RIGHT, TOP_LEFT
from segment_anything.modeling.sam import PIXEL_MEAN, PIXEL_STD
from segment_anything.zoom import NEVER

DRAWS = 6  # clicks on each picture


class Client(Protocol):
    """A tool, as far as it asks a model."""

    def set_image(self, image: np.ndarray) -> None:
        """image: (H, W, 3) uint8 RGB."""

    def mask(self, points: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """points: (P, 2) xy in pixels of the image; labels: (P,), 2 and 3 the corners of a box -> (H, W) bool."""


class PredictorClient:
    """One that uses a predictor of SAM's kind, on the file that was written."""

    def __init__(self, predictor: SamPredictor) -> None:
        self.predictor = predictor

    def set_image(self, image: np.ndarray) -> None:
        self.predictor.set_image(image)

    def mask(self, points: np.ndarray, labels: np.ndarray) -> np.ndarray:
        corners = labels >= TOP_LEFT
        box = points[corners].reshape(-1) if corners.any() else None
        clicks, kinds = (points[~corners], labels[~corners]) if not corners.all() else (None, None)
        found = self.predictor.predict(clicks, kinds, box)
        return found.masks[found.iou.argmax()]


class OnnxClient:
    """One that runs an encoder's and a decoder's file."""

    side: int  # of the mask prompt, in pixels

    def __init__(self, encoder: Session, decoder: Session) -> None:
        self.encoder, self.decoder = encoder, decoder
        (self.input,) = encoder.inputs
        self.size = 0, 0

    def set_image(self, image: np.ndarray) -> None:
        self.size = image.shape[:2]
        self.embedding = self.encoder({self.input: self.prepared(image).astype(np.float32)})["image_embeddings"]

    def mask(self, points: np.ndarray, labels: np.ndarray) -> np.ndarray:
        places, labels = self.placed(points, labels)
        answer = self.decoder(
            {
                "image_embeddings": self.embedding,
                "point_coords": places[None].astype(np.float32),
                "point_labels": labels[None].astype(np.float32),
                "mask_input": np.zeros((1, 1, self.side, self.side), np.float32),
                "has_mask_input": np.array([-1], np.float32),  # as osam says that there is none
                "orig_im_size": np.array(self.size, np.float32),
            }
        )
        return answer["masks"][0, 0] > 0

    def prepared(self, image: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def placed(self, points: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        raise NotImplementedError


class XAnyLabeling(OnnxClient):
    """Its model `sam_med2d`: normalised first, then stretched bilinearly; no padding point."""

    def __init__(self, encoder: Session, decoder: Session) -> None:
        super().__init__(encoder, decoder)
        self.frame = int(encoder.inputs[self.input][-1] or 0)
        self.side = self.frame // 4

    def prepared(self, image: np.ndarray) -> np.ndarray:
        stretched = cv2.resize(normalised(image), (self.frame, self.frame), interpolation=cv2.INTER_LINEAR)
        return stretched.transpose(2, 0, 1)[None]

    def placed(self, points: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        height, width = self.size
        return points * [self.frame / width, self.frame / height], labels


class Clients1024(OnnxClient):
    """osam, samexporter and others: the longest side to 1024, padded; a padding point behind every prompt."""

    side = LOW_RES

    def prepared(self, image: np.ndarray) -> np.ndarray:
        height, width = longest_side(self.size, SAMS_SIZE)
        scaled = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
        if self.input == WHOLE:
            return scaled
        padding = (0, SAMS_SIZE - height), (0, SAMS_SIZE - width), (0, 0)
        return np.pad(normalised(scaled), padding).transpose(2, 0, 1)[None]

    def placed(self, points: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        height, width = longest_side(self.size, SAMS_SIZE)
        points = points * [width / self.size[1], height / self.size[0]]
        return np.append(points, [[0, 0]], axis=0), np.append(labels, ABSENT)


def normalised(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) 0..255 -> float64."""
    return (image - np.array(PIXEL_MEAN)) / np.array(PIXEL_STD)


def compare(model: Sam, client: Client, images: Sequence[np.ndarray]) -> dict[str, float]:
    """Print and return the mean Dice of what a client shows to the predictor's answer: {kind of prompt: Dice}.

    images: (H, W, 3) uint8 BGR. Clicks are drawn at random, the same in every run; boxes are those around what the
    predictor answers to them, as a box around nothing has no right answer to agree on.
    """
    predictor = PredictorClient(SamPredictor(model, zoom=NEVER))
    values: dict[str, list[float]] = {"box": [], "click": []}
    for number, image in enumerate(images):
        picture = np.ascontiguousarray(image[..., ::-1])
        for one in (predictor, client):
            one.set_image(picture)
        draw, (height, width) = np.random.default_rng(number), picture.shape[:2]
        for click in np.floor(draw.random((DRAWS, 1, 2)) * [width, height]):
            answer = predictor.mask(click, np.ones(1))
            values["click"].append(_dice(answer, client.mask(click, np.ones(1))))
            if answer.any():
                rows, columns = np.nonzero(answer)
                box = np.array([[columns.min(), rows.min()], [columns.max() + 1, rows.max() + 1]], np.float64)
                corners = np.array([TOP_LEFT, BOTTOM_RIGHT])
                values["box"].append(_dice(predictor.mask(box, corners), client.mask(box, corners)))
    means = {kind: float(np.mean(dices)) for kind, dices in values.items() if dices}
    told = ", ".join(f"{kind} {mean:.4f}" for kind, mean in means.items())
    print(f"Dice to eager, through the client's own preprocessing, on {len(images)} images: {told}")
    return means


def _dice(first: np.ndarray, second: np.ndarray) -> float:
    return dice(torch.from_numpy(first), torch.from_numpy(second), from_logits=False).item()
