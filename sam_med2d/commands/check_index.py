"""Open and check every file of a data folder's indexes, say what they hold, and write a copy of them without what is wrong.

    python scripts/check_index.py data_demo --allow case                # exit status 0 if all else is well, 1 if not
    python scripts/check_index.py data --sheet sheet.png                # a picture of random images with their masks
    python scripts/check_index.py data --fix data/clean                 # then: train.py --data_path data/clean
    python scripts/check_index.py data --allow empty duplicate          # what need not be well

What is looked for, with the names that --allow takes:

    missing     files that do not exist                 empty       masks without an object
    unreadable  files that cannot be decoded            duplicate   images with the same pixels, within a split or in two;
    size        masks of another size than their image              masks with the same pixels, of one image
    values      masks of more than two values           listed      masks listed more than once
    metadata    masks that metadata.csv has no row for  case        cases that are in two splits
    disagree    the two indexes of a split list different masks

Files are only read. The summary by class and by modality comes from metadata.csv, or from file names of SA-Med2D-20M.
"""

import argparse
import csv
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from multiprocessing import Pool
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pyarrow as pa
from tqdm import tqdm
from xxhash import xxh3_64_intdigest

from sam_med2d import drawing
from sam_med2d.cli import finish
from sam_med2d.data.arrow_copy import Columns
from sam_med2d.data.index import Index, find_index, root_of
from sam_med2d.data.index_build import index_columns
from sam_med2d.data.metadata import METADATA, labels_of, read_metadata
from sam_med2d.data.reading import read_image, read_mask
from sam_med2d.errors import DataError, UsageError
from sam_med2d.image_files import write_png
from segment_anything.files import replacing

