"""What is wrong with the files of a data folder's indexes: every image and mask is opened, within a split and across.

    splits = read_splits("data", None)
    find_problems(splits, lambda: Describer("data"), workers=4)
    [problem.line for split in splits for problem in split.problems]

Files are only read. `scripts/check_index.py` prints what is found, and `clean.py` writes a copy without it.
"""

import os
import re
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from multiprocessing import Pool
from typing import NamedTuple

import cv2
import numpy as np
import pyarrow as pa
from tqdm import tqdm
from xxhash import xxh3_64_intdigest

from sam_med2d.data.arrow_copy import Columns
from sam_med2d.data.decoding import open_picture
from sam_med2d.data.description import Describer
from sam_med2d.data.index import Index, find_index, root_of
from sam_med2d.data.index_build import build_columns
from sam_med2d.data.metadata import Metadata
from sam_med2d.data.nesting import Nesting, Pair, relations
from sam_med2d.data.reading import read_image, read_mask
from sam_med2d.data.visible import is_flat, is_hidden
from sam_med2d.errors import DataError
from sam_med2d.stopping import holding_sigterm_back, leave_signals_to_the_parent

KINDS = (
    *("missing", "unreadable", "size", "values", "orientation", "metadata", "disagree", "empty", "full", "flat"),
    *("duplicate", "listed", "case"),
)


class Problem(NamedTuple):
    kind: str  # of KINDS
    line: str  # names the file


NONE_BAD = -2  # in place of a mask's number: what is told leaves nothing out


class Found(NamedTuple):
    """What a worker saw of one image."""

    number: int
    pixels: int  # hash of the image's pixels; 0: it cannot be read
    areas: list[float]  # of each mask, as a share of the image; NaN: it cannot be read
    problems: list[tuple[Problem, int]]  # with the number of the mask, -1 for the image, NONE_BAD for neither
    contents: list[int]  # a hash of the pixels of each mask; 0: nothing to compare
    nested: list[tuple[Pair, str]]  # how its classes lie to one another


class _Here:
    """What a worker process looks at: handed over once, and not with every image."""

    index: Index
    classes: np.ndarray  # (masks of the index,) int32, their classes as numbers


def _use(index: Index, classes: np.ndarray) -> None:
    _Here.index, _Here.classes = index, classes
    cv2.setNumThreads(0)


def _look(number: int) -> Found:
    index = _Here.index
    image_name, mask_names = index[number]
    path = index.path(image_name)
    areas = [float("nan")] * len(mask_names)
    problems: list[tuple[Problem, int]] = []
    try:
        image = read_image(path, [index.path(name) for name in mask_names])
        orientation = open_picture(path).header.orientation
    except DataError as error:
        problems.append((_problem(path, error), -1))
        for k, mask_path in enumerate(map(index.path, mask_names)):
            if not os.path.isfile(mask_path):
                problems.append((Problem("missing", f"{mask_path}: does not exist"), k))
        return Found(number, 0, areas, problems, [], [])
    flat = is_flat(image)
    if flat:
        problems.append((Problem("flat", f"{path}: is of almost one value; was it windowed by another range?"), -1))
    if orientation != 1:
        problems.append(
            (
                Problem(
                    "orientation",
                    f"{path}: its EXIF orientation is {orientation}, and is followed or not as its masks say; save it "
                    "again without the tag, as make-index does",
                ),
                NONE_BAD,
            )
        )
    contents = [0] * len(mask_names)
    classes = _Here.classes[index.first_mask(number) :][: len(mask_names)].tolist()
    unions: dict[int, np.ndarray] = {}
    for k, mask_path in enumerate(map(index.path, mask_names)):
        try:
            mask = read_mask(mask_path, image.shape[:2], path)
        except DataError as error:
            problems.append((_problem(mask_path, error), k))
            continue
        areas[k] = float(mask.mean())
        if not mask.any():
            problems.append((Problem("empty", f"{mask_path}: has no object"), k))
        elif mask.all():
            problems.append(
                (Problem("full", f"{mask_path}: fills its picture; was it inverted, or its shape lost?"), k)
            )
        elif not flat and is_hidden(image, mask):
            problems.append((Problem("flat", f"{mask_path}: its object equals what is around it in {path}"), k))
        else:
            contents[k] = xxh3_64_intdigest(np.packbits(mask).tobytes()) or 1
            unions[classes[k]] = mask | unions[classes[k]] if classes[k] in unions else mask
    pixels = xxh3_64_intdigest(image.tobytes(), seed=image.shape[1]) or 1
    return Found(number, pixels, areas, problems, contents, relations(unions))


def _problem(path: str, error: DataError) -> Problem:
    if not os.path.isfile(path):
        return Problem("missing", f"{path}: does not exist")
    return Problem(error.kind or "unreadable", str(error))


