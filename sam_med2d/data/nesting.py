"""Classes that are regions of one another, as a tumour and its core: where both are alike in a slice, no mask is there
twice.
"""

from collections.abc import Iterable, Mapping
from itertools import combinations

import numpy as np

MOST_CLASSES = 12  # of an image whose pairs are looked at

Pair = tuple[int, int]  # of classes, the smaller number first


def relations(unions: Mapping[int, np.ndarray]) -> list[tuple[Pair, str]]:
    """How the classes of an image lie to one another: "equal", "inside" (either in the other) or "apart".

    unions: {class: (H, W) bool, all its objects}.
    """
    if len(unions) > MOST_CLASSES:
        return []
    found = []
    for one, other in combinations(sorted(unions), 2):
        both = np.count_nonzero(unions[one] & unions[other])
        sizes = {np.count_nonzero(unions[one]), np.count_nonzero(unions[other])}
        found.append(((one, other), "apart" if both not in sizes else "equal" if len(sizes) == 1 else "inside"))
    return found


class Nesting:
    """What the relations of all images say: regions lie inside one another in some image, and apart in none."""

    def __init__(self) -> None:
        self._seen: dict[Pair, set[str]] = {}

    def add(self, found: Iterable[tuple[Pair, str]]) -> None:
        for pair, relation in found:
            self._seen.setdefault(pair, set()).add(relation)

    def are_regions(self, one: int, other: int) -> bool:
        seen = self._seen.get((min(one, other), max(one, other)), set())
        return "inside" in seen and "apart" not in seen
