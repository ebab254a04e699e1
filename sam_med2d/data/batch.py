"""An image with its objects, and many of them as one batch with a row an object."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import cv2
import numpy as np
import torch
from torch import Tensor

from sam_med2d.data.geometry import Content
from sam_med2d.data.vanishing import Vanished


@dataclass
class Sample:
    """One image with n objects of it."""

    image: Tensor  # (3, S, S) uint8, BGR
    content: Content
    masks: Tensor  # (n, 1, S, S) bool
    image_name: str
    mask_names: list[str]  # n
    original_size: tuple[int, int]
    original_masks: Tensor | None  # (n, H, W) bool
    skipped: list[str]
    bad: list[str] = field(default_factory=list)
    vanished: dict[str, Vanished] = field(default_factory=dict)  # those of `skipped` that are not empty
    picture: np.ndarray | None = None  # (H, W, 3) uint8 BGR, as it was read, where it was asked for
    replayed: bool = False  # whether it is of another kind than what is trained on, see replay.py


@dataclass
class Batch:
    """B images with N objects, one row an object; `image_index` says which image a row is in. N may be 0."""

    images: Tensor  # (B, 3, S, S) uint8, BGR
    content: Tensor  # (B, 4) int64 top, left, height, width of the picture in the frame; 0, 0, S, S if it was resized
    masks: Tensor  # (N, 1, S, S) bool
    image_index: Tensor  # (N,) int64, ascending
    image_names: list[str]  # B image paths as they stand in the index
    mask_names: list[str]  # N mask paths as they stand in the index
    original_sizes: list[tuple[int, int]]  # B (height, width)
    original_masks: list[Tensor] | None  # B of (n_i, H, W) bool at the original size, for scoring; None in training
    skipped: list[str]  # mask paths left out because they are empty, or emptied by resizing
    bad: list[str] = field(default_factory=list)  # why images were left out that cannot be read, a line each
    vanished: dict[str, Vanished] = field(default_factory=dict)  # the latter: they have an object
    pictures: list[np.ndarray] | None = None  # B of (H, W, 3) uint8 BGR, as they were read, where they were asked for
    replayed: list[bool] = field(default_factory=list)  # B, whether images are of another kind; [] where none is

    def to(self, device: torch.device | str, non_blocking: bool = True) -> "Batch":
        """Copy to a device what the model uses; original_masks stay on the CPU, where they are scored."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """Called by torch's DataLoader when it pins, so that `to` overlaps with computation."""
        return self._map(Tensor.pin_memory)

    def parts(self, images: int) -> Iterator["Batch"]:
        """The same batch, on the CPU, in parts of at most so many images; those without an object are left out."""
        last = np.cumsum(np.bincount(self.image_index.numpy(), minlength=len(self.images)))
        for start in range(0, len(self.images), images):
            own = slice(start, min(start + images, len(self.images)))
            rows = slice(int(last[start - 1]) if start else 0, int(last[own.stop - 1]))
            if rows.start < rows.stop:
                yield Batch(
                    images=self.images[own],
                    content=self.content[own],
                    masks=self.masks[rows],
                    image_index=self.image_index[rows] - start,
                    image_names=self.image_names[own],
                    mask_names=self.mask_names[rows],
                    original_sizes=self.original_sizes[own],
                    original_masks=None if self.original_masks is None else self.original_masks[own],
                    skipped=[],
                    replayed=self.replayed[own],
                )

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        return replace(
            self,
            images=change(self.images),
            content=change(self.content),
            masks=change(self.masks),
            image_index=change(self.image_index),
        )


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples -> Batch: images stacked, objects of all images concatenated. Of no sample, as a process may get of the
    last batch, a batch without images.
    """
    if not samples:
        samples = [empty_sample("", 0)]
        return replace(collate(samples)._map(lambda tensor: tensor[:0]), image_names=[], original_sizes=[])
    counts = torch.tensor([len(sample.masks) for sample in samples])
    pictures = [sample.picture for sample in samples if sample.picture is not None]
    originals = [sample.original_masks for sample in samples if sample.original_masks is not None]
    return Batch(
        images=torch.stack([sample.image for sample in samples]),
        content=torch.tensor([sample.content for sample in samples]),
        masks=torch.cat([sample.masks for sample in samples]),
        image_index=torch.repeat_interleave(torch.arange(len(samples)), counts),
        image_names=[sample.image_name for sample in samples],
        mask_names=[name for sample in samples for name in sample.mask_names],
        original_sizes=[sample.original_size for sample in samples],
        original_masks=originals if len(originals) == len(samples) else None,
        skipped=[name for sample in samples for name in sample.skipped],
        bad=[line for sample in samples for line in sample.bad],
        vanished={name: one for sample in samples for name, one in sample.vanished.items()},
        pictures=pictures if len(pictures) == len(samples) else None,
        replayed=[sample.replayed for sample in samples] if any(sample.replayed for sample in samples) else [],
    )


def empty_sample(image_name: str, side: int, bad: str = "") -> Sample:
    """A black image without objects. bad: why it stands for the image of that name."""
    return Sample(
        image=torch.zeros(3, side, side, dtype=torch.uint8),
        content=(0, 0, side, side),
        masks=torch.zeros(0, 1, side, side, dtype=torch.bool),
        image_name=image_name,
        mask_names=[],
        original_size=(side, side),
        original_masks=None,
        skipped=[],
        bad=[bad] if bad else [],
    )


def image_tensor(image: np.ndarray) -> Tensor:
    """(S, S, 3) -> (3, S, S)"""
    planes = np.empty((3, *image.shape[:2]), np.uint8)
    cv2.split(image, [*planes])  # 26 us at 256 px; transposing and copying takes 118
    return torch.from_numpy(planes)
