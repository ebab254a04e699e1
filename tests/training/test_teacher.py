"""What the weights that training started from teach: on pictures of other kinds alone, and again after a resume."""

import shutil
from pathlib import Path

import pytest
import torch

import train
from sam_med2d.data.batch import Batch
from sam_med2d.training.learner import Learner
from sam_med2d.training.rounds import (
    Recipe,
    StartDraws,
    draw_start,
    predict_start,
    prompts_of,
    taught_start,
    train_batch,
    uniform_from,
)
from sam_med2d.training.teacher import Teacher, distance, lesson_of, others_in, taught
from segment_anything import Prediction, Sam, sam_model_registry
from segment_anything.checkpoint import save_weights
from tests.conftest import fails
from tests.training.helpers import RUN, SIZE, differences, fit, make_data, saved


def mini(seed: int) -> Sam:
    torch.manual_seed(seed)
    model = sam_model_registry["mini"](image_size=SIZE, encoder_adapter=False)
    model.train_for("all")
    return model.eval()


def batch(replayed: list[bool], seed: int = 0) -> Batch:
    """Three images with two, one and two objects."""
    draw = torch.Generator().manual_seed(seed)
    masks = torch.zeros(5, 1, SIZE, SIZE, dtype=torch.bool)
    for mask in masks:
        x, y, w, h = torch.randint(8, 30, (4,), generator=draw).tolist()
        mask[0, y : y + h, x : x + w] = True
    return Batch(
        images=torch.randint(0, 256, (3, 3, SIZE, SIZE), generator=draw, dtype=torch.uint8),
        content=torch.tensor([[0, 0, SIZE, SIZE]] * 3),
        masks=masks,
        image_index=torch.tensor([0, 0, 1, 2, 2]),
        image_names=["a", "b", "c"],
        mask_names=[*"abcde"],
        original_sizes=[(SIZE, SIZE)] * 3,
        original_masks=None,
        skipped=[],
        replayed=replayed,
    )


def test_distance_is_nothing_between_equal_answers_and_grows() -> None:
    one = Prediction(torch.randn(2, 4, 8, 8), torch.rand(2, 4))
    assert distance(one, one).abs().max() < 1e-6
    zero, sure = torch.zeros(1, 4, 8, 8), torch.full((1, 4, 8, 8), 30.0)
    iou = torch.full((1, 4), 0.5)
    # probabilities of 1/2 against 1: 1 - 2 (1/2) / (1/4 + 1); IoUs 0.3 apart: 0.09
    assert distance(Prediction(zero, iou), Prediction(sure, iou + 0.3)).item() == pytest.approx(0.2 + 0.09, abs=1e-4)


def test_the_others_are_found_with_their_objects_and_in_parts() -> None:
    images, rows, of = others_in(batch([True, False, True]))
    assert (images.tolist(), rows.tolist(), of.tolist()) == ([0, 2], [0, 1, 3, 4], [0, 0, 1, 1])
    assert others_in(batch([False] * 3)) is None and others_in(batch([])) is None
    first, second = batch([False, False, True]).parts(2)
    assert others_in(first) is None and [part.tolist() for part in others_in(second)] == [[0], [0, 1], [0, 0]]


@pytest.mark.parametrize("seed", range(3))
def test_the_teacher_is_asked_what_the_pupil_is(seed: int, small_and_repeatable) -> None:
    model, here = mini(0), batch([True, False, True])
    drawn = draw_start(5, uniform_from(torch.Generator().manual_seed(seed)), odd_from_box=True)
    start, others = prompts_of(here.masks, drawn), others_in(here)
    with torch.inference_mode():
        embeddings = model.encode(here.images, here.content)[here.image_index]
        lesson = lesson_of(Teacher(model, 1.0), here, others)
        whole = predict_start(model, embeddings, start)
        for mine, theirs in zip(taught_start(Teacher(model, 1.0), lesson, start, drawn), whole):
            torch.testing.assert_close(mine, theirs[others.rows], rtol=1e-4, atol=1e-5)
        prompts = start.of_all()._replace(boxes=None, masks=None)
        whole = model.predict(embeddings, prompts, multimask_output=None)
        for mine, theirs in zip(taught(Teacher(model, 1.0), lesson, prompts), whole):
            torch.testing.assert_close(mine, theirs[others.rows], rtol=1e-4, atol=1e-5)


