"""One row an object and mode: what an evaluation measured. Tables, comparisons and reports are made from rows alone."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.parquet import ParquetFile

from sam_med2d.errors import DataError
from sam_med2d.evaluation.columns import CLICKS, MAIN_METRICS, METRICS, computed_from
from segment_anything.files import replacing

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
    **{name: METRICS[name].type for name in MAIN_METRICS},
    "predicted_iou": pa.float64(),
    **{name: METRICS[name].type for name in computed_from(CLICKS)},
    "status": pa.string(),
}

Row = dict[str, object]  # a value for each of COLUMNS, None where empty

SCORED = "ok"  # the status of rows that a model answered for; any other says why it was not asked

ALONE = "no other object"  # of its picture, whose prompts could be swapped with its own

EMPTY, VANISHED = "empty truth", "vanished"  # a mask without an object; an object of which the frame shows nothing

ROWS_AT_ONCE = 10_000  # of a Parquet row group

NAMES = tuple(name for name, kind in COLUMNS.items() if kind == pa.string())

NUMBERS = tuple(name for name in COLUMNS if name not in (*NAMES, "slice"))

NEWER = tuple(name for name in MAIN_METRICS if name != "dice")  # files written before there was such a metric lack it


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


def measured(rows: pd.DataFrame) -> pd.Series:
    """Whether a row carries metrics, bool: of objects that were scored, and of those that vanished and count as 0."""
    return rows["status"].eq(SCORED) | (rows["status"].eq(VANISHED) & rows["dice"].notna())


def _line(spoiled: pd.Series) -> int:
    """The line of the first True in a CSV file with a header, from 1."""
    return int(np.argmax(spoiled.to_numpy())) + 2


def _present(path: Path, columns: Sequence[str]) -> list[str]:
    """-> those of COLUMNS that a file has. Raises DataError where it lacks others than metrics newer than itself."""
    missing = [column for column in COLUMNS if column not in columns and column not in NEWER]
    if missing:
        raise DataError(
            f"{path}: is no rows file of this test.py (has no column {', '.join(missing[:3])}"
            + f" and {len(missing) - 3} more" * (len(missing) > 3)
            + "); run test.py again"
        )
    return [column for column in COLUMNS if column in columns]


def _read_csv(path: Path) -> pd.DataFrame:
    try:
        with open(path, newline="", encoding="utf-8") as file:
            present = _present(path, next(csv.reader(file), []))
        # a class may be called "NA" or "None": only in columns of numbers does an empty field mean nothing is there
        kinds = dict.fromkeys(NAMES, "category") | dict.fromkeys(NUMBERS, "float64") | {"slice": "Int64"}
        rows = pd.read_csv(
            path,
            usecols=present,
            dtype={name: kinds[name] for name in present},
            keep_default_na=False,
            encoding="utf-8",
            na_values={name: ["", "nan"] for name in (*NUMBERS, "slice") if name in present},
        )
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not a text file; name the rows.csv of a finished run of test.py") from error
    except (TypeError, ValueError, csv.Error) as error:  # pandas' ParserError, and TypeError for half a slice
        raise DataError(f"{path}: cannot be read as rows of test.py ({error}); run test.py again") from error
    return _tidy(rows)


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        with ParquetFile(path) as file:
            rows = file.read(columns=_present(path, file.schema_arrow.names)).to_pandas()
        for name in rows.columns.intersection(NUMBERS):
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
    for name in NEWER:
        if name not in rows:
            rows[name] = np.nan
    return rows[list(COLUMNS)]
