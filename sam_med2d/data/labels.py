"""What each mask of an index is of: its data set, class, modality or case.

Read from metadata.csv of the data folder, else from file names of SA-Med2D-20M, whose classes have names where
SAMed2D_v1_class_mapping_id.json is in the folder, and numbers else.
"""

import os
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sam_med2d.data.index import Index
from sam_med2d.data.metadata import CLASS_NAMES, METADATA, NAME_PATTERN, read_class_names, read_metadata
from sam_med2d.data.reading import DataError

# of each kind the columns of metadata.csv and the parts of a file name that tell it: numbers count within a data set
_COLUMNS = {"dataset": ["dataset"], "class": ["class"], "modality": ["modality"], "case": ["dataset", "case"]}
_PARTS = {
    "dataset": ["dataset"],
    "class": ["dataset", "class_id"],
    "modality": ["modality"],
    "case": ["dataset", "case"],
}


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
