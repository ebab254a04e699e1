"""Every kind of weight file, made here with random weights, into models of every kind and size."""

import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sam_med2d.commands import convert_checkpoint
from segment_anything import Sam
from segment_anything.build_sam import build_sam
from segment_anything.checkpoint import CheckpointError, describe, load_checkpoint, read_weights, save_weights
from segment_anything.sizes import SIZES, Size
from tests.conftest import fails

CONVERTER = Path(__file__).parents[2] / "scripts" / "convert_checkpoint.py"
POSITIONS = "image_encoder.pos_embed"
GAUSSIAN = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
MINI = Size(channels=32, depth=4, heads=2, global_blocks=(1, 3))  # most files here: 17 MB, nearly all decoder


@pytest.fixture(scope="module", autouse=True)
def mini_is_registered() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "mini", MINI)
        yield


def build(image_size: int = 64, adapter: bool = False, seed: int = 0, model_type: str = "mini") -> Sam:
    """A model whose every tensor is random: fresh ones have zeros and ones, which would hide a tensor not copied."""
    model = build_sam(model_type=model_type, image_size=image_size, encoder_adapter=adapter)
    generator = torch.Generator().manual_seed(seed)
    for tensor in model.state_dict().values():
        tensor.normal_(0, 0.05, generator=generator)
    return model


def global_tables(model_type: str = "mini") -> list[str]:
    """The relative positions whose length depends on the image size."""
    return [f"image_encoder.blocks.{i}.attn.rel_pos_{axis}" for i in SIZES[model_type].global_blocks for axis in "hw"]


def copied(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in weights.items()}


def assert_same(got: dict[str, Tensor], want: dict[str, Tensor], tolerance: float = 0) -> None:
    assert got.keys() == want.keys()
    different = [n for n in want if not torch.allclose(got[n].float(), want[n].float(), rtol=tolerance, atol=tolerance)]
    assert not different


def is_adapter(name: str) -> bool:
    return ".Adapter." in name


@pytest.fixture(scope="module")
def plain() -> dict[str, Tensor]:
    """A small SAM of 64 px without adapters."""
    return copied(build().state_dict())


@pytest.fixture(scope="module")
def adapted() -> dict[str, Tensor]:
    """The same with adapters, as SAM-Med2D."""
    return copied(build(adapter=True).state_dict())


def saved(content: object, path: Path, **options: object) -> Path:
    torch.save(content, path, **options)
    return path


# ---------------------------------------------------------------- kinds of files


def used_optimizer(
    weights: dict[str, Tensor], optimizer: type[torch.optim.Optimizer], **options: float
) -> torch.optim.Optimizer:
    """An optimizer with the state of one step in it."""
    parameters = [nn.Parameter(tensor.clone()) for tensor in weights.values()]
    made = optimizer(parameters, lr=1e-4, **options)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    made.step()
    return made


def training_checkpoint(weights: dict[str, Tensor]) -> dict[str, object]:
    """As this project's training writes it: tensors and plain values."""
    return {
        "model": weights,
        "optimizer": used_optimizer(weights, torch.optim.Adam).state_dict(),
        "epoch": 3,
        "best": 0.9,
        "flags": {"lr": 1e-4, "resume": None, "milestones": [5, 10]},
        "random": torch.get_rng_state(),
    }


