"""From a JSON index to batches: what training draws of each image, what testing scores, and the loaders of both.

    dataset = TrainingDataset("data_demo", image_size=256, mask_num=5, augment=True, seed=0)
    loader = train_loader(dataset, batch_size=8, num_workers=4, seed=0)
    for epoch in range(epochs):
        loader.batch_sampler.set_epoch(epoch)
        for batch in loader:
            batch = batch.to("cuda")

Conventions, here and wherever a Batch is used:
  - S is the side of the square frame the model sees, B counts images, N objects, n objects of one image.
  - Sizes and places are (height, width) and (top, left), row before column; points (xy) are made elsewhere.
  - Ranges are half-open: the picture covers rows top .. top + height - 1 of the frame.
  - Images are uint8 0..255 in BGR order, as OpenCV reads them and as the published weights expect.
    They are normalised on the device, and the padding is zeroed there, after normalisation, by `content`.
  - Masks are bool, True inside the object, one object a mask.
  - Paths are kept as they stand in the index; `Index.path` turns them into paths that open.
"""

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from sam_med2d.data.augmentation import build_augmentation
from sam_med2d.data.batch import Sample, collate, empty_sample, image_tensor
from sam_med2d.data.cache import PackedCache, open_cache
from sam_med2d.data.closer import drawn_crop, filling
from sam_med2d.data.geometry import fit, pad, shrink
from sam_med2d.data.index import Index, read_index
from sam_med2d.data.phantoms import PHANTOMS
from sam_med2d.data.reading import read_image, read_mask
from sam_med2d.data.replay import Replay
from sam_med2d.data.samplers import BalancedSampler, EpochSampler, balance_of, stream_of
from sam_med2d.data.vanishing import Vanished, vanished_among, vanished_of
from sam_med2d.errors import DataError
from sam_med2d.stopping import holding_sigterm_back, leave_signals_to_the_parent
from segment_anything.frames import SAM_MED2D

if TYPE_CHECKING:  # it takes a second to import, and only augmented training needs it
    from albumentations import Compose

# (image (h, w, 3) uint8, masks (n, h, w) bool, generator of all draws) -> the same two, varied
OwnAugmentation = Callable[[np.ndarray, np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]]


