"""What a simulated annotator gives: boxes, first clicks, corrections and masks, for all objects at once, on their
device.

Masks and regions are (N, 1, S, S) bool. Points are x before y, in pixels of the S x S frame, a pixel's own index.
Boxes are x0 y0 x1 y1 with x1 and y1 one past the last pixel.

No function here draws random numbers: callers hand in `uniform`, numbers in [0, 1), one row an object. So a
draw can come from one generator on the device (training) or depend on the object's name alone (testing).
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from sam_med2d.regions import depth_of, innermost_pixel
from segment_anything import ABSENT, BACKGROUND, FOREGROUND, Prompts

Clicks = tuple[Tensor, Tensor]  # points (N, P, 2), labels (N, P)


def boxes_of(masks: Tensor) -> Tensor:
    """The tight box around each mask, all its pieces included. -> (N, 4) float32; zeros where a mask is empty."""
    sides = []
    for occupied in (masks.any(dim=-2).squeeze(1), masks.any(dim=-1).squeeze(1)):  # columns, then rows: (N, S)
        ones = occupied.to(torch.uint8)  # argmax: the first of the largest
        first = ones.argmax(dim=1)
        end = ones.shape[1] - ones.flip(1).argmax(dim=1)
        sides.append((first, torch.where(occupied.any(dim=1), end, 0)))
    (x0, x1), (y0, y1) = sides
    return torch.stack([x0, y0, x1, y1], dim=1).float()


def shift_boxes(boxes: Tensor, uniform: Tensor, image_size: int, limit: int = 5) -> Tensor:
    """Move each box by up to min(limit, half its short side) whole pixels in x and in y, within the frame.

    uniform: (N, 2).
    """
    short_side = (boxes[:, 2:] - boxes[:, :2]).amin(dim=1, keepdim=True)
    reach = (short_side / 2).floor().clamp(max=limit)
    shift = (uniform * (2 * reach + 1)).floor() - reach
    return (boxes + shift.repeat(1, 2)).clamp(0, image_size)


def jitter_boxes(boxes: Tensor, uniform: Tensor, image_size: int, jitter: int) -> Tensor:
    """Move each of the four sides by up to `jitter` whole pixels, either way, within the frame.

    A side never passes the middle of its box, so that at least a pixel is left. uniform: (N, 4).
    """
    moved = boxes + (uniform * (2 * jitter + 1)).floor() - jitter
    middle = ((boxes[:, :2] + boxes[:, 2:]) / 2).floor()
    first = torch.minimum(moved[:, :2], middle).clamp(min=0)
    end = torch.maximum(moved[:, 2:], middle + 1).clamp(max=image_size)
    return torch.cat([first, end], dim=1)


def draw_boxes(boxes: Tensor, uniform: Tensor, image_size: int) -> Tensor:
    """Boxes as people draw them: each side moved by a normal deviate of 10 % of the box's side, by at most 20 pixels
    (SAM paper, appendix A, "Training algorithm"), to whole pixels within the frame.

    A side never passes the middle of its box. uniform: (N, 4).
    """
    size = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    normal = torch.special.ndtri(uniform.double().clamp(1e-6, 1 - 1e-6)).to(boxes)
    moved = (boxes + (0.1 * size * normal).clamp(-20, 20)).round()
    middle = ((boxes[:, :2] + boxes[:, 2:]) / 2).floor()
    first = torch.minimum(moved[:, :2], middle).clamp(min=0)
    end = torch.maximum(moved[:, 2:], middle + 1).clamp(max=image_size)
    return torch.cat([first, end], dim=1)


def pick_pixels(region: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """P pixels of each region, every pixel as likely as any other, with replacement.

    uniform: (N, P). -> xy (N, P, 2) float32, found (N,) bool: whether the region has a pixel at all.
    """
    width = region.shape[-1]
    running = region.flatten(1).cumsum(dim=1, dtype=torch.int32)
    total = running[:, -1:]
    rank = (uniform * total).to(torch.int32).clamp(max=(total - 1).clamp(min=0))  # 0 .. total - 1
    pixel = torch.searchsorted(running, rank, right=True).clamp(max=running.shape[1] - 1)
    xy = torch.stack([pixel % width, pixel // width], dim=-1).float()
    return xy, total.squeeze(1) > 0


def clicks_on(masks: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Foreground clicks. uniform: (N, P) -> points (N, P, 2), labels (N, P) int64."""
    points, found = pick_pixels(masks, uniform)
    return points, torch.where(found, FOREGROUND, ABSENT).unsqueeze(1).expand(uniform.shape).contiguous()


def join_clicks(earlier: Clicks | None, more: Clicks) -> Clicks:
    """Both, the earlier ones first."""
    if earlier is None:
        return more
    return torch.cat([earlier[0], more[0]], dim=1), torch.cat([earlier[1], more[1]], dim=1)


