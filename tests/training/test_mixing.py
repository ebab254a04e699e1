"""Weights between a start and an end: both ends are met bit for bit, new parts come in by their gate, and the command
chooses by its rule and refuses what cannot be mixed."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import pytest
import torch

from sam_med2d.commands import mix_weights
from sam_med2d.evaluation.elsewhere import PhantomScenes, dice_on
from sam_med2d.inference.models import open_model, plan_model
from sam_med2d.training.mixing import Judged, Mixture, choose
from segment_anything import Prompts, Sam, sam_model_registry
from segment_anything.checkpoint import open_weights, save_weights
from segment_anything.modeling.lora import add_lora, merge_lora
from tests.conftest import fails
from tests.training.helpers import RUN, SIZE, fit, make_data

BOX = Prompts(boxes=torch.tensor([[10.0, 12.0, 40.0, 50.0]]))


def mini(seed: int, **parts: bool) -> Sam:
    torch.manual_seed(seed)
    return sam_model_registry["mini"](**{"image_size": SIZE, "encoder_adapter": False, **parts}).eval()


def drifted(model: Sam, seed: int = 1) -> Sam:
    """As after some training: every parameter elsewhere, also those that began at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


@torch.inference_mode()
def answers(model: Sam) -> torch.Tensor:
    picture = torch.arange(3 * SIZE * SIZE).reshape(1, 3, SIZE, SIZE).remainder(251).to(torch.uint8)
    return model.predict(model.encode(picture), BOX, multimask_output=None).logits


def stored(model: Sam, path: Path) -> Path:
    save_weights(model.state_dict(), path, metadata={"frame": model.frame})
    return path


