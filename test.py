"""Score a model on a test set: every object in each prompt mode, each image encoded once. Tables, rows and a report.

    python test.py --model_type vit_t --sam_checkpoint pretrain_model/vit_t_phantoms.safetensors --image_size 128 \
        --encoder_adapter False                                 # seconds on a CPU, on the data in data_demo/
    python test.py --sam_checkpoint pretrain_model/sam-med2d_b.pth --data_path data_demo --save_pred
    python test.py --boxes_prompt False --iter_point 5          # one mode: five iterative clicks
    python test.py --prompt_modes bbox bbox+3pts mask 20pts --box_jitter 2 5 10 --click_strategy center
    python test.py --prompt_path workdir/sammed/prompts.json    # with the prompts of an earlier run
    torchrun --nproc_per_node 2 test.py ...                     # the images shared out, the same rows

Prompt modes: modes.py. What every number means: docs/evaluation.md.
Leaves in {work_dir}/{run_name}: report.html, rows.csv (an object and mode a line), results.json (tables and what made
them), prompts.json (for --prompt_path) and, with --save_pred, masks/{mode}/ at the original size and overlays/{mode}/.
"""

import argparse
import json
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from torch.utils.data import Subset
from tqdm import tqdm

from sam_med2d import drawing
from sam_med2d.data.datasets import Batch, DataError, Index, TestingDataset, test_loader
from sam_med2d.evaluation import gallery, report
from sam_med2d.evaluation import summary as tables
from sam_med2d.evaluation.evaluate import CLICK_STRATEGIES, Scored, SimulatedAnnotator, evaluate
from sam_med2d.evaluation.metrics import METRICS
from sam_med2d.evaluation.rows import SCORED, Describer, Part, Row, clicks_until, merged, write_rows
from sam_med2d.evaluation.surface import surface_metrics
from sam_med2d.prompts.files import FrozenPrompts, record_prompts, write_prompts
from sam_med2d.prompts.modes import DEFAULT_MODES, Mode, parse_mode
from sam_med2d.provenance import provenance
from sam_med2d.utils import (
    Processes,
    UsageError,
    add_flag,
    best_device,
    check_numbers,
    finish,
    join_processes,
    seed_everything,
)
from segment_anything import Sam, sam_model_registry
from segment_anything.checkpoint import CheckpointError, load_checkpoint
from segment_anything.files import replacing

DEFAULT_CHECKPOINT = "pretrain_model/sam-med2d_b.pth"
SURFACE_METRICS = ("nsd", "hd95")
WAITING = 8  # images a worker, whose surface metrics are being computed while the model goes on


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    group = parser.add_argument_group("run")
    group.add_argument("--work_dir", default="workdir")
    group.add_argument("--run_name", default="sammed")
    group.add_argument("--device", help="default: cuda, mps or cpu, the best there is")
    group.add_argument("--seed", type=int, default=0, help="of the clicks, the jitter and the bootstrap")
    add_flag(group, "--save_pred", False, "write masks at the original size, and overlays")
    add_flag(group, "--report", True, "write report.html")
    group.add_argument("--rows_format", choices=["csv", "parquet"], default="csv")

    group = parser.add_argument_group("data")
    group.add_argument("--data_path", default="data_demo", help="folder with label2image_test.json")
    group.add_argument("--image_size", type=int, default=256)
    group.add_argument(
        "--batch_size", type=int, default=1, help="images a step; on a CPU they go through the model one by one"
    )
    group.add_argument(
        "--num_workers",
        type=int,
        default=min(4, (os.cpu_count() or 1) - 1),
        help="processes that read, and threads that compute surface metrics",
    )
    group.add_argument(
        "--metadata", help="table of case, modality, class ... a mask; default: metadata.csv of the data, if there"
    )
    group.add_argument(
        "--class_names",
        help="names of SA-Med2D-20M's class numbers; default: SAMed2D_v1_class_mapping_id.json of the data, if there",
    )

    group = parser.add_argument_group("model")
    group.add_argument("--model_type", default="vit_b", choices=[*sam_model_registry])
    group.add_argument("--sam_checkpoint", default=DEFAULT_CHECKPOINT, help="any SAM or SAM-Med2D weights")
    add_flag(group, "--encoder_adapter", True, "False on a file with adapters leaves them out: the paper's SAM-Med2D*")
    add_flag(group, "--multimask", True, "the best of outputs 1 to 3; False: output 0")
    add_flag(group, "--use_amp", False, "mixed precision")

    group = parser.add_argument_group("prompts and scores")
    group.add_argument(
        "--prompt_modes",
        nargs="+",
        metavar="MODE",
        help="bbox, bbox_jitter5, iterative clicks 1pt 3pts ..., bbox+2pts, clicks at once 3shot ..., mask; "
        f"default: {' '.join(DEFAULT_MODES)}",
    )
    group.add_argument(
        "--box_jitter",
        nargs="+",
        type=int,
        default=[],
        metavar="PIXELS",
        help="also score boxes whose sides are moved by up to so many pixels of the frame, a mode each",
    )
    group.add_argument(
        "--click_strategy",
        choices=CLICK_STRATEGIES,
        default="random",
        help="iterative clicks: a random wrong pixel, or the centre of the largest error",
    )
    add_flag(group, "--boxes_prompt", None, "ask for the one mode bbox; False: for one mode of clicks")
    group.add_argument("--iter_point", type=int, help="ask for one mode of so many iterative clicks")
    group.add_argument("--point_num", type=int, help="ask for one mode of so many clicks at once")
    group.add_argument("--prompt_path", help="prompts file of an earlier run, ours or the original's")
    group.add_argument(
        "--metrics", nargs="+", default=[*METRICS, *SURFACE_METRICS], choices=[*METRICS, *SURFACE_METRICS]
    )
    group.add_argument(
        "--nsd_tolerance", type=float, default=2.0, metavar="PIXELS", help="of the normalised surface Dice"
    )
    args = parser.parse_args(argv)
    try:
        args.modes = modes_asked_for(args)
    except ValueError as error:
        parser.error(str(error))
    if not args.nsd_tolerance >= 0:
        parser.error("--nsd_tolerance must be at least 0")
    check_numbers(parser, args, positive=("batch_size", "image_size"), not_negative=("seed", "num_workers"))
    return args


