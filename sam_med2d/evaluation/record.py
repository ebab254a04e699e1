"""One process's share of a test run, written image by image: rows, prompts and predictions."""

import argparse
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from sam_med2d import drawing
from sam_med2d.data.batch import Batch
from sam_med2d.data.datasets import TestingDataset
from sam_med2d.data.description import Describer
from sam_med2d.data.geometry import by_centres
from sam_med2d.data.index import Index
from sam_med2d.data.vanishing import Vanished
from sam_med2d.evaluation import metrics, surface
from sam_med2d.evaluation.beside import Beside, with_surfaces
from sam_med2d.evaluation.cases import KEYS, Pool
from sam_med2d.evaluation.columns import CLICKS, METRICS, SURFACES, computed_from
from sam_med2d.evaluation.evaluate import Scored
from sam_med2d.evaluation.gallery import Predictions, shown_in_gallery, tiles_of
from sam_med2d.evaluation.left_out import ZERO
from sam_med2d.evaluation.parts import Measured, Part
from sam_med2d.evaluation.rows import ALONE, EMPTY, SCORED, VANISHED, Row
from sam_med2d.evaluation.surface import Spacing, Tolerance
from sam_med2d.image_files import write_png
from sam_med2d.outputs import distinct, place, png_name
from sam_med2d.prompts.files import record_prompts
from sam_med2d.prompts.modes import SWAPPED, Mode


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
    places = places_of(dataset.index) if args.save_pred else Places({}, {})
    colours = drawing.class_colours(describer.labels(dataset.index, "class")[0]) if args.save_pred else {}
    part = Part(folder, rank)
    paper = by_centres(args.frame, args.protocol)
    kept = Predictions(folder, rank, paper) if args.report else None
    shown = shown_in_gallery(args.modes)
    asked = [name for name in computed_from(SURFACES) if name in args.metrics]
    tolerance = Tolerance.of(args.nsd_tolerance)
    measured_beside = with_surfaces(scores, describer, asked, tolerance, max(1, args.num_workers))
    started, drawing_time = time.monotonic(), 0.0
    with tqdm(total=len(own), unit="image", dynamic_ncols=True, disable=rank > 0) as bar:
        for number, (batch, image, scored, measured) in zip(own, measured_beside):
            name, masks = dataset.index[number]
            described = {mask: describer.describe(name, mask) for mask in masks}
            skipped = [mask for mask in masks if mask in batch.skipped]
            by_mode = [rows_of(one, name, described, strategy, b) for one, b in zip(scored, measured)]
            pools = [pool for b in measured for pool in b.pools]
            rows = [row for rows_of_object in zip(*by_mode) for row in rows_of_object]
            size = batch.original_sizes[image]
            for mask in skipped:
                found = what_is_known(batch.vanished.get(mask), size, args)
                rows += [
                    {"image": name, "mask": mask, **described[mask], **mode_columns(mode, ""), **found}
                    for mode in args.modes
                ]
            pools += unfound(rows) if args.vanished == ZERO else []
            prompts: dict = {key_of(mask): {} for mask in skipped}
            for one in scored:
                record_prompts(prompts, one.mode, [*map(key_of, one.names)], one.prompts, one.drawings)
                if kept and one.mode in shown:
                    kept.add(one, batch.content[image].tolist())
            frames = [batch.vanished[mask].shown_from for mask in skipped if mask in batch.vanished]
            coarseness = coarseness_of(size, batch.content[image].tolist(), tolerance, describer.spacing(masks[0]))
            part.add(Measured(number, rows, prompts, pools, max(frames, default=0), coarseness))
            if args.save_pred:
                paused = time.monotonic()
                classes = {mask: str(described[mask]["class"] or "") for mask in masks}
                for one in scored:
                    save_predictions(folder, batch, one, dataset, places, paper, (classes, colours))
                drawing_time += time.monotonic() - paused
            bar.update()
    part.close()
    if kept:
        kept.close()
    return time.monotonic() - started - drawing_time


def unfound(rows: list[Row]) -> list[Pool]:
    """What objects that vanished, and count as not found, add to their cases: their volume, but no outline."""
    gone = [row for row in rows if row["status"] == VANISHED and row["case"]]
    return [{**{key: row[key] for key in KEYS}, "true_volume": row["true_area"], "objects": 0} for row in gone]


def coarseness_of(size: tuple[int, int], content: list[int], tolerance: Tolerance, spacing: Spacing | None) -> float:
    """How many tolerances of NSD a pixel of the frame is wide; 0 where the tolerance is 0, as then nothing is meant.

    size: of the picture, (height, width); content: top, left, height, width of it in the frame.
    """
    within = tolerance.pixels(*size, spacing)
    return max(size[0] / content[2], size[1] / content[3]) / within if within else 0.0


