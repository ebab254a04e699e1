"""LoRA pairs: a no-op at first, then what the formula says; apart and merged; SAM's names; and what is trained."""

import copy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from segment_anything import Sam
from segment_anything.build_sam import build_sam
from segment_anything.checkpoint import CheckpointError, describe, load_checkpoint, read_weights, save_weights
from segment_anything.modeling.lora import TARGETS, LoraLinear, add_lora, merge_lora
from segment_anything.modeling.tuning import TUNE, count_trained
from segment_anything.sizes import SIZES, Size
from segment_anything.weight_names import HUGGING_FACE
from tests.conftest import ROOT
from tests.segment_anything.test_model import images_of, prompts_for, randomise
from tests.segment_anything.test_weight_files import hugging_face_model

MINI = Size(channels=32, depth=4, heads=2, global_blocks=(1, 3))


@pytest.fixture(scope="module", autouse=True)
def mini_is_registered() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "mini", MINI)
        yield


@pytest.fixture(scope="module")
def plain(mini_is_registered) -> Sam:
    """Random weights; not to be changed by a test."""
    return randomise(build_sam(model_type="mini", image_size=64, encoder_adapter=False))


def learned(plain: Sam, targets: tuple[str, ...] = (*TARGETS,), rank: int = 3, seed: int = 1) -> Sam:
    """A copy with pairs that are no longer a no-op."""
    model = copy.deepcopy(plain)
    add_lora(model, rank, 6.0, targets, generator=torch.Generator().manual_seed(seed))
    generator = torch.Generator().manual_seed(seed)
    for layer in model.modules():
        if isinstance(layer, LoraLinear):
            layer.lora_B.data.normal_(0, 0.02, generator=generator)
    return model


@torch.no_grad()
def logits_of(model: Sam) -> Tensor:
    embeddings = model.encode(images_of(2, 64))
    return torch.cat([model.predict(embeddings, prompts_for(kind, 64, 2), None).logits for kind in ("box", "points")])


def test_the_formula_and_its_start() -> None:
    """x W^T + b + alpha / rank x A^T B^T (Hu et al. 2021, section 4.1); B starts at zero."""
    linear, x = nn.Linear(5, 4), torch.randn(2, 3, 5)
    layer = LoraLinear(linear, rank=2, alpha=6)
    assert torch.equal(layer(x), linear(x)) and layer.lora_A.abs().min() > 0
    layer.lora_B.data.normal_()
    by_hand = x @ linear.weight.T + linear.bias + 6 / 2 * x @ layer.lora_A.T @ layer.lora_B.T
    torch.testing.assert_close(layer(x), by_hand)


def test_new_pairs_change_nothing(plain: Sam) -> None:
    model = copy.deepcopy(plain)
    layers = add_lora(model, 8, 16, [*TARGETS])
    assert len(layers) == 4 * 4 + 7 * 4  # qkv, proj, lin1, lin2 of four blocks; seven attentions of the decoder
    # attention of plain layers goes a shorter way, which rounds elsewhere
    torch.testing.assert_close(logits_of(model), logits_of(plain), atol=1e-5, rtol=0)
    assert {name for name in model.state_dict() if "lora_" not in name} == {*plain.state_dict()}


def test_the_first_values_are_the_generators() -> None:
    """The same pairs whatever was drawn before."""
    made = []
    for _ in range(2):
        torch.rand(3)
        model = build_sam(model_type="mini", image_size=64, encoder_adapter=False)
        add_lora(model, 2, 4, ["qkv"], generator=torch.Generator().manual_seed(5))
        made.append(model.image_encoder.blocks[2].attn.qkv.lora_A)
    assert torch.equal(*made)


def test_targets_and_last_blocks(plain: Sam) -> None:
    model = copy.deepcopy(plain)
    assert add_lora(model, 2, 4, ["proj"], last_blocks=1) == ["image_encoder.blocks.3.attn.proj"]
    assert describe(model.state_dict()).lora == ("image_encoder.blocks.3.attn.proj",)