def modes_asked_for(args: argparse.Namespace) -> list[Mode]:
    """Raises ValueError where the flags contradict each other."""
    if any(pixels < 1 for pixels in args.box_jitter):
        raise ValueError("--box_jitter takes pixels, at least 1; the exact box is the mode bbox")
    jittered = [parse_mode(f"bbox_jitter{pixels}") for pixels in args.box_jitter]
    return [*dict.fromkeys(named_modes(args) + jittered)]


def named_modes(args: argparse.Namespace) -> list[Mode]:
    single = {name for name in ("boxes_prompt", "iter_point", "point_num") if getattr(args, name) is not None}
    if args.prompt_modes:
        if single:
            raise ValueError(f"--prompt_modes already says which modes: leave out --{' --'.join(sorted(single))}")
        return [parse_mode(name) for name in args.prompt_modes]
    if not single:
        return [parse_mode(name) for name in DEFAULT_MODES]
    for name in ("iter_point", "point_num"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ValueError(f"--{name} must be at least 1")
    iterative, at_once = args.iter_point or 1, args.point_num or 1
    if args.boxes_prompt:
        if max(iterative, at_once) > 1:
            raise ValueError("--boxes_prompt True asks for the box alone: leave out --iter_point and --point_num")
        return [parse_mode("bbox")]
    if iterative > 1 and at_once > 1:
        raise ValueError("--iter_point and --point_num ask for two modes: give one, or name both in --prompt_modes")
    # a single click is the same placed at once or iteratively
    return [parse_mode(f"{at_once}shot" if at_once > 1 else f"{iterative}pts")]


def main(argv: list[str] | None = None) -> Path:
    """-> the folder of the run."""
    args = parse_args(argv)
    try:
        return run(args, join_processes())
    except (DataError, CheckpointError, UsageError) as error:
        finish(error)


def run(args: argparse.Namespace, processes: Processes) -> Path:
    device = best_device(args.device, processes.local_rank)
    seed_everything(args.seed)
    say = print if processes.rank == 0 else lambda *_: None

    # everything that can be known to be wrong is found before the model runs
    dataset = TestingDataset(args.data_path, args.image_size, "test")
    masks = [mask for _, masks in dataset.index for mask in masks]
    annotator = SimulatedAnnotator(args.seed, args.click_strategy)
    if args.prompt_path:
        annotator = FrozenPrompts(args.prompt_path, args.image_size)
        annotator.check(masks, args.modes)
    describer = Describer(args.data_path, args.metadata, args.class_names)
    describer.check(masks)
    model = build_model(args, say).to(device)
    if dataset.index.images_without_masks:
        say(f"{dataset.index.images_without_masks} image(s) of the index have no mask and are left out")

    folder = Path(args.work_dir) / args.run_name
    folder.mkdir(parents=True, exist_ok=True)
    own = range(processes.rank, len(dataset), processes.count)  # a share of the images
    loader = test_loader(Subset(dataset, own), args.batch_size, args.num_workers)
    scores = evaluate(
        model, loader, args.modes, device=device, annotator=annotator, multimask=args.multimask, use_amp=args.use_amp
    )
    seconds = record(args, folder, processes.rank, dataset, own, scores, describer, annotator.strategy)
    processes.wait()
    if processes.rank == 0:
        summarise(args, folder, dataset.index, device, processes.count, annotator.strategy, len(dataset) / seconds)
    return folder


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
                record_prompts(prompts, one, key_of)
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


def build_model(args: argparse.Namespace, say: Callable) -> Sam:
    if args.sam_checkpoint == DEFAULT_CHECKPOINT and not Path(DEFAULT_CHECKPOINT).exists():
        raise CheckpointError(
            f"{DEFAULT_CHECKPOINT}: not found. Download it (sam-med2d_b.pth, from the SAM-Med2D repository), "
            "or name your own weights with --sam_checkpoint"
        )
    model = sam_model_registry[args.model_type](image_size=args.image_size, encoder_adapter=args.encoder_adapter)
    say(load_checkpoint(model, args.sam_checkpoint))
    return model


# ---------------------------------------------------------------- rows


Distances = list[tuple[float | None, float | None]]  # of each object: normalised surface Dice, Hausdorff distance


def with_distances(
    scores: Iterable[tuple[Batch, list[Scored]]],
    args: argparse.Namespace,
) -> Iterator[tuple[Batch, int, list[Scored], list[Distances]]]:
    """Image by image, in order: its batch and place there, its scores mode by mode, and their surface metrics.

    These are computed by threads while the model goes on; only so many images wait for theirs.
    """
    asked = set(SURFACE_METRICS) & set(args.metrics)

    def distances(scored: Scored) -> Distances:
        if not asked:
            return [(None, None)] * len(scored.names)
        pairs = zip(scored.masks.numpy(), scored.truth.numpy())
        found = [surface_metrics(predicted, truth, args.nsd_tolerance) for predicted, truth in pairs]
        return [tuple(value if name in asked else None for name, value in zip(SURFACE_METRICS, both)) for both in found]

    def finished(batch: Batch, image: int, scored: list[Scored], futures: list[Future]):
        return batch, image, scored, [future.result() for future in futures]

    threads = max(1, args.num_workers)
    waiting: deque = deque()
    with ThreadPoolExecutor(threads) as pool:
        for batch, scored in scores:
            for image in range(len(batch.images)):
                here = [one for one in scored if one.image == image]
                waiting.append((batch, image, here, [pool.submit(distances, one) for one in here]))
            while len(waiting) > WAITING * threads:
                yield finished(*waiting.popleft())
        while waiting:
            yield finished(*waiting.popleft())


def rows_of(scored: Scored, image: str, described: dict[str, Row], strategy: str, distances: Distances) -> list[Row]:
    """The rows of one image's objects in one mode. strategy: of iterative clicks."""
    mode = scored.mode
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
            "nsd": nsd,
            "hd95": hd95,
            "predicted_iou": scored.predicted_iou[i],
            **({} if scored.dice_by_click is None else clicks_until(scored.dice_by_click[i].tolist())),
            "status": SCORED,
        }
        for i, (mask, (true_area, predicted_area), (nsd, hd95)) in enumerate(zip(scored.names, areas, distances))
    ]


