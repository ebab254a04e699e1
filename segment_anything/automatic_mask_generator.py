"""Everything mode: a grid of clicks, and of all that they give the masks worth keeping.

    masks = SamAutomaticMaskGenerator(model).generate(image)
    masks[0]["segmentation"]                                # (H, W) bool, the most certain mask first

Options and results have SAM's names. Two things differ, with the reasons:
  - Duplicates are told by the overlap of the masks, not of their boxes: an organ and what lies inside or around it
    often have nearly the same box. (`box_nms_thresh` below 1 adds SAM's rule.)
  - The defaults are for 256 px, where the object of one click is larger than at 1024 px.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from .images import to_bgr
from .modeling import FOREGROUND, Prompts
from .predictor import ObjectPrompt, SamPredictor, Segmenter
from .zoom import NEVER, Zoom

PIXELS_AT_ONCE = 2**20  # of full-size logits that are held at a time, 4 MB, which caches hold; a mask at least
OUTPUT_MODES = ("binary_mask", "uncompressed_rle", "coco_rle")
SAME = 0.5  # IoU: a second look that shares less with the first one has found another object
CROP_EDGE = 0.02  # of a crop's side: a mask that ends so near to the crop's edge was probably cut by it


class Found(NamedTuple):
    """n masks of one image. rles: n compressed RLEs at the image's size; iou, stability: (n,); points: (n, 2) xy, the
    click of each; crops: (n, 4) x y width height, where each was found."""

    rles: list[dict[str, Any]]
    iou: np.ndarray
    stability: np.ndarray
    points: np.ndarray
    crops: np.ndarray

    def rows(self, index: np.ndarray) -> "Found":
        """index: (m,) int."""
        return Found([self.rles[i] for i in index], *(values[index] for values in self[1:]))


@dataclass
class Dropped:
    """Of one picture: how many candidates there were, three a click, and what became of those that were not kept."""

    candidates: int = 0
    uncertain: int = 0  # below pred_iou_thresh
    unstable: int = 0  # of the others, below stability_score_thresh
    empty_or_cut: int = 0  # of the others, without a pixel or cut by the edge of a crop
    best_iou: float = -math.inf  # of all candidates
    best_stability: float = -math.inf  # of those that were certain enough

    def add(self, other: "Dropped") -> None:
        for name in ("candidates", "uncertain", "unstable", "empty_or_cut"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.best_iou = max(self.best_iou, other.best_iou)
        self.best_stability = max(self.best_stability, other.best_stability)


class SamAutomaticMaskGenerator:
    dropped: Dropped  # of the last picture

    def __init__(
        self,
        model: Segmenter,
        points_per_side: int | None = 16,
        points_per_batch: int = 64,
        pred_iou_thresh: float = 0.4,
        stability_score_thresh: float = 0.8,
        stability_score_offset: float = 0.1,
        mask_nms_thresh: float = 0.7,
        box_nms_thresh: float = 1.0,
        crop_n_layers: int = 0,
        crop_nms_thresh: float = 0.7,
        crop_overlap_ratio: float = 512 / 1500,
        crop_n_points_downscale_factor: int = 1,
        point_grids: list[np.ndarray] | None = None,
        min_mask_region_area: int = 0,
        output_mode: str = "binary_mask",
        zoom: Zoom | str | float = NEVER,
    ) -> None:
        """
        points_per_side: of the grid, so its square is the number of clicks; or give point_grids, for each crop layer
            (P, 2) xy between 0 and 1
        points_per_batch: clicks decoded at a time; it bounds the memory
        pred_iou_thresh, stability_score_thresh: what the predicted IoU and the stability of a mask must reach.
            Stability is the IoU between the masks at logits of +stability_score_offset and -stability_score_offset
        mask_nms_thresh, box_nms_thresh: of two masks (boxes) whose IoU is higher, the less certain one is dropped; 1:
            off
        crop_n_layers: layer i repeats all on 4 ** i overlapping crops, for objects too small for the whole image
        crop_nms_thresh: of two masks of different crops whose IoU is higher, the one from the smaller crop stays
        crop_overlap_ratio: of the crops of layer 1, as a share of the image's short side; halved in each further layer
        crop_n_points_downscale_factor: points_per_side in layer i is divided by its ith power
        min_mask_region_area: holes and islands of fewer pixels are removed; 0: off
        output_mode: "binary_mask", "uncompressed_rle", or "coco_rle" as pycocotools reads and writes it
        zoom: which of the masks that were found are looked at a second time, each in a crop around it that fills the
            frame: "auto" those that are small in the image, "always", "never", or a number, as of `SamPredictor`. Each
            costs an encoding. What the second look says counts where it is as sure as a mask must be, and the same
            object

        Raises ValueError: an option that makes no sense.
        """
        if (points_per_side is None) == (point_grids is None):
            raise ValueError("give points_per_side, or None for it and point_grids")
        if output_mode not in OUTPUT_MODES:
            raise ValueError(f"output_mode must be one of {', '.join(OUTPUT_MODES)}, not {output_mode!r}")
        if point_grids is None:
            if points_per_side is None or points_per_side < 1 or crop_n_points_downscale_factor < 1:
                raise ValueError("points_per_side and crop_n_points_downscale_factor must be at least 1")
            sides = (points_per_side // crop_n_points_downscale_factor**layer for layer in range(crop_n_layers + 1))
            point_grids = [point_grid(max(1, side)) for side in sides]
        elif len(point_grids) != crop_n_layers + 1:
            raise ValueError(
                f"point_grids holds {len(point_grids)} grids; with {crop_n_layers} crop layers it needs "
                f"{crop_n_layers + 1}"
            )
        if points_per_batch < 1 or crop_n_layers < 0 or min_mask_region_area < 0:
            raise ValueError("points_per_batch must be at least 1, crop_n_layers and min_mask_region_area at least 0")
        self.predictor = SamPredictor(model, zoom=zoom)  # clicks of the grid are decoded as they are
        self.point_grids = point_grids
        self.points_per_batch = points_per_batch
        self.pred_iou_thresh = pred_iou_thresh
        self.stability_score_thresh = stability_score_thresh
        self.stability_score_offset = stability_score_offset
        self.mask_nms_thresh = mask_nms_thresh
        self.box_nms_thresh = box_nms_thresh
        self.crop_n_layers = crop_n_layers
        self.crop_nms_thresh = crop_nms_thresh
        self.crop_overlap_ratio = crop_overlap_ratio
        self.min_mask_region_area = min_mask_region_area
        self.output_mode = output_mode

    def generate(self, image: np.ndarray, image_format: str = "RGB") -> list[dict[str, Any]]:
        """image: as for `SamPredictor.set_image`. -> one dictionary a mask, the highest predicted IoU first:

        segmentation: (H, W) bool, or a run-length encoding; bbox: [x, y, width, height]; area: pixels;
        predicted_iou, stability_score; point_coords: [[x, y]], the click; crop_box: [x, y, width, height] of the crop
        that it was last looked at in.
        What was left out, and why, is then in `dropped`.
        """
        picture = to_bgr(image, image_format)  # once: crops of a 16-bit image share its range
        self.dropped = Dropped()
        found = _together([self._of_crop(picture, box, layer) for layer, box in self._crops(picture.shape[:2])])
        if self.crop_n_layers:
            smallest_first = -found.crops[:, 2] * found.crops[:, 3]
            found = found.rows(_distinct(found, smallest_first, self.crop_nms_thresh, self.box_nms_thresh))
        if self.predictor.zoom.is_on:
            found = self._closer(picture, found)
        if self.min_mask_region_area:
            found = self._without_small_regions(found)
        found = found.rows(np.argsort(-found.iou, kind="stable"))
        areas, boxes = _areas(found.rles), coco_mask.toBbox(found.rles).reshape(-1, 4)
        return [
            {
                "segmentation": self._written(rle),
                "area": int(areas[i]),
                "bbox": boxes[i].tolist(),
                "predicted_iou": float(found.iou[i]),
                "point_coords": [found.points[i].tolist()],
                "stability_score": float(found.stability[i]),
                "crop_box": found.crops[i].tolist(),
            }
            for i, rle in enumerate(found.rles)
        ]

    def _crops(self, size: tuple[int, int]) -> Iterator[tuple[int, tuple[int, int, int, int]]]:
        """Layer and x, y, width, height of the image itself and of the crops of each layer."""
        height, width = size
        yield 0, (0, 0, width, height)
        for layer in range(1, self.crop_n_layers + 1):
            count = 2**layer
            overlap = int(self.crop_overlap_ratio * min(size) * 2 / count)
            # count crops that overlap by so much cover the side exactly
            crop_height, crop_width = (-(-(side + overlap * (count - 1)) // count) for side in size)
            for top in (i * (crop_height - overlap) for i in range(count)):
                for left in (i * (crop_width - overlap) for i in range(count)):
                    crop = left, top, min(crop_width, width - left), min(crop_height, height - top)
                    if min(crop) >= 0 and crop[2] and crop[3]:
                        yield layer, crop

    @torch.no_grad()
    def _of_crop(self, picture: np.ndarray, crop: tuple[int, int, int, int], layer: int) -> Found:
        """Click all over one crop of the picture (H, W, 3) BGR. -> its distinct masks."""
        left, top, width, height = crop
        self.predictor.set_image(picture[top : top + height, left : left + width], "BGR")
        points = self.point_grids[layer] * (width, height)
        parts = [
            self._of_points(points[start : start + self.points_per_batch], crop, picture.shape[:2])
            for start in range(0, len(points), self.points_per_batch)
        ]
        self.predictor.reset_image()
        found = _together(parts)
        return found.rows(_distinct(found, found.iou, self.mask_nms_thresh, self.box_nms_thresh))

    def _of_points(self, points: np.ndarray, crop: tuple[int, int, int, int], size: tuple[int, int]) -> Found:
        """points: (P, 2) xy in the crop. Each is an object of its own, with three guesses."""
        clicks = self.predictor.apply_coords_torch(torch.from_numpy(points)).unsqueeze(1).to(self.predictor.device)
        labels = torch.full(clicks.shape[:2], FOREGROUND, device=clicks.device)
        # the decoder's own answers: three to each of many clicks, of which few are kept
        low_res, iou = self.predictor.decode_sure(Prompts(clicks, labels), self.pred_iou_thresh)
        expected = iou.float().cpu().numpy()
        sure = expected >= self.pred_iou_thresh
        clicked = np.repeat((points + np.array(crop[:2]))[:, None], expected.shape[1], axis=1)[sure]
        self.dropped.add(Dropped(sure.size, sure.size - len(low_res), best_iou=float(expected.max())))
        step = max(1, PIXELS_AT_ONCE // max(crop[2] * crop[3], self.predictor.model.image_size**2))
        return _together(
            [
                self._of_guesses(low_res[i : i + step], expected[sure][i : i + step], clicked[i : i + step], crop, size)
                for i in range(0, max(1, len(low_res)), step)
            ]
        )

    def _of_guesses(
        self,
        low_res: Tensor,
        iou: np.ndarray,
        points: np.ndarray,
        crop: tuple[int, int, int, int],
        size: tuple[int, int],
    ) -> Found:
        """Those that are good, as run lengths. low_res: (n, S/4, S/4); iou: (n,); points: (n, 2) xy in the image."""
        left, top, width, height = crop
        logits = self.predictor.upscale(low_res[:, None])[:, 0] if len(low_res) else low_res.new_zeros(0, height, width)
        stability = stability_score(logits, self.stability_score_offset).cpu().numpy()
        masks = (logits > self.predictor.mask_threshold).cpu()
        stable = stability >= self.stability_score_thresh
        good = stable & (areas_of(masks) > 0).numpy() & ~_touches_crop(masks, crop, size).numpy()
        if len(masks):
            lost = Dropped(unstable=int((~stable).sum()), empty_or_cut=int((stable & ~good).sum()))
            lost.best_stability = float(stability.max())
            self.dropped.add(lost)
        whole = np.zeros((*size, int(good.sum())), np.uint8, order="F")
        whole[top : top + height, left : left + width] = masks[torch.from_numpy(good)].permute(1, 2, 0).numpy()
        return Found(
            coco_mask.encode(whole),
            iou[good],
            stability[good],
            points[good],
            np.tile(np.array(crop, float), (int(good.sum()), 1)),
        )

    @torch.no_grad()
    def _closer(self, picture: np.ndarray, found: Found) -> Found:
        """With a second look at what is small, asked by its click and the box around it. picture: (H, W, 3) BGR."""
        size = picture.shape[:2]
        boxes = coco_mask.toBbox(found.rles).reshape(-1, 4).astype(np.float32)
        boxes[:, 2:] += boxes[:, :2]
        self.predictor.set_image(picture, "BGR", encode=False)
        looks = [
            self._second_look(found.rows(np.array([i])), box) if self.predictor.zoom.wants(box, size) else None
            for i, box in enumerate(boxes)
        ]
        self.predictor.reset_image()
        if not any(looks):
            return found
        found = _together([look or found.rows(np.array([i])) for i, look in enumerate(looks)])
        return found.rows(_distinct(found, found.iou, self.mask_nms_thresh, self.box_nms_thresh))

    def _second_look(self, first: Found, box: np.ndarray) -> Found | None:
        """first: one mask; box: (4,) x0 y0 x1 y1 around it -> the same object, seen closer.

        None where that is not as sure as a mask must be, or another object.
        """
        prompt = ObjectPrompt(first.points.astype(np.float32), np.array([FOREGROUND]), box)
        logits, iou, _ = self.predictor.predict_objects([prompt], return_logits=True, best=True)
        stability = stability_score(torch.from_numpy(logits[0]), self.stability_score_offset).numpy()
        if iou[0, 0] < self.pred_iou_thresh or stability[0] < self.stability_score_thresh:
            return None
        mask = np.asfortranarray((logits[0, 0] > self.predictor.mask_threshold).astype(np.uint8))
        rle = coco_mask.encode(mask)
        if not coco_mask.iou([rle], first.rles, [0])[0, 0] >= SAME:
            return None
        return Found([rle], iou[0], stability, first.points, np.array([self.predictor.crops[0]], float))

    def _without_small_regions(self, found: Found) -> Found:
        """Fill small holes and drop small islands. Of masks that have become alike, one that needed no change stays."""
        rles, changed = [], []
        for rle in found.rles:
            mask = coco_mask.decode(rle)
            cleaned = remove_small_regions(mask.view(bool), self.min_mask_region_area).astype(np.uint8)
            changed.append(bool((cleaned != mask).any()))
            rles.append(coco_mask.encode(np.asfortranarray(cleaned)) if changed[-1] else rle)
        found = found._replace(rles=rles)
        found = found.rows(np.flatnonzero(_areas(rles)))
        order = found.iou - np.array(changed, float)[: len(found.iou)]
        return found.rows(_distinct(found, order, max(self.mask_nms_thresh, self.crop_nms_thresh), self.box_nms_thresh))

    def _written(self, rle: dict[str, Any]) -> np.ndarray | dict[str, Any]:
        if self.output_mode == "binary_mask":
            return coco_mask.decode(rle).view(bool)
        if self.output_mode == "uncompressed_rle":
            return {"size": list(rle["size"]), "counts": run_lengths(coco_mask.decode(rle))}
        return {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}  # text, so that it fits into JSON


def point_grid(points_per_side: int) -> np.ndarray:
    """The centres of points_per_side ** 2 equal cells of the unit square: (P, 2) xy."""
    centres = (np.arange(points_per_side) + 0.5) / points_per_side
    return np.stack(np.meshgrid(centres, centres), axis=-1).reshape(-1, 2)


def stability_score(logits: Tensor, offset: float) -> Tensor:
    """IoU between the masks at thresholds +offset and -offset (one contains the other). logits: (n, H, W) -> (n,)."""
    inner, outer = areas_of(logits > offset), areas_of(logits > -offset)
    return inner / outer.clamp(min=1)


def areas_of(masks: Tensor) -> Tensor:
    """How many pixels each has. masks: (n, H, W) bool -> (n,) int64."""
    if masks.device.type == "cpu" and not torch.jit.is_tracing():  # ten times as fast as a sum there
        return torch.tensor([np.count_nonzero(mask) for mask in masks.numpy()], dtype=torch.int64)
    return masks.sum(dim=(1, 2))


def run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed counts: column by column, runs of 0 and 1 in turn, the first of them of 0 (and perhaps
    empty).
    """
    flat = np.concatenate([[0], mask.astype(np.uint8).flatten(order="F")])
    edges = np.flatnonzero(np.diff(flat))
    return np.diff(np.concatenate([[0], edges, [mask.size]])).tolist()


