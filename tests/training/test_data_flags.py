"""--cache and --balance of train.py, and scripts/benchmark_data.py, as a user runs them."""

import argparse
import csv
import json
from pathlib import Path

import benchmark_data
import cv2
import numpy as np
import pytest
import torch

from sam_med2d.data.metadata import COLUMNS
from tests.training.helpers import fit, saved


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
    fit(data, work, "--replay", "phantoms", "--iter_point", 1, "--epochs", 2, *flags)
    return saved(work)["model"]


@pytest.mark.parametrize("augment", ["True", "False"])
def test_a_run_with_the_cache_ends_the_same(data, tmp_path, work, augment):
    plain = run(data, work / "a", "--augment", augment)
    for name in ("fills", "reads"):
        cached = run(data, work / name, "--augment", augment, "--cache", str(tmp_path / "cache"))
        assert all(torch.equal(cached[key], plain[key]) for key in plain)
    assert any((tmp_path / "cache").iterdir())


def test_balance_is_said_resumes_and_must_agree(data, work, capsys):
    whole = run(data, work / "a", "--balance", "class")
    assert "each of 2 groups (class) has the same share" in capsys.readouterr().out
    plain = run(data, work / "b")
    assert not all(torch.equal(whole[key], plain[key]) for key in plain)
    run(data, work / "c", "--balance", "class", "--epochs", "1")
    resumed = run(data, work / "c", "--resume", "--epochs", "2")
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)
    with pytest.raises(SystemExit, match="its run had --balance class; resume with the same"):
        run(data, work / "c", "--resume", "--balance", "dataset", "--epochs", "3")


def test_bad_flags_end_in_a_line(data, work, capsys):
    (data / "metadata.csv").unlink()
    with pytest.raises(SystemExit, match="the dataset of its masks is not known: there is no metadata.csv"):
        run(data, work, "--balance", "dataset")
    with pytest.raises(SystemExit):
        run(data, work, "--balance", "organ")
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
    for part in ("bare cv2.imread", "the cache is", "copied from JSON", "300 images read; added"):
        assert part in said
