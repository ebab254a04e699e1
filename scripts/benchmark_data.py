"""Timings and memory of the data side, for scripts/benchmark.py.

    python scripts/benchmark.py data --data_path data_demo      # PNG against bare cv2.imread, cache against PNG
    python scripts/benchmark.py data --parts scale              # an index as large as SA-Med2D-20M: 4 GB of disk
    python scripts/benchmark.py data --parts files              # looking for 300,000 files, twice

reading: files that the page cache holds, one process. scale: each step in a process of its own, whose memory is read
from /proc (Linux): anonymous memory, and in brackets with the pages it has mapped, which the system takes back when it
needs them.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

import cv2
from timing import compare
from torch.utils.data import DataLoader, Dataset

from sam_med2d.data.cache import open_cache
from sam_med2d.data.datasets import TrainingDataset, shrunk
from sam_med2d.data.index import Index, read_index
from sam_med2d.data.index_build import build_columns
from sam_med2d.data.reading import read_image, read_mask

PARTS = ("reading", "scale", "files")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    # fmt: off
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["reading"],
        help="What is measured. Default: reading.")
    parser.add_argument("--data_path", default="data_demo",
        help="Folder of the data for the part reading. Default: %(default)s.")
    parser.add_argument("--image_size", type=int, default=256,
        help="Side of the frame that pictures are brought into. Default: %(default)s.")
    parser.add_argument("--mask_num", type=int, default=5,
        help="Number of masks drawn from each image. Default: %(default)s.")
    parser.add_argument("--rounds", type=int, default=15,
        help="Number of rounds that are measured. Default: %(default)s.")
    parser.add_argument("--images", type=int, default=4_600_000,
        help="Number of images of the index for the part scale. Default: %(default)s.")
    parser.add_argument("--masks", type=int, default=19_700_000,
        help="Number of masks of the index for the part scale. Default: %(default)s.")
    parser.add_argument("--workers", type=int, default=8,
        help="Number of processes that read for the part scale. Default: %(default)s.")
    parser.add_argument("--files", type=int, default=300_000,
        help="Number of files for the part files. Default: %(default)s.")
    parser.add_argument("--scratch", help="Folder for what the parts scale and files make. Default: the system's.")
    # fmt: on


def run(args: argparse.Namespace) -> None:
    for part in args.parts:
        print(f"-- {part}")
        {"reading": reading, "scale": scale, "files": files}[part](args)


# ---------------------------------------------------------------- reading


def reading(args: argparse.Namespace) -> None:
    cv2.setNumThreads(0)  # as in a worker
    index = read_index(args.data_path, "train")
    images = [index.path(image) for image, _ in index]
    pairs = [(index.path(image), [index.path(mask) for mask in masks]) for image, masks in index]
    sizes = {path: cv2.imread(path).shape[:2] for path in images}
    print(f"{len(images)} images, {index.mask_count} masks, all of them each time")

    def bare() -> None:
        for path, masks in pairs:
            cv2.imread(path)
            for mask in masks:
                cv2.imread(mask, cv2.IMREAD_GRAYSCALE)

    def ours() -> None:
        for path, masks in pairs:
            read_image(path)
            for mask in masks:
                read_mask(mask, sizes[path], path)

    compare({"bare cv2.imread of images and masks": bare, "read_image and read_mask": ours}, args.rounds)

    with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
        plain = TrainingDataset(args.data_path, args.image_size, mask_num=args.mask_num)
        cached = TrainingDataset(args.data_path, args.image_size, mask_num=args.mask_num, cache=folder)
        cache = open_cache(folder, index, args.image_size)
        every = [range(len(masks)) for _, masks in index]

        def fitted(cache) -> None:
            for i, which in enumerate(every):
                shrunk(index, i, which, args.image_size, cache)

        def samples(dataset: TrainingDataset) -> None:
            for i in range(len(dataset)):
                dataset[0, i]

        fitted(cache)
        print(f"read and resized to {args.image_size} px, all masks of an image")
        faster(compare({"from PNG": lambda: fitted(None), "from the cache": lambda: fitted(cache)}, args.rounds))
        print(f"training samples of {args.mask_num} drawn masks")
        faster(compare({"from PNG": lambda: samples(plain), "from the cache": lambda: samples(cached)}, args.rounds))


def faster(medians: dict[str, float]) -> None:
    png, cache = medians.values()
    print(f"the cache is {png / cache:.1f} times as fast")


# ---------------------------------------------------------------- scale


def scale(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
        source = os.path.join(folder, "image2label_train.json")
        write_large_index(source, args.images, args.masks)
        print(f"{args.images} images, {args.masks} masks: {os.path.getsize(source) / 1e9:.2f} GB of JSON")
        print("copied from JSON:                         ", in_a_process(_open, source))
        print("opened with its copy:                     ", in_a_process(_open, source))
        small = os.path.join(folder, "image2label_small.json")
        write_large_index(small, 1000, 4000)
        for name, path in (("of 1000 images", small), ("of all", source)):
            print(
                f"{args.workers} workers read an index {name}:".ljust(42),
                in_a_process(_read_with_workers, path, args.workers),
            )


def write_large_index(path: str, images: int, masks: int) -> None:
    """Names as SA-Med2D-20M's. No such files exist."""
    each, more = divmod(masks, images)
    with open(path, "w") as file:
        for i in range(images):
            stem = f"ct_00--Dataset{i % 200:03d}--Case_{i // 300:05d}--{'xyz'[i % 3]}_{i % 300:04d}"
            of_image = [f"SAMed2Dv1/masks/{stem}--{(i + k) % 31:04d}_{k:03d}.png" for k in range(each + (i < more))]
            file.write(f'{", " if i else "{"}"SAMed2Dv1/images/{stem}.png": {json.dumps(of_image)}')
        file.write("}")


