"""What a mask shows: file names of SA-Med2D-20M, its table of class names, and metadata.csv of a data folder.

    python -c "from naming import *; print(parse_name('ct_00--AbdomenCT1K--Case_00011--x_0040--0003_000.png'))"

    metadata = read_metadata("data/metadata.csv")
    metadata["masks/case7_liver.png"]["class"]          # 'liver'
    rows = metadata.rows(masks)                         # of many masks at once, for columns as arrays
    metadata.column("dataset").take(rows)

metadata.csv has one row a mask and the columns of `COLUMNS`: `mask` and `image` exactly as the index writes them, the
class by name, the axis x, y, z or empty, the slice a number or empty, the spacing as `0.7x0.7` (mm, row x column) or empty.
"""

import json
import os
import re
from collections.abc import Sequence
from functools import partial
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv
from xxhash import xxh3_64_intdigest

from sam_med2d.data.arrow_copy import Columns, Write, columns_of
from sam_med2d.data.reading import DataError

COLUMNS = ("mask", "image", "dataset", "modality", "case", "axis", "slice", "class", "instance", "spacing")
METADATA = "metadata.csv"
CLASS_NAMES = "SAMed2D_v1_class_mapping_id.json"


class Name(NamedTuple):
    """The parts of an SA-Med2D-20M file name."""

    modality: str  # ct
    sub_modality: str  # 00
    dataset: str
    case: str
    axis: str  # x, y, z, or empty for sources that are pictures
    slice: int | None  # None with an empty axis
    class_id: int | None  # None, as is the instance, for images
    instance: int | None


# For Python's re and for RE2, which pyarrow searches whole columns with.
NAME_PATTERN = (
    r"^(?P<modality>[^_/]+)_(?P<sub_modality>[^/]+?)--(?P<dataset>[^/]+?)--(?P<case>[^/]+)"
    r"--(?:(?P<axis>[xyz])_(?P<slice>[0-9]+)|2d_none)(?:--(?P<class_id>[0-9]+)_(?P<instance>[0-9]+))?\.[a-zA-Z0-9]+$"
)
_NAME = re.compile(NAME_PATTERN)


def parse_name(path: str | os.PathLike) -> Name | None:
    """An image's or a mask's path -> the parts of its file name, None if it is not one of SA-Med2D-20M."""
    match = _NAME.match(os.path.basename(path))
    if match is None:
        return None
    number = lambda group: None if match[group] is None else int(match[group])
    return Name(
        match["modality"],
        match["sub_modality"],
        match["dataset"],
        match["case"],
        match["axis"] or "",
        number("slice"),
        number("class_id"),
        number("instance"),
    )


def read_class_names(path: str | os.PathLike) -> dict[str, dict[str, int]]:
    """SAMed2D_v1_class_mapping_id.json -> {dataset: {class name: id}}. Raises DataError."""
    try:
        with open(path, "rb") as file:
            classes = json.load(file)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions") from error
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error}); get the file again") from error
    if not isinstance(classes, dict):
        raise DataError(f"{path}: holds a {type(classes).__name__}; it must be {{dataset: {{class name: id}}}}")
    for dataset, ids in classes.items():
        if not isinstance(ids, dict):
            raise DataError(f"{path}: '{dataset}' holds a {type(ids).__name__}; it must be {{class name: id}}")
        for name, number in ids.items():
            try:
                ids[name] = int(number)
            except (TypeError, ValueError) as error:
                raise DataError(
                    f"{path}: class '{name}' of '{dataset}' has {number!r} for an id; it must be a number"
                ) from error
    return classes


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