WRITERS = {
    "bare state dict": saved,
    "bare, before PyTorch 1.6": lambda w, p: saved(w, p, _use_new_zipfile_serialization=False),
    "parameters instead of tensors": lambda w, p: saved({n: nn.Parameter(t) for n, t in w.items()}, p),
    "pickled Adam": lambda w, p: saved({"model": w, "optimizer": used_optimizer(w, torch.optim.Adam)}, p),
    "pickled AdamW": lambda w, p: saved({"model": w, "optimizer": used_optimizer(w, torch.optim.AdamW)}, p),
    "pickled SGD": lambda w, p: saved({"model": w, "optimizer": used_optimizer(w, torch.optim.SGD, momentum=0.9)}, p),
    "pickled Adam, before PyTorch 1.6": lambda w, p: saved(
        {"model": w, "optimizer": used_optimizer(w, torch.optim.Adam)}, p, _use_new_zipfile_serialization=False
    ),
    "training checkpoint": lambda w, p: saved(training_checkpoint(w), p),
    "DistributedDataParallel": lambda w, p: saved({"model": {f"module.{n}": t for n, t in w.items()}}, p),
    "with pixel_mean and pixel_std": lambda w, p: saved(
        {**w, "pixel_mean": torch.zeros(3, 1, 1), "pixel_std": torch.ones(3, 1, 1)}, p
    ),
    "safetensors": lambda w, p: save_weights(w, p.with_suffix(".safetensors")) or p.with_suffix(".safetensors"),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_of_file_fills_the_model(kind: str, adapted: dict[str, Tensor], tmp_path: Path) -> None:
    path = WRITERS[kind](adapted, tmp_path / "weights.pth")
    model = build(adapter=True, seed=1)
    report = load_checkpoint(model, path)
    assert_same(model.state_dict(), adapted)
    assert report.read == len(adapted)
    assert (report.resized, report.new, report.left_out) == ([], [], [])


def test_a_file_written_on_a_gpu_is_read_without_one(plain, tmp_path: Path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        path = saved({"model": plain, "optimizer": used_optimizer(plain, torch.optim.Adam)}, tmp_path / "gpu.pth")
    assert b"cuda:0" in zipfile.ZipFile(path).read("gpu/data.pkl")
    assert_same(read_weights(path), plain)


def test_the_pickled_optimizer_is_not_built(plain, tmp_path: Path, monkeypatch) -> None:
    path = saved({"model": plain, "optimizer": used_optimizer(plain, torch.optim.Adam)}, tmp_path / "weights.pth")
    monkeypatch.setattr(torch.optim.Adam, "__setstate__", lambda *_: pytest.fail("code of the optimizer ran"))
    allowed = set(torch.serialization.get_safe_globals())
    assert_same(read_weights(path), plain)
    assert set(torch.serialization.get_safe_globals()) == allowed  # the permission ends with the reading


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_cast_to_the_models(dtype: torch.dtype, plain, tmp_path: Path) -> None:
    half = {name: tensor.to(dtype) for name, tensor in plain.items()}
    model = build(seed=1)
    load_checkpoint(model, saved(half, tmp_path / "half.pth"))
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    assert_same(model.state_dict(), half)


def test_half_precision_is_resized(plain, tmp_path: Path) -> None:
    half = {name: tensor.half() for name, tensor in plain.items()}
    model = build(128)
    load_checkpoint(model, saved(half, tmp_path / "half.pth"))
    want = bicubic(half[POSITIONS].float(), 8)
    torch.testing.assert_close(model.image_encoder.pos_embed.data, want, atol=1e-6, rtol=1e-5)


# ---------------------------------------------------------------- adapters


def test_adapters_of_the_file_are_left_out_of_a_model_without(adapted, tmp_path: Path) -> None:
    model = build(seed=1)
    report = load_checkpoint(model, saved(adapted, tmp_path / "med2d.pth"))
    assert_same(model.state_dict(), {name: tensor for name, tensor in adapted.items() if not is_adapter(name)})
    assert report.left_out == [name for name in adapted if is_adapter(name)] and not report.new


def test_adapters_that_the_file_lacks_stay_as_built(plain, tmp_path: Path) -> None:
    model = build_sam(model_type="mini", image_size=64, encoder_adapter=True)
    before = copied(model.state_dict())
    report = load_checkpoint(model, saved(plain, tmp_path / "sam.pth"))
    after = model.state_dict()
    assert_same(after, {name: plain.get(name, before[name]) for name in before})
    assert report.new == [name for name in before if is_adapter(name)] and not report.left_out

    bare = build(seed=1)
    load_checkpoint(bare, tmp_path / "sam.pth")
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model.image_encoder(image), bare.image_encoder(image))


# ---------------------------------------------------------------- image sizes


@pytest.mark.parametrize("more", ["", "encoder_adapter", "refine"])
def test_values_that_the_file_does_not_have_are_drawn(more: str, plain, tmp_path: Path, monkeypatch) -> None:
    """Those of a new part alone; and no layer keeps what its memory happened to hold."""
    drawn: list[Tensor] = []
    draw = torch.Tensor.uniform_
    monkeypatch.setattr(
        torch.Tensor, "uniform_", lambda self, *bounds, **more: drawn.append(draw(self, *bounds)) or self
    )
    path = saved(plain, tmp_path / "plain.pth")
    model = build_sam(checkpoint=path, model_type="mini", **{more: True} if more else {})
    assert bool(drawn) == bool(more)
    values = model.state_dict()
    assert_same({name: values[name] for name in plain}, plain)
    new = [values[name] for name in values if name not in plain]
    assert bool(new) == bool(more) and all(value.abs().max() <= 1 for value in new)


def bicubic(positions: Tensor, side: int) -> Tensor:
    """(1, h, h, C) -> (1, side, side, C) by the textbook: Keys' kernel with a = -0.75, borders repeated."""
    length, a = positions.shape[1], -0.75
    matrix = np.zeros((side, length))
    for row in range(side):
        x = (row + 0.5) * length / side - 0.5
        for tap in range(int(np.floor(x)) - 1, int(np.floor(x)) + 3):
            t = abs(x - tap)
            near, far = (a + 2) * t**3 - (a + 3) * t**2 + 1, a * (t**3 - 5 * t**2 + 8 * t - 4)
            matrix[row, min(max(tap, 0), length - 1)] += near if t <= 1 else far
    resized = np.einsum("yh,xw,bhwc->byxc", matrix, matrix, positions.double().numpy(), optimize=True)
    return torch.from_numpy(resized).float()


def linear(table: Tensor, length: int) -> Tensor:
    """(L, C) -> (length, C); entries are the centres of equal cells."""
    x = (np.arange(length) + 0.5) * len(table) / length - 0.5
    columns = [np.interp(x, np.arange(len(table)), column) for column in table.double().numpy().T]
    return torch.from_numpy(np.stack(columns, axis=1)).float()


@pytest.mark.parametrize(
    ("model_type", "source", "target"),
    [
        ("vit_t", 1024, 256),
        ("mini", 1024, 256),
        ("mini", 256, 512),
        ("mini", 512, 256),
        ("mini", 256, 224),
    ],
)
def test_positions_are_resized_and_all_else_is_kept(model_type: str, source: int, target: int, tmp_path: Path) -> None:
    weights = copied(build(source, True, model_type=model_type).state_dict())
    model = build(target, True, seed=1, model_type=model_type)
    report = load_checkpoint(model, saved(weights, tmp_path / "weights.pth"))

    side, tables = target // 16, global_tables(model_type)
    want = weights | {POSITIONS: bicubic(weights[POSITIONS], side)}
    want |= {name: linear(weights[name], 2 * side - 1) for name in tables}
    assert_same(model.state_dict(), want, tolerance=1e-5)
    assert sorted(report.resized) == sorted([POSITIONS, *tables])
    assert report.read == len(weights) and str(report.source) == f"{model_type}, {source} px, adapters"


def test_the_heads_survive_another_size(tmp_path: Path) -> None:
    """The public code loses them on the way to another size."""
    weights = copied(build(128).state_dict())
    model = build(64, adapter=True, seed=1)
    load_checkpoint(model, saved(weights, tmp_path / "weights.pth"))
    heads = [name for name in weights if name.startswith(("mask_decoder.", "prompt_encoder."))]
    for part in ("mask_tokens", "iou_token", "output_hypernetworks_mlps", "iou_prediction_head"):
        assert any(name.startswith(f"mask_decoder.{part}") for name in heads)
    for name in heads:
        assert torch.equal(model.state_dict()[name], weights[name]), name


def test_relative_positions_alone_may_differ(plain, tmp_path: Path) -> None:
    """Code that interpolates them at run time leaves files in which only the absolute positions were resized."""
    name = global_tables()[0]
    long = 0.05 * torch.randn(127, 16)
    model = build(seed=1)
    report = load_checkpoint(model, saved(plain | {name: long}, tmp_path / "mixed.pth"))
    assert report.resized == [name]
    assert_same(model.state_dict(), plain | {name: linear(long, 7)}, tolerance=1e-5)


def test_metas_vit_b_in_models_of_other_sizes(tmp_path: Path) -> None:
    """The shape of sam_vit_b_01ec64.pth: bare, 1024 px, no adapters. And new adapters change nothing."""
    bare = build(256, model_type="vit_b")
    weights = copied(bare.state_dict())
    weights[POSITIONS] = torch.randn(1, 64, 64, 768) * 0.05
    weights.update({name: torch.randn(127, 64) * 0.05 for name in global_tables("vit_b")})
    path = saved(weights, tmp_path / "sam_vit_b.pth")

    load_checkpoint(bare, path)
    adapted = build_sam(model_type="vit_b", image_size=256, encoder_adapter=True)
    report = load_checkpoint(adapted, path)
    assert str(report.source) == "vit_b, 1024 px, no adapters"
    image = torch.randn(1, 3, 256, 256)
    with torch.no_grad():
        assert torch.equal(adapted.image_encoder(image), bare.image_encoder(image))
    del adapted, bare  # a gigabyte

    larger = build_sam(model_type="vit_b", image_size=512, encoder_adapter=False)
    report = load_checkpoint(larger, path)
    assert len(report.resized) == 9
    got = larger.image_encoder.pos_embed.data
    torch.testing.assert_close(got, bicubic(weights[POSITIONS], 32), atol=1e-5, rtol=1e-4)


# ---------------------------------------------------------------- report


def test_report_of_sam_into_an_adapter_model(tmp_path: Path, capsys) -> None:
    path = saved(build(1024, model_type="vit_t").state_dict(), tmp_path / "sam.pth")
    build_sam(model_type="vit_t", image_size=256, encoder_adapter=True, checkpoint=path)
    assert capsys.readouterr().out == (
        f"weights: {path} (vit_t, 1024 px, no adapters)\n"
        "  read 314 tensors\n"
        "  resized to 256 px: pos_embed, rel_pos of 4 blocks\n"
        "  newly started: adapters of 12 blocks (no-op)\n"
        "  left out: none\n"
        "  SAM-Med2D's frame: BGR, stretched, nearest neighbour\n"
    )


def test_report_of_left_out_adapters(plain, adapted, tmp_path: Path) -> None:
    path = saved(adapted, tmp_path / "med2d.pth")
    assert str(load_checkpoint(build(), path)) == (
        f"weights: {path} (mini, 64 px, adapters)\n  read {len(plain)} tensors\n  left out: adapters of 4 blocks\n"
        "  SAM-Med2D's frame: BGR, stretched, nearest neighbour"
    )


@pytest.mark.parametrize("model_type", SIZES)
@pytest.mark.parametrize("adapters", [0, 1, None])
def test_describe(model_type: str, adapters: int | None) -> None:
    size = SIZES[model_type]
    with_adapter = range(size.depth if adapters is None else adapters)
    weights = {POSITIONS: torch.empty(1, 20, 20, size.channels)}
    weights |= {f"image_encoder.blocks.{i}.norm1.weight": torch.empty(1) for i in range(size.depth)}
    weights |= {f"image_encoder.blocks.{i}.Adapter.norm.weight": torch.empty(1) for i in with_adapter}
    text = {0: "no adapters", 1: f"adapters in 1 of {size.depth} blocks", None: "adapters"}[adapters]
    assert str(describe(weights)) == f"{model_type}, 320 px, {text}"


# ---------------------------------------------------------------- refusals


def refusal(path: Path, adapter: bool = False) -> str:
    """The error of loading a file; checks that it is one line, names the file, and that the model is unchanged."""
    model = build(adapter=adapter, seed=1)
    before = copied(model.state_dict())
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(model, path)
    assert_same(model.state_dict(), before)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message


def without(weights: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in weights.items() if name not in names}


def test_missing_names_are_listed(plain, tmp_path: Path) -> None:
    lost = ["mask_decoder.mask_tokens.weight", "mask_decoder.iou_token.weight"]
    message = refusal(saved(without(plain, *lost), tmp_path / "w.pth"))
    assert "missing 2 names" in message and all(name in message for name in lost)


def test_a_missing_gaussian_matrix_is_an_error(plain, tmp_path: Path) -> None:
    assert f"missing 1 name: {GAUSSIAN}" in refusal(saved(without(plain, GAUSSIAN), tmp_path / "w.pth"))


def test_extra_names_are_listed_the_first_ten(plain, tmp_path: Path) -> None:
    extra = {f"head.{i:02d}": torch.zeros(1) for i in range(12)}
    message = refusal(saved(plain | extra, tmp_path / "w.pth"))
    assert "unexpected 12 names: head.00," in message and "head.09, ..." in message and "head.10" not in message


def test_missing_and_extra_names_come_together(plain, tmp_path: Path) -> None:
    message = refusal(saved(without(plain, GAUSSIAN) | {"head": torch.zeros(1)}, tmp_path / "w.pth"))
    assert GAUSSIAN in message and "unexpected 1 name: head" in message


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("mask_decoder.mask_tokens.weight", (5, 256)),
        ("image_encoder.blocks.0.attn.rel_pos_h", (31, 16)),  # a windowed block: another window is another model
        ("image_encoder.blocks.1.attn.rel_pos_h", (31, 80)),
        (POSITIONS, (1, 8, 4, 32)),
    ],
)
def test_other_shapes_are_listed(name: str, shape: tuple[int, ...], plain, tmp_path: Path) -> None:
    message = refusal(saved(plain | {name: torch.zeros(shape)}, tmp_path / "w.pth"))
    assert f"1 name: {name} {shape} instead of {tuple(plain[name].shape)}" in message


