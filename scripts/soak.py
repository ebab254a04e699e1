"""Kill real training runs at random moments, go on with --resume auto, and compare how they end, bit for bit.

    python scripts/soak.py --kills 200 --log docs/soak.log      # started again, it goes on where the log ends

Each configuration first runs undisturbed. Then it runs again and again from the start, and at random moments one of
its processes gets SIGKILL, or all get SIGTERM, until it has reached its end; then every tensor of last.pth and best.pth
must be that of the undisturbed run. What else must hold each time: the processes that were left end within a minute,
with the status that docs/training.md has for it and no traceback, and leave no worker behind; of a run that has ended
no half-written file stays.
"""

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import cv2
import numpy as np
import torch

MINUTE = 60  # seconds that a process may take to end
LONGEST = 900  # seconds that a run may take on a busy machine
FLAGS = (
    *("--model_type", "mini", "--image_size", "32", "--sam_checkpoint", "none", "--mask_num", "2", "--iter_point", "2"),
    *("--prompt_modes", "bbox", "--device", "cpu", "--epochs", "3", "--save_every", "1", "--lr_scheduler", "cosine"),
    *("--resume", "auto", "--keep_last", "1"),
)


class Configuration(NamedTuple):
    """processes: of the run; flags: beside FLAGS."""

    processes: int
    flags: tuple[str, ...]


CONFIGURATIONS = {
    "plain": Configuration(1, ("--batch_size", "2", "--num_workers", "0")),
    "workers, augmented, averaged": Configuration(
        1, ("--batch_size", "2", "--num_workers", "2", "--augment", "--ema", "0.9")
    ),
    "cached, accumulated": Configuration(
        1, ("--batch_size", "1", "--accumulate", "2", "--num_workers", "0", "--cache")
    ),
    "two processes, averaged": Configuration(2, ("--batch_size", "1", "--num_workers", "0", "--ema", "0.9")),
    "two processes, all of it": Configuration(
        2, ("--batch_size", "1", "--num_workers", "2", "--augment", "--ema", "0.9", "--accumulate", "2", "--cache")
    ),
}


def train_small(words: list[str]) -> None:
    """train.py with one more size of model, of which a checkpoint takes few megabytes."""
    import train
    from sam_med2d import distributed
    from segment_anything import build_sam, sam_model_registry, sizes
    from segment_anything.modeling import image_encoder

    builder = sys.modules[build_sam.__module__]
    sizes.SIZES["mini"] = sizes.Size(channels=16, depth=2, heads=2, global_blocks=(1,))
    builder.EMBEDDING_CHANNELS = image_encoder.EMBEDDING_CHANNELS = 32
    builder.ImageEncoderViT = partial(image_encoder.ImageEncoderViT, out_chans=32)
    sam_model_registry["mini"] = partial(build_sam, model_type="mini")
    distributed.JOIN = distributed.CONNECT = MINUTE / 3  # one that is killed before it has started is waited for
    torch.set_num_threads(1)
    train.main(words)


def make_data(folder: Path) -> Path:
    """Six pictures with two squares each, for training and validation."""
    if (folder / "image2label_val.json").exists():
        return folder
    draw = np.random.default_rng(0)
    groups = {}
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(6):
        picture = draw.integers(0, 90, (40, 48, 3), dtype=np.uint8)
        groups[f"{i}.png"] = [f"{i}_{k}.png" for k in range(2)]
        for name in groups[f"{i}.png"]:
            mask = np.zeros((40, 48), np.uint8)
            x, y, side = draw.integers(4, 24), draw.integers(4, 20), draw.integers(8, 16)
            mask[y : y + side, x : x + side] = 255
            picture[mask > 0] += 100
            (folder / name).write_bytes(cv2.imencode(".png", mask)[1].tobytes())
        (folder / f"{i}.png").write_bytes(cv2.imencode(".png", picture)[1].tobytes())
    for split in ("train", "val"):
        (folder / f"image2label_{split}.json").write_text(json.dumps(groups))
    return folder


class Run:
    """The processes of one start of a configuration, each with its own group, as a scheduler has them."""

    def __init__(self, name: str, folder: Path, data: Path) -> None:
        configuration = CONFIGURATIONS[name]
        words = [*FLAGS, *configuration.flags]
        if words[-1] == "--cache":
            words.append(str(folder / "cache"))
        words += ["--data_path", str(data), "--work_dir", str(folder)]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(configuration.processes)}
        shared["OMP_NUM_THREADS"] = "1"
        folder.mkdir(parents=True, exist_ok=True)
        self.said = [folder / f"said_{rank}.txt" for rank in range(configuration.processes)]
        self.processes = []
        for rank, said in enumerate(self.said):
            with open(said, "wb") as file:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, str(ROOT / "scripts/soak.py"), "--train", *words],
                        env={
                            **os.environ,
                            **shared,
                            "RANK": str(rank),
                            "LOCAL_RANK": str(rank),
                            "OMP_NUM_THREADS": "1",
                        },
                        stdout=file,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )

    def running(self) -> bool:
        return any(process.poll() is None for process in self.processes)

    def wait(self, seconds: float) -> list[int]:
        """-> exit statuses. Raises AssertionError where one does not end in time, or leaves a process behind."""
        end = time.monotonic() + seconds
        for process in self.processes:
            try:
                process.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.end()
                raise AssertionError(f"a process did not end within {seconds} s: {self.tail()}") from None
        while any(map(group_runs, self.processes)):
            if time.monotonic() > end:
                self.end()
                raise AssertionError("a worker was left behind")
            time.sleep(0.05)
        return [process.returncode for process in self.processes]

    def end(self) -> None:
        for process in self.processes:
            if group_runs(process):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def tail(self) -> str:
        return " / ".join(said.read_text(errors="replace")[-1500:] for said in self.said)


