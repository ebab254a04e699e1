"""What a long run needs: steps that wait for nobody, averages, the end of patience, files that cannot be read or
written, states that are kept, processes that are lost.
"""

import errno
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

import train
from sam_med2d.training.averaging import Average
from sam_med2d.training.learner import Learner, with_decay
from sam_med2d.training.rounds import Recipe, train_batch
from sam_med2d.training.state import Progress, RunState, kept_states
from tests.conftest import fails
from tests.training.helpers import FLAGS, RUN, WITH_MINI, fit, make_data, saved, truncated_image
from tests.training.parallel_cases import Case, images_of, model_of, start

WAIT = 600  # seconds, for what takes ten on a machine with nothing else to do


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"), ("train", "val"), images=2)


def test_nothing_is_read_from_the_device_in_a_step(monkeypatch) -> None:
    """On a GPU each of these would wait for all that was asked of it. `numpy` is for the CPU's own tensors alone: of a
    tensor of a GPU it is an error.
    """
    model = model_of(Case(double=False))
    learner = Learner(model, lr=1e-4, clip_norm=1.0)
    average = Average(model, 0.9)
    asked = []
    for name in ("item", "tolist", "cpu", "__bool__", "__int__", "__float__", "__index__", "nonzero"):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor,
            name,
            lambda tensor, *rest, name=name, original=original: (asked.append(name), original(tensor, *rest))[1],
        )
    bool(torch.ones(()))
    assert asked == ["__bool__"]  # the net holds
    asked.clear()
    parts = [*images_of(3, 0, 1)[0].parts(2)]
    asked.clear()  # parts are cut on the CPU
    scalars = train_batch(model, parts, learner, Recipe(corrections=4), 0)
    average.update(0)
    assert asked == [] and scalars["loss/loss"] > 0


def test_the_average_is_that_of_the_formula() -> None:
    model = model_of(Case())
    average = Average(model, 0.8)
    name, parameter = next((name, p) for name, p in model.named_parameters() if p.requires_grad)
    expected = parameter.detach().clone()
    for step in range(50):
        with torch.no_grad():
            parameter.add_(step)
        average.update(step)
        kept = min(0.8, (1 + step) / (10 + step))
        expected = kept * expected + (1 - kept) * parameter.detach()
    torch.testing.assert_close(average.tensors[name], expected)
    own = parameter.detach().clone()
    with average.in_place():
        torch.testing.assert_close(parameter.detach(), expected)
    assert torch.equal(parameter, own)


def test_decay_is_of_matrices_alone() -> None:
    model = model_of(Case())
    groups = with_decay([{"params": [*model.mask_decoder.parameters()], "lr_scale": 1.0}], 0.1)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert {p.ndim > 1 for p in groups[0]["params"]} == {True} and {p.ndim for p in groups[1]["params"]} == {1}
    assert [len(group["params"]) for group in with_decay(groups, 0.0)] == [len(group["params"]) for group in groups]


def test_the_better_of_weights_and_average_is_best_and_patience_ends_a_run(
    data: Path, work: Path, monkeypatch, capsys
) -> None:
    scores = iter([0.5, 0.6, 0.4, 0.7, 0.7, 0.7])  # of weights and of averages, epoch by epoch
    monkeypatch.setattr(train, "validate", lambda *_: {"bbox": next(scores)})
    fit(data, work, "--epochs", 9, "--ema", 0.5, "--patience", 1, "--keep_last", 2, "--lr", 1e-3)
    best, last = saved(work, "best.pth"), saved(work)
    assert (best["epoch"], best["validation_dice"], best["averaged"]) == (2, 0.7, True)
    assert last["progress"]["epoch"] == 3 and "1 validation(s) were no better than epoch 2" in capsys.readouterr().out
    second = torch.load(work / "models" / RUN / "epoch_2.pth", weights_only=True)
    name = "mask_decoder.iou_token.weight"
    assert torch.equal(best["model"][name], second["average"][name])
    assert not torch.equal(best["model"][name], second["model"][name])
    assert [path.name for path in kept_states(work / "models" / RUN)] == ["epoch_2.pth", "epoch_3.pth"]


def test_accumulated_and_resumed_by_itself(data: Path, work: Path) -> None:
    """`--resume auto` starts, and goes on; another number of images a step is refused, the same one is not."""
    fit(data, work, "--epochs", 1, "--resume", "auto", "--batch_size", 1, "--accumulate", 2)
    assert saved(work)["progress"]["step"] == 1
    message = fails(lambda: fit(data, work, "--epochs", 2, "--resume", "auto", "--accumulate", 1))
    assert "took 2 images a step" in message and "this one takes 1" in message
    fit(data, work, "--epochs", 2, "--resume", "auto", "--batch_size", 2, "--accumulate", 1)
    assert saved(work)["progress"]["step"] == 2


def test_images_that_cannot_be_read_are_left_out_and_named(tmp_path: Path, work: Path, capsys) -> None:
    folder = make_data(tmp_path / "data", images=3)
    named = truncated_image(folder)
    assert named in fails(lambda: fit(folder, work, "--epochs", 1))
    fit(folder, work, "--epochs", 2, "--max_bad_samples", 1)
    said = capsys.readouterr().err
    assert re.findall(r"left out: \S*(images/\d\.png): truncated", said) == [named]
    groups = json.loads((folder / "image2label_train.json").read_text())
    other = folder / next(name for name in groups if name != named)
    other.write_bytes(other.read_bytes()[:-40])
    message = fails(lambda: fit(folder, work, "--epochs", 1, "--max_bad_samples", 1, "--overwrite"))
    assert "2 images cannot be read, more than --max_bad_samples 1" in message


def test_a_save_that_fails_ends_the_run_when_the_next_one_fails_too(tmp_path: Path, monkeypatch, capsys) -> None:
    args = train.parse_args(["--work_dir", str(tmp_path)])
    model = model_of(Case())
    state = RunState(args, model, Learner(model, lr=1e-4), Progress(1))
    works = iter([False, True, False, False])

    def write(*_: object) -> None:
        if not next(works):
            raise OSError(errno.ENOSPC, "No space left on device", "last.pth")

    monkeypatch.setattr(state, "write", write)
    state.save_last()
    assert re.fullmatch(
        r"warning: last\.pth: No space left on device; .* training goes on.*\n", capsys.readouterr().err
    )
    state.save_last()
    state.save_last()
    with pytest.raises(OSError):
        state.save_last()
    works = iter([False])
    state.failed = False
    with pytest.raises(OSError):
        state.save_last(final=True)


def test_a_lost_process_ends_the_other(data: Path, work: Path) -> None:
    """One of two is killed in the middle of its steps."""
    flags = [*FLAGS, "--data_path", data, "--work_dir", work, "--epochs", "500", "--save_every", "1"]
    processes = start([WITH_MINI, "train.py", *flags], 2, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + WAIT
        while not (work / "models" / RUN / "last.pth").exists():
            assert all(process.poll() is None for process in processes) and time.monotonic() < deadline
            time.sleep(0.02)
        processes[0].send_signal(signal.SIGKILL)
        said = processes[1].communicate(timeout=60)[1]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert processes[1].returncode == 75 and "Traceback" not in said
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert "another of the processes of this run has ended" in line and "--resume" in line
    assert os.path.exists(work / "models" / RUN / "last.pth")
