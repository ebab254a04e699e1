"""What --resume accepts: a last.pth with all that it must hold, undamaged. The rest is one line and changes nothing."""

import copy
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import test as scoring
import train
from sam_med2d.commands import convert_checkpoint
from sam_med2d.errors import CheckpointError, UserError
from sam_med2d.training.state import STATE, Progress, RunState, SavedRun
from segment_anything import sam_model_registry
from tests.conftest import ROOT, fails
from tests.segment_anything.test_weight_files import data_offset, spoil
from tests.training.helpers import FLAGS, RUN, SIZE, differences, fit, make_data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"), images=2)


@pytest.fixture(scope="module")
def last(small_and_repeatable, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The last.pth of a run of one batch."""
    folder = tmp_path_factory.mktemp("run")
    fit(data, folder, "--epochs", 1)
    yield folder / "models" / RUN / "last.pth"
    shutil.rmtree(folder)


def at(content: dict, place: str) -> tuple[dict, object]:
    """ "a/b/c" -> (content["a"]["b"], "c"), with whole numbers as keys of their own."""
    *way, name = [int(part) if part.isdigit() else part for part in place.split("/")]
    for part in way:
        content = content[part]
    return content, name


MOMENT = "optimizer/state/3/exp_avg"
ODD = {  # place, what stands there (None: nothing), what is said
    "no model": ("model", None, "no 'model'"),
    "an empty model": ("model", {}, "model is empty"),
    "a model of numbers": ("model", {"a": 3}, "model/a"),
    "a list for a model": ("model", [], "model"),
    "a tensor for a model": ("model", torch.ones(3), "model is of type Tensor"),
    "no optimizer": ("optimizer", None, "no 'optimizer'"),
    "a string for an optimizer": ("optimizer", "Adam", "optimizer is of type str"),
    "no groups": ("optimizer/param_groups", [], "optimizer/param_groups is empty"),
    "a group without tensors": ("optimizer/param_groups/0/params", [], "groups of [0"),
    "a group without its betas": ("optimizer/param_groups/0/betas", None, "no 'betas'"),
    "a moment missing": (MOMENT, None, "no 'exp_avg'"),
    "a moment that is a number": (MOMENT, 0.5, f"{MOMENT} is of type float"),
    "a moment of another shape": (MOMENT, torch.ones(2, 7), f"{MOMENT} has the shape (2, 7)"),
    "a sparse moment": (MOMENT, torch.eye(3).to_sparse(), f"{MOMENT} is a sparse tensor"),
    "a moment without values": (MOMENT, torch.empty(3, device="meta"), "without values"),
    "a moment that is not finite": (MOMENT, torch.full((3,), float("nan")), f"such as {MOMENT}"),
    "moments of no tensor": (
        "optimizer/state/99999",
        dict.fromkeys(("step", "exp_avg", "exp_avg_sq"), torch.ones(1)),
        "99999",
    ),
    "a scaler of strings": ("scaler", {"scale": "x"}, "scaler/scale"),
    "no scaler": ("scaler", None, "no 'scaler'"),
    "progress is a number": ("progress", 3, "progress is of type int"),
    "no step": ("progress/step", None, "no 'step'"),
    "a step of words": ("progress/step", "three", "progress/step is of type str"),
    "a step that is a tensor": ("progress/step", torch.tensor(3), "progress/step is of type Tensor"),
    "a step that is True": ("progress/step", True, "progress/step is of type bool"),
    "a step before the start": ("progress/step", -1, "progress/step is -1"),
    "a step of another epoch": ("progress/step", 40, "step 40 in epoch 1"),
    "no batches": ("progress/steps_an_epoch", 0, "of 0 batches"),
    "no flags": ("flags", None, "no 'flags'"),
    "flags are a list": ("flags", [], "flags"),
    "no image size": ("flags/image_size", None, "no 'image_size'"),
    "a flag that is a tensor": ("flags/lr", torch.tensor(1.0), "flags/lr is of type Tensor"),
    "a flag of another type": ("flags/epochs", "many", "--epochs 'many'"),
    "a flag that is no choice": ("flags/model_type", "vit_z", "--model_type 'vit_z'"),
    "a list of another type": ("flags/point_list", ["one"], "--point_list ['one']"),
    "an optional flag of another type": ("flags/adapter_lr", "fast", "--adapter_lr 'fast'"),
}


@pytest.mark.parametrize("kind", ODD)
def test_a_state_of_odd_shape_is_one_line(kind: str, last: Path, data: Path, work: Path, tmp_path: Path) -> None:
    place, value, said = ODD[kind]
    content = copy.copy(torch.load(last, weights_only=True, mmap=True))
    for part in ("optimizer", "progress", "flags"):
        content[part] = copy.deepcopy(content[part])
    inside, name = at(content, place)
    if value is None:
        del inside[name]
    else:
        inside[name] = value
    path = tmp_path / "odd.pth"
    torch.save(content, path)
    message = fails(lambda: fit(data, work, "--resume", path, "--epochs", 2))
    path.unlink()
    assert message.startswith(f"error: {path}: ") and said in message
    assert not (work / "models" / RUN).exists()


def test_nothing_is_restored_of_what_does_not_fit(last: Path, data: Path, tmp_path: Path) -> None:
    """Model, moments and progress are as before."""
    content = torch.load(last, weights_only=True)
    content["optimizer"]["state"][3]["exp_avg_sq"] = torch.ones(5)
    torch.save(content, tmp_path / "odd.pth")
    saved_run = SavedRun(str(tmp_path / "odd.pth"))
    args = train.parse_args([*FLAGS, "--resume", str(last)], SavedRun(str(last)))
    model = sam_model_registry["mini"](image_size=SIZE)
    model.train_for("adapters")
    state = RunState(args, model, train.learner_of(args, model, 1), Progress(1))
    before = copy.deepcopy((model.state_dict(), state.learner.state_dict(), state.progress.state_dict()))
    with pytest.raises(CheckpointError, match="exp_avg_sq has the shape"):
        state.restore(saved_run, defaults=vars(args))
    after = (model.state_dict(), state.learner.state_dict(), state.progress.state_dict())
    assert [place for old, new in zip(before, after) for place in differences(old, new)] == []


def test_a_run_holds_what_is_declared(last: Path) -> None:
    content = torch.load(last, weights_only=True)
    assert content["frame"] == "sam-med2d"  # not declared: runs that do not tell are older than any other frame
    assert content.keys() - {"frame"} == STATE.keys() - {"average"}
    assert content["progress"].keys() == STATE["progress"].keys()
    SavedRun(str(last))


@pytest.mark.parametrize("write", [lambda p: torch.save([1], p), lambda p: torch.save({}, p), lambda p: p.mkdir()])
def test_what_is_no_state_at_all(write: Callable, data: Path, work: Path, tmp_path: Path) -> None:
    write(tmp_path / "last.pth")
    assert "last.pth: " in fails(lambda: fit(data, work, "--resume", tmp_path / "last.pth"))


def test_damaged_bytes_end_every_command(last: Path, data: Path, work: Path, tmp_path: Path) -> None:
    """train.py --resume, as a real process, test.py and the converter on a last.pth with zeros in its weights, and
    train.py on one with a bit turned in the moments.
    """
    weights = Path(shutil.copy(last, tmp_path / "weights.pth"))
    spoil(weights, data_offset(weights, "data/0") + 64, bytes(32))
    moments = Path(shutil.copy(last, tmp_path / "moments.pth"))
    spoil(moments, data_offset(moments, f"data/{len(torch.load(last, mmap=True, weights_only=True)['model']) + 4}") + 1)
    flags = ["--data_path", data, "--work_dir", work]
    done = subprocess.run(
        [sys.executable, ROOT / "train.py", "--resume", weights, *flags],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr[-500:]
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    for main, words in (
        (train.main, ["--resume", moments, *flags]),
        (train.main, ["--sam_checkpoint", weights, *flags]),
        (scoring.main, ["--sam_checkpoint", weights, *flags]),
        (convert_checkpoint.main, [weights]),
    ):
        said.append(fails(lambda main=main, words=words: main([*map(str, words)])))
    assert len(said) == 5 and all("damaged" in line and "checksum" in line for line in said), said
    assert not (work / "models").exists() and not (tmp_path / "weights.safetensors").exists()


def test_weights_that_are_not_finite_are_refused_in_training(
    last: Path, data: Path, work: Path, tmp_path: Path
) -> None:
    content = torch.load(last, weights_only=True)
    content["model"]["mask_decoder.iou_token.weight"][0, 3] = float("inf")
    torch.save(content, tmp_path / "w.pth")
    for flags in (["--resume"], ["--sam_checkpoint"]):
        assert "iou_token" in fails(lambda flags=flags: fit(data, work, *flags, tmp_path / "w.pth", "--epochs", 2))
    with pytest.raises(UserError):
        SavedRun(str(tmp_path / "w.pth"))
