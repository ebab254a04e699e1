"""What every source is cut into: cases, of pictures, of objects."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

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
    image: (H, W) or (H, W, 3) BGR, uint8.
    spacing: (row, column) in mm.
    """

    name: str
    image: np.ndarray
    objects: Sequence[Object]
    modality: str = ""
    axis: str = ""
    slice: int | None = None
    spacing: tuple[float, float] | None = None


class Converter(Protocol):
    """Reads a case. A dataclass: its fields are the settings that decide whether a case must be converted again."""

    def pictures(self, case: Case, tally: Counter) -> Iterator[Picture]:
        """Pictures in a fixed order; `tally` counts what was left out, by reason. Raises DataError."""
