"""The weights that training started from, as a teacher on pictures of other kinds, so that they are not forgotten.

A model that goes on learning is held to what it answered before, where the new pictures say nothing (Li and Hoiem 2016,
"Learning without Forgetting", arXiv 1606.09282, section 3; soft answers as targets: Hinton et al. 2015, arXiv
1503.02531). The teacher is asked what the annotator asks of the model that learns: the same prompts, in every round, on
the pictures of --replay.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sam_med2d.data.batch import Batch
from segment_anything import Prediction, Prompts, Sam

SMOOTH = 1e-3  # of an overlap, for answers that are nearly empty


class Teacher(NamedTuple):
    """model: frozen; weight: of `distance` in the loss."""

    model: Sam
    weight: float


class Others(NamedTuple):
    """Where in a batch the pictures of other kinds are, on the CPU.

    images: (b,) their numbers; rows: (M,) those of their objects, ascending; of: (M,) which of `images` each is of.
    """

    images: Tensor
    rows: Tensor
    of: Tensor


class Lesson(NamedTuple):
    """What the teacher saw of a batch: others; rows, as there but on the device; embeddings: (M, C, h, w)."""

    others: Others
    rows: Tensor
    embeddings: Tensor


def others_in(batch: Batch) -> Others | None:
    """None where no object is of another kind. batch: on the CPU, or its device is waited for."""
    own = batch.image_index.cpu().numpy()
    images = np.flatnonzero(batch.replayed)
    rows = np.flatnonzero(np.isin(own, images))
    if not len(rows):
        return None
    images = np.unique(own[rows])
    return Others(*map(torch.from_numpy, (images, rows, np.searchsorted(images, own[rows]))))


@torch.no_grad()
def lesson_of(teacher: Teacher, batch: Batch, others: Others) -> Lesson:
    """batch: on the device of the teacher."""
    device = batch.images.device
    images, rows, of = (part.to(device, non_blocking=True) for part in others)
    return Lesson(others, rows, teacher.model.encode(batch.images[images], batch.content[images])[of])


@torch.no_grad()
def taught(teacher: Teacher, lesson: Lesson, prompts: Prompts) -> Prediction:
    """All four outputs of the M objects. prompts: of all N objects of the batch."""
    return teacher.model.predict(lesson.embeddings, prompts.rows(lesson.rows), multimask_output=None)


def distance(ours: Prediction, theirs: Prediction) -> Tensor:
    """How far answers are from the teacher's, 0 where they are alike: (M,).

    Of each output 1 - soft Dice of the two probabilities with squares below (Milletari et al. 2016, eq. 2), which is 0
    for equal answers however unsure they are, and the squared difference of the predicted IoUs; the mean of the four.
    """
    own, wanted = (part.logits.float().sigmoid().flatten(2) for part in (ours, theirs))
    overlap = (2 * (own * wanted).sum(2) + SMOOTH) / ((own**2).sum(2) + (wanted**2).sum(2) + SMOOTH)
    return (1 - overlap + (ours.iou.float() - theirs.iou.float()) ** 2).mean(dim=1)
