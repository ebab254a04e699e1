"""The refinement network: what a click says below the patch, an optional part beside SAM's.

SAM's decoder reads a click as one token, and answers in a map of S/4. This network reads the picture, the decoder's
answer and dense maps of every click, stroke and box, and adds to the logits at the full size of the frame (as the
interactive networks do that take clicks as maps: Sofiiuk et al. 2022, arXiv 2102.06583, section 3; Wong et al. 2024,
arXiv 2312.07381, section 3). It works at half the frame, where three quarters of the arithmetic are saved, and writes
four pixels for each place. Its last layer starts at zero: a new one adds nothing.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .products import is_recorded
from .prompt_encoder import BACKGROUND, FOREGROUND

CLICK_SIGMA = 3.0  # pixels of the frame: how far a click's Gaussian reaches
WIDE_SIGMA = 12.0  # of a second one, which says at a coarser place that a click is near
SURE = 1.0  # the least logit, either way, of a pixel that a person marked
SETTLED_AFTER = 3  # clicks after which the object that is meant is known, and only details are clicked on
SETTLING = 0.5  # of a network that learned: the share of the way back to the mask before, far from the newest click
NEAR = 1 / 8  # of the frame: how far the newest click of those reaches
LARGEST = 8.0  # logits beyond it are compared as it: half precision knows no surer probabilities
PROMPT_MAPS = 6  # foreground and background, sharp and wide; the box; whether there is an earlier mask
GROUPS = 4  # of each group normalisation
ANSWER_MAPS = 3  # the answer's probability, how sure it is, the earlier mask


class Marks(NamedTuple):
    """What a person marked, as maps of the frame.

    maps: (N, PROMPT_MAPS, S/2, S/2) float, what the network reads
    sure: (N, 2, S, S) bool, pixels that are foreground, and that are background, by a person's word
    far: (N, 1, S/4, S/4) float, 0 at the newest click to 1 far from it; 0 for an object with SETTLED_AFTER clicks or
    fewer, or with strokes; None where that is certain of all
    """

    maps: Tensor
    sure: Tensor
    far: Tensor | None


def gaussians(points: Tensor, wanted: Tensor, sigma: float, side: int, stride: int) -> Tensor:
    """The highest of the Gaussians around some points, at every `stride`-th pixel: (N, side / stride, same).

    points: (N, P, 2) xy in pixels of the frame; wanted: (N, P) bool, those that count; side: S.
    """
    grid = torch.arange(side // stride, device=points.device) * stride + (stride - 1) / 2
    near = torch.exp(-((grid - points.float()[..., None]) ** 2) / (2 * sigma**2))  # N, P, 2, side / stride
    columns, rows = _of_wanted(near, wanted)
    return (rows[..., None] * columns[:, :, None]).amax(dim=1)


def pixels_of(points: Tensor, wanted: Tensor, side: int) -> Tensor:
    """The pixels nearest to some points: (N, side, side) bool. Arguments as of `gaussians`."""
    grid = torch.arange(side, device=points.device)
    columns, rows = _of_wanted((points.float().round()[..., None] == grid).float(), wanted)
    return rows.transpose(1, 2) @ columns > 0


def far_from_newest(points: Tensor, clicked: Tensor, side: int) -> Tensor:
    """See `Marks.far`: (N, side / 4, same). clicked: (N, P) bool, which points are clicks, the newest last."""
    number = clicked.long().cumsum(dim=1)
    newest = clicked & (number == number[:, -1:]) & (number > SETTLED_AFTER)
    near = gaussians(points, newest, NEAR * side, side, 4)
    return (1 - near) * newest.any(dim=1)[:, None, None]


def _of_wanted(near: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """How near columns and rows are to some points, (N, P, 2, side) -> columns, rows, both (N, P + 1, side).

    Rows of points that do not count are zeros, and so are those of one point more, for objects without points.
    """
    columns, rows = F.pad(near, (0, 0, 0, 0, 0, 1)).unbind(2)
    return columns, rows * F.pad(wanted.to(near), (0, 1))[..., None]


def box_maps(boxes: Tensor, side: int, stride: int) -> Tensor:
    """boxes: (N, 4) x0 y0 x1 y1 -> (N, side / stride, same), how much of each cell lies inside."""
    grid = torch.arange(side // stride, device=boxes.device) * stride
    low, high = boxes.float().reshape(-1, 2, 2, 1).unbind(1)
    inside = (torch.minimum(high, grid + stride) - torch.maximum(low, grid)).clamp(0, stride) / stride
    return inside[:, 1, :, None] * inside[:, 0, None, :]


def marks_of(
    side: int,
    rows: int,
    device: torch.device,
    points: Tensor | None,
    labels: Tensor | None,
    boxes: Tensor | None,
    strokes: Tensor | None,
) -> Marks:
    """Prompts of N objects as maps. side: S; rows: N; strokes: (N, 2, S, S) bool, on the object and on the background.

    An object without a mark of a kind has zeros in its map.
    """
    half = side // 2
    sharp = torch.zeros(rows, 2, half, half, device=device)
    wide, sure = torch.zeros_like(sharp), torch.zeros(rows, 2, side, side, dtype=torch.bool, device=device)
    far = None
    if points is not None and labels is not None:
        kinds = [labels == FOREGROUND, labels == BACKGROUND]
        sharp = torch.stack([gaussians(points, kind, CLICK_SIGMA, side, 2) for kind in kinds], dim=1)
        wide = torch.stack([gaussians(points, kind, WIDE_SIGMA, side, 2) for kind in kinds], dim=1)
        sure = torch.stack([pixels_of(points, kind, side) for kind in kinds], dim=1)
        if is_recorded() or points.shape[1] > SETTLED_AFTER:  # a graph has to hold any number of points
            far = far_from_newest(points, kinds[0] | kinds[1], side)[:, None]
    if strokes is not None:
        drawn = F.max_pool2d(strokes.float(), 2)
        near = F.avg_pool2d(F.max_pool2d(drawn, 9, stride=1, padding=4), 9, stride=1, padding=4)
        sharp, wide, sure = torch.maximum(sharp, drawn), torch.maximum(wide, near), sure | (strokes > 0)
        if far is not None:
            far = far * (drawn.amax(dim=(1, 2, 3), keepdim=True) == 0)
    box = torch.zeros(rows, half, half, device=device) if boxes is None else box_maps(boxes, side, 2)
    return Marks(torch.cat([sharp, wide, box[:, None]], dim=1), sure, far)


def _normalised(channels: int, out: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """A 3 x 3 convolution, group normalisation, ReLU."""
    convolution = nn.Conv2d(channels, out, 3, stride=stride, padding=dilation, dilation=dilation)
    return nn.Sequential(convolution, nn.GroupNorm(GROUPS, out), nn.ReLU())


class Residual(nn.Module):
    """Two 3 x 3 convolutions around which the input is added."""

    def __init__(self, channels: int, dilation: int = 1) -> None:
        super().__init__()
        self.layers = nn.Sequential(_normalised(channels, channels, dilation=dilation), _normalised(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class Refinement(nn.Module):
    """Picture, answer and marks -> logits of the frame's full size. A U of three sizes: S/2, S/4 and S/8.

    `look` is computed once a picture, `forward` once an answer.
    """

    # kept with the weights, as it was measured with them; 0 in files without it
    choosing: Tensor  # (1,), how answers are chosen, see `sam.ranked`
    settling: Tensor  # (1,), how far late clicks leave what is far from them as it was, see `_settled`

    def __init__(self, channels: tuple[int, int, int] = (16, 32, 48)) -> None:
        super().__init__()
        fine, middle, coarse = channels
        self.look_at = nn.Sequential(_normalised(3, fine, stride=2), nn.Conv2d(fine, fine, 3, padding=1))
        self.read = nn.Conv2d(ANSWER_MAPS + PROMPT_MAPS, fine, 3, padding=1)
        self.norm = nn.GroupNorm(GROUPS, fine)
        self.down1 = nn.Sequential(_normalised(fine, middle, stride=2), Residual(middle))
        self.down2 = nn.Sequential(
            _normalised(middle, coarse, stride=2), *(Residual(coarse, dilation) for dilation in (1, 2, 4))
        )
        self.to_middle = nn.Conv2d(coarse, middle, 1)
        self.up2 = Residual(middle)
        self.to_fine = nn.Conv2d(middle, fine, 1)
        self.up1 = Residual(fine)
        self.write = nn.Conv2d(fine, 4, 1)
        for parameter in self.write.parameters():
            nn.init.zeros_(parameter)
        self.register_buffer("choosing", torch.ones(1))
        self.register_buffer("settling", torch.zeros(1))

    def will_learn(self) -> None:
        """From here on answers are chosen, and settle, as of a network that learned with this code."""
        self.choosing.fill_(1)
        self.settling.fill_(SETTLING)

    def look(self, images: Tensor) -> Tensor:
        """images: (B, 3, S, S), normalised -> what the network keeps of a picture, (B, C, S/2, S/2)."""
        return self.look_at(_by_pixels(images))

    def forward(self, details: Tensor, logits: Tensor, earlier: Tensor | None, marks: Marks) -> Tensor:
        """details: (N, C, S/2, S/2), `look` of each object's picture; logits: (N, 1, S/4, S/4), the answer; earlier:
        (N, 1, S/4, S/4), the probabilities of the answer before, if there is one. -> logits (N, 1, S, S).

        What a person marked has the sign that it was marked with. Answers settle in evaluation alone: what is learned
        is the network's own answer.
        """
        side = 2 * details.shape[-1]
        answer = _enlarged(logits.float(), details)
        before = torch.zeros_like(answer) if earlier is None else _enlarged(earlier.float(), details)
        # of an object without an earlier mask, in a batch of others that have one, it is all zeros
        there = (before.amax(dim=(1, 2, 3), keepdim=True) > 0).to(answer)
        x = torch.cat([answer.sigmoid(), (answer / 8).tanh(), before, there.expand_as(answer), marks.maps], dim=1)
        fine = self.norm(self.read(_by_pixels(x)) + details).relu()  # in the layout of the first
        middle = self.down1(fine)
        coarse = self.down2(middle)
        middle = self.up2(middle + _enlarged(self.to_middle(coarse), middle))
        fine = self.up1(fine + _enlarged(self.to_fine(middle), fine))
        added = F.pixel_shuffle(self.write(fine).float(), 2)
        whole = F.interpolate(logits.float(), size=(side, side), mode="bilinear", align_corners=False) + added
        if earlier is not None and marks.far is not None and not self.training:
            whole = self._settled(whole, earlier, there * marks.far)
        foreground, background = marks.sure[:, :1], marks.sure[:, 1:]
        whole = torch.where(foreground, whole.clamp(min=SURE), whole)
        return torch.where(background, whole.clamp(max=-SURE), whole)

    def _settled(self, whole: Tensor, earlier: Tensor, far: Tensor) -> Tensor:
        """After many clicks, a part of the way back to the mask before, where that is far from the newest click.

        A late click is about a detail, and what changes elsewhere is more often lost than gained. The two are compared
        at S/4, where the mask before is known, so that borders stay as sharp as they are.

        whole: (N, 1, S, S) logits; earlier: as of `forward`; far: as of `Marks`, and 0 where there is no mask before.
        """
        before = earlier.float().clamp(1 / (1 + math.exp(LARGEST)), 1 / (1 + math.exp(-LARGEST)))
        moved = F.avg_pool2d(whole, 4).clamp(-LARGEST, LARGEST) - (before / (1 - before)).log()
        return whole - _enlarged(self.settling * far * moved, whole)


def _by_pixels(x: Tensor) -> Tensor:
    """The same, the channels of a pixel side by side in memory, and so in all layers that follow: a CPU's convolutions
    then need no copies. A graph for other runtimes has no layouts.
    """
    return x.contiguous(memory_format=torch.channels_last) if x.device.type == "cpu" and not is_recorded() else x


def _enlarged(values: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(values, size=like.shape[-2:], mode="bilinear", align_corners=False)
