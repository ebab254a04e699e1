"""One row an object and mode: what an evaluation measured. Tables, comparisons and reports are made from the rows alone.

While a run goes on, each of its processes appends to a file of its own, a JSON line an image; at the end the lines are
merged in the order of the index. So memory does not grow with the test set, and rows do not depend on who made them.
"""

import argparse
import csv
import heapq
import json
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.parquet import ParquetFile

from sam_med2d.data.batch import Batch
from sam_med2d.errors import DataError
from sam_med2d.evaluation.evaluate import Scored
from sam_med2d.evaluation.surface import surface_metrics
from sam_med2d.prompts.modes import Mode
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

NAMES = tuple(name for name, kind in COLUMNS.items() if kind == pa.string())

NUMBERS = tuple(name for name in COLUMNS if name not in (*NAMES, "slice"))

SURFACE_METRICS = ("nsd", "hd95")

WAITING = 8  # images a worker, whose surface metrics are being computed while the model goes on

Distances = list[tuple[float | None, float | None]]  # of each object: normalised surface Dice, Hausdorff distance


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


def read_rows(path: str | Path) -> pd.DataFrame:
    """The rows that test.py left in a folder, or a rows.csv or rows.parquet itself.

    -> columns COLUMNS: names as categories ("" where not known; modes in the order of the run), numbers as float64
    with NaN for empty, slice as Int64. Raises DataError: missing, empty, or not such a file.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in ("rows.csv", "rows.parquet") if (path / name).is_file()]
        if len(found) != 1:
            raise DataError(
                f"{path}: holds both rows.csv and rows.parquet; name the one you mean"
                if found
                else f"{path}: holds no rows.csv and no rows.parquet; name the folder of a finished run of test.py"
            )
        path = found[0]
    elif not path.is_file():
        raise DataError(f"{path}: not found; name the folder of a finished run of test.py")
    rows = _read_parquet(path) if path.suffix == ".parquet" else _read_csv(path)
    if rows.empty:
        raise DataError(f"{path}: holds no objects; run test.py again")
    spoiled = rows["status"].eq("") | rows["mask"].eq("") | rows["mode"].eq("")
    if spoiled.any():
        raise DataError(f"{path}: line {_line(spoiled)} is incomplete (no mask, mode or status); run test.py again")
    spoiled = rows["status"].eq(SCORED) & rows[["dice", "true_area", "image_area"]].isna().any(axis=1)
    if spoiled.any():
        raise DataError(f"{path}: line {_line(spoiled)} has status {SCORED} but no Dice or area; run test.py again")
    return rows


def _line(spoiled: pd.Series) -> int:
    """The line of the first True in a CSV file with a header, from 1."""
    return int(np.argmax(spoiled.to_numpy())) + 2


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    missing = [column for column in COLUMNS if column not in columns]
    if missing:
        raise DataError(
            f"{path}: is no rows file of this test.py (has no column {', '.join(missing[:3])}"
            + f" and {len(missing) - 3} more" * (len(missing) > 3)
            + "); run test.py again"
        )


def _read_csv(path: Path) -> pd.DataFrame:
    try:
        with open(path, newline="", encoding="utf-8") as file:
            _check_columns(path, next(csv.reader(file), []))
        # a class may be called "NA" or "None": only in columns of numbers does an empty field mean nothing is there
        kinds = {name: "category" for name in NAMES} | {name: "float64" for name in NUMBERS} | {"slice": "Int64"}
        rows = pd.read_csv(
            path,
            usecols=COLUMNS,
            dtype=kinds,
            keep_default_na=False,
            encoding="utf-8",
            na_values={name: ["", "nan"] for name in (*NUMBERS, "slice")},
        )
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not a text file; name the rows.csv of a finished run of test.py") from error
    except (ValueError, csv.Error) as error:  # among them pandas' ParserError
        raise DataError(f"{path}: cannot be read as rows of test.py ({error}); run test.py again") from error
    return _tidy(rows)


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        with ParquetFile(path) as file:
            _check_columns(path, file.schema_arrow.names)
            rows = file.read(columns=list(COLUMNS)).to_pandas()
        for name in NUMBERS:
            rows[name] = rows[name].astype("float64")
        rows["slice"] = rows["slice"].astype("float64").astype("Int64")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (pa.ArrowException, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: cannot be read as rows of test.py ({error}); run test.py again") from error
    return _tidy(rows)


def _tidy(rows: pd.DataFrame) -> pd.DataFrame:
    for name in NAMES:
        values = rows[name].astype(object)
        rows[name] = values.where(values.notna(), "").astype(str).astype("category")
    rows["mode"] = rows["mode"].cat.reorder_categories([*rows["mode"].unique()])
    return rows[list(COLUMNS)]


def with_distances(
    scores: Iterable[tuple[Batch, list[Scored]]],
    args: argparse.Namespace,
) -> Iterator[tuple[Batch, int, list[Scored], list[Distances]]]:
    """Image by image, in order: its batch and place there, its scores mode by mode, and their surface metrics.

    These are computed by threads while the model goes on; only so many images wait for theirs.
    """
    asked = set(SURFACE_METRICS) & set(args.metrics)

    def distances(scored: Scored) -> Distances:
        if not asked:
            return [(None, None)] * len(scored.names)
        pairs = zip(scored.masks.numpy(), scored.truth.numpy())
        found = [surface_metrics(predicted, truth, args.nsd_tolerance) for predicted, truth in pairs]
        return [tuple(value if name in asked else None for name, value in zip(SURFACE_METRICS, both)) for both in found]

    def finished(batch: Batch, image: int, scored: list[Scored], futures: list[Future]):
        return batch, image, scored, [future.result() for future in futures]

    threads = max(1, args.num_workers)
    waiting: deque = deque()
    with ThreadPoolExecutor(threads) as pool:
        for batch, scored in scores:
            for image in range(len(batch.images)):
                here = [one for one in scored if one.image == image]
                waiting.append((batch, image, here, [pool.submit(distances, one) for one in here]))
            while len(waiting) > WAITING * threads:
                yield finished(*waiting.popleft())
        while waiting:
            yield finished(*waiting.popleft())


def rows_of(scored: Scored, image: str, described: dict[str, Row], strategy: str, distances: Distances) -> list[Row]:
    """The rows of one image's objects in one mode. strategy: of iterative clicks."""
    mode = scored.mode
    areas = zip(scored.truth.sum(dim=(1, 2)).tolist(), scored.masks.sum(dim=(1, 2)).tolist())
    return [
        {
            "image": image,
            "mask": mask,
            **described[mask],
            **mode_columns(mode, strategy),
            "true_area": true_area,
            "image_area": scored.truth[0].numel(),
            "predicted_area": predicted_area,
            **{name: values[i] for name, values in scored.values.items()},
            "nsd": nsd,
            "hd95": hd95,
            "predicted_iou": scored.predicted_iou[i],
            **({} if scored.dice_by_click is None else clicks_until(scored.dice_by_click[i].tolist())),
            "status": SCORED,
        }
        for i, (mask, (true_area, predicted_area), (nsd, hd95)) in enumerate(zip(scored.names, areas, distances))
    ]


def unscored_row(image: str, mask: str, described: dict[str, Row], mode: Mode) -> Row:
    """Of a mask that is empty, or emptied by resizing it to the frame: it has no prompts, so nothing to score."""
    return {"image": image, "mask": mask, **described[mask], **mode_columns(mode, ""), "status": "empty truth"}


def mode_columns(mode: Mode, strategy: str) -> Row:
    corrected = mode.start == "click" or (mode.start == "box" and mode.clicks)
    return {
        "mode": mode.name,
        "strategy": strategy if corrected else None,
        "clicks": mode.clicks,
        "box": int(mode.start == "box"),
    }
