"""The decoder's shorter ways to the same numbers: around a few tokens, once for all objects, once for all calls."""

import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from segment_anything import Prompts, Sam, sam_model_registry
from segment_anything.modeling import mask_decoder, transformer

SIDE = 64


@pytest.fixture(scope="module")
def model() -> Sam:
    torch.manual_seed(0)
    return sam_model_registry["vit_t"](image_size=SIDE, encoder_adapter=False).eval()


def prompts_of(rows: int, clicks: int, box: bool = False, mask: bool = False) -> Prompts:
    draw = torch.Generator().manual_seed(clicks)
    return Prompts(
        torch.rand(rows, clicks, 2, generator=draw) * SIDE if clicks else None,
        torch.randint(-1, 2, (rows, clicks), generator=draw) if clicks else None,
        torch.rand(rows, 4, generator=draw) * SIDE if box else None,
        torch.rand(rows, 1, SIDE // 4, SIDE // 4, generator=draw) if mask else None,
    )


def embeddings_of(pictures: int) -> torch.Tensor:
    return torch.randn(pictures, 256, SIDE // 16, SIDE // 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("one_picture", [True, False])
@pytest.mark.parametrize(
    ("rows", "clicks", "box", "mask"),
    [(1, 1, False, False), (3, 1, False, False), (3, 5, False, True), (3, 0, True, False), (2, 14, True, True)],
)
def test_the_shorter_ways_are_what_the_layers_are_defined_by(model, monkeypatch, rows, clicks, box, mask, one_picture):
    prompts, embeddings = prompts_of(rows, clicks, box, mask), embeddings_of(1 if one_picture else rows)
    embeddings = embeddings.expand(rows, -1, -1, -1)
    learned = model.predict(embeddings, prompts, None)
    with torch.inference_mode():
        answered = model.predict(embeddings, prompts, None)
    as_defined(monkeypatch)
    defined = model.predict(embeddings, prompts, None)
    assert defined.logits.requires_grad and learned.logits.requires_grad
    for shorter in (learned, answered):
        torch.testing.assert_close(shorter.logits.detach(), defined.logits.detach(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(shorter.iou.detach(), defined.iou.detach(), atol=1e-5, rtol=1e-5)


def as_defined(monkeypatch) -> None:
    """From here on every layer of the decoder is computed as it is defined."""
    for module in (transformer, mask_decoder):
        monkeypatch.setattr(module, "may_be_shortened", lambda x: False)


@pytest.mark.parametrize("clicks", [1, 9])
@pytest.mark.parametrize("one_picture", [True, False])
def test_the_shorter_ways_have_the_gradients_of_the_layers(model, monkeypatch, one_picture, clicks) -> None:
    decoder, draw = copy.deepcopy(model.mask_decoder).double(), torch.Generator().manual_seed(clicks)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64).requires_grad_()

    embeddings, positions, dense = drawn(1 if one_picture else 3, 256, 4, 4), drawn(1, 256, 4, 4), drawn(3, 256, 4, 4)
    tokens, of_logits, of_iou = drawn(3, clicks, 256), drawn(3, 4, 16, 16), drawn(3, 4)
    learned = [embeddings, positions, dense, tokens, *decoder.parameters()]

    def gradients() -> tuple[torch.Tensor, ...]:
        of_all = embeddings.expand(3, -1, -1, -1)
        logits, iou = decoder(of_all, positions, tokens, dense, None)
        return torch.autograd.grad((logits * of_logits).sum() + (iou * of_iou).sum(), learned)

    shorter = gradients()
    as_defined(monkeypatch)
    layers = gradients()
    rounding = 2e-8 * max(float(each.abs().max()) for each in layers)  # all that a key's bias has
    for ours, defined in zip(shorter, layers, strict=True):
        torch.testing.assert_close(ours, defined, rtol=0, atol=1e-6 * float(defined.abs().max()) + rounding)


def test_the_image_is_projected_once_for_all_its_objects(model) -> None:
    model = copy.deepcopy(model).for_inference()
    model.prompt_encoder.get_dense_pe()  # which the first call would compute

    def operations(embeddings: torch.Tensor) -> int:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model.predict(embeddings, prompts_of(10, 1), True)
        return counter.get_total_flops()

    one = embeddings_of(1)
    assert operations(one) == operations(one.expand(10, -1, -1, -1)) < operations(one.repeat(10, 1, 1, 1))


def test_positions_are_computed_once_and_anew_where_the_matrix_changes(model) -> None:
    model = copy.deepcopy(model)
    encoder = model.prompt_encoder
    first = encoder.get_dense_pe()
    assert encoder.get_dense_pe().data_ptr() == first.data_ptr()
    other = {name: value + 1 for name, value in encoder.pe_layer.state_dict().items()}
    encoder.pe_layer.load_state_dict(other)
    assert not torch.equal(encoder.get_dense_pe(), first)
    assert torch.equal(encoder.get_dense_pe()[0], encoder.pe_layer.grid(SIDE // 16, SIDE // 16))
    assert torch.equal(copy.deepcopy(model).prompt_encoder.get_dense_pe(), encoder.get_dense_pe())


def test_positions_that_are_kept_can_be_learned_with() -> None:
    model = sam_model_registry["vit_t"](image_size=SIDE, encoder_adapter=False)
    with torch.inference_mode():
        model.predict(embeddings_of(1), prompts_of(1, 1), True)
    model.predict(embeddings_of(1), prompts_of(1, 1), True).logits.sum().backward()
    assert model.mask_decoder.mask_tokens.weight.grad is not None


@torch.no_grad()
def test_only_what_the_model_is_sure_of_comes_to_be(model) -> None:
    prompts, embeddings = prompts_of(9, 1), embeddings_of(1)
    every = model.predict(embeddings, prompts, True)
    least = float(every.iou.flatten().sort().values[-8:-6].mean())  # of 27 masks seven
    logits, iou = model.predict_sure(embeddings, prompts, least)
    torch.testing.assert_close(iou, every.iou)
    torch.testing.assert_close(logits, every.logits[every.iou >= least], atol=1e-5, rtol=0)
    assert len(logits) == 7
    nothing, _ = model.predict_sure(embeddings, prompts, 1e9)
    assert nothing.shape == (0, SIDE // 4, SIDE // 4)


def test_attention_is_learned_in_float32_on_a_cpu(model, monkeypatch) -> None:
    """Under autocast the products are in bfloat16 and attention is not, where something is learned; never otherwise."""
    asked: list[torch.dtype] = []
    plain = torch.nn.functional.scaled_dot_product_attention
    attention = model.mask_decoder.transformer.layers[0].self_attn

    def listening(q: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        asked.append(q.dtype)
        return plain(q, *others)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", listening)
    tokens = torch.randn(2, 5, attention.embedding_dim, generator=torch.Generator().manual_seed(0))
    exact = attention(tokens, tokens, tokens)
    with torch.autocast("cpu", torch.bfloat16):
        learned = attention(tokens, tokens, tokens)
        with torch.no_grad():
            answered = attention(tokens, tokens, tokens)
    assert asked == [torch.float32, torch.float32, torch.bfloat16]
    assert learned.dtype == answered.dtype == torch.bfloat16
    for rounded in (learned, answered):
        torch.testing.assert_close(rounded.float(), exact, rtol=0.05, atol=0.02)
