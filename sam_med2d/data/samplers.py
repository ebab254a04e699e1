"""Which images an epoch shows, in which order: shuffled, or every data set or class alike."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from sam_med2d.data.description import Describer
from sam_med2d.data.index import Index
from sam_med2d.data.metadata import METADATA
from sam_med2d.errors import DataError

KINDS = ("dataset", "class")

REPLAY = 2**32 - 1  # of the stream that strews; no image has this number
NAMED_AFTER = " and does not go on from its image's by a class"


class Balance:
    """Groups of images that training shall see equally often.

    names, groups: of each group its name and the numbers of its images. By class an image may be in several groups,
    and its masks are drawn with `mask_shares`: the rarer the class in the index, the more often.
    """

    def __init__(self, index: Index, kind: str, names: Sequence[str], codes: np.ndarray) -> None:
        """codes: (masks of the index,) the place in `names` of each mask's group."""
        self.index = index
        starts = np.array([index.first_mask(i) for i in range(len(index) + 1)])
        if kind == "dataset":  # of the first mask: an image is in one data set
            image, code, self._weights = np.arange(len(index)), codes[starts[:-1]], None
        else:
            self._weights = (1 / np.bincount(codes, minlength=len(names)))[codes].astype(np.float32)
            pairs = np.unique(codes.astype(np.int64) * len(index) + np.repeat(np.arange(len(index)), np.diff(starts)))
            code, image = np.divmod(pairs, len(index))
        order = np.argsort(code, kind="stable")
        present, first = np.unique(code[order], return_index=True)
        self.names = [names[i] for i in present]
        self.groups = np.split(image[order].astype(np.int32), first[1:])

    def mask_shares(self, i: int) -> np.ndarray | None:
        """How probable each mask of an image is to be drawn; None: all alike."""
        if self._weights is None:
            return None
        weights = self._weights[self.index.first_mask(i) : self.index.first_mask(i + 1)].astype(np.float64)
        return weights / weights.sum()


def balance_of(index: Index, folder: str, kind: str) -> Balance:
    """kind: "dataset" or "class". folder: where metadata.csv and the table of class names may be.

    Raises DataError as Describer does, and where what would be balanced is not known: of a mask where there is no
    metadata.csv, of all masks where there is one (those that it says nothing of are a group of their own).
    """
    describer = Describer(folder)
    names, codes = describer.labels(index, kind)
    if describer.metadata is None and "" in names:
        unknown = int(np.argmax(codes == names.index("")))
        raise DataError(
            f"{index.source}: the {kind} of its masks is not known: there is no {METADATA} in {folder}, and "
            f"{index.mask(unknown)} is no file name of SA-Med2D-20M{NAMED_AFTER if kind == 'class' else ''}"
        )
    if describer.metadata is not None and not any(names):
        raise DataError(
            f"{describer.metadata.source}: the column '{kind}' is empty for every mask of {index.source}; fill it in"
        )
    return Balance(index, kind, names, codes)


def stream_of(seed: int, *key: int) -> np.random.Generator:
    """An independent stream for every key under one seed (>= 0)."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


class EpochSampler(Sampler[list[tuple[int, int]]]):
    """Yields one epoch's batches of (epoch, index): a permutation that (seed, epoch) alone decides.

    `set_epoch(epoch, start_batch)` continues an epoch that was broken off after start_batch batches. The last
    batch may be smaller. Of several processes each has its share of every batch, next to one another: together they
    are the batches of one process. A share of the last batch may have no image.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int = 0,
        start_batch: int = 0,
        replayed: int = 0,
        *,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        """replayed: images of other kinds, numbered from `length` on, strewn among those of each epoch. batch_size:
        images of a whole batch. rank: whose share of it is yielded.
        """
        self.length = length
        self.replayed = replayed
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.processes = processes
        self.set_epoch(0, start_batch)

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Choose what the next iteration yields."""
        self.epoch = epoch
        self.start_batch = start_batch

    def __len__(self) -> int:
        """Batches left in this epoch."""
        return max(0, -(-(self.length + self.replayed) // self.batch_size) - self.start_batch)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.epoch
        order = self._order(epoch)
        if self.replayed:
            others = np.arange(self.length, self.length + self.replayed)
            order = stream_of(self.seed, epoch, REPLAY).permutation(np.concatenate([order, others]))
        order = order.tolist()
        for start in range(self.start_batch * self.batch_size, len(order), self.batch_size):
            size = min(self.batch_size, len(order) - start)
            first, end = (start + size * rank // self.processes for rank in (self.rank, self.rank + 1))
            yield [(epoch, index) for index in order[first:end]]

    def _order(self, epoch: int) -> np.ndarray:
        return stream_of(self.seed, epoch).permutation(self.length)


class BalancedSampler(EpochSampler):
    """An EpochSampler whose epochs, as long as ever, give every group of images the same share.

    An image of a small group comes several times an epoch, equally often as the others of its group give or take one;
    of a large group some do not come, others each epoch.
    """

    def __init__(
        self, groups: Sequence[np.ndarray], length: int, batch_size: int, seed: int = 0, **others: int
    ) -> None:
        """groups: image numbers of each group; an image may be in several. others: as of EpochSampler."""
        super().__init__(length, batch_size, seed, **others)
        self.groups = groups

    def _order(self, epoch: int) -> np.ndarray:
        stream = stream_of(self.seed, epoch)
        share, rest = divmod(self.length, len(self.groups))
        shares = np.full(len(self.groups), share)
        shares[stream.permutation(len(self.groups))[:rest]] += 1
        parts = []
        for members, share in zip(self.groups, shares):
            times, some = divmod(int(share), len(members))
            parts += [np.tile(members, times), stream.permutation(members)[:some]]
        return stream.permutation(np.concatenate(parts))
