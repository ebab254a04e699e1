"""One row an object and mode: what an evaluation measured. Tables, comparisons and reports are made from the rows alone.

While a run goes on, each of its processes appends to a file of its own, a JSON line an image; at the end the lines are
merged in the order of the index. So memory does not grow with the test set, and rows do not depend on who made them.
"""

import csv
import heapq
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sam_med2d.data.datasets import DataError
from sam_med2d.data.metadata import CLASS_NAMES, METADATA, parse_name, read_class_names, read_metadata
from segment_anything.files import replacing

NOC_TARGETS = {"noc80": 0.80, "noc85": 0.85, "noc90": 0.90}  # columns of clicks until Dice was first reached

# What a column means: docs/evaluation.md. Empty where a value is not known or makes no sense.
COLUMNS = {
    "image": pa.string(),
    "mask": pa.string(),
    "dataset": pa.string(),
    "modality": pa.string(),
    "class": pa.string(),
    "case": pa.string(),
    "axis": pa.string(),
    "slice": pa.int32(),
    "mode": pa.string(),
    "strategy": pa.string(),
    "clicks": pa.int32(),
    "box": pa.int32(),
    "true_area": pa.int64(),
    "image_area": pa.int64(),
    "predicted_area": pa.int64(),
    "dice": pa.float64(),
    "iou": pa.float64(),
    "nsd": pa.float64(),
    "hd95": pa.float64(),
    "predicted_iou": pa.float64(),
    **dict.fromkeys(NOC_TARGETS, pa.int32()),
    "status": pa.string(),
}
Row = dict[str, object]  # a value for each of COLUMNS, None where empty
SCORED = "ok"  # the status of rows that carry metrics; any other says why there are none
ROWS_AT_ONCE = 10_000  # of a Parquet row group


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

    def describe(self, image: str, mask: str) -> Row:
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


def clicks_until(dice_by_click: list[float]) -> Row:
    """The columns of NOC_TARGETS: after how many clicks Dice was first so high, None if never."""
    return {
        name: next((clicks for clicks, dice in enumerate(dice_by_click, start=1) if dice >= target), None)
        for name, target in NOC_TARGETS.items()
    }


# ---------------------------------------------------------------- parts


class Part:
    """What one process has measured so far: a file of one line an image."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._file = open(part_file(folder, rank), "w", encoding="utf-8")

    def add(self, number: int, rows: list[Row], prompts: dict) -> None:
        """number: of the image in the index; ascending."""
        self._file.write(json.dumps([number, rows, prompts]) + "\n")

    def close(self) -> None:
        self._file.close()


def part_file(folder: Path, rank: int) -> Path:
    return folder / f"part_{rank}.jsonl"


def merged(folder: Path, processes: int) -> Iterator[tuple[int, list[Row], dict]]:
    """The images of all parts in the order of the index: number, rows, prompts. Needs memory for one image a part."""

    def lines(rank: int) -> Iterator[tuple[int, list[Row], dict]]:
        with open(part_file(folder, rank), encoding="utf-8") as file:
            for line in file:
                yield tuple(json.loads(line))

    return heapq.merge(*(lines(rank) for rank in range(processes)), key=lambda image: image[0])


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """As CSV or Parquet, by the path's ending."""
    with replacing(path) as temporary:
        if path.suffix == ".parquet":
            schema = pa.schema(list(COLUMNS.items()))
            with pq.ParquetWriter(temporary, schema) as writer:
                for group in _groups(rows):
                    writer.write_table(pa.Table.from_pylist(group, schema))
        else:
            with open(temporary, "w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, COLUMNS)
                writer.writeheader()
                writer.writerows(rows)


def _groups(rows: Iterable[Row]) -> Iterator[list[Row]]:
    group = []
    for row in rows:
        group.append(row)
        if len(group) == ROWS_AT_ONCE:
            yield group
            group = []
    yield group
