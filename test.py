"""Score a model on a test set: Dice and IoU of every object for each prompt mode, each image encoded once.

    python test.py --model_type vit_t --sam_checkpoint pretrain_model/vit_t_phantoms.safetensors --image_size 128 \
        --encoder_adapter False                                 # seconds on a CPU, on the data in data_demo/
    python test.py --sam_checkpoint pretrain_model/sam-med2d_b.pth --data_path data_demo --save_pred
    python test.py --boxes_prompt False --iter_point 5          # one mode: five iterative clicks
    python test.py --prompt_path workdir/sammed/prompts.json    # with the prompts of an earlier run

Leaves in {work_dir}/{run_name}: rows.csv (a line an object and mode), results.json (the table and what made it),
prompts.json (for --prompt_path) and, with --save_pred, masks/{mode}/ at the original size and overlays/{mode}/.
"""

import argparse
import csv
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

import drawing
from DataLoader import Batch, DataError, TestingDataset, test_loader
from evaluation import (DEFAULT_MODES, IMAGE_SIZE, FrozenPrompts, Mode, Row, Scored, evaluate, mean_by_mode, parse_mode,
                        record_prompts)
from metrics import METRICS
from segment_anything import sam_model_registry
from segment_anything.checkpoint import CheckpointError, load_checkpoint
from segment_anything.files import replacing
from utils import UsageError, add_flag, best_device, check_numbers, finish, seed_everything

DEFAULT_CHECKPOINT = "pretrain_model/sam-med2d_b.pth"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    group = parser.add_argument_group("run")
    group.add_argument("--work_dir", default="workdir")
    group.add_argument("--run_name", default="sammed")
    group.add_argument("--device", help="default: cuda, mps or cpu, the best there is")
    group.add_argument("--seed", type=int, default=0, help="of the clicks")
    add_flag(group, "--save_pred", False, "write masks at the original size, and overlays")

    group = parser.add_argument_group("data")
    group.add_argument("--data_path", default="data_demo", help="folder with label2image_test.json")
    group.add_argument("--image_size", type=int, default=256)
    group.add_argument("--batch_size", type=int, default=1, help="images a step")
    group.add_argument("--num_workers", type=int, default=min(4, (os.cpu_count() or 1) - 1))

    group = parser.add_argument_group("model")
    group.add_argument("--model_type", default="vit_b", choices=[*sam_model_registry])
    group.add_argument("--sam_checkpoint", default=DEFAULT_CHECKPOINT, help="any SAM or SAM-Med2D weights")
    add_flag(group, "--encoder_adapter", True, "False on a file with adapters leaves them out: the paper's SAM-Med2D*")
    add_flag(group, "--multimask", True, "the best of outputs 1 to 3; False: output 0")
    add_flag(group, "--use_amp", False, "mixed precision")

    group = parser.add_argument_group("prompts and scores")
    group.add_argument("--prompt_modes", nargs="+", metavar="MODE",
                       help=f"bbox, iterative clicks 1pt 3pts ..., clicks at once 3shot ...; default: {' '.join(DEFAULT_MODES)}")
    add_flag(group, "--boxes_prompt", None, "ask for the one mode bbox; False: for one mode of clicks")
    group.add_argument("--iter_point", type=int, help="ask for one mode of so many iterative clicks")
    group.add_argument("--point_num", type=int, help="ask for one mode of so many clicks at once")
    group.add_argument("--prompt_path", help="prompts file of an earlier run, ours or the original's")
    group.add_argument("--metrics", nargs="+", default=["dice", "iou"], choices=[*METRICS])
    args = parser.parse_args(argv)
    try:
        args.modes = modes_asked_for(args)
    except ValueError as error:
        parser.error(str(error))
    check_numbers(parser, args, positive=("batch_size", "image_size"), not_negative=("seed", "num_workers"))
    return args


def modes_asked_for(args: argparse.Namespace) -> list[Mode]:
    """Raises ValueError where the flags contradict each other."""
    single = {name for name in ("boxes_prompt", "iter_point", "point_num") if getattr(args, name) is not None}
    if args.prompt_modes:
        if single:
            raise ValueError(f"--prompt_modes already says which modes: leave out --{' --'.join(sorted(single))}")
        return [parse_mode(name) for name in dict.fromkeys(args.prompt_modes)]
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


def main(argv: list[str] | None = None) -> list[Row]:
    args = parse_args(argv)
    try:
        return run(args)
    except (DataError, CheckpointError, UsageError) as error:
        finish(error)


