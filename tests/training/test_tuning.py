"""--tune in real runs: what is printed, moved, saved, resumed, and opened afterwards; rates of layers."""

import json
from pathlib import Path

import pytest
import torch

import test as scoring
import train
from sam_med2d.training.groups import parameter_groups
from sam_med2d.training.state import SavedRun
from segment_anything import sam_model_registry
from segment_anything.checkpoint import describe
from tests.conftest import fails
from tests.training.helpers import RUN, differences, fit, make_data, saved

LORA = ["--tune", "lora", "--lora_rank", 2, "--lora_targets", "qkv", "decoder"]


def is_pair(name: str) -> bool:
    return ".lora_A" in name or ".lora_B" in name


def test_a_lora_run_resumed_is_uninterrupted_and_opens(data: Path, work: Path, tmp_path: Path, capsys) -> None:
    fit(data, work, *LORA, "--epochs", 1)
    said = capsys.readouterr().out
    assert "trained (--tune lora): " in said and "LoRA pairs " in said and "mask decoder " in said
    first = saved(work)
    assert describe(first["model"]).lora and not describe(first["model"]).adapters
    assert (first["flags"]["tune"], first["flags"]["encoder_adapter"]) == ("lora", False)
    fit(data, work, *LORA, "--epochs", 2, "--resume")
    fit(data, tmp_path / "whole", *LORA, "--epochs", 2)
    assert differences(saved(work), saved(tmp_path / "whole")) == []

    moved = {name for name, tensor in saved(work)["model"].items() if not torch.equal(tensor, first["model"][name])}
    assert {n for n in moved if n.startswith("image_encoder.")} == {
        n for n in first["model"] if n.startswith("image_encoder.") and is_pair(n)
    }
    decoder_pairs = [n.rpartition(".")[0] for n in moved if n.startswith("mask_decoder.") and n.endswith("lora_B")]
    assert decoder_pairs and not {f"{layer}.weight" for layer in decoder_pairs} & moved

    message = fails(lambda: fit(data, work, *LORA, "--lora_rank", 3, "--epochs", 3, "--resume"))
    assert "--lora_rank 2" in message
    tests = make_data(tmp_path / "tests", ("test",), images=2)
    words = ["--sam_checkpoint", work / "models" / RUN / "best.pth", "--data_path", tests, "--work_dir", work]
    folder = scoring.main([*map(str, words), "--report", "False", "--prompt_modes", "bbox", "--num_workers", "0"])
    assert "merged into their layers: LoRA pairs of " in capsys.readouterr().out
    assert json.loads((folder / "results.json").read_text())["flags"]["encoder_adapter"] is False


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--tune", "adapters", "--encoder_adapter", "False"], "give one"),
        (["--tune_blocks", "first", "2"], "is written as: last 4"),
        (["--tune", "decoder", "--tune_blocks", "last", "2"], "trains nothing"),
        (["--layer_decay", "0.8"], "--layer_decay is for --tune all"),
        (["--tune", "all", "--layer_decay", "1.5"], "above 0 and at most 1"),
        (["--lora_rank", "0"], "--lora_rank must be at least 1"),
    ],
)
def test_flags_that_contradict(flags: list[str], said: str, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        train.parse_args(flags)
    assert end.value.code == 2 and said in capsys.readouterr().err


def test_more_blocks_than_there_are(data: Path, work: Path) -> None:
    message = fails(lambda: fit(data, work, "--tune", "all", "--tune_blocks", "last", 9))
    assert "--tune_blocks last 9, but the encoder has 4 blocks" in message


@pytest.mark.parametrize(
    ("words", "tune", "adapter"),
    [
        ([], "adapters", True),
        (["--encoder_adapter", "False"], "decoder", False),
        (["--tune", "decoder"], "decoder", False),
        (["--tune", "all"], "all", False),
        (["--tune", "all", "--encoder_adapter"], "all", True),
    ],
)
def test_encoder_adapter_keeps_its_meaning(words: list[str], tune: str, adapter: bool) -> None:
    args = train.parse_args(["--sam_checkpoint", "none", "--model_type", "mini", "--image_size", "64", *words])
    model = train.build_model(train.settle_model(args), args)
    assert (args.tune, args.encoder_adapter, bool(model.image_encoder.adapters())) == (tune, adapter, adapter)


def test_an_older_file_says_what_was_tuned(data: Path, work: Path) -> None:
    """Before --tune the flag --encoder_adapter said it."""
    fit(data, work, "--encoder_adapter", False, "--epochs", 1)
    path = work / "models" / RUN / "last.pth"
    content = saved(work)
    for name in ("tune", "tune_blocks", "lora_rank", "lora_alpha", "lora_targets", "layer_decay"):
        del content["flags"][name]
    torch.save(content, path)
    assert SavedRun(str(path)).flags["tune"] == "decoder"
    fit(data, work, "--resume", "--epochs", 2)
    assert saved(work)["progress"]["epoch"] == 2 and saved(work)["flags"]["tune"] == "decoder"


def test_rates_of_layers() -> None:
    """0.5 from block to block: the last of four at a half, before the first 1 / 32; neck and decoder whole."""
    model = sam_model_registry["mini"](image_size=64, encoder_adapter=True)
    model.train_for("all")
    groups = parameter_groups(model, 1e-3, adapter_lr=3e-3, adapter_norm_lr=6e-3, layer_decay=0.5)
    scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert len(scales) == len([*model.parameters()]) == sum(len(group["params"]) for group in groups)
    rates = {name: scales[id(p)] for name, p in model.named_parameters()}
    expected = {
        "image_encoder.pos_embed": 1 / 32,
        "image_encoder.patch_embed.proj.weight": 1 / 32,
        "image_encoder.blocks.0.mlp.lin1.weight": 1 / 16,
        "image_encoder.blocks.3.attn.qkv.bias": 1 / 2,
        "image_encoder.blocks.0.Adapter.channel.0.weight": 3,
        "image_encoder.blocks.0.Adapter.norm.bias": 6,
        "image_encoder.neck.0.weight": 1,
        "mask_decoder.mask_tokens.weight": 1,
    }
    assert {name: rates[name] for name in expected} == pytest.approx(expected)
