"""scripts/fuzz_app.py: no event of a hundred is a fault, and one that is ends the run by its number."""

import fuzz_app
import pytest

from sam_med2d.app.handlers import EVENTS


def test_events_are_done_or_refused_and_change_nothing_then() -> None:
    counts = fuzz_app.run(150)
    assert counts.total() == 150 and {name for name, _ in counts} == {*EVENTS, "no event"}
    done = sum(count for (_, outcome), count in counts.items() if outcome == "done")
    assert 40 < done < 110


def test_a_fault_is_told_with_its_event(monkeypatch) -> None:
    monkeypatch.setitem(EVENTS, "undo", lambda session, values: session.no_such_method())
    with pytest.raises(RuntimeError, match=r"^event \d+ of seed 0, .*'do': 'undo'.*AttributeError"):
        fuzz_app.run(60)
