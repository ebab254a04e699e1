"""The paper's first table in small, on the MNI152 slices of data_demo/; minutes on two CPU cores.

    python scripts/demo.py
    python scripts/demo.py --all

"SAM" is the small model that ships, without its refinement network; "FT-SAM" fine-tunes its decoder side; "SAM-Med2D"
adds adapters to the encoder; "refined" keeps the refinement network too, and has more clicks in training. With --all
two rows more: "LoRA" trains pairs beside the encoder's attention, which merge into SAM's own weights, and "all" trains
everything; and a table of what each training took. A second table says how each does elsewhere, on drawn phantoms, and
how the weights did that its training started from. Each step is a command of train.py or test.py, printed as a user
would type it.
Leaves in workdir/demo: report.md with the table, compare_{mode}.png, clicks.png with Dice over clicks, and the runs
with their checkpoints, TensorBoard logs, overlays and report.html.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sam_med2d.data.phantoms import PHANTOMS
from sam_med2d.evaluation.curves import click_curves
from sam_med2d.evaluation.estimates import summarise
from sam_med2d.evaluation.results import read_results
from sam_med2d.evaluation.rows import read_rows
from sam_med2d.image_files import write_png
from segment_anything.weight_files import read_checkpoint

WEIGHTS = "small"
MODES = ("bbox", "1pt", "3pts", "5pts")  # of the pictures
SCORED = ("bbox", "1..10pts", "scribble")
TABLE = (*MODES, "10pts", "scribble")
PLAIN = "--refine False"  # without the refinement network that the weights have
TRAINING = (
    "--batch_size 2 --mask_num 4 --lr 3e-4 --adapter_lr 1e-3 --adapter_norm_lr 2e-2 --lr_scheduler cosine --warmup 10 "
    "--iter_point 1 --keep_clicks --box_shift 4"
)
REFINED = (
    "--encoder_adapter True --refine True --refine_lr 5e-4 --iter_point 2 --point_list 1 2 4 8 "
    "--scribble_share 0.2 --lasso_share 0.1 --rank_weight 0.2"
)
SHARE_OF_EPOCHS = 0.65  # of the refined one, whose batches are longer
LABEL_WIDTH = 110  # pixels


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--work_dir", default="workdir/demo", help="Folder that everything is written into. Default: %(default)s."
    )
    parser.add_argument(
        "--epochs", type=int, default=34, help="Number of epochs of each training. Default: %(default)s."
    )
    parser.add_argument("--seed", type=int, default=0, help="Seed of all trainings. Default: %(default)s.")
    parser.add_argument("--all", action="store_true", help="Train LoRA pairs, and everything, too.")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    started = time.monotonic()
    fewer = max(1, int(args.epochs * SHARE_OF_EPOCHS))
    runs = {
        "SAM": (f"--sam_checkpoint {WEIGHTS} {PLAIN}", None),
        "FT-SAM": (f"--encoder_adapter False {PLAIN}", "ft-sam"),
        "SAM-Med2D": (f"--encoder_adapter True {PLAIN}", "sam-med2d"),
        "refined": (f"{REFINED} --epochs {fewer} --validate_every {fewer}", "refined"),
    }
    if args.all:
        runs["LoRA"] = (f"--tune lora {PLAIN}", "lora")
        runs["all"] = (f"--tune all --layer_decay 0.8 {PLAIN}", "all")
    # validated once, so that best.pth is the last epoch: the rate ends at zero, and few slices would choose by chance
    epochs = f"--epochs {args.epochs} --validate_every {args.epochs} --seed {args.seed}"
    chains = {}
    for flags, trained in runs.values():
        chain = []
        if trained:
            chain.append(
                f"train.py --num_workers 0 --sam_checkpoint {WEIGHTS} {epochs} {TRAINING} {flags} --overwrite "
                f"--work_dir {args.work_dir} --run_name {trained}"
            )
            flags = f"--sam_checkpoint {args.work_dir}/models/{trained}/best.pth"
        chain.append(
            f"test.py --num_workers 0 {flags} --work_dir {args.work_dir} --run_name {trained or 'sam'} --save_pred "
            f"--prompt_modes {' '.join(SCORED)} --also {PHANTOMS}"
        )
        chains[trained or "sam"] = chain
    side_by_side(chains, ROOT / args.work_dir, shown="refined")
    folders = {name: ROOT / args.work_dir / (trained or "sam") for name, (_, trained) in runs.items()}
    table = run(
        f"scripts/compare_runs.py {' '.join(str(Path(args.work_dir) / folder.name) for folder in folders.values())} "
        f"--names {' '.join(folders)} --modes {' '.join(TABLE)} --differences False"
    )
    table = f"{table}\n{table_of_elsewhere(folders)}"
    pictures = [compare(folders, mode, ROOT / args.work_dir / f"compare_{mode}.png") for mode in MODES]
    pictures.append(draw_clicks(folders, ROOT / args.work_dir / "clicks.png"))
    if args.all:
        trained = {name: run_name for name, (_, run_name) in runs.items() if run_name}
        table = f"{table}\n{table_of_trainings(trained, ROOT / args.work_dir)}"
    minutes = (time.monotonic() - started) / 60
    report = ROOT / args.work_dir / "report.md"
    report.write_text(
        f"# Demo\n\nHeld-out slices, {minutes:.1f} minutes. Tables of each model: "
        + ", ".join(f"[{name}]({folder.name}/report.html)" for name, folder in folders.items())
        + f"\n\n{table}\n"
        + "\n".join(f"![{p.stem}]({p.name})" for p in pictures)
        + "\n"
    )
    print(
        f"\n{table}\n{minutes:.1f} minutes. Report: {report}; pictures: {args.work_dir}/compare_*.png; "
        f"curves: {Path(sys.executable).parent}/tensorboard --logdir {args.work_dir}/logs"
    )


def side_by_side(chains: dict[str, list[str]], folder: Path, shown: str) -> None:
    """All chains of commands at once, each with its share of the cores, which takes less time than one after the other.

    The output of the chain `shown` is shown, that of the others goes to {name}.log.
    """
    folder.mkdir(parents=True, exist_ok=True)
    threads = str(max(1, (os.cpu_count() or 1) // len(chains)))
    for commands in chains.values():
        for command in commands:
            print(f"$ OMP_NUM_THREADS={threads} python {command}\n", flush=True)

    def run_chain(name: str) -> bool:
        """Whether all of it ended well."""
        with open(folder / f"{name}.log", "w") as log:
            output = None if name == shown else log
            return not any(
                subprocess.run(
                    [sys.executable, *shlex.split(command)],
                    check=False,
                    cwd=ROOT,
                    stdout=output,
                    stderr=output,
                    env={**os.environ, "OMP_NUM_THREADS": threads},
                ).returncode
                for command in chains[name]
            )

    with ThreadPoolExecutor(len(chains)) as pool:
        failed = [name for name, well in zip(chains, pool.map(run_chain, chains)) if not well]
    if failed:
        raise SystemExit(f"error: {' and '.join(failed)} failed; the output is above or in {folder}/*.log")


def table_of_elsewhere(folders: dict[str, Path]) -> str:
    """Dice on drawn phantoms, a row a run, beside that of the weights that its training started from."""
    tables = {
        name: results.tables["elsewhere"] for name, folder in folders.items() if (results := read_results(folder))
    }
    rows = next(iter(tables.values()))
    header = [f"Elsewhere ({rows[0]['objects']} objects of phantoms), Dice %"]
    header += [title for row in rows for title in (row["mode"], "before")]
    lines = [" | ".join(header), "---|" + "|".join(["---:"] * (len(header) - 1))]
    for name, found in tables.items():
        values = [row.get(column) for row in found for column in ("Dice", "before")]
        lines.append(" | ".join([name, *("–" if value is None else f"{100 * value:.2f}" for value in values)]))
    return "".join(f"| {line} |\n" for line in lines)


def table_of_trainings(runs: dict[str, str], folder: Path) -> str:
    """What each training took, from its checkpoint and its log.jsonl. runs: {title: name of the run}."""
    lines = ["| training | parameters trained | minutes | memory, GB |", "|---|---:|---:|---:|"]
    for title, name in runs.items():
        trained = read_checkpoint(folder / "models" / name / "last.pth")["optimizer"]["state"]
        count = sum(moments["exp_avg"].numel() for moments in trained.values())
        epochs = [json.loads(line) for line in (folder / "logs" / name / "log.jsonl").read_text().splitlines()]
        minutes = sum(epoch["epoch/seconds"] for epoch in epochs) / 60
        memory = max(epoch["epoch/memory_gb"] for epoch in epochs)
        lines.append(f"| {title} | {count / 1e6:.2f} M | {minutes:.1f} | {memory:.2f} |")
    return "\n".join(lines) + "\n"


def run(command: str) -> str:
    """-> what it printed."""
    print(f"\n$ python {command}", flush=True)
    return subprocess.run(
        [sys.executable, *shlex.split(command)], cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE
    ).stdout


def draw_clicks(folders: dict[str, Path], output: Path) -> Path:
    """Mean Dice over the number of clicks, a line a run."""
    axes = Figure(figsize=(6, 3.6), layout="constrained").add_subplot()
    for marker, (name, folder) in zip("osD^vP", folders.items()):
        curve = click_curves(summarise(read_rows(folder), metrics=["dice"], resamples=1))
        curve = curve[curve["series"] == "iterative clicks"]
        axes.plot(curve["clicks"], 100 * curve["mean"], marker=marker, markersize=4, label=name)
    axes.set(xlabel="clicks", ylabel="Dice, %", ylim=(40, 100))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    axes.figure.savefig(output, dpi=110)
    return output


def compare(folders: dict[str, Path], mode: str, output: Path) -> Path:
    """The overlays of two slices, an axial and a coronal one, by all models, one above the other."""
    slices = sorted(path.name for path in (next(iter(folders.values())) / "overlays" / mode).iterdir())[::4][:2]
    strips = []
    for picture in slices:
        for name, folder in folders.items():
            tiles = cv2.imread(str(folder / "overlays" / mode / picture))
            label = np.zeros((tiles.shape[0], LABEL_WIDTH, 3), np.uint8)
            cv2.putText(label, name, (6, 24), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1, cv2.LINE_AA)
            strips.append(np.hstack([label, tiles]))
    width = max(strip.shape[1] for strip in strips)
    strips = [cv2.copyMakeBorder(s, 0, 4, 0, width - s.shape[1], cv2.BORDER_CONSTANT) for s in strips]
    write_png(output, np.vstack(strips))
    return output


if __name__ == "__main__":
    main()
