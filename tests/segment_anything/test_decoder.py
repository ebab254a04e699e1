"""The decoder's shorter ways to the same numbers: around a few tokens, once for all objects, once for all calls."""

import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from segment_anything import Prompts, Sam, sam_model_registry

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
def test_what_is_only_answered_is_what_is_learned_from(model, rows, clicks, box, mask, one_picture) -> None:
    """With gradients every layer is computed as it is defined."""
    prompts, embeddings = prompts_of(rows, clicks, box, mask), embeddings_of(1 if one_picture else rows)
    embeddings = embeddings.expand(rows, -1, -1, -1)
    defined = model.predict(embeddings, prompts, None)
    with torch.inference_mode():
        answered = model.predict(embeddings, prompts, None)
    assert defined.logits.requires_grad
    torch.testing.assert_close(answered.logits, defined.logits.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(answered.iou, defined.iou.detach(), atol=1e-5, rtol=1e-5)


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