def corrective_clicks(masks: Tensor, predicted: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Clicks on wrong pixels: foreground where the object was missed, background where too much was marked.

    predicted: (N, 1, S, S) bool; uniform: (N, P) -> points (N, P, 2), labels (N, P) int64, ABSENT where the
    prediction has no wrong pixel.
    """
    points, found = pick_pixels(masks ^ predicted, uniform)
    x, y = points.long().unbind(-1)
    rows = torch.arange(masks.shape[0], device=masks.device).unsqueeze(1)
    labels = torch.where(masks[rows, 0, y, x], FOREGROUND, BACKGROUND)
    return points, torch.where(found.unsqueeze(1), labels, ABSENT)


def central_clicks(masks: Tensor, predicted: Tensor) -> tuple[Tensor, Tensor]:
    """One click an object in the middle of its largest error: nothing is random.

    Of the 8-connected regions of missed and of wrongly marked pixels the one with the most pixels, and in it the pixel
    farthest from its edge, the picture's border being an edge; the first in reading order where several are alike.
    predicted: (N, 1, S, S) bool -> points (N, 1, 2), labels (N, 1) int64, ABSENT where nothing is wrong.
    """
    return _click_each(masks, predicted, lambda _, region: innermost_pixel(region))


def human_clicks(masks: Tensor, predicted: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """One click an object near the middle of its largest error, not on it: any pixel of the region's inner half, by its
    distance from the edge, is as likely.

    Real clicks lie beside the middle, and score lower than those that are on it (Antonov et al. 2024, arXiv
    2410.11722); that it is the inner half is this project's choice. Shapes as of `central_clicks`; uniform: (N, 1).
    """

    def chosen(row: int, region: np.ndarray) -> tuple[int, int]:
        depth = depth_of(region)
        inner = np.flatnonzero(depth >= depth.max() / 2)
        y, x = np.unravel_index(inner[int(uniform[row, 0] * len(inner))], region.shape)
        return int(x), int(y)

    return _click_each(masks, predicted, chosen)


def _click_each(
    masks: Tensor, predicted: Tensor, choose: Callable[[int, np.ndarray], tuple[int, int]]
) -> tuple[Tensor, Tensor]:
    """choose: of a row and its largest error, (S, S) bool, the pixel (x, y) that is clicked."""
    points, labels = [], []
    for row, (mask, guess) in enumerate(zip(masks[:, 0].cpu().numpy(), predicted[:, 0].cpu().numpy())):
        region, label = largest_error(mask, guess)
        points.append((0, 0) if label == ABSENT else choose(row, region))
        labels.append(label)
    return (
        torch.tensor(points, dtype=torch.float32, device=masks.device)[:, None],
        torch.tensor(labels, device=masks.device)[:, None],
    )


def largest_error(mask: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, int]:
    """The 8-connected region with the most wrong pixels, (S, S) bool, and the label that corrects it.

    Missed ones first, and the first in reading order, where several are alike. Nothing wrong: no pixel, ABSENT.
    """
    best, label, size = np.zeros_like(mask), ABSENT, 0
    for error, kind in ((mask & ~predicted, FOREGROUND), (predicted & ~mask, BACKGROUND)):
        regions, count = ndimage.label(error, np.ones((3, 3)))  # in reading order, which OpenCV's are not
        areas = np.bincount(regions.ravel())[1:]
        if count and areas.max() > size:
            best, label, size = regions == 1 + areas.argmax(), kind, int(areas.max())
    return best, label


def one_shot_clicks(masks: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """P clicks placed without seeing a prediction: P // 2 on the object, at least one, the rest on the background.

    uniform: (N, P) -> points (N, P, 2), labels (N, P) int64.
    """
    inside = max(1, uniform.shape[1] // 2)
    points, labels = clicks_on(masks, uniform[:, :inside])
    outside, found = pick_pixels(~masks, uniform[:, inside:])
    outside_labels = torch.where(found, BACKGROUND, ABSENT).unsqueeze(1).expand(outside.shape[:2])
    return torch.cat([points, outside], dim=1), torch.cat([labels, outside_labels], dim=1)


def mask_prompts(masks: Tensor) -> Tensor:
    """The truth as a mask prompt, averaged over 4 x 4 pixels. (N, 1, S, S) bool -> (N, 1, S/4, S/4) float32"""
    return F.avg_pool2d(masks.float(), 4)


def clicks_in(prompts: Prompts) -> Clicks | None:
    """Points and labels of prompts that have clicks."""
    return None if prompts.points is None or prompts.labels is None else (prompts.points, prompts.labels)


def clicks_of(prompts: Prompts) -> int:
    """How many clicks each object has."""
    return 0 if prompts.points is None else prompts.points.shape[1]
