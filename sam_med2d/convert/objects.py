"""From the masks of classes in a picture to its objects: pieces, and which of them are large enough to keep."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from sam_med2d.convert.cases import Object

PAPER_MIN_AREA = 0.153  # per cent of the picture: 100 pixels of 256 x 256
PAPER_MIN_ASPECT = 0.5


@dataclass(frozen=True)
class Preparation:
    """Which objects are kept. The paper's: components, PAPER_MIN_AREA, PAPER_MIN_ASPECT.

    components: every 8-connected piece of a class is an object of its own.
    min_area: objects below this share of the picture, in per cent, are dropped.
    min_aspect: pictures whose short side is below this share of the long side are dropped; of slices, in millimetres.
    only: names of the classes to keep; empty: all.
    """

    components: bool = False
    min_area: float = 0.0
    min_aspect: float = 0.0
    only: tuple[str, ...] = ()

    def keeps_shape(self, height: float, width: float) -> bool:
        """height, width: in one unit."""
        return min(height, width) >= self.min_aspect * max(height, width)

    def objects(self, masks: Iterable[tuple[str, np.ndarray]], tally: Counter) -> list[Object]:
        """The objects of one picture, none of them empty.

        masks: (class, (H, W) bool), classes in any order and more than once; tally: counts what is dropped, by reason.
        """
        kept: list[Object] = []
        seen: Counter[str] = Counter()
        for class_name, mask in masks:
            if self.only and class_name not in self.only:
                continue
            for piece, area in _pieces(mask) if self.components else [(mask, np.count_nonzero(mask))]:
                if area == 0:
                    tally["empty masks"] += 1
                elif area < self.min_area / 100 * mask.size:
                    tally["objects below --min_area"] += 1
                else:
                    kept.append(Object(class_name, seen[class_name], piece))
                    seen[class_name] += 1
        return kept


def _pieces(mask: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
    """8-connected pieces of (H, W) bool with their areas, in the order of their first pixels."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(
        np.ascontiguousarray(mask).view(np.uint8), connectivity=8
    )
    if count == 1:
        yield mask, 0
    for i in range(1, count):
        yield labels == i, int(stats[i, cv2.CC_STAT_AREA])
