"""results.json: what a run of test.py found, and what it was made from. Its schema, its writer and its reader.

    {"dice": {"bbox": 0.81, ...}, ...                       a mean over objects for each metric and mode
     "objects": 44, "images": 16, "unscored": 0, "images_per_second": 3.5,
     "seed": 0, "model_type": "vit_t", "processes": 1,
     "weights_hash": "2a35...", "data_hash": "e58b...", "commit": "cbf5...", "device": "cpu", ..., "versions": {...},
     "flags": {"image_size": 128, ...},                     of the command line, as they were used
     "tables": {"overall": [{"mode": "bbox", ...}, ...], ...}}

Everything that is none of the names above is provenance (see sam_med2d/provenance.py) and lies at the top level.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sam_med2d.errors import DataError
from sam_med2d.evaluation.columns import METRICS
from sam_med2d.json_files import read_json
from segment_anything.files import replacing
from segment_anything.geometry import PAPER

FILE = "results.json"

RENAMED = {"never": "nof"}  # the first letters of metrics that had another name once


@dataclass(frozen=True)
class Results:
    """Of one run. A value that a file does not tell is None, or an empty dict."""

    means: dict[str, dict[str, float]] = field(default_factory=dict)  # {metric: {mode: mean over objects}}
    objects: int | None = None
    images: int | None = None
    unscored: int | None = None  # objects
    vanished: int | None = None  # objects of which the frame shows nothing, scored or not
    images_per_second: float | None = None
    seed: int | None = None
    model_type: str | None = None
    processes: int | None = None
    provenance: dict[str, Any] = field(default_factory=dict)  # with "versions", a dict
    flags: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # as grids.to_records gives them

    @property
    def data_hash(self) -> str | None:
        """Of the index file."""
        return self.provenance.get("data_hash")

    @property
    def device(self) -> str | None:
        """What the model ran on: cpu, cuda:0 ..."""
        return self.provenance.get("device")

    @property
    def image_size(self) -> int | None:
        """The side of the frame, in pixels."""
        return self.flags.get("image_size")

    @property
    def protocol(self) -> str:
        """How masks came back from the frame; runs that do not tell are older than any other way than the paper's."""
        return self.flags.get("protocol", PAPER)

    @property
    def nsd_tolerance(self) -> float | str | None:
        """Of the normalised surface Dice: a number of pixels, or text with a unit."""
        return self.flags.get("nsd_tolerance")

    def facts(self) -> dict[str, Any]:
        """The counts and settings of the run, without what is None."""
        return {name: getattr(self, name) for name in FACTS if getattr(self, name) is not None}

    def content(self) -> dict[str, Any]:
        """What the file holds."""
        return {**self.means, **self.facts(), **self.provenance, "flags": self.flags, "tables": self.tables}

    @classmethod
    def of(cls, content: dict[str, Any]) -> "Results":
        """What a file holds -> Results, also of files that name metrics as they were called once.

        Raises ValueError: it is no content of a results file.
        """
        for name in ("flags", "tables"):
            if not isinstance(content.get(name, {}), dict):
                raise ValueError(f"'{name}' holds a {type(content[name]).__name__}")
        for name, rows in content.get("tables", {}).items():
            if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
                raise ValueError(f"its table {name!a} is no list of rows")
            if not all(isinstance(row.get("metric", ""), str) for row in rows):
                raise ValueError(f"its table {name!a} has a metric that is no name")
        known = {name: content[name] for name in (*FACTS, "flags") if name in content}
        tables = {name: _renamed(rows) for name, rows in content.get("tables", {}).items()}
        means = {name: content[name] for name in content if name in METRICS}
        rest = {name: content[name] for name in content if name not in (*FACTS, *METRICS, "flags", "tables")}
        return cls(means=means, provenance=rest, tables=tables, **known)


FACTS = ("objects", "images", "unscored", "vanished", "images_per_second", "seed", "model_type", "processes")


def _renamed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a table, metrics by the names they have now."""

    def name_of(metric: str) -> str:
        for old, new in RENAMED.items():
            if metric.startswith(old):
                return new + metric.removeprefix(old)
        return metric

    return [{**row, "metric": name_of(row["metric"])} if "metric" in row else row for row in rows]


def write_results(folder: Path, results: Results) -> None:
    """-> {folder}/results.json"""
    with replacing(folder / FILE) as path:
        path.write_text(json.dumps(results.content(), indent=1), encoding="utf-8")


def read_results(folder: Path) -> Results | None:
    """None where a folder has rows alone. Raises DataError: the file cannot be read, or is none of test.py."""
    path = folder / FILE
    if not path.is_file():
        return None
    content = read_json(path, "run test.py again")
    try:
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}")
        return Results.of(content)
    except ValueError as error:
        raise DataError(f"{path}: is no results file of test.py ({error}); run test.py again") from error
