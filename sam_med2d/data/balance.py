"""Training where some data sets, or classes, are a thousand times larger than others: each gets the same share."""

from collections.abc import Sequence

import numpy as np

from sam_med2d.data.index import Index
from sam_med2d.data.labels import labels_of

KINDS = ("dataset", "class")


class Balance:
    """Groups of images that training shall see equally often.

    names, groups: of each group its name and the numbers of its images. By class an image may be in several groups,
    and its masks are drawn with `mask_shares`: the rarer the class in the index, the more often.
    """

    def __init__(self, index: Index, kind: str, names: Sequence[str], codes: np.ndarray) -> None:
        """codes: (masks of the index,) the place in `names` of each mask's group."""
        self.index = index
        starts = np.array([index.first_mask(i) for i in range(len(index) + 1)])
        if kind == "dataset":  # of the first mask: an image is in one data set
            image, code, self._weights = np.arange(len(index)), codes[starts[:-1]], None
        else:
            self._weights = (1 / np.bincount(codes, minlength=len(names)))[codes].astype(np.float32)
            pairs = np.unique(codes.astype(np.int64) * len(index) + np.repeat(np.arange(len(index)), np.diff(starts)))
            code, image = np.divmod(pairs, len(index))
        order = np.argsort(code, kind="stable")
        present, first = np.unique(code[order], return_index=True)
        self.names = [names[i] for i in present]
        self.groups = np.split(image[order].astype(np.int32), first[1:])

    def mask_shares(self, i: int) -> np.ndarray | None:
        """How probable each mask of an image is to be drawn; None: all alike."""
        if self._weights is None:
            return None
        weights = self._weights[self.index.first_mask(i) : self.index.first_mask(i + 1)].astype(np.float64)
        return weights / weights.sum()


def balance_of(index: Index, folder: str, kind: str) -> Balance:
    """kind: "dataset" or "class". folder: where metadata.csv may be. Raises DataError as labels_of does."""
    return Balance(index, kind, *labels_of(index, folder, kind))
