"""What 16 bits change of the scores, asked with the same prompts: docs/performance.md, "In 16 bits"."""

import json
import shutil
from pathlib import Path

import pytest

import test as scoring
from sam_med2d.evaluation.rows import read_rows
from tests.conftest import ROOT

PICTURES = ("mni152_coronal_073.png", "mni152_axial_079.png", "mni152_sagittal_071.png")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three of the demo's pictures with eight objects."""
    folder = tmp_path_factory.mktemp("demo")
    index = json.loads((ROOT / "data_demo/label2image_test.json").read_text())
    own = {mask: image for mask, image in index.items() if Path(image).name in PICTURES}
    for path in {*own, *own.values()}:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, folder / path)
    (folder / "label2image_test.json").write_text(json.dumps(own))
    return folder


def test_sixteen_bits_change_dice_by_less_than_a_tenth_of_a_point(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    modes = ["bbox", "1pt", "3pts"]

    def dice(name: str, *flags: str):
        scoring.main(
            [
                *("--sam_checkpoint", "small", "--data_path", str(data), "--work_dir", str(tmp_path)),
                *("--run_name", name, "--metrics", "dice", "--report", "False", "--num_workers", "0"),
                *("--device", "cpu", "--prompt_modes", *modes, *flags),
            ]
        )
        return read_rows(tmp_path / name).set_index(["mask", "mode"])["dice"]

    exact = dice("exact")
    assert len(exact) == 8 * len(modes) and 0.3 < exact.mean() < 0.99
    replayed = ("--prompt_path", str(tmp_path / "exact/prompts.json"))
    for name, flags in {"cast": ("--precision", "bfloat16"), "mixed": ("--use_amp",)}.items():
        change = dice(name, *flags, *replayed) - exact
        assert change.abs().max() > 0, "nothing was rounded"
        assert change.abs().max() < 0.01, name  # of any object
        means = change.groupby("mode").mean()
        assert {*means.index} == {*modes} and means.abs().max() < 0.001, (name, means)
