"""metadata.csv of a data folder: what is known of each mask beside its pixels, in columns.

    metadata = read_metadata("data/metadata.csv")
    metadata["masks/case7_liver.png"]["class"]          # 'liver'
    rows = metadata.rows(masks)                         # of many masks at once, for columns as arrays
    metadata.column("dataset").take(rows)

metadata.csv has one row a mask and the columns of `COLUMNS`: `mask` and `image` exactly as the index writes them, the
class by name, the axis x, y, z or empty, the slice a number or empty, the spacing as `0.7x0.7` (mm, row x column) or
empty. What a mask is of where there is no such table, or where it says nothing, is told by `description.py`.
"""

import os
from collections.abc import Sequence
from functools import partial
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv
from xxhash import xxh3_64_intdigest

from sam_med2d.data.arrow_copy import Columns, Write, columns_of
from sam_med2d.data.tables import delimiter_of
from sam_med2d.errors import DataError

COLUMNS = ("mask", "image", "dataset", "modality", "case", "axis", "slice", "class", "instance", "spacing")

METADATA = "metadata.csv"

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
    arrow_copy.py), and the path of the row that was found is compared, so that a collision cannot mislead.
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
        with open(source, "rb") as start:
            first = start.readline(1 << 16).decode("utf-8", "replace")
        for batch in csv.open_csv(
            pa.PythonFile(file, "r"),
            csv.ReadOptions(block_size=4 << 20),
            csv.ParseOptions(delimiter=delimiter_of(first)),
            options,
        ):
            kept = {name: batch[name] for name in ("slice", "instance")}
            kept |= {name: pc.replace_substring(batch[name], "\\", "/") for name in ("mask", "image")}
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
