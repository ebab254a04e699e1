"""Which choices of the recipe help: one change a row, small models, one budget, several seeds, one table.

    python scripts/ablate.py                                       # every row of ROWS, seeds 0 1 2, on data_demo
    python scripts/ablate.py --rows ours replay --seeds 0 1 2      # some of them
    python scripts/ablate.py --row "slow: --lr 1e-4"               # a row of your own: a name, and flags of train.py
    python scripts/ablate.py --unseen FOLDER                       # also on pictures of other kinds (score_unseen.py)
    python scripts/ablate.py --device cuda --at_once 16            # small models leave most of a GPU to others

A run is a row and a seed: train.py with the flags of the demo, those of the row and the seed, then test.py on the
held-out slices and on drawn phantoms (which none of the runs is chosen by). What a run found is one line of
{output}/runs.jsonl; runs that have their line are not made again, so a call that was stopped goes on. A run that failed
or diverged has a line that says so. The table holds means over seeds and, for every other row, the difference from the
first with its range over seeds: a change is called better or worse only where all seeds agree on it.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]
from demo import PLAIN, REFINED, TRAINING, WEIGHTS

from sam_med2d.evaluation.results import read_results

PAPER = (
    "--recipe paper --lr 1e-4 --adapter_lr 1e-4 --adapter_norm_lr 1e-4 --lr_scheduler constant --warmup 0 "
    "--iter_point 8 --keep_clicks False --box_shift 5"
)
ROWS = {  # the change -> flags of train.py beside those of the demo
    "ours": "",
    "paper": PAPER,
    "paper, as long as ours": f"{PAPER} --epochs 12 --validate_every 12",
    "paper, our rounds and rates": "--recipe paper",
    "refined": REFINED,
    "refined, no replay": f"{REFINED} --replay none",
    "no replay": "--replay none",
    "replay 10 %": "--replay_share 0.1",
    "replay 50 %": "--replay_share 0.5",
    "clicks replaced": "--keep_clicks False",
    "no correction": "--iter_point 0",
    "three corrections": "--iter_point 3",
    "eight corrections": "--iter_point 8",
    "one output": "--multimask False",
    "adapters as the rest": "--adapter_lr 3e-4 --adapter_norm_lr 3e-4",
    "adapters slower": "--adapter_lr 3e-4",
    "augmented": "--augment",
    "decoder alone": "--tune decoder",
    "LoRA": "--tune lora",
    "all": "--tune all",
}
MODES = ("bbox", "1pt", "3pts", "5pts")
UNSEEN = tuple(f"{asked}, zoom {zoom}" for zoom in ("never", "auto") for asked in ("box", "5 clicks"))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # fmt: off
    parser.add_argument("--output", type=Path, default=Path("workdir/ablation"),
        help="Folder where runs and table are kept. Default: %(default)s.")
    parser.add_argument("--rows", nargs="+", choices=ROWS,
        help="The changes to make. Default: all, or those of --row alone.")
    parser.add_argument("--row", action="append", default=[], metavar="'NAME: FLAGS'",
        help="A change of your own; may be given several times.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2],
        help="The seeds of the runs of each change. Default: 0 1 2.")
    parser.add_argument("--epochs", type=int, default=38,
        help="Number of epochs of every run. Default: the demo's, %(default)s.")
    parser.add_argument("--data_path", default="data_demo",
        help="Folder of the data of all runs. Default: %(default)s.")
    parser.add_argument("--modes", nargs="+", default=[*MODES],
        help="Prompt modes that test.py asks. Default: bbox 1pt 3pts 5pts.")
    parser.add_argument("--device", default="cpu", help="Where the models run. Default: %(default)s.")
    parser.add_argument("--at_once", type=int, default=1, metavar="RUNS",
        help="Number of runs side by side. Default: %(default)s.")
    parser.add_argument("--unseen", metavar="FOLDER",
        help="Score each run on this folder too, which scripts/score_unseen.py reads.")
    # fmt: on
    args = parser.parse_args(argv)
    args.changes = {name: ROWS[name] for name in args.rows or ([] if args.row else ROWS)}
    for row in args.row:
        name, colon, flags = row.partition(":")
        if not colon or not name.strip():
            parser.error(f"--row {row!r}: write a name, a colon, and flags of train.py")
        args.changes[name.strip()] = flags.strip()
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    log = args.output / "runs.jsonl"
    kept = read(log)
    log.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")  # without half a line
    done = {(line["row"], line["seed"], line["flags"]) for line in kept}
    runs = [(row, seed, flags) for seed in args.seeds for row, flags in args.changes.items()]

    def make(run: tuple[str, int, str]) -> dict[str, Any]:
        row, seed, flags = run
        return {"row": row, "seed": seed, "flags": flags, "epochs": args.epochs, **made(args, row, seed, flags)}

    with ThreadPoolExecutor(args.at_once) as pool:
        waiting = [pool.submit(make, run) for run in runs if run not in done]
        for found in tqdm(as_completed(waiting), total=len(waiting), unit="run", dynamic_ncols=True):
            with open(log, "a", encoding="utf-8") as file:
                file.write(json.dumps(found.result()) + "\n")
    lines = [line for line in read(log) if (line["row"], line["seed"], line["flags"]) in runs]
    text = table(lines, [*args.changes])
    (args.output / "table.md").write_text(text, encoding="utf-8")
    print(f"\n{text}\n{args.output / 'table.md'}")


def read(log: Path) -> list[dict[str, Any]]:
    """The runs that are in the log; a last line that was cut off by a kill is none."""
    if not log.exists():
        return []
    whole = log.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in whole if line]


def made(args: argparse.Namespace, row: str, seed: int, flags: str) -> dict[str, Any]:
    """Train and measure. -> {"failed": the last line} or the minutes and {place: {question: Dice in %}}."""
    name = "".join(c if c.isalnum() else "-" for c in f"{row}-{seed}")
    started = time.monotonic()
    failed = run(
        f"train.py --num_workers 0 --sam_checkpoint {WEIGHTS} --data_path {shlex.quote(args.data_path)} "
        f"--epochs {args.epochs} --validate_every {args.epochs} {TRAINING} --overwrite --seed {seed} "
        f"--work_dir {shlex.quote(str(args.output))} --run_name {name} --device {args.device} {PLAIN} {flags}"
    )
    if failed:
        return {"failed": failed}
    minutes = (time.monotonic() - started) / 60
    weights = args.output / "models" / name / "best.pth"
    failed = run(
        f"test.py --num_workers 0 --sam_checkpoint {shlex.quote(str(weights))} --prompt_modes {' '.join(args.modes)} "
        f"--data_path {shlex.quote(args.data_path)} --metrics dice --report False --also phantoms --seed {seed} "
        f"--work_dir {shlex.quote(str(args.output))} --run_name {name} --device {args.device}"
    )
    results = read_results(args.output / name)
    if failed or results is None:
        return {"failed": failed or "test.py left no results"}
    found = {"own": {mode: 100 * value for mode, value in results.means["dice"].items()}}
    found["phantoms"] = {row["mode"]: 100 * row["Dice"] for row in results.tables["elsewhere"]}
    if args.unseen:
        found["unseen"] = unseen(weights, args.unseen, args.output / f"{name}.unseen.jsonl", args.device)
    (weights.parent / "last.pth").unlink()  # large, and of no more use
    return {"minutes": minutes, "dice": found}


def unseen(weights: Path, folder: str, output: Path, device: str) -> dict[str, float]:
    """{question: Dice in %, the mean of the sets of scripts/score_unseen.py}"""
    failed = run(
        f"scripts/score_unseen.py --data {shlex.quote(folder)} --output {shlex.quote(str(output))} --device {device} "
        f"{shlex.quote(str(weights))}"
    )
    if failed:
        raise SystemExit(f"error: scripts/score_unseen.py: {failed}")
    sets = read(output)
    return {question: 100 * float(np.mean([one[question] for one in sets])) for question in UNSEEN}


def run(command: str) -> str:
    """-> the last line of its errors, or "" where it ended well."""
    done = subprocess.run(
        [sys.executable, *shlex.split(command)],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")},
    )
    return done.stderr.strip().rsplit("\n", 1)[-1] if done.returncode else ""


def table(lines: list[dict[str, Any]], rows: list[str]) -> str:
    """Markdown: a row a change, of each place the mean of its questions over seeds, and what the change made of it."""
    values = pd.DataFrame(
        [
            {
                "row": line["row"],
                "seed": line["seed"],
                "minutes": line["minutes"],
                **{place: float(np.mean([*asked.values()])) for place, asked in line["dice"].items()},
                **{f"own {mode}": value for mode, value in line["dice"]["own"].items()},
            }
            for line in lines
            if "dice" in line
        ]
    )
    failed = [f"{line['row']}, seed {line['seed']}: {line['failed']}" for line in lines if "failed" in line]
    if values.empty:
        return "\n".join(["no run ended well", *failed])
    columns = [column for column in values if column not in ("row", "seed")]
    first = values[values["row"] == rows[0]].set_index("seed")
    printed = [f"| change | seeds | {' | '.join(columns)} |", f"|---|--:|{'--:|' * len(columns)}"]
    for row in rows:
        own = values[values["row"] == row].set_index("seed")
        if len(own):
            cells = [cell(own[column], None if row == rows[0] else first[column]) for column in columns]
            printed.append(f"| {row} | {len(own)} | {' | '.join(cells)} |")
    return "\n".join([*printed, "", *failed]) + "\n"


def cell(own: pd.Series, first: pd.Series | None) -> str:
    """The mean over seeds; then the mean difference from the first row over the seeds that both have, with its range,
    and bold where all seeds agree on its sign and there are three at least."""
    mean = f"{own.mean():.1f}"
    change = pd.Series(dtype=float) if first is None else (own - first).dropna()
    if change.empty:
        return mean
    told = f"{change.mean():+.1f} [{change.min():+.1f}, {change.max():+.1f}]"
    agree = len(change) >= 3 and (change.min() > 0 or change.max() < 0)
    return f"{mean} {f'**{told}**' if agree else told}"


if __name__ == "__main__":
    main()
