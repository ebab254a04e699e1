"""Which annotator flags ask for, and modes as argparse reads them."""

import argparse
import json
from pathlib import Path

import pytest
import torch

from sam_med2d.errors import DataError
from sam_med2d.prompts.annotators import SimulatedAnnotator, annotator_of
from sam_med2d.prompts.files import FrozenPrompts
from sam_med2d.prompts.modes import mode_name, parse_mode


def test_flags_choose_the_annotator(tmp_path: Path) -> None:
    simulated = annotator_of(3, "center", None, 64)
    assert isinstance(simulated, SimulatedAnnotator) and (simulated.seed, simulated.strategy) == (3, "center")
    path = tmp_path / "p.json"
    path.write_text(json.dumps({"image_size": 64, "click_strategy": "center", "a.png": {"boxes": [[1, 2, 3, 4]]}}))
    frozen = annotator_of(3, "random", path, 64)
    assert isinstance(frozen, FrozenPrompts) and frozen.strategy == "center"  # the file's, whatever the flag says
    with pytest.raises(DataError, match="made in a frame of 64 pixels"):
        annotator_of(3, "random", path, 128)


def test_both_can_be_checked_before_a_run(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps({"a.png": {"boxes": [[1, 2, 3, 4]]}}))
    for annotator, fails in ((annotator_of(0, "random", None, 64), False), (annotator_of(0, "random", path, 64), True)):
        annotator.check(["a.png"], [parse_mode("bbox"), parse_mode("mask")])
        if fails:
            with pytest.raises(DataError, match="a.png has 0 of the 1 click"):
                annotator.check(["a.png"], [parse_mode("1pt")])
        else:
            annotator.check(["a.png"], [parse_mode("1pt")])


def test_both_give_the_same_mask_prompt(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps({"a.png": {}}))
    masks = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0)) > 0.5
    given = [
        annotator_of(0, "random", where, 16).start(parse_mode("mask"), masks, ["a.png"]).masks for where in (None, path)
    ]
    assert torch.equal(given[0], given[1]) and given[0].shape == (1, 1, 4, 4)
    assert given[0][0, 0, 1, 2] == masks[0, 0, 4:8, 8:12].float().mean()


def test_modes_are_parsed_by_argparse(capsys) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompt_modes", nargs="+", type=mode_name)
    assert parser.parse_args(["--prompt_modes", "3pt", "1pts", "bbox+2pt"]).prompt_modes == ["3pts", "1pt", "bbox+2pts"]
    with pytest.raises(SystemExit) as end:
        parser.parse_args(["--prompt_modes", "bbox", "circle"])
    said = capsys.readouterr().err
    assert (
        end.value.code == 2 and "argument --prompt_modes: unknown prompt mode 'circle': use bbox, bbox_jitter5" in said
    )


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("scribble", "has 0 of the 1 scribble(s) that this mode needs; make the file anew with this mode"),
        ("lasso", "has 0 of the 3 lasso corner(s) that this mode needs; make the file anew with this mode"),
        ("bbox_drawn", "has 0 of the 1 box(s) that this mode needs; make the file anew with this mode"),
        ("bbox@zoom", "has 0 of the 1 box(s) that this mode needs; make the file anew with this mode"),
        ("5pts@zoom", "has 0 of the 5 click(s) that this mode needs; make the file anew with this mode"),
    ],
)
def test_a_file_of_an_older_version_says_in_one_line_what_it_lacks(mode: str, said: str) -> None:
    """It serves the modes that it was made with."""
    path = Path(__file__).parents[1] / "before_the_move" / "run" / "prompts.json"
    held = FrozenPrompts(path, 32)
    held.check(["0_0.png"], [parse_mode(name) for name in ("bbox", "1pt", "3pts")])
    with pytest.raises(DataError) as caught:
        held.check(["0_0.png"], [parse_mode(mode)])
    assert str(caught.value) == f"{path}: 0_0.png {said}"
