"""Tests of the generated tasks and of the pretraining run that learns from them."""

import json
from functools import partial
from pathlib import Path

import collect_pictures
import cv2
import numpy as np
import pretrain
import pytest
import synthesis
import torch
from safetensors.torch import load_file

from segment_anything import sam_model_registry
from segment_anything.build_sam import build_sam
from segment_anything.sizes import SIZES, Size


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Two pictures of discs, a grey and a coloured one, cut into regions as real ones are."""
    content = {}
    for name, channels in (("grey", 1), ("colour", 3)):
        rng = np.random.default_rng(channels)
        image = np.full((96, 120, channels), 40, np.uint8)
        for x, y in ((25, 30), (70, 30), (95, 70), (40, 70)):
            cv2.circle(image, (x, y), int(rng.integers(10, 16)), rng.integers(120, 250, channels).tolist(), -1)
        image = image.squeeze()
        content[f"{name}|image"], content[f"{name}|weight"] = image, np.float32(1)
        for i, (labels, kept) in enumerate(collect_pictures.cut(image)):
            content[f"{name}|labels{i:02d}"], content[f"{name}|kept{i:02d}"] = labels, kept
    path = tmp_path_factory.mktemp("pictures") / "pictures.npz"
    np.savez(path, **content)
    return path


def only(tasks: synthesis.Tasks, source: str) -> synthesis.Tasks:
    tasks.shares = {source: 1.0}
    return tasks


@pytest.mark.parametrize("source", ["scene", "phantom", "picture"])
def test_draws_have_objects_that_fit_their_frame(source, pictures):
    tasks = only(synthesis.Tasks(64, 2, pictures), source)
    for index in range(12):
        image, masks = tasks.draw(0, index)
        assert image.shape == (64, 64, 3) and image.dtype == np.uint8 and image.flags["C_CONTIGUOUS"]
        assert masks.shape == (2, 64, 64) and masks.dtype == bool
        areas = masks.mean(axis=(1, 2))
        assert (areas > 0).all() and (areas <= synthesis.MAX_AREA).all()


def test_a_draw_depends_on_seed_and_index_alone(pictures):
    tasks, other = synthesis.Tasks(64, 2, pictures), synthesis.Tasks(64, 2, pictures)
    later = [other.draw(3, index) for index in (5, 2)]
    for (image, masks), index in zip(later, (5, 2)):
        again = tasks.draw(3, index)
        np.testing.assert_array_equal(image, again[0])
        np.testing.assert_array_equal(masks, again[1])
    assert (tasks.draw(3, 5)[0] != tasks.draw(3, 6)[0]).any()
    assert (tasks.draw(3, 5)[0] != tasks.draw(4, 5)[0]).any()


def test_objects_differ_from_their_surroundings(pictures):
    """Mostly: the mean difference of greys across the outline is far above what a mask drawn elsewhere has."""
    tasks = synthesis.Tasks(64, 1, pictures)
    true, moved = [], []
    for index in range(40):
        image, masks = tasks.draw(1, index)
        grey = image.mean(axis=2)
        for mask, steps in ((masks[0], true), (np.roll(masks[0], (20, 20), (0, 1)), moved)):
            inner = mask.view(np.uint8)
            around = cv2.dilate(inner, np.ones((5, 5), np.uint8)).view(bool) & ~mask
            steps.append(abs(grey[mask].mean() - grey[around].mean()))
    assert np.median(true) > 1.5 * np.median(moved)


def test_regions_of_a_picture_are_its_discs(pictures):
    found = synthesis.load_pictures(pictures)
    assert [entry["name"] for entry in found] == ["colour", "grey"]
    image = found[1]["image"]
    disc = cv2.connectedComponents((image > 100).astype(np.uint8))[1]
    best = max(
        (2 * ((labels == k) & (disc == 1)).sum() / ((labels == k).sum() + (disc == 1).sum()))
        for labels, kept in found[1]["maps"]
        for k in kept
    )
    assert best > 0.9


def test_a_crop_holds_its_object():
    rng = np.random.default_rng(0)
    mask = np.zeros((100, 140), bool)
    mask[30:50, 60:100] = True
    for _ in range(50):
        x0, y0, x1, y1 = synthesis.window(rng, mask)
        assert 0 <= x0 < x1 <= 140 and 0 <= y0 < y1 <= 100
        assert mask[y0:y1, x0:x1].sum() == mask.sum()


@pytest.fixture
def mini(monkeypatch):
    """A model small enough to train here, and the number of threads as it was."""
    monkeypatch.setitem(SIZES, "mini", Size(32, 2, 2, (1,)))
    monkeypatch.setitem(sam_model_registry, "mini", partial(build_sam, model_type="mini"))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def args(folder: Path, pictures: Path, *more: str):
    return pretrain.parse_args(
        [
            "--model_type",
            "mini",
            "--run",
            str(folder / "run"),
            "--output",
            str(folder / "out.safetensors"),
            "--steps",
            "2",
            "--batch_size",
            "2",
            "--image_size",
            "32",
            "--held_out",
            "1",
            "--start",
            "none",
            "--warm_up",
            "1",
            "--refine",
            "True",
            "--pictures",
            str(pictures),
            *more,
        ]
    )


def test_a_stopped_run_that_goes_on_equals_one_that_was_not(tmp_path, pictures, mini):
    pretrain.run(args(tmp_path / "whole", pictures))
    pretrain.run(args(tmp_path / "parts", pictures, "--stop_after", "1"))
    pretrain.run(args(tmp_path / "parts", pictures, "--num_workers", "1"))
    whole, parts = (torch.load(tmp_path / name / "run/last.pt", weights_only=True) for name in ("whole", "parts"))
    assert whole["step"] == parts["step"] == 2
    for part in ("model", "average"):
        for name, tensor in whole[part].items():
            assert torch.equal(tensor, parts[part][name]), name
    whole, parts = (load_file(tmp_path / name / "out.safetensors") for name in ("whole", "parts"))
    assert "refinement.write.weight" in whole
    assert whole.keys() == parts.keys() and all(torch.equal(tensor, parts[name]) for name, tensor in whole.items())
    lines = [json.loads(line) for line in (tmp_path / "parts/run/log.jsonl").read_text().splitlines()]
    assert [line["from_step"] for line in lines if "from_step" in line] == [0, 1]
    assert lines[-1]["step"] == 2 and set(lines[-1]["generated"]) == {"box", "click", "5 clicks"}
