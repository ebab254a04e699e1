"""From a JSON index to batches: fitting into the frame, augmenting, ordering (index.py and reading.py read the files).

    python -c "from DataLoader import *; print(len(TrainingDataset('data_demo')), 'images')"

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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader as TorchDataLoader
from torch.utils.data import Dataset, Sampler

from sam_med2d.data.balance import balance_of
from sam_med2d.data.cache import PackedCache, open_cache
from sam_med2d.data.index import Index, read_index
from sam_med2d.data.reading import DataError, read_image, read_mask

Content = tuple[int, int, int, int]  # top, left, height, width of the picture inside the frame

# ---------------------------------------------------------------- geometry


def fit(image: np.ndarray, masks: Sequence[np.ndarray], size: int) -> tuple[np.ndarray, np.ndarray, Content]:
    """Bring an image and its masks into the S x S frame.

    Smaller than the frame on both sides: centred, padded with 0. Any other: stretched to S x S, nearest neighbour,
    for image and masks alike (what the published weights were trained on). At exactly S x S nothing changes.

    image: (H, W, 3); masks: n of (H, W) bool, n may be 0.
    Returns (S, S, 3), (n, S, S) bool and the picture's (top, left, height, width) in the frame.
    """
    shrunk = [_shrink(mask, size) for mask in masks]
    image = _shrink(image, size)
    return _pad(image, np.array(shrunk, bool).reshape(len(masks), *image.shape[:2]), size)


def _shrink(array: np.ndarray, size: int) -> np.ndarray:
    """The first half of `fit`, of an image or a mask: what is not smaller than the frame on both sides becomes S x S."""
    height, width = array.shape[:2]
    if height < size and width < size:
        return array
    resized = cv2.resize(array.view(np.uint8), (size, size), interpolation=cv2.INTER_NEAREST)
    return resized.view(array.dtype)


def _pad(image: np.ndarray, masks: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, Content]:
    """The second half of `fit`: centre (h, w, 3) and (n, h, w) in the frame, zeros around."""
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return image, masks, (0, 0, size, size)
    top, left = (size - height) // 2, (size - width) // 2
    rows, columns = slice(top, top + height), slice(left, left + width)
    framed = np.zeros((size, size, 3), image.dtype)
    framed[rows, columns] = image
    framed_masks = np.zeros((len(masks), size, size), bool)
    framed_masks[:, rows, columns] = masks
    return framed, framed_masks, (top, left, height, width)


# ---------------------------------------------------------------- augmentation


def build_augmentation():
    """The augmentation, an albumentations Compose; seed it anew before each use (see `TrainingDataset._augment`).

    Imported here, as only augmented training needs it. Without the variable it asks the network for updates on import.
    """
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import albumentations as A

    return A.Compose(
        [
            # Prompts say where, not what, so left and right or up and down may be swapped.
            A.HorizontalFlip(p=0.5),
            A.VerticalFlip(p=0.5),
            # How patients and probes vary. What comes in from outside is black and no object: a reflected
            # border would show a second copy of the anatomy.
            A.Affine(
                scale=(0.85, 1.15),
                rotate=(-20, 20),
                translate_percent=(-0.06, 0.06),
                interpolation=cv2.INTER_LINEAR,
                mask_interpolation=cv2.INTER_NEAREST,
                border_mode=cv2.BORDER_CONSTANT,
                fill=0,
                fill_mask=0,
                p=0.5,
            ),
            # Window settings, exposure and display curves differ between devices and hospitals.
            A.RandomBrightnessContrast(brightness_limit=0.15, contrast_limit=0.2, p=0.5),
            A.RandomGamma(gamma_limit=(75, 135), p=0.3),
            # Dose and focus. One noise for all channels, as most images are grey and should stay so.
            A.OneOf(
                [
                    A.GaussNoise(std_range=(0.01, 0.04), per_channel=False),
                    A.GaussianBlur(blur_limit=0, sigma_limit=(0.3, 1.0)),
                ],
                p=0.2,
            ),
        ]
    )


# ---------------------------------------------------------------- samples and batches


@dataclass
class Sample:
    """One image with n objects of it."""

    image: Tensor  # (3, S, S) uint8, BGR
    content: Content
    masks: Tensor  # (n, 1, S, S) bool
    image_name: str
    mask_names: list[str]  # n
    original_size: tuple[int, int]
    original_masks: Tensor | None  # (n, H, W) bool
    skipped: list[str]


@dataclass
class Batch:
    """B images with N objects, one row an object; `image_index` says which image a row is in. N may be 0."""

    images: Tensor  # (B, 3, S, S) uint8, BGR
    content: Tensor  # (B, 4) int64 top, left, height, width of the picture in the frame; 0, 0, S, S if it was resized
    masks: Tensor  # (N, 1, S, S) bool
    image_index: Tensor  # (N,) int64, ascending
    image_names: list[str]  # B image paths as they stand in the index
    mask_names: list[str]  # N mask paths as they stand in the index
    original_sizes: list[tuple[int, int]]  # B (height, width)
    original_masks: list[Tensor] | None  # B of (n_i, H, W) bool at the original size, for scoring; None in training
    skipped: list[str]  # mask paths left out because they are empty, or emptied by resizing

    def to(self, device: torch.device | str, non_blocking: bool = True) -> "Batch":
        """Copy to a device what the model uses; original_masks stay on the CPU, where they are scored."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """Called by torch's DataLoader when it pins, so that `to` overlaps with computation."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        moved = {name: change(getattr(self, name)) for name in ("images", "content", "masks", "image_index")}
        return replace(self, **moved)


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples -> Batch: images stacked, objects of all images concatenated."""
    counts = torch.tensor([len(sample.masks) for sample in samples])
    with_originals = samples[0].original_masks is not None
    return Batch(
        images=torch.stack([sample.image for sample in samples]),
        content=torch.tensor([sample.content for sample in samples]),
        masks=torch.cat([sample.masks for sample in samples]),
        image_index=torch.repeat_interleave(torch.arange(len(samples)), counts),
        image_names=[sample.image_name for sample in samples],
        mask_names=[name for sample in samples for name in sample.mask_names],
        original_sizes=[sample.original_size for sample in samples],
        original_masks=[sample.original_masks for sample in samples] if with_originals else None,
        skipped=[name for sample in samples for name in sample.skipped],
    )


def _image_tensor(image: np.ndarray) -> Tensor:
    """(S, S, 3) -> (3, S, S)"""
    planes = np.empty((3, *image.shape[:2]), np.uint8)
    cv2.split(image, [*planes])  # 26 us at 256 px; transposing and copying takes 118
    return torch.from_numpy(planes)


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
    ) -> None:
        """cache: folder of packed caches (see cache.py). balance: "dataset" or "class", or None (see balance.py).

        Raises DataError as read_index and labels_of do.
        """
        self.index = read_index(data_path, split)
        self.image_size = image_size
        self.mask_num = mask_num
        self.seed = seed
        self.augmentation = build_augmentation() if augment else None
        self.cache = open_cache(cache, self.index, image_size) if cache else None
        self.balance = balance_of(self.index, os.path.abspath(data_path), balance) if balance else None

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        """Empty masks among those drawn are skipped, so a sample may have fewer rows than mask_num, or none.

        Raises DataError: an image or mask is bad.
        """
        epoch, index = key
        generator = _stream(self.seed, epoch, index)
        image_name, mask_names = self.index[index]
        shares = self.balance.mask_shares(index) if self.balance else None
        if shares is None:
            draws = generator.integers(len(mask_names), size=self.mask_num)
        else:
            draws = generator.choice(len(mask_names), size=self.mask_num, p=shares)
        distinct, which = np.unique(draws, return_inverse=True)
        names = [mask_names[i] for i in distinct]

        image, masks, original_size = shrunk(self.index, index, distinct.tolist(), self.image_size, self.cache)
        present = masks.any(axis=(1, 2))
        skipped = [name for name, here in zip(names, present) if not here]
        if self.augmentation is not None and present.any():
            # Before the padding, so that `content` still frames the picture.
            image, masks = self._augment(image, masks, generator)
            # A small object can be moved out of the picture. Its file is sound, so this is no entry of `skipped`.
            present = masks.any(axis=(1, 2))
        image, masks, content = _pad(image, masks, self.image_size)
        rows = [i for i in which.tolist() if present[i]]
        return Sample(
            image=_image_tensor(image),
            content=content,
            masks=torch.from_numpy(masks[rows])[:, None],
            image_name=image_name,
            mask_names=[names[i] for i in rows],
            original_size=original_size,
            original_masks=None,
            skipped=skipped,
        )

    def _augment(
        self, image: np.ndarray, masks: np.ndarray, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        # Not set_random_seed: it gives every transform the same stream, so that all those of one probability
        # happen together or not at all.
        self.augmentation.set_random_state(generator, random.Random(int(generator.integers(2**63))))
        changed = self.augmentation(image=image, masks=masks.view(np.uint8))
        return changed["image"], changed["masks"].astype(bool)


class TestingDataset(Dataset):
    """One item an image with all its masks, at the original size too, for scoring."""

    __test__ = False  # pytest would take the name for a test class

    def __init__(self, data_path: str | os.PathLike, image_size: int = 256, split: str = "test") -> None:
        """Raises DataError as read_index does."""
        self.index = read_index(data_path, split)
        self.image_size = image_size

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> Sample:
        return scoring_sample(self.index, index, self.image_size)


def scoring_sample(index: Index, number: int, image_size: int) -> Sample:
    """An image of the index with all its masks. Those that are empty, or emptied by resizing, are skipped.

    Raises DataError: an image or mask is bad.
    """
    image_name, names = index[number]
    image_path = index.path(image_name)
    original = read_image(image_path)
    originals = [read_mask(index.path(name), original.shape[:2], image_path) for name in names]
    image, masks, content = fit(original, originals, image_size)
    present = masks.any(axis=(1, 2)).tolist()
    kept = [mask for mask, here in zip(originals, present) if here]
    return Sample(
        image=_image_tensor(image),
        content=content,
        masks=torch.from_numpy(masks[present])[:, None],
        image_name=image_name,
        mask_names=[name for name, here in zip(names, present) if here],
        original_size=original.shape[:2],
        original_masks=torch.from_numpy(np.stack(kept) if kept else np.zeros((0, *original.shape[:2]), bool)),
        skipped=[name for name, here in zip(names, present) if not here],
    )


def shrunk(
    index: Index,
    number: int,
    which: Sequence[int],
    size: int,
    cache: PackedCache | None = None,
    *,
    changed: bool = False,
) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """An image of the index and those of its masks, each at most S x S, and the image's original size.

    What the cache lacks is read from the files, once each, and put there; so are, if `changed`, files that changed since.
    Returns (h, w, 3) uint8, (len(which), h, w) bool and (height, width). Raises DataError: an image or mask is bad.
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
        original = read_image(path(-1))
        image, original_size = _shrink(original, size), original.shape[:2]
        if cache:
            cache.put_image(number, image, original_size, _stamp(path(-1)))
    else:
        image, original_size = stored

    masks = np.empty((len(which), *image.shape[:2]), bool)
    for row, k in enumerate(which):
        mask = cache.mask(number, k, image.shape[:2], stamp(k)) if cache else None
        if mask is None:
            mask = _shrink(read_mask(path(k), original_size, path(-1)), size)
            if cache:
                cache.put_mask(number, k, mask, _stamp(path(k)))
        masks[row] = mask
    return image, masks, original_size


