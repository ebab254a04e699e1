"""One model for several threads: one pass at a time, in the order that they were asked for, and one a picture.

model = SharedModel(load_segmenter(args))
predictor = SamPredictor(model)             # each client has one of its own; what was encoded is shared
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor

from segment_anything import Prediction, Prompts
from segment_anything.modeling.sam import refiner_of
from segment_anything.predictor import Segmenter, frame_of

KEPT_BYTES = 1 << 29  # of what was encoded: 2000 pictures at 256 px, 128 at 1024 px


class Turns:
    """A lock whose holders take turns in the order that they asked: none waits while another one takes it again."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._next = self._now = 0

    def __enter__(self) -> None:
        with self._changed:
            mine, self._next = self._next, self._next + 1
            self._changed.wait_for(lambda: self._now == mine)

    def __exit__(self, *error: object) -> None:
        with self._changed:
            self._now += 1
            self._changed.notify_all()


class SharedModel:
    """A `Segmenter` around another one.

    What was encoded is kept by its content, the pixels in the frame, and the oldest is forgotten. encoded: passes of
    the image encoder so far.
    """

    def __init__(self, model: Segmenter, kept_bytes: int = KEPT_BYTES) -> None:
        self._model, self._refiner = model, refiner_of(model)
        self._turns = Turns()
        self._kept: OrderedDict[bytes, Tensor | None] = OrderedDict()
        self._bytes, self._most = 0, kept_bytes
        self.refinement = self._refiner.refinement if self._refiner else None
        self.frame = frame_of(model)
        self.encoded = 0

    @property
    def image_size(self) -> int:
        return self._model.image_size

    @property
    def device(self) -> torch.device:
        return self._model.device

    def encode(self, images: Tensor, content: Tensor | None = None) -> Tensor:
        """As `Sam.encode`."""

        def encode() -> Tensor:
            self.encoded += 1
            return self._model.encode(images, content)

        found = self._once(b"embeddings", images, content, encode)
        assert found is not None
        return found

    def details(self, images: Tensor, content: Tensor | None = None) -> Tensor | None:
        """As `Sam.details`, of a model that has a refinement network."""
        assert self._refiner is not None
        refiner = self._refiner
        return self._once(b"details", images, content, lambda: refiner.details(images, content))

    def predict(self, embeddings: Tensor, prompts: Prompts, multimask_output: bool) -> Prediction:
        """As `Sam.predict`."""
        with self._turns:
            return self._model.predict(embeddings, prompts, multimask_output)

    def refined(self, details: Tensor, prediction: Prediction, prompts: Prompts) -> Prediction:
        """As `Sam.refined`, of a model that has a refinement network."""
        assert self._refiner is not None
        with self._turns:
            return self._refiner.refined(details, prediction, prompts)

    def upscale(self, logits: Tensor) -> Tensor:
        """As `Sam.upscale`, which holds no state: several at a time."""
        return self._model.upscale(logits)

    def _once(
        self, what: bytes, images: Tensor, content: Tensor | None, make: Callable[[], Tensor | None]
    ) -> Tensor | None:
        digest = hashlib.blake2b(what, digest_size=20)
        for part in (images, content):
            if part is not None:
                digest.update(repr(tuple(part.shape)).encode())
                digest.update(part.cpu().contiguous().numpy().tobytes())
        key = digest.digest()
        with self._turns:
            if key not in self._kept:
                self._kept[key] = make()
                self._bytes += _bytes_of(self._kept[key])
            self._kept.move_to_end(key)
            found = self._kept[key]
            while self._bytes > self._most and len(self._kept) > 1:
                self._bytes -= _bytes_of(self._kept.popitem(last=False)[1])
            return found


def _bytes_of(part: Tensor | None) -> int:
    return 0 if part is None else part.nbytes
