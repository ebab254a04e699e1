"""How a model does on pictures of other kinds than those it was trained on, now and before it was fine-tuned.

A model that is fine-tuned on one kind of picture can lose the others without any sign in its own test set. What is
asked here is small and always the same, so that two runs can be compared: drawn phantoms, or the test split of other
data.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset

from sam_med2d.data.batch import Sample, image_tensor
from sam_med2d.data.datasets import TestingDataset, test_loader
from sam_med2d.data.phantoms import PHANTOMS, phantom
from sam_med2d.data.samplers import stream_of
from sam_med2d.evaluation.evaluate import evaluate
from sam_med2d.prompts.modes import Mode
from segment_anything import Sam

SCENES, OBJECTS = 16, 3  # phantoms, and objects of each
HELD_OUT = 10**6  # the seed of phantoms that neither pretraining nor replay draws

COLUMNS = ("data", "mode", "objects", "Dice", "Dice before")


class PhantomScenes(Dataset):
    """Drawn pictures as items of a test set, the same for everybody. Item i is a function of i and the size alone."""

    def __init__(self, image_size: int) -> None:
        self.image_size = image_size

    def __len__(self) -> int:
        return SCENES

    def __getitem__(self, number: int) -> Sample:
        size = self.image_size
        image, masks = phantom(stream_of(HELD_OUT, number), size, OBJECTS)
        return Sample(
            image=image_tensor(image),
            content=(0, 0, size, size),
            masks=torch.from_numpy(masks)[:, None],
            image_name=f"{PHANTOMS}/{number}",
            mask_names=[f"{PHANTOMS}/{number}_{i}" for i in range(OBJECTS)],
            original_size=(size, size),
            original_masks=torch.from_numpy(masks),
            skipped=[],
        )


class Elsewhere(NamedTuple):
    """The data to ask, by the name that the table shows. Raises DataError, when it is made, where one has no index."""

    data: dict[str, Dataset]

    @classmethod
    def of(cls, sources: Sequence[str], image_size: int) -> "Elsewhere":
        """sources: folders of data with a test split, or "phantoms"."""
        return cls(
            {
                source: PhantomScenes(image_size) if source == PHANTOMS else TestingDataset(source, image_size)
                for source in sources
            }
        )

    def dice(
        self, model: Sam, modes: list[Mode], device: torch.device, progress: Callable = lambda batches, _: batches
    ) -> dict[tuple[str, str], list[float]]:
        """{(data, mode): Dice of each object}. progress: (batches, name of the data) -> the batches, shown."""
        found: dict[tuple[str, str], list[float]] = {}
        for name, dataset in self.data.items():
            batches = progress(test_loader(dataset, batch_size=1, num_workers=0), name)
            for _, scored in evaluate(model, batches, modes, device=device):
                for one in scored:
                    found.setdefault((name, one.mode.name), []).extend(one.values["dice"])
        return found


def table(now: dict[tuple[str, str], list[float]], before: dict[tuple[str, str], list[float]]) -> pd.DataFrame:
    """A row for each data and mode: mean Dice in % now, and before where that is known."""

    def mean(values: list[float] | None) -> float:
        return round(100 * float(np.mean(values)), 2) if values else np.nan

    rows = [(*key, len(values), mean(values), mean(before.get(key))) for key, values in now.items()]
    return pd.DataFrame(rows, columns=COLUMNS)
