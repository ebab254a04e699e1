"""Score a model on a test set: every object in each prompt mode, each image encoded once. Tables, rows and a report.

    python test.py --sam_checkpoint small                       # seconds on a CPU, on the data in data_demo/
    python test.py --sam_checkpoint pretrain_model/sam-med2d_b.pth --data_path data_demo --save_pred
    python test.py --boxes_prompt False --iter_point 5          # one mode: five iterative clicks
    python test.py --prompt_modes bbox bbox+3pts mask 20pts --box_jitter 2 5 10 --click_strategy center
    python test.py --prompt_path workdir/sammed/prompts.json --run_name again       # with the prompts of an earlier run
    torchrun --nproc_per_node 2 test.py ...                     # the images shared out, the same rows

Prompt modes: sam_med2d/prompts/modes.py. What every number means: docs/evaluation.md.
Leaves in {work_dir}/{run_name}: report.html, rows.csv (an object and mode a line), cases.csv (a case and class a line,
where cases are known), results.json (tables and what made them), prompts.json (for --prompt_path) and, with
--save_pred, masks/{mode}/ at the original size and overlays/{mode}/.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pandas as pd
import torch
from torch.utils.data import Dataset, Subset
from tqdm import tqdm

from sam_med2d.cli import Parser, add_flag, check_numbers, ending_in_one_line
from sam_med2d.data.datasets import TestingDataset, test_loader
from sam_med2d.data.description import Describer
from sam_med2d.data.index import Index
from sam_med2d.data.phantoms import PHANTOMS
from sam_med2d.data.windows import difference
from sam_med2d.device import best_device, seed_everything
from sam_med2d.distributed import Processes, join_processes
from sam_med2d.errors import DataError
from sam_med2d.evaluation.cases import FILE as CASES_FILE
from sam_med2d.evaluation.cases import read_cases
from sam_med2d.evaluation.columns import MAIN_METRICS
from sam_med2d.evaluation.elsewhere import dice_on, elsewhere_table, sets_of
from sam_med2d.evaluation.evaluate import evaluate
from sam_med2d.evaluation.gallery import GalleryItem, choose_gallery, draw, shown_in_gallery
from sam_med2d.evaluation.grids import to_records
from sam_med2d.evaluation.left_out import LEAVE_OUT, ZERO, LeftOut
from sam_med2d.evaluation.parts import write_merged
from sam_med2d.evaluation.printed import FORMATS, NAMES, check_tables, check_tolerance, coarse_warning, shown
from sam_med2d.evaluation.record import record
from sam_med2d.evaluation.report import write_report
from sam_med2d.evaluation.results import Results, write_results
from sam_med2d.evaluation.rows import read_rows
from sam_med2d.evaluation.summary import all_tables
from sam_med2d.evaluation.surface import Tolerance
from sam_med2d.inference.backends import PRECISIONS
from sam_med2d.inference.models import DEFAULT_CHECKPOINT, SMALL, Plan, add_frame_flag, plan_model, settle
from sam_med2d.outputs import check_no_input, run_folder
from sam_med2d.ownership import owned
from sam_med2d.prompts.annotators import CLICK_STRATEGIES, annotator_of
from sam_med2d.prompts.modes import DEFAULT_MODES, Mode, mode_name, parse_mode, parse_modes
from sam_med2d.provenance import provenance
from sam_med2d.stopping import Stopped
from segment_anything import Sam, sam_model_registry
from segment_anything.geometry import EXACT, PROTOCOLS


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    # a flag in as few lines as it needs, so that the script can be read at one go
    # fmt: off
    group = parser.add_argument_group("run")
    group.add_argument("--work_dir", default="workdir",
        help="Everything is written below this folder. Default: %(default)s.")
    group.add_argument("--run_name", default="sammed",
        help="Name of the run's folder in --work_dir. Default: %(default)s.")
    group.add_argument("--device",
        help="Where the model runs, such as cuda, cuda:1, mps or cpu. Default: the best there is.")
    group.add_argument("--seed", type=int, default=0,
        help="Clicks, jitter and the bootstrap are functions of this number. Default: %(default)s.")
    add_flag(group, "--save_pred", False,
        "Write the predicted masks at the original size, and overlays with prompts and truth drawn in.")
    add_flag(group, "--report", True, "Write report.html, one page with tables, figures and objects.")
    group.add_argument("--rows_format", choices=["csv", "parquet"], default="csv",
        help="Format of the rows, a line an object and mode. Default: %(default)s.")

    group = parser.add_argument_group("data")
    group.add_argument("--data_path", default="data_demo",
        help="Folder of the data, with label2image_test.json or image2label_test.json. Default: %(default)s.")
    group.add_argument("--image_size", type=int,
        help="Side of the square frame that the model sees, in pixels, a multiple of 32. Default: what the weights "
             "were trained at.")
    group.add_argument("--batch_size", type=int, default=1,
        help="Number of images in a batch; on a CPU they go through the model one by one all the same. Default: "
             "%(default)s.")
    group.add_argument("--num_workers", type=int, default=min(4, (os.cpu_count() or 1) - 1),
        help="Number of processes that read data, and of threads that compute surface metrics. Default: "
             "%(default)s.")
    group.add_argument("--metadata",
        help="Table with case, modality, class and more of each mask. Default: metadata.csv of the data, where "
             "there is one.")
    group.add_argument("--case", metavar="REGEX",
        help="Regular expression for the path of an image in the index without its ending, whose first group is the "
             "case, as in '.*/(.+)_\\d+'. Intervals take a case for one witness. Default: what metadata.csv or names "
             "tell.")
    group.add_argument("--class_names",
        help="File with the names of SA-Med2D-20M's class numbers. Default: SAMed2D_v1_class_mapping_id.json of the "
             "data, where there is one.")

    group = parser.add_argument_group("model")
    group.add_argument("--model_type", choices=[*sam_model_registry],
        help="Size of the model. Default: what the weights are.")
    group.add_argument("--sam_checkpoint", default=DEFAULT_CHECKPOINT,
        help="Weights of SAM or SAM-Med2D to score; small: those of this package. Default: %(default)s.")
    add_flag(group, "--encoder_adapter", None,
        "Use adapters; False leaves those of the file out, which is the paper's SAM-Med2D*. Default: what the file "
        "has.")
    add_frame_flag(group)
    add_flag(group, "--refine", None,
        "Use the refinement network; False leaves that of the file out. Default: what the file has.")
    add_flag(group, "--multimask", True, "Score the best of outputs 1 to 3; False: output 0.")
    add_flag(group, "--use_amp", False,
        "Run the encoder in mixed precision: bfloat16 where the device has it, else float16.")
    group.add_argument("--precision", choices=[*PRECISIONS], default="float32",
        help="Cast the encoder once, in place of --use_amp, which casts at each use. Default: %(default)s.")
    add_flag(group, "--compile", False, "Compile the encoder by torch.compile.")

    group = parser.add_argument_group("prompts and scores")
    group.add_argument("--prompt_modes", nargs="+", type=mode_name, metavar="MODE",
        help="Modes to ask: bbox, bbox_jitter5, bbox_drawn, iterative clicks 1pt 3pts ... or 1..20pts, bbox+2pts, "
             "clicks at once 3shot ..., strokes scribble 3scribbles bbox+scribble, lasso, mask; and behind any of them "
             "@best, the best of the answers, or @swapped, the answer to another object's prompts; behind a box or "
             "clicks @zoom, asked of the predictor that looks at small objects closer. Default: "
             f"{' '.join(DEFAULT_MODES)}.")
    group.add_argument("--box_jitter", nargs="+", type=int, default=[], metavar="PIXELS",
        help="Also score boxes whose sides are moved by up to so many pixels of the frame; each number is a mode.")
    group.add_argument("--click_strategy", choices=CLICK_STRATEGIES, default="random",
        help="Where an iterative click goes: on a random wrong pixel, into the centre of the largest error, or near "
             "it, as people click. Default: %(default)s.")
    add_flag(group, "--boxes_prompt", None,
        "Ask for the one mode bbox; False: for one mode of clicks, see --iter_point and --point_num.")
    group.add_argument("--iter_point", type=int, help="Ask for one mode of so many iterative clicks.")
    group.add_argument("--point_num", type=int, help="Ask for one mode of so many clicks that are placed at once.")
    group.add_argument("--prompt_path",
        help="Ask the prompts of this file, written by an earlier run or by the original's test.py.")
    group.add_argument("--metrics", nargs="+", default=[*MAIN_METRICS], choices=MAIN_METRICS,
        help="Metrics whose means results.json holds at its top; surface metrics that are not named are not "
             "computed. Default: all.")
    group.add_argument("--protocol", choices=PROTOCOLS, default=EXACT,
        help="How masks and prompts come back from the frame: exact, to the pixels that it shows, or as in the "
             "paper, which moves them to the lower right where images are larger than the frame; for comparisons "
             "with published numbers. Default: %(default)s.")
    group.add_argument("--nsd_tolerance", default="2", metavar="DISTANCE",
        help="Distance within which normalised surface Dice counts a boundary as met: in pixels, such as 2, in "
             "millimetres where metadata.csv tells the spacing, such as 1.5mm, or in %% of the picture's diagonal, "
             "such as 0.5%%. Default: %(default)s.")
    group.add_argument("--vanished", choices=[LEAVE_OUT, ZERO], default=LEAVE_OUT,
        help="What becomes of objects too small for the frame, of which it shows no pixel: they are in no mean, or "
             "count as not found, with a Dice of 0. Either way they are counted. Default: %(default)s.")
    group.add_argument("--tables", nargs="+", choices=NAMES, metavar="TABLE",
        help=f"Tables to print, of {', '.join(NAMES)}; case has a mean over whole cases. Default: overall, noc, "
             "and class and case where they are known, or dataset where there are several; results.json has all.")
    group.add_argument("--format", choices=FORMATS, default="text",
        help="How tables are printed. Default: %(default)s.")
    group.add_argument("--also", nargs="*", metavar="DATA",
        help="Ask the model on pictures of other kinds too, beside the weights that its training started from, and say "
             "what was lost: folders of other data with a test split, or phantoms, which are drawn; none asks nothing. "
             "Default: phantoms for weights of train.py, else none.")
    # fmt: on
    args = parser.parse_args(argv)
    try:
        args.modes = modes_asked_for(args)
    except ValueError as error:
        parser.error(str(error))
    try:
        args.nsd_tolerance = Tolerance.of(args.nsd_tolerance).plain()
    except ValueError as error:
        parser.error(f"--nsd_tolerance {error}")
    if args.use_amp and args.precision != "float32":
        parser.error("--use_amp and --precision both say in what the encoder computes: leave one of the two out")
    check_numbers(parser, args, positive=("batch_size", "image_size"), not_negative=("seed", "num_workers"))
    return args


def modes_asked_for(args: argparse.Namespace) -> list[Mode]:
    """Modes named, or asked for in the original's way, and jittered boxes. Raises ValueError: flags contradict."""
    if any(pixels < 1 for pixels in args.box_jitter):
        raise ValueError("--box_jitter takes pixels, at least 1; the exact box is the mode bbox")
    jittered = [parse_mode(f"bbox_jitter{pixels}") for pixels in args.box_jitter]
    return [*dict.fromkeys(named_modes(args) + jittered)]