def test_all_of_the_others_may_start_from_one_kind_of_prompt(small_and_repeatable) -> None:
    model, here = mini(0), batch([False, True, False])
    numbers = torch.full((5, 2), 0.5)
    drawn = StartDraws(torch.tensor([4, 2, 0]), numbers[:3], torch.tensor([1, 3]), numbers[:2, :1])
    start = prompts_of(here.masks, drawn)
    with torch.inference_mode():
        lesson = lesson_of(Teacher(model, 1.0), here, others_in(here))
        answer = taught_start(Teacher(model, 1.0), lesson, start, drawn)
        wanted = model.predict(lesson.embeddings, start.boxes.rows(torch.tensor([1])), multimask_output=None)
    torch.testing.assert_close(answer.logits, wanted.logits, rtol=1e-4, atol=1e-5)


def trained(here: Batch, weight: float, steps: int = 1) -> tuple[Sam, list[dict[str, torch.Tensor]]]:
    """weight: 0 without a teacher."""
    pupil = mini(0).train()
    teacher = Teacher(mini(1).requires_grad_(False), weight) if weight else None
    learner = Learner(pupil, lr=1e-4)
    recipe = Recipe(corrections=1, click_counts=(1,), teacher=teacher)
    return pupil, [train_batch(pupil, [here], learner, recipe, step) for step in range(steps)]


def test_it_pulls_on_pictures_of_other_kinds_alone(small_and_repeatable) -> None:
    alone, told = trained(batch([]), 0.0)
    assert "loss/pull" not in told[0]
    same, told = trained(batch([False] * 3), 5.0)
    assert told[0]["loss/pull"] == 0
    assert all(torch.equal(a, b) for a, b in zip(alone.state_dict().values(), same.state_dict().values()))
    here = batch([True, False, True])
    pulled, unmoved = (trained(here, weight, steps=6)[1][-1]["loss/pull"] for weight in (20.0, 1e-9))
    assert pulled < 0.7 * unmoved, "the pupil comes nearer"
    _, told = trained(here, 5.0)
    scalars = told[0]
    parts = 20 * scalars["loss/focal"] + scalars["loss/dice"] + scalars["loss/iou"] + 5 * scalars["loss/pull"]
    assert scalars["loss/loss"] == pytest.approx(float(parts), rel=1e-4)


@pytest.fixture(scope="module")
def start(small_and_repeatable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("start") / "start.safetensors"
    save_weights(mini(0).state_dict(), path, metadata={"frame": "sam-med2d"})
    return path


def test_a_run_goes_on_bit_for_bit_and_only_with_its_teacher(start: Path, work: Path, tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", images=2)
    own = tmp_path / "own.safetensors"
    shutil.copyfile(start, own)
    flags = "--replay", "phantoms", "--replay_share", "1", "--sam_checkpoint", own, "--lr", "1e-3"
    fit(data, work / "plain", *flags, "--epochs", 2)
    fit(data, work / "whole", *flags, "--pull", 2, "--epochs", 2)
    fit(data, work / "parts", *flags, "--pull", 2, "--epochs", 1)
    assert "start_hash" in saved(work / "parts")["made_by"]
    again = work / "parts" / "models" / RUN / "last.pth"
    flags = *flags, "--resume", again, "--epochs", 2
    assert "--pull 2" in fails(lambda: fit(data, work / "parts", *flags, "--pull", 0))
    save_weights(mini(3).state_dict(), own)
    assert "is another file" in fails(lambda: fit(data, work / "parts", *flags))
    shutil.copyfile(start, own)
    fit(data, work / "parts", *flags)
    whole = saved(work / "whole")
    assert differences(whole["model"], saved(work / "parts")["model"]) == []
    assert differences(whole["optimizer"], saved(work / "parts")["optimizer"]) == []
    assert differences(whole["model"], saved(work / "plain")["model"])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--replay", "none", "--sam_checkpoint", "small"], "--pull is about the pictures of --replay"),
        (["--replay", "phantoms", "--sam_checkpoint", "none"], "which are random"),
        (["--pull", "-1"], "--pull must be at least 0"),
    ],
)
def test_flags_that_make_no_sense(flags: list[str], said: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        train.parse_args(["--pull", "1", *flags])
    assert said in capsys.readouterr().err
