"""train.py and test.py take model type, image size and adapters from the weight file; flags that differ are named."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import test as scoring
import train
from sam_med2d.errors import CheckpointError, UsageError
from sam_med2d.inference.models import SMALL, plan_model, small_weights
from sam_med2d.provenance import file_hash
from segment_anything import sam_model_registry
from segment_anything.checkpoint import save_weights
from tests.conftest import fails
from tests.training.helpers import RUN, make_data, saved

FEW = ["--num_workers", "0", "--device", "cpu", "--prompt_modes", "bbox"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"), ("train", "test"), images=2)


@pytest.fixture(scope="module")
def files(small_and_repeatable, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Mini models of 96 px with and without adapters, and one as SAM's own: 1024 px, no adapters."""
    folder = tmp_path_factory.mktemp("files")
    paths = {}
    for name, size, adapters in (("adapted", 96, True), ("plain", 96, False), ("sam", 1024, False)):
        paths[name] = folder / f"{name}.safetensors"
        save_weights(sam_model_registry["mini"](image_size=size, encoder_adapter=adapters).state_dict(), paths[name])
    yield paths
    shutil.rmtree(folder)


def score(data: Path, work: Path, *flags: object) -> dict:
    words = [*FEW, "--data_path", data, "--work_dir", work, "--report", "False", *flags]
    return json.loads((scoring.main([*map(str, words)]) / "results.json").read_text())


@pytest.mark.parametrize("name", ["adapted", "plain"])
def test_testing_is_as_the_file_says(name: str, files, data: Path, work: Path, capsys) -> None:
    results = score(data, work, "--sam_checkpoint", files[name])
    flags = results["flags"]
    assert (flags["model_type"], flags["image_size"], flags["encoder_adapter"]) == ("mini", 96, name == "adapted")
    assert (
        results["model_type"] == "mini" and json.loads((work / "sammed/prompts.json").read_text())["image_size"] == 96
    )
    out, err = capsys.readouterr()
    assert "warning" not in err and "resized" not in out and "left out: none" in out
    told = score(
        data,
        work,
        "--sam_checkpoint",
        files[name],
        "--model_type",
        "mini",
        "--image_size",
        96,
        "--encoder_adapter",
        name == "adapted",
    )
    assert told["dice"] == results["dice"] and "warning" not in capsys.readouterr().err


def test_flags_that_differ_are_named_beside_the_file(files, data: Path, work: Path, capsys) -> None:
    flags = score(data, work, "--sam_checkpoint", files["adapted"], "--image_size", 64, "--encoder_adapter", False)[
        "flags"
    ]
    assert (flags["image_size"], flags["encoder_adapter"]) == (64, False)
    size, adapters = capsys.readouterr().err.splitlines()[:2]
    assert size.startswith("warning: --image_size 64, but ") and "adapted.safetensors was trained at 96 px" in size
    assert adapters.startswith("warning: --encoder_adapter False, but ") and "has adapters" in adapters
    score(data, work, "--sam_checkpoint", files["plain"], "--encoder_adapter")
    assert "warning: --encoder_adapter True, but " in capsys.readouterr().err


def test_another_model_type_names_type_and_size(files, data: Path, work: Path) -> None:
    for call in (
        lambda: score(data, work, "--sam_checkpoint", files["plain"], "--model_type", "vit_t"),
        lambda: train.main(
            [*FEW, "--data_path", str(data), "--sam_checkpoint", str(files["plain"]), "--model_type", "vit_t"]
        ),
    ):
        assert "--model_type mini and --image_size 96" in fails(call)


