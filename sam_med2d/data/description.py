"""What a mask is of: its data set, modality, class and case, of one mask (`describe`) and of a whole index (`labels`).

    describer = Describer("data")                           # reads the tables in the folder, where there are any
    describer.describe("images/ct_7.png", "masks/ct_7_left_kidney_000.png")["class"]        # 'left_kidney'
    names, codes = describer.labels(index, "class")         # names[codes[k]]: of the k-th mask of the index

One rule, wherever a mask is described (rows of test.py, the report, --balance of train.py, check_index.py):

1. what metadata.csv says of the mask, field by field;
2. else what its file name says, if that is one of SA-Med2D-20M. Its number of a class becomes the name that the
   table of class names gives it. Without that table the class is called `KiTS 3`, data set and number: numbers count
   within a data set, and a number alone would put unrelated classes together. A table that lacks the class is an error;
3. else, for the class alone, what the mask's name has beyond its image's (`class_beyond`), as in indexes that people
   write by hand;
4. else it is not known.
"""

import math
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sam_med2d.data.index import Index
from sam_med2d.data.metadata import METADATA, Metadata, read_metadata
from sam_med2d.data.names import CLASS_NAMES, NAME_PATTERN, case_hint, case_pattern, parse_name, read_class_names
from sam_med2d.errors import DataError, UsageError

FIELDS = ("dataset", "modality", "class", "case", "axis", "slice")

KINDS = ("dataset", "modality", "class", "case")  # what masks can be grouped by