def test_merged_is_a_plain_sam_with_the_same_logits(plain: Sam, tmp_path: Path, capsys) -> None:
    """By the converter: SAM's own names, loaded strictly; by `load_checkpoint`: a file's pairs in a plain model."""
    model = learned(plain)
    expected = logits_of(model)
    assert (expected - logits_of(plain)).abs().max() > 0.01
    torch.save({"model": model.state_dict()}, tmp_path / "lora.pth")

    command = [sys.executable, "scripts/convert_checkpoint.py", tmp_path / "lora.pth"]
    done = subprocess.run([*command, "--merge"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "LoRA pairs in 44 layers" in done.stdout, done.stderr
    merged = build_sam(model_type="mini", image_size=64, encoder_adapter=False)
    merged.load_state_dict(read_weights(tmp_path / "lora.safetensors"), strict=True)
    torch.testing.assert_close(logits_of(merged), expected, atol=1e-5, rtol=1e-5)

    capsys.readouterr()
    loaded = build_sam(model_type="mini", image_size=64, encoder_adapter=False, checkpoint=tmp_path / "lora.pth")
    assert "merged into their layers: LoRA pairs of 44 layers" in capsys.readouterr().out
    assert torch.equal(logits_of(loaded), logits_of(merged))

    apart = learned(plain, seed=2)  # a model that has pairs takes those of the file
    report = load_checkpoint(apart, tmp_path / "lora.pth")
    assert report.merged == () and torch.equal(logits_of(apart), expected)
    assert "newly started: LoRA pairs of 44 layers (no-op)" in str(
        load_checkpoint(apart, tmp_path / "lora.safetensors")
    )

    again = subprocess.run(
        [*command[:2], tmp_path / "lora.safetensors", "--merge", "--overwrite"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert again.returncode == 1 and "has no LoRA pairs to merge" in again.stderr


def test_transformers_opens_merged_pairs(tmp_path: Path) -> None:
    """Hugging Face's SamModel, under its names, loaded strictly: the same masks."""
    theirs = hugging_face_model()
    torch.save(theirs.state_dict(), tmp_path / "theirs.bin")
    started = build_sam(
        model_type="mini", image_size=64, encoder_adapter=False, checkpoint=str(tmp_path / "theirs.bin")
    )
    model = learned(started)
    merged = merge_lora(model.state_dict())
    assert not torch.equal(
        merged["image_encoder.blocks.1.attn.qkv.weight"], model.image_encoder.blocks[1].attn.qkv.weight
    )
    converted = {}
    for name in theirs.state_dict():
        ours = name
        for pattern, replacement in HUGGING_FACE:
            ours = pattern.sub(replacement, ours)
        converted[name] = merged[ours]
    theirs.load_state_dict(converted, strict=True)
    image, box = torch.randn(1, 3, 64, 64), torch.tensor([[5.0, 6.0, 50.0, 40.0]])
    with torch.no_grad():
        embedding = theirs.get_image_embeddings(image)
        torch.testing.assert_close(model.image_encoder(image), embedding, atol=1e-4, rtol=1e-4)
        wanted = theirs(image_embeddings=embedding, input_boxes=box[None], multimask_output=True).pred_masks[0, 0]
        sparse, dense = model.prompt_encoder(points=None, boxes=box, masks=None)
        masks, _ = model.mask_decoder(
            image_embeddings=embedding,
            image_pe=model.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=True,
        )
    torch.testing.assert_close(masks[0], wanted, atol=1e-4, rtol=1e-4)
    assert torch.equal(masks[0] > 0, wanted > 0) and 0 < (wanted > 0).float().mean() < 1


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda w, pair: w.pop(f"{pair}.lora_A"), "lacks lora_A"),
        (lambda w, pair: w.update({f"{pair}.lora_B": torch.zeros(5, 3)}), "does not fit it"),
        (lambda w, pair: w.update({f"{pair}.lora_A": torch.zeros(2, 32)}), "does not fit it"),
        (lambda w, pair: w.pop(f"{pair}.weight"), "lacks the weight"),
    ],
)
def test_half_a_pair_is_one_line(spoil, said: str, plain: Sam, tmp_path: Path) -> None:
    weights = dict(learned(plain).state_dict())
    spoil(weights, "image_encoder.blocks.1.attn.qkv")
    save_weights(weights, tmp_path / "odd.safetensors")
    target = copy.deepcopy(plain)
    with pytest.raises(
        CheckpointError, match=r"odd.safetensors: the LoRA pair of image_encoder.blocks.1.attn.qkv"
    ) as e:
        load_checkpoint(target, tmp_path / "odd.safetensors")
    assert said in str(e.value) and "\n" not in str(e.value)
    assert torch.equal(logits_of(target), logits_of(plain))


# ---------------------------------------------------------------- what is trained


LEARNS = {
    "adapters": lambda name: ".Adapter." in name or not name.startswith("image_encoder."),
    "decoder": lambda name: not name.startswith("image_encoder."),
    "lora": lambda name: ".lora_" in name or not name.startswith("image_encoder."),
    "all": lambda name: True,
}


@pytest.mark.parametrize("tune", TUNE)
def test_the_table(tune: str) -> None:
    model = build_sam(model_type="mini", image_size=64, encoder_adapter=True)
    if tune == "lora":
        add_lora(model, 2, 4, ["qkv", "mlp"])
    parameters = model.train_for(tune)
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learning == {name for name, _ in model.named_parameters() if LEARNS[tune](name)}
    counts = count_trained(model)
    assert sum(counts.values()) == sum(p.numel() for p in parameters)
    assert [*counts][-2:] == ["prompt encoder", "mask decoder"] and len(counts) == {"decoder": 2, "all": 4}.get(tune, 3)
    if tune == "lora":
        assert counts["LoRA pairs"] == 4 * 2 * ((32 + 96) + (32 + 128) + (128 + 32))


def test_a_layer_with_a_pair_learns_by_it_alone() -> None:
    model = build_sam(model_type="mini", image_size=64, encoder_adapter=False)
    (*_, last) = add_lora(model, 2, 4, ["decoder"])
    model.train_for("lora")
    layer = model.get_submodule(last)
    learns = {name for name, parameter in layer.named_parameters() if parameter.requires_grad}
    assert learns == {"lora_A", "lora_B"} and last.startswith("mask_decoder.")
    assert model.mask_decoder.mask_tokens.weight.requires_grad


@pytest.mark.parametrize("tune", ["adapters", "all"])
def test_last_blocks(tune: str) -> None:
    model = build_sam(model_type="mini", image_size=64, encoder_adapter=True)
    model.train_for(tune, last_blocks=1)
    encoder = {n for n, p in model.image_encoder.named_parameters() if p.requires_grad}
    own = {
        n
        for n, _ in model.image_encoder.named_parameters()
        if n.startswith("blocks.3.") and LEARNS[tune](f"image_encoder.{n}")
    }
    neck = {n for n, _ in model.image_encoder.named_parameters() if n.startswith("neck.")}
    assert encoder == (own | neck if tune == "all" else own) and own
