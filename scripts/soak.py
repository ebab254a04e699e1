"""Disturb real commands at random moments, go on, and compare how they end with an undisturbed run, bit for bit.

    python scripts/soak.py --kills 200 --log docs/soak.log          # started again, it goes on where the log ends
    python scripts/soak.py --what training converters --kills 20
    python scripts/soak.py --what steps objects                     # long runs, watched for what grows

--what:

    training     train.py in five configurations, of one process and of two
    converters   make-index of six kinds of source
    compiled     train.py of two processes with all of it, and torch.compile, which takes minutes
    packing      pack-dataset
    caching      train.py while it fills a cache
    testing      test.py, of one process and of two
    steps        2000 steps of train.py: memory and file handles must not grow
    objects      20,000 objects of test.py: the same

Each job of the first six first runs undisturbed. Then it runs again and again from the start, and at random moments
one of its processes gets SIGKILL, or all get SIGTERM, or the file system that it writes on, a small one of its own in
every second run, is filled up; until it has reached its end. What must hold each time: the processes that were left
end soon, with the status that docs/security.md has for it and no traceback, and leave nobody behind; what
lies in its place is whole. In the end the bits are those of the undisturbed run, and of files that were half written
none is left. The log has a line for every disturbance, with what held, and one for every run that has reached its
end.
"""

import argparse
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import soak_jobs
from soak_growth import GROWTHS, grow
from soak_jobs import Job, all_jobs, differences, place_of

from sam_med2d.cli import ending_in_one_line

LONGEST = 1800  # seconds that a run may take on a busy machine
DISK = "160m"  # the file system of every second run
PARTS = ("training", "compiled", "converters", "packing", "caching", "testing")
ALLOWED = {  # exit statuses; -SIGTERM: a process that had not yet begun to listen; 75: it has lost another one
    "SIGKILL": {-signal.SIGKILL, 75, 0},
    "SIGTERM": {143, 75, 0, -signal.SIGTERM},
    "full disk": {74, 75, 0},
}


class Run:
    """The processes of one start of a job, each with a group of its own."""

    def __init__(self, job: Job, folder: Path, beside: Path) -> None:
        """folder: that it writes; beside: a folder for what it says, on another file system where that is filled up."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(job.processes)}
        shared |= {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        self.started = time.monotonic()
        self.processes, self.said = [], [beside / f"said_{rank}.txt" for rank in range(job.processes)]
        folder.mkdir(parents=True, exist_ok=True)
        for rank, said in enumerate(self.said):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if job.processes > 1 else {}
            with open(said, "wb") as file:
                self.processes.append(
                    subprocess.Popen(
                        job.command(folder),
                        env={**os.environ, **(shared if own else {"OMP_NUM_THREADS": "1"}), **own},
                        stdout=file,
                        stderr=subprocess.STDOUT,
                        preexec_fn=os.setpgrp,  # noqa: PLW1509  a session would have a share of the processor of its own
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


class Log:
    """Lines of what was done, which a later start goes on from."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.kills = sum(line.startswith("kill ") for line in lines)
        self.runs = sum(line.startswith("run ") for line in lines)
        self.grown = {line.split(":")[0].removeprefix("growth ") for line in lines if line.startswith("growth ")}

    def add(self, line: str) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, flush=True)
        self.kills += line.startswith("kill ")
        self.runs += line.startswith("run ")


def undisturbed(job: Job, folder: Path) -> float:
    """Run a job to its end, if that was not done. -> the seconds that it took."""
    told = folder.parent / "seconds"
    if not told.exists():
        shutil.rmtree(folder, ignore_errors=True)
        run = Run(job, folder, folder.parent)
        try:
            statuses = run.wait(LONGEST)
        finally:
            run.end()
        assert set(statuses) == {0}, (statuses, run.tail())
        told.write_text(str(time.monotonic() - run.started))
    return float(told.read_text())


def disturb_once(job: Job, run: Run, draw: random.Random, longest: float, disk: Path | None) -> str | None:
    """Wait a random while, and disturb. disk: may be filled. -> what was done; None: the run was over first."""
    what = draw.choice(("SIGKILL", "SIGTERM", "full disk" if disk else "SIGKILL"))
    moment = time.monotonic() + draw.uniform(0.2, 0.7 if what == "full disk" else 1.0) * longest
    while time.monotonic() < moment:
        if not run.running():
            return None
        time.sleep(0.01)
    if what == "full disk":
        assert disk is not None
        fill(disk / "filler")
    elif what == "SIGTERM":
        for process in run.processes:
            if group_runs(process):
                os.killpg(process.pid, signal.SIGTERM)
    else:
        draw.choice(run.processes).send_signal(signal.SIGKILL)
    after = time.monotonic() - run.started
    try:
        statuses = run.wait(LONGEST if what == "full disk" else job.patience)
    finally:
        if disk:
            (disk / "filler").unlink(missing_ok=True)
    assert set(statuses) <= ALLOWED[what], (what, statuses, run.tail())
    assert "Traceback" not in run.tail(), run.tail()
    if what != "full disk" and not any(statuses):
        return None  # it came too late
    return f"{what} after {after:.1f} s, ended with {' and '.join(map(str, statuses))}"