@pytest.mark.parametrize(
    "name, flags, size, adapters",
    [
        ("adapted", [], 96, True),
        ("plain", [], 96, True),
        ("plain", ["--encoder_adapter", "False"], 96, False),
        ("sam", [], 256, True),
        ("sam", ["--encoder_adapter", "False", "--image_size", "1024"], 1024, False),
        ("adapted", ["--image_size", "64"], 64, True),
    ],
)
def test_what_training_starts_from(name: str, flags: list[str], size: int, adapters: bool, files, capsys) -> None:
    args = train.parse_args(["--sam_checkpoint", str(files[name]), *flags])
    plan = train.settle_model(args)
    assert (args.model_type, args.image_size, args.encoder_adapter) == ("mini", size, adapters)
    model = plan.build()
    assert model.image_size == size and bool(model.image_encoder.adapters()) == adapters
    assert ("warning: --image_size 64" in capsys.readouterr().err) == (size == 64)


def test_from_scratch_is_the_originals_default() -> None:
    args = train.parse_args(["--sam_checkpoint", "None"])
    assert train.settle_model(args) is None
    assert (args.model_type, args.image_size, args.encoder_adapter) == ("vit_b", 256, True)


def test_a_run_and_what_follows_it_need_no_flags(files, data: Path, work: Path, capsys) -> None:
    """Trained, resumed and tested: the size is that of the file throughout, and recorded."""
    flags = [*FEW, "--data_path", str(data), "--work_dir", str(work), "--mask_num", "1", "--iter_point", "1"]
    train.main([*flags, "--sam_checkpoint", str(files["plain"]), "--epochs", "1"])
    recorded = saved(work)["flags"]
    assert (recorded["model_type"], recorded["image_size"], recorded["encoder_adapter"]) == ("mini", 96, True)
    train.main([*flags, "--resume", "--epochs", "2"])
    assert saved(work)["progress"]["epoch"] == 2 and saved(work)["flags"]["image_size"] == 96
    message = fails(lambda: train.main([*flags, "--resume", "--image_size", "64", "--epochs", "3"]))
    assert "--image_size 96" in message
    capsys.readouterr()
    for name in ("best.pth", "last.pth"):
        tested = score(data, work, "--sam_checkpoint", work / "models" / RUN / name)["flags"]
        assert (tested["image_size"], tested["encoder_adapter"]) == (96, True)
    assert "warning" not in capsys.readouterr().err


def test_small_is_known_to_both(data: Path, work: Path) -> None:
    results = score(data, work, "--sam_checkpoint", SMALL)
    assert (results["flags"]["model_type"], results["flags"]["image_size"]) == ("vit_t", 192)
    assert results["weights_hash"] == file_hash(small_weights())
    args = train.parse_args(["--sam_checkpoint", SMALL])
    assert train.settle_model(args).file.path.name == "vit_t_small.safetensors"
    assert (args.model_type, args.image_size, args.encoder_adapter) == ("vit_t", 192, True)


def test_a_size_that_is_no_multiple_of_32(tmp_path: Path) -> None:
    weights = dict(sam_model_registry["mini"](image_size=64, encoder_adapter=False).state_dict())
    weights["image_encoder.pos_embed"] = torch.zeros(1, 5, 5, 32)
    torch.save(weights, tmp_path / "odd.pth")
    with pytest.raises(UsageError, match=r"--image_size must be a multiple of 32, and .*odd.pth was trained at 80 px"):
        plan_model(str(tmp_path / "odd.pth"))
    torch.save({"image_encoder.pos_embed": torch.zeros(1, 4, 4, 7)}, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match="odd.pth"):
        plan_model(str(tmp_path / "odd.pth"))


def test_weights_that_are_not_finite_are_not_scored(files, data: Path, work: Path, tmp_path: Path) -> None:
    weights = dict(sam_model_registry["mini"](image_size=96).state_dict())
    weights["mask_decoder.mask_tokens.weight"][1, 2] = float("nan")
    torch.save(weights, tmp_path / "nan.pth")
    message = fails(lambda: score(data, work, "--sam_checkpoint", tmp_path / "nan.pth"))
    assert "nan.pth: 1 tensor" in message and "mask_tokens" in message
    assert not (work / "sammed").exists()
