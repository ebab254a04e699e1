"""From a JSON index to batches: reading, checking, fitting into the frame, augmenting, ordering.

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

import json
import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader as TorchDataLoader
from torch.utils.data import Dataset, Sampler

Content = tuple[int, int, int, int]  # top, left, height, width of the picture inside the frame
MISSING_SHOWN = 3  # missing paths an error lists; the rest are counted


class DataError(ValueError):
    """Bad input. `str(error)` is one line that names the file and says what to do.

    A DataLoader worker's exception is raised again by torch with the worker's traceback as its message,
    as `DataError(traceback)`. The traceback's last line is the one meant for people, so only it is kept.
    """

    def __init__(self, message: str) -> None:
        if message.startswith("Caught DataError in "):
            message = message.rstrip().rpartition("\n")[2].partition("DataError: ")[2]
        super().__init__(" ".join(message.splitlines()))


# ---------------------------------------------------------------- index


class Index:
    """Images and the paths of their masks: `index[i]` is (image, [mask, ...]) as written in the JSON file.

    SA-Med2D-20M lists 20 million paths. As Python strings they would be copied into every worker, page by
    page, as reference counts change; one bytes object and two arrays stay shared.
    """

    def __init__(self, root: str, source: str, groups: dict[str, list[str]]) -> None:
        """groups: {image: [mask, ...]}, in order. Images without masks are left out and counted."""
        self.root = root
        self.source = source
        self.images_without_masks = sum(not masks for masks in groups.values())
        encoded: list[bytes] = []
        starts: list[int] = []
        for image, masks in groups.items():
            if masks:
                starts.append(len(encoded))
                encoded.append(os.fsencode(image))
                encoded.extend(map(os.fsencode, masks))
        self.mask_count = len(encoded) - len(starts)
        self._text = b"".join(encoded)
        self._cuts = np.cumsum([0] + [len(name) for name in encoded])
        self._starts = np.array(starts + [len(encoded)])

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, i: int) -> tuple[str, list[str]]:
        if not 0 <= i < len(self):
            raise IndexError(f"image {i} of {len(self)}")
        cuts = self._cuts[self._starts[i] : self._starts[i + 1] + 1].tolist()
        image, *masks = (os.fsdecode(self._text[a:b]) for a, b in zip(cuts, cuts[1:]))
        return image, masks

    def path(self, name: str) -> str:
        """A path of the index -> a path that opens, wherever the process has moved to since."""
        return os.path.join(self.root, name)


def read_index(data_path: str | os.PathLike, split: str) -> Index:
    """Read and check `image2label_{split}.json` or `label2image_{split}.json` of the folder data_path.

    Both say the same; should both be there, "test" takes label2image and any other split image2label.

    Raises DataError: no index, not JSON or of another shape, no masks in it, or files in it that do not exist.
    """
    folder = os.path.abspath(data_path)
    source = _find_index(folder, split)
    groups = _parse_index(source)
    if not any(groups.values()):
        raise DataError(f"{source}: lists no masks; give at least one image with a mask")
    root = _find_root(source, folder, next(iter(groups)))
    _check_files(source, root, groups)
    return Index(root, source, groups)


def _find_index(folder: str, split: str) -> str:
    kinds = ["image2label", "label2image"]
    if split == "test":
        kinds.reverse()
    candidates = [os.path.join(folder, f"{kind}_{split}.json") for kind in kinds]
    for candidate in candidates:
        if os.path.isfile(candidate):
            return candidate
    raise DataError(
        f"no index of split '{split}': looked for {' and '.join(candidates)}; check the data path and the split's name"
    )


def _parse_index(source: str) -> dict[str, list[str]]:
    """Either kind of index -> {image: [mask, ...]}, images in the order of their first appearance."""
    try:
        with open(source, "rb") as file:
            entries = json.loads(file.read())
    except OSError as error:
        raise DataError(f"{source}: cannot be read ({error.strerror}); check the file and its permissions") from error
    except ValueError as error:  # bad JSON and bad UTF-8 alike
        raise DataError(f"{source}: not valid JSON ({error}); write the index again") from error

    by_mask = os.path.basename(source).startswith("label2image")
    shape = "{mask path: image path}" if by_mask else "{image path: [mask path, ...]}"
    if not isinstance(entries, dict):
        raise DataError(f"{source}: holds a {type(entries).__name__}; it must be {shape}")

    groups: dict[str, list[str]] = {}
    for key, value in entries.items():
        members = [value] if by_mask else value
        if not isinstance(members, list) or not all(isinstance(member, str) for member in members):
            raise DataError(f"{source}: wrong value for '{key}'; the file must be {shape}")
        if by_mask:
            groups.setdefault(value, []).append(key)
        else:
            groups[key] = value
    return groups


def _find_root(source: str, folder: str, first_image: str) -> str:
    """The folder that paths of the index are relative to, by its first image alone.

    One root for the whole index: resolving file by file would mix two copies of a data set without a word.
    """
    roots = list(dict.fromkeys([folder, os.path.dirname(folder), os.getcwd()]))
    for root in roots:
        if os.path.isfile(os.path.join(root, first_image)):
            return root
    raise DataError(
        f"{source}: its first image {first_image} is not found under {', '.join(roots)}; "
        "write paths relative to one of these, or absolute"
    )


def _check_files(source: str, root: str, groups: dict[str, list[str]]) -> None:
    """Raise DataError if a path of the index does not exist. Lists each folder once: no stat a file."""
    wanted: dict[str, dict[str, None]] = {}  # folder -> file names, a dict as an ordered set

    def want(names: Iterable[str]) -> None:
        for name in names:
            cut = name.rfind("/") + 1
            wanted.setdefault(name[:cut], {})[name[cut:]] = None

    want(groups)
    for masks in groups.values():
        want(masks)

    missing = [name for folder, files in wanted.items() for name in _missing_in(root, folder, files)]
    if missing:
        shown = ", ".join(missing[:MISSING_SHOWN]) + (", ..." if len(missing) > MISSING_SHOWN else "")
        raise DataError(
            f"{source}: {len(missing)} listed file(s) missing under {root}: {shown}; "
            "restore them or take them out of the index"
        )


def _missing_in(root: str, folder: str, files: dict[str, None]) -> list[str]:
    """Those of `files` (emptied on the way) that folder lacks, as paths of the index."""
    try:
        with os.scandir(os.path.join(root, folder)) as entries:
            for entry in entries:
                files.pop(entry.name, None)
                if not files:  # a small index of a folder with millions of files ends early
                    return []
    except (OSError, ValueError):  # ValueError: a null character in the path
        pass  # the folder is missing or cannot be listed; the files decide below
    # A file system may open a name that it lists in another spelling (letter case, Unicode form, backslashes).
    return [folder + file for file in files if not os.path.isfile(os.path.join(root, folder + file))]


# ---------------------------------------------------------------- reading


def read_image(path: str) -> np.ndarray:
    """Read an image file -> (H, W, 3) uint8, BGR. Grey is repeated, alpha dropped.

    Images of more than 8 bits are scaled from their own minimum and maximum to 0..255, as the paper prepares its scans:
    the upper 8 bits alone would leave a 12-bit scan nearly black.
    Raises DataError: missing, unreadable, truncated or not an image, or values that are no numbers.
    """
    image = _decode(path, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    return image if image.dtype == np.uint8 else _to_8_bits(path, image)


def _to_8_bits(path: str, image: np.ndarray) -> np.ndarray:
    if not np.isfinite(image).all():
        raise DataError(f"{path}: has values that are not finite; replace them and save it again")
    low, high = float(image.min()), float(image.max())
    return np.round((image - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)


def read_mask(path: str, image_size: tuple[int, int], image_path: str = "its image") -> np.ndarray:
    """Read the mask of one object -> (H, W) bool.

    The larger of two values is the object; a mask of one value is all object, or empty if that value is 0.

    image_size: (height, width) the mask must have, that of image_path.
    Raises DataError: as read_image; another size than the image; more than two values.
    """
    # Without ANYDEPTH, a 16-bit mask of 0 and 1 would be reduced to its upper 8 bits: all zero.
    values = _decode(path, cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH)
    if values.shape != tuple(image_size):
        (height, width), (image_height, image_width) = values.shape, image_size
        raise DataError(
            f"{path}: mask of {width} x {height} pixels, but {image_path} has {image_width} x {image_height}; "
            "give both the same size"
        )
    low, high = values.min(), values.max()
    if low == high:
        return np.full(values.shape, bool(high))
    mask = values == high
    if np.count_nonzero(mask) + np.count_nonzero(values == low) != values.size:
        raise DataError(
            f"{path}: more than two values ({low} to {high}); split it, one object a file of 0 and 255, saved as PNG"
        )
    return mask


def _decode(path: str, flags: int) -> np.ndarray:
    """Read and decode a file. From bytes, as cv2.imread fails on some names and passes truncated files."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions") from error
    if _is_truncated(data):
        raise DataError(f"{path}: truncated, its end is missing; copy or export it again")
    try:
        # imdecode raises on an empty buffer and on an image over its pixel limit, and returns None on other failures.
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        decoded = None
    if decoded is None:
        raise DataError(f"{path}: not an image that OpenCV can decode; export it again, as PNG for instance")
    return decoded


