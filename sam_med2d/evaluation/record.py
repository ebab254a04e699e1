"""One process's share of a test run, written image by image: rows, prompts and predictions."""

import argparse
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from tqdm import tqdm

from sam_med2d import drawing
from sam_med2d.data.batch import Batch
from sam_med2d.data.datasets import TestingDataset
from sam_med2d.data.metadata import Describer
from sam_med2d.evaluation import gallery
from sam_med2d.evaluation.evaluate import Scored
from sam_med2d.evaluation.gallery import shown_in_gallery, tiles_of
from sam_med2d.evaluation.rows import (
    Part,
    rows_of,
    unscored_row,
    with_distances,
)
from sam_med2d.image_files import png_of, write_png
from sam_med2d.prompts.files import record_prompts


def record(
    args: argparse.Namespace,
    folder: Path,
    rank: int,
    dataset: TestingDataset,
    own: range,
    scores: Iterable[tuple[Batch, list[Scored]]],
    describer: Describer,
    strategy: str,
) -> float:
    """Write this process's part of the rows, prompts and predictions, image by image. -> seconds, without drawing.

    own: the numbers of its images, in the order of `scores`.
    """
    key_of = file_keys(mask for _, masks in dataset.index for mask in masks)
    picture_of = file_keys(image for image, _ in dataset.index)
    part = Part(folder, rank)
    kept = gallery.Predictions(folder, rank) if args.report else None
    shown = shown_in_gallery(args.modes)
    started, drawing_time = time.monotonic(), 0.0
    with tqdm(total=len(own), unit="image", dynamic_ncols=True, disable=rank > 0) as bar:
        for number, (batch, image, scored, distances) in zip(own, with_distances(scores, args)):
            name, masks = dataset.index[number]
            described = {mask: describer.describe(name, mask) for mask in masks}
            skipped = [mask for mask in masks if mask in batch.skipped]
            by_mode = [rows_of(one, name, described, strategy, d) for one, d in zip(scored, distances)]
            rows = [row for rows_of_object in zip(*by_mode) for row in rows_of_object]
            rows += [unscored_row(name, mask, described, mode) for mask in skipped for mode in args.modes]
            prompts: dict = {key_of(mask): {} for mask in skipped}
            for one in scored:
                record_prompts(prompts, one.mode, [*map(key_of, one.names)], one.prompts)
                if kept and one.mode in shown:
                    kept.add(one, batch.content[image].tolist())
            part.add(number, rows, prompts)
            if args.save_pred:
                paused = time.monotonic()
                for one in scored:
                    save_predictions(folder, batch, one, dataset, key_of, picture_of)
                drawing_time += time.monotonic() - paused
            bar.update()
    part.close()
    if kept:
        kept.close()
    return time.monotonic() - started - drawing_time


def file_keys(paths: Iterable[str]) -> Callable[[str], str]:
    """-> path of the index -> its file name, or the path itself where two files have one name."""
    names = Counter(map(os.path.basename, paths))
    shared = {name for name, count in names.items() if count > 1}
    return lambda path: path if os.path.basename(path) in shared else os.path.basename(path)


def save_predictions(
    folder: Path,
    batch: Batch,
    scored: Scored,
    dataset: TestingDataset,
    key_of: Callable[[str], str],
    picture_of: Callable[[str], str],
) -> None:
    """Masks as 0/255 PNG at the original size, and one overlay an image: a tile an object, prompts drawn."""
    for name, mask in zip(scored.names, scored.masks):
        write_png(png_of(folder / "masks" / scored.mode.name, key_of(name)), mask.numpy())
    overlay = png_of(folder / "overlays" / scored.mode.name, picture_of(batch.image_names[scored.image]))
    write_png(overlay, drawing.grid(tiles_of(batch, scored, dataset.index)))