def test_integer_weights_are_refused(plain, tmp_path: Path) -> None:
    name = "mask_decoder.mask_tokens.weight"
    message = refusal(saved(plain | {name: plain[name].to(torch.int8)}, tmp_path / "w.pth"))
    assert f"{name} torch.int8" in message


@pytest.mark.parametrize("into_adapters", [True, False])
def test_adapters_in_some_blocks_only(into_adapters: bool, adapted, tmp_path: Path) -> None:
    lost = [name for name in adapted if name.startswith(("image_encoder.blocks.1.Ad", "image_encoder.blocks.2.Ad"))]
    message = refusal(saved(without(adapted, *lost), tmp_path / "w.pth"), into_adapters)
    assert "2 names: image_encoder.blocks.1.Adapter, image_encoder.blocks.2.Adapter" in message


def test_half_an_adapter(adapted, tmp_path: Path) -> None:
    name = "image_encoder.blocks.3.Adapter.norm.weight"
    assert f"missing 1 name: {name}" in refusal(saved(without(adapted, name), tmp_path / "w.pth"), adapter=True)


@pytest.mark.parametrize("model_type", ["vit_b", "vit_l", "vit_h"])
def test_another_model_type_is_named(model_type: str, tmp_path: Path) -> None:
    size = SIZES[model_type]
    weights = {POSITIONS: torch.zeros(1, 64, 64, size.channels)}
    weights |= {f"image_encoder.blocks.{i}.norm1.weight": torch.zeros(size.channels) for i in range(size.depth)}
    message = refusal(saved(weights, tmp_path / "w.pth"))
    assert f"is {model_type}, 1024 px, no adapters, but the model is mini; use --model_type {model_type}" in message