KINDS = ("missing", "unreadable", "size", "values", "metadata", "disagree", "empty", "duplicate", "listed", "case")
AREAS = (0, 0.001, 0.01, 0.1, 0.5, 1)  # bounds of the classes of area, as shares of the image
LABELS_SHOWN = 40


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_path", nargs="?", default="data_demo")
    parser.add_argument("--splits", nargs="+", metavar="SPLIT", help="default: all that have an index in the folder")
    parser.add_argument(
        "--allow", nargs="+", default=[], choices=KINDS, metavar="KIND", help="say it, but exit with 0 all the same"
    )
    parser.add_argument(
        "--fix", type=Path, metavar="DIR", help="write the indexes and metadata.csv there, without what is wrong"
    )
    parser.add_argument("--sheet", type=Path, metavar="PNG", help="draw random images with their masks")
    parser.add_argument("--sheet_images", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0, help="of the images that are drawn")
    parser.add_argument("--shown", type=int, default=10, help="of each kind of problem; -1: all")
    parser.add_argument("--num_workers", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args(argv)
    if args.num_workers < 1 or args.sheet_images < 1:
        parser.error("--num_workers and --sheet_images must be at least 1")
    return args


class Problem(NamedTuple):
    kind: str  # of KINDS
    line: str  # names the file


# ---------------------------------------------------------------- files, each image with its masks


class Found(NamedTuple):
    """What a worker saw of one image."""

    number: int
    pixels: int  # hash of the image's pixels; 0: it cannot be read
    areas: list[float]  # of each mask, as a share of the image; NaN: it cannot be read
    problems: list[tuple[Problem, int]]  # with the number of the mask, -1 for the image


_index: Index  # that the worker processes look at


def _use(index: Index) -> None:
    global _index
    _index = index
    cv2.setNumThreads(0)


def _look(number: int) -> Found:
    image_name, mask_names = _index[number]
    path = _index.path(image_name)
    areas, problems = [float("nan")] * len(mask_names), []
    try:
        image = read_image(path)
    except DataError as error:
        problems.append((_problem(path, error), -1))
        for k, mask_path in enumerate(map(_index.path, mask_names)):
            if not os.path.isfile(mask_path):
                problems.append((Problem("missing", f"{mask_path}: does not exist"), k))
        return Found(number, 0, areas, problems)
    first_with: dict[int, int] = {}
    for k, mask_path in enumerate(map(_index.path, mask_names)):
        try:
            mask = read_mask(mask_path, image.shape[:2], path)
        except DataError as error:
            problems.append((_problem(mask_path, error), k))
            continue
        areas[k] = float(mask.mean())
        first = first_with.setdefault(xxh3_64_intdigest(np.packbits(mask).tobytes()), k)
        if not mask.any():
            problems.append((Problem("empty", f"{mask_path}: has no object"), k))
        elif first != k and mask_names[first] != mask_names[k]:
            problems.append(
                (Problem("duplicate", f"{mask_path}: has the pixels of {_index.path(mask_names[first])}"), k)
            )
    return Found(number, xxh3_64_intdigest(image.tobytes(), seed=image.shape[1]) or 1, areas, problems)


def _problem(path: str, error: DataError) -> Problem:
    if not os.path.isfile(path):
        return Problem("missing", f"{path}: does not exist")
    return Problem(error.kind or "unreadable", str(error))


def looked_at(index: Index, workers: int) -> Iterator[Found]:
    """Every image, in order."""
    if workers == 1:
        _use(index)
        yield from map(_look, range(len(index)))
        return
    with Pool(workers, _use, [index]) as pool:
        yield from pool.imap(_look, range(len(index)), chunksize=16)


# ---------------------------------------------------------------- splits


class Split:
    """One split, and what was found of it. bad_images and bad_masks: what --fix leaves out."""

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
        with closing(looked_at(self.index, workers)) as results:
            for found in tqdm(
                results, total=len(self.index), desc=f"checking {self.name}", unit="image", dynamic_ncols=True
            ):
                start = self.first_masks[found.number]
                self.pixels[found.number] = found.pixels
                self.areas[start : start + len(found.areas)] = found.areas
                for problem, mask in found.problems:
                    self.problems.append(problem)
                    if mask < 0:
                        self.bad_images[found.number] = True
                    else:
                        self.bad_masks[start + mask] = True

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

    def read_labels(self, folder: str) -> None:
        """Class, modality and case, where they are known."""
        table = os.path.join(folder, METADATA)
        if os.path.isfile(table):
            try:
                metadata = read_metadata(table)
            except DataError as error:
                self.problems.append(Problem("metadata", str(error)))
                return
            for start, masks in self.mask_batches():
                for k in np.flatnonzero(metadata.find(masks) < 0).tolist():
                    self.problems.append(
                        Problem("metadata", f"{table}: has no row for {os.fsdecode(masks[k].as_py())}")
                    )
            if any(problem.kind == "metadata" for problem in self.problems):
                return
        for kind in ("class", "modality", "case"):
            try:
                self.labels[kind] = labels_of(self.index, folder, kind)
            except DataError:
                pass  # not known: the summary goes without

    def compare_with(self, other: str) -> None:
        """other: the second index of this split, of the other kind."""

        def pairs(index: Index) -> np.ndarray:
            hashes = (xxh3_64_intdigest(os.fsencode(f"{mask}\n{image}")) for image, masks in index for mask in masks)
            return np.fromiter(hashes, np.uint64)

        try:
            different = np.setxor1d(pairs(self.index), pairs(Index(self.index.root, other, index_columns(other))))
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
        columns = index_columns(source)
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


# ---------------------------------------------------------------- what is printed


def summary(split: Split) -> str:
    known = ~np.isnan(split.areas)
    lines = [f"{split.name}: {len(split.index)} images, {split.index.mask_count} masks"]
    if split.index.images_without_masks:
        lines.append(f"  {split.index.images_without_masks} image(s) without a mask are left out")
    counts = np.histogram(split.areas[known], AREAS)[0]
    bounds = [f"{100 * low:g} to {100 * high:g} %" for low, high in zip(AREAS, AREAS[1:])]
    lines.append("  area of the image: " + ", ".join(f"{bound} {count}" for bound, count in zip(bounds, counts)))
    for kind in ("modality", "class"):
        if kind not in split.labels:
            lines.append(f"  {kind}: not known")
            continue
        names, codes = split.labels[kind]
        image_of = np.repeat(np.arange(len(split.index)), np.diff(split.first_masks))
        pairs = np.unique(codes.astype(np.int64) * len(split.index) + image_of)
        lines.append(f"  {kind:32}{'masks':>10}{'images':>10}{'median area':>14}")
        masks = np.bincount(codes, minlength=len(names))
        images = np.bincount(pairs // len(split.index), minlength=len(names))
        order = np.argsort(-masks, kind="stable")
        for code in order[:LABELS_SHOWN].tolist():
            areas = split.areas[(codes == code) & known]
            area = f"{100 * np.median(areas):.2f} %" if len(areas) else "-"
            lines.append(f"  {names[code] or '(empty)':32}{masks[code]:10}{images[code]:10}{area:>14}")
        if len(names) > LABELS_SHOWN:
            lines.append(f"  and {len(names) - LABELS_SHOWN} more, of {masks[order[LABELS_SHOWN:]].sum()} masks")
    return "\n".join(lines)


def listing(problems: list[Problem], shown: int) -> str:
    lines = []
    for kind in KINDS:
        of_kind = [problem.line for problem in problems if problem.kind == kind]
        if of_kind:
            lines.append(f"{kind}: {len(of_kind)}")
            lines += [f"  {line}" for line in (of_kind if shown < 0 else of_kind[:shown])]
            if 0 <= shown < len(of_kind):
                lines.append(f"  ... and {len(of_kind) - shown} more (--shown -1 lists all)")
    return "\n".join(lines)


# ---------------------------------------------------------------- the clean copy


def write_clean(splits: list[Split], folder: str, output: Path) -> None:
    """The indexes of the splits, and metadata.csv, without what is bad. Raises UsageError."""
    if output.resolve() == Path(folder).resolve():
        raise UsageError(f"--fix {output}: is the folder that is checked, and sources are not written to; name another")
    output.mkdir(parents=True, exist_ok=True)
    for split in splits:
        rename = _renaming(split.index.root, output)
        kept = [0, 0]

        def clean() -> Iterator[tuple[str, list[str]]]:
            for i in np.flatnonzero(~split.bad_images).tolist():
                image, masks = split.index[i]
                start = split.first_masks[i]
                masks = [rename(mask) for k, mask in enumerate(masks) if not split.bad_masks[start + k]]
                if masks:
                    kept[0] += 1
                    kept[1] += len(masks)
                    yield rename(image), masks

        for source in filter(None, (split.source, other_index(split))):
            kept[:] = 0, 0
            by_mask = os.path.basename(source).startswith("label2image")
            entries = ((mask, image) for image, masks in clean() for mask in masks) if by_mask else clean()
            _write_json(output / os.path.basename(source), entries)
        print(
            f"{output}: {split.name} of {kept[0]} images and {kept[1]} masks ({len(split.index) - kept[0]} and "
            f"{split.index.mask_count - kept[1]} left out)"
        )
    table = os.path.join(folder, METADATA)
    if os.path.isfile(table):
        try:
            _write_metadata(splits, table, output / METADATA)
        except DataError as error:
            print(f"not written: {output / METADATA} ({error})", file=sys.stderr)


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


def _write_metadata(splits: list[Split], table: str, path: Path) -> None:
    """The rows of masks that are kept. Raises DataError."""
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
        reader = csv.DictReader(source)
        writer = csv.DictWriter(file, reader.fieldnames, lineterminator="\n")
        writer.writeheader()
        for number, row in zip(keep.tolist(), reader):
            if number:
                rename = renaming[number - 1]
                writer.writerow({**row, "mask": rename(row["mask"]), "image": rename(row["image"])})


# ---------------------------------------------------------------- the contact sheet


def write_sheet(splits: list[Split], path: Path, count: int, seed: int) -> None:
    """Random images that can be read, each with all its masks."""
    candidates = [(split, i) for split in splits for i in np.flatnonzero(split.pixels).tolist()]
    if not candidates:
        raise UsageError(f"--sheet {path}: there is no image that can be read")
    chosen = np.random.default_rng(seed).choice(len(candidates), min(count, len(candidates)), replace=False)
    tiles = [_tile(*candidates[k]) for k in sorted(chosen.tolist())]
    write_png(path, drawing.grid(tiles))
    print(f"{path}: {len(tiles)} random images with their masks")


def _tile(split: Split, i: int) -> np.ndarray:
    """The image with all its masks that can be read, and its name: see drawing.tile_of_masks."""
    image_name, mask_names = split.index[i]
    path = split.index.path(image_name)
    image = read_image(path)
    readable = ~np.isnan(split.areas[split.first_masks[i] : split.first_masks[i + 1]])
    masks = [read_mask(split.index.path(mask_names[k]), image.shape[:2], path) for k in np.flatnonzero(readable)]
    return drawing.tile_of_masks(image, masks, f"{split.name}: {Path(image_name).stem}")


# ---------------------------------------------------------------- all of it


def run(args: argparse.Namespace) -> bool:
    """-> whether all is well, but for what is allowed. Raises DataError, UsageError."""
    folder = os.path.abspath(args.data_path)
    if not os.path.isdir(folder):
        raise DataError(f"{folder}: there is no such folder")
    splits = read_splits(folder, args.splits)
    for split in splits:
        split.open_files(args.num_workers)
        split.find_listed_again()
        split.read_labels(folder)
        if other := other_index(split):
            split.compare_with(other)
    find_same_pixels(splits)
    find_shared_cases(splits)

    for split in splits:
        print(summary(split))
    problems = [problem for split in splits for problem in split.problems]
    if problems:
        print(listing(problems, args.shown))
    if args.sheet:
        write_sheet(splits, args.sheet, args.sheet_images, args.seed)
    if args.fix:
        write_clean(splits, folder, args.fix)
    counts = Counter(problem.kind for problem in problems)
    print(
        "problems: "
        + (
            ", ".join(
                f"{counts[kind]} {kind}" + (" (allowed)" if kind in args.allow else "")
                for kind in KINDS
                if counts[kind]
            )
            or "none"
        )
    )
    return not set(counts) - set(args.allow)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    try:
        if not run(args):
            raise SystemExit(1)
    except (DataError, UsageError) as error:
        finish(error)


if __name__ == "__main__":
    main()