def _start_worker(index: Index, classes: np.ndarray) -> None:
    leave_signals_to_the_parent(end_on_sigterm=True)
    _use(index, classes)


def looked_at(index: Index, classes: np.ndarray, workers: int) -> Generator[Found, None, None]:
    """Every image, in order. classes: (masks of the index,) int32, their classes as numbers."""
    if workers == 1:
        _use(index, classes)
        yield from map(_look, range(len(index)))
        return
    with holding_sigterm_back():  # a pool of little work may end its workers before they have begun
        pool = Pool(workers, _start_worker, [index, classes])
    with pool:
        yield from pool.imap(_look, range(len(index)), chunksize=16)


class Split:
    """One split, and what was found of it.

    pixels: a hash of each image, 0 where it cannot be read. areas: of each mask, as a share of its image, NaN where it
    cannot be read. labels: {kind: as of Describer.labels}, of what is known. bad_images, bad_masks: what a clean copy
    leaves out.
    """

    def __init__(self, name: str, source: str, index: Index) -> None:
        self.name, self.source, self.index = name, source, index
        self.first_masks = np.array([index.first_mask(i) for i in range(len(index) + 1)])
        self.problems: list[Problem] = []
        self.bad_images = np.zeros(len(index), bool)
        self.bad_masks = np.zeros(index.mask_count, bool)
        self.pixels = np.zeros(len(index), np.uint64)
        self.areas = np.full(index.mask_count, np.nan, np.float32)
        self.labels: dict[str, tuple[list[str], np.ndarray]] = {}

    def mask_batches(self) -> Iterator[tuple[int, pa.BinaryArray]]:
        """Paths of all masks in order, in parts, each with the number of its first mask."""
        start = 0
        for batch in self.index.columns.batches:
            masks = batch["masks"].flatten()
            yield start, masks
            start += len(masks)

    def open_files(self, workers: int) -> None:
        """After `read_labels`: classes that are regions of one another may have the same pixels."""
        classes = self.labels["class"][1] if "class" in self.labels else np.zeros(self.index.mask_count, np.int32)
        nesting, repeated = Nesting(), list[tuple[int, int, Problem]]()
        with closing(looked_at(self.index, classes, workers)) as results:
            for found in tqdm(
                results, total=len(self.index), desc=f"checking {self.name}", unit="image", dynamic_ncols=True
            ):
                start = self.first_masks[found.number]
                self.pixels[found.number] = found.pixels
                self.areas[start : start + len(found.areas)] = found.areas
                for problem, mask in found.problems:
                    self.problems.append(problem)
                    if mask == -1:
                        self.bad_images[found.number] = True
                    elif mask >= 0:
                        self.bad_masks[start + mask] = True
                nesting.add(found.nested)
                repeated += self._repeated(found)
        for mask, first, problem in repeated:
            if classes[mask] == classes[first] or not nesting.are_regions(classes[mask], classes[first]):
                self.problems.append(problem)
                self.bad_masks[mask] = True

    def _repeated(self, found: Found) -> list[tuple[int, int, Problem]]:
        """Masks of one image with the same pixels: number of the mask, of the first such mask, and what is said."""
        names, start = self.index[found.number][1], int(self.first_masks[found.number])
        first_with: dict[int, int] = {}
        alike = []
        for k, content in enumerate(found.contents):
            first = first_with.setdefault(content, k) if content else k
            if names[first] != names[k]:
                line = f"{self.index.path(names[k])}: has the pixels of {self.index.path(names[first])}"
                alike.append((start + k, start + first, Problem("duplicate", line)))
        return alike

    def find_listed_again(self) -> None:
        """Masks in the list of two images, or twice in one."""
        hashes = np.concatenate(
            [np.fromiter(map(xxh3_64_intdigest, masks.to_pylist()), np.uint64) for _, masks in self.mask_batches()]
        )
        order = np.argsort(hashes, kind="stable")
        for number in np.sort(order[1:][hashes[order[1:]] == hashes[order[:-1]]]).tolist():
            image = int(np.searchsorted(self.first_masks, number, side="right")) - 1
            name = self.index[image][1][number - self.first_masks[image]]
            self.problems.append(Problem("listed", f"{self.source}: lists {name} more than once"))
            self.bad_masks[number] = True

    def read_labels(self, describer_of: Callable[[], Describer]) -> None:
        """Class, modality and case, where they are known."""
        try:
            describer = describer_of()
        except DataError as error:
            self.problems.append(Problem("metadata", str(error)))
            return
        if describer.metadata and (lacking := self._without_a_row(describer.metadata)):
            self.problems += lacking
            return
        for kind in ("class", "modality", "case"):
            try:
                names, codes = describer.labels(self.index, kind)
            except DataError as error:  # a class that the table of class names lacks
                self.problems.append(Problem("metadata", str(error)))
                continue
            if any(names):
                self.labels[kind] = names, codes

    def _without_a_row(self, metadata: Metadata) -> list[Problem]:
        return [
            Problem("metadata", f"{metadata.source}: has no row for {os.fsdecode(masks[k].as_py())}")
            for _, masks in self.mask_batches()
            for k in np.flatnonzero(metadata.find(masks) < 0).tolist()
        ]

    def compare_with(self, other: str) -> None:
        """other: the second index of this split, of the other kind."""

        def pairs(index: Index) -> np.ndarray:
            hashes = (xxh3_64_intdigest(os.fsencode(f"{mask}\n{image}")) for image, masks in index for mask in masks)
            return np.fromiter(hashes, np.uint64)

        try:
            different = np.setxor1d(pairs(self.index), pairs(Index(self.index.root, other, build_columns(other))))
        except DataError as error:
            self.problems.append(Problem("disagree", str(error)))
            return
        if len(different):
            self.problems.append(
                Problem(
                    "disagree",
                    f"{self.source} and {os.path.basename(other)}: {len(different)} mask(s) "
                    "are listed by one alone, or under another image",
                )
            )