class Describer:
    """Says what masks are of, by the rule above, from the tables of a data folder and from file names."""

    def __init__(
        self,
        folder: str | os.PathLike,
        metadata: str | os.PathLike | None = None,
        class_names: str | os.PathLike | None = None,
        case: str | None = None,
    ) -> None:
        """metadata, class_names: files; by default those of their usual names in the data folder, if there.

        case: a regular expression that tells the case, whatever the table or file names say: its first group in the
            path of an image as the index has it, without its ending.
        Raises DataError: a file that cannot be read or is none of its kind; UsageError: no such expression.
        """

        def usual(given: str | os.PathLike | None, name: str) -> str | os.PathLike | None:
            path = os.path.join(folder, name)
            return given or (path if os.path.exists(path) else None)

        self.folder = os.fspath(folder)
        self._case = case_pattern(case) if case is not None else None
        table, self.class_file = usual(metadata, METADATA), usual(class_names, CLASS_NAMES)
        self.metadata: Metadata | None = read_metadata(table) if table else None
        self._columns = {field: self.metadata.column(field) for field in FIELDS} if self.metadata else {}
        self._classes: dict[str, dict[int, str]] | None = None
        if self.class_file:
            named = read_class_names(self.class_file)
            self._classes = {dataset: {number: name for name, number in ids.items()} for dataset, ids in named.items()}

    def describe(self, image: str, mask: str) -> dict[str, object]:
        """{each of FIELDS: text, None where it is not known; slice: int or None} of one mask, with paths as in the
        index.

        Raises DataError: metadata.csv has no row for the mask, or the table of class names lacks its class.
        """
        found: dict[str, object] = dict.fromkeys(FIELDS)
        name = parse_name(mask)
        if name:
            found |= {"dataset": name.dataset, "modality": name.modality, "case": name.case}
            found |= {"axis": name.axis or None, "slice": name.slice}
        if self.metadata:
            row = int(self.metadata.rows([mask])[0])
            known = {field: column[row].as_py() for field, column in self._columns.items()}
            found |= {field: value for field, value in known.items() if value not in (None, "")}
        if not found["class"]:
            if name is not None and name.class_id is not None:
                found["class"] = self._class_name(name.dataset, name.class_id, mask)
            else:
                found["class"] = class_beyond(image, mask)
        if self._case:
            found["case"] = self._case_of(image)
        return found

    def spacing(self, mask: str) -> tuple[float, float] | None:
        """Millimetres from row to row and from column to column of a mask's picture; None where they are not known.

        Raises DataError: metadata.csv has no row for the mask, or something else there.
        """
        if not self.metadata:
            return None
        text = self.metadata.column("spacing")[int(self.metadata.rows([mask])[0])].as_py()
        if not text:
            return None
        match = re.fullmatch(r"([0-9.e+-]+)x([0-9.e+-]+)", text)
        try:
            row, column = map(float, match.groups() if match else ())
            if not (0 < row < math.inf and 0 < column < math.inf):
                raise ValueError(text)
        except ValueError as error:
            raise DataError(
                f"{self.metadata.source}: the spacing of {mask} is {text!r}; it must be millimetres such as "
                "0.7x0.7, from row to row and from column to column"
            ) from error
        return row, column

    def _case_of(self, image: str) -> str:
        """By the expression. Raises UsageError where it does not fit."""
        assert self._case is not None
        name = os.path.splitext(image)[0]
        match = self._case.fullmatch(name)
        if not match or not match[1]:
            raise UsageError(
                f"--case {self._case.pattern}: does not fit {name} (the whole path of an image in the index, without "
                f"its ending); '{case_hint([name])}' does"
            )
        return match[1]

    def labels(self, index: Index, kind: str) -> tuple[list[str], np.ndarray]:
        """Every mask of an index by one of KINDS: as `describe` says it, at once for millions of masks.

        -> the different labels, in the order of their first masks, and (masks of the index,) int32, of each mask the
        place of its label among them. A case is called `dataset case`, since cases count within a data set; "" is the
        label of what is not known. Raises DataError as describe does.
        """
        keys = _Keys()
        for images, masks in _batches(index):
            keys.add(self._parts(images, masks, kind), masks)
        labels = [self._label(kind, parts, mask) for parts, mask in keys.found]
        names = [*dict.fromkeys(labels)]  # a class that two data sets number differently is one
        place_of = {name: place for place, name in enumerate(names)}
        return names, np.array([place_of[label] for label in labels], np.int32)[keys.codes()]

    def check(self, index: Index) -> None:
        """Raises DataError where a table lacks a mask of the index or its class: before a run, not in its middle."""
        self.labels(index, "class")
        if self._case:
            for image, _ in index:
                self._case_of(image)

    def _parts(self, images: pa.BinaryArray, masks: pa.BinaryArray, kind: str) -> list[pa.StringArray]:
        """What decides the label of each mask, as columns of text in which "" stands for what is not known.

        Of a class: what metadata.csv says; else the data set and the number in the file name; else what the name has
        beyond the image's. Of other kinds: the data set of a case, and what the kind says itself.
        """
        count = len(masks)
        rows = self.metadata.rows(masks) if self.metadata else None
        from_name = _NamesOf(masks)

        def told(field: str) -> pa.StringArray:
            """By metadata.csv."""
            if rows is None:
                return pa.array([""] * count, pa.string())
            return pc.fill_null(self._columns[field].take(rows).combine_chunks().cast(pa.string()), "")

        if kind != "class":
            fields = ("dataset", "case") if kind == "case" else (kind,)
            parts = [_first_of(told(field), partial(from_name.part, field)) for field in fields]
            if kind == "case" and self._case:
                parts[-1] = pa.array([self._case_of(_decoded(image)) for image in images], pa.string())
            return parts
        known = told("class")
        empty = pc.equal(known, "")
        if not pc.any(empty).as_py():
            return [known]
        nothing = pa.array([""] * count, pa.string())
        number = pc.if_else(empty, from_name.part("class_id"), nothing)
        dataset = pc.if_else(pc.equal(number, ""), nothing, from_name.part("dataset"))
        unnumbered = np.flatnonzero(pc.and_(empty, pc.equal(number, "")).to_numpy(zero_copy_only=False))
        beyond = [""] * count
        for k in unnumbered.tolist():
            beyond[k] = class_beyond(_decoded(images[k]), _decoded(masks[k])) or ""
        return [known, dataset, number, pa.array(beyond, pa.string())]

    def _label(self, kind: str, parts: list[str], mask: str) -> str:
        """parts: of one mask, as _parts gives them."""
        if kind == "case":
            return " ".join(filter(None, parts)) if parts[-1] else ""
        if len(parts) == 1 or parts[0]:
            return parts[0]
        _, dataset, number, beyond = parts
        return self._class_name(dataset, int(number), mask) if number else beyond

    def _class_name(self, dataset: str, number: int, mask: str) -> str:
        if self._classes is None:
            return f"{dataset} {number}"
        if number not in self._classes.get(dataset, {}):
            raise DataError(
                f"{self.class_file}: has no class {number} of data set {dataset}, which {mask} is of; add it there, or "
                "use the table of this data (test.py takes it with --class_names)"
            )
        return self._classes[dataset][number]


