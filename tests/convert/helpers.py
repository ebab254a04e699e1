"""What the tests of scripts/make_index.py share."""

import csv
import hashlib
import json
from pathlib import Path

import cv2
import numpy as np

from sam_med2d.commands import make_index
from sam_med2d.data.batch import Batch
from sam_med2d.data.datasets import TrainingDataset, train_loader


def run(source: str, *flags: object, output: Path, workers: int = 0) -> Path:
    """A command of make_index.py in this process -> its output folder."""
    words = [] if source == "sa-med2d" else ["--num_workers", workers]
    make_index.main([source, *map(str, flags), "--output", str(output), *map(str, words)])
    return output


def write(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, array)[1].tobytes())
    return path


def picture(height: int = 24, width: int = 30, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def block(shape: tuple[int, ...], *corners: tuple[int, int], value: int = 255) -> np.ndarray:
    """Zeros with a box of `value`: a (start, stop) for each axis."""
    array = np.zeros(shape, np.uint8)
    array[tuple(slice(*corner) for corner in corners)] = value
    return array


def metadata(output: Path) -> list[dict[str, str]]:
    with open(output / "metadata.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def index(output: Path, split: str = "train") -> dict[str, list[str]]:
    return json.loads((output / f"image2label_{split}.json").read_text(encoding="utf-8"))


def mask_of(output: Path, row: dict[str, str]) -> np.ndarray:
    mask = cv2.imdecode(np.fromfile(output / row["mask"], np.uint8), cv2.IMREAD_UNCHANGED)
    assert mask.dtype == np.uint8 and set(np.unique(mask)) <= {0, 255}
    return mask > 0


def image_of(output: Path, row: dict[str, str]) -> np.ndarray:
    return cv2.imdecode(np.fromfile(output / row["image"], np.uint8), cv2.IMREAD_UNCHANGED)


def contents(folder: Path) -> dict[str, str]:
    """{path: hash} of every file, hidden ones too."""
    return {
        str(path.relative_to(folder)): hashlib.sha1(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def training_batch(output: Path, size: int = 32) -> Batch:
    """What a training starts with."""
    dataset = TrainingDataset(output, image_size=size, mask_num=2)
    batch = next(iter(train_loader(dataset, batch_size=2, num_workers=0, seed=0)))
    assert batch.images.shape[1:] == (3, size, size) and batch.masks.any(dim=(1, 2, 3)).all() and len(batch.masks)
    return batch
