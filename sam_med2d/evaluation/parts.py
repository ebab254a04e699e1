"""What each process of a test run has measured so far, until the rows of all are merged in the order of the index.

While a run goes on, each of its processes appends to a file of its own, a JSON line an image. So memory does not grow
with the test set, and rows do not depend on who made them.
"""

import heapq
import json
from collections.abc import Iterator
from pathlib import Path

from sam_med2d.evaluation.rows import Row
from sam_med2d.json_files import LARGE, parse_json


class Part:
    """What one process has measured so far: a file of one line an image."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._file = part_file(folder, rank).open("w", encoding="utf-8")

    def add(self, number: int, rows: list[Row], prompts: dict, shown_from: int = 0) -> None:
        """number: of the image in the index; ascending. shown_from: the side of the frame that would show all objects
        that vanished; 0: none did."""
        self._file.write(json.dumps([number, rows, prompts, shown_from]) + "\n")

    def close(self) -> None:
        self._file.close()


def part_file(folder: Path, rank: int) -> Path:
    return folder / f"part_{rank}.jsonl"


def merged(folder: Path, processes: int) -> Iterator[tuple[int, list[Row], dict, int]]:
    """The images of all parts in the order of the index, as `Part.add` got them. Needs memory for one image a part."""

    def lines(rank: int) -> Iterator[tuple[int, list[Row], dict, int]]:
        with open(part_file(folder, rank), encoding="utf-8") as file:
            for line in file:
                number, rows, prompts, shown_from = parse_json(line, LARGE)
                yield number, rows, prompts, shown_from

    return heapq.merge(*(lines(rank) for rank in range(processes)), key=lambda image: image[0])
