"""The examples of docs/training.md in a run; and what is said of parts that do not fit."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from sam_med2d.data.datasets import TrainingDataset
from sam_med2d.errors import UsageError
from sam_med2d.evaluation.metrics import METRICS
from sam_med2d.training.own_parts import OwnAugmentation
from tests.conftest import ROOT, fails
from tests.training.helpers import SIZE, board_of, differences, fit, saved

DOCS = (ROOT / "docs" / "training.md").read_text()
FLAGS = re.search(r"^python train.py (--loss my_parts.*)$", DOCS, re.M)[1].split()


@pytest.fixture
def parts(tmp_path: Path, monkeypatch) -> Iterator[Path]:
    """A folder that scripts are called in, with the examples of the docs as my_parts.py."""
    section = DOCS.partition("## Your own loss")[2].partition("\n## ")[0]
    examples = re.findall(r"```python\n(.*?)```", section, re.S)
    assert len(examples) == 3
    (tmp_path / "my_parts.py").write_text("\n\n".join(examples))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name in [name for name in METRICS if ":" in name]:
        del METRICS[name]
    sys.modules.pop("my_parts", None)


def test_the_examples_of_the_docs(parts: Path, validated: Path, work: Path) -> None:
    """In a run whose workers are processes, resumed to the same end; each leaves what the docs say."""
    flags = [*FLAGS, "--iter_point", 1, "--mask_num", 1]
    fit(validated, work, *flags, "--epochs", 1, "--num_workers", 1)
    board = board_of(work)
    tags = board.Tags()["scalars"]
    assert {"loss/loss", "loss/tversky", "loss/iou", "val_my_parts:volume_similarity/bbox", "val_dice/bbox"} <= {*tags}
    assert "loss/focal" not in tags
    assert 0 <= board.Scalars("val_my_parts:volume_similarity/bbox")[0].value <= 1
    values = [board.Scalars(f"loss/{name}")[-1].value for name in ("loss", "tversky", "iou")]
    assert values[0] == pytest.approx(values[1] + values[2], rel=1e-5)
    fit(validated, work, "--resume", "--epochs", 2, "--iter_point", 1, "--mask_num", 1)
    assert saved(work)["flags"]["loss"] == "my_parts:tversky"
    fit(validated, parts / "whole", *flags, "--epochs", 2)
    assert differences(saved(work), saved(parts / "whole")) == []
    (parts / "other.py").write_text("from my_parts import tversky\n")
    assert "--loss my_parts:tversky" in fails(
        lambda: fit(validated, work, *flags, "--resume", "--loss", "other:tversky")
    )


def test_an_augmentation_is_a_function_of_the_place(parts: Path, validated: Path) -> None:
    def sample(epoch: int, own: OwnAugmentation | None) -> torch.Tensor:
        return TrainingDataset(validated, SIZE, own_augmentation=own)[epoch, 2].image

    own = OwnAugmentation("my_parts:darker_or_lighter")
    assert torch.equal(sample(0, own), sample(0, own))
    assert not torch.equal(sample(0, own), sample(0, None)) and not torch.equal(sample(0, own), sample(1, own))


def test_without_the_flag_it_is_the_papers_loss() -> None:
    args = train.parse_args([])
    assert train.recipe_of(args).loss is None


WRONG = {
    ("loss", "nothing"): "name a function as module:function",
    ("loss", "no_such_module:f"): "cannot be imported (ModuleNotFoundError",
    ("loss", "broken:f"): "cannot be imported (SyntaxError",
    ("loss", "wrong:missing"): "has no function missing",
    ("loss", "wrong:constant"): "must give a finite scalar that depends on the logits",
    ("loss", "wrong:vector"): "must give a finite scalar",
    ("loss", "wrong:failing"): "fails with ZeroDivisionError",
    ("augment_with", "wrong:alone"): "must give a pair",
    ("augment_with", "wrong:floats"): "must give an image (h, w, 3) of uint8",
    ("augment_with", "wrong:fewer"): "as many masks as before",
    ("augment_with", "wrong:larger"): "not make the image larger",
    ("metrics", "wrong:mean"): "one value an object",
}
SOURCE = """
import numpy as np, torch
constant = lambda prediction, logits, masks: torch.tensor(1.0)
vector = lambda prediction, logits, masks: logits.mean(dim=(1, 2, 3))
failing = lambda prediction, logits, masks: 1 / 0
alone = lambda image, masks, generator: image
floats = lambda image, masks, generator: (image / 255, masks)
fewer = lambda image, masks, generator: (image, masks[:1])
larger = lambda image, masks, generator: (np.tile(image, (2, 2, 1)), np.tile(masks, (1, 2, 2)))
mean = lambda predicted, truth, *, from_logits: predicted.float().mean()
"""


@pytest.mark.parametrize(("flag", "name"), WRONG)
def test_parts_that_do_not_fit_are_one_line(flag: str, name: str, parts: Path, validated: Path, work: Path) -> None:
    (parts / "wrong.py").write_text(SOURCE)
    (parts / "broken.py").write_text("def f(:\n")
    message = fails(lambda: fit(validated, work, f"--{flag}", name))
    assert f"--{flag} {name}: " in message and WRONG[flag, name] in message
    assert not (work / "models" / "sam-med2d" / "last.pth").exists()


def test_an_augmentation_that_goes_wrong_later(parts: Path) -> None:
    """On an image that it was not tried on."""
    (parts / "later.py").write_text("f = lambda image, masks, generator: (image, masks[:2])\n")
    own = OwnAugmentation("later:f")
    with pytest.raises(UsageError, match="--augment_with later:f: must give as many masks as before"):
        own(np.zeros((8, 8, 3), np.uint8), np.ones((3, 8, 8), bool), np.random.default_rng(0))