def unscored_row(image: str, mask: str, described: dict[str, Row], mode: Mode) -> Row:
    """Of a mask that is empty, or emptied by resizing it to the frame: it has no prompts, so nothing to score."""
    return {"image": image, "mask": mask, **described[mask], **mode_columns(mode, ""), "status": "empty truth"}


def mode_columns(mode: Mode, strategy: str) -> Row:
    corrected = mode.start == "click" or (mode.start == "box" and mode.clicks)
    return {
        "mode": mode.name,
        "strategy": strategy if corrected else None,
        "clicks": mode.clicks,
        "box": int(mode.start == "box"),
    }


# ---------------------------------------------------------------- what is made from the rows


def summarise(
    args: argparse.Namespace,
    folder: Path,
    index: Index,
    device: torch.device,
    processes: int,
    strategy: str,
    speed: float,
) -> None:
    """Merge the parts of all processes; print and write tables, provenance and report."""
    write_rows(folder / f"rows.{args.rows_format}", (row for _, rows, _ in merged(folder, processes) for row in rows))
    (folder / f"rows.{'csv' if args.rows_format == 'parquet' else 'parquet'}").unlink(
        missing_ok=True
    )  # of an earlier run
    with replacing(folder / "prompts.json") as path, open(path, "w", encoding="utf-8") as file:
        write_prompts(
            file,
            {"image_size": args.image_size, "click_strategy": strategy},
            (item for _, _, prompts in merged(folder, processes) for item in prompts.items()),
        )

    rows = tables.read_rows(folder)
    unscored = tables.unscored(rows)
    objects = len(rows) // len(args.modes) - len(unscored)
    if not objects:
        raise DataError(f"{args.data_path}: every mask of its test split is empty; correct the index")
    found = tables.all_tables(rows, seed=args.seed)
    results = {
        **{metric: mean_by_mode(found["overall"], metric) for metric in args.metrics},
        "objects": objects,
        "images": len(index),
        "unscored": len(unscored),
        "images_per_second": speed,
        "seed": args.seed,
        "model_type": args.model_type,
        "processes": processes,
        **provenance(
            device,
            {
                "weights": args.sam_checkpoint,
                "data": index.source,
                **({"prompts": args.prompt_path} if args.prompt_path else {}),
            },
        ),
        "flags": {name: value for name, value in vars(args).items() if name != "modes"},
        "tables": {name: tables.to_records(table) for name, table in found.items()},
    }
    with replacing(folder / "results.json") as path:
        path.write_text(json.dumps(results, indent=1), encoding="utf-8")
    for name in ("overall", "noc", "dataset"):
        if name in found and len(found[name]):
            print(f"\n{tables.format_table(found[name])}")
    print(
        f"\n{objects} objects in {len(index)} images, {speed:.1f} images/s"
        + (f"; {len(unscored)} empty mask(s) skipped, such as {unscored['mask'].iloc[0]}" if len(unscored) else "")
    )
    if args.report:
        choices = report.choose_gallery(rows, [mode.name for mode in shown_in_gallery(args.modes)])
        tiles = [
            report.GalleryItem(
                choice.class_name,
                choice.rank,
                choice.mode,
                f"{Path(choice.mask).stem}  Dice {choice.dice:.3f}",
                gallery.draw(folder, processes, index, choice.image, choice.mask, choice.mode),
            )
            for choice in tqdm(choices, desc="report", unit="object", leave=False, dynamic_ncols=True)
        ]
        report.write_report(folder, rows, results, tiles, found)
    for part in folder.glob("part_*"):  # also of an earlier run that was ended
        part.unlink()
    print(f"rows, prompts, results{' and report' * args.report}: {folder}")


def shown_in_gallery(modes: list[Mode]) -> list[Mode]:
    """The first mode, and of those of iterative clicks the one with the most."""
    clicked = [mode for mode in modes if mode.start == "click"]
    return list(dict.fromkeys([modes[0], max(clicked, key=lambda mode: mode.clicks, default=modes[0])]))


def mean_by_mode(overall: pd.DataFrame, metric: str) -> dict[str, float]:
    own = overall[overall["metric"] == metric]
    return dict(zip(own["mode"], own["mean"].tolist()))


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
        write_image(folder / "masks" / scored.mode.name, key_of(name), mask.numpy().astype(np.uint8) * 255)
    write_image(
        folder / "overlays" / scored.mode.name,
        picture_of(batch.image_names[scored.image]),
        drawing.grid(drawing.tiles_of(batch, scored, dataset.index)),
    )


def write_image(folder: Path, name: str, image: np.ndarray) -> None:
    """As PNG, under its own name; a name with another ending gets .png added. imwrite would fail on some silently."""
    path = folder / (name if name.lower().endswith(".png") else f"{name}.png").lstrip("./")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", image)[1].tobytes())


if __name__ == "__main__":
    main()
