"""Modes with @zoom: what they ask, that rows do not depend on batches, and that prompts are asked again."""

import json
from pathlib import Path

import pytest

from sam_med2d.data.reading import read_image, read_mask
from sam_med2d.prompts.modes import parse_mode
from segment_anything import SamPredictor, sam_model_registry
from tests.test_scoring_script import data, score, weights  # noqa: F401
from tests.training.conftest import small_and_repeatable, work  # noqa: F401
from tests.training.helpers import SIZE

MODES = ("bbox", "bbox@zoom", "2pts@zoom")


def test_names() -> None:
    mode = parse_mode("3pt@zoom")
    assert (mode.name, mode.zoomed, mode.scored, mode.sequence) == ("3pts@zoom", True, "", "clicks@zoom")
    for name in ("mask@zoom", "5shot@zoom", "lasso@zoom", "scribble@zoom", "bbox@zoomed", "bbox@zoom@best"):
        with pytest.raises(ValueError, match="unknown prompt mode"):
            parse_mode(name)


def test_rows_are_the_predictors_and_the_same_however_they_come(score, data: Path, weights: Path, work: Path) -> None:
    rows = score("--prompt_modes", *MODES, "--run_name", "one")
    batched = score("--prompt_modes", *MODES, "--run_name", "three", "--batch_size", 3, "--num_workers", 1)
    again = score(
        "--prompt_modes", *MODES, "--run_name", "again", "--prompt_path", work / "one/prompts.json", "--seed", 7
    )
    plain = score("--prompt_modes", "bbox", "--run_name", "plain")
    bytes_of = lambda name, file="rows.csv": (work / name / file).read_bytes()
    assert bytes_of("one") == bytes_of("three") == bytes_of("again")
    assert bytes_of("one", "prompts.json") == bytes_of("three", "prompts.json") == bytes_of("again", "prompts.json")
    assert len(rows) == len(batched) == len(again) == len(MODES) * len(plain)
    assert [row.dice for row in rows if row.mode == "bbox"] == [row.dice for row in plain]

    prompts = json.loads(bytes_of("one", "prompts.json"))
    predictor = SamPredictor(sam_model_registry["mini"](image_size=SIZE, checkpoint=str(weights)).eval())
    checked = [row for row in rows if row.mode == "bbox@zoom" and row.status == "ok"][::4]
    for row in checked:
        picture = read_image(str(data / row.image) if (data / row.image).exists() else row.image)
        truth = read_mask(str(data / row.mask) if (data / row.mask).exists() else row.mask, picture.shape[:2])
        own = prompts.get(Path(row.mask).name) or prompts[row.mask]
        (box,) = own["others"]["bbox@zoom"]["boxes"]
        assert box == [
            truth.any(0).argmax(),
            truth.any(1).argmax(),
            *(n - truth[::-1, ::-1].any(axis).argmax() for n, axis in ((truth.shape[1], 0), (truth.shape[0], 1))),
        ]
        predictor.set_image(picture, "BGR")
        masks, iou, _ = predictor.predict(box=box)
        found = masks[iou.argmax()]
        assert row.dice == pytest.approx(2 * (found & truth).sum() / (found.sum() + truth.sum()), abs=1e-3)
    assert len(checked) > 2


def test_prompts_that_do_not_fit_are_told_in_one_line(score, work: Path) -> None:
    score("--prompt_modes", "bbox@zoom", "--run_name", "one")
    content = json.loads((work / "one/prompts.json").read_text())
    name = next(key for key, entry in content.items() if isinstance(entry, dict) and entry)
    content[name]["others"]["bbox@zoom"]["boxes"] = [[0, 0, 5000, 6000]]
    (work / "wide.json").write_text(json.dumps(content))
    flags = ("--prompt_modes", "bbox@zoom", "--prompt_path", work / "wide.json")
    with pytest.raises(SystemExit, match="reaches outside the image .* make the prompts file anew"):
        score(*flags)
    del content[name]["others"]
    (work / "wide.json").write_text(json.dumps(content))
    with pytest.raises(SystemExit, match="0 of the 1 box"):
        score(*flags)
