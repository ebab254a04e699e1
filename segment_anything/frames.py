"""The two ways in which pictures reach a model, of which its weights know one.

    frame        colours   geometry                                                   the mask prompt fed back
    "sam-med2d"  BGR       stretched to S x S, nearest neighbour                      probabilities
    "sam"        RGB       longest side to S, bilinear, zeros at the right and below  logits

"sam" is of SAM's own weights and of those that were fine-tuned in its manner; "sam-med2d" of SAM-Med2D's and of what
was trained here unless another frame was asked for. A `Sam` has a `frame`; weight files of this project record it.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # whoever needs a name alone loads no PyTorch
    from torch import Tensor

SAM_MED2D, SAM = "sam-med2d", "sam"
FRAMES = (SAM_MED2D, SAM)
SAMS_SIZE = 1024  # pixels, of SAM's own files
CONFIDENT = 8.0  # the logit of a pixel that a person marked: probability 0.9997


def check_frame(frame: str) -> str:
    """One of FRAMES, as it came. Raises ValueError: it is none."""
    if frame not in FRAMES:
        raise ValueError(f"frame must be one of {', '.join(FRAMES)}, not {frame!r}")
    return frame


def likely_frame(image_size: int, adapters: bool) -> str:
    """Of weights that do not say: SAM's own have 1024 px and no adapters."""
    return SAM if image_size == SAMS_SIZE and not adapters else SAM_MED2D


def longest_side(size: tuple[int, int], side: int) -> tuple[int, int]:
    """(height, width) scaled until the longer one is `side`, rounded half up, as SAM does it; at least 1."""
    scale = side / max(size)
    return max(1, int(size[0] * scale + 0.5)), max(1, int(size[1] * scale + 0.5))


def mask_prompt(frame: str, logits: "Tensor") -> "Tensor":
    """The logits of an earlier prediction -> float32, the mask prompt of a frame: themselves, or probabilities."""
    return logits.float() if frame == SAM else logits.float().sigmoid()


def described(frame: str) -> str:
    """For people: what the frame is."""
    if frame == SAM:
        return "SAM's frame: RGB, longest side, padded"
    return "SAM-Med2D's frame: BGR, stretched, nearest neighbour"