@pytest.fixture(scope="module")
def start(small_and_repeatable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stored(mini(0), tmp_path_factory.mktemp("start") / "start.safetensors")


@pytest.fixture(scope="module")
def trained(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """-> the data with a val split, and the folder of an epoch's weights."""
    folder = tmp_path_factory.mktemp("trained")
    data = make_data(folder / "data", ("train", "val"), images=2)
    fit(data, folder, "--epochs", 1, "--sam_checkpoint", start, "--lr", "1e-3")
    yield data, folder / "models" / RUN
    shutil.rmtree(folder)


def test_both_ends_are_met_and_between_lie_the_means(start: Path, tmp_path: Path) -> None:
    whole = drifted(mini(0))
    mixture = Mixture(plan_model(str(stored(whole, tmp_path / "end.safetensors"))), open_weights(start))
    own, theirs = open_weights(start).tensors, dict(whole.named_parameters())
    for share in (0.25, 0.0, 1.0):
        for name, mixed in mixture.at(share).named_parameters():
            if share in (0, 1):
                assert torch.equal(mixed, (own, theirs)[int(share)][name]), (share, name)
            else:
                torch.testing.assert_close(mixed, 0.75 * own[name] + 0.25 * theirs[name], rtol=0, atol=1e-6)
    assert torch.equal(answers(mixture.at(0)), answers(open_model(str(start), device="cpu")))
    assert torch.equal(answers(mixture.at(1)), answers(whole))


def test_a_part_that_the_start_has_not_comes_in_by_its_gate(start: Path, tmp_path: Path) -> None:
    end = mini(1, encoder_adapter=True, refine=True)
    end.load_state_dict(open_weights(start).tensors, strict=False)
    end = drifted(end)
    mixture = Mixture(plan_model(str(stored(end, tmp_path / "end.safetensors"))), open_weights(start))
    theirs = dict(end.named_parameters())
    plain = open_model(str(start), device="cpu")
    none = mixture.at(0)
    assert torch.equal(answers(none), answers(plain)), "adapters add nothing"
    assert not any(p.any() for p in none.refinement.write.parameters()), "nor does the refinement network"
    gates = {f"image_encoder.blocks.{i}.Adapter.norm.{part}" for i in range(4) for part in ("weight", "bias")}
    gates |= {"refinement.write.weight", "refinement.write.bias"}
    for name, mixed in mixture.at(0.5).named_parameters():
        if name in gates:
            torch.testing.assert_close(mixed, 0.5 * theirs[name])
        elif "Adapter" in name or name.startswith("refinement"):
            assert torch.equal(mixed, theirs[name]), name
    assert torch.equal(answers(mixture.at(1)), answers(end))
    assert mixture.model.refinement.choosing == 1, "a buffer is the end's"


def test_a_share_of_the_way_has_that_share_of_lora_pairs(start: Path, tmp_path: Path) -> None:
    end = mini(0)
    add_lora(end, 2, 4, ("qkv",), None, torch.Generator().manual_seed(3))
    with torch.no_grad():
        for name, parameter in end.named_parameters():
            if name.endswith("lora_B"):
                parameter.fill_(0.02)
    mixture = Mixture(plan_model(str(stored(end, tmp_path / "end.safetensors"))), open_weights(start))
    for name, buffer in end.named_buffers():
        if name.endswith("lora_alpha"):
            buffer.mul_(0.3)
    wanted = merge_lora(end.state_dict())
    mixed = mixture.at(0.3).state_dict()
    assert {*mixed} == {*wanted}
    for name, tensor in mixed.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-5, atol=1e-6)


def test_chosen_is_the_best_elsewhere_of_those_that_lose_little() -> None:
    judged = [
        Judged(s, {"bbox": own}, {"x": there}) for s, own, there in ((0, 0.5, 0.9), (0.5, 0.796, 0.7), (1, 0.8, 0.4))
    ]
    assert choose(judged, 0.005).share == 0.5
    assert choose(judged, 0.003).share == 1
    assert choose(judged, 1).share == 0
    assert choose([Judged(s, {"a": 0.8}, {"x": 0.5}) for s in (0, 0.5, 1)], 0).share == 1, "the nearest to the end"


def test_the_command_judges_as_training_does_and_writes_what_it_says(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    data, models = trained
    output = tmp_path / "out" / "mixed.pth"
    flags = [str(models / "best.pth"), "--data_path", str(data), "--output", str(output), "--device", "cpu"]
    mix_weights.main([*flags, "--shares", "1", "0.5", "0", "--prompt_modes", "bbox", "2pts", "--most_lost", "1"])
    said = json.loads(output.with_suffix(".json").read_text())
    rows = {row["share"]: row for row in said["shares"]}
    assert [*rows] == [0, 0.5, 1]
    best = torch.load(models / "best.pth", weights_only=True)
    assert rows[1]["own"]["bbox"] == pytest.approx(best["validation_dice"], abs=1e-12)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line[:1].isdigit()] == ["0", "0.5", "1"]
    shown = next(line for line in lines if " * " in line)

    most = max(rows.values(), key=lambda row: row["elsewhere_mean"])
    assert said["share"] == most["share"] == float(shown.split()[0]), "all may lose everything"
    mixed = open_model(str(output), device="cpu")
    found = dice_on(mixed, {"phantoms": PhantomScenes(SIZE, "val")}, mixed.device)
    for (name, mode), values in found.items():
        assert sum(values) / len(values) == pytest.approx(most["elsewhere"][f"{name} {mode}"], abs=1e-12)
    content = torch.load(output, weights_only=True)
    assert content["flags"]["sam_checkpoint"] == said["start"] and content["flags"]["tune"] == "adapters"
    assert (
        content["mixed"]["share"] == said["share"]
        and content["made_by"]["end_hash"]
        and content["made_by"]["data_hash"]
    )
    height, width, _ = cv2.imread(str(output.with_suffix(".png"))).shape
    assert (height, width) == (396, 660)
    assert "exists" in fails(lambda: mix_weights.main(flags))


def test_what_cannot_be_mixed_is_one_line_before_anything_is_judged(
    trained: tuple[Path, Path], start: Path, tmp_path: Path
) -> None:
    data, models = trained
    best, output = models / "best.pth", tmp_path / "mixed.pth"

    def mix(*flags: object) -> str:
        return fails(lambda: mix_weights.main([*map(str, flags), "--device", "cpu"]))

    common = best, "--data_path", data, "--output", output
    assert "is mini" in (said := mix(*common, "--start", "small")) and "vit_t" in said
    other = stored(mini(7), tmp_path / "other.safetensors")
    assert "codes coordinates by other numbers" in mix(*common, "--start", other)
    assert "name those weights with --start" in mix(start, *common[1:])
    assert f"{tmp_path / 'gone'}" in mix(*common, "--also", tmp_path / "gone")
    assert "no index of split 'val'" in mix(
        best, "--data_path", make_data(tmp_path / "d", images=1), "--output", output
    )
    assert "would be written over" in mix(*common[:3], "--output", best, "--overwrite")
    assert not output.exists()


def test_phantoms_that_choose_are_not_those_that_tell_what_was_lost() -> None:
    chosen_by, told = PhantomScenes(SIZE, "val"), PhantomScenes(SIZE)
    pictures = [[scenes[i].image for i in range(3)] for scenes in (chosen_by, told)]
    assert not any(torch.equal(a, b) for a in pictures[0] for b in pictures[1])
    assert all(
        torch.equal(a, scenes.image)
        for a, scenes in zip(pictures[0], (PhantomScenes(SIZE, "val")[i] for i in range(3)))
    )
