"""Malformed events for every handler of the app: each is done, or refused in one line with the session as it was.

    python scripts/fuzz_app.py --events 20000 --over_sockets 2000

Events are generated from the seed and their number, for a real session with the small model, before and after a picture
is open. Those over sockets go to the app in a process of its own, as bodies of requests that are spoiled further, byte
by byte: what is answered must be JSON, and soon. What comes out is counted by handler; the first fault ends the run
with the event that repeats it. `python scripts/fuzz.py` does all of this too.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]
from app_client import Page, running
from fuzz_mutations import spoiled
from fuzz_readers import READERS

from sam_med2d.app.handlers import EVENTS, act
from sam_med2d.app.view import view_of
from sam_med2d.errors import UserError
from sam_med2d.inference.models import SMALL, WITHOUT, open_model
from sam_med2d.inference.session import AnnotationSession

PICTURE = ROOT / "data_demo/images/mni152_axial_094.png"
OVER_SOCKETS = {("over sockets", outcome) for outcome in ("done", "refused")}
NAMES = ("line", "x", "y", "on", "x0", "y0", "x1", "y1", "number", "name", "low", "high", "step")
ODD = (None, True, False, "", "1", [], {}, [[]], {"x": 1}, -1, 0, 1, 0.5, 1e400, -1e400, float("nan"), 10**400, 1e308)
TEXTS = ("\0", "\ud800", "<script>", "../..", "=1+1", "x" * 5000, "\u202e")


def event_of(seed: int, number: int) -> object:
    """The event of that number: sound in most parts, so that it gets past the first check."""
    rng = random.Random(f"{seed}/{number}")
    if rng.random() < 0.05:
        return rng.choice((*ODD, *TEXTS))
    event: dict[str, object] = {"do": rng.choice([*EVENTS]) if rng.random() < 0.95 else rng.choice((*ODD, *TEXTS))}
    for name in NAMES:
        places = [[rng.uniform(0, 159), rng.uniform(0, 159)] for _ in range(rng.randrange(7))]
        sound = {
            "line": places,
            "on": rng.random() < 0.5,
            "name": "object",
            "step": rng.choice((-1, 1)),
            "number": rng.randrange(4),
        }
        event[name] = sound.get(name, rng.uniform(0, 159))
        if rng.random() < 0.1:
            event[name] = rng.choice((*ODD, *TEXTS))
        elif rng.random() < 0.05:
            del event[name]
    return event


def outcome_of(session: AnnotationSession, event: object) -> str:
    """done or refused. Raises AssertionError where a refusal changed the session or is no line."""
    before = view_of(session)
    try:
        act(session, event)
    except UserError as error:
        assert len(str(error).splitlines()) == 1 and len(str(error)) < 400, f"not one line: {error}"
        assert view_of(session) == before, "the session is not as it was"
        return "refused"
    json.dumps(view_of(session), allow_nan=False)
    return "done"


def make_scan(folder: Path) -> Path:
    """A volume of four slices."""
    READERS["nifti"].make(folder)
    return folder / "scan.nii"


def opened_at(number: int, events: int, scan: Path) -> Path | None:
    """What is opened before an event: nothing for a while, then a picture, then a scan."""
    return {events // 10: PICTURE, events // 2: scan}.get(number)


def run(events: int, seed: int = 0) -> Counter:
    """-> {(handler, outcome): count}. Raises RuntimeError: an event that is a fault."""
    with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
        return _run(events, seed, Path(folder))


def _run(events: int, seed: int, folder: Path) -> Counter:
    session = AnnotationSession({WITHOUT: open_model(SMALL, device="cpu")})
    counts: Counter = Counter()
    scan = make_scan(folder)
    session.zoom = "never"  # crops are not what is tried here, and take their time
    for number in range(events):
        if path := opened_at(number, events, scan):
            session.open(path)
        event = event_of(seed, number)
        try:
            outcome = outcome_of(session, event)
        except Exception as error:
            raise RuntimeError(f"event {number} of seed {seed}, {event!r}: {type(error).__name__}: {error}") from error
        name = event.get("do") if isinstance(event, dict) else None
        counts[name if isinstance(name, str) and name in EVENTS else "no event", outcome] += 1
    return counts


def body_of(seed: int, number: int) -> bytes:
    """What is sent of the event of that number: JSON, of every third spoiled."""
    body = json.dumps(event_of(seed, number)).encode()
    rng = random.Random(f"{seed}/body/{number}")
    return spoiled(body, "json", [], rng) if rng.random() < 0.33 else body


def run_over_sockets(events: int, seed: int = 0, seconds: float = 10) -> Counter:
    """seconds: after which an answer comes too late. -> {("over sockets", outcome): count}.

    Raises RuntimeError: an event that is a fault, or what the app said.
    """
    counts: Counter = Counter()
    with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
        with running(Path(folder)) as app:
            page = Page(app)
            view, scan = page.view(), make_scan(Path(folder))
            for number in range(events):
                if path := opened_at(number, events, scan):
                    view = page.open(path)
                body, started = body_of(seed, number), time.monotonic()
                try:
                    status, answer = page.send(body)
                    took = time.monotonic() - started
                    if status == 200:
                        view, outcome = answer["view"], "done"
                    else:
                        said, outcome = answer["error"], "refused"
                        assert status in (400, 413) and len(said.splitlines()) == 1 and len(said) < 400, (status, said)
                        assert page.view() == view, "the session is not as it was"
                    assert took < seconds, f"answered after {took:.1f} s"
                except Exception as error:
                    told = f"event {number} of seed {seed} over sockets, {body[:300]!r}"
                    raise RuntimeError(f"{told}: {type(error).__name__}: {error}") from error
                counts["over sockets", outcome] += 1
        if "Traceback" in app.output or "warning" in app.output:
            raise RuntimeError(f"events of seed {seed} over sockets: the app said {app.output[-2000:]}")
    return counts


def table(counts: Counter) -> list[str]:
    """A line a handler."""
    names = [*EVENTS, "no event", *(["over sockets"] if counts.keys() & OVER_SOCKETS else [])]
    return [f"{name:24}{counts[name, 'done']:9}{counts[name, 'refused']:9}" for name in names]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # fmt: off
    parser.add_argument("--events", type=int, default=5000, help="Number of events. Default: %(default)s.")
    parser.add_argument("--over_sockets", type=int, default=0,
        help="Number of events more that are sent over sockets. Default: none.")
    parser.add_argument("--seconds", type=float, default=10,
        help="Time beyond which an answer over sockets is a fault. Default: %(default)s.")
    parser.add_argument("--seed", type=int, default=0,
        help="The events are a function of this number. Default: %(default)s.")
    # fmt: on
    args = parser.parse_args(argv)
    counts = run(args.events, args.seed)
    print(f"{'event':24}{'done':>9}{'refused':>9}", *table(counts), sep="\n", flush=True)
    if args.over_sockets:
        counts += run_over_sockets(args.over_sockets, args.seed, args.seconds)
        print(table(counts)[-1])
    print(f"{counts.total()} events, no faults")


if __name__ == "__main__":
    main()
