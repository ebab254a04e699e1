"""What a mask shows: file names of SA-Med2D-20M, its table of class names, and metadata.csv of a data folder.

    python -c "from sam_med2d.data.names import *; print(parse_name('ct_00--AbdomenCT1K--Case_00011--x_0040--0003_000.png'))"

    metadata = read_metadata("data/metadata.csv")
    metadata["masks/case7_liver.png"]["class"]          # 'liver'
    rows = metadata.rows(masks)                         # of many masks at once, for columns as arrays
    metadata.column("dataset").take(rows)

metadata.csv has one row a mask and the columns of `COLUMNS`: `mask` and `image` exactly as the index writes them, the
class by name, the axis x, y, z or empty, the slice a number or empty, the spacing as `0.7x0.7` (mm, row x column) or empty.
"""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv
from xxhash import xxh3_64_intdigest

from sam_med2d.data.arrow_copy import Columns, Write, columns_of
from sam_med2d.data.index import Index
from sam_med2d.data.names import CLASS_NAMES, NAME_PATTERN, parse_name, read_class_names
from sam_med2d.errors import DataError

COLUMNS = ("mask", "image", "dataset", "modality", "case", "axis", "slice", "class", "instance", "spacing")

METADATA = "metadata.csv"


# ---------------------------------------------------------------- metadata.csv

TEXTS = tuple(name for name in COLUMNS if name not in ("mask", "image", "slice", "instance"))  # few different ones each

_READ = {
    "mask": pa.string(),
    "image": pa.string(),
    "slice": pa.int32(),
    "instance": pa.int32(),
    **{name: pa.dictionary(pa.int32(), pa.string()) for name in TEXTS},
}

_KEPT = pa.schema(
    {
        "hash": pa.uint64(),
        "mask": pa.string(),
        "image": pa.string(),
        "slice": pa.int32(),
        "instance": pa.int32(),
        **{name: pa.int32() for name in TEXTS},
    }
)

# of each kind the columns of metadata.csv and the parts of a file name that tell it: numbers count within a data set
_COLUMNS = {"dataset": ["dataset"], "class": ["class"], "modality": ["modality"], "case": ["dataset", "case"]}

_PARTS = {
    "dataset": ["dataset"],
    "class": ["dataset", "class_id"],
    "modality": ["modality"],
    "case": ["dataset", "case"],
}


class Metadata:
    """The rows of a metadata.csv, in columns, found by the path of a mask. Made by `read_metadata`.

    Masks are found through sorted hashes of their paths (16 bytes a row in memory; a large table is memory-mapped, see
    copies.py), and the path of the row that was found is compared, so that a collision cannot mislead.
    """

    def __init__(self, source: str, columns: Columns) -> None:
        """Raises DataError for a mask that has two rows."""
        self.source = source
        self._columns = columns
        table = pa.Table.from_batches(columns.batches, _KEPT)
        self._masks = table["mask"].cast(pa.binary())  # a view, in which any path can be compared
        hashes = table["hash"].to_numpy()
        self._order = np.argsort(hashes)
        self._sorted = hashes[self._order]
        for place in np.flatnonzero(self._sorted[1:] == self._sorted[:-1]):
            mask, other = (self._masks[int(row)].as_py() for row in self._order[place : place + 2])
            if mask == other:
                raise DataError(f"{source}: {os.fsdecode(mask)} has two rows; keep one")

    def __len__(self) -> int:
        return len(self._masks)

    def find(self, masks: Sequence[str] | pa.BinaryArray) -> np.ndarray:
        """Paths as in the index -> row numbers, -1 for a mask that has no row."""
        encoded = masks.to_pylist() if isinstance(masks, pa.BinaryArray) else [os.fsencode(mask) for mask in masks]
        place = np.searchsorted(self._sorted, _hashes(encoded))
        rows = self._order[np.minimum(place, len(self) - 1)]
        same = pc.equal(self._masks.take(rows), pa.array(encoded, pa.binary())).to_numpy()
        return np.where(same, rows, -1)

    def rows(self, masks: Sequence[str] | pa.BinaryArray) -> np.ndarray:
        """As find, but raises DataError for a mask that has no row."""
        rows = self.find(masks)
        missing = np.flatnonzero(rows < 0)
        if len(missing):
            first = masks[int(missing[0])]
            first = os.fsdecode(first.as_py()) if isinstance(first, pa.Scalar) else first
            others = f" and {len(missing) - 1} other mask(s)" if len(missing) > 1 else ""
            raise DataError(
                f"{self.source}: has no row for {first}{others}; write it again, with the paths of the index"
            )
        return rows

    def __getitem__(self, mask: str) -> dict[str, str | int | None]:
        """The row of one mask: {column: value}; slice and instance are int or None, the others text."""
        row = int(self.rows([mask])[0])
        return {name: self.column(name)[row].as_py() for name in COLUMNS}

    def column(self, name: str) -> pa.ChunkedArray:
        """One of COLUMNS, over all rows. Those of TEXTS are dictionary-encoded, with one dictionary for all rows."""
        chunks = [batch[name] for batch in self._columns.batches]
        if name in TEXTS:
            texts = pa.array(self._columns.facts["texts"][name], pa.string())
            chunks = [pa.DictionaryArray.from_arrays(chunk, texts) for chunk in chunks]
        return pa.chunked_array(chunks)