def clicks_until(dice_by_click: list[float]) -> Row:
    """Metrics of clicks: after how many clicks Dice first reached the level of each, None where it never did."""
    return {
        name: next((n for n, dice in enumerate(dice_by_click, start=1) if dice >= METRICS[name].level / 100), None)
        for name in computed_from(CLICKS)
    }


def rows_of(scored: Scored, image: str, described: dict[str, Row], strategy: str, beside: Beside) -> list[Row]:
    """The rows of one image's objects in one mode. strategy: of iterative clicks."""
    mode = scored.mode
    if mode.scored == SWAPPED and len(scored.names) == 1:
        mask = scored.names[0]
        return [{"image": image, "mask": mask, **described[mask], **mode_columns(mode, ""), "status": ALONE}]
    areas = zip(scored.truth.sum(dim=(1, 2)).tolist(), scored.masks.sum(dim=(1, 2)).tolist())
    return [
        {
            "image": image,
            "mask": mask,
            **described[mask],
            **mode_columns(mode, strategy),
            "true_area": true_area,
            "image_area": scored.truth[0].numel(),
            "predicted_area": predicted_area,
            **{name: values[i] for name, values in scored.values.items()},
            **beside.distances[i],
            "predicted_iou": scored.predicted_iou[i],
            **({} if scored.dice_by_click is None else clicks_until(scored.dice_by_click[i].tolist())),
            "status": SCORED,
        }
        for i, (mask, (true_area, predicted_area)) in enumerate(zip(scored.names, areas))
    ]


def what_is_known(vanished: Vanished | None, size: tuple[int, int], args: argparse.Namespace) -> Row:
    """The columns of an object for which no model was asked, as there was nothing to make prompts from.

    vanished: None for a mask that is empty; size: of the picture, (height, width). An object that vanished in the frame
    is one that was not found where args.vanished says so.
    """
    if vanished is None:
        return {"status": EMPTY}
    row: Row = {"true_area": vanished.area, "image_area": math.prod(size), "status": VANISHED}
    if args.vanished != ZERO:
        return row
    asked = [name for name in computed_from(SURFACES) if name in args.metrics]
    return row | {"predicted_area": 0, **metrics.metrics_of_nothing(), **surface.metrics_of_nothing(*size, asked)}


def mode_columns(mode: Mode, strategy: str) -> Row:
    corrected = mode.start == "click" or (mode.start == "box" and mode.clicks and not mode.strokes)
    return {
        "mode": mode.name,
        "strategy": strategy if corrected else None,
        "clicks": mode.clicks,
        "box": int(mode.start == "box"),
    }


def file_keys(paths: Iterable[str]) -> Callable[[str], str]:
    """-> path of the index -> its file name, or the path itself where two files have one name."""
    names = Counter(map(os.path.basename, paths))
    shared = {name for name, count in names.items() if count > 1}
    return lambda path: path if os.path.basename(path) in shared else os.path.basename(path)


class Places(NamedTuple):
    """Where predictions lie below the folder of their mode: {mask or image of the index: path}."""

    masks: dict[str, str]
    overlays: dict[str, str]


def places_of(index: Index) -> Places:
    """By file name, or by the whole path where two files have one name; no two in one place."""
    key_of = file_keys(mask for _, masks in index for mask in masks)
    picture_of = file_keys(image for image, _ in index)
    return Places(
        distinct({mask: png_name(key_of(mask)) for _, masks in index for mask in masks}),
        distinct({image: png_name(picture_of(image)) for image, _ in index}),
    )


def save_predictions(
    folder: Path,
    batch: Batch,
    scored: Scored,
    dataset: TestingDataset,
    places: Places,
    paper: bool,
    classes: tuple[dict[str, str], dict[str, drawing.Colour]],
) -> None:
    """Masks as 0/255 PNG at the original size, and one overlay an image: a tile an object, prompts drawn, a legend.

    classes: of each mask, and their colours, none of which is there where no class is known.
    """
    of_mask, colours = classes
    for name, mask in zip(scored.names, scored.masks):
        write_png(place(folder, f"masks/{scored.mode.name}/{places.masks[name]}"), mask.numpy())
    overlay = f"overlays/{scored.mode.name}/{places.overlays[batch.image_names[scored.image]]}"
    own = {name: colours[of_mask[name]] for name in scored.names} if colours else {}
    legend = {name: colour for name, colour in colours.items() if name in {of_mask[mask] for mask in scored.names}}
    tiles = tiles_of(batch, scored, dataset.index, paper, own)
    write_png(place(folder, overlay), drawing.with_legend(drawing.grid(tiles), legend))
