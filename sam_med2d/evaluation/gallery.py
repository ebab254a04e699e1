"""Predictions kept on disk during a run, so that those a report shows can be drawn when it is known which they are."""

import json
import sqlite3
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sam_med2d import drawing
from sam_med2d.data.batch import Batch
from sam_med2d.data.geometry import to_original_frame
from sam_med2d.data.index import Index
from sam_med2d.data.reading import read_image, read_mask
from sam_med2d.drawing import Colour, colour_of, tile
from sam_med2d.errors import OutputError
from sam_med2d.evaluation.estimates import scored as scored_rows
from sam_med2d.evaluation.evaluate import Scored
from sam_med2d.evaluation.rows import SCORED
from sam_med2d.json_files import parse_json
from sam_med2d.prompts.modes import Mode
from segment_anything import Prompts

RANKS = ("best", "median", "worst")


class Predictions:
    """Masks and prompts of some modes, in a file of one process; about half a kilobyte an object and mode."""

    def __init__(self, folder: Path, rank: int, paper: bool = False) -> None:
        """paper: prompts come back from the frame by the original's mapping. An earlier run's file is written over."""
        self.paper = paper
        self.path = predictions_file(folder, rank)
        self.path.unlink(missing_ok=True)
        with self._writing():
            self._store = sqlite3.connect(self.path)
        with self._writing():
            self._store.execute("create table predictions (mask text, mode text, size text, bits blob, prompts text)")

    def add(self, scored: Scored, content: list[int]) -> None:
        """content: top, left, height, width of the picture in the frame."""
        height, width = scored.truth.shape[-2:]
        size = (height, width)
        prompts = prompts_in_picture(scored, content, size, self.paper)
        lines = [
            (
                name,
                scored.mode.name,
                json.dumps(size),
                zlib.compress(np.packbits(mask.numpy()).tobytes(), 1),
                json.dumps([None if p is None else p[i].tolist() for p in prompts[:3]]),
            )
            for i, (name, mask) in enumerate(zip(scored.names, scored.masks))
        ]
        with self._writing():
            self._store.executemany("insert into predictions values (?, ?, ?, ?, ?)", lines)

    def close(self) -> None:
        try:
            with self._writing():
                self._store.execute("create index by_mask on predictions (mask, mode)")
                self._store.commit()
        finally:
            self._store.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Raises OutputError where the file cannot be written, as on a full disk."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise OutputError(
                f"{self.path}: cannot be written ({error}); make room there, choose another --work_dir, or do without "
                "the pictures: --report False"
            ) from error


def prompts_in_picture(scored: Scored, content: list[int], size: tuple[int, int], paper: bool) -> Prompts:
    """In pixels of the picture, of this (height, width). content: its top, left, height, width in the frame."""
    return scored.prompts if scored.mode.zoomed else to_original_frame(scored.prompts, content, size, paper)


def predictions_file(folder: Path, rank: int) -> Path:
    return folder / f"part_{rank}.sqlite"


def draw(folder: Path, processes: int, index: Index, image: str, mask: str, mode: str) -> np.ndarray:
    """The tile of one object without its caption, from what the processes have kept. image, mask: as in the index."""
    predicted, prompts = _find(folder, processes, mask, mode)
    picture = read_image(index.path(image), [index.path(mask)])
    truth = read_mask(index.path(mask), picture.shape[:2])
    return drawing.tile(picture, predicted, torch.from_numpy(truth), prompts, 0, "")[drawing.CAPTION_HEIGHT :]


def _find(folder: Path, processes: int, mask: str, mode: str) -> tuple[Tensor, Prompts]:
    for rank in range(processes):
        store = sqlite3.connect(predictions_file(folder, rank))
        try:
            found = store.execute(
                "select size, bits, prompts from predictions where mask = ? and mode = ?", (mask, mode)
            ).fetchone()
        finally:
            store.close()
        if found:
            height, width = parse_json(found[0])
            bits = np.unpackbits(np.frombuffer(zlib.decompress(found[1]), np.uint8), count=height * width)
            prompts = (None if p is None else torch.tensor([p]) for p in parse_json(found[2]))
            return torch.from_numpy(bits.reshape(height, width).astype(bool)), Prompts(*prompts)
    raise LookupError(f"no prediction of {mask} in mode {mode} was kept")


def tiles_of(
    batch: Batch,
    scored: Scored,
    index: Index,
    paper: bool = False,
    colours: Mapping[str, Colour] = MappingProxyType({}),
) -> list[np.ndarray]:
    """A tile for each object of one image in one mode, on the original picture, with its Dice.

    paper: prompts come back from the frame by the original's mapping. colours: {mask: its colour}, where objects do not
    all have the same.
    """
    image = read_image(index.path(batch.image_names[scored.image]), [index.path(name) for name in scored.names])
    prompts = prompts_in_picture(scored, batch.content[scored.image].tolist(), image.shape[:2], paper)
    return [
        tile(
            image,
            scored.masks[i],
            scored.truth[i],
            prompts,
            i,
            f"{Path(name).stem}  Dice {scored.values['dice'][i]:.2f}",
            colour=colours.get(name, colour_of(0)),
        )
        for i, name in enumerate(scored.names)
    ]


@dataclass(frozen=True)
class GalleryItem:
    """An object to show. image: (H, W, 3) uint8 BGR, as drawing.tile makes it; rank: one of RANKS."""

    class_name: str
    rank: str
    mode: str
    caption: str
    image: np.ndarray


class Choice(NamedTuple):
    """An object whose tile the gallery wants; image and mask as in the rows."""

    class_name: str
    rank: str
    mode: str
    image: str
    mask: str
    dice: float


def choose_gallery(rows: pd.DataFrame, modes: Sequence[str], classes_at_most: int = 12, each: int = 1) -> list[Choice]:
    """The best, median and worst objects by Dice of each class in each of `modes`.

    The classes are those with most objects (ties: by name), in order of name; `each` objects a rank, no object twice
    in one class and mode, fewer where there are fewer objects. Depends on the rows alone, not on their order.
    """
    rows = scored_rows(rows)
    rows = rows[rows["mode"].isin(modes) & rows["status"].eq(SCORED)]  # of others there is no answer to show
    counts = rows.drop_duplicates("mask")["class"].astype(str).value_counts().rename_axis("class").reset_index()
    classes = sorted(counts.sort_values(["count", "class"], ascending=[False, True])["class"][:classes_at_most])
    choices = []
    for name in classes:
        of_class = rows[rows["class"] == name]
        for mode in dict.fromkeys(modes):
            part = of_class[of_class["mode"] == mode]
            part = part.assign(name=part["mask"].astype(str)).sort_values(["dice", "name"]).to_dict("records")
            worst = part[:each]
            best = part[max(each, len(part) - each) :][::-1]
            rest = part[each : len(part) - each]
            middle = rest[max(0, (len(rest) - each) // 2) :][:each]
            choices += [
                Choice(name, rank, mode, str(row["image"]), str(row["mask"]), float(row["dice"]))
                for rank, chosen in zip(RANKS, (best, middle, worst))
                for row in chosen
            ]
    return choices


def shown_in_gallery(modes: list[Mode]) -> list[Mode]:
    """The first mode, and of those of iterative clicks the one with the most."""
    clicked = [mode for mode in modes if mode.start == "click" and not mode.scored]
    return list(dict.fromkeys([modes[0], max(clicked, key=lambda mode: mode.clicks, default=modes[0])]))