def read_metadata(path: str | os.PathLike) -> Metadata:
    """Raises DataError: cannot be read, no table of COLUMNS (others may be there too), no rows, two rows for a mask."""
    source = os.path.abspath(path)
    return Metadata(source, columns_of(source, _KEPT, partial(_build, source)))


def _build(source: str, file: BinaryIO, write: Write, scratch: str | None) -> dict:
    """The table, block by block -> record batches of _KEPT."""
    places: dict[str, dict[str, int]] = {name: {} for name in TEXTS}
    rows = 0
    try:
        options = csv.ConvertOptions(
            column_types=_READ, include_columns=list(COLUMNS), null_values=[""], strings_can_be_null=False
        )
        for batch in csv.open_csv(
            pa.PythonFile(file, "r"), csv.ReadOptions(block_size=4 << 20), convert_options=options
        ):
            kept = {name: batch[name] for name in ("mask", "image", "slice", "instance")}
            for name in TEXTS:
                here = [places[name].setdefault(text, len(places[name])) for text in batch[name].dictionary.to_pylist()]
                kept[name] = pa.array(np.array(here, np.int32)[batch[name].indices.to_numpy()])
            kept["hash"] = pa.array(_hashes(kept["mask"].cast(pa.binary()).to_pylist()))
            write(pa.record_batch([kept[name] for name in _KEPT.names], schema=_KEPT))
            rows += len(batch)
    except (pa.ArrowInvalid, KeyError, UnicodeDecodeError) as error:
        raise DataError(f"{source}: not a table of the columns {','.join(COLUMNS)} ({error})") from error
    if not rows:
        raise DataError(f"{source}: has no rows; write it again")
    return {"texts": {name: [*texts] for name, texts in places.items()}}


def _hashes(names: Sequence[bytes]) -> np.ndarray:
    return np.fromiter(map(xxh3_64_intdigest, names), np.uint64, len(names))


class Describer:
    """What is known of a mask beside its pixels: dataset, modality, class, case, axis, slice.

    From the table of metadata where it says something, else from the file name if that is one of SA-Med2D-20M, else
    the class from what a mask's name has beyond its image's (`ct_7.png`, `ct_7_left_kidney_000.png`: left_kidney).
    """

    FIELDS = ("dataset", "modality", "class", "case", "axis", "slice")

    def __init__(
        self, data_path: str | os.PathLike, metadata: str | None = None, class_names: str | None = None
    ) -> None:
        """metadata, class_names: files; by default those of their usual names in data_path, if there.

        Raises DataError: a file that cannot be read or is none of its kind.
        """
        usual = lambda given, name: given or (path if os.path.exists(path := os.path.join(data_path, name)) else None)
        metadata, self.class_file = usual(metadata, METADATA), usual(class_names, CLASS_NAMES)
        self.metadata = read_metadata(metadata) if metadata else None
        self._columns = {field: self.metadata.column(field) for field in self.FIELDS} if metadata else {}
        names = read_class_names(self.class_file) if self.class_file else None
        self.classes = (
            {dataset: {number: name for name, number in ids.items()} for dataset, ids in names.items()}
            if names
            else None
        )

    def check(self, masks: list[str]) -> None:
        """Raises DataError where a table lacks one of these masks: before a run, not in its middle."""
        if self.metadata:
            self.metadata.rows(masks)
        if self.classes is not None:
            for mask in masks:
                self._class(mask)

    def describe(self, image: str, mask: str) -> dict[str, object]:
        name = parse_name(mask)
        found = dict.fromkeys(self.FIELDS)
        if name:
            found |= {
                "dataset": name.dataset,
                "modality": name.modality,
                "class": self._class(mask),
                "case": name.case,
                "axis": name.axis or None,
                "slice": name.slice,
            }
        if self.metadata:
            row = int(self.metadata.rows([mask])[0])
            known = {field: column[row].as_py() for field, column in self._columns.items()}
            found |= {field: value for field, value in known.items() if value not in (None, "")}
        if not found["class"]:
            found["class"] = class_beyond(image, mask)
        return found

    def _class(self, mask: str) -> str | None:
        name = parse_name(mask)
        if name is None or name.class_id is None:
            return None
        if self.classes is None:
            return f"{name.class_id:04d}"
        if name.dataset not in self.classes or name.class_id not in self.classes[name.dataset]:
            raise DataError(
                f"{self.class_file}: has no class {name.class_id} of data set {name.dataset}, which {mask} is of; "
                "give the class names of this data with --class_names"
            )
        return self.classes[name.dataset][name.class_id]