def named_modes(args: argparse.Namespace) -> list[Mode]:
    """Without jittered boxes. Raises ValueError: flags contradict."""
    single = {name for name in ("boxes_prompt", "iter_point", "point_num") if getattr(args, name) is not None}
    if args.prompt_modes:
        if single:
            raise ValueError(f"--prompt_modes already says which modes: leave out --{' --'.join(sorted(single))}")
        return parse_modes(args.prompt_modes)
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


@ending_in_one_line(kept="results are written at the end, so the same command starts anew")
def main(argv: list[str] | None = None) -> Path:
    """-> the folder of the run."""
    args, processes = parse_args(argv), join_processes()
    folder = run_folder(args.work_dir, args.run_name)
    with owned(folder, "test.py") if processes.rank == 0 else nullcontext():
        processes.wait()  # nobody writes into the folder of another run
        try:
            run(args, processes, folder)
        except Stopped:
            for part in folder.glob(f"part_{processes.rank}.*"):
                part.unlink()
            raise
    return folder


def run(args: argparse.Namespace, processes: Processes, folder: Path) -> None:
    device = best_device(args.device, processes.local_rank)
    seed_everything(args.seed)
    say = print if processes.rank == 0 else lambda *_: None

    # everything that can be known to be wrong is found before the model runs
    plan = settle(args)
    if processes.rank == 0:
        plan.warn()
    closer = any(mode.zoomed for mode in args.modes)
    dataset = TestingDataset(args.data_path, args.image_size, "test", args.frame, closer)
    if processes.rank == 0 and (said := difference(plan.file.window, dataset.index.root)):
        print(f"warning: {said}", file=sys.stderr)
    annotator = annotator_of(args.seed, args.click_strategy, args.prompt_path, args.image_size, args.frame)
    annotator.check([mask for _, masks in dataset.index for mask in masks], args.modes)
    describer = Describer(args.data_path, args.metadata, args.class_names, args.case)
    describer.check(dataset.index)
    check_tables(args.tables or (), describer, dataset.index)
    check_tolerance(Tolerance.of(args.nsd_tolerance), describer, dataset.index)
    check_no_input(outputs_of(args, folder), inputs_of(args, dataset.index))
    also = other_sets(args, plan)
    model = plan.build(say).to(device).for_inference(getattr(torch, args.precision), args.compile)
    if dataset.index.images_without_masks:
        say(f"{dataset.index.images_without_masks} image(s) of the index have no mask and are left out")

    made_from: dict[str, object] = {}
    if processes.rank == 0:  # now, while the files are those that are read
        prompts = {"prompts": args.prompt_path} if args.prompt_path else {}
        made_from = provenance(device, {"weights": plan.file.path, "data": dataset.index.source, **prompts})
    own = range(processes.rank, len(dataset), processes.count)  # a share of the images
    loader = test_loader(Subset(dataset, own), args.batch_size, args.num_workers)
    scores = evaluate(
        model,
        loader,
        args.modes,
        device=device,
        annotator=annotator,
        multimask=args.multimask,
        use_amp=args.use_amp,
        protocol=args.protocol,
    )
    seconds = record(args, folder, processes.rank, dataset, own, scores, describer, annotator.strategy)
    processes.wait()
    if processes.rank == 0:
        lost = what_was_lost(args, plan, model, also, device) if also else None
        speed = len(dataset) / seconds
        summarise(args, folder, dataset.index, made_from, processes.count, annotator.strategy, speed, lost)


