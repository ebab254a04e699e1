"""Weight files and the flags that ask for their parts: what is left out or newly started is said, in one line each."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from sam_med2d.inference.models import open_model
from segment_anything import Prompts, Sam, answer, best_of, look, sam_model_registry
from segment_anything.build_sam import build_sam
from segment_anything.checkpoint import save_weights
from segment_anything.sizes import SIZES, Size

SIDE = 64
BOX = Prompts(boxes=torch.tensor([[8.0, 8.0, 40.0, 40.0]]))


@pytest.fixture(scope="module", autouse=True)
def tiny() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "tiny", Size(channels=32, depth=1, heads=2, global_blocks=(0,)))
        patch.setitem(sam_model_registry, "tiny", partial(build_sam, model_type="tiny"))
        yield


@pytest.fixture(scope="module")
def saved(tiny: None, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """Files of one model with and without a refinement network that has learned something."""
    torch.manual_seed(0)
    model = build_sam(model_type="tiny", image_size=SIDE, encoder_adapter=True, refine=True)
    torch.nn.init.normal_(model.refinement.write.weight, std=0.5)
    folder = tmp_path_factory.mktemp("weights")
    state = model.state_dict()
    plain = {name: tensor for name, tensor in state.items() if not name.startswith("refinement.")}
    save_weights(state, folder / "with.safetensors")
    save_weights(plain, folder / "without.safetensors")
    return {True: folder / "with.safetensors", False: folder / "without.safetensors"}


def answered(model: Sam) -> torch.Tensor:
    """Logits (1, 1, S, S)."""
    pictures = torch.randint(0, 256, (1, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    with torch.inference_mode():
        return model.upscale(best_of(answer(model, look(model, pictures), BOX, True)).logits)


@pytest.mark.parametrize(
    ("has", "asked", "warned", "reported"),
    [
        (True, None, "", "left out: none"),
        (True, False, "has a refinement network, which is left out", "left out: the refinement network"),
        (False, None, "", "left out: none"),
        (False, True, "has no refinement network; a new one adds nothing", "the refinement network (no-op)"),
    ],
)
def test_parts_that_flags_and_file_do_not_share_are_reported(saved, capsys, has, asked, warned, reported) -> None:
    model = open_model(str(saved[has]), refine=asked, device="cpu")
    said = capsys.readouterr()
    warnings = [line for line in said.err.splitlines() if line]
    assert len(warnings) == bool(warned) and all(warned in line and str(saved[has]) in line for line in warnings)
    assert reported in said.out
    plain = answered(open_model(str(saved[False]), device="cpu"))
    if has and asked is None:
        assert (answered(model) - plain).abs().max() > 0.01
    else:
        torch.testing.assert_close(answered(model), plain)
