"""The paper's first table in small, on the MNI152 slices of data_demo/; minutes on two CPU cores.

    python scripts/demo.py

"SAM" is the small model pretrained on phantoms, as it is; "FT-SAM" fine-tunes its decoder side; "SAM-Med2D" adds
adapters to the encoder. Each step is a command of train.py or test.py, printed as a user would type it.
Leaves in workdir/demo: report.md with the table, compare_{mode}.png, and the runs with their checkpoints, TensorBoard
logs, overlays and report.html.
"""

import argparse
import contextlib
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
WEIGHTS = "pretrain_model/vit_t_phantoms.safetensors"
MODELS = ("SAM", "FT-SAM", "SAM-Med2D")
MODES = ("bbox", "1pt", "3pts", "5pts")
SMALL = "--model_type vit_t --image_size 192 --num_workers 0"
TRAINING = ("--batch_size 2 --lr 3e-4 --adapter_lr 1e-3 --adapter_norm_lr 2e-2 --lr_scheduler cosine --warmup 10 "
            "--iter_point 1 --keep_clicks --mask_num 4 --box_shift 4 --prompt_modes bbox 1pt 3pts 5pts")
LABEL_WIDTH = 110       # pixels


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work_dir", default="workdir/demo")
    parser.add_argument("--epochs", type=int, default=38)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    started = time.monotonic()
    training = f"{TRAINING} --epochs {args.epochs} --validate_every {args.epochs} --overwrite"

    def train(name: str, adapters: bool) -> str:
        return f"train.py {SMALL} --encoder_adapter {adapters} --sam_checkpoint {WEIGHTS} {training} --work_dir {args.work_dir} --run_name {name}"

    def test(name: str, adapters: bool, weights: str = "") -> str:
        weights = weights or f"{args.work_dir}/models/{name}/best.pth"
        return (f"test.py {SMALL} --encoder_adapter {adapters} --sam_checkpoint {weights} --work_dir {args.work_dir} --run_name {name} "
                "--save_pred")

    side_by_side({"ft-sam": [test("sam", False, WEIGHTS), train("ft-sam", False), test("ft-sam", False)],
                  "sam-med2d": [train("sam-med2d", True), test("sam-med2d", True)]}, ROOT / args.work_dir)
    folders = {name: ROOT / args.work_dir / name.lower() for name in MODELS}
    table = run(f"scripts/compare_runs.py {' '.join(str(Path(args.work_dir) / folder.name) for folder in folders.values())} "
                f"--names {' '.join(folders)} --differences False", read=True)
    pictures = [compare(folders, mode, ROOT / args.work_dir / f"compare_{mode}.png") for mode in MODES]
    minutes = (time.monotonic() - started) / 60
    report = ROOT / args.work_dir / "report.md"
    report.write_text(f"# Demo\n\nHeld-out slices, {minutes:.1f} minutes. Tables of each model: "
                      + ", ".join(f"[{name}]({folder.name}/report.html)" for name, folder in folders.items())
                      + f"\n\n{table}\n" + "\n".join(f"![{p.stem}]({p.name})" for p in pictures) + "\n")
    print(f"\n{table}\n{minutes:.1f} minutes. Report: {report}; pictures: {args.work_dir}/compare_*.png; "
          f"curves: {Path(sys.executable).parent}/tensorboard --logdir {args.work_dir}/logs")


def side_by_side(chains: dict[str, list[str]], folder: Path) -> None:
    """Chains of commands, all at once, each with its share of the cores: faster than one after the other with all of them.

    The last chain's output is shown, the others' goes to {name}.log.
    """
    folder.mkdir(parents=True, exist_ok=True)
    threads = str(max(1, (os.cpu_count() or 1) // len(chains)))
    *silent, shown = chains

    def work(name: str) -> bool:
        with open(folder / f"{name}.log", "w") if name != shown else contextlib.nullcontext() as log:
            for command in chains[name]:
                print(f"\n$ OMP_NUM_THREADS={threads} python {command}", flush=True)
                if subprocess.run([sys.executable, *shlex.split(command)], cwd=ROOT, stdout=log, stderr=log,
                                  env={**os.environ, "OMP_NUM_THREADS": threads}).returncode:
                    return False
        return True

    with ThreadPoolExecutor(len(chains)) as pool:
        failed = [name for name, done in zip(chains, pool.map(work, chains)) if not done]
    if failed:
        raise SystemExit(f"error: the commands of {' and '.join(failed)} failed; their output is above or in "
                         + ", ".join(str(folder / f"{name}.log") for name in silent))


def run(command: str, read: bool = False) -> str | None:
    """read: -> what it printed, in place of showing it."""
    print(f"\n$ python {command}", flush=True)
    done = subprocess.run([sys.executable, *shlex.split(command)], cwd=ROOT, check=True, text=True,
                          stdout=subprocess.PIPE if read else None)
    return done.stdout


def compare(folders: dict[str, Path], mode: str, output: Path) -> Path:
    """The overlays of the first two slices by all models, one above the other."""
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
    cv2.imwrite(str(output), np.vstack(strips))
    return output


if __name__ == "__main__":
    main()
