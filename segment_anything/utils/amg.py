"""Helpers of everything mode that SAM's callers import from here: points on a grid, boxes of masks, run lengths.

Masks are (..., H, W) bool tensors unless something else is said; boxes are x0 y0 x1 y1, in SAM's helpers with x1 and y1
the last pixel.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from ..automatic_mask_generator import point_grid, remove_regions_of, run_lengths, stability_score

__all__ = [
    "area_from_rle",
    "batch_iterator",
    "batched_mask_to_box",
    "box_xyxy_to_xywh",
    "build_all_layer_point_grids",
    "build_point_grid",
    "calculate_stability_score",
    "coco_encode_rle",
    "is_box_near_crop_edge",
    "mask_to_rle_pytorch",
    "remove_small_regions",
    "rle_to_mask",
]


def build_point_grid(n_per_side: int) -> np.ndarray:
    """The centres of n_per_side ** 2 equal cells of the unit square: (P, 2) xy."""
    return point_grid(n_per_side)


def build_all_layer_point_grids(n_per_side: int, n_layers: int, scale_per_layer: int) -> list[np.ndarray]:
    """A grid for the image and one for each crop layer, with n_per_side divided by scale_per_layer every time."""
    return [point_grid(int(n_per_side / scale_per_layer**layer)) for layer in range(n_layers + 1)]


def batch_iterator(batch_size: int, *args: Any) -> Iterator[list[Any]]:
    """The arguments, all of one length, in pieces of batch_size."""
    for start in range(0, len(args[0]), batch_size):
        yield [arg[start : start + batch_size] for arg in args]


def calculate_stability_score(masks: Tensor, mask_threshold: float, threshold_offset: float) -> Tensor:
    """IoU of the masks at thresholds higher and lower by the offset. masks: (..., H, W) logits -> (...)."""
    flat = (masks - mask_threshold).reshape(-1, *masks.shape[-2:])
    return stability_score(flat, threshold_offset).reshape(masks.shape[:-2])


def batched_mask_to_box(masks: Tensor) -> Tensor:
    """(..., H, W) bool -> (..., 4) int64, x0 y0 x1 y1 with x1 and y1 the last pixel; zeros for an empty mask."""
    if masks.numel() == 0:
        return torch.zeros(*masks.shape[:-2], 4, device=masks.device, dtype=torch.int64)
    ends = []
    for there in (masks.any(dim=-2), masks.any(dim=-1)):  # columns, then rows
        number = torch.arange(there.shape[-1], device=masks.device)
        first = torch.where(there, number, there.shape[-1]).amin(dim=-1)
        ends.append((first, torch.where(there, number, -1).amax(dim=-1)))
    (x0, x1), (y0, y1) = ends
    return torch.stack([x0, y0, x1, y1], dim=-1) * masks.flatten(-2).any(dim=-1, keepdim=True)


def box_xyxy_to_xywh(box_xyxy: Tensor) -> Tensor:
    """(..., 4) corners -> x y width height, the same type."""
    return torch.cat([box_xyxy[..., :2], box_xyxy[..., 2:] - box_xyxy[..., :2]], dim=-1)


def is_box_near_crop_edge(boxes: Tensor, crop_box: list[int], orig_box: list[int], atol: float = 20.0) -> Tensor:
    """(n, 4) boxes of a crop -> (n,) bool: a side lies within atol of the crop's edge, and not of the image's."""
    crop, whole = (torch.as_tensor(box, dtype=torch.float, device=boxes.device) for box in (crop_box, orig_box))
    there = boxes.float() + crop[:2].repeat(2)
    near_crop = (there - crop).abs() <= atol
    near_image = (there - whole).abs() <= atol
    return (near_crop & ~near_image).any(dim=1)


def mask_to_rle_pytorch(tensor: Tensor) -> list[dict[str, Any]]:
    """(n, H, W) bool -> uncompressed run lengths as COCO's, {"size": [H, W], "counts": [...]}."""
    return [{"size": [*mask.shape], "counts": run_lengths(mask.cpu().numpy())} for mask in tensor]


def remove_small_regions(mask: np.ndarray, area_thresh: float, mode: str) -> tuple[np.ndarray, bool]:
    """Fill holes (mode "holes") or drop islands ("islands") of fewer pixels. -> (H, W) bool, and whether it changed."""
    if mode not in ("holes", "islands"):
        raise ValueError(f"mode must be holes or islands, not {mode!r}")
    cleaned = remove_regions_of(mask.astype(bool), mode == "islands", area_thresh)
    return cleaned, bool((cleaned != mask.astype(bool)).any())


def rle_to_mask(rle: dict[str, Any]) -> np.ndarray:
    """Uncompressed run lengths -> (H, W) bool."""
    height, width = rle["size"]
    values = np.arange(len(rle["counts"])) % 2 == 1
    return np.repeat(values, rle["counts"]).reshape(width, height).T


def area_from_rle(rle: dict[str, Any]) -> int:
    """Pixels of a mask from its uncompressed run lengths."""
    return sum(rle["counts"][1::2])


def coco_encode_rle(uncompressed_rle: dict[str, Any]) -> dict[str, Any]:
    """Uncompressed run lengths -> compressed ones as pycocotools reads them, with text that fits into JSON."""
    height, width = uncompressed_rle["size"]
    encoded = coco_mask.frPyObjects(uncompressed_rle, height, width)
    return {**encoded, "counts": encoded["counts"].decode("ascii")}
