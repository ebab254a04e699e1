"""What an export is of."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from sam_med2d.export.frame1024 import PADDED
from segment_anything import Sam
from segment_anything.checkpoint import describe
from segment_anything.frames import described


class Job(NamedTuple):
    """model: in evaluation, on the CPU; name: what files are called; images: (H, W, 3) BGR, to compare on.

    reads: the encoder's input of sam1024; logits_in: of onnx, whether its mask prompts are logits.
    """

    model: Sam
    folder: Path
    name: str
    images: list[np.ndarray]
    reads: str = PADDED
    logits_in: bool = False
    opset: int | None = None


def model_type_of(model: Sam) -> str:
    """vit_b, or ? for a size without a name."""
    return describe(model.state_dict()).model_type or "?"


def said(model: Sam) -> str:
    """For people, what a model is."""
    return f"{describe(model.state_dict())}, in {described(model.frame)}"