def class_beyond(image: str, mask: str) -> str | None:
    """`ct_7.png`, `ct_7_left_kidney_000.png` -> `left_kidney`; None where the names do not go together."""
    image, mask = Path(image).stem, Path(mask).stem
    if not mask.startswith(image) or mask == image:
        return None
    words = mask[len(image) :].strip("_-. ").split("_")
    if words[-1].isdigit():  # the instance
        words.pop()
    return "_".join(words) or None


def labels_of(index: Index, folder: str, kind: str) -> tuple[list[str], np.ndarray]:
    """kind: "dataset", "class", "modality" or "case". folder: where metadata.csv may be.

    -> the different labels, and (masks of the index,) int32, of each mask the place of its label among them.
    Raises DataError: neither a metadata.csv nor names of SA-Med2D-20M, or a table that lacks masks of the index or says
    nothing of the kind.
    """
    table = os.path.join(folder, METADATA)
    labels, codes = _from_metadata(index, table, kind) if os.path.isfile(table) else _from_names(index, folder, kind)
    names = [*dict.fromkeys(labels)]  # a class that two data sets number differently is one
    place_of = {name: place for place, name in enumerate(names)}
    return names, np.array([place_of[label] for label in labels], np.int32)[codes]


def _from_metadata(index: Index, table: str, kind: str) -> tuple[list[str], np.ndarray]:
    metadata = read_metadata(table)
    rows = [metadata.rows(batch["masks"].flatten()) for batch in index.columns.batches]
    keys = _Keys()
    for part in rows:
        keys.add([metadata.column(name).take(part).combine_chunks().cast(pa.string()) for name in _COLUMNS[kind]])
    if not any(label[-1] for label in keys.labels):
        raise DataError(f"{table}: the column '{kind}' is empty for every mask of {index.source}; fill it in")
    return [" ".join(label) for label in keys.labels], keys.codes()


def _from_names(index: Index, folder: str, kind: str) -> tuple[list[str], np.ndarray]:
    keys = _Keys()
    for batch in index.columns.batches:
        masks = batch["masks"].flatten()
        parts = pc.extract_regex(pc.replace_substring_regex(_text(masks), r"^.*/", ""), NAME_PATTERN)
        unknown = pc.fill_null(pc.equal(pc.struct_field(parts, "class_id"), ""), True).to_numpy(zero_copy_only=False)
        if unknown.any():
            raise DataError(
                f"{index.source}: the {kind} of its masks is not known: there is no {METADATA} in {folder}, and "
                f"{os.fsdecode(masks[int(np.argmax(unknown))].as_py())} is no file name of SA-Med2D-20M"
            )
        keys.add([pc.struct_field(parts, name) for name in _PARTS[kind]])
    if kind == "class":
        return _class_names(keys.labels, os.path.join(folder, CLASS_NAMES)), keys.codes()
    return [" ".join(label) for label in keys.labels], keys.codes()


def _text(names: pa.BinaryArray) -> pa.StringArray:
    try:
        return names.cast(pa.string())
    except pa.ArrowInvalid:  # names that are no Unicode
        return pa.array([name.decode(errors="replace") for name in names.to_pylist()], pa.string())


class _Keys:
    """Numbers the different rows of text columns that come in parts, in the order they come in."""

    def __init__(self) -> None:
        self._places: dict[str, int] = {}
        self._codes: list[np.ndarray] = []

    def add(self, columns: list[pa.StringArray]) -> None:
        found = pc.binary_join_element_wise(*columns, "\n").dictionary_encode()
        places = [self._places.setdefault(key, len(self._places)) for key in found.dictionary.to_pylist()]
        self._codes.append(np.array(places, np.int32)[found.indices.to_numpy()])

    @property
    def labels(self) -> list[list[str]]:
        return [key.split("\n") for key in self._places]

    def codes(self) -> np.ndarray:
        return np.concatenate(self._codes)


def _class_names(keys: Sequence[list[str]], table: str) -> list[str]:
    """(data set, class id) -> the class's name where the table has it."""
    known = {
        dataset: {number: name for name, number in classes.items()}
        for dataset, classes in (read_class_names(table) if os.path.isfile(table) else {}).items()
    }
    return [known.get(dataset, {}).get(int(number)) or f"{dataset} {number}" for dataset, number in keys]
