"""Between a picture and the square frame that the model sees: masks, points and boxes, there and back.

A picture is stretched to S x S with OpenCV's nearest neighbour, as the published weights expect, which puts source
pixel `floor(i * s)` at place i of the frame, s being the picture's side over S. Everything here follows from these
places, so that what the model says of a frame pixel comes back to the pixel that it saw there:

    axis = Stretch(side=512, frame=128)
    axis.places                     # of each frame pixel, the source pixel that it shows: 0, 4, 8, ...
    axis.points_to_frame(8.0)       # 2.0
    masks = back(logits, (512, 512))        # (N, K, 128, 128) -> (N, K, 512, 512)

The original (and SAM) maps back as if frame pixels showed the centres of what they stand for: masks then lie
(s - 1) / 2 pixels towards the lower right. `paper=True` keeps that mapping bit for bit, for comparisons with published
numbers.

Points are indexes of pixels (0 is the middle of the first); edges of boxes lie between pixels (0 is before the first).
"""

from functools import lru_cache

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

EXACT, PAPER = "exact", "paper"
PROTOCOLS = (EXACT, PAPER)  # of the way back: the exact inverse, or the original's mapping


def is_paper(protocol: str) -> bool:
    """Whether one of PROTOCOLS is the original's. Raises ValueError: it is none of them."""
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, not {protocol!r}")
    return protocol == PAPER


class Stretch:
    """One axis of a picture of `side` pixels, stretched to `frame` pixels."""

    def __init__(self, side: int, frame: int, paper: bool = False) -> None:
        self.side = side
        self.frame = frame
        self.paper = paper
        self.places = source_places(side, frame)
        first = np.flatnonzero(np.diff(self.places, prepend=-1))
        last = np.append(first[1:], frame) - 1
        self._shown = self.places[first].astype(np.float64)  # the source pixels that the frame shows, ascending
        self._middle = (first + last) / 2  # of each, the middle of the frame pixels that show it

    def rows(self) -> np.ndarray:
        """Of each source pixel, the place in the frame (a fraction) that says most of it. -> (side,) float64."""
        return np.interp(np.arange(self.side), self._shown, self._middle)

    def points_to_frame(self, points: np.ndarray | float) -> np.ndarray:
        """Indexes of source pixels, fractions too -> indexes of frame pixels, float64, the same shape."""
        points = np.asarray(points, np.float64)
        if self.paper:
            return points * (self.frame / self.side)
        return np.interp(points, self._shown, self._middle)

    def points_to_source(self, points: np.ndarray | float) -> np.ndarray:
        """The reverse of `points_to_frame`."""
        points = np.asarray(points, np.float64)
        if self.paper:
            return points * (self.side / self.frame)
        return np.interp(points, np.arange(self.frame), self.places)

    def edges_to_frame(self, edges: np.ndarray | float) -> np.ndarray:
        """Edges between source pixels -> edges between frame pixels, float64, the same shape.

        A whole edge goes to the edge before the first frame pixel that shows something behind it.
        """
        edges = np.asarray(edges, np.float64)
        if self.paper:
            return edges * (self.frame / self.side)
        return np.interp(edges, np.arange(self.side + 1), np.searchsorted(self.places, np.arange(self.side + 1)))

    def spans_to_frame(self, start: np.ndarray, stop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The two edges of spans, as `edges_to_frame`; but a span of which the frame shows no pixel keeps its width.

        It lies around where its middle lies: a box without any width would say nothing of how small its object is.
        """
        first, end = self.edges_to_frame(start), self.edges_to_frame(stop)
        if self.paper:
            return first, end
        start, stop = np.asarray(start, np.float64), np.asarray(stop, np.float64)
        middle = self.points_to_frame((start + stop - 1) / 2) + 0.5  # of a pixel's index -> an edge's place
        reach = (stop - start) * (self.frame / self.side) / 2
        hidden = end <= first
        return np.where(hidden, middle - reach, first), np.where(hidden, middle + reach, end)

    def edges_to_source(self, edges: np.ndarray | float) -> np.ndarray:
        """The reverse of `edges_to_frame`, where several source edges are alike the first of them."""
        edges = np.asarray(edges, np.float64)
        if self.paper:
            return edges * (self.side / self.frame)
        return np.interp(edges, np.arange(self.frame + 1), np.append(self.places, self.side))


@lru_cache(maxsize=4096)
def stretch(side: int, frame: int, paper: bool = False) -> Stretch:
    """A `Stretch`, made once."""
    return Stretch(side, frame, paper)


def source_places(side: int, frame: int) -> np.ndarray:
    """Of each frame pixel, the source pixel that OpenCV puts there: (frame,) int64.

    Asked of OpenCV itself, which falls short of floor(i * side / frame) where that product is rounded down.
    """
    numbers = np.arange(side, dtype=np.float32)[None]
    return cv2.resize(numbers, (frame, 1), interpolation=cv2.INTER_NEAREST)[0].astype(np.int64)


def back(logits: Tensor, size: tuple[int, int], paper: bool = False) -> Tensor:
    """From a frame to the picture that was stretched to it, linear between the places that the frame shows.

    logits: (N, K, h, w); size: (height, width) of the picture -> (N, K, *size).
    """
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits
    if paper:
        return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)
    height, width = size
    # columns first, where there are fewest, and as rows: whole rows are copied faster than single numbers
    columns = _rows_at(logits.transpose(-2, -1).contiguous(), stretch(width, logits.shape[-1]).rows())
    return _rows_at(columns.transpose(-2, -1).contiguous(), stretch(height, logits.shape[-2]).rows())


def _rows_at(values: Tensor, places: np.ndarray) -> Tensor:
    """Rows at fractions of indexes, linear between neighbours. values: (..., h, w); places: (H,) -> (..., H, w)."""
    low = np.floor(places).astype(np.int64)
    high = np.minimum(low + 1, values.shape[-2] - 1)
    share = (places - low).astype(np.float32)[:, None]
    first = values.index_select(-2, torch.from_numpy(low).to(values.device))
    if not share.any():
        return first
    second = values.index_select(-2, torch.from_numpy(high).to(values.device))
    return first.lerp_(second, torch.from_numpy(share).to(values))
