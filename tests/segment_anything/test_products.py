"""Products by oneDNN: what `torch.nn.functional.linear` gives, and where they are asked for."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from segment_anything import Prompts, flops, sam_model_registry
from segment_anything.modeling import products
from segment_anything.modeling.products import Linear, linear

pytestmark = pytest.mark.skipif(not products.has_onednn(), reason="this build of PyTorch has no product of oneDNN")


@pytest.fixture
def asked(monkeypatch) -> list[tuple[int, ...]]:
    """The shapes of all products of oneDNN, which every machine has now, however small they are."""
    plain, shapes = products._by_onednn, []

    def listening(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        shapes.append((*x.shape, len(weight)))
        return plain(x, weight, bias)

    monkeypatch.setattr(products, "prefers_onednn", lambda: True)
    monkeypatch.setattr(products, "LEAST", 0)
    monkeypatch.setattr(products, "WORTH_PACKING", 0)
    monkeypatch.setattr(products, "_by_onednn", listening)
    return shapes


def drawn(*shape: int, learns: bool = True) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))).requires_grad_(learns)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("shape", [(37, 24), (2, 3, 5, 24)])
def test_values_and_gradients_are_those_of_a_linear_layer(asked, shape, with_bias, turned) -> None:
    x, bias = drawn(*shape), drawn(16) if with_bias else None
    weight = drawn(24, 16) if turned else drawn(16, 24)
    learned = [value for value in (x, weight, bias) if value is not None]

    def gradients(product) -> tuple[Tensor, ...]:
        out = product(x, weight.t() if turned else weight, bias)
        return (out.detach(), *torch.autograd.grad((out * torch.arange(16)).square().sum(), learned))

    ours, plain = gradients(linear), gradients(F.linear)
    assert len(asked) == 2  # forward, and by x
    for own, other in zip(ours, plain):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()))
    assert ours[2].stride() == weight.stride()  # or every step of training would copy it


def test_a_frozen_weight_keeps_itself_and_a_fixed_input_keeps_that(asked) -> None:
    def kept(of_x: bool, of_weight: bool) -> list[bool]:
        out = linear(drawn(4, 24, learns=of_x), drawn(16, 24, learns=of_weight))
        return [each is not None for each in out.grad_fn.saved_tensors]

    assert kept(True, False) == [False, True]
    assert kept(False, True) == [True, False]
    assert not linear(drawn(4, 24, learns=False), drawn(16, 24, learns=False)).requires_grad


def test_a_gradient_has_a_gradient(asked) -> None:
    x, weight = drawn(4, 24), drawn(16, 24)
    (first,) = torch.autograd.grad(linear(x, weight).square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), weight)
    (of_plain,) = torch.autograd.grad(F.linear(x, weight).square().sum(), x, create_graph=True)
    torch.testing.assert_close(second, torch.autograd.grad(of_plain.square().sum(), weight)[0], rtol=1e-5, atol=1e-3)


def test_only_exact_products_that_nobody_records_are_asked_for(asked) -> None:
    x, weight = drawn(4, 24), drawn(16, 24)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight).dtype == torch.bfloat16
    linear(x.double(), weight.double())
    linear(x.to("meta"), weight.to("meta"))
    fixed = weight.detach()
    torch.jit.trace(lambda x: linear(x, fixed), x.detach(), check_trace=False)
    with FlopCounterMode(display=False) as counter:
        linear(x, weight)
    assert asked == [] and counter.get_total_flops() == 2 * 4 * 24 * 16
    linear(x, weight)
    assert asked == [(4, 24, 16)]


def packed_layer(dtype: torch.dtype = torch.float32) -> Linear:
    layer = Linear(24, 16).to(dtype).requires_grad_(False)
    layer.pack()
    assert layer.packed is not None
    return layer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_weight_gives_the_same(asked, dtype: torch.dtype) -> None:
    layer, x = packed_layer(dtype), drawn(2, 5, 24, learns=False).to(dtype)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))
        assert asked == [(2, 5, 24, 16)]
    layer(x)  # where something may be learned
    assert len(asked) == 1 + (dtype == torch.float32)


def test_a_packed_weight_is_used_as_long_as_it_is_the_weight(asked) -> None:
    x = drawn(4, 24, learns=False)
    with torch.no_grad():
        for change in (
            lambda layer: layer.load_state_dict({name: value + 1 for name, value in layer.state_dict().items()}),
            lambda layer: layer.weight.mul_(2),
            lambda layer: setattr(layer, "weight", torch.nn.Parameter(layer.weight + 1)),
            lambda layer: layer.to(torch.float64).to(torch.float32),
            lambda layer: layer.weight.copy_(layer.weight + 1),
        ):
            layer = packed_layer()
            before = layer.packed.values
            layer(x)
            change(layer)
            torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))
            layer.pack()
            assert layer.packed.values is not before
            torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))
        assert copy.deepcopy(layer).packed is None and layer.packed is not None


def test_what_is_not_worth_packing_and_what_has_no_versions(asked, monkeypatch) -> None:
    monkeypatch.setattr(products, "WORTH_PACKING", 24 * 16 + 1)
    small = Linear(24, 16)
    small.pack()
    assert small.packed is None
    monkeypatch.setattr(products, "WORTH_PACKING", 0)
    with torch.inference_mode():
        unversioned = Linear(24, 16)
        unversioned.pack()
    assert unversioned.packed is None


def test_for_inference_packs_the_decoder_and_an_encoder_in_sixteen_bits(asked, monkeypatch) -> None:
    torch.manual_seed(0)
    model = sam_model_registry["vit_t"](image_size=64, encoder_adapter=True)
    for adapter in model.image_encoder.adapters():
        torch.nn.init.ones_(adapter.norm.weight)
    image = torch.randint(0, 256, (1, 3, 64, 64), generator=torch.Generator().manual_seed(0))

    def layers(part) -> list[bool]:
        return [layer.packed is not None for layer in part.modules() if isinstance(layer, Linear)]

    model.for_inference()
    assert all(layers(model.mask_decoder)) and not any(layers(model.image_encoder))
    model.for_inference(torch.bfloat16)
    assert all(layers(model.image_encoder))
    with torch.inference_mode():
        own, count = model.encode(image), len(asked)
        assert count > 70  # of 12 blocks: four layers of attention and MLP, two of an adapter's gate, two products
        monkeypatch.setattr(products, "prefers_onednn", lambda: False)
        plain = model.encode(image)
    assert len(asked) == count
    assert (own - plain).norm() < 0.01 * plain.norm()


def test_a_model_learns_the_same_and_costs_the_same(asked, monkeypatch) -> None:
    torch.manual_seed(0)
    model = sam_model_registry["vit_t"](image_size=64, encoder_adapter=True)
    for adapter in model.image_encoder.adapters():  # which would add nothing
        torch.nn.init.ones_(adapter.norm.weight)
    other = copy.deepcopy(model)
    images = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    prompts = Prompts(torch.tensor([[[20.0, 30.0]], [[40.0, 10.0]]]), torch.ones(2, 1))

    def learned(model) -> dict[str, Tensor]:
        answer = model.predict(model.encode(images), prompts, None)
        (answer.logits.square().mean() + answer.iou.square().mean()).backward()
        gradients = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
        return {"logits": answer.logits.detach(), "iou": answer.iou.detach(), **gradients}

    ours, cost = learned(model), flops.count(model)
    assert len(asked) > 100
    monkeypatch.setattr(products, "prefers_onednn", lambda: False)
    plain = learned(other)
    assert ours.keys() == plain.keys() and cost == flops.count(other)
    largest = max(float(value.norm()) for value in plain.values())
    for name, value in plain.items():  # as wholes: a ReLU may open for a rounded value
        assert (ours[name] - value).norm() < 0.1 * value.norm() + 1e-6 * largest, name
