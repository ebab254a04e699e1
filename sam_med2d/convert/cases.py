"""What every source is cut into: cases, which hold pictures, which hold objects."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np


@dataclass(frozen=True)
class Case:
    """What is converted in one go, by one process: a scan, or the pictures of one patient."""

    name: str  # its own within the data set; part of file names
    group: str  # what no two splits share: the patient
    files: tuple[str, ...]  # what is read for it; converted again when one of them changes
    data: dict = field(default_factory=dict)  # what its converter needs, in JSON's types
    split: str = ""  # where the source itself says which, else empty


class Object(NamedTuple):
    """mask: (H, W) bool; instance: counts the objects of one class in one picture, from 0."""

    class_name: str
    instance: int
    mask: np.ndarray


class Picture(NamedTuple):
    """An image with its objects.

    name: its own within the case; empty for slices, which axis and slice name.
    image: (H, W) or (H, W, 3) BGR, uint8; None where there are no objects, as such a picture is only counted.
    spacing: (row, column) in mm.
    """

    name: str
    image: np.ndarray | None
    objects: Sequence[Object]
    modality: str = ""
    axis: str = ""
    slice: int | None = None
    spacing: tuple[float, float] | None = None


class Tally(Counter[str]):
    """Counts what is left out of a case, by reason. notes: what was assumed of it, a line each."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []


class Converter(Protocol):
    """Reads a case. A dataclass: its fields are the settings that decide whether a case must be converted again."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def pictures(self, case: Case, tally: Tally) -> Iterator[Picture]:
        """Pictures in a fixed order; `tally` is told what was left out or assumed. Raises DataError."""


def cases_of_pictures(entries: Iterable[tuple[str, dict]], groups: dict[str, str], split: str = "") -> list[Case]:
    """Entries of (name, {"image": path, "masks" or "labels": paths, ...}) -> a case for each group.

    groups: {name: group}. The pictures of a case, in its data, are in order of name.
    """
    members: dict[str, list[dict]] = defaultdict(list)
    for name, entry in sorted(entries, key=lambda item: item[0]):
        members[groups[name]].append({"name": name, **entry})
    return [
        Case(group, group, tuple(path for entry in pictures for path in _paths(entry)), {"pictures": pictures}, split)
        for group, pictures in sorted(members.items())
    ]


def _paths(entry: dict) -> Sequence[str]:
    labels = [entry["labels"]] if "labels" in entry else [path for path, _ in entry.get("masks", ())]
    return [entry["image"], *labels]