def test_an_unknown_size_is_described(tmp_path: Path) -> None:
    weights = {POSITIONS: torch.zeros(1, 64, 64, 384), "image_encoder.blocks.0.norm1.weight": torch.zeros(384)}
    assert "an unknown size (384 channels, 1 blocks)" in refusal(saved(weights, tmp_path / "w.pth"))


def test_weights_of_another_kind_of_network(tmp_path: Path) -> None:
    assert "no SAM image encoder" in refusal(saved(nn.Linear(2, 2).state_dict(), tmp_path / "w.pth"))


def write_bytes(content: bytes, path: Path) -> Path:
    path.write_bytes(content)
    return path


def truncated(path: Path) -> Path:
    return write_bytes(path.read_bytes()[: path.stat().st_size // 2], path)


def numpy_archive(path: Path) -> Path:
    with path.open("wb") as file:
        np.savez(file, a=np.ones(3))
    return path


TINY = {"weight": torch.ones(500)}
NO_CHECKPOINTS = {
    "missing": (lambda p: p, "No such file"),
    "a folder": (lambda p: p.mkdir() or p, "Is a directory"),
    "empty": (lambda p: write_bytes(b"", p), "empty"),
    "web page": (lambda p: write_bytes(b"\n<!DOCTYPE html><html>Sign in</html>", p), "web page"),
    "git lfs": (lambda p: write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0", p), "git lfs pull"),
    "noise": (lambda p: write_bytes(bytes(range(256)) * 9, p), "not a PyTorch checkpoint"),
    "truncated": (lambda p: truncated(saved(TINY, p)), "damaged"),
    "truncated, old format": (lambda p: truncated(saved(TINY, p, _use_new_zipfile_serialization=False)), "damaged"),
    "numpy": (numpy_archive, "not a PyTorch checkpoint"),
    "one tensor": (lambda p: saved(torch.ones(2), p), "holds no weights"),
    "numbers": (lambda p: saved({"epoch": 3}, p), "holds no weights"),
    "no tensors": (lambda p: saved({"model": {}}, p), "holds no weights"),
    "truncated safetensors": (lambda p: truncated(WRITERS["safetensors"](TINY, p)), "damaged"),
}


@pytest.mark.parametrize("kind", NO_CHECKPOINTS)
def test_what_is_no_checkpoint_is_named(kind: str, tmp_path: Path) -> None:
    write, phrase = NO_CHECKPOINTS[kind]
    assert phrase in refusal(write(tmp_path / "w.pth"))


class Runs:
    """Pickles as a call of `function`."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("function", "named"),
    [
        (os.system, f"{os.name}.system"),
        (exec, "exec"),
        (os.mkdir, ".mkdir"),
    ],
)
def test_a_pickled_call_is_refused_and_not_executed(function, named: str, zipped: bool, plain, tmp_path: Path) -> None:
    victim = tmp_path / "executed"
    argument = {os.system: f"mkdir '{victim}'", exec: f"import os; os.mkdir({str(victim)!r})", os.mkdir: str(victim)}[
        function
    ]
    content = {"model": plain, "optimizer": Runs(function, argument)}
    path = saved(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    message = refusal(path)
    assert named in message and "not executed" in message
    assert not victim.exists()

    torch.load(path, weights_only=False)  # the trap is a real one
    assert victim.exists()


def test_a_bare_pickle_is_not_executed(tmp_path: Path) -> None:
    victim = tmp_path / "executed"
    refusal(write_bytes(pickle.dumps({"w": Runs(os.mkdir, str(victim))}, protocol=2), tmp_path / "w.pth"))
    assert not victim.exists()


def test_a_whole_model_is_refused_by_its_class(tmp_path: Path) -> None:
    assert "torch.nn.modules.linear.Linear" in refusal(saved(nn.Linear(2, 2), tmp_path / "w.pth"))


# ---------------------------------------------------------------- writing


def test_saved_weights_come_back(plain, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights({**plain, "transposed": torch.ones(2, 3).T}, path)
    assert_same(read_weights(path), {**plain, "transposed": torch.ones(3, 2)})
    (tmp_path / "ordinary").touch()
    assert path.stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_a_header_that_looks_like_text(tmp_path: Path) -> None:
    """A safetensors file begins with the length of its header, here the bytes of " <"."""
    path, length = tmp_path / "w.safetensors", int.from_bytes(b" <", "little")
    save_weights(TINY, path, metadata={"note": ""})
    spare = length - int.from_bytes(path.read_bytes()[:8], "little")
    save_weights(TINY, path, metadata={"note": "x" * spare})
    assert path.read_bytes().startswith(b" <")
    assert_same(read_weights(path), TINY)


def test_half_precision_round_trip(plain, tmp_path: Path) -> None:
    path = tmp_path / "half.safetensors"
    save_weights(plain, path, torch.float16)
    stored = load_file(path)
    assert {stored[name].dtype for name in without(stored, GAUSSIAN)} == {torch.float16}
    assert torch.equal(stored[GAUSSIAN], plain[GAUSSIAN])
    model = build(seed=1)
    load_checkpoint(model, path)
    assert_same(model.state_dict(), plain, tolerance=1e-3)


def test_a_failed_write_leaves_the_old_file(plain, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(plain, path)
    before = path.read_bytes()

    def fails_half_way(tensors: dict[str, Tensor], target: Path, metadata: dict[str, str]) -> None:
        target.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("segment_anything.weight_files.save_file", fails_half_way)
    with pytest.raises(OSError, match="no space"):
        save_weights(plain, path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def convert(*arguments: object, folder: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(CONVERTER), *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_converter(adapted, tmp_path: Path) -> None:
    source = saved({"model": adapted, "optimizer": used_optimizer(adapted, torch.optim.Adam)}, tmp_path / "med2d.pth")
    target = tmp_path / "med2d.safetensors"
    result = convert("med2d.pth", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "med2d.pth: an unknown size (32 channels, 4 blocks), 64 px, adapters, " in result.stdout
    assert_same(read_weights(target), adapted)
    assert target.stat().st_size < 0.35 * source.stat().st_size  # two thirds were the optimizer's moments

    assert "--overwrite" in fails(lambda: convert_checkpoint.main([str(source), "--half"]))
    assert_same(read_weights(target), adapted)

    full = target.stat().st_size
    convert_checkpoint.main([str(target), "--half", "--overwrite"])  # in place
    assert target.stat().st_size < 0.51 * full
    assert_same(read_weights(target), adapted, tolerance=1e-3)


def test_converter_names_a_bad_file(tmp_path: Path) -> None:
    (tmp_path / "page.pth").write_text("<html></html>")
    assert "page.pth: is a web page" in fails(lambda: convert_checkpoint.main([str(tmp_path / "page.pth")]))
    assert not (tmp_path / "page.safetensors").exists()
