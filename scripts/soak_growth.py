"""Long runs for scripts/soak.py, watched from outside: what they take must not grow.

A process and its workers are looked at four times a second: the memory that they have (VmRSS), and their open files.
What is compared is the second quarter of the time until it writes its results, which takes memory of its own, with the
last tenth.
"""

import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import soak_jobs
from process_memory import resident
from soak_jobs import Job, make_squares, small_weights

STEPS, OBJECTS = 2000, 20_000
LOOK = 0.25  # seconds
MEGABYTES = 16  # that the allocators of a run may differ by from its second quarter to its end


class Taken(NamedTuple):
    """own, all: MB of a process, and of it and its workers; handles: open files of the process."""

    own: float
    all: float
    handles: int


def taken(pid: int) -> Taken:
    """Raises OSError where it has ended."""
    own, workers = resident(pid), sum(map(resident_or_none, children(pid)))
    return Taken(own / 2**20, (own + workers) / 2**20, len([*Path(f"/proc/{pid}/fd").iterdir()]))


def children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [int(child), *children_or_none(int(child))]
    return found


def children_or_none(pid: int) -> list[int]:
    try:
        return children(pid)
    except OSError:
        return []


def resident_or_none(pid: int) -> int:
    try:
        return resident(pid)
    except OSError:
        return 0


def watch(process: subprocess.Popen, folder: Path, results: str) -> list[Taken]:
    """Until it has ended, or begins to write what `results` names, a pattern for files in the folder."""
    seen = []
    while process.poll() is None and not [*folder.glob(results)]:
        try:
            seen.append(taken(process.pid))
        except OSError:
            continue
        time.sleep(LOOK)
    process.wait()
    return seen


def verdict(seen: list[Taken], least: int = 40, megabytes: float = MEGABYTES) -> str:
    """What it took in the second quarter, and in the end. Raises AssertionError where that is more, or where there were
    not `least` looks. megabytes: more are too many; twice as many with workers.
    """
    assert len(seen) >= least, f"it was over after {len(seen)} looks"
    early, late = seen[len(seen) // 4 : len(seen) // 2], seen[-max(1, len(seen) // 10) :]
    own, everything = (
        [statistics.median(getattr(one, name) for one in part) for part in (early, late)] for name in ("own", "all")
    )
    handles = [max(one.handles for one in part) for part in (early, late)]
    told = (
        f"memory {own[0]:.0f} -> {own[1]:.0f} MB, with workers {everything[0]:.0f} -> {everything[1]:.0f} MB, "
        f"open files {handles[0]} -> {handles[1]}, in {len(seen)} looks"
    )
    grown = own[1] - own[0] > megabytes or everything[1] - everything[0] > 2 * megabytes or handles[1] > handles[0]
    assert not grown, told
    return told


def steps(work: Path) -> tuple[Job, int]:
    """2000 steps: 40 pictures, two a step, a hundred epochs."""
    data = make_squares(work / "forty", 40, 2, ("train", "val"))
    flags = ("--batch_size", 2, "--num_workers", 2, "--augment", "--ema", 0.9, "--cache", work / "steps/cache")
    own = ("--epochs", STEPS // 20, "--save_every", 50, "--validate_every", 5, "--data_path", data)
    words = [*soak_jobs.TRAINING, *flags, *own, "--work_dir", work / "steps"]
    return Job("steps", "steps", "train", lambda folder: words, lambda *_: "", lambda folder: {}), STEPS


def objects(work: Path) -> tuple[Job, int]:
    """20,000 objects on 500 pictures."""
    data = make_squares(work / "five_hundred", 500, OBJECTS // 500, ("train", "test"))
    flags = ("--model_type", "mini", "--sam_checkpoint", small_weights(work), "--device", "cpu", "--num_workers", 2)
    own = ("--prompt_modes", "bbox", "5pts", "--data_path", data, "--work_dir", work / "objects", "--run_name", "run")
    words = [*flags, *own]
    return Job("objects", "objects", "test", lambda folder: words, lambda *_: "", lambda folder: {}), OBJECTS


GROWTHS = {"steps": (steps, "no file"), "objects": (objects, "run/*rows.csv*")}


def grow(name: str, work: Path) -> str:
    """-> what it took. Raises AssertionError where it failed or took more and more."""
    start, results = GROWTHS[name]
    job, expected = start(work)
    shutil.rmtree(work / name, ignore_errors=True)
    (work / name).mkdir(parents=True)
    told = work / name / "said.txt"
    with open(told, "wb") as file:
        process = subprocess.Popen(job.command(work / name), stdout=file, stderr=subprocess.STDOUT)
        try:
            seen = watch(process, work / name, results)
        finally:
            process.kill()
            process.wait()
    said = told.read_text(errors="replace")
    assert process.returncode == 0, said[-1500:]
    if name == "steps":
        found = soak_jobs.SavedRun(str(work / name / soak_jobs.MODELS / "last.pth")).content["progress"]["step"]
    else:
        found = int(re.findall(r"(\d+) objects in", said)[-1])
    assert found == expected, f"{found} {name}"
    return f"{found} {name}, {verdict(seen)}"
