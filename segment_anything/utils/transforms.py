"""Pictures, points and boxes into SAM's frame: the longest side becomes S, and the rest of the frame is padding."""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..frames import longest_side


class ResizeLongestSide:
    """Scales the longest side to `target_length` pixels. Sizes are (height, width), points x before y.

    Nothing is padded here: `Sam.preprocess` does that, at the right and below, after normalisation.
    """

    paper = False  # of the protocols of SAM-Med2D's frame: there is but one mapping here

    def __init__(self, target_length: int) -> None:
        self.target_length = target_length

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        """(H, W, C) or (H, W) uint8 -> the same at its size in the frame, bilinear with antialiasing."""
        height, width = self.size_in_frame(image.shape[:2])
        return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))

    def apply_coords(self, coords: np.ndarray, original_size: tuple[int, int]) -> np.ndarray:
        """coords: (..., 2) xy of an image of original_size -> the same shape, float64, of the frame."""
        return np.asarray(coords, np.float64) * self._scale(original_size)

    def apply_boxes(self, boxes: np.ndarray, original_size: tuple[int, int]) -> np.ndarray:
        """boxes: (..., 4) x0 y0 x1 y1 -> (N, 4) float64."""
        return self.apply_coords(np.asarray(boxes).reshape(-1, 2, 2), original_size).reshape(-1, 4)

    def apply_image_torch(self, image: Tensor) -> Tensor:
        """(B, C, H, W) float -> (B, C, h, w); not to the last digit what `apply_image` gives."""
        size = self.size_in_frame((image.shape[2], image.shape[3]))
        return F.interpolate(image, size, mode="bilinear", align_corners=False, antialias=True)

    def apply_coords_torch(self, coords: Tensor, original_size: tuple[int, int]) -> Tensor:
        """As `apply_coords`, float32."""
        return coords.to(torch.float32) * torch.tensor(
            self._scale(original_size), dtype=torch.float32, device=coords.device
        )

    def apply_boxes_torch(self, boxes: Tensor, original_size: tuple[int, int]) -> Tensor:
        """As `apply_boxes`, float32."""
        return self.apply_coords_torch(boxes.reshape(-1, 2, 2), original_size).reshape(-1, 4)

    @staticmethod
    def get_preprocess_shape(oldh: int, oldw: int, long_side_length: int) -> tuple[int, int]:
        """The (height, width) of a picture in a frame of that side."""
        return longest_side((oldh, oldw), long_side_length)

    def size_in_frame(self, original_size: tuple[int, int]) -> tuple[int, int]:
        """Of a picture of original_size."""
        return longest_side((int(original_size[0]), int(original_size[1])), self.target_length)

    def back(self, logits: Tensor, original_size: tuple[int, int]) -> Tensor:
        """(N, K, S, S) of the frame -> (N, K, *original_size), bilinear, without the padding."""
        height, width = self.size_in_frame(original_size)
        logits = logits[..., :height, :width]
        return F.interpolate(logits, size=tuple(original_size), mode="bilinear", align_corners=False)

    def _scale(self, original_size: tuple[int, int]) -> tuple[float, float]:
        """Of x and of y: they differ a little where a side was rounded."""
        height, width = self.size_in_frame(original_size)
        return width / original_size[1], height / original_size[0]
