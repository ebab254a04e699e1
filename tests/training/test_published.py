"""--recipe paper: what the public training code does, which ours is compared with."""

import shlex

import pytest
import torch

import train
from sam_med2d.training.losses import WEIGHTS, focal
from sam_med2d.training.published import begin_as_published, pooled_objective
from sam_med2d.training.rounds import draw_start, uniform_from
from segment_anything import Prediction, sam_model_registry


def test_terms_are_pooled_over_the_batch_and_only_the_chosen_answer_learns() -> None:
    masks = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    masks[0] = True  # large and found, small and missed: pooled, nearly nothing is wrong
    masks[1, 0, 0, 0] = True
    logits = torch.full((2, 4, 8, 8), -20.0)
    logits[0, 2] = 20.0
    logits.requires_grad_()
    iou = torch.tensor([[0.9, 0.1, 0.8, 0.2], [0.9, 0.7, 0.1, 0.2]], requires_grad=True)
    terms = pooled_objective(Prediction(logits, iou), logits, masks)
    assert terms["dice"].item() == pytest.approx(1 - (2 * 64 + 1) / (64 + 65 + 1), abs=1e-6)
    true_iou = 64 / 65
    assert torch.allclose(terms["iou"], torch.tensor([(0.8 - true_iou) ** 2, (0.7 - true_iou) ** 2]).mean())
    chosen = torch.stack([logits[0, 2:3], logits[1, 1:2]])
    assert torch.allclose(terms["focal"], focal(chosen, masks.float()).mean())
    assert torch.allclose(terms["loss"], sum(WEIGHTS[name] * terms[name] for name in WEIGHTS))
    terms["loss"].backward()
    assert iou.grad is not None and iou.grad.bool().tolist() == [
        [False, False, True, False],
        [False, True, False, False],
    ]


def test_all_objects_of_a_batch_start_alike() -> None:
    uniform = uniform_from(torch.Generator().manual_seed(0))
    for box in (True, False):
        drawn = draw_start(5, uniform, box, alike=True)
        assert (len(drawn.box_rows), len(drawn.click_rows)) == ((5, 0) if box else (0, 5))


def test_new_adapters_start_at_random_and_trained_ones_stay() -> None:
    model = sam_model_registry["mini"](image_size=32, encoder_adapter=True)
    model.train_for("adapters")
    first, *others = model.image_encoder.adapters()
    torch.nn.init.constant_(first.norm.weight, 0.25)
    begin_as_published(model)
    assert (first.norm.weight == 0.25).all() and all((layer.norm.weight == 1).all() for layer in others)
    assert not any(p.requires_grad for p in model.prompt_encoder.parameters())
    assert all(p.requires_grad for p in model.mask_decoder.parameters())


def test_the_flag_reaches_the_training(tmp_path, capsys) -> None:
    words = shlex.split(
        "--sam_checkpoint none --model_type mini --image_size 32 --epochs 1 --batch_size 8 --iter_point 1 "
        "--prompt_modes bbox --device cpu --num_workers 0 --mask_num 2 --recipe paper"
    )
    train.main([*words, "--work_dir", str(tmp_path)])
    assert "prompt encoder" not in capsys.readouterr().out.split("trained (--tune adapters)")[1].splitlines()[0]
    recipe = train.recipe_of(train.parse_args(words))
    assert recipe.coin_a_batch and recipe.loss is pooled_objective
