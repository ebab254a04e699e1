"""The window that a model was trained with: kept with the data and the weights, and applied or warned of afterwards."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

import test as scoring
import train
from sam_med2d.app import start
from sam_med2d.commands import check_index, convert_checkpoint, make_index, predict, segment_volume
from sam_med2d.data.check import KINDS
from sam_med2d.data.windows import FILE, difference, keep_windows, window_of
from sam_med2d.errors import CheckpointError, DataError
from sam_med2d.image_files import write_png
from sam_med2d.inference.windows import Shown, shown_by
from sam_med2d.volumes.intensity import Intensity
from segment_anything.checkpoint import open_weights

ABDOMEN = (-150.0, 250.0)
MODEL = ("--image_size", "32", "--device", "cpu", "--num_workers", "0")


def test_a_folder_has_one_window_or_none(tmp_path: Path) -> None:
    assert window_of(tmp_path) is None
    keep_windows(tmp_path, "a", {"": ABDOMEN})
    assert window_of(tmp_path) == ABDOMEN and difference(None, tmp_path) == difference(ABDOMEN, tmp_path) == ""
    assert difference((0.0, 80.0), tmp_path) == (
        f"the model was trained with the window 0 to 80, and the pictures of {tmp_path} have -150 to 250"
    )
    keep_windows(tmp_path, "b", {"ct": ABDOMEN})
    assert window_of(tmp_path) == ABDOMEN
    keep_windows(tmp_path, "c", {})  # from minimum to maximum
    assert window_of(tmp_path) is None and set(json.loads((tmp_path / FILE).read_text())) == {"a", "b", "c"}
    keep_windows(tmp_path, "c", {"pet": (0, 10)})
    assert window_of(tmp_path) is None
    for damaged in ("[]", '{"a": {"": [1]}}', '{"a": {"": [3, 1]}}', '{"a": {"": [true, "x"]}}', "{"):
        (tmp_path / FILE).write_text(damaged)
        with pytest.raises(DataError, match=f"{FILE}: .*make the index again"):
            window_of(tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a scan of three patients, their index with a window, and a model that was trained on it."""
    folder = tmp_path_factory.mktemp("windowed")
    draw = np.random.default_rng(0)
    for patient in "abc":
        labels = np.zeros((3, 40, 40), np.uint8)
        labels[1, 10:30, 10:30] = 1
        scan = sitk.GetImageFromArray(
            (draw.integers(-40, 40, labels.shape) + 200 * labels.astype(int)).astype(np.int16)
        )
        for name, image in (("scans", scan), ("labels", sitk.GetImageFromArray(labels))):
            (folder / name).mkdir(exist_ok=True)
            sitk.WriteImage(image, str(folder / name / f"{patient}.nii.gz"))
    sources = ["--images", folder / "scans", "--labels", folder / "labels", "--classes", "organ=1", "--axes", "z"]
    flags = [*sources, "--window", "abdomen", "--output", folder / "data"]
    make_index.main(["volumes", *map(str, flags), "--num_workers", "0"])
    recipe = ["--sam_checkpoint", "small", "--epochs", "1", "--iter_point", "1", "--prompt_modes", "bbox"]
    train.main([*MODEL, *recipe, "--data_path", str(folder / "data"), "--work_dir", str(folder), "--run_name", "w"])
    return folder


def test_the_checkpoint_says_it_and_so_does_what_is_made_of_it(trained: Path, tmp_path: Path) -> None:
    best = trained / "models/w/best.pth"
    assert window_of(trained / "data") == open_weights(best).window == ABDOMEN
    convert_checkpoint.main([str(best), "--output", str(tmp_path / "w.safetensors")])
    assert open_weights(tmp_path / "w.safetensors").window == ABDOMEN
    content = torch.load(best, weights_only=True)
    torch.save(content | {"window": "wide"}, tmp_path / "bad.pth")
    with pytest.raises(CheckpointError, match="bad.pth: says 'wide' for the window of its training"):
        open_weights(tmp_path / "bad.pth")
    check_index.main([str(trained / "data"), "--fix", str(tmp_path / "clean"), "--num_workers", "1", "--allow", *KINDS])
    assert window_of(tmp_path / "clean") == ABDOMEN
    torch.save({name: value for name, value in content.items() if name != "window"}, tmp_path / "older.pth")
    assert open_weights(tmp_path / "older.pth").window is None


