"""Spoiled files for every reader, and events for the app: each is taken, or refused in one line, soon and in bounds.

    python scripts/fuzz.py --inputs 20000 --log fuzz.jsonl
    python scripts/fuzz.py --reader nifti --number 17 --keep spoiled

Each reader gets its share of the inputs: a small valid input, of which one file is spoiled as the seed, the reader's
name and the input's number say. Inputs are read in worker processes. What comes out is one of

    accepted   a result
    refused    an error that a person can mend (UserError), of one line
    foreign    any other exception
    hang       nothing within --seconds
    memory     --megabytes more than the worker had when it started
    crash      the worker died

The last four are faults, and end the run with exit status 1 and the commands that repeat them; the spoiled files lie
beside the log. A run that is started again with its log does what is missing, and the faults again.

Then --events malformed events go to the handlers of the app, and a tenth as many to an app in a process of its own,
over sockets: see fuzz_app.py.
"""

import argparse
import contextlib
import faulthandler
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]
import fuzz_readers
from fuzz_mutations import spoiled
from process_memory import forget_peak, resident

from sam_med2d.cli import add_flag
from sam_med2d.errors import UserError

OUTCOMES = ("accepted", "refused", "foreign", "hang", "memory", "crash")
FAULTS = OUTCOMES[2:]
INPUTS_A_WORKER = 1000  # then another takes its place, so that what libraries keep does not add up
LOOK = 0.05  # seconds between two looks at a worker's memory
MB = 2**20

Job = tuple[str, int]  # a reader's name, the number of its input


# ---------------------------------------------------------------- in the worker


def inputs_of(reader: str, folder: Path) -> list[Path]:
    """The files of a reader's input that are spoiled."""
    return sorted(path for path in folder.glob(fuzz_readers.READERS[reader].files) if path.is_file())


def spoil(job: Job, seed: int, sources: Path, folder: Path) -> Path:
    """A reader's input into an empty folder, spoiled. sources: valid inputs, a folder each. -> the file that is."""
    reader, number = job
    rng = random.Random(f"{seed}/{reader}/{number}")
    shutil.copytree(sources / reader, folder)
    target = rng.choice(inputs_of(reader, folder))
    other = rng.choice([*fuzz_readers.READERS])
    others = [path.read_bytes() for path in inputs_of(other, sources / other)]
    target.write_bytes(spoiled(target.read_bytes(), fuzz_readers.READERS[reader].kind, others, rng))
    return target


def outcome_of(reader: str, folder: Path) -> tuple[str, str]:
    """-> one of OUTCOMES, and why."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fuzz_readers.READERS[reader].read(folder)
    except UserError as error:
        message = str(error).replace(str(folder), "")
        if len(message.splitlines()) == 1:
            return "refused", message[:300]
        return "foreign", f"{type(error).__name__} of {len(message.splitlines())} lines: {message[:300]}"
    except BaseException as error:
        return "foreign", f"{type(error).__name__} at {_place(error)}: {str(error)[:200]}"
    return "accepted", ""


def _place(error: BaseException) -> str:
    """The innermost of our lines, and where it went from there."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(ROOT / "sam_med2d")]
    ours += [frame for frame in frames if Path(frame.filename).is_relative_to(ROOT / "segment_anything")]
    shown = [ours[-1], frames[-1]] if ours else [frames[-1]]
    return " > ".join(dict.fromkeys(f"{Path(one.filename).name}:{one.lineno} {one.name}" for one in shown))