def remove_small_regions(mask: np.ndarray, least: int) -> np.ndarray:
    """Fill holes, then drop islands, of fewer than `least` pixels. (H, W) bool; the largest island always stays."""
    return remove_regions_of(remove_regions_of(mask, False, least), True, least)


def remove_regions_of(mask: np.ndarray, value: bool, least: float) -> np.ndarray:
    """Turn over the regions of one value, islands (True) or holes (False), that have fewer than `least` pixels.

    mask: (H, W) bool. The largest island always stays.
    """
    _, labels, stats, _ = cv2.connectedComponentsWithStats((mask == value).astype(np.uint8), connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]
    small = areas < least
    if value and small.all() and len(areas):
        small[areas.argmax()] = False
    return np.where(np.concatenate([[False], small])[labels], not value, mask)


def _touches_crop(masks: Tensor, crop: tuple[int, int, int, int], size: tuple[int, int]) -> Tensor:
    """Whether masks (n, h, w) of a crop reach one of its edges that is no edge of the image. -> (n,) bool."""
    left, top, width, height = crop
    cut = torch.zeros(len(masks), dtype=torch.bool, device=masks.device)
    near_x, near_y = max(1, round(CROP_EDGE * width)), max(1, round(CROP_EDGE * height))
    for inner, strip in (
        (left > 0, masks[:, :, :near_x]),
        (left + width < size[1], masks[:, :, -near_x:]),
        (top > 0, masks[:, :near_y]),
        (top + height < size[0], masks[:, -near_y:]),
    ):
        if inner:
            cut |= strip.flatten(1).any(dim=1)
    return cut


