"""A folder with one writer, files that two processes write at once, and what is checked before the work."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sam_med2d.errors import OutputError, UsageError
from sam_med2d.ownership import LOCK, OWNER, check_writable, owned
from segment_anything import files
from segment_anything.files import replacing
from tests.conftest import ROOT, file_system

HOLD = """
import sys, time; from pathlib import Path; from sam_med2d.ownership import owned
with owned(Path(sys.argv[1]), "a test"):
    print("held", flush=True); sys.stdin.read()
"""
REPLACE = """
import sys; from segment_anything.files import replacing
with replacing(sys.argv[1]) as temporary:
    temporary.write_text("of a process"); print("writing", flush=True); sys.stdin.read()
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator:
    """start(code, path) -> a process that has said its first word and waits for the end of its input."""
    processes = []

    def begin(code: str, path: Path) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", code, path], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        processes.append(process)
        assert process.stdout and process.stdout.readline()
        return process

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_second_writer_is_refused_and_told_who_the_first_one_is(tmp_path: Path, start) -> None:
    folder = tmp_path / "runs/one"
    process = start(HOLD, folder)
    with pytest.raises(UsageError) as error, owned(folder, "another test"):
        pass
    said = str(error.value)
    assert f"a test, process {process.pid} on {socket.gethostname()}" in said and str(folder) in said
    process.communicate("")
    assert process.returncode == 0
    with owned(folder, "another test"):
        (folder / "file").touch()
    assert names(folder) == ["file"]


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path, start) -> None:
    process = start(HOLD, tmp_path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert names(tmp_path) == [LOCK, OWNER]
    with owned(tmp_path, "test"):
        assert json.loads((tmp_path / OWNER).read_text())["process"] == os.getpid()
    assert names(tmp_path) == []


def test_the_same_process_cannot_own_a_folder_twice(tmp_path: Path) -> None:
    with owned(tmp_path, "first"), pytest.raises(UsageError, match="first"), owned(tmp_path, "second"):
        pass


@pytest.mark.parametrize("change, refused", [({}, True), ({"birth": "0" * 8}, False), ({"machine": "0" * 8}, True)])
def test_without_locks_the_owner_alone_decides(change: dict, refused: bool, tmp_path: Path, monkeypatch, start) -> None:
    """On a file system that has no locks. One of this machine that is gone is none, whoever has its number now."""

    class NoLock:
        def __init__(self, path: Path) -> None:
            pass

        def acquire(self, timeout: float) -> None:
            raise NotImplementedError

    process = start(HOLD, tmp_path)
    owner = json.loads((tmp_path / OWNER).read_text())
    assert owner["process"] == process.pid
    (tmp_path / OWNER).write_text(json.dumps(owner | change))
    monkeypatch.setattr("sam_med2d.ownership.FileLock", NoLock)
    if refused:
        with pytest.raises(UsageError, match="remove"), owned(tmp_path, "test"):
            pass
    else:
        with owned(tmp_path, "test"):
            pass


def test_a_folder_that_was_not_written_into_is_not_left(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), owned(tmp_path / "a/b", "test"):
        raise ZeroDivisionError
    check_writable(tmp_path / "c/d")
    assert names(tmp_path) == []


# ---------------------------------------------------------------- two processes, one file


def test_two_writers_of_one_file_do_not_disturb_each_other(tmp_path: Path, start) -> None:
    path = tmp_path / "file"
    process = start(REPLACE, path)
    with replacing(path) as temporary:
        temporary.write_text("ours")
    assert path.read_text() == "ours"
    process.communicate("")
    assert process.returncode == 0 and path.read_text() == "of a process" and names(tmp_path) == ["file"]


def test_threads_do_not_either(tmp_path: Path) -> None:
    path, faults = tmp_path / "file", []

    def write(number: int) -> None:
        try:
            for _ in range(30):
                with replacing(path) as temporary:
                    temporary.write_text(str(number) * 1000)
                assert len(set(path.read_text())) == 1
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=write, args=[n]) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults and names(tmp_path) == ["file"]


