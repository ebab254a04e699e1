"""Open and check every file of a data folder's indexes, say what they hold, and write a copy without what is wrong.

    sam-med2d check-index data_demo --allow case                # exit status 0 if all else is well, 1 if not
    sam-med2d check-index data --sheet sheet.png                # a picture of random images with their masks
    sam-med2d check-index data --fix data/clean                 # then: train.py --data_path data/clean
    sam-med2d check-index data --allow empty duplicate          # what need not be well

In a clone, `python scripts/check_index.py ...` is the same.

What is looked for, with the names that --allow takes:

    missing     files that do not exist                 empty       masks without an object
    unreadable  files that cannot be decoded            full        masks that fill their picture
    size        masks of another size than their image  duplicate   images with the same pixels, in a split or in two;
    values      masks of more than two values, or of                masks with the same pixels, of one image
                two that do not tell the object         listed      masks listed more than once
    orientation images that EXIF says to turn           case        cases that are in two splits
    metadata    masks that metadata.csv has no row for, disagree    the two indexes of a split list different masks
                classes that the table of names lacks
    flat        images of almost one value, and objects that equal what is around them

Masks of classes that lie in one another elsewhere, as a tumour and its core, are no duplicates where they are alike.
Files are only read. The summary by class and by modality says what masks are of as everywhere: from metadata.csv, else
from file names of SA-Med2D-20M, else the class from what a mask's name has beyond its image's.
"""

import argparse
import os
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np

from sam_med2d import drawing
from sam_med2d.cli import Parser, ending_in_one_line
from sam_med2d.data.check import KINDS, Problem, Split, find_problems, read_splits
from sam_med2d.data.clean import write_clean, write_clean_metadata
from sam_med2d.data.decoding import add_reading_flags, reading_flags
from sam_med2d.data.description import Describer
from sam_med2d.data.metadata import METADATA
from sam_med2d.data.reading import read_image, read_mask
from sam_med2d.data.windows import copy_windows
from sam_med2d.errors import DataError, UsageError
from sam_med2d.image_files import write_png
from sam_med2d.outputs import check_no_input

AREAS = (0, 0.001, 0.01, 0.1, 0.5, 1)  # bounds of the classes of area, as shares of the image
LABELS_SHOWN = 40


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    # fmt: off
    parser.add_argument("data_path", nargs="?", default="data_demo",
        help="The data folder to check. Default: %(default)s.")
    parser.add_argument("--splits", nargs="+", metavar="SPLIT",
        help="Check these splits alone. Default: all that have an index in the folder.")
    parser.add_argument("--allow", nargs="+", default=[], choices=KINDS, metavar="KIND",
        help="Kinds of problems that are told, but do not make the exit status 1.")
    parser.add_argument("--fix", type=Path, metavar="DIR",
        help="Write the indexes and metadata.csv into this folder, without what is wrong.")
    parser.add_argument("--sheet", type=Path, metavar="PNG", help="Draw random images with their masks into this file.")
    parser.add_argument("--sheet_images", type=int, default=24,
        help="Number of images that --sheet draws. Default: %(default)s.")
    parser.add_argument("--seed", type=int, default=0,
        help="Which images --sheet draws is a function of this number. Default: %(default)s.")
    parser.add_argument("--shown", type=int, default=10,
        help="Number of problems of each kind that are printed; -1 prints all. Default: %(default)s.")
    parser.add_argument("--metadata", metavar="CSV",
        help="Table with case, modality, class and more of each mask. Default: metadata.csv of the folder.")
    parser.add_argument("--class_names", metavar="JSON",
        help="File with the names of SA-Med2D-20M's class numbers, as test.py takes it.")
    parser.add_argument("--case", metavar="REGEX",
        help="Regular expression that tells the case by the path of an image, as test.py takes it.")
    parser.add_argument("--num_workers", type=int, default=os.cpu_count() or 1,
        help="Number of processes that read images and masks. Default: as many as there are cores.")
    # fmt: on
    add_reading_flags(parser)
    args = parser.parse_args(argv)
    if args.num_workers < 1 or args.sheet_images < 1:
        parser.error("--num_workers and --sheet_images must be at least 1")
    return args


