"""Pictures of other kinds, shown again in fine-tuning so that what was learned before is not forgotten.

A model that is fine-tuned on one kind of picture comes to answer that kind's objects whatever it is asked (catastrophic
forgetting; replaying earlier tasks is the oldest remedy: Robins, "Catastrophic forgetting, rehearsal and
pseudorehearsal", 1995). Pictures are drawn phantoms, which need no file, or those of other data sets.
"""

from collections.abc import Sequence, Sized
from typing import Protocol

import numpy as np
import torch

from sam_med2d.data.batch import Sample, image_tensor
from sam_med2d.data.phantoms import PHANTOMS, phantom


class Source(Protocol):
    """A data set whose images can be drawn, such as a TrainingDataset."""

    @property
    def index(self) -> Sized: ...

    def drawn(self, index: int, generator: np.random.Generator) -> Sample: ...


class Replay:
    """Pictures to show beside `length` of the trained ones. What is shown is a function of the stream alone."""

    def __init__(self, sources: Sequence[Source | None], share: float, length: int) -> None:
        """sources: data sets, None for phantoms, all alike. share: pictures to show for each trained one."""
        self.sources = sources
        self.count = round(share * length)

    def sample(self, stream: np.random.Generator, image_size: int, mask_num: int) -> Sample:
        """One picture with at most mask_num masks, drawn with replacement. Raises DataError as its data set does."""
        source = self.sources[int(stream.integers(len(self.sources)))]
        if source is not None:
            return source.drawn(int(stream.integers(len(source.index))), stream)
        return phantom_sample(stream, image_size, mask_num)


def phantom_sample(stream: np.random.Generator, image_size: int, objects: int, name: str = PHANTOMS) -> Sample:
    """A drawn picture, which fills the frame."""
    image, masks = phantom(stream, image_size, objects)
    return Sample(
        image=image_tensor(image),
        content=(0, 0, image_size, image_size),
        masks=torch.from_numpy(masks)[:, None],
        image_name=name,
        mask_names=[f"{name}_{i}" for i in range(objects)],
        original_size=(image_size, image_size),
        original_masks=None,
        skipped=[],
    )