def test_test_py_warns_of_data_with_another_window(trained: Path, tmp_path: Path, capsys) -> None:
    flags = ["--sam_checkpoint", str(trained / "models/w/best.pth"), "--prompt_modes", "bbox", "--report", "False"]
    flags += ["--data_path", str(trained / "data"), "--work_dir", str(tmp_path), "--num_workers", "0", "--also", "none"]
    scoring.main(flags)
    assert "window" not in capsys.readouterr().err
    before = (trained / "data" / FILE).read_text()
    try:
        keep_windows(trained / "data", "data", {"": (0, 80)})
        scoring.main(flags)
        assert "warning: the model was trained with the window -150 to 250, and the pictures" in capsys.readouterr().err
    finally:
        (trained / "data" / FILE).write_text(before)


def test_scans_are_shown_to_the_model_in_its_window(trained: Path, tmp_path: Path, capsys) -> None:
    """The labels are those of --window abdomen, and another window is warned of."""
    flags = ["--input", trained / "scans/a.nii.gz", "--box", 9, 9, 1, 31, 31, 2]
    flags += ["--sam_checkpoint", trained / "models/w/best.pth"]

    def labels(*more: str) -> np.ndarray:
        output = tmp_path / f"{len(more)}{''.join(more)}.nii.gz"
        segment_volume.main([*map(str, flags), *more, "--output", str(output)])
        return sitk.GetArrayFromImage(sitk.ReadImage(str(output)))

    own = labels()
    said = capsys.readouterr()
    assert "window: -150 to 250, as in the training" in said.out and "warning: the model was" not in said.err
    assert (labels("--window", "abdomen") == own).all()
    assert "warning" not in capsys.readouterr().err
    labels("--window", "lung")
    assert "trained with the window -150 to 250, and sees -1350 to 150" in capsys.readouterr().err
    labels("--scale", "volume")
    assert "and sees minimum to maximum of each volume" in capsys.readouterr().err


def test_pictures_of_more_than_8_bits_are_warned_of(trained: Path, tmp_path: Path, capsys) -> None:
    deep = np.random.default_rng(0).integers(0, 4000, (40, 40)).astype(np.uint16)
    (tmp_path / "in").mkdir()
    sitk.WriteImage(sitk.GetImageFromArray(deep), str(tmp_path / "in/deep.png"))
    write_png(tmp_path / "in/plain.png", (deep // 16).astype(np.uint8))
    flags = ["--box", "5", "5", "30", "30", "--sam_checkpoint", str(trained / "models/w/best.pth")]
    predict.main(["--input", str(tmp_path / "in"), *flags, "--output", str(tmp_path / "out")])
    assert "warning: 1 image(s) of more than 8 bits were scaled" in capsys.readouterr().err
    predict.main(["--input", str(tmp_path / "in/plain.png"), *flags, "--output", str(tmp_path / "other")])
    assert "more than 8 bits" not in capsys.readouterr().err


def test_the_app_opens_scans_in_it(trained: Path, capsys) -> None:
    weights = ["--sam_checkpoint", str(trained / "models/w/best.pth")]
    for flags, window in (([], ABDOMEN), (["--window", "abdomen"], ABDOMEN), (["--window", "lung"], (-1350.0, 150.0))):
        args = start.parse_args([*weights, *flags])
        with start.application(args, 7860, ""):
            pass
        assert shown_by(args, next(iter(start.models_of(args).values()))).window == window
    assert capsys.readouterr().err.count("was trained with the window -150 to 250, and sees -1350 to 150") == 1


def test_the_server_shows_volumes_in_it(trained: Path, tmp_path: Path, capsys) -> None:
    """The mask is that of segment-volume, and 8 bits stay as they are."""
    pytest.importorskip("blosc2", reason='blosc2 is not installed: pip install -e ".[serve]"')
    from tests.serve.serving import Client, serving_here

    weights, box = trained / "models/w/best.pth", (9, 9, 1, 31, 31, 2)
    volume = sitk.GetArrayFromImage(sitk.ReadImage(str(trained / "scans/a.nii.gz")))
    flags = ["--input", trained / "scans/a.nii.gz", "--box", *box, "--sam_checkpoint", weights]
    segment_volume.main([*map(str, flags), "--output", str(tmp_path / "labels.nii.gz"), "--device", "cpu"])
    with serving_here("--sam_checkpoint", str(weights)) as server:
        client = Client(server)
        client.open(volume)
        client.box([1, 2], [9, 31], [9, 31])
    wanted = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "labels.nii.gz")))
    assert wanted.any() and np.array_equal(client.buffer, wanted)
    assert "window: -150 to 250, as in the training" in capsys.readouterr().out
    shown = Shown(trained=ABDOMEN)
    assert shown.of(np.dtype(np.float32)) == Intensity(ABDOMEN) and shown.of(np.dtype(np.uint8)) == Intensity()
    assert "sees minimum to maximum of each slice" in shown.doubt(np.dtype(np.uint8))
