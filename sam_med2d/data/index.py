"""The JSON index of a data folder: which images there are, and which masks each has.

    python -c "from sam_med2d.data.index import *; print(read_index('data_demo', 'train')[0])"

JSON is what people write and read. From a large index a columnar copy is made once (see arrow_copy.py) and
memory-mapped: SA-Med2D-20M lists 24 million paths, which as Python strings would be copied into every worker, page by
page, as reference counts change. Paths are kept as they stand in the index; `Index.path` turns them into paths that
open.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sam_med2d.data.arrow_copy import Columns
from sam_med2d.data.index_build import build_columns
from sam_med2d.data.index_check import check_files
from sam_med2d.errors import DataError


class Index:
    """Images and the paths of their masks: `index[i]` is (image, [mask, ...]) as written in the JSON file.

    Images without masks are left out and counted in `images_without_masks`; `mask_count` counts the masks.
    """

    def __init__(self, root: str, source: str, groups: dict[str, list[str]] | Columns) -> None:
        """groups: {image: [mask, ...]}, in order, or the columns of an index."""
        columns = groups if isinstance(groups, Columns) else build_columns(groups)
        self.root = root
        self.source = source
        self.columns = columns
        self.mask_count: int = columns.facts["masks"]
        self.images_without_masks: int = columns.facts["images_without_masks"]
        self._length: int = columns.facts["images"]
        batches = columns.batches
        self._rows = len(batches[0]) if batches else 1  # of every batch but the last
        self._first_masks = np.cumsum([0, *(len(batch["masks"].flatten()) for batch in batches)])  # of the batches

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, i: int) -> tuple[str, list[str]]:
        if not 0 <= i < len(self):
            raise IndexError(f"image {i} of {len(self)}")
        images, masks = self.columns.batches[i // self._rows].columns
        return os.fsdecode(images[i % self._rows].as_py()), [
            os.fsdecode(mask) for mask in masks[i % self._rows].as_py()
        ]

    def __iter__(self) -> Iterator[tuple[str, list[str]]]:
        return (self[i] for i in range(len(self)))

    def first_mask(self, i: int) -> int:
        """The number of an image's first mask, where masks of all images are counted in order. i may be len(self)."""
        if i == len(self):
            return self.mask_count
        batch, row = divmod(i, self._rows)
        return int(self._first_masks[batch]) + self.columns.batches[batch]["masks"].offsets[row].as_py()

    def mask(self, number: int) -> str:
        """The path of a mask by its number, where masks of all images are counted in order."""
        if not 0 <= number < self.mask_count:
            raise IndexError(f"mask {number} of {self.mask_count}")
        batch = int(np.searchsorted(self._first_masks, number, side="right")) - 1
        masks = self.columns.batches[batch]["masks"].flatten()
        return os.fsdecode(masks[number - int(self._first_masks[batch])].as_py())

    def path(self, name: str) -> str:
        """A path of the index -> a path that opens, wherever the process has moved to since."""
        return os.path.join(self.root, name)


def read_index(data_path: str | os.PathLike, split: str) -> Index:
    """Read and check `image2label_{split}.json` or `label2image_{split}.json` of the folder data_path.

    Both say the same; should both be there, "test" takes label2image and any other split image2label.

    Raises DataError: no index, not JSON or of another shape, no masks in it, or files in it that do not exist.
    """
    folder = os.path.abspath(data_path)
    source = find_index(folder, split)
    columns = build_columns(source)
    root = root_of(source, folder, os.fsdecode(columns.batches[0]["image"][0].as_py()))
    check_files(source, root, columns)
    return Index(root, source, columns)


def find_index(folder: str, split: str) -> str:
    """The path of the index that read_index reads. Raises DataError: there is none."""
    kinds = ["image2label", "label2image"]
    if split == "test":
        kinds.reverse()
    candidates = [os.path.join(folder, f"{kind}_{split}.json") for kind in kinds]
    for candidate in candidates:
        if os.path.isfile(candidate):
            return candidate
    others = sorted(path.stem.partition("_")[2] for path in Path(folder).glob("image2label_*.json"))
    there = "check the data path and the split's name"
    if others:
        there = (
            f"there is {' and '.join(others)} alone, so no case may have fallen to '{split}'; make-index deals them "
        )
        there += "by --ratios, --split_seed and --split_file"
    raise DataError(f"no index of split '{split}': looked for {' and '.join(candidates)}; {there}")


def root_of(source: str, folder: str, first_image: str) -> str:
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