def other_sets(args: argparse.Namespace, plan: Plan) -> dict[str, Dataset]:
    """The data of --also. Raises DataError where a folder has no test split."""
    asked = args.also if args.also is not None else [PHANTOMS] if plan.file.flags else []
    return sets_of([source for source in asked if source != "none"], args.image_size, args.frame)


def what_was_lost(
    args: argparse.Namespace, plan: Plan, model: Sam, also: dict[str, Dataset], device: torch.device
) -> pd.DataFrame:
    """Dice on the data of --also, beside that of the weights that training started from, where they are still there;
    without the refinement network that they may have, where the model has none."""
    now = dice_on(model, also, device)
    started_from = str(plan.file.flags.get("sam_checkpoint", ""))
    if started_from != SMALL and not Path(started_from).is_file():
        return elsewhere_table(now, None)
    like_it = {"image_size": args.image_size, "frame": args.frame, "refine": args.refine}
    before = plan_model(started_from, **like_it).build(lambda _: None).to(device)
    return elsewhere_table(now, dice_on(before, also, device))


def outputs_of(args: argparse.Namespace, folder: Path) -> list[Path]:
    names = ("rows.csv", "rows.parquet", CASES_FILE, "prompts.json", "results.json", "report.html")
    return [folder / name for name in (*names, *(("masks", "overlays") if args.save_pred else ()))]