def _stamp(path: str) -> int:
    """Of a file's content, cheaply: changes when the file is written. Raises DataError where there is no file."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions") from error
    return (status.st_mtime_ns ^ status.st_size << 40) & (1 << 64) - 1


def _stream(seed: int, *key: int) -> np.random.Generator:
    """An independent stream for every key under one seed (>= 0)."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


# ---------------------------------------------------------------- order and loaders


class EpochSampler(Sampler[list[tuple[int, int]]]):
    """Yields one epoch's batches of (epoch, index): a permutation that (seed, epoch) alone decides.

    `set_epoch(epoch, start_batch)` continues an epoch that was broken off after start_batch batches. The last
    batch may be smaller.
    """

    def __init__(self, length: int, batch_size: int, seed: int = 0, start_batch: int = 0) -> None:
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.set_epoch(0, start_batch)

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Choose what the next iteration yields."""
        self.epoch = epoch
        self.start_batch = start_batch

    def __len__(self) -> int:
        """Batches left in this epoch."""
        return max(0, -(-self.length // self.batch_size) - self.start_batch)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.epoch
        order = self._order(epoch).tolist()
        for start in range(self.start_batch * self.batch_size, self.length, self.batch_size):
            yield [(epoch, index) for index in order[start : start + self.batch_size]]

    def _order(self, epoch: int) -> np.ndarray:
        return _stream(self.seed, epoch).permutation(self.length)


class BalancedSampler(EpochSampler):
    """An EpochSampler whose epochs, as long as ever, give every group of images the same share.

    An image of a small group comes several times an epoch, equally often as the others of its group give or take one; of a
    large group some do not come, others each epoch.
    """

    def __init__(
        self, groups: Sequence[np.ndarray], length: int, batch_size: int, seed: int = 0, start_batch: int = 0
    ) -> None:
        """groups: image numbers of each group; an image may be in several."""
        super().__init__(length, batch_size, seed, start_batch)
        self.groups = groups

    def _order(self, epoch: int) -> np.ndarray:
        stream = _stream(self.seed, epoch)
        share, rest = divmod(self.length, len(self.groups))
        shares = np.full(len(self.groups), share)
        shares[stream.permutation(len(self.groups))[:rest]] += 1
        parts = []
        for members, share in zip(self.groups, shares):
            times, some = divmod(int(share), len(members))
            parts += [np.tile(members, times), stream.permutation(members)[:some]]
        return stream.permutation(np.concatenate(parts))


def train_loader(dataset: TrainingDataset, batch_size: int, num_workers: int, seed: int) -> TorchDataLoader:
    """Batches in shuffled order. Call `loader.batch_sampler.set_epoch(epoch, start_batch)` before each epoch."""
    if dataset.balance:
        sampler = BalancedSampler(dataset.balance.groups, len(dataset), batch_size, seed)
    else:
        sampler = EpochSampler(len(dataset), batch_size, seed)
    return TorchDataLoader(dataset, batch_sampler=sampler, **_loader_options(num_workers))


def test_loader(dataset: TestingDataset, batch_size: int, num_workers: int) -> TorchDataLoader:
    """Batches in the order of the index."""
    return TorchDataLoader(dataset, batch_size=batch_size, **_loader_options(num_workers))


test_loader.__test__ = False  # pytest would take the name for a test


def _loader_options(num_workers: int) -> dict:
    return dict(
        num_workers=num_workers,
        collate_fn=collate,
        worker_init_fn=start_worker,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
        # Its own generator: by default each pass takes a number from torch's global one, which would make
        # the prompts drawn there depend on how often loaders were started.
        generator=torch.Generator(),
    )


def start_worker(worker: int) -> None:
    cv2.setNumThreads(0)  # workers are the parallelism; threads inside them only compete
