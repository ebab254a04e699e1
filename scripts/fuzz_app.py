"""Malformed events for every handler of the app: each is done, or refused in one line with the session as it was.

    python scripts/fuzz_app.py --events 5000

Events are generated from the seed and their number, for a real session with the small model, before and after a picture
is open. What comes out is counted by handler; the first fault ends the run with the event that repeats it.
"""

import argparse
import json
import random
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]
from sam_med2d.app.handlers import EVENTS, act
from sam_med2d.app.view import view_of
from sam_med2d.errors import UserError
from sam_med2d.inference.models import SMALL, WITHOUT, open_model
from sam_med2d.inference.session import AnnotationSession

PICTURE = ROOT / "data_demo/images/mni152_axial_094.png"
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


def run(events: int, seed: int = 0) -> Counter:
    """-> {(handler, outcome): count}. Raises RuntimeError: an event that is a fault."""
    session = AnnotationSession({WITHOUT: open_model(SMALL, device="cpu")})
    counts: Counter = Counter()
    session.zoom = "never"  # crops are not what is tried here, and take their time
    for number in range(events):
        if number == events // 10:
            session.open(PICTURE)
        event = event_of(seed, number)
        try:
            outcome = outcome_of(session, event)
        except Exception as error:
            raise RuntimeError(f"event {number} of seed {seed}, {event!r}: {type(error).__name__}: {error}") from error
        name = event.get("do") if isinstance(event, dict) else None
        counts[name if isinstance(name, str) and name in EVENTS else "no event", outcome] += 1
    return counts


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=5000, help="how many events; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="another one makes other events; default: %(default)s")
    args = parser.parse_args(argv)
    counts = run(args.events, args.seed)
    for name in (*EVENTS, "no event"):
        print(f"{name:10}{counts[name, 'done']:7} done{counts[name, 'refused']:7} refused")
    print(f"{counts.total()} events, no faults")


if __name__ == "__main__":
    main()
