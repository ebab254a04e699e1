"""Fill the packed cache of a split ahead of training: every image and every mask, decoded and resized, in a few large
files.

    sam-med2d pack-dataset --cache /fast/disk --data_path data_demo
    python train.py --cache /fast/disk --data_path data_demo

In a clone, `python scripts/pack_dataset.py ...` is the same.

train.py fills the cache by itself, with what its first epochs draw. Packed ahead, the first epoch is fast too, and
every file has been opened once. A second run packs only what is missing and what has changed since. Files that cannot
be read are left out, named, and make the exit status 1.
"""

import argparse
import os
import sys
from pathlib import Path

from torch.utils.data import Dataset
from tqdm import tqdm

from sam_med2d.cli import Parser, check_numbers, ending_in_one_line
from sam_med2d.data.cache import PackedCache, open_cache
from sam_med2d.data.datasets import Loader, shrunk
from sam_med2d.data.index import Index, read_index
from sam_med2d.errors import DataError, OutputError
from sam_med2d.ownership import owned

BAD_SHOWN = 10  # bad files that are named; the rest are counted


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    # fmt: off
    parser.add_argument("--cache", required=True, metavar="DIR",
        help="The folder of the cache, as train.py takes it; each index and image size has a folder in it.")
    parser.add_argument("--data_path", default="data_demo",
        help="Folder of the data, with the split's index. Default: %(default)s.")
    parser.add_argument("--split", default="train",
        help="The split whose images and masks are packed. Default: %(default)s.")
    parser.add_argument("--image_size", type=int, default=256,
        help="Side of the square frame that they are resized to, in pixels. Default: %(default)s.")
    parser.add_argument("--num_workers", type=int, default=os.cpu_count() or 1,
        help="Number of processes that read images and masks. Default: as many as there are cores.")
    # fmt: on
    args = parser.parse_args(argv)
    check_numbers(parser, args, positive=("image_size",), not_negative=("num_workers",))
    return args


class Packing(Dataset):
    """Item i is image i being packed with all its masks -> what is wrong with it, nothing if all is well."""

    def __init__(self, index: Index, cache: PackedCache) -> None:
        self.index = index
        self.cache = cache

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> list[str]:
        wrong = []
        try:
            shrunk(self.index, i, [], self.cache.image_size, self.cache, changed=True)
        except DataError as error:  # without the image its masks cannot be judged
            return [str(error)]
        for k in range(len(self.index[i][1])):
            try:
                shrunk(self.index, i, [k], self.cache.image_size, self.cache, changed=True)
            except DataError as error:
                wrong.append(str(error))
        return wrong


def run(args: argparse.Namespace) -> int:
    """-> how many files could not be packed. Raises DataError, OutputError, UsageError."""
    index = read_index(args.data_path, args.split)
    cache = open_cache(args.cache, index, args.image_size)
    if cache is None:
        raise OutputError(f"--cache {args.cache}: nothing can be packed there; name a folder that can be written")
    with owned(Path(cache.folder), "pack-dataset"):
        wrong = pack(args, index, cache)
    for line in wrong[:BAD_SHOWN]:
        print(f"left out: {line}", file=sys.stderr)
    if len(wrong) > BAD_SHOWN:
        print(
            f"... and {len(wrong) - BAD_SHOWN} more; sam-med2d check-index {args.data_path} lists them all",
            file=sys.stderr,
        )
    taken = sum(file.stat().st_blocks * 512 for file in Path(cache.folder).iterdir())
    print(
        f"{len(index)} images and {index.mask_count} masks at {args.image_size} px: {taken / 1e6:.1f} MB in "
        f"{cache.folder}"
    )
    return len(wrong)


def pack(args: argparse.Namespace, index: Index, cache: PackedCache) -> list[str]:
    """-> what is wrong with each file that could not be packed. Raises OutputError."""
    wrong: list[str] = []
    loader = Loader(Packing(index, cache), args.num_workers, batch_size=None)
    for found in tqdm(loader, desc=f"packing {args.split}", unit="image", dynamic_ncols=True):
        wrong += found
        if cache.full:
            raise OutputError(
                f"the disk of {cache.folder} is full; make room and run this again, or train with what is packed"
            )
    return wrong


@ending_in_one_line(kept="what is packed stays; the same command goes on")
def main(argv: list[str] | None = None) -> None:
    if run(parse_args(argv)):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