def group_runs(process: subprocess.Popen) -> bool:
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def state(folder: Path, name: str) -> dict:
    """A checkpoint without what says where it was made."""
    content = torch.load(folder / "models/sam-med2d" / name, weights_only=True)
    return {key: value for key, value in content.items() if key not in ("flags", "made_by")}


def differences(a: object, b: object, where: str = "") -> list[str]:
    """The places where two checkpoints differ, bitwise."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [place for key in a for place in differences(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [place for i in range(len(a)) for place in differences(a[i], b[i], f"{where}/{i}")]
    same = torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a == b
    return [] if same else [where]


def undisturbed(name: str, folder: Path, data: Path) -> float:
    """Run a configuration to its end, if that was not done. -> the seconds that it took."""
    told = folder / "seconds"
    if not told.exists():
        start = time.monotonic()
        run = Run(name, folder, data)
        statuses = run.wait(LONGEST)
        assert set(statuses) == {0}, (statuses, run.tail())
        told.write_text(str(time.monotonic() - start))
    return float(told.read_text())


def kill_once(run: Run, draw: random.Random, longest: float) -> str | None:
    """Wait a random while, and kill. -> what was done; None: the run was over first."""
    end = time.monotonic() + draw.uniform(0.2, 1.0) * longest
    while time.monotonic() < end:
        if not run.running():
            return None
        time.sleep(0.01)
    number = draw.choice((signal.SIGKILL, signal.SIGTERM))
    victims = run.processes if number == signal.SIGTERM else [draw.choice(run.processes)]
    for process in victims:
        if number == signal.SIGTERM and group_runs(process):
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
    statuses = run.wait(MINUTE)
    # 75: it has lost one; -SIGTERM: it had not yet begun to listen
    allowed = {-signal.SIGKILL, 75, 0} if number == signal.SIGKILL else {143, 75, 0, -signal.SIGTERM}
    assert set(statuses) <= allowed, (number.name, statuses, run.tail())
    assert "Traceback" not in run.tail(), run.tail()
    return f"{number.name} {statuses}"


def disturbed(name: str, folder: Path, data: Path, draw: random.Random, longest: float, most: int) -> list[str]:
    """Run a configuration to its end, killed up to `most` times. -> what was done."""
    done: list[str] = []
    while True:
        run = Run(name, folder, data)
        try:
            if len(done) < most:
                what = kill_once(run, draw, longest)
                if what is not None:
                    done.append(what)
                    continue
            statuses = run.wait(LONGEST)
            assert set(statuses) == {0}, (statuses, run.tail())
            return done
        finally:
            run.end()


def soak(kills: int, work: Path, log: Path, names: list[str], kills_a_run: int) -> int:
    """-> how many kills the log has then. Raises AssertionError where something does not hold."""
    data = make_data(work / "data")
    lines = log.read_text().splitlines() if log.exists() else []
    count = sum(int(line.split()[1]) for line in lines if line.startswith("kills "))
    number = sum(line.startswith("kills ") for line in lines)
    while count < kills:
        name = names[number % len(names)]
        place = name.replace(" ", "_").replace(",", "")
        expected = work / place / "undisturbed"
        longest = undisturbed(name, expected, data)
        folder = work / place / f"killed_{number}"
        done = disturbed(name, folder, data, random.Random(f"soak {number}"), longest, min(kills_a_run, kills - count))
        for checkpoint in ("last.pth", "best.pth"):
            found = differences(state(expected, checkpoint), state(folder, checkpoint))
            assert not found, (name, number, checkpoint, found[:5])
        left = {path.name for path in (folder / "models/sam-med2d").iterdir()}
        assert left == {"last.pth", "best.pth", "epoch_3.pth"}, left
        count, number = count + len(done), number + 1
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "a") as file:
            file.write(f"kills {len(done)} run {number}: {name}: ended with the same bits after {'; '.join(done)}\n")
        subprocess.run(["rm", "-r", str(folder)], check=True)
    return count


def main() -> None:
    if sys.argv[1:2] == ["--train"]:
        train_small(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="How many there shall be in the log in the end.")
    parser.add_argument("--kills_a_run", type=int, default=5, help="At most so many from a start to its end.")
    parser.add_argument("--work_dir", default="workdir/soak", help="Where the runs write; kept for the next start.")
    parser.add_argument("--log", default="workdir/soak/log.txt", help="A line a run; what is in it is not done again.")
    parser.add_argument("--only", choices=[*CONFIGURATIONS], help="Only this configuration.")
    args = parser.parse_args()
    names = [args.only] if args.only else [*CONFIGURATIONS]
    count = soak(args.kills, Path(args.work_dir).resolve(), Path(args.log), names, args.kills_a_run)
    print(f"{count} kills: every run ended with the bits of the undisturbed one")


if __name__ == "__main__":
    main()
