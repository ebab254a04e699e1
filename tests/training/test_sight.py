"""What a run tells: prompt sensitivity, a JSON line an epoch, Weights & Biases, and where its checkpoints come from."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import test as scoring
import train
from sam_med2d.evaluation.evaluate import Means, Scored
from sam_med2d.evaluation.sensitivity import sensitivity, values_of, with_swapped
from sam_med2d.prompts.modes import parse_mode
from sam_med2d.provenance import file_hash
from sam_med2d.training.boards import EpochLog, Waits, memory_high_water
from segment_anything import Prompts
from tests.conftest import ROOT
from tests.training.helpers import RUN, WITH_MINI, board_of, fit, saved

MODES = ["--prompt_modes", "bbox", "3pts"]


def scored(mode: str, dice: list[float], by_click: list[list[float]] | None = None) -> Scored:
    names = [f"{i}.png" for i in range(len(dice))]
    empty = torch.zeros(len(dice), 2, 2, dtype=torch.bool)
    clicks = None if by_click is None else np.array(by_click)
    return Scored(parse_mode(mode), 0, names, empty, empty, Prompts(), {"dice": dice}, [0.0] * len(dice), clicks)


def test_sensitivity_by_hand() -> None:
    modes = [parse_mode(name) for name in ("bbox", "1pt", "3pts")]
    asked = with_swapped(modes)
    assert [mode.name for mode in asked] == ["bbox", "1pt", "3pts", "bbox@swapped", "1pt@swapped", "3pts@swapped"]
    means = Means()
    for one in (
        scored("bbox", [0.8, 0.6]),
        scored("bbox@swapped", [0.1, 0.3]),
        scored("bbox@swapped", [0.9]),  # alone in its image: the prompts are its own
        scored("1pt", [0.5, 0.5], [[0.5], [0.5]]),
        scored("3pts", [0.7, 0.9], [[0.4, 0.6, 0.7], [0.8, 0.7, 0.9]]),
    ):
        means.add_values(one.mode.name, values_of(one))
    assert sensitivity(means, modes) == pytest.approx(
        {
            "dice_after_click/1": 0.6,
            "dice_after_click/2": 0.65,
            "dice_after_click/3": 0.8,
            "share_made_worse_by_click/2": 0.5,
            "share_made_worse_by_click/3": 0.0,
            "dice_of_swapped/bbox": 0.2,
        }
    )


def test_a_run_is_seen(validated: Path, work: Path, capsys) -> None:
    """In TensorBoard and in log.jsonl, resumed too; the command at the end scores what was trained."""
    fit(validated, work, *MODES, "--epochs", 2)
    log = work / "logs" / RUN / "log.jsonl"
    first = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(line["epoch"], line["step"]) for line in first] == [(1, 3), (2, 6)]
    wanted = {"loss/loss", "lr", "epoch/seconds", "epoch/waiting_for_data", "epoch/memory_gb", "val_dice/3pts"}
    assert first[0]["trained/mask_decoder"] == 332_220 and first[0]["trained/adapters"] == 104_704
    wanted |= {"val_dice_after_click/3", "val_share_made_worse_by_click/2", "val_dice_of_swapped/bbox"}
    assert wanted <= {*first[0]} and wanted <= {*board_of(work).Tags()["scalars"]}
    assert first[1]["val_dice_after_click/3"] == pytest.approx(first[1]["val_dice/3pts"], abs=1e-6)
    assert 0 <= first[0]["epoch/waiting_for_data"] <= 1 and 0.05 < first[0]["epoch/memory_gb"] < 100

    capsys.readouterr()
    fit(validated, work, "--resume", "--epochs", 3)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert lines[:2] == first and [line["epoch"] for line in lines] == [1, 2, 3]
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("score it on the test split: python test.py --sam_checkpoint ")
    args = scoring.parse_args(last.partition("test.py ")[2].split())
    assert Path(args.sam_checkpoint) == work / "models" / RUN / "best.pth" and args.data_path == str(validated)


def test_where_a_checkpoint_comes_from(validated: Path, work: Path) -> None:
    fit(validated, work, "--epochs", 1)
    for name in ("last.pth", "best.pth"):
        origin = saved(work, name)["made_by"]
        assert origin["data_hash"] == file_hash(validated / "image2label_train.json")
        assert origin["versions"]["torch"] == str(torch.__version__) and origin["versions"]["sam-med2d"]
        assert origin["commit"] is None or len(origin["commit"].removesuffix("+changes")) == 40
        assert origin["command"] == [str(word) for word in sys.argv]


def test_lines_of_epochs_that_are_done_again_go(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = EpochLog(path, 0)
    for epoch in (1, 2, 3):
        log.add_scalar("loss", epoch / 10, epoch)
        log.end_epoch(epoch, epoch)
    path.write_text(path.read_text() + '{"epoch": 4, "st')  # as another program may leave it
    again = EpochLog(path, 2)
    again.add_scalar("loss", 9.0, 3)
    again.end_epoch(3, 3)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["epoch"], line["loss"]) for line in lines] == [(1, 0.1), (2, 0.2), (3, 9.0)]


def test_a_log_that_cannot_be_written_ends_nothing(tmp_path: Path, capsys) -> None:
    (tmp_path / "file").touch()
    log = EpochLog(tmp_path / "file" / "log.jsonl", 0)
    log.end_epoch(1, 3)
    said = capsys.readouterr().err
    assert said.startswith(f"{tmp_path / 'file' / 'log.jsonl'}: ") and said.endswith("; the epoch is not in it\n")


def test_waiting_is_told_from_working() -> None:
    def slow():
        for i in range(3):
            time.sleep(0.05)
            yield i

    waits = Waits(slow())
    for _ in waits:
        time.sleep(0.05)
    found = waits.scalars(torch.device("cpu"))
    assert waits.waited >= 0.15 and found["epoch/seconds"] >= 0.3
    assert found["epoch/waiting_for_data"] == pytest.approx(waits.waited / found["epoch/seconds"], rel=0.05)


def test_memory_grows_by_what_is_held() -> None:
    before = memory_high_water(torch.device("cpu"))
    held = np.ones(before, np.uint8)  # more than there ever was
    assert memory_high_water(torch.device("cpu")) > before and held[-1]


def test_weights_and_biases_offline(validated: Path, work: Path, tmp_path: Path) -> None:
    """A process of its own, without a network: what TensorBoard is told lies in the folder of the logs."""
    pytest.importorskip("wandb", reason="wandb is not installed: the extra track")
    words = [*("--model_type", "mini", "--image_size", "64", "--sam_checkpoint", "none", "--num_workers", "0")]
    words += [*("--iter_point", "1", "--mask_num", "1", "--epochs", "1", "--prompt_modes", "bbox", "--device", "cpu")]
    words += ["--data_path", str(validated), "--work_dir", str(work), "--wandb", "a-project"]
    done = subprocess.run(
        [sys.executable, WITH_MINI, "train.py", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1", "WANDB_SILENT": "true"},
    )
    assert done.returncode == 0, done.stderr[-1500:]
    (run,) = (work / "logs" / RUN / "wandb").glob("offline-run-*")
    (record,) = run.glob("*.wandb")
    content = record.read_bytes()
    assert b"val_dice/bbox" in content and b"loss/loss" in content and b"a-project" in content
    assert run.name.endswith((work / "logs" / RUN / "wandb_run.txt").read_text())


def test_without_wandb_it_is_one_line(monkeypatch) -> None:
    from sam_med2d.packages import missing_package

    assert 'pip install "sam-med2d[track]"' in missing_package(ModuleNotFoundError("no", name="wandb"))
    assert train.parse_args(["--wandb"]).wandb == "sam-med2d" and train.parse_args([]).wandb is None