def fill(path: Path) -> None:
    """Up to the last byte that there is."""
    with suppress(OSError), open(path, "wb", buffering=0) as file:
        size = 1 << 20
        while size:
            try:
                file.write(bytes(size))
            except OSError:
                size //= 2


def disturbed(
    job: Job, folder: Path, expected: Path, log: Log, draw: random.Random, most: int, disk: Path | None
) -> int:
    """Run a job to its end, disturbed up to `most` times. -> how often it was."""
    done = 0
    while True:
        run = Run(job, folder, expected.parent)
        try:
            if done < most:
                what = disturb_once(job, run, draw, undisturbed(job, expected), disk)
                if what is not None:
                    log.add(f"kill {log.kills + 1} | {job.name} | {what} | {job.held(folder, expected)}")
                    done += 1
                    continue
            statuses = run.wait(LONGEST)
            assert set(statuses) == {0}, (statuses, run.tail())
            return done
        finally:
            run.end()


@contextmanager
def disk_of_its_own(folder: Path, wanted: bool) -> Iterator[Path | None]:
    """An empty folder, on a small file system where that is wanted and this user may mount one. -> it, if it is one."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "none", str(folder)]
    mounted = wanted and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield folder if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", "-l", folder], check=True)
    shutil.rmtree(folder)


def soak(jobs: list[Job], kills: int, kills_a_run: int, work: Path, log: Log) -> None:
    """Disturb jobs in turns until the log has so many lines of it. Raises AssertionError where one does not hold."""
    while log.kills < kills:
        number, job = log.runs, jobs[log.runs % len(jobs)]
        expected = work / place_of(job.name) / "undisturbed"
        undisturbed(job, expected)
        with disk_of_its_own(work / place_of(job.name) / f"run{number}", number % 2 == 1) as disk:
            folder = work / place_of(job.name) / f"run{number}" / "work"
            draw = random.Random(f"soak {number} {log.kills}")
            try:
                count = disturbed(job, folder, expected, log, draw, min(kills_a_run, kills - log.kills), disk)
                found = differences(job.bits(expected), job.bits(folder))
                assert not found, f"other bits at {found[:5]}"
            except Exception as error:
                log.add(f"FAILED | {job.name} | {type(error).__name__}: {' '.join(str(error).split())}")
                raise
            where = "on a small disk" if disk else "on the disk"
            log.add(
                f"run {number + 1} | {job.name} | {where} | after {count} disturbances the bits of the undisturbed run"
            )


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # fmt: off
    parser.add_argument("--what", nargs="+", choices=[*PARTS, *GROWTHS], default=[*PARTS, *GROWTHS],
        help="What is disturbed or watched. Default: all.")
    parser.add_argument("--kills", type=int, default=200,
        help="Number of disturbances that the log shall have in the end. Default: %(default)s.")
    parser.add_argument("--kills_a_run", type=int, default=4,
        help="Number of disturbances from a start to its end, at most. Default: %(default)s.")
    parser.add_argument("--only", help="Of the jobs, run only those with this text in their name.")
    parser.add_argument("--work_dir", default="workdir/soak",
        help="Folder where the runs write, kept for the next start. Default: %(default)s.")
    parser.add_argument("--log", default="workdir/soak/log.txt",
        help="File with a line for every disturbance; what is in it is not done again. Default: %(default)s.")
    # fmt: on
    return parser.parse_args()


@ending_in_one_line(kept="what is in the log is not done again")
def main() -> None:
    args = parse_args()
    work, log = Path(args.work_dir).resolve(), Log(Path(args.log))
    jobs = [job for job in all_jobs(work) if job.part in args.what and (not args.only or args.only in job.name)]
    if jobs or "objects" in args.what:
        plain = next(job for job in all_jobs(work) if job.name == "training: plain")
        undisturbed(plain, work / place_of(plain.name) / "undisturbed")  # test.py scores what it leaves
    if jobs:
        soak(jobs, args.kills, args.kills_a_run, work, log)
        print(f"{log.kills} disturbances in {log.runs} runs, each of which ended with the bits of the undisturbed one")
    for name in args.what:
        if name in GROWTHS and name not in log.grown:
            log.add(f"growth {name}: {grow(name, work)}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:  # a command that is to be disturbed
        soak_jobs.with_small_model()
        soak_jobs.PROGRAMS[sys.argv[2]](sys.argv[3:])
    else:
        main()