def _distinct(found: Found, order: np.ndarray, mask_overlap: float, box_overlap: float) -> np.ndarray:
    """The masks that overlap none before them, in falling `order` and then falling predicted IoU. -> rows, (m,) int."""
    ranking = np.lexsort((-found.iou, -order))
    rles = [found.rles[i] for i in ranking]
    kept: list[int] = []
    alone = np.ones(len(rles), bool)
    boxes = coco_mask.toBbox(rles).reshape(-1, 4)
    for i in range(len(rles)):
        if not alone[i]:
            continue
        kept.append(i)
        rest = i + 1 + np.flatnonzero(alone[i + 1 :])
        if len(rest):
            overlap = coco_mask.iou([rles[i]], [rles[j] for j in rest], [0] * len(rest))[0]
            alone[rest[overlap > mask_overlap]] = False
            if box_overlap < 1:
                alone[rest[coco_mask.iou(boxes[i : i + 1], boxes[rest], [0] * len(rest))[0] > box_overlap]] = False
    return ranking[kept]


def _areas(rles: list[dict[str, Any]]) -> np.ndarray:
    """In pixels. One by one: of more than 255 at once, pycocotools 2.0.11 raises an OverflowError under NumPy 2."""
    return np.array([coco_mask.area(rle) for rle in rles], int)


def _together(parts: list[Found]) -> Found:
    return Found(
        [rle for part in parts for rle in part.rles], *(np.concatenate(values) for values in list(zip(*parts))[1:])
    )
