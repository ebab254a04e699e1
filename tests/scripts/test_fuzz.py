"""scripts/fuzz.py: no reader fails on some spoiled inputs, and a reader that does is caught and named."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("highdicom", reason="the extra data is not installed")

import fuzz
import fuzz_readers
from fuzz_mutations import FORMATS

from sam_med2d.errors import DataError
from tests.conftest import ROOT

EACH = 20  # inputs of every reader
BAD = """
import os, sys, time
sys.path.insert(0, "scripts")
import fuzz, fuzz_readers
from sam_med2d.errors import DataError

log, each, count = sys.argv[1], int(sys.argv[2]), len(fuzz_readers.READERS)
print("STATUS", fuzz.main(["--inputs", str(each * count), "--seconds", "60", "--log", log, "--events", "50"]))

def hold():
    held = b"x" * 500_000_000
    time.sleep(60)

class Talkative(DataError):
    def __str__(self):
        return "one line\\nand another"

def of_two_lines():
    raise Talkative("")

def reader(misbehave):
    def read(folder):
        if (folder / "a").read_bytes() != b"whole" * 9:
            misbehave()
    return fuzz_readers.Reader(lambda folder: (folder / "a").write_bytes(b"whole" * 9), read, "*")

fuzz_readers.READERS.clear()
fuzz_readers.READERS.update(
    foreign=reader(lambda: 1 / 0), lines=reader(of_two_lines), hang=reader(lambda: time.sleep(60)),
    memory=reader(hold), crash=reader(os.abort), fine=reader(lambda: None),
)
bad = ["--inputs", "6", "--seconds", "3", "--megabytes", "300", "--log", log + ".bad", "--events", "0"]
print("STATUS", fuzz.main(bad))
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """What two runs print, of the readers and of bad ones, and the log of the first."""
    log = tmp_path_factory.mktemp("fuzz") / "log.jsonl"
    command = [sys.executable, "-c", BAD, str(log), str(EACH)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split("STATUS"), log


def test_no_reader_fails_on_spoiled_inputs(said) -> None:
    (report, *_), log = said
    assert "no faults" in report, report
    (sockets,) = [line.split() for line in report.splitlines() if line.startswith("over sockets")]
    assert int(sockets[2]) + int(sockets[3]) == 5, "of 50 events"
    count = EACH * len(fuzz_readers.READERS)
    results = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(results) == count and {one["outcome"] for one in results} == {"accepted", "refused"}
    assert {one["reader"] for one in results} == {*fuzz_readers.READERS}
    refused = [one["reader"] for one in results if one["outcome"] == "refused"]
    assert len(refused) > count / 2, "most of what is spoiled cannot be read"


def test_bad_readers_are_caught_and_the_way_to_repeat_each_is_told(said) -> None:
    (_, good, bad), log = said
    assert good.startswith(" 0\n") and bad == " 1\n"
    for reader in ("foreign", "lines", "hang", "memory", "crash"):
        outcome = "foreign" if reader == "lines" else reader
        assert f"{outcome} x 1 in {reader}: " in good
        assert f"python scripts/fuzz.py --seed 0 --reader {reader} --number 0" in good
        assert (log.parent / "log.jsonl.bad.faults" / f"{reader}-0" / "a").is_file()
    assert "ZeroDivisionError" in good and "SIGABRT" in good and "Talkative of 2 lines" in good
    assert "fine" in good and "in fine" not in good


def test_an_input_is_a_function_of_seed_reader_and_number(tmp_path: Path) -> None:
    readers = [*fuzz_readers.READERS]
    fuzz.make_sources(readers, tmp_path / "sources")
    of_seeds = []
    for attempt, seed in enumerate((0, 0, 1)):
        contents = {}
        for job in [(reader, number) for reader in readers for number in range(3)]:
            folder = tmp_path / f"{attempt}-{job[0]}-{job[1]}"
            contents[job] = fuzz.spoil(job, seed, tmp_path / "sources", folder).read_bytes()
        of_seeds.append(contents)
    assert of_seeds[0] == of_seeds[1]
    assert sum(of_seeds[0][job] != of_seeds[2][job] for job in of_seeds[0]) > 2 * len(readers)


def test_a_log_says_what_is_done(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    entry = {"seed": 0, "reader": "npy", "number": 0, "outcome": "refused", "why": "", "seconds": 0.1, "megabytes": 0}
    entries = [entry, {**entry, "number": 1, "outcome": "hang"}, {**entry, "seed": 1, "number": 2}]
    log.write_text("".join(json.dumps(one) + "\n" for one in entries) + '{"seed": 0, "rea')
    assert [*fuzz.done_before(log, 0)] == [("npy", 0)]
    assert fuzz.done_before(None, 0) == {} == fuzz.done_before(tmp_path / "none", 0)


def test_every_format_that_is_spoiled_as_such_is_known() -> None:
    assert {reader.kind for reader in fuzz_readers.READERS.values()} == {"bytes", *FORMATS} - {"zip"}


def test_a_valid_input_that_is_refused_is_a_fault_of_the_fuzzer(tmp_path: Path, monkeypatch) -> None:
    def refuse(folder: Path) -> None:
        raise DataError("no")

    monkeypatch.setitem(fuzz_readers.READERS, "npy", fuzz_readers.READERS["npy"]._replace(read=refuse))
    with pytest.raises(RuntimeError, match="npy: its own valid input is refused: no"):
        fuzz.make_sources(["npy"], tmp_path)
