"""The model against recorded outputs of the original, against transformers' SAM, and against itself."""

import importlib.util
import json
import shutil
from argparse import Namespace
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from segment_anything import Prediction, Prompts, Sam, answer, best_of, look, sam_model_registry
from segment_anything.modeling.image_encoder import Adapter, Attention, ImageEncoder
from segment_anything.modeling.sam import sure_answers
from segment_anything.sizes import SIZES

PROMPT_KINDS = ("box", "point", "points", "box+point", "mask", "point+mask")


@torch.no_grad()
def randomise(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Random values that keep activations near one, so that no term is hidden by a zero or a one."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if "gaussian" in name:
            tensor.normal_(generator=generator)
        elif tensor.dim() == 1:
            tensor.normal_(1.0 if name.endswith("weight") else 0.0, 0.1, generator=generator)
        elif any(part in name for part in ("pos", "token", "embed.weight", "point_embeddings")):
            tensor.normal_(0, 0.1, generator=generator)
        else:
            tensor.normal_(0, tensor[0].numel() ** -0.5, generator=generator)
    return model


@cache
def tiny(image_size: int = 128, adapter: bool = True) -> Sam:
    """A vit_t with random weights; not to be changed by a test."""
    return randomise(sam_model_registry["vit_t"](image_size=image_size, encoder_adapter=adapter))


def images_of(count: int, size: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 255


def prompts_for(kind: str, size: int, rows: int, seed: int = 0) -> Prompts:
    """Random prompts of one kind, in a frame of `size` pixels."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(rows, 2, 2, generator=generator).sort(dim=1).values * (size - 1)
    clicks = 3 if "points" in kind else 1
    points = torch.rand(rows, clicks, 2, generator=generator) * (size - 1)
    labels = torch.randint(0, 2, (rows, clicks), generator=generator)
    if clicks > 1:
        labels[-1, 1] = -1  # one absent point among the others
    masks = torch.rand(rows, 1, size // 4, size // 4, generator=generator)
    return Prompts(
        points=points if "point" in kind else None,
        labels=labels if "point" in kind else None,
        boxes=corners.flatten(1) if "box" in kind else None,
        masks=masks if "mask" in kind else None,
    )


def assert_near(got: Tensor, want: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(got, want, rtol=0, atol=tolerance)


# ---------------------------------------------------------------- recorded outputs of the original

PARITY = "vit_b_256_adapter"
BOXES = [[60, 50, 180, 170], [10, 20, 90, 200]]
RECORDED_PROMPTS = {
    "box": dict(boxes=BOXES),
    "point": dict(points=[[[128, 100]], [[30, 200]]], labels=[[1], [1]]),
    "points": dict(
        points=[[[128, 100], [20, 30], [200, 220]], [[30, 200], [60, 60], [0, 255]]], labels=[[1, 0, 1], [1, -1, 0]]
    ),
    "box+point": dict(boxes=BOXES, points=[[[128, 100]], [[30, 150]]], labels=[[1], [0]]),
    "mask": {},
    "point+mask": dict(points=[[[128, 100]], [[30, 200]]], labels=[[1], [0]]),
}


@pytest.fixture(scope="module")
def stand_in() -> ModuleType:
    """The recipe of the weights and inputs that were recorded."""
    path = Path(__file__).parents[3] / "shared" / "parity" / "weights.py"
    if not path.is_file():
        pytest.skip(f"no {path}")
    spec = importlib.util.spec_from_file_location("parity_weights", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def recorded(stand_in: ModuleType) -> dict[str, np.ndarray]:
    return dict(np.load(Path(stand_in.__file__).parent / f"{PARITY}.npz"))


@pytest.fixture(scope="module")
def original(stand_in: ModuleType) -> tuple[Sam, Tensor]:
    """ViT-B with adapters and the stand-in weights, and its embedding of the stand-in images."""
    with torch.device("meta"):  # no initialisation of 271 M numbers that are overwritten anyway
        model = sam_model_registry["vit_b"](image_size=256)
    model.to_empty(device="cpu")
    stand_in.fill(model.state_dict())
    with torch.no_grad():
        return model, model.image_encoder(stand_in.image(2, 256))


def test_names_and_shapes_of_the_original(stand_in: ModuleType) -> None:
    want = json.loads((Path(stand_in.__file__).parent / f"{PARITY}.state_dict.json").read_text())
    with torch.device("meta"):
        model = sam_model_registry["vit_b"](image_size=256)
    assert {name: list(tensor.shape) for name, tensor in model.state_dict().items()} == want


def test_embedding_of_the_original(original: tuple[Sam, Tensor], recorded: dict[str, np.ndarray]) -> None:
    assert_near(original[1][:, ::4], torch.from_numpy(recorded["embedding"]))


@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("kind", RECORDED_PROMPTS)
def test_masks_of_the_original(kind: str, multimask: bool, original: tuple[Sam, Tensor], recorded) -> None:
    model, embedding = original
    prompts = {name: torch.tensor(value) for name, value in RECORDED_PROMPTS[kind].items()}
    if "mask" in kind:
        prompts["masks"] = torch.from_numpy(recorded["mask_input"])
    with torch.no_grad():
        prediction = model.predict(embedding, Prompts(**prompts), multimask)
    assert_near(prediction.logits, torch.from_numpy(recorded[f"{kind}|{multimask:d}|masks"]))
    assert_near(prediction.iou, torch.from_numpy(recorded[f"{kind}|{multimask:d}|iou"]))


# ---------------------------------------------------------------- transformers' SAM

# our prefixes -> theirs, the first that matches
RENAMED = (
    ("image_encoder.patch_embed.proj", "vision_encoder.patch_embed.projection"),
    ("image_encoder.blocks", "vision_encoder.layers"),
    ("image_encoder.neck.0", "vision_encoder.neck.conv1"),
    ("image_encoder.neck.1", "vision_encoder.neck.layer_norm1"),
    ("image_encoder.neck.2", "vision_encoder.neck.conv2"),
    ("image_encoder.neck.3", "vision_encoder.neck.layer_norm2"),
    ("image_encoder", "vision_encoder"),
    ("prompt_encoder.pe_layer.positional_encoding_gaussian_matrix", "shared_image_embedding.positional_embedding"),
    ("prompt_encoder.point_embeddings", "prompt_encoder.point_embed"),
    ("prompt_encoder.mask_downscaling.0", "prompt_encoder.mask_embed.conv1"),
    ("prompt_encoder.mask_downscaling.1", "prompt_encoder.mask_embed.layer_norm1"),
    ("prompt_encoder.mask_downscaling.3", "prompt_encoder.mask_embed.conv2"),
    ("prompt_encoder.mask_downscaling.4", "prompt_encoder.mask_embed.layer_norm2"),
    ("prompt_encoder.mask_downscaling.6", "prompt_encoder.mask_embed.conv3"),
    ("mask_decoder.output_upscaling.0", "mask_decoder.upscale_conv1"),
    ("mask_decoder.output_upscaling.1", "mask_decoder.upscale_layer_norm"),
    ("mask_decoder.output_upscaling.3", "mask_decoder.upscale_conv2"),
)
HEAD_LAYERS = {"layers.0": "proj_in", "layers.1": "layers.0", "layers.2": "proj_out"}


def their_name(name: str) -> str:
    ours, theirs = next((pair for pair in RENAMED if name.startswith(pair[0])), ("", ""))
    name = theirs + name.removeprefix(ours)
    if "norm" in name and "layer_norm" not in name:
        return name.replace("norm", "layer_norm")
    if "hypernetworks" in name or "iou_prediction_head" in name:
        ours = next(layer for layer in HEAD_LAYERS if layer in name)
        return name.replace(ours, HEAD_LAYERS[ours])
    return name


def their_model(model: Sam, model_type: str) -> torch.nn.Module:
    """transformers' SAM with our weights."""
    transformers = pytest.importorskip("transformers")
    size, side = SIZES[model_type], model.image_size
    config = transformers.SamConfig(
        vision_config=dict(
            image_size=side,
            hidden_size=size.channels,
            num_hidden_layers=size.depth,
            num_attention_heads=size.heads,
            global_attn_indexes=list(size.global_blocks),
            num_pos_feats=128,
        ),
        prompt_encoder_config=dict(image_size=side, image_embedding_size=side // 16),
        mask_decoder_config=dict(layer_norm_eps=1e-5),  # SAM's own; theirs is 1e-6
    )
    with torch.device("meta"):
        theirs = transformers.SamModel(config)
    weights = {their_name(name): tensor for name, tensor in model.state_dict().items()}
    shared = "shared_image_embedding.positional_embedding"
    weights["prompt_encoder.shared_embedding.positional_embedding"] = weights[shared]
    theirs.load_state_dict(weights, assign=True)
    return theirs.eval()


def their_prompts(prompts: Prompts) -> dict[str, Tensor]:
    """One object an image. Labels become float, because they pad them with float; padding itself is as ours."""
    given = dict(input_points=prompts.points, input_labels=prompts.labels, input_boxes=prompts.boxes)
    given = {name: value.float().unsqueeze(1) for name, value in given.items() if value is not None}
    return given | ({} if prompts.masks is None else {"input_masks": prompts.masks})


@pytest.mark.parametrize(("model_type", "image_size"), [("vit_b", 256), ("vit_b", 512), ("vit_t", 224), ("vit_t", 160)])
@torch.no_grad()
def test_agrees_with_transformers(model_type: str, image_size: int) -> None:
    """Maps larger than the window (32, 16), of its size (14) and smaller (10)."""
    model = randomise(sam_model_registry[model_type](image_size=image_size, encoder_adapter=False))
    theirs = their_model(model, model_type)
    rows = 1 if image_size == 512 else 2
    images = model.preprocess(images_of(rows, image_size))
    embeddings = model.image_encoder(images)
    assert embeddings.std() > 0.1
    assert_near(embeddings, theirs.get_image_embeddings(images))
    for kind in PROMPT_KINDS:
        prompts = prompts_for(kind, image_size, rows)
        for multimask in (True, False):
            got = model.predict(embeddings, prompts, multimask)
            want = theirs(image_embeddings=embeddings, multimask_output=multimask, **their_prompts(prompts))
            assert_near(got.logits, want.pred_masks.squeeze(1))
            assert_near(got.iou, want.iou_scores.squeeze(1))


# ---------------------------------------------------------------- batches and objects


@torch.no_grad()
def test_batched_equals_one_by_one() -> None:
    model, images = tiny(), images_of(3, 128)
    embeddings = model.encode(images)
    for kind in PROMPT_KINDS:
        prompts = prompts_for(kind, 128, 3)
        together = model.predict(embeddings, prompts, None)
        for row in range(3):
            alone = model.predict(model.encode(images[row : row + 1]), prompts.rows(torch.tensor([row])), None)
            assert_near(together.logits[row : row + 1], alone.logits, 3e-5)
            assert_near(together.iou[row : row + 1], alone.iou, 3e-5)


@torch.no_grad()
def test_ragged_objects_equal_one_call_an_object() -> None:
    """Three objects in one image, none in the next, one in the last; rows in any order."""
    model, image_index = tiny(), torch.tensor([2, 0, 0, 0])
    embeddings = model.encode(images_of(3, 128))
    prompts = prompts_for("box+points", 128, len(image_index))
    together = model.predict(embeddings[image_index], prompts, True)
    for row, image in enumerate(image_index):
        alone = model.predict(embeddings[image][None], prompts.rows(torch.tensor([row])), True)
        assert_near(together.logits[row : row + 1], alone.logits, 3e-5)
    nothing = model.predict(embeddings[:0], prompts.rows(torch.zeros(4, dtype=torch.bool)), True)
    assert nothing.logits.shape == (0, 3, 32, 32) and nothing.iou.shape == (0, 3)


@torch.no_grad()
def test_the_outputs_are_one_single_mask_and_three_guesses() -> None:
    model = tiny()
    embeddings, prompts = model.encode(images_of(1, 128)), prompts_for("point", 128, 1)
    every = model.predict(embeddings, prompts, None)
    assert every.logits.shape == (1, 4, 32, 32) and every.iou.shape == (1, 4)
    for outputs, multimask in ((slice(0, 1), False), (slice(1, 4), True)):
        some = model.predict(embeddings, prompts, multimask)
        assert_near(some.logits, every.logits[:, outputs], 1e-6)
        assert_near(some.iou, every.iou[:, outputs], 1e-6)


def test_best_of_is_the_highest_predicted_iou() -> None:
    iou = torch.tensor([[0.1, 0.9, 0.3], [0.7, 0.2, 0.6], [-1.0, -3.0, -0.5]])
    best = best_of(Prediction(torch.arange(9.0).view(3, 3, 1, 1).expand(3, 3, 2, 2), iou))
    assert best.logits.shape == (3, 1, 2, 2)
    assert best.logits[:, 0, 0, 0].tolist() == [1, 3, 8]
    assert torch.equal(best.iou, iou.amax(dim=1, keepdim=True))


def test_no_prompt_at_all_is_answered_once() -> None:
    """As the original does."""
    prediction = tiny().predict(torch.zeros(1, 256, 8, 8), Prompts(), True)
    assert prediction.logits.shape == (1, 3, 32, 32) and prediction.iou.shape == (1, 3)


# ---------------------------------------------------------------- attention and adapters


def relative_bias(q: Tensor, table_h: Tensor, table_w: Tensor) -> Tensor:
    """By loops over pairs of tokens. q: (B, heads, h, w, d) -> (B, heads, h, w, h, w)."""
    height, width = q.shape[2:4]
    bias = torch.empty(*q.shape[:4], height, width)
    for y in range(height):
        for x in range(width):
            query = q[:, :, y, x]
            rows = torch.stack([query @ table_h[y - key + height - 1] for key in range(height)], dim=-1)
            columns = torch.stack([query @ table_w[x - key + width - 1] for key in range(width)], dim=-1)
            bias[:, :, y, x] = rows[..., :, None] + columns[..., None, :]
    return bias


def attend(layer: Attention, x: Tensor) -> Tensor:
    """Plain global attention over (B, h, w, C)."""
    batch, height, width, channels = x.shape
    q, k, v = layer.qkv(x).view(batch, height, width, 3, layer.heads, -1).permute(3, 0, 4, 1, 2, 5)
    scores = torch.einsum("bnhwd,bnyxd->bnhwyx", q, k) * q.shape[-1] ** -0.5
    scores = scores + relative_bias(q, layer.rel_pos_h, layer.rel_pos_w)
    weights = scores.flatten(4).softmax(dim=-1).view_as(scores)
    mixed = torch.einsum("bnhwyx,bnyxd->bhwnd", weights, v)
    return layer.proj(mixed.reshape(batch, height, width, channels))


def attend_in_padded_windows(layer: Attention, x: Tensor) -> Tensor:
    """The reference: zeros up to whole windows, each window on its own, crop."""
    height, width, side = x.shape[1], x.shape[2], layer.window
    padded = F.pad(x, (0, 0, 0, -width % side, 0, -height % side))
    out = torch.empty_like(padded)
    for top in range(0, padded.shape[1], side):
        for left in range(0, padded.shape[2], side):
            window = slice(None), slice(top, top + side), slice(left, left + side)
            out[window] = attend(layer, padded[window])
    return out[:, :height, :width]


@pytest.mark.parametrize(("height", "width"), [(3, 3), (5, 5), (8, 8), (10, 10), (11, 11), (3, 7), (12, 5)])
@torch.no_grad()
def test_windowed_attention_equals_explicit_padding(height: int, width: int) -> None:
    layer = randomise(Attention(channels=24, heads=3, window=5, map_size=height))
    x = torch.randn(2, height, width, 24, generator=torch.Generator().manual_seed(1))
    assert_near(layer(x), attend_in_padded_windows(layer, x), 1e-5)


@pytest.mark.parametrize("at_once", [1, 4 * 3 * 6 * 36, 2**22], ids=["a row", "four rows and two", "all rows"])
@torch.no_grad()
def test_global_attention_equals_the_plain_formula(at_once: int, monkeypatch) -> None:
    monkeypatch.setattr("segment_anything.modeling.image_encoder.BIASES_AT_ONCE", at_once)
    layer = randomise(Attention(channels=24, heads=3, window=0, map_size=6))
    x = torch.randn(2, 6, 6, 24, generator=torch.Generator().manual_seed(1))
    assert_near(layer(x), attend(layer, x), 1e-5)


@torch.no_grad()
def test_a_fresh_adapter_adds_nothing() -> None:
    assert not Adapter(32)(torch.randn(2, 6, 6, 32)).any()
    fresh = sam_model_registry["vit_t"](image_size=64, encoder_adapter=True)
    fresh.load_state_dict(tiny(64, False).state_dict(), strict=False)
    images = images_of(2, 64)
    assert torch.equal(fresh.encode(images), tiny(64, False).encode(images))


@pytest.mark.parametrize(("images", "products"), [(1, True), (3, False)])
def test_an_adapter_gates_mixes_and_normalises(images: int, products: bool, monkeypatch) -> None:
    """The adapter written out step by step (SAM-Med2D paper, section 3.2), and its gradients, for both ways that a CPU
    takes: matrix products for a few pixels, convolutions for more."""
    taken = []
    original = Adapter._spatial_products
    monkeypatch.setattr(Adapter, "_spatial_products", lambda self, x: (taken.append(1), original(self, x))[1])
    adapter = randomise(Adapter(32))
    x = torch.randn(images, 6, 8, 32)
    hidden = F.relu(x.mean(dim=(1, 2)) @ adapter.channel[0].weight.T)
    gated = x * torch.sigmoid(hidden @ adapter.channel[2].weight.T)[:, None, None]
    small = F.relu(F.conv2d(gated.permute(0, 3, 1, 2), adapter.spatial[0].weight, stride=2, padding=1))
    large = F.relu(F.conv_transpose2d(small, adapter.spatial[2].weight, stride=2, padding=1)).permute(0, 2, 3, 1)
    want = F.layer_norm(x + large, (32,), adapter.norm.weight, adapter.norm.bias, eps=1e-5)
    got = adapter(x)
    assert bool(taken) == products
    assert_near(got, want, 1e-5)
    pull = torch.randn_like(x)
    for found, expected in zip(*(torch.autograd.grad(y, [*adapter.parameters()], pull) for y in (got, want))):
        assert_near(found, expected, 1e-4 * expected.abs().max().item())


# ---------------------------------------------------------------- building


@pytest.mark.parametrize("adapter", [True, False])
def test_both_callers_of_the_registry(adapter: bool, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(tiny(64, adapter).state_dict(), path)
    by_name = sam_model_registry["vit_t"](image_size=64, encoder_adapter=adapter, checkpoint=path)
    flags = Namespace(image_size=64, encoder_adapter=adapter, sam_checkpoint=path, lr=1e-4)
    by_flags = sam_model_registry["vit_t"](flags)
    want = tiny(64, adapter).state_dict()
    for model in (by_name, by_flags):
        assert model.image_size == 64 and not model.training and len(model.image_encoder.adapters()) == 12 * adapter
        assert model.state_dict().keys() == want.keys()
        assert all(torch.equal(tensor, want[name]) for name, tensor in model.state_dict().items())


def test_the_default_is_the_largest() -> None:
    assert sam_model_registry["default"] is sam_model_registry["vit_h"]


@pytest.mark.parametrize("image_size", [250, 240])
def test_sizes_that_do_not_halve_are_refused(image_size: int) -> None:
    with pytest.raises(ValueError, match=f"{image_size} is not a multiple of 32"):
        sam_model_registry["vit_t"](image_size=image_size)


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected images \(B, 3, 128, 128\), got \(1, 3, 64, 64\)"):
        tiny().encode(images_of(1, 64))


@pytest.mark.parametrize(
    ("adapter", "encoder", "learns"),
    [
        (True, "adapters", lambda name: not name.startswith("image_encoder.") or ".Adapter." in name),
        (False, "adapters", lambda name: not name.startswith("image_encoder.")),
        (True, "all", lambda name: True),
    ],
)
def test_what_is_trained(adapter: bool, encoder: str, learns) -> None:
    model = sam_model_registry["vit_t"](image_size=64, encoder_adapter=adapter)
    parameters = model.train_for(encoder)
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert names == {name for name, _ in model.named_parameters() if learns(name)}
    assert {id(p) for p in parameters} == {id(p) for p in model.parameters() if p.requires_grad}


def test_every_trained_parameter_gets_a_gradient() -> None:
    """Point embeddings and the mask branch included: in the public code they never learn."""
    model = randomise(sam_model_registry["vit_t"](image_size=64, encoder_adapter=True))
    parameters = model.train_for("adapters")
    embeddings = model.encode(images_of(2, 64))
    loss = 0
    for kind in ("box+points", "points", "mask"):
        prediction = model.predict(embeddings, prompts_for(kind, 64, 2), None)
        loss = loss + prediction.logits.square().mean() + prediction.iou.square().mean()
    loss.backward()
    named = {id(parameter): name for name, parameter in model.named_parameters()}
    assert not [named[id(p)] for p in parameters if p.grad is None or not p.grad.any()]
    assert not [name for name, p in model.named_parameters() if not p.requires_grad and p.grad is not None]


# ---------------------------------------------------------------- pixels and precision


def test_padding_is_zero_after_preprocess() -> None:
    """And the picture is normalised channel by channel in the order it comes in."""
    model, images = tiny(), images_of(2, 128).to(torch.uint8)
    content = torch.tensor([[10, 20, 100, 90], [0, 64, 128, 1]])  # top, left, height, width
    got = model.preprocess(images, content)
    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    want = (images.permute(0, 2, 3, 1).numpy() - mean) / std
    inside = np.zeros((2, 128, 128, 1))
    inside[0, 10:110, 20:110] = inside[1, 0:128, 64:65] = 1
    assert_near(got.permute(0, 2, 3, 1), torch.from_numpy(want * inside).float(), 1e-5)
    assert not got.permute(0, 2, 3, 1)[torch.from_numpy(inside[..., 0] == 0)].any()
    assert_near(model.preprocess(images).permute(0, 2, 3, 1), torch.from_numpy(want).float(), 1e-5)


@torch.no_grad()
def test_upscale_keeps_rows_and_is_float32() -> None:
    ramp = torch.arange(32.0).expand(2, 3, 32, 32) + torch.arange(6.0).view(2, 3, 1, 1)
    upscaled = tiny().upscale(ramp.bfloat16())
    assert upscaled.shape == (2, 3, 128, 128) and upscaled.dtype == torch.float32
    want = ((torch.arange(128.0) + 0.5) / 4 - 0.5).clamp(0, 31)  # pixel centres; flat at the border
    assert_near(upscaled, want + torch.arange(6.0).view(2, 3, 1, 1).expand_as(upscaled), 1e-5)


@pytest.mark.parametrize("adapter", [True, False])
@torch.no_grad()
def test_bfloat16_autocast_is_finite_and_near(adapter: bool) -> None:
    model, images = tiny(adapter=adapter), images_of(2, 128)
    for kind in PROMPT_KINDS:
        prompts = prompts_for(kind, 128, 2)
        embeddings = model.encode(images)
        want = model.predict(embeddings, prompts, None)
        with torch.autocast("cpu", torch.bfloat16):
            embeddings_low = model.encode(images)
            got = model.predict(embeddings_low, prompts, None)
        for low, full in ((embeddings_low, embeddings), (got.logits, want.logits), (got.iou, want.iou)):
            assert low.isfinite().all()
            error = (low.float() - full).norm() / full.norm()
            assert error < 0.05, (kind, error)  # 0.03 is what rounding the weights alone costs


def test_under_autocast_the_encoder_alone_computes_in_16_bits() -> None:
    model = sam_model_registry["vit_t"](image_size=64, encoder_adapter=True, refine=True).eval()
    images, prompts = images_of(1, 64), prompts_for("point+mask", 64, 1)
    with torch.inference_mode():
        exact = look(model, images)
        with torch.autocast("cpu", torch.bfloat16):
            seen = look(model, images)
            found = answer(model, seen, prompts, True)
            sure = sure_answers(model, seen, prompts, -9.0)
        assert seen.embeddings.dtype == found.logits.dtype == found.iou.dtype == torch.float32
        assert not torch.equal(seen.embeddings, exact.embeddings) and torch.equal(seen.details, exact.details)
        assert all(map(torch.equal, found, answer(model, seen, prompts, True)))
        assert all(map(torch.equal, sure, sure_answers(model, seen, prompts, -9.0)))


@pytest.mark.parametrize("precision, allowed", [(torch.float32, 0.0), (torch.bfloat16, 0.02)])
def test_an_encoder_prepared_for_inference_is_near_and_answers_in_float32(precision, allowed) -> None:
    model = sam_model_registry["vit_t"](image_size=64, encoder_adapter=True)
    with torch.no_grad():
        for adapter in model.image_encoder.adapters():
            adapter.norm.weight.fill_(0.5)
    images = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = model.eval().encode(images)
        assert model.for_inference(precision) is model
        found = model.encode(images)
    assert found.dtype == torch.float32 and not any(p.requires_grad for p in model.parameters())
    assert {p.dtype for p in model.image_encoder.parameters()} == {precision}
    assert {p.dtype for p in model.mask_decoder.parameters()} == {torch.float32}
    assert (found - expected).norm() <= allowed * expected.norm()


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("precision, depth, allowed", [(torch.float32, 2, 1e-5), (torch.bfloat16, 1, 0.02)])
def test_a_compiled_encoder_gives_the_same(precision, depth, allowed) -> None:
    encoder = ImageEncoder(32, channels=16, depth=depth, heads=2, global_blocks=(1,), adapter=True).eval()
    model = sam_model_registry["vit_t"](image_size=32)
    model.image_encoder = encoder
    images = torch.randint(0, 256, (1, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = model.encode(images)
        names = [*model.state_dict()]
        found = model.for_inference(precision, compiled=True).encode(images)
    assert found.dtype == torch.float32 and [*model.state_dict()] == names
    assert (found - expected).norm() <= allowed * expected.norm()