def summary(split: Split) -> str:
    known = ~np.isnan(split.areas)
    lines = [f"{split.name}: {len(split.index)} images, {split.index.mask_count} masks"]
    if split.index.images_without_masks:
        lines.append(f"  {split.index.images_without_masks} image(s) without a mask are left out")
    counts = np.histogram(split.areas[known], AREAS)[0]
    bounds = [f"{100 * low:g} to {100 * high:g} %" for low, high in pairwise(AREAS)]
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
            lines.append(f"  {names[code] or '(not known)':32}{masks[code]:10}{images[code]:10}{area:>14}")
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


def fix(splits: list[Split], folder: str, output: Path) -> None:
    """Write what is left into the folder `output`. Raises UsageError."""
    if output.resolve() == Path(folder).resolve():
        raise UsageError(f"--fix {output}: is the folder that is checked, and sources are not written to; name another")
    check_no_input(
        (output / Path(split.index.source).name for split in splits), (split.index.source for split in splits)
    )
    output.mkdir(parents=True, exist_ok=True)
    for split in splits:
        images, masks = write_clean(split, output)
        print(
            f"{output}: {split.name} of {images} images and {masks} masks ({len(split.index) - images} and "
            f"{split.index.mask_count - masks} left out)"
        )
    copy_windows(splits[0].index.root, output)
    table = os.path.join(folder, METADATA)
    if os.path.isfile(table):
        try:
            write_clean_metadata(splits, table, output / METADATA)
        except DataError as error:
            print(f"not written: {output / METADATA} ({error})", file=sys.stderr)


def write_sheet(splits: list[Split], path: Path, count: int, seed: int) -> None:
    """Random images that can be read, each with all its masks."""
    candidates = [(split, i) for split in splits for i in np.flatnonzero(split.pixels).tolist()]
    if not candidates:
        raise UsageError(f"--sheet {path}: there is no image that can be read")
    check_no_input([path], (split.index.path(name) for split in splits for i in split.index for name in (i[0], *i[1])))
    chosen = np.random.default_rng(seed).choice(len(candidates), min(count, len(candidates)), replace=False)
    shown = [candidates[k] for k in sorted(chosen.tolist())]
    colours = drawing.class_colours(name for split in splits for name in split.labels.get("class", ([],))[0])
    tiles = [_tile(split, i, colours) for split, i in shown]
    there = {name for split, i in shown for name in _classes(split, i)}
    legend = {name: colour for name, colour in colours.items() if name in there}
    write_png(path, drawing.with_legend(drawing.grid(tiles), legend))
    print(f"{path}: {len(tiles)} random images with their masks" + ", a colour a class" * bool(legend))


def _classes(split: Split, i: int) -> list[str]:
    """Of the masks of an image; "" is a class that is not known."""
    own = slice(split.first_masks[i], split.first_masks[i + 1])
    if "class" not in split.labels:
        return [""] * (own.stop - own.start)
    names, codes = split.labels["class"]
    return [names[code] for code in codes[own].tolist()]


def _tile(split: Split, i: int, colours: dict[str, drawing.Colour]) -> np.ndarray:
    """The image with all its masks that can be read, and its name: see drawing.tile_of_masks.

    colours: of each class; where none is known, each object has its own.
    """
    image_name, mask_names = split.index[i]
    path = split.index.path(image_name)
    image = read_image(path, [split.index.path(name) for name in mask_names])
    readable = ~np.isnan(split.areas[split.first_masks[i] : split.first_masks[i + 1]])
    kept = np.flatnonzero(readable).tolist()
    masks = [read_mask(split.index.path(mask_names[k]), image.shape[:2], path) for k in kept]
    classes = _classes(split, i)
    own = [colours[classes[k]] for k in kept] if colours else ()
    return drawing.tile_of_masks(image, masks, f"{Path(image_name).stem}  {split.name}", colours=own)


def run(args: argparse.Namespace) -> bool:
    """-> whether all is well, but for what is allowed. Raises DataError, UsageError."""
    folder = os.path.abspath(args.data_path)
    if not os.path.isdir(folder):
        raise DataError(f"{folder}: there is no such folder")
    splits = read_splits(folder, args.splits)
    find_problems(splits, lambda: Describer(folder, args.metadata, args.class_names, args.case), args.num_workers)
    for split in splits:
        print(summary(split))
    problems = [problem for split in splits for problem in split.problems]
    if problems:
        print(listing(problems, args.shown))
    if args.sheet:
        write_sheet(splits, args.sheet, args.sheet_images, args.seed)
    if args.fix:
        fix(splits, folder, args.fix)
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


@ending_in_one_line()
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    with reading_flags(args):
        well = run(args)
    if not well:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
