"""The values of label maps: which there are, and which class each stands for."""

import os
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from sam_med2d.data.tables import rows_of
from sam_med2d.errors import DataError, UsageError
from sam_med2d.json_files import read_bounded, read_json

BACKGROUND = 0
SHOWN = 8  # values that an error lists
ROUNDED = 1e-3  # by which a label may be off a whole number: labels are stored as floats, and scaled
MOST_ROUNDED = 0.4  # the same, where a file says itself how coarsely its values are stored


@dataclass(frozen=True)
class Classes:
    """What the values of a label map mean.

    names: ((class, (value, ...)), ...); a class of several values is their union. None: every value is a class of its
        own.
    ignored: values that are no object, beside BACKGROUND.
    unknown: "error" or "ignore", for values that are in neither.
    instances: the class of all values, each of which is one object of it; empty: values are classes.
    colours: the values are colours, 0xRRGGBB.
    """

    names: tuple[tuple[str, tuple[int, ...]], ...] | None = None
    ignored: tuple[int, ...] = ()
    unknown: str = "error"
    instances: str = ""
    colours: bool = False

    def present(self, found: np.ndarray, path: str) -> list[tuple[str, tuple[int, ...]]]:
        """Values of one label map -> [(class, its values), ...]. Raises DataError for values that are unknown."""
        values = [int(v) for v in found if v != BACKGROUND and v not in self.ignored]
        if self.instances:
            return [(self.instances, (v,)) for v in values]
        if self.names is None:
            return [(f"label_{v:03d}", (v,)) for v in values]
        known = {v for _, of_class in self.names for v in of_class}
        strange = [v for v in values if v not in known]
        if strange and self.unknown == "error":
            raise DataError(
                f"{path}: has values that no class is named for: {self.show(strange)}; add them to --classes, "
                "or give --ignore_values or --unknown_values ignore"
            )
        return [(name, of_class) for name, of_class in self.names if set(of_class) & set(values)]

    def show(self, values: list[int]) -> str:
        shown = ", ".join(f"#{v:06x}" if self.colours else str(v) for v in values[:SHOWN])
        return shown + (f" and {len(values) - SHOWN} more" if len(values) > SHOWN else "")


def parse_classes(words: list[str]) -> tuple[tuple[tuple[str, tuple[int, ...]], ...], bool]:
    """Of --classes: name=value words, or one file -> (names for Classes, whether the values are colours).

    Values are numbers, or colours as #rrggbb or [r, g, b]. Files: JSON of {name: value}, {value: name} or
    {name: [value, ...]}, also under the key "labels" (a dataset.json); CSV with a line a class: name,value or
    name,r,g,b.
    Background is not a class: named or not, value 0 (black) is left out.
    Raises UsageError.
    """
    pairs: list[tuple[str, object]] = []
    if len(words) == 1 and "=" not in words[0]:
        pairs = _read_table(words[0])
    else:
        for word in words:
            name, equals, text = word.rpartition("=")
            if not equals:
                raise UsageError(f"--classes {' '.join(words)}: give name=value words, or one file of JSON or CSV")
            pairs.append((name, text))
    names: dict[str, tuple[int, ...]] = {}
    kinds = set()
    for name, value in pairs:
        values, colour = _parse_values(name, value)
        kinds.add(colour)
        if name.lower() in ("background", "clear label") or values == (BACKGROUND,):
            continue
        if name in names:
            raise UsageError(f"--classes: '{name}' is named twice; give each class once")
        names[name] = values
    if len(kinds) > 1:
        raise UsageError("--classes: some values are colours and some are numbers; give one kind")
    if not names:
        raise UsageError("--classes: names no class but background")
    return tuple(names.items()), kinds == {True}