def _is_truncated(data: bytes) -> bool:
    """Whether a PNG or JPEG lacks its end. Decoders differ: some return the first rows and only warn on stderr.

    Bytes after the end are legal (cameras append previews), so the marker is looked for, not expected last.
    """
    if data.startswith(b"\x89PNG"):
        return data.rfind(b"IEND\xaeB`\x82") < 0
    if data.startswith(b"\xff\xd8"):
        # Neither marker can occur inside compressed data. A thumbnail in the header has an end of its own, but
        # it comes before the last start of scan.
        return data.rfind(b"\xff\xd9") <= data.rfind(b"\xff\xda")
    return False


# ---------------------------------------------------------------- geometry


def fit(image: np.ndarray, masks: Sequence[np.ndarray], size: int) -> tuple[np.ndarray, np.ndarray, Content]:
    """Bring an image and its masks into the S x S frame.

    Smaller than the frame on both sides: centred, padded with 0. Any other: stretched to S x S, nearest neighbour,
    for image and masks alike (what the published weights were trained on). At exactly S x S nothing changes.

    image: (H, W, 3); masks: n of (H, W) bool, n may be 0.
    Returns (S, S, 3), (n, S, S) bool and the picture's (top, left, height, width) in the frame.
    """
    return _pad(*_shrink(image, masks, size), size)