def run(args: argparse.Namespace) -> list[Row]:
    """-> the rows, one an object and mode."""
    device = best_device(args.device)
    seed_everything(args.seed)
    dataset = TestingDataset(args.data_path, args.image_size, "test")
    loader = test_loader(dataset, args.batch_size, args.num_workers)
    frozen = FrozenPrompts(args.prompt_path, args.image_size) if args.prompt_path else None
    if frozen:
        frozen.check([mask for _, masks in dataset.index for mask in masks], args.modes)
    if not Path(args.sam_checkpoint).exists() and args.sam_checkpoint == DEFAULT_CHECKPOINT:
        raise CheckpointError(f"{DEFAULT_CHECKPOINT}: not found. Download it (sam-med2d_b.pth, from the SAM-Med2D repository), "
                              "or name your own weights with --sam_checkpoint")
    model = sam_model_registry[args.model_type](image_size=args.image_size, encoder_adapter=args.encoder_adapter)
    print(load_checkpoint(model, args.sam_checkpoint))
    model.to(device)
    if dataset.index.images_without_masks:
        print(f"{dataset.index.images_without_masks} image(s) of the index have no mask and are left out")

    folder = Path(args.work_dir) / args.run_name
    folder.mkdir(parents=True, exist_ok=True)
    key_of = file_keys(mask for _, masks in dataset.index for mask in masks)
    picture_of = file_keys(image for image, _ in dataset.index)
    rows: list[Row] = []
    skipped: list[str] = []
    prompts: dict = {IMAGE_SIZE: args.image_size}
    images, started, drawing_time = 0, time.monotonic(), 0.0
    with tqdm(total=len(dataset), unit="image", dynamic_ncols=True) as bar:
        for batch, scored in evaluate(model, loader, args.modes, device=device, seed=args.seed, multimask=args.multimask,
                                      use_amp=args.use_amp, frozen=frozen):
            for one in scored:
                rows += one.rows
                record_prompts(prompts, one, key_of)
                if args.save_pred:
                    paused = time.monotonic()
                    save_predictions(folder, batch, one, dataset, key_of, picture_of)
                    drawing_time += time.monotonic() - paused
            skipped += batch.skipped
            images += len(batch.images)
            bar.update(len(batch.images))
    speed = images / (time.monotonic() - started - drawing_time)
    prompts |= {key_of(mask): {} for mask in skipped}
    if not rows:
        raise DataError(f"{args.data_path}: every mask of its test split is empty; correct the index")

    table = {metric: mean_by_mode(rows, metric) for metric in args.metrics}
    print(format_table(table, [mode.name for mode in args.modes]))
    print(f"{len(rows) // len(args.modes)} objects in {images} images, {speed:.1f} images/s"
          + (f"; {len(skipped)} empty mask(s) skipped, such as {skipped[0]}" if skipped else ""))
    with replacing(folder / "rows.csv") as path, open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(Row._fields)
        writer.writerows(rows)
    with replacing(folder / "prompts.json") as path:
        path.write_text(json.dumps(prompts, indent=1), encoding="utf-8")
    with replacing(folder / "results.json") as path:
        path.write_text(json.dumps({
            **table, "objects": len(rows) // len(args.modes), "images": images, "skipped": skipped,
            "images_per_second": speed, "flags": {k: v for k, v in vars(args).items() if k != "modes"},
            "device": str(device), "torch": torch.__version__,
        }, indent=1), encoding="utf-8")
    print(f"rows, prompts and results: {folder}")
    return rows


def file_keys(paths: Iterable[str]) -> Callable[[str], str]:
    """-> path of the index -> its file name, or the path itself where two files have one name."""
    names = Counter(map(os.path.basename, paths))
    shared = {name for name, count in names.items() if count > 1}
    return lambda path: path if os.path.basename(path) in shared else os.path.basename(path)


def save_predictions(folder: Path, batch: Batch, scored: Scored, dataset: TestingDataset, key_of: Callable[[str], str],
                     picture_of: Callable[[str], str]) -> None:
    """Masks as 0/255 PNG at the original size, and one overlay an image: a tile an object, prompts drawn."""
    for row, mask in zip(scored.rows, scored.masks):
        write_image(folder / "masks" / scored.mode.name, key_of(row.mask), mask.numpy().astype(np.uint8) * 255)
    write_image(folder / "overlays" / scored.mode.name, picture_of(batch.image_names[scored.image]),
                drawing.grid(drawing.tiles_of(batch, scored, dataset.index)))


def write_image(folder: Path, name: str, image: np.ndarray) -> None:
    """As PNG, under its own name; a name with another ending gets .png added. imwrite would fail on some silently."""
    path = folder / (name if name.lower().endswith(".png") else f"{name}.png").lstrip("./")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", image)[1].tobytes())


def format_table(table: dict[str, dict[str, float]], modes: list[str]) -> str:
    """Rows modes, columns metrics, in per cent."""
    lines = [f"{'':8}" + "".join(f"{name.title() if name != 'iou' else 'IoU':>9}" for name in table)]
    lines += [f"{mode:8}" + "".join(f"{100 * values[mode]:9.2f}" for values in table.values()) for mode in modes]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