def work(connection: Connection, seed: int, sources: Path, folder: Path, seconds: float, stacks: Path) -> None:
    """Read the inputs that are asked for, one after the other, until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    with open(stacks, "w") as file:
        faulthandler.enable(file)
        faulthandler.register(signal.SIGUSR1, file)
        while True:
            try:
                job = connection.recv()
            except EOFError:
                return
            shutil.rmtree(folder, ignore_errors=True)
            spoil(job, seed, sources, folder)
            with contextlib.suppress(OSError):
                forget_peak()
            before, started = resident() / MB, time.monotonic()
            connection.send(before)
            faulthandler.dump_traceback_later(seconds, file=file)
            outcome, why = outcome_of(job[0], folder)
            took, grown = time.monotonic() - started, resident(most=True) / MB - before
            faulthandler.cancel_dump_traceback_later()
            connection.send((outcome, why, took, grown))


# ---------------------------------------------------------------- in the process that was started


class Worker:
    """A process that reads inputs, and what it is at."""

    def __init__(self, args: argparse.Namespace, sources: Path, folder: Path, number: int) -> None:
        self.folder, self._stacks = folder / f"input{number}", folder / f"stacks{number}"
        self.connection, other = multiprocessing.Pipe()
        context = multiprocessing.get_context("fork")  # what it imports has been imported here
        given = (other, args.seed, sources, self.folder, args.seconds, self._stacks)
        self._process = context.Process(target=work, args=given, daemon=True)
        self._process.start()
        other.close()
        self._first, self._started, self.done = 0.0, 0.0, 0
        self.job: Job | None = None

    def begin(self, job: Job) -> None:
        self.job = job
        self.connection.send(job)
        self._started = time.monotonic()

    def result(self) -> tuple[str, str, float, float] | None:
        """What it has said; None where it has only begun to read."""
        try:
            said = self.connection.recv()
        except EOFError:
            self._process.join()
            code = self._process.exitcode or 0
            what = signal.Signals(-code).name if code < 0 else f"exit status {code}"
            return "crash", f"{what} in {self._where()}", time.monotonic() - self._started, 0.0
        if isinstance(said, float):
            self._first, self._started = self._first or said, time.monotonic()
            return None
        self.done += 1
        return said

    def over(self, args: argparse.Namespace) -> tuple[str, str, float, float] | None:
        """hang or memory, where it has gone beyond a limit; it is ended then."""
        took = time.monotonic() - self._started
        try:
            grown = resident(self._process.pid or 0) / MB - self._first
        except OSError:
            return None
        outcome = "hang" if took > args.seconds + 0.5 else "memory" if self._first and grown > args.megabytes else ""
        if not outcome:
            return None
        os.kill(self._process.pid or 0, signal.SIGUSR1)  # where it is, before it is ended
        time.sleep(LOOK)
        self.end()
        return outcome, self._where(), took, grown

    def _where(self) -> str:
        """The innermost lines that faulthandler has written of the thread that was reading."""
        lines = [line.strip() for line in self._stacks.read_text().splitlines() if line.startswith("  File")]
        ours = [line for line in lines if str(ROOT / "sam_med2d") in line or str(ROOT / "segment_anything") in line]
        return " < ".join(line.replace(f"{ROOT}/", "") for line in dict.fromkeys(lines[:1] + ours[:1])) or "unknown"

    def end(self) -> None:
        self._process.kill()
        self._process.join()
        self.connection.close()


class Result(NamedTuple):
    reader: str
    number: int
    outcome: str
    why: str
    seconds: float
    megabytes: float


def run(args: argparse.Namespace, jobs: list[Job], sources: Path, folder: Path) -> Iterator[Result]:
    """The results of all jobs, as they come; a spoiled file that is a fault is kept."""
    todo = iter(jobs)
    workers = [Worker(args, sources, folder, number) for number in range(args.workers)]
    try:
        for worker in workers:
            _next(worker, todo)
        while busy := [worker for worker in workers if worker.job]:
            ready = wait([worker.connection for worker in busy], LOOK)
            for number, worker in enumerate(workers):
                if not worker.job:
                    continue
                result = worker.result() if worker.connection in ready else worker.over(args)
                if not result:
                    continue
                found = Result(*worker.job, *result)
                if found.outcome in FAULTS:
                    _keep(args, worker)
                yield found
                if found.outcome in ("hang", "memory", "crash") or worker.done >= INPUTS_A_WORKER:
                    worker.end()
                    workers[number] = worker = Worker(args, sources, folder, number)
                _next(worker, todo)
    finally:
        for worker in workers:
            worker.end()


def _next(worker: Worker, todo: Iterator[Job]) -> None:
    worker.job = None
    if job := next(todo, None):
        worker.begin(job)


def _keep(args: argparse.Namespace, worker: Worker) -> None:
    """The whole input, beside the log."""
    if args.log and worker.job:
        target = Path(f"{args.log}.faults") / f"{worker.job[0]}-{worker.job[1]}"
        shutil.rmtree(target, ignore_errors=True)
        with contextlib.suppress(OSError):
            shutil.copytree(worker.folder, target)


def make_sources(readers: list[str], folder: Path) -> None:
    """A valid input of each reader. Raises RuntimeError where a reader does not accept it."""
    for reader in readers:
        (folder / reader).mkdir(parents=True)
        fuzz_readers.READERS[reader].make(folder / reader)
    for reader in readers:
        with tempfile.TemporaryDirectory() as temporary:
            copy = Path(temporary) / "input"
            shutil.copytree(folder / reader, copy)
            outcome, why = outcome_of(reader, copy)
            if outcome != "accepted" or not inputs_of(reader, copy):
                raise RuntimeError(f"{reader}: its own valid input is {outcome}: {why}")


def _in_a_child(readers: list[str], folder: Path) -> None:
    """Made where it leaves no threads behind: workers are forked from this process."""
    process = multiprocessing.get_context("fork").Process(target=_silently, args=(readers, folder))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(process.exitcode)


def _silently(readers: list[str], folder: Path) -> None:
    with warnings.catch_warnings(), open(os.devnull, "w") as quiet:
        warnings.simplefilter("ignore")
        with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
            make_sources(readers, folder)


# ---------------------------------------------------------------- what comes of it


def done_before(log: Path | None, seed: int) -> dict[Job, Result]:
    """Of a log, what need not be done again: the last word on each input, faults apart."""
    found: dict[Job, Result] = {}
    if log and log.is_file():
        for line in log.read_text().splitlines():
            try:
                entry = json.loads(line)
            except ValueError:  # the line that a kill cut off
                continue
            if entry.pop("seed") == seed:
                result = Result(**entry)
                found[result.reader, result.number] = result
    return {job: result for job, result in found.items() if result.outcome not in FAULTS}


def table(results: list[Result]) -> Iterator[str]:
    """A line a reader: how many of each outcome, the slowest and the largest."""
    by_reader: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        by_reader[result.reader].append(result)
    yield f"{'reader':24}" + "".join(f"{outcome:>9}" for outcome in OUTCOMES) + f"{'slowest':>10}{'largest':>10}"
    for reader, ours in [*by_reader.items(), ("all", results)]:
        counts = Counter(result.outcome for result in ours)
        slowest, largest = max(result.seconds for result in ours), max(result.megabytes for result in ours)
        numbers = "".join(f"{counts[outcome]:9}" for outcome in OUTCOMES)
        yield f"{reader:24}{numbers}{slowest:8.2f} s{largest:7.0f} MB"


def faults(results: list[Result], seed: int) -> Iterator[str]:
    """A line for each kind of fault, and the command that repeats the first of it."""
    kinds: dict[tuple[str, str, str], list[Result]] = defaultdict(list)
    for result in results:
        if result.outcome in FAULTS:
            kinds[result.reader, result.outcome, result.why.partition(": ")[0]].append(result)
    for (reader, outcome, _), ours in kinds.items():
        yield f"{outcome} x {len(ours)} in {reader}: {ours[0].why}"
        yield f"    python scripts/fuzz.py --seed {seed} --reader {reader} --number {ours[0].number}"


def events_for_the_app(events: int, seed: int, seconds: float) -> list[str]:
    """Print what became of them. -> the first fault, if there is one."""
    import fuzz_app  # only now: it loads the model, and workers are forked from this process

    try:
        counts = fuzz_app.run(events, seed) + fuzz_app.run_over_sockets(events // 10, seed, seconds)
    except RuntimeError as error:
        return [f"foreign x 1 in the app: {error}", f"    python scripts/fuzz_app.py --seed {seed} --events {events}"]
    print(f"\n{'event':24}{'done':>9}{'refused':>9}", *fuzz_app.table(counts), sep="\n")
    return []


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # fmt: off
    parser.add_argument("--inputs", type=int, default=20_000,
        help="Number of spoiled inputs, over all readers. Default: %(default)s.")
    parser.add_argument("--events", type=int, default=20_000,
        help="Number of events for the app, unless --reader or --number are given. Default: %(default)s.")
    parser.add_argument("--seed", type=int, default=0,
        help="How inputs are spoiled is a function of this number. Default: %(default)s.")
    parser.add_argument("--workers", type=int, default=1, help="Number of processes that read. Default: %(default)s.")
    parser.add_argument("--reader", nargs="+", choices=[*fuzz_readers.READERS],
        help="Spoil inputs of these readers alone. Default: all.")
    parser.add_argument("--number", type=int, help="Read this input of each reader alone, and say what came of it.")
    parser.add_argument("--seconds", type=float, default=10,
        help="Time beyond which an input hangs. Default: %(default)s.")
    parser.add_argument("--megabytes", type=float, default=2048,
        help="Memory beyond which an input is a fault. Default: %(default)s.")
    parser.add_argument("--log", type=Path, help="A file of one line an input, which a run goes on from.")
    parser.add_argument("--keep", type=Path, help="With --number: a folder to put the spoiled input in.")
    add_flag(parser, "--quiet", False, help="Leave out the counter of inputs.")
    # fmt: on
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    readers = args.reader or [*fuzz_readers.READERS]
    numbers = range(-(-args.inputs // len(readers))) if args.number is None else [args.number]
    jobs = [(reader, number) for reader in readers for number in numbers]
    before = done_before(args.log, args.seed) if args.number is None else {}
    results = [before[job] for job in jobs if job in before]
    with tempfile.TemporaryDirectory(prefix="fuzz") as temporary, contextlib.ExitStack() as stack:
        folder = Path(temporary)
        sources = folder / "sources"
        _in_a_child([*fuzz_readers.READERS], sources)
        if args.keep:
            for job in jobs:
                print("spoiled:", spoil(job, args.seed, sources, args.keep / f"{job[0]}-{job[1]}"))
        log = stack.enter_context(open(args.log, "a")) if args.log and args.number is None else None
        for result in run(args, [job for job in jobs if job not in before], sources, folder):
            results.append(result)
            if log:
                log.write(json.dumps({"seed": args.seed, **result._asdict()}) + "\n")
                log.flush()
            if not args.quiet and sys.stderr.isatty():
                print(f"\r{len(results)} of {len(jobs)} {result.reader:24}", end="", file=sys.stderr)
            if args.number is not None:
                print(f"{result.reader} {result.number}: {result.outcome} {result.why}")
    print("\n".join(table(results)))
    found = [*faults(results, args.seed)]
    if args.events and not args.reader and args.number is None:
        found += events_for_the_app(args.events, args.seed, args.seconds)
    print("\n".join(found or ["no faults"]))
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