def _shrink(image: np.ndarray, masks: Sequence[np.ndarray], size: int) -> tuple[np.ndarray, np.ndarray]:
    """The first half of `fit`: everything that is not smaller than the frame on both sides becomes S x S."""
    height, width = image.shape[:2]
    if height < size and width < size:
        return image, np.array(masks, bool).reshape(len(masks), height, width)
    resized = [_nearest(mask.view(np.uint8), size) for mask in masks]
    return _nearest(image, size), np.array(resized, bool).reshape(len(masks), size, size)


def _nearest(array: np.ndarray, size: int) -> np.ndarray:
    return cv2.resize(array, (size, size), interpolation=cv2.INTER_NEAREST)


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
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


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
    ) -> None:
        """Raises DataError as read_index does."""
        self.index = read_index(data_path, split)
        self.image_size = image_size
        self.mask_num = mask_num
        self.seed = seed
        self.augmentation = build_augmentation() if augment else None

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        """Empty masks among those drawn are skipped, so a sample may have fewer rows than mask_num, or none.

        Raises DataError: an image or mask is bad.
        """
        epoch, index = key
        generator = _stream(self.seed, epoch, index)
        image_name, mask_names = self.index[index]
        draws = generator.integers(len(mask_names), size=self.mask_num)
        distinct, which = np.unique(draws, return_inverse=True)
        names = [mask_names[i] for i in distinct]

        original, originals = _read(self.index, image_name, names)
        image, masks = _shrink(original, originals, self.image_size)
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
            original_size=original.shape[:2],
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
    original, originals = _read(index, image_name, names)
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


def _read(index: Index, image_name: str, mask_names: Sequence[str]) -> tuple[np.ndarray, list[np.ndarray]]:
    """-> (H, W, 3) uint8 and len(mask_names) of (H, W) bool; every file is opened once."""
    image_path = index.path(image_name)
    image = read_image(image_path)
    return image, [read_mask(index.path(name), image.shape[:2], image_path) for name in mask_names]


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
        order = _stream(self.seed, epoch).permutation(self.length).tolist()
        for start in range(self.start_batch * self.batch_size, self.length, self.batch_size):
            yield [(epoch, index) for index in order[start : start + self.batch_size]]


def train_loader(dataset: TrainingDataset, batch_size: int, num_workers: int, seed: int) -> TorchDataLoader:
    """Batches in shuffled order. Call `loader.batch_sampler.set_epoch(epoch, start_batch)` before each epoch."""
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
        worker_init_fn=_start_worker,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
        # Its own generator: by default each pass takes a number from torch's global one, which would make
        # the prompts drawn there depend on how often loaders were started.
        generator=torch.Generator(),
    )


def _start_worker(worker: int) -> None:
    cv2.setNumThreads(0)  # workers are the parallelism; threads inside them only compete