def read_splits(folder: str, names: list[str] | None) -> list[Split]:
    """Raises DataError: no index, or one that is no index. Files need not exist."""
    files = (re.fullmatch(r"(image2label|label2image)_(.+)\.json", file) for file in sorted(os.listdir(folder)))
    names = names or [*dict.fromkeys(file[2] for file in files if file)]
    if not names:
        raise DataError(f"{folder}: has no image2label_*.json and no label2image_*.json; name the folder of an index")
    splits = []
    for name in names:
        source = find_index(folder, name)
        columns = build_columns(source)
        splits.append(Split(name, source, Index(_root(source, folder, columns), source, columns)))
    return splits


def _root(source: str, folder: str, columns: Columns) -> str:
    """As read_index finds it, but by the first image that exists: the very first may be what is missing."""
    for image in columns.batches[0]["image"].to_pylist():
        try:
            return root_of(source, folder, os.fsdecode(image))
        except DataError:
            continue
    return folder


def other_index(split: Split) -> str | None:
    """The index of the split that training and testing do not read, if there is one."""
    folder, name = os.path.split(split.source)
    kind = "label2image" if name.startswith("image2label") else "image2label"
    other = os.path.join(folder, f"{kind}_{split.name}.json")
    return other if os.path.isfile(other) else None


def find_problems(splits: list[Split], describer: Callable[[], Describer], workers: int) -> None:
    """Look for everything that can be wrong, within the splits and between them; it is found in their `problems`.

    describer: makes the Describer that says what masks are of; the DataError of a table that is none is a problem.
    """
    for split in splits:
        split.read_labels(describer)
        split.open_files(workers)
        split.find_listed_again()
        if other := other_index(split):
            split.compare_with(other)
    find_same_pixels(splits)
    find_shared_cases(splits)


def find_same_pixels(splits: list[Split]) -> None:
    """Images that come again, in their split or in another split; which one stays, `_priority` says."""
    ordered = sorted(splits, key=_priority)
    pixels = np.concatenate([split.pixels for split in ordered])
    starts = np.cumsum([0] + [len(split.index) for split in ordered])
    _, first, group = np.unique(pixels, return_index=True, return_inverse=True)
    first = first[group]

    def place_of(number: int) -> tuple[Split, int, str]:
        k = int(np.searchsorted(starts, number, side="right")) - 1
        split, i = ordered[k], number - int(starts[k])
        return split, i, split.index.path(split.index[i][0])

    for number in np.flatnonzero((first != np.arange(len(pixels))) & (pixels != 0)).tolist():
        split, i, path = place_of(number)
        other, _, kept = place_of(int(first[number]))
        where = "" if other is split else f", which is in {other.name}"
        split.problems.append(Problem("duplicate", f"{path} ({split.name}): has the pixels of {kept}{where}"))
        split.bad_images[i] = True


def find_shared_cases(splits: list[Split]) -> None:
    """Cases in two splits; their images stay in the one that comes first."""
    seen: dict[str, Split] = {}
    for split in sorted(splits, key=_priority):
        if "case" not in split.labels:
            continue
        names, codes = split.labels["case"]
        shared = [code for code, name in enumerate(names) if name and name in seen]
        for code in shared:
            split.problems.append(
                Problem("case", f"case {names[code]}: is in {seen[names[code]].name} and in {split.name}")
            )
        split.bad_images |= np.isin(codes[split.first_masks[:-1]], shared)
        seen |= {name: split for name in names if name not in seen}


def _priority(split: Split) -> tuple[int, str]:
    """What two splits share stays in the one that comes first: a test set must not change to suit the training."""
    return ("test", "val", "train").index(split.name) if split.name in ("test", "val", "train") else 3, split.name
