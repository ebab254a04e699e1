"""What each process of a test run has measured so far, until the rows of all are merged in the order of the index.

While a run goes on, each of its processes appends to a file of its own, a JSON line an image. So memory does not grow
with the test set, and rows do not depend on who made them.
"""

import argparse
import heapq
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from sam_med2d.evaluation.cases import FILE, write_cases
from sam_med2d.evaluation.rows import Row, write_rows
from sam_med2d.json_files import LARGE, parse_json
from sam_med2d.prompts.files import write_prompts
from segment_anything.files import replacing
from segment_anything.frames import SAM_MED2D
from segment_anything.geometry import is_paper


class Measured(NamedTuple):
    """Of one image. number: its place in the index; pools: of cases.py; shown_from: the side of the frame that would
    show all objects that vanished, 0 if none did; coarseness: of the frame, in pixels of the picture, over the
    tolerance of NSD."""

    number: int
    rows: list[Row]
    prompts: dict
    pools: Sequence[dict] = ()
    shown_from: int = 0
    coarseness: float = 0.0


class Part:
    """What one process has measured so far: a file of one line an image."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._file = part_file(folder, rank).open("w", encoding="utf-8")

    def add(self, measured: "Measured") -> None:
        """Images in the order of their numbers."""
        self._file.write(json.dumps(measured) + "\n")

    def close(self) -> None:
        self._file.close()


def part_file(folder: Path, rank: int) -> Path:
    return folder / f"part_{rank}.jsonl"


def merged(folder: Path, processes: int) -> Iterator[Measured]:
    """The images of all parts in the order of the index. Needs memory for one image a part."""

    def lines(rank: int) -> Iterator[Measured]:
        with open(part_file(folder, rank), encoding="utf-8") as file:
            for line in file:
                yield Measured(*parse_json(line, LARGE))

    return heapq.merge(*(lines(rank) for rank in range(processes)), key=lambda image: image.number)


def write_merged(args: argparse.Namespace, folder: Path, processes: int, strategy: str) -> tuple[int, list[float]]:
    """Write rows, cases and prompts of all processes in the order of the index. strategy: of iterative clicks.

    -> the side of the frame that would show all objects that vanished, 0 if none did; the coarseness of every image.
    """
    write_rows(folder / f"rows.{args.rows_format}", (row for one in merged(folder, processes) for row in one.rows))
    other = "csv" if args.rows_format == "parquet" else "parquet"
    (folder / f"rows.{other}").unlink(missing_ok=True)  # of an earlier run
    about = {"image_size": args.image_size, "click_strategy": strategy}
    if not is_paper(args.protocol):  # a file that does not say is of the paper's, as all were once
        about["protocol"] = args.protocol
    if args.frame != SAM_MED2D:
        about["frame"] = args.frame
    with replacing(folder / "prompts.json") as path, open(path, "w", encoding="utf-8") as file:
        write_prompts(file, about, (item for one in merged(folder, processes) for item in one.prompts.items()))
    write_cases(folder / FILE, (pool for one in merged(folder, processes) for pool in one.pools))
    frames, coarseness = zip(*((one.shown_from, one.coarseness) for one in merged(folder, processes)))
    return max(frames), [*coarseness]