class TrainingDataset(Dataset):
    """Images with `mask_num` of their masks, drawn with replacement. Items are keyed by (epoch, index).

    What is drawn depends on (seed, epoch, index) alone: not on workers, nor on what was read before, so a
    resumed run sees what the uninterrupted one would have.
    """

    def __init__(
        self,
        data_path: str | os.PathLike,
        image_size: int = 256,
        split: str = "train",
        mask_num: int = 5,
        augment: bool = False,
        seed: int = 0,
        cache: str | os.PathLike | None = None,
        balance: str | None = None,
        replay: Sequence[str | os.PathLike] = (),
        replay_share: float = 0.2,
        own_augmentation: OwnAugmentation | None = None,
        frame: str = SAM_MED2D,
        skip_bad: bool = False,
        zoom_share: float = 0.0,
    ) -> None:
        """cache: folder of packed caches (see cache.py). balance: "dataset" or "class", or None (see samplers.py).
        replay: folders of other data, or "phantoms"; of them come replay_share pictures for each one of data_path.
        skip_bad: an image that cannot be read, or has a mask that cannot, is a sample without objects that says why.
        own_augmentation: what varies an image last, see OwnAugmentation; it goes to the workers.
        frame: of the model, one of segment_anything.frames.FRAMES.
        zoom_share: of the images, how many are crops around one of their objects (see closer.py), read from the files.

        Raises DataError as read_index and balance_of do.
        """
        self.index = read_index(data_path, split)
        self.zoom_share = zoom_share
        self.image_size = image_size
        self.mask_num = mask_num
        self.seed = seed
        self.skip_bad = skip_bad
        self.augmentation: Compose | None = build_augmentation() if augment else None
        self.own_augmentation, self.frame = own_augmentation, frame
        self.cache = open_cache(cache, self.index, image_size, frame) if cache else None
        self.balance = balance_of(self.index, os.path.abspath(data_path), balance) if balance else None
        others = [
            None
            if source == PHANTOMS
            else TrainingDataset(
                source,
                image_size,
                "train",
                mask_num,
                augment,
                seed,
                cache,
                own_augmentation=own_augmentation,
                frame=frame,
                zoom_share=zoom_share,
            )
            for source in replay
        ]
        self.replay = Replay(others, replay_share, len(self.index)) if others else None

    def __len__(self) -> int:
        """Images that an epoch shows: those of the index, numbered first, and those of other kinds."""
        return len(self.index) + self.replayed

    @property
    def replayed(self) -> int:
        return self.replay.count if self.replay else 0

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        """Empty masks among those drawn are skipped, so a sample may have fewer rows than mask_num, or none.

        Raises DataError: an image or mask is bad, and they are not to be skipped.
        """
        epoch, index = key
        if not self.skip_bad:
            return self._sample(epoch, index)
        try:
            return self._sample(epoch, index)
        except DataError as error:
            name = self.index[index][0] if index < len(self.index) else ""
            return empty_sample(name, self.image_size, str(error))

    def _sample(self, epoch: int, index: int) -> Sample:
        generator = stream_of(self.seed, epoch, index)
        if self.replay and index >= len(self.index):
            return replace(self.replay.sample(generator, self.image_size, self.mask_num), replayed=True)
        return self.drawn(index, generator)

    def drawn(self, index: int, generator: np.random.Generator) -> Sample:
        """An image of the index with masks, and changes to them, that the generator draws. Raises DataError."""
        _, mask_names = self.index[index]
        shares = self.balance.mask_shares(index) if self.balance else None
        if shares is None:
            draws = generator.integers(len(mask_names), size=self.mask_num)
        else:
            draws = generator.choice(len(mask_names), size=self.mask_num, p=shares)
        distinct, which = np.unique(draws, return_inverse=True)
        if self.zoom_share and generator.random() < self.zoom_share:
            found = self._closer(index, distinct.tolist(), generator)
        else:
            found = self._whole(index, distinct.tolist())
        return self._sample_of(index, found, which.tolist(), generator)

    def _whole(self, index: int, distinct: list[int]) -> "_Read":
        """The image with these of its masks."""
        names = [self.index[index][1][k] for k in distinct]
        image, masks, original_size = shrunk(self.index, index, distinct, self.image_size, self.cache, frame=self.frame)
        present = _present(masks)
        skipped = [name for name, here in zip(names, present) if not here]
        nothing = [(name, k) for name, k, here in zip(names, distinct, present) if not here]
        known = {name: self._nothing_shown(index, k, original_size, image.shape[:2]) for name, k in nothing}
        vanished = {name: one for name, one in known.items() if one.area}
        return _Read(image, masks, names, original_size, skipped, vanished)

    def _closer(self, index: int, distinct: list[int], generator: np.random.Generator) -> "_Read":
        """A crop around one of these masks of the image, with what there is of the others. Empty ones are skipped; what
        lies outside the crop is another time's.
        """
        image_name, mask_names = self.index[index]
        path, paths = self.index.path(image_name), [self.index.path(mask_names[k]) for k in distinct]
        image = read_image(path, [self.index.path(name) for name in mask_names])
        masks = [read_mask(one, image.shape[:2], path) for one in paths]
        names = [mask_names[k] for k in distinct]
        skipped = [name for name, mask in zip(names, masks) if not mask.any()]
        there = [mask for mask in masks if mask.any()]
        if not there:
            return self._whole(index, distinct)
        crop = drawn_crop(there[int(generator.integers(len(there)))], generator)
        small = [filling(mask[crop.pixels], self.image_size, self.frame) for mask in masks]
        image = filling(image[crop.pixels], self.image_size, self.frame)
        return _Read(image, np.stack(small), names, crop.size, skipped, {})

    def _sample_of(self, index: int, found: "_Read", which: list[int], generator: np.random.Generator) -> Sample:
        """Varied, and in the frame. which: of the masks that were read, each that was drawn."""
        image, masks, names = found.image, found.masks, found.names
        present = _present(masks)
        if (self.augmentation is not None or self.own_augmentation is not None) and present.any():
            # Before the padding, so that `content` still frames the picture.
            image, masks = self._augment(image, masks, generator)
            # A small object can be moved out of the picture. Its file is sound, so this is no entry of `skipped`.
            present = _present(masks)
        image, masks, content = pad(image, masks, self.image_size, self.frame)
        rows = [i for i in which if present[i]]
        return Sample(
            image=image_tensor(image),
            content=content,
            masks=torch.from_numpy(masks[rows])[:, None],
            image_name=self.index[index][0],
            mask_names=[names[i] for i in rows],
            original_size=found.size,
            original_masks=None,
            skipped=found.skipped,
            vanished=found.vanished,
        )

    def _nothing_shown(self, index: int, k: int, original_size: tuple[int, int], size: tuple[int, int]) -> Vanished:
        """What the k-th mask of an image, which is empty in the frame, holds at the picture's size.

        size: in the frame. Raises DataError: the file cannot be read, and no cache stands for it.
        """
        known = self.cache.nothing_shown(index, k, size) if self.cache else None
        if known is not None:
            return known
        image_name, names = self.index[index]
        path = self.index.path(names[k])
        try:
            whole = read_mask(path, original_size, self.index.path(image_name))
        except DataError:
            if self.cache:  # of an earlier version, which does not tell
                return Vanished(0, 0)
            raise
        if self.cache:
            self.cache.put_mask(index, k, np.zeros(size, bool), _stamp(path), whole)
        return vanished_of(whole)

    def _augment(
        self, image: np.ndarray, masks: np.ndarray, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        if self.augmentation is not None:
            # Not set_random_seed: it gives every transform the same stream, so that all those of one probability
            # happen together or not at all.
            self.augmentation.set_random_state(generator, random.Random(int(generator.integers(2**63))))
            changed = self.augmentation(image=image, masks=masks.view(np.uint8))
            image, masks = changed["image"], changed["masks"].astype(bool)
        if self.own_augmentation is not None:
            image, masks = self.own_augmentation(image, masks, generator)
        return image, masks


class _Read(NamedTuple):
    """An image with some of its masks, at most S x S, before they are varied. size: at which it was read."""

    image: np.ndarray
    masks: np.ndarray
    names: list[str]
    size: tuple[int, int]
    skipped: list[str]
    vanished: dict[str, Vanished]


class TestingDataset(Dataset):
    """One item an image with all its masks, at the original size too, for scoring."""

    __test__ = False  # pytest would take the name for a test class

    def __init__(
        self,
        data_path: str | os.PathLike,
        image_size: int = 256,
        split: str = "test",
        frame: str = SAM_MED2D,
        pictures: bool = False,
    ) -> None:
        """frame: of the model, one of segment_anything.frames.FRAMES. pictures: samples have the image as it was read
        too. Raises DataError as read_index does."""
        self.index = read_index(data_path, split)
        self.image_size = image_size
        self.frame = frame
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> Sample:
        return scoring_sample(self.index, index, self.image_size, self.frame, self.pictures)


def _present(masks: np.ndarray) -> np.ndarray:
    """Which masks have a pixel. (n, h, w) bool -> (n,) bool"""
    return np.asarray(masks.any(axis=(1, 2)))


def scoring_sample(index: Index, number: int, image_size: int, frame: str = SAM_MED2D, picture: bool = False) -> Sample:
    """An image of the index with all its masks. Those that are empty, or emptied by resizing, are skipped.

    picture: also as it was read, for whoever looks at it closer.
    Raises DataError: an image or mask is bad.
    """
    image_name, names = index[number]
    image_path = index.path(image_name)
    mask_paths = [index.path(name) for name in names]
    original = read_image(image_path, mask_paths)
    originals = [read_mask(path, original.shape[:2], image_path) for path in mask_paths]
    image, masks, content = fit(original, originals, image_size, frame)
    present = _present(masks).tolist()
    kept = [mask for mask, here in zip(originals, present) if here]
    skipped = {name: mask for name, mask, here in zip(names, originals, present) if not here}
    return Sample(
        image=image_tensor(image),
        content=content,
        masks=torch.from_numpy(masks[present])[:, None],
        image_name=image_name,
        mask_names=[name for name, here in zip(names, present) if here],
        original_size=original.shape[:2],
        original_masks=torch.from_numpy(np.stack(kept) if kept else np.zeros((0, *original.shape[:2]), bool)),
        skipped=[*skipped],
        vanished=vanished_among(skipped),
        picture=original if picture else None,
    )


def shrunk(
    index: Index,
    number: int,
    which: Sequence[int],
    size: int,
    cache: PackedCache | None = None,
    *,
    changed: bool = False,
    frame: str = SAM_MED2D,
) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """An image of the index and those of its masks, each at most S x S, and the image's original size.

    What the cache lacks is read from the files, once each, and put there; so are, if `changed`, files that changed
    since. Returns (h, w, 3) uint8, (len(which), h, w) bool and (height, width). Raises DataError: an image or mask is
    bad.
    """
    names: tuple[str, list[str]] | None = None  # looked up when the first file is needed, so never where all is cached

    def path(k: int) -> str:
        """Of the k-th mask; -1: of the image."""
        nonlocal names
        names = names or index[number]
        return index.path(names[0] if k < 0 else names[1][k])

    def stamp(k: int) -> int | None:
        return _stamp(path(k)) if changed else None

    stored = cache.image(number, stamp(-1)) if cache else None
    if stored is None:
        original = read_image(path(-1), [index.path(name) for name in index[number][1]])
        image, original_size = shrink(original, size, frame), original.shape[:2]
        if cache:
            cache.put_image(number, image, original_size, _stamp(path(-1)))
    else:
        image, original_size = stored

    masks = np.empty((len(which), *image.shape[:2]), bool)
    for row, k in enumerate(which):
        mask = cache.mask(number, k, image.shape[:2], stamp(k)) if cache else None
        if mask is None:
            whole = read_mask(path(k), original_size, path(-1))
            mask = shrink(whole, size, frame)
            if cache:
                cache.put_mask(number, k, mask, _stamp(path(k)), whole)
        masks[row] = mask
    return image, masks, original_size


def _stamp(path: str) -> int:
    """Of a file's content, cheaply: changes when the file is written. Raises DataError where there is no file."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions") from error
    return (status.st_mtime_ns ^ status.st_size << 40) & (1 << 64) - 1


def train_loader(
    dataset: TrainingDataset, batch_size: int, num_workers: int, seed: int, rank: int = 0, processes: int = 1
) -> "Loader":
    """Batches in shuffled order. Call `loader.batch_sampler.set_epoch(epoch, start_batch)` before each epoch.

    Of several processes each gets its share of every batch, see `EpochSampler`; batch_size is that of the whole.
    """
    share = {"rank": rank, "processes": processes, "replayed": dataset.replayed}
    sampler = (
        BalancedSampler(dataset.balance.groups, len(dataset.index), batch_size, seed, **share)
        if dataset.balance
        else EpochSampler(len(dataset.index), batch_size, seed, **share)
    )
    return Loader(dataset, num_workers, batch_sampler=sampler, **_loader_options(num_workers))


def test_loader(dataset: Dataset, batch_size: int, num_workers: int) -> "Loader":
    """Batches in the order of the index. dataset: a TestingDataset, or a Subset of one."""
    return Loader(dataset, num_workers, batch_size=batch_size, **_loader_options(num_workers))


vars(test_loader)["__test__"] = False  # pytest would take the name for a test


def _loader_options(num_workers: int) -> dict:
    return dict(
        collate_fn=collate,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
        # Its own generator: by default each pass takes a number from torch's global one, which would make
        # the prompts drawn there depend on how often loaders were started.
        generator=torch.Generator(),
    )


class Loader(DataLoader):
    """A DataLoader whose workers leave signals to their parent from their first moment on."""

    def __init__(self, dataset: Dataset, num_workers: int, **options) -> None:
        super().__init__(dataset, num_workers=num_workers, worker_init_fn=_start_worker, **options)

    def __iter__(self):
        with holding_sigterm_back():
            return super().__iter__()


def _start_worker(worker: int) -> None:
    leave_signals_to_the_parent(end_on_sigterm=False)
    cv2.setNumThreads(0)  # workers are the parallelism; threads inside them only compete