def _open(source: str) -> str:
    started = time.perf_counter()
    index = Index("/", source, build_columns(source))
    seconds = time.perf_counter() - started
    assert index[len(index) - 1]
    return f"{seconds:.2f} s"


class _Names(Dataset):
    """Item i is the number of letters of an image's paths: reads the index, and nothing else."""

    def __init__(self, index: Index) -> None:
        self.index = index

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> int:
        image, masks = self.index[i]
        return len(image) + sum(map(len, masks))


def _read_with_workers(source: str, workers: int) -> str:
    """What they add to the memory in use, after 40,000 images drawn from everywhere, or all where there are fewer."""
    index = Index("/", source, build_columns(source))
    before = memory_of(os.getpid())
    warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores
    order = [i * 7919 % len(index) for i in range(min(40_000, len(index)))]
    loader = DataLoader(
        _Names(index),
        batch_size=50,
        sampler=order,
        num_workers=workers,
        persistent_workers=True,
        multiprocessing_context="fork",
    )  # as Linux does in train.py
    batches = iter(loader)
    read = sum(len(next(batches)) for _ in range(len(loader)))
    after = [memory_of(process) for process in (os.getpid(), *(worker.pid for worker in batches._workers))]
    own, all_pages = (sum(values) - earlier for values, earlier in zip(zip(*after), before))
    return f"{read} images read; added {own / 1e6:.0f} MB in all (with mapped pages {all_pages / 1e6:.0f} MB)"


def memory_of(process: int) -> tuple[int, int]:
    """-> bytes of anonymous memory, and with mapped pages; what n processes share counts 1/n for each."""
    sizes = {}
    for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]:
        name, value = line.split(":")
        sizes[name] = int(value.split()[0]) * 1024
    return sizes["Pss_Anon"] + sizes["Pss_Shmem"], sizes["Pss"]


def in_a_process(work: Callable[..., str], *arguments: object) -> str:
    """Run it in a process started anew -> what it says, and the largest memory it had."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        said, own, resident = pool.submit(_watched, work, *arguments).result()
    return f"{said}; at most {own / 1e6:.0f} MB (with mapped pages {resident / 1e6:.0f} MB)"


def _watched(work: Callable[..., str], *arguments: object) -> tuple[str, int, int]:
    most, done = [0, 0], threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            most[:] = map(max, most, memory_of(os.getpid()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        said = work(*arguments)
    finally:
        done.set()
        watcher.join()
    return said, *most


# ---------------------------------------------------------------- files


def files(args: argparse.Namespace) -> None:
    """Whether the files of an index exist: listed the first time, then known by the time stamps of their folders."""
    with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
        images = args.files // 6
        stems = (f"ct_00--AbdomenCT1K--Case_{i // 300:05d}--x_{i % 300:04d}" for i in range(images))
        groups = {f"images/{stem}.png": [f"masks/{stem}--{k:04d}_000.png" for k in range(5)] for stem in stems}
        for kind, names in (("images", groups), ("masks", (mask for masks in groups.values() for mask in masks))):
            os.mkdir(os.path.join(folder, kind))
            for name in names:
                open(os.path.join(folder, name), "w").close()
        Path(folder, "image2label_train.json").write_text(json.dumps(groups))
        time.sleep(3)  # what has just changed may change again unseen, and is not believed
        for turn in ("the first time", "again"):
            started = time.perf_counter()
            index = read_index(folder, "train")
            print(f"read_index of {len(index) + index.mask_count} files, {turn}: {time.perf_counter() - started:.2f} s")
