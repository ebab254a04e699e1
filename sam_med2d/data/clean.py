"""A copy of a data folder's indexes and metadata.csv without what was found to be wrong (`check.py`)."""

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from sam_med2d.data.check import Split, other_index
from sam_med2d.data.metadata import read_metadata
from sam_med2d.data.names import with_slashes
from sam_med2d.data.tables import delimiter_of
from segment_anything.files import replacing


def write_clean(split: Split, output: Path) -> tuple[int, int]:
    """Write the indexes of a split into the folder `output`. -> images and masks that are left."""
    rename = _renaming(split.index.root, output)
    for source in filter(None, (split.source, other_index(split))):
        images = _kept(split, rename)
        by_mask = os.path.basename(source).startswith("label2image")
        entries = ((mask, image) for image, masks in images for mask in masks) if by_mask else images
        _write_json(output / os.path.basename(source), entries)
    image_of = np.repeat(np.arange(len(split.index)), np.diff(split.first_masks))
    of_masks = image_of[~split.bad_masks & ~split.bad_images[image_of]]  # the image of each mask that is kept
    return len(np.unique(of_masks)), len(of_masks)


def _kept(split: Split, rename: Callable[[str], str]) -> Iterator[tuple[str, list[str]]]:
    """Images that are not bad, each with those of its masks that are not, one after the other."""
    for i in np.flatnonzero(~split.bad_images).tolist():
        image, masks = split.index[i]
        start = split.first_masks[i]
        if good := [rename(mask) for k, mask in enumerate(masks) if not split.bad_masks[start + k]]:
            yield rename(image), good


def _renaming(root: str, output: Path) -> Callable[[str], str]:
    """-> path under root -> path that opens from an index in the folder output."""
    output = Path(os.path.abspath(output))
    if str(root) in (str(output), str(output.parent)):
        return lambda name: name
    return lambda name: name if os.path.isabs(name) else os.path.relpath(os.path.join(root, name), output)


def _write_json(path: Path, entries: Iterable[tuple[str, object]]) -> None:
    with replacing(path) as temporary, open(temporary, "w", encoding="ascii") as file:
        file.write("{")
        for number, (key, value) in enumerate(entries):
            file.write(f"{',' if number else ''}\n{json.dumps(key)}: {json.dumps(value)}")
        file.write("\n}\n")


def write_clean_metadata(splits: list[Split], table: str, path: Path) -> None:
    """Write the rows of the masks that are kept. Raises DataError: the table cannot be read or is none."""
    metadata = read_metadata(table)
    keep = np.zeros(len(metadata), np.uint8)  # 1 + the number of the split
    for number, split in enumerate(splits, start=1):
        kept = ~split.bad_masks & ~np.repeat(split.bad_images, np.diff(split.first_masks))
        for start, masks in split.mask_batches():
            rows = metadata.find(masks)[kept[start : start + len(masks)]]
            keep[rows[rows >= 0]] = number
    renaming = [_renaming(split.index.root, path.parent) for split in splits]
    with (
        open(table, newline="", encoding="utf-8-sig") as source,
        replacing(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        first = source.readline()
        source.seek(0)
        reader = csv.DictReader(source, delimiter=delimiter_of(first))
        writer = csv.DictWriter(file, reader.fieldnames or (), lineterminator="\n")
        writer.writeheader()
        for number, row in zip(keep.tolist(), reader):
            if number:
                rename = renaming[number - 1]
                row |= {"mask": rename(with_slashes(row["mask"])), "image": rename(with_slashes(row["image"]))}
                writer.writerow(row)
