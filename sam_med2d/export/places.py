"""`segment_anything.geometry` inside a graph: there and back for an image whose size is known when the graph runs.

What OpenCV's rounding does to a few sides is a table, because runtimes round such products in ways of their own.
"""

from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from segment_anything.geometry import source_places

LARGEST_SIDE = 4096  # pixels; up to it the geometry inside the graph is OpenCV's to the pixel


def length(side: Tensor) -> int:
    """A number that is known when the graph runs, () int64 -> what the exporters take for a size."""
    if torch.jit.is_tracing():
        return cast(int, side)  # the tracing exporter keeps tensors apart from constants
    found = side.item()
    torch._check(found >= 1)
    return cast(int, found)  # the newer one takes a symbol


def up_to(side: Tensor) -> Tensor:
    """The indexes below a number that is known when the graph runs."""
    return torch.arange(length(side))


class Places(nn.Module):
    """A side in pixels -> of each of the `frame` pixels it is stretched to, the source pixel that OpenCV puts there.

    OpenCV multiplies by an inverse in float64, and so falls short of some whole numbers: in 34 of the first 1500 sides
    at 256 px, by one pixel in some places. `early` has a row for each of these sides, and a first one of zeros.
    """

    early: Tensor
    row_of: Tensor

    def __init__(self, frame: int) -> None:
        super().__init__()
        self.frame = frame
        position = np.arange(frame)
        rows, row_of = [np.zeros(frame, np.int8)], np.zeros(LARGEST_SIDE + 2, np.int32)
        for side in range(1, LARGEST_SIDE + 1):
            early = position * side // frame - source_places(side, frame)
            if early.any():
                row_of[side] = len(rows)
                rows.append(early.astype(np.int8))
        self.register_buffer("early", torch.from_numpy(np.stack(rows)))
        self.register_buffer("row_of", torch.from_numpy(row_of))  # its last entry is of all larger sides

    def forward(self, side: Tensor) -> Tensor:
        """side: () int64 -> (frame,) int64."""
        row = self.row_of.index_select(0, side.reshape(1).clamp(max=LARGEST_SIDE + 1)).long()
        early = self.early.long().index_select(0, row).reshape(-1)
        return torch.arange(self.frame) * side // self.frame - early


class Back(nn.Module):
    """`geometry.back` by the exact inverse: logits (N, K, S, S) -> (N, K, height, width)."""

    def __init__(self, frame: int) -> None:
        super().__init__()
        self.frame = frame
        self.places = Places(frame)

    def forward(self, logits: Tensor, height: Tensor, width: Tensor) -> Tensor:
        """height, width: () int64."""
        columns = self._rows_at(logits.transpose(-2, -1), width)
        return self._rows_at(columns.transpose(-2, -1), height)

    def _rows_at(self, values: Tensor, side: Tensor) -> Tensor:
        """values: (N, K, S, w) -> (N, K, side, w)."""
        places = self.places(side)
        row = up_to(side).clamp(max=places[-1])  # nothing is known beyond the last that the frame shows
        first = (places < row[:, None]).sum(dim=1)  # of the frame pixels that show it, or the next one before it
        last = (places <= row[:, None]).sum(dim=1) - 1
        first = torch.minimum(first, last)
        here = places.index_select(0, last)
        gap = places.index_select(0, (last + 1).clamp(max=self.frame - 1)) - here
        low = (first + last) // 2  # apart where the image is smaller than the frame, whose middle may be a half
        share = (first + last) % 2 * 0.5 + (row - here) / gap.clamp(min=1)
        above = values.index_select(-2, low)
        below = values.index_select(-2, (low + 1).clamp(max=self.frame - 1))
        return above + (below - above) * share.float()[:, None]
