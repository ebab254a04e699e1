"""How a model does on pictures of other kinds than those it was trained on, now and before it was fine-tuned.

A model that is fine-tuned on one kind of picture can lose the others without any sign in its own test set. What is
asked here is small and always the same, so that two runs can be compared: drawn phantoms, or the test split of other
data.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from sam_med2d.data.batch import Sample
from sam_med2d.data.datasets import TestingDataset, test_loader
from sam_med2d.data.phantoms import PHANTOMS
from sam_med2d.data.replay import phantom_sample
from sam_med2d.data.samplers import stream_of
from sam_med2d.errors import DataError
from sam_med2d.evaluation.evaluate import evaluate
from sam_med2d.prompts.modes import Mode, parse_mode
from segment_anything import Sam
from segment_anything.frames import SAM_MED2D

SCENES, OBJECTS = 16, 3  # phantoms, and objects of each
# the seeds of phantoms that neither pretraining nor replay draws: val to choose weights by, test to say what was lost
HELD_OUT = {"val": 10**6 + 1, "test": 10**6}

MODES = [parse_mode(mode) for mode in ("bbox", "5pts")]  # always the same, so that runs can be compared


class PhantomScenes(Dataset):
    """Drawn pictures as items of a test set, the same for everybody. Item i is a function of i, the split and the size
    alone."""

    def __init__(self, image_size: int, split: str = "test") -> None:
        """split: a key of HELD_OUT."""
        self.image_size, self.seed = image_size, HELD_OUT[split]

    def __len__(self) -> int:
        return SCENES

    def __getitem__(self, number: int) -> Sample:
        sample = phantom_sample(stream_of(self.seed, number), self.image_size, OBJECTS, f"{PHANTOMS}/{number}")
        return replace(sample, original_masks=sample.masks[:, 0])


def sets_of(sources: Sequence[str], image_size: int, frame: str = SAM_MED2D, split: str = "test") -> dict[str, Dataset]:
    """By the name that the table shows. sources: folders of data with that split, or "phantoms"; split: val or test.

    Raises DataError where a folder has no index of it.
    """
    return {
        source: PhantomScenes(image_size, split)
        if source == PHANTOMS
        else TestingDataset(source, image_size, split, frame)
        for source in sources
    }


def dice_on(
    model: Sam, sets: dict[str, Dataset], device: torch.device, modes: list[Mode] = MODES
) -> dict[tuple[str, str], list[float]]:
    """{(data, mode): Dice of each object}. Raises DataError where a set has no object that the frame shows."""
    found: dict[tuple[str, str], list[float]] = {}
    for name, dataset in sets.items():
        loader = test_loader(dataset, batch_size=1, num_workers=0)
        for _, scored in evaluate(
            model, tqdm(loader, desc=name, unit="image", leave=False, dynamic_ncols=True), modes, device=device
        ):
            for one in scored:
                found.setdefault((name, one.mode.name), []).extend(one.values["dice"])
        if not any(found.get((name, mode.name)) for mode in modes):
            raise DataError(f"{name}: has no object that a frame of {model.image_size} px shows; name other data")
    return found


def elsewhere_table(
    now: dict[tuple[str, str], list[float]], before: dict[tuple[str, str], list[float]] | None
) -> pd.DataFrame:
    """A row for each data and mode: objects, and mean Dice now, before fine-tuning, and the change, where that is
    known.
    """
    rows = []
    for key, values in now.items():
        mean = float(np.mean(values))
        row = {"data": key[0], "mode": key[1], "objects": len(values), "Dice": mean}
        if before is not None:
            started = float(np.mean(before[key]))
            row |= {"before": started, "change": mean - started}
        rows.append(row)
    return pd.DataFrame(rows)
