"""Commands on hostile data and under signals: no result outside its folder, over a source or over another result."""

import csv
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import SimpleITK as sitk

import test as scoring
from sam_med2d.commands import amg, convert_checkpoint, make_index, predict
from segment_anything import sam_model_registry
from segment_anything.checkpoint import save_weights
from tests.conftest import ROOT, fails

SIDE = 64
UP = "m/../../../../../other/m.png"
LISTENING = (  # what a shell starts in the background is deaf to Ctrl-C, and so are its children
    "import runpy, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "sys.argv = sys.argv[1:]; runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_weights(sam_model_registry["vit_t"](image_size=SIDE, encoder_adapter=False).state_dict(), path)
    return path


def write(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", array)[1].tobytes())
    return path


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (40, 50, 3), np.uint8)


def square(x: int) -> np.ndarray:
    mask = np.zeros((40, 50), np.uint8)
    mask[5:30, x : x + 15] = 255
    return mask


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha1(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


# ---------------------------------------------------------------- test.py


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """Two masks of one file name; the path of one leads to it from the data, and from the folder of predictions too."""
    data = tmp_path / "r/s/t/data"  # as deep below tmp_path as work/sammed/masks/bbox
    write(data / "images/a.png", picture())
    write(data / "images/A.PNG", picture(1))
    (data / "m").mkdir()
    for path, x in ((data / "masks/m.png", 3), (data / "masks/M.png", 9), (tmp_path / "other/m.png", 20)):
        write(path, square(x))
    masks = {"masks/m.png": "images/a.png", UP: "images/a.png", "masks/M.png": "images/A.PNG"}
    (data / "label2image_test.json").write_text(json.dumps(masks))
    return data


def score(data: Path, weights: Path, work: Path, *flags: object) -> Path:
    words = ["--data_path", data, "--work_dir", work, "--sam_checkpoint", weights, "--model_type", "vit_t"]
    words += ["--image_size", SIDE, "--encoder_adapter", False, "--prompt_modes", "bbox", "--num_workers", 0]
    return scoring.main([*map(str, words), "--device", "cpu", "--save_pred", "--report", "False", *map(str, flags)])


def test_predictions_stay_in_their_folder_whatever_the_index_says(hostile: Path, weights: Path, tmp_path: Path) -> None:
    before = contents(tmp_path)
    folder = score(hostile, weights, tmp_path / "work")
    after = contents(tmp_path)
    assert {name: after[name] for name in before} == before
    assert {name.split("/")[0] for name in after.keys() - before.keys()} == {"work"}
    masks = [*(folder / "masks/bbox").rglob("*.png")]
    assert len(masks) == 3 and len({str(path).casefold() for path in masks}) == 3
    assert sum(path.is_file() for path in (folder / "overlays/bbox").rglob("*")) == 2


def test_masks_that_an_earlier_run_predicted_are_not_written_over(hostile: Path, weights: Path, tmp_path: Path) -> None:
    (hostile / "label2image_test.json").write_text(json.dumps({"masks/m.png": "images/a.png"}))
    folder = score(hostile, weights, tmp_path / "results")
    (tmp_path / "again").mkdir()
    (tmp_path / "again/label2image_test.json").write_text(
        json.dumps({"../results/sammed/masks/bbox/m.png": "../r/s/t/data/images/a.png"})
    )
    before = contents(folder)
    said = fails(lambda: score(tmp_path / "again", weights, tmp_path / "results"))
    assert "would be written over" in said and contents(folder) == before
    said = fails(lambda: score(hostile, weights, tmp_path / "results", "--prompt_path", folder / "prompts.json"))
    assert "prompts.json" in said and contents(folder) == before
    score(hostile, weights, tmp_path / "results", "--prompt_path", folder / "prompts.json", "--run_name", "other")


# ---------------------------------------------------------------- predict, amg, and the rest


def test_objects_of_different_images_never_share_a_file(weights: Path, tmp_path: Path) -> None:
    for name in ("a.png", "a_b.png", "A_B.png", "a_b.jpg"):
        write(tmp_path / "images" / name, picture())
    box = [5, 5, 40, 30]
    prompts = {
        "a.png": [{"name": "b_x", "box": box}, {"name": "=1+1", "box": box}, {"name": "../../x", "box": box}],
        "a_b.png": [{"name": "x", "box": box}],
        "A_B.png": [{"name": "x", "box": box}],
        "a_b.jpg": [{"name": "x", "box": box}, {"name": "X", "box": box}],
    }
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    out = tmp_path / "out"
    words = ["--input", tmp_path / "images", "--prompts", tmp_path / "prompts.json", "--output", out]
    predict.main([*map(str, words), "--sam_checkpoint", str(weights), "--device", "cpu"])
    with open(out / "objects.csv", newline="") as file:
        rows = [*csv.DictReader(file)]
    files = [row["mask"] for row in rows]
    assert len(files) == 7 and len({*map(str.casefold, files)}) == 7
    assert sorted(files) == sorted(
        path.relative_to(out / "masks").as_posix() for path in (out / "masks").rglob("*.png")
    )
    assert sum(path.is_file() for path in (out / "overlays").rglob("*")) == 4
    assert [row["name"] for row in rows if row["image"] == "a.png"] == ["b_x", "'=1+1", "../../x"]


def test_everything_mode_keeps_images_apart(weights: Path, tmp_path: Path) -> None:
    for name in ("a.png", "a/0.png", "a/0.png.jpg"):
        write(tmp_path / "images" / name, picture())
    flags = ["--points-per-side", "2", "--pred-iou-thresh", "0", "--stability-score-thresh", "0"]
    words = ["--input", tmp_path / "images", "--output", tmp_path / "out", "--checkpoint", weights, "--device", "cpu"]
    amg.main([*map(str, words), *flags])
    before = contents(tmp_path / "out")
    assert sum(name.endswith("metadata.csv") for name in before) == 3
    assert sum(name.endswith("_overlay.png") for name in before) == 3
    amg.main([*map(str, words), *flags])
    assert contents(tmp_path / "out") == before


def test_a_checkpoint_is_not_converted_onto_itself(weights: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.safetensors"
    own.write_bytes(weights.read_bytes())
    (tmp_path / "link.safetensors").symlink_to(own)
    said = fails(
        lambda: convert_checkpoint.main([str(own), "--output", str(tmp_path / "link.safetensors"), "--overwrite"])
    )
    assert "would be written over" in said and own.read_bytes() == weights.read_bytes()


def test_sources_inside_the_folders_of_the_output_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "data/images/a.png", picture())
    write(tmp_path / "data/masks/a.png", square(5))
    before = contents(tmp_path)
    words = ["masks", "--images", tmp_path / "data/images", "--masks", tmp_path / "data/masks", "--output"]
    said = fails(lambda: make_index.main([*map(str, words), str(tmp_path / "data")]))
    assert "would be written over" in said and contents(tmp_path) == before


# ---------------------------------------------------------------- signals


def start(*words: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", LISTENING, *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_until(process: subprocess.Popen, happened) -> None:
    deadline = time.monotonic() + 120
    while not happened():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


def end_of(process: subprocess.Popen) -> str:
    try:
        said = process.communicate(timeout=120)[1]
    finally:
        process.kill()
    assert "Traceback" not in said, said
    return said.replace("\r", "\n").strip().splitlines()[-1]


def group_is_gone(process: subprocess.Popen) -> bool:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.2)
    return False


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More pictures than are converted before a signal comes."""
    folder = tmp_path_factory.mktemp("many")
    one, mask = cv2.imencode(".png", picture())[1].tobytes(), cv2.imencode(".png", square(5))[1].tobytes()
    for kind, content in (("photos", one), ("masks", mask)):
        (folder / kind).mkdir()
        for number in range(4000):
            (folder / kind / f"{number}.png").write_bytes(content)
    return folder


@pytest.mark.parametrize("number, whole_group", [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_a_conversion_that_is_stopped_goes_on_later(number, whole_group: bool, many: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = [
        "sam_med2d.commands.make_index",
        "masks",
        "--images",
        many / "photos",
        "--masks",
        many / "masks",
        "--case",
        "(.+)",
    ]
    process = start(*words, "--output", out, "--num_workers", 2)
    wait_until(process, lambda: (out / ".cases").is_dir() and any((out / ".cases").iterdir()))
    second = start(*words, "--output", out, "--num_workers", 0)
    assert "make-index, process" in end_of(second) and second.returncode == 1
    (os.killpg if whole_group else os.kill)(process.pid, number)
    line = end_of(process)
    assert process.returncode == 128 + number
    assert re.fullmatch(r"stopped by (Ctrl-C|SIGTERM): the same command goes on where this one was", line)
    assert group_is_gone(process)
    done = len([*(out / ".cases").glob("*.json")])
    assert 0 < done < 4000 and not [*(out / ".cases").glob(".*")] and not (out / ".owner").exists()


def test_packing_that_is_stopped(many: Path, tmp_path: Path) -> None:
    groups = {f"photos/{i}.png": [f"masks/{i}.png"] for i in range(4000)}
    (many / "image2label_train.json").write_text(json.dumps(groups))
    cache = tmp_path / "cache"
    process = start(
        "sam_med2d.commands.pack_dataset", "--cache", cache, "--data_path", many, "--image_size", 64, "--num_workers", 2
    )
    wait_until(process, lambda: any(cache.glob("*/.owner")))
    os.killpg(process.pid, signal.SIGTERM)
    assert end_of(process).startswith("stopped by SIGTERM: what is packed stays") and process.returncode == 143
    assert group_is_gone(process) and not [*cache.glob("*/.owner")]


def test_a_test_run_that_is_stopped_leaves_no_parts(many: Path, weights: Path, tmp_path: Path) -> None:
    (many / "label2image_test.json").write_text(json.dumps({f"masks/{i}.png": f"photos/{i}.png" for i in range(4000)}))
    words = ["--data_path", many, "--sam_checkpoint", weights, "--model_type", "vit_t", "--image_size", SIDE]
    words += [
        "--encoder_adapter",
        False,
        "--prompt_modes",
        "bbox",
        "--num_workers",
        2,
        "--device",
        "cpu",
        "--also",
        "none",
    ]
    process = start("test", *words, "--save_pred", "--work_dir", tmp_path, "--run_name", "run")
    wait_until(process, lambda: any((tmp_path / "run/masks").rglob("*.png")))
    os.kill(process.pid, signal.SIGTERM)
    line = end_of(process)
    assert line == "stopped by SIGTERM: results are written at the end, so the same command starts anew"
    assert process.returncode == 143 and group_is_gone(process)
    left = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert left and {path.parent for path in left} == {left[0].parent}, "more than predictions is left"
    assert all(cv2.imread(str(path), cv2.IMREAD_UNCHANGED) is not None for path in left)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_volume_that_is_stopped_leaves_nothing(number, weights: Path, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 200, (600, 40, 50)).astype(np.int16)
    values[:, 5:30, 8:23] += 800
    scan = tmp_path / "scan.nii.gz"
    sitk.WriteImage(sitk.GetImageFromArray(values), str(scan))
    words = [
        "--input",
        scan,
        "--box",
        8,
        5,
        300,
        23,
        30,
        301,
        "--output",
        tmp_path / "out/labels.nii.gz",
        "--device",
        "cpu",
    ]
    process = start("sam_med2d.commands.segment_volume", *words, "--sam_checkpoint", weights)
    assert process.stderr is not None
    said = ""
    while "slice" not in said:  # the bar of the work itself
        said += process.stderr.read(1)
        assert said or process.poll() is None
    process.send_signal(number)
    assert end_of(process).startswith("stopped by ") and process.returncode == 128 + number
    assert not [*(tmp_path / "out").glob("**/*")]