def _parse_values(name: str, value: object) -> tuple[tuple[int, ...], bool]:
    """-> the values of one class, and whether they are colours."""
    try:
        if isinstance(value, str) and value.startswith("#"):
            if not re.fullmatch("#[0-9a-fA-F]{6}", value):
                raise ValueError
            return (int(value[1:], 16),), True
        if isinstance(value, list) and value and isinstance(value[0], str) and value[0].startswith("#"):
            return tuple(_parse_values(name, v)[0][0] for v in value), True
        if isinstance(value, dict) and "rgb" in value:
            red, green, blue = map(int, value["rgb"])
            return (red << 16 | green << 8 | blue,), True
        several: list[Any] = value if isinstance(value, list) else [value]
        values = tuple(int(v) for v in several)
    except (TypeError, ValueError, OverflowError):  # Overflow: infinity, as JSON of Python may hold it
        raise UsageError(
            f"--classes: '{name}' has the value {value!r}; give a number, or a colour such as #ff8000"
        ) from None
    if not values or min(values) < 0:
        raise UsageError(f"--classes: '{name}' has the value {value!r}; values are 0 or more")
    return values, False


def _read_table(path: str) -> list[tuple[str, object]]:
    remedy = "give --classes name=value words, or a file of JSON or CSV"
    if os.path.splitext(path)[1].lower() == ".json":
        content = read_json(path, remedy, error=UsageError)
        table = content.get("labels", content) if isinstance(content, dict) else None
        if not isinstance(table, dict):
            raise UsageError(f"--classes {path}: must hold {{name: value}}")
        if all(isinstance(name, str) and re.fullmatch(r"\d+", value) for value, name in table.items()):
            return [(name, int(value)) for value, name in table.items()]
        return list(table.items())
    try:
        text = read_bounded(path, remedy, error=UsageError).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"--classes {path}: is not UTF-8 text ({error}); {remedy}") from error
    pairs: list[tuple[str, object]] = []
    for _, line in rows_of(text, f"--classes {path}", UsageError):
        cells = [cell.strip() for cell in line]
        if not any(cells) or cells[0].startswith("#") or (cells[1:] and not re.match(r"[#\d]", cells[1])):  # a heading
            continue
        if len(cells) == 4:
            pairs.append((cells[0], {"rgb": cells[1:]}))
        elif len(cells) == 2:
            pairs.append((cells[0], cells[1]))
        else:
            raise UsageError(f"--classes {path}: '{','.join(line)}' must be name,value or name,r,g,b")
    return pairs


def values_in(labels: np.ndarray) -> np.ndarray:
    """Distinct values of an array, ascending. Faster than np.unique where the type is small."""
    if labels.dtype in (np.uint8, np.uint16):
        there = np.zeros(np.iinfo(labels.dtype).max + 1, bool)
        for row in labels:  # one at a time, as an index of 8 bytes is made of each value
            there[row] = True
        return np.flatnonzero(there)
    return np.unique(labels)


def is_one_of(labels: np.ndarray, values: tuple[int, ...]) -> np.ndarray:
    """-> bool, the same shape. As np.isin, by a table where the type is small."""
    if labels.dtype not in (np.uint8, np.uint16):
        return np.isin(labels, values)
    table = np.zeros(np.iinfo(labels.dtype).max + 1, bool)
    table[[value for value in values if 0 <= value < len(table)]] = True
    found = np.empty(labels.shape, bool)
    for row, out in zip(labels, found):  # as in values_in
        out[...] = table[row]
    return found


def whole_numbers(labels: np.ndarray, path: str, rounding: float = 0.0) -> np.ndarray:
    """Labels as uint8 or uint16, whatever type they were stored in. Raises DataError where a value is none of these.

    rounding: the most that storing them has changed a value by, as `rounding_of` a volume says: labels that nibabel
    scales into 8 bits come back as 1.004 and 2.996.
    """
    if labels.dtype in (np.uint8, np.uint16):
        return labels
    if labels.dtype.kind == "f":
        tolerance = min(max(ROUNDED, 1.01 * rounding), MOST_ROUNDED)
        rounded = np.rint(labels)
        with np.errstate(invalid="ignore"):  # infinity less infinity
            near = np.abs(labels - rounded) <= tolerance
        if not near.all():
            raise DataError(
                f"{path}: has values that are not whole numbers, so it is no label map; threshold probabilities, "
                "and resample labels by nearest neighbour only"
            )
        labels = rounded
    low, high = labels.min(), labels.max()
    if low < 0 or high > 65535:
        raise DataError(f"{path}: has label values from {low:g} to {high:g}; they must be in 0 .. 65535")
    return labels.astype(np.uint8 if high < 256 else np.uint16)
