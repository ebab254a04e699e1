"""Processes that join: none waits long for one that is gone, and all hear signals meanwhile."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from sam_med2d import distributed
from sam_med2d.cli import ending_in_one_line
from sam_med2d.distributed import join_processes
from sam_med2d.errors import UsageError
from tests.conftest import ROOT
from tests.training.parallel_cases import free_port

CONNECT = 4  # seconds, in place of a minute
WAIT = 60  # seconds, for what takes a few
LEAVING = """
import atexit, torch
from sam_med2d.distributed import join_processes
atexit.register(lambda: print("still a member" if torch.distributed.is_initialized() else "has left"))  # at last
processes = join_processes(patience=60)
print(processes.gather(processes.rank))
raise SystemExit(3)
"""


def killed(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Joining:
    """Some of the processes of a run: forks of this one, so that torch is loaded once."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name, self.port = folder / name, name, free_port()
        self.folder.mkdir()
        self.processes: dict[int, int] = {}

    def start(self, rank: int, count: int, **what: object) -> "Joining":
        """what: see `_join`."""
        pid = os.fork()
        if not pid:
            try:
                self._join(rank, count, **what)
            except SystemExit as error:
                os._exit(int(error.code or 0))
            finally:
                os._exit(99)
        self.processes[rank] = pid
        return self

    def _join(
        self, rank: int, count: int, join: float = 300, connect: Callable | None = None, then: Callable | None = None
    ) -> None:
        """join: seconds for starting; connect: in place of connecting; then: once all have joined."""
        told = os.open(self.folder / f"{rank}", os.O_WRONLY | os.O_CREAT)
        sys.stdout = sys.stderr = os.fdopen(told, "w", buffering=1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what PyTorch's C++ says beside us
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.port)}
        os.environ.update(place, RANK=str(rank), WORLD_SIZE=str(count))
        distributed.JOIN, distributed.CONNECT = join, CONNECT
        if connect:
            torch.distributed.init_process_group = connect
        with ending_in_one_line():
            print("joining")
            processes = join_processes(patience=100)
            if then:
                then()
            print(processes.gather(processes.rank))
        raise SystemExit(0)

    def ends(self) -> dict[int, tuple[int, str]]:
        """Of each rank the exit status and what it has said."""
        found, deadline = {}, time.monotonic() + WAIT
        for rank, pid in self.processes.items():
            while not (done := os.waitpid(pid, os.WNOHANG))[0]:
                assert time.monotonic() < deadline, (self.name, rank, (self.folder / f"{rank}").read_text())
                time.sleep(0.02)
            found[rank] = os.waitstatus_to_exitcode(done[1]), (self.folder / f"{rank}").read_text().strip()
        self.processes.clear()
        return found


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, dict[int, tuple[int, str]]]]:
    """How runs end that are all at it at the same time."""
    folder = tmp_path_factory.mktemp("joining")
    runs = [
        Joining(folder, "second killed").start(0, 2).start(1, 2, connect=killed),
        Joining(folder, "first killed").start(0, 2, connect=killed).start(1, 2),
        Joining(folder, "second missing").start(0, 3, join=3).start(2, 3, join=3),
        Joining(folder, "first missing").start(1, 2, join=1),
        Joining(folder, "slow").start(0, 2).start(1, 2, then=lambda: time.sleep(CONNECT + 1)),
        stopped := Joining(folder, "stopped").start(0, 2),
    ]
    try:
        deadline = time.monotonic() + WAIT
        while not (told := stopped.folder / "0").exists() or "joining" not in told.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(0.3)
        os.kill(stopped.processes[0], signal.SIGTERM)
        yield {run.name: run.ends() for run in runs}
    finally:
        for pid in [pid for run in runs for pid in run.processes.values()]:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


@pytest.mark.parametrize(("name", "victim"), [("second killed", 1), ("first killed", 0)])
def test_one_that_is_killed_while_joining_ends_the_other(ends, name: str, victim: int) -> None:
    assert ends[name][victim] == (-signal.SIGKILL, "joining")
    status, said = ends[name][1 - victim]
    assert status == 75 and said.count("\n") == 1, said
    assert "error: another of the processes of this run has ended, or cannot be reached (" in said


def test_those_that_never_start_are_named(ends) -> None:
    said = [said for status, said in ends["second missing"].values() if status == 75]
    assert len(said) == 2  # the first to tell is one of two; the other one may only see it go
    assert any("of the processes of this run, 0 to 2, 1 did not start within 3 s: look" in line for line in said)
    ((status, line),) = ends["first missing"].values()
    assert status == 75 and "process 0 of this run could not be reached at 127.0.0.1:" in line


def test_one_that_waits_for_the_others_hears_signals(ends) -> None:
    assert ends["stopped"] == {0: (143, "joining\nstopped by SIGTERM")}


def test_those_that_have_joined_wait_with_patience(ends) -> None:
    assert ends["slow"] == dict.fromkeys(range(2), (0, "joining\n[0, 1]"))


def test_they_leave_before_the_interpreter_goes() -> None:
    """Else gloo's threads sometimes end what is done by SIGABRT ("terminate called without an active exception")."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", LEAVING]
    processes = [
        subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env={**os.environ, **place, "RANK": rank})
        for rank in "01"
    ]
    assert [process.communicate(timeout=WAIT)[0] for process in processes] == ["[0, 1]\nhas left\n"] * 2
    assert [process.returncode for process in processes] == [3, 3]


def test_no_place_to_meet(monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(UsageError, match="not MASTER_ADDR and MASTER_PORT .* torchrun"):
        join_processes()
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(taken.getsockname()[1]))
        with pytest.raises(UsageError, match=r"127\.0\.0\.1:\d+, where .* is not free .* another"):
            join_processes()
