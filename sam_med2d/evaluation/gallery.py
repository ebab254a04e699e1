"""Predictions kept on disk during a run, so that those a report shows can be drawn when it is known which they are."""

import json
import sqlite3
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sam_med2d import drawing
from sam_med2d.data.datasets import Index, read_image, read_mask
from sam_med2d.evaluation.evaluate import Scored, to_original_frame
from segment_anything import Prompts


class Predictions:
    """Masks and prompts of some modes, in a file of one process; about half a kilobyte an object and mode."""

    def __init__(self, folder: Path, rank: int) -> None:
        """What an earlier run has left is written over."""
        self.path = predictions_file(folder, rank)
        self.path.unlink(missing_ok=True)
        self._store = sqlite3.connect(self.path)
        self._store.execute("create table predictions (mask text, mode text, size text, bits blob, prompts text)")

    def add(self, scored: Scored, content: list[int]) -> None:
        """content: top, left, height, width of the picture in the frame."""
        size = tuple(scored.truth.shape[-2:])
        prompts = to_original_frame(scored.prompts, content, size)
        self._store.executemany(
            "insert into predictions values (?, ?, ?, ?, ?)",
            [
                (
                    name,
                    scored.mode.name,
                    json.dumps(size),
                    zlib.compress(np.packbits(mask.numpy()).tobytes(), 1),
                    json.dumps([None if p is None else p[i].tolist() for p in prompts[:3]]),
                )
                for i, (name, mask) in enumerate(zip(scored.names, scored.masks))
            ],
        )

    def close(self) -> None:
        self._store.execute("create index by_mask on predictions (mask, mode)")
        self._store.commit()
        self._store.close()


def predictions_file(folder: Path, rank: int) -> Path:
    return folder / f"part_{rank}.sqlite"


def draw(folder: Path, processes: int, index: Index, image: str, mask: str, mode: str) -> np.ndarray:
    """The tile of one object without its caption, from what the processes have kept. image, mask: as in the index."""
    predicted, prompts = _find(folder, processes, mask, mode)
    picture = read_image(index.path(image))
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
            height, width = json.loads(found[0])
            bits = np.unpackbits(np.frombuffer(zlib.decompress(found[1]), np.uint8), count=height * width)
            prompts = (None if p is None else torch.tensor([p]) for p in json.loads(found[2]))
            return torch.from_numpy(bits.reshape(height, width).astype(bool)), Prompts(*prompts)
    raise LookupError(f"no prediction of {mask} in mode {mode} was kept")