def class_beyond(image: str, mask: str) -> str | None:
    """`ct_7.png`, `ct_7_left_kidney_000.png` -> `left_kidney`; None where the names do not go together."""
    image, mask = Path(image).stem, Path(mask).stem
    if not mask.startswith(image) or mask == image:
        return None
    words = mask[len(image) :].strip("_-. ").split("_")
    if words[-1].isdigit():  # the instance
        words.pop()
    return "_".join(words) or None


def _batches(index: Index) -> Iterator[tuple[pa.BinaryArray, pa.BinaryArray]]:
    """The masks of an index in parts, each with the image it is of: two columns of one length."""
    for batch in index.columns.batches:
        masks = batch["masks"]
        yield batch["image"].take(pc.list_parent_indices(masks)), masks.flatten()


def _decoded(path: pa.BinaryScalar) -> str:
    """For names that are no Unicode: what replaces them is never opened, only shown."""
    return path.as_py().decode(errors="replace")


class _NamesOf:
    """The parts of many file names of SA-Med2D-20M as columns, searched when the first of them is asked for."""

    def __init__(self, masks: pa.BinaryArray) -> None:
        self._masks = masks
        self._found: pa.StructArray | None = None

    def part(self, name: str) -> pa.StringArray:
        """A group of NAME_PATTERN of each name, "" where a name is none of SA-Med2D-20M."""
        if self._found is None:
            base = pc.replace_substring_regex(_text(self._masks), r"^.*/", "")
            self._found = pc.extract_regex(base, NAME_PATTERN)
        return pc.fill_null(pc.struct_field(self._found, name), "")


def _text(names: pa.BinaryArray) -> pa.StringArray:
    try:
        return names.cast(pa.string())
    except pa.ArrowInvalid:  # names that are no Unicode
        return pa.array([name.decode(errors="replace") for name in names.to_pylist()], pa.string())


def _first_of(known: pa.StringArray, other: Callable[[], pa.StringArray]) -> pa.StringArray:
    """`known` where it is not empty, else what the function `other` gives, which is called only where it is needed."""
    empty = pc.equal(known, "")
    return pc.if_else(empty, other(), known) if pc.any(empty).as_py() else known


class _Keys:
    """Numbers the different rows of text columns that come in parts, in the order they come in."""

    def __init__(self) -> None:
        self._places: dict[str, int] = {}
        self._examples: list[str] = []
        self._codes: list[np.ndarray] = []

    def add(self, columns: list[pa.StringArray], masks: pa.BinaryArray) -> None:
        joined = pc.binary_join_element_wise(*columns, "\n").dictionary_encode()
        indices = joined.indices.to_numpy()
        first = np.unique(indices, return_index=True)[1]  # of each entry of the dictionary, its first mask
        for place, key in enumerate(joined.dictionary.to_pylist()):
            if key not in self._places:
                self._places[key] = len(self._places)
                self._examples.append(os.fsdecode(masks[int(first[place])].as_py()))
        places = [self._places[key] for key in joined.dictionary.to_pylist()]
        self._codes.append(np.array(places, np.int32)[indices])

    @property
    def found(self) -> list[tuple[list[str], str]]:
        """Each different row, and its first mask."""
        return [(key.split("\n"), mask) for key, mask in zip(self._places, self._examples)]

    def codes(self) -> np.ndarray:
        return np.concatenate(self._codes)