def inputs_of(args: argparse.Namespace, index: Index) -> Iterator[str]:
    """Every file that the run reads."""
    yield from filter(None, (args.prompt_path, args.sam_checkpoint, args.metadata, args.class_names, index.source))
    for image, masks in index if args.save_pred else ():
        yield from map(index.path, (image, *masks))


def summarise(
    args: argparse.Namespace,
    folder: Path,
    index: Index,
    made_from: dict[str, object],
    processes: int,
    strategy: str,
    speed: float,
    lost: pd.DataFrame | None,
) -> None:
    """Write rows, cases and prompts of all processes; print and write tables, provenance and report.

    speed: images a second; lost: of `what_was_lost`.
    """
    shown_from, coarseness = write_merged(args, folder, processes, strategy)
    rows = read_rows(folder)
    left_out = LeftOut(rows, shown_from, args.image_size)
    if not left_out.scored:
        raise DataError(f"{args.data_path}: {left_out.nothing_scored()}")
    tables = all_tables(rows, cases=read_cases(folder), seed=args.seed)
    if lost is not None:
        tables["elsewhere"] = lost
    results = Results(
        means={metric: mean_by_mode(tables["overall"], metric) for metric in args.metrics},
        objects=left_out.scored,
        images=len(index),
        unscored=left_out.unscored,
        vanished=left_out.vanished_count,
        images_per_second=speed,
        seed=args.seed,
        model_type=args.model_type,
        processes=processes,
        provenance=made_from,
        flags={name: value for name, value in vars(args).items() if name != "modes"},
        tables={name: to_records(table) for name, table in tables.items()},
    )
    write_results(folder, results)
    print(*(f"\n{table}" for table in shown(tables, args.tables, args.format)), sep="\n")
    tolerance = Tolerance.of(args.nsd_tolerance)
    if "nsd" in args.metrics and (coarse := coarse_warning(tolerance, coarseness)):
        print(f"warning: {coarse}", file=sys.stderr)
    print(f"\n{left_out.scored} objects in {len(index)} images, {speed:.1f} images/s")
    print(*(f"{line}\n" for line in left_out.lines(args.vanished)), sep="", end="")
    if args.report:
        write_report(folder, rows, results, gallery(args, folder, index, processes, rows), tables)
    for part in folder.glob("part_*"):  # also of an earlier run that was ended
        part.unlink()
    print(f"rows, prompts, results{' and report' * args.report}: {folder}")


def mean_by_mode(overall: pd.DataFrame, metric: str) -> dict[str, float]:
    own = overall[overall["metric"] == metric]
    return dict(zip(own["mode"], own["mean"].tolist()))


def gallery(
    args: argparse.Namespace, folder: Path, index: Index, processes: int, rows: pd.DataFrame
) -> list[GalleryItem]:
    """The tiles of the report, drawn from what the processes have kept."""
    choices = choose_gallery(rows, [mode.name for mode in shown_in_gallery(args.modes)])
    return [
        GalleryItem(
            choice.class_name,
            choice.rank,
            choice.mode,
            f"{Path(choice.mask).stem}  Dice {choice.dice:.3f}",
            draw(folder, processes, index, choice.image, choice.mask, choice.mode),
        )
        for choice in tqdm(choices, desc="report", unit="object", leave=False, dynamic_ncols=True)
    ]


if __name__ == "__main__":
    main()
