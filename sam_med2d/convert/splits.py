"""Which split a case is in. By case, never by slice, and by its name alone: adding cases moves none of the others."""

import os
from collections import Counter
from dataclasses import dataclass, replace

from sam_med2d.errors import UsageError
from sam_med2d.json_files import read_json
from sam_med2d.seeds import seed_of

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Splits:
    """ratios: shares of train, val and test; folds: 0, or how many folds train and val are dealt into.

    fixed: {group or case: split} from a file, one such dict a fold, or a single one without folds. Empty: nothing is
        fixed.
    auto: where the seed leaves a split empty, take another: see `filled`.
    """

    ratios: tuple[float, float, float] = (0.7, 0.1, 0.2)
    seed: int = 0
    folds: int = 0
    fixed: tuple[dict[str, str], ...] = ()
    auto: bool = False

    def check(self, group: str, name: str, given: str) -> None:
        """Raises UsageError for a case that the file does not name, in one fold or in all."""
        if not given and any(name not in fold and group not in fold for fold in self.fixed):
            raise UsageError(f"case '{name}' is in no split of --split_file; add it to one, or leave the flag out")

    def of(self, dataset: str, group: str, name: str, given: str = "") -> list[str]:
        """-> the split of a case; with folds, its split in each of them.

        given: the split that the source itself names, which counts unless the file says otherwise.
        """
        chance = self._by_chance(dataset, group) if not given else [given] * max(1, self.folds)
        if not self.fixed:
            return chance
        return [fold.get(name, fold.get(group, split)) for fold, split in zip(self.fixed, chance)]

    def filled(self, groups: set[tuple[str, str]]) -> "Splits":
        """These, or with a seed that leaves no split empty. groups: (data set, group), those by chance alone."""
        there = {self._by_chance(*group)[0] for group in groups}
        wanted = {split for split, share in zip(SPLITS, self.ratios) if share}
        return self if wanted <= there or not groups else replace(self, seed=self.evenest_seed(groups)[0])

    def evenest_seed(self, groups: set[tuple[str, str]], tried: int = 200) -> tuple[int, Counter]:
        """Of the first seeds, the one that leaves the fewest splits empty and comes nearest to the ratios.

        groups: (data set, group). -> the seed, and how many groups each split gets with it.
        """

        def counts_of(seed: int) -> Counter:
            return Counter(replace(self, seed=seed)._by_chance(*group)[0] for group in groups)

        def error(seed: int) -> tuple[int, float]:
            counts = counts_of(seed)
            pairs = [(counts[split], share * len(groups)) for split, share in zip(SPLITS, self.ratios)]
            return sum(wanted > 0 and not count for count, wanted in pairs), sum(
                abs(count - wanted) for count, wanted in pairs
            )

        best = min(range(tried), key=error)
        return best, counts_of(best)

    def _by_chance(self, dataset: str, group: str) -> list[str]:
        place = _place(self.seed, dataset, group)
        _, val, test = self.ratios
        if place < test:
            return ["test"] * max(1, self.folds)
        if self.folds:
            held_out = int(_place(self.seed, "fold", dataset, group) * self.folds)
            return ["val" if fold == held_out else "train" for fold in range(self.folds)]
        return ["val" if place < test + val else "train"]


def _place(*key: object) -> float:
    """A place in [0, 1) that the key alone decides."""
    return seed_of(*key) / 2**63


def read_split_file(path: str | os.PathLike) -> tuple[dict[str, str], ...]:
    """{"train": [case, ...], "val": ..., "test": ...}, or a list of these, one a fold (nnU-Net's splits_final.json).

    Raises UsageError: not readable, of another shape, or a case in two splits.
    """
    content = read_json(path, "give a file of {split: [case, ...]}", error=UsageError)
    folds = content if isinstance(content, list) else [content]
    fixed = []
    for fold in folds:
        if (
            not isinstance(fold, dict)
            or not set(fold) <= set(SPLITS)
            or not all(isinstance(v, list) for v in fold.values())
        ):
            raise UsageError(
                f"{path}: must be {{split: [case, ...]}} with splits out of {', '.join(SPLITS)}, or a list of these"
            )
        splits: dict[str, str] = {}
        for split, cases in fold.items():
            for case in cases:
                if splits.setdefault(str(case), split) != split:
                    raise UsageError(f"{path}: case '{case}' is in {splits[str(case)]} and in {split}; keep it in one")
        fixed.append(splits)
    if not fixed:
        raise UsageError(f"{path}: names no case; give at least one split")
    return tuple(fixed)