LEAVE = """
import os, signal, sys; from pathlib import Path
from sam_med2d import ownership
from sam_med2d.export.onnx_files import placed
from segment_anything.files import passing
print("started", flush=True)
folder = Path(sys.argv[1])
with placed(folder / "model.onnx") as path:
    path.write_bytes(b"half a graph")
    with passing(folder / "rows") as rows:
        rows.write_bytes(b"half of them")
        ownership.os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)  # while it tries to write
        ownership.check_writable(folder)
"""


def test_nothing_temporary_outlives_a_killed_process_for_long(tmp_path: Path, start) -> None:
    assert start(LEAVE, tmp_path).wait() == -signal.SIGKILL
    kinds = [name.split(".")[1] for name in names(tmp_path)]
    assert kinds == ["model", "probe", "rows"] and any(path.is_dir() for path in tmp_path.iterdir())
    with owned(tmp_path, "test"):
        (tmp_path / "file").touch()
    assert names(tmp_path) == ["file"]


def test_what_a_killed_process_left_is_removed_and_what_a_running_one_writes_is_not(tmp_path: Path, start) -> None:
    gone, running = start(REPLACE, tmp_path / "a"), start(REPLACE, tmp_path / "b")
    gone.send_signal(signal.SIGKILL)
    gone.wait()
    assert len(names(tmp_path)) == 2
    files._swept.discard(str(tmp_path))
    with replacing(tmp_path / "c") as temporary:
        temporary.touch()
    left, ours = names(tmp_path)
    assert left.startswith(".b.") and ours == "c"
    running.communicate("")
    assert names(tmp_path) == ["b", "c"]


def test_a_name_as_long_as_the_file_system_takes(tmp_path: Path) -> None:
    path = tmp_path / ("肝" * 85)
    with replacing(path) as temporary:
        temporary.write_text("whole")
    assert path.read_text() == "whole"


# ---------------------------------------------------------------- disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    with file_system(tmp_path / "disk", "2m") as folder:
        yield folder


def fill(folder: Path, leave: int = 0) -> None:
    with open(folder / "filler", "wb", buffering=0) as file, pytest.raises(OSError):
        while True:
            file.write(bytes(4096))
    os.truncate(folder / "filler", (folder / "filler").stat().st_size - leave)


def test_a_full_disk_is_found_before_the_work(small_disk: Path) -> None:
    check_writable(small_disk / "run", room=1 << 20)
    with pytest.raises(OutputError, match="2 MB free, but 10 MB will be written"):
        check_writable(small_disk / "run", room=10_000_000)
    fill(small_disk)
    with pytest.raises(OutputError, match="No space left"), owned(small_disk / "run", "test"):
        pass
    assert OutputError.status == 74


def test_a_read_only_disk_is_found_before_the_work(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    for folder in (small_disk, small_disk / "new"):
        with pytest.raises(OutputError, match=r"Read-only"), owned(folder, "test"):
            pass


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file/inner"):
        with pytest.raises(OutputError, match="cannot be written"), owned(folder, "test"):
            pass
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("writer", ["torch", "safetensors", "python"])
def test_a_disk_that_fills_up_is_an_oserror_that_names_the_file_and_the_old_one_stays(small_disk, writer) -> None:
    """torch and safetensors fail with errors of their own, which do not say why, or not in a way that programs read."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    path, big = small_disk / "last.pth", torch.zeros(1_000_000)
    path.write_text("old")
    write = {
        "torch": lambda temporary: torch.save({"model": big}, temporary),
        "safetensors": lambda temporary: save_file({"model": big}, temporary),
        "python": lambda temporary: temporary.write_bytes(bytes(4_000_000)),
    }[writer]
    with pytest.raises(OSError) as error, replacing(path) as temporary:
        write(temporary)
    assert error.value.errno == 28 and error.value.filename == str(path)
    assert path.read_text() == "old" and names(small_disk) == ["last.pth"]
