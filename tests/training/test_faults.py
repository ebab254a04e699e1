"""train.py as a process under real signals and on real disks: what it keeps, what it says, how it exits."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import train
from tests.conftest import fails, file_system
from tests.training.helpers import RUN, WITH_MINI, differences

FLAGS = shlex.split(
    "--model_type mini --image_size 64 --sam_checkpoint none --mask_num 2 --iter_point 2 --prompt_modes bbox "
    "--device cpu --lr_scheduler cosine --augment --save_every 0"
)
SLOWER = ["--model_type", "vit_t"]  # which does not end while somebody looks
WAIT = 120  # seconds, for what takes one


def start(data: Path, work: Path, *flags: object, epochs: int = 2) -> subprocess.Popen:
    words = ["--data_path", data, "--work_dir", work, "--epochs", epochs, *flags]
    return subprocess.Popen(
        [sys.executable, WITH_MINI, "train.py", *FLAGS, *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a process group of its own, as a terminal gives each command
    )


def ended(process: subprocess.Popen) -> str:
    """What it said on stderr."""
    try:
        return process.communicate(timeout=WAIT)[1]
    finally:
        process.kill()


def wait_for_step(process: subprocess.Popen, count: int) -> None:
    """Until its bar says that so many batches are done."""
    assert process.stderr
    said = ""
    while not (found := re.findall(r"(\d+)/\d+ \[", said)) or int(found[-1]) < count:
        letter = process.stderr.read(1)
        assert letter, f"it ended: {said}"
        said += letter


def group_is_gone(process: subprocess.Popen) -> bool:
    deadline = time.monotonic() + 30  # a worker looks for its parent every few seconds
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.2)
    return False


def last(work: Path) -> dict:
    return torch.load(work / "models" / RUN / "last.pth", weights_only=True)


@pytest.mark.parametrize("number, workers", [(signal.SIGINT, 0), (signal.SIGTERM, 2)])
def test_stopped_in_the_first_epoch_it_saves_and_goes_on_as_if_nothing_had_been(
    number: signal.Signals, workers: int, data: Path, work: Path
) -> None:
    """The signal goes to the whole group, as from a terminal or a scheduler: to workers too."""
    process = start(data, work, "--num_workers", workers, *SLOWER, epochs=1)
    wait_for_step(process, 1)
    os.killpg(process.pid, number)
    said = ended(process)
    assert process.returncode == 128 + number, said
    assert "Traceback" not in said
    line = said.replace("\r", "\n").strip().splitlines()[-1]
    step = last(work)["progress"]["step"]
    assert re.search(rf"stopped by (Ctrl-C|SIGTERM): step {step} is in .*last\.pth; go on with --resume$", line)
    assert 1 <= step <= 3 and last(work)["progress"]["epoch"] == 0
    assert [path.name for path in (work / "models" / RUN).iterdir()] == ["last.pth"]
    assert group_is_gone(process)

    if workers == 0:
        return
    # in this process: the start of another one takes longer than a run
    flags = [*FLAGS, *SLOWER, "--data_path", str(data), "--epochs", "1"]
    train.main([*flags, "--work_dir", str(work), "--resume"])
    train.main([*flags, "--work_dir", str(work / "whole")])
    assert differences(last(work), last(work / "whole")) == []


def test_stopped_before_the_first_step(data: Path, work: Path) -> None:
    process = start(data, work)
    deadline = time.monotonic() + WAIT
    while not (work / "models" / RUN / ".owner").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    said = ended(process)
    assert process.returncode == 143 and "Traceback" not in said
    assert re.search(r"^stopped by SIGTERM: ", said.replace("\r", "\n").strip().splitlines()[-1])
    assert not (work / "models" / RUN / ".owner").exists()


def test_two_runs_of_one_name(data: Path, work: Path) -> None:
    first = start(data, work, epochs=50)
    try:
        wait_for_step(first, 1)
        first.send_signal(signal.SIGSTOP)  # it is there, and takes no time from the second
        second = start(data, work, "--overwrite")
        said = ended(second)
        first.send_signal(signal.SIGCONT)
        assert second.returncode == 1 and "Traceback" not in said
        assert f"train.py, process {first.pid} on " in said and said.startswith("error: ") and said.count("\n") == 1
        assert first.poll() is None
    finally:
        first.send_signal(signal.SIGTERM)
        ended(first)
    assert first.returncode == 143


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB, less than a checkpoint."""
    with file_system(tmp_path / "disk", "4m") as folder:
        yield folder


def test_a_disk_without_room_for_checkpoints_is_found_before_training(data: Path, disk: Path) -> None:
    process = start(data, disk / "work")
    said = ended(process)
    assert process.returncode == 74 and "Traceback" not in said and "batch" not in said
    assert re.fullmatch(r"error: .*models/.*: has \d+ MB free, but \d+ MB will be written; .*\n", said)


def test_a_disk_that_fills_up_leaves_the_last_checkpoint_whole(data: Path, disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=60m", disk], check=True)
    process = start(data, disk / "work", "--save_every", 1, epochs=500)
    deadline = time.monotonic() + WAIT
    while not (disk / "work/models" / RUN / "last.pth").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    with open(disk / "filler", "wb", buffering=0) as file:  # somebody else fills it
        while process.poll() is None and time.monotonic() < deadline:
            try:
                file.write(bytes(1 << 20))
            except OSError:
                time.sleep(0.05)
    said = ended(process)
    assert process.returncode == 74, said
    assert "Traceback" not in said
    line = said.replace("\r", "\n").strip().splitlines()[-1]
    assert re.fullmatch(r"error: .*: No space left on device; make room .*", line)
    assert last(disk / "work")["progress"]["step"] >= 1
    left = {path.name for path in (disk / "work/models" / RUN).iterdir()}
    assert left <= {"last.pth", "best.pth"}


def test_a_file_where_the_folder_of_the_run_should_be(data: Path, work: Path) -> None:
    work.mkdir()
    (work / "models").write_text("mine")
    process = start(data, work)
    said = ended(process)
    assert process.returncode == 74 and re.fullmatch(r"error: .*models/.*: cannot be written .*\n", said)


@pytest.mark.parametrize("flags", [["--run_name", "../../out"], ["--run_name", "/tmp/out"]])
def test_a_run_stays_in_its_folder(flags: list[str], data: Path, work: Path) -> None:
    words = [*FLAGS, "--data_path", str(data), "--work_dir", str(work), *flags]
    assert fails(lambda: train.main(words)).startswith("error: --run_name ")
    assert not work.exists()
