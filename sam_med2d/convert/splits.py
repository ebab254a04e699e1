"""Which split a case is in. By case, never by slice, and by its name alone: adding cases moves none of the others.

The seed stands in split_seed.json beside the indexes, so that it stays when cases are added later.
"""

import json
import os
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from sam_med2d.errors import UsageError
from sam_med2d.json_files import read_json
from sam_med2d.seeds import seed_of
from segment_anything.files import replacing

SPLITS = ("train", "val", "test")
KEPT = "split_seed.json"


@dataclass(frozen=True)
class Splits:
    """ratios: shares of train, val and test; folds: 0, or how many folds train and val are dealt into.

    fixed: {group or case: split} from a file, one such dict a fold, or a single one without folds. Empty: nothing is
        fixed.
    auto: nobody gave the seed: see `settled`.
    tested: data sets that name their test cases themselves; of these no other is in test, unless all shall be.
    """

    ratios: tuple[float, float, float] = (0.7, 0.1, 0.2)
    seed: int = 0
    folds: int = 0
    fixed: tuple[dict[str, str], ...] = ()
    auto: bool = False
    tested: frozenset[str] = frozenset()

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

    def settled(self, folder: Path, groups: set[tuple[str, str]], given: set[str]) -> "Splits":
        """These, with the seed that counts: the one that was given, else the one that the folder keeps, else one that
        leaves no split empty. One that was given is kept, and a found one as soon as every split has a case.

        groups: (data set, group), those by chance alone; given: splits that the source fills itself.
        Raises UsageError: what the folder keeps is no seed.
        """
        if self.fixed:
            return self
        kept = _kept_seed(folder) if self.auto else None
        found = replace(self, seed=kept) if kept is not None else self._filled(groups, given) if self.auto else self
        if not self.auto or self._wanted() <= given | {found._by_chance(*group)[0] for group in groups}:
            with replacing(folder / KEPT) as path:
                path.write_text(json.dumps({"split_seed": found.seed}), encoding="utf-8")
        return found

    def _wanted(self) -> set[str]:
        return {split for split, share in zip(SPLITS, self.ratios) if share}

    def _filled(self, groups: set[tuple[str, str]], given: set[str]) -> "Splits":
        """These, or with a seed that leaves no split empty where there is one."""
        there = {self._by_chance(*group)[0] for group in groups} | given
        return self if self._wanted() <= there else replace(self, seed=self.evenest_seed(groups, given)[0])

    def evenest_seed(
        self, groups: set[tuple[str, str]], given: Collection[str] = (), tried: int = 200
    ) -> tuple[int, Counter]:
        """Of the first seeds, the one that leaves the fewest splits empty and comes nearest to the ratios.

        groups: (data set, group), by chance; given: splits that are not empty anyway.
        -> the seed, and how many groups each split gets with it.
        """

        def counts_of(seed: int) -> Counter:
            return Counter(replace(self, seed=seed)._by_chance(*group)[0] for group in groups)

        def error(seed: int) -> tuple[int, float]:
            counts = counts_of(seed)
            wanted = {split: share * len(groups) for split, share in zip(SPLITS, self.ratios)}
            empty = sum(wanted[split] > 0 and not counts[split] and split not in given for split in SPLITS)
            return empty, sum(abs(counts[split] - wanted[split]) for split in SPLITS)

        best = min(range(tried), key=error)
        return best, counts_of(best)

    def _by_chance(self, dataset: str, group: str) -> list[str]:
        place = _place(self.seed, dataset, group)
        train, val, test = self.ratios
        if dataset in self.tested and train + val:
            val, test = val / (train + val), 0.0
        if place < test:
            return ["test"] * max(1, self.folds)
        if self.folds:
            held_out = int(_place(self.seed, "fold", dataset, group) * self.folds)
            return ["val" if fold == held_out else "train" for fold in range(self.folds)]
        return ["val" if place < test + val else "train"]


def _kept_seed(folder: Path) -> int | None:
    """None where the folder keeps none. Raises UsageError."""
    path = folder / KEPT
    if not path.exists():
        return None
    content = read_json(path, "remove it, and give the seed that was used as --split_seed", error=UsageError)
    seed = content.get("split_seed") if isinstance(content, dict) else None
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise UsageError(f"{path}: has no whole number under 'split_seed'; give the seed that was used as --split_seed")
    return seed


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
