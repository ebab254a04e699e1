"""--cache and --balance of train.py, and scripts/benchmark_data.py, as a user runs them."""

import argparse
import csv
import json
import shutil
from functools import partial
from pathlib import Path

import benchmark_data
import cv2
import numpy as np
import pytest
import torch

import train
from sam_med2d.data.metadata import COLUMNS
from segment_anything import sam_model_registry
from segment_anything.build_sam import build_sam
from segment_anything.sizes import SIZES, Size


@pytest.fixture(autouse=True)
def mini(monkeypatch, tmp_path):
    """A model that is nearly all decoder, one thread, and no checkpoints left behind."""
    monkeypatch.setitem(SIZES, "mini", Size(channels=32, depth=4, heads=2, global_blocks=(1, 3)))
    monkeypatch.setitem(sam_model_registry, "mini", partial(build_sam, model_type="mini"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    shutil.rmtree(tmp_path / "work", ignore_errors=True)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Six images of a liver, the first with a tumour too."""
    draw, groups, rows = np.random.default_rng(0), {}, []
    folder = tmp_path / "data"
    for i in range(6):
        classes = ["liver", "tumour"][: 2 if i == 0 else 1]
        groups[f"{i}.png"] = [f"{i}_{name}.png" for name in classes]
        mask = np.zeros((50 + 20 * i, 60), np.uint8)
        mask[10:30, 10:40] = 255
        folder.mkdir(exist_ok=True)
        arrays = {
            f"{i}.png": draw.integers(0, 256, (*mask.shape, 3), np.uint8),
            **dict.fromkeys(groups[f"{i}.png"], mask),
        }
        for name, array in arrays.items():
            (folder / name).write_bytes(cv2.imencode(".png", array)[1].tobytes())
        rows += [
            dict.fromkeys(COLUMNS, "") | {"mask": mask, "image": f"{i}.png", "dataset": "D", "class": name}
            for mask, name in zip(groups[f"{i}.png"], classes)
        ]
    (folder / "image2label_train.json").write_text(json.dumps(groups))
    with open(folder / "metadata.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return folder


def run(data: Path, work: Path, *flags: str) -> dict[str, torch.Tensor]:
    """-> the weights it ends with."""
    train.main(
        [
            "--data_path",
            str(data),
            "--work_dir",
            str(work),
            "--model_type",
            "mini",
            "--image_size",
            "64",
            "--sam_checkpoint",
            "none",
            "--num_workers",
            "0",
            "--mask_num",
            "2",
            "--iter_point",
            "1",
            "--epochs",
            "2",
            "--device",
            "cpu",
            *flags,
        ]
    )
    return torch.load(work / "models/sam-med2d/last.pth")["model"]


@pytest.mark.parametrize("augment", ["True", "False"])
def test_a_run_with_the_cache_ends_the_same(data, tmp_path, augment):
    plain = run(data, tmp_path / "work/a", "--augment", augment)
    for name in ("fills", "reads"):
        cached = run(data, tmp_path / "work" / name, "--augment", augment, "--cache", str(tmp_path / "cache"))
        assert all(torch.equal(cached[key], plain[key]) for key in plain)
    assert any((tmp_path / "cache").iterdir())


def test_balance_is_said_resumes_and_must_agree(data, tmp_path, capsys):
    whole = run(data, tmp_path / "work/a", "--balance", "class")
    assert "each of 2 groups (class) has the same share" in capsys.readouterr().out
    plain = run(data, tmp_path / "work/b")
    assert not all(torch.equal(whole[key], plain[key]) for key in plain)
    run(data, tmp_path / "work/c", "--balance", "class", "--epochs", "1")
    resumed = run(data, tmp_path / "work/c", "--resume", "--epochs", "2")
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)
    with pytest.raises(SystemExit, match="its run had --balance class; resume with the same"):
        run(data, tmp_path / "work/c", "--resume", "--balance", "dataset", "--epochs", "3")


def test_bad_flags_end_in_a_line(data, tmp_path, capsys):
    (data / "metadata.csv").unlink()
    with pytest.raises(SystemExit, match="the dataset of its masks is not known: there is no metadata.csv"):
        run(data, tmp_path / "work", "--balance", "dataset")
    with pytest.raises(SystemExit):
        run(data, tmp_path / "work", "--balance", "organ")
    assert "--balance: invalid choice: 'organ'" in capsys.readouterr().err


def test_benchmark_runs(data, capsys):
    parser = argparse.ArgumentParser()
    benchmark_data.add_arguments(parser)
    benchmark_data.run(
        parser.parse_args(
            [
                "--data_path",
                str(data),
                "--image_size",
                "64",
                "--rounds",
                "1",
                "--images",
                "300",
                "--masks",
                "1000",
                "--workers",
                "1",
                "--parts",
                "reading",
                "scale",
            ]
        )
    )
    said = capsys.readouterr().out
    for part in ("bare cv2.imread", "the cache is", "copied from JSON", "40000 images read; added"):
        assert part in said
