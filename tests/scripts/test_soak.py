"""scripts/soak.py with jobs of its own: what holds is told, and what does not is caught."""

import random
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import soak
import soak_growth
import torch
from soak_growth import Taken
from soak_jobs import Job, differences

# counts to 12 in a file, and goes on where it was; argv: the folder, a suffix of the file that is written first
COUNTING = """
import os, pathlib, sys, time
place = pathlib.Path(sys.argv[1], "count")
for count in range(int(place.read_text() or 0) if place.exists() else 0, 12):
    time.sleep(0.02)
    part = place.with_name("count" + sys.argv[2])
    try:
        with open(part, "w", buffering=1) as file:
            file.flush()
            time.sleep(0.02)
            file.write(str(count + 1))
    except OSError:
        sys.exit(74)  # as commands end that cannot write
    os.replace(part, place)
"""


@dataclass(frozen=True)
class Small(Job):
    """argv: of the program."""

    argv: tuple[str, ...] = (".part",)

    def command(self, folder: Path) -> list[str]:
        return [sys.executable, "-S", "-c", self.program, str(folder), *self.argv]


def count_held(folder: Path, undisturbed: Path) -> str:
    text = (folder / "count").read_text() if (folder / "count").exists() else "0"
    assert text, "count is empty"
    return f"count is {text}"


def bits(folder: Path) -> dict[str, object]:
    return {path.name: path.read_text() for path in folder.iterdir() if not path.name.endswith(".part")}


GOOD = Small("good", "training", COUNTING, lambda folder: [], count_held, bits)


def run(job: Job, folder: Path, kills: int = 3) -> list[str]:
    """-> the lines of the log, also of a run that failed."""
    log = soak.Log(folder / "log")
    try:
        soak.soak([job], kills, 3, folder, log)
    finally:
        lines = (folder / "log").read_text().splitlines() if (folder / "log").exists() else []
    return lines


def test_what_holds_is_told_after_every_kill_and_a_log_goes_on(tmp_path: Path, capfd) -> None:
    lines = run(GOOD, tmp_path)
    assert [line.startswith("kill") for line in lines].count(True) == 3
    ways = ("SIGKILL", "SIGTERM", "full disk")
    for line in (line for line in lines if line.startswith("kill")):
        assert line.split(" | ")[2].startswith(ways) and "count is " in line, line
    assert any("after 3 disturbances the bits" in line or "the bits of the undisturbed run" in line for line in lines)
    again = run(GOOD, tmp_path, 4)
    assert again[: len(lines)] == lines and sum(line.startswith("kill 4 ") for line in again) == 1


@pytest.mark.parametrize(
    ("job", "said"),
    [
        (replace(GOOD, argv=("",)), "count is empty"),  # written in its place
        (
            replace(GOOD, program=COUNTING + "\npathlib.Path(sys.argv[1], 'x').write_text(str(os.getpid()))"),
            "other bits",
        ),
        (
            replace(
                GOOD, program="import time\ntry:\n    time.sleep(0.4)\nexcept BaseException:\n    pass\nraise OSError"
            ),
            "",
        ),
    ],
)
def test_what_does_not_hold_is_caught(tmp_path: Path, job: Job, said: str, capfd) -> None:
    if said:
        with pytest.raises((AssertionError, ValueError)) as caught:
            run(job, tmp_path, 200)
        assert said in str(caught.value)
        assert (tmp_path / "log").read_text().splitlines()[-1].startswith("FAILED | good | ")
    else:
        with pytest.raises(AssertionError, match="Traceback"):
            run(job, tmp_path, 200)


def test_what_grows_is_caught() -> None:
    steady = [Taken(100 + (i % 3), 200, 9) for i in range(100)]
    assert soak_growth.verdict(steady).startswith("memory 101 -> 101 MB, with workers 200 -> 200 MB, open files 9 -> 9")
    for grown in (
        [one._replace(own=100 + i) for i, one in enumerate(steady)],
        [one._replace(all=200 + i) for i, one in enumerate(steady)],
        [one._replace(handles=9 + i // 20) for i, one in enumerate(steady)],
        steady[:10],
    ):
        with pytest.raises(AssertionError):
            soak_growth.verdict(grown)


def test_differences_are_named() -> None:
    draw = random.Random(0)
    one = {"a": torch.tensor([draw.random()]), "b": [1, {"c": 2.0}]}
    assert differences(one, {"a": one["a"].clone(), "b": [1, {"c": 2.0}]}) == []
    assert differences(one, {"a": one["a"] + 1e-7, "b": [1, {"c": 3.0}], "d": 0}) == [
        "/d is in one of them",
        "/a",
        "/b/1/c",
    ]
