"""What was written before the code moved into packages still opens: tests/before_the_move/README.md."""

import lzma
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

import test as scoring
import train
from sam_med2d.data import arrow_copy, datasets, index_build
from sam_med2d.data.datasets import TrainingDataset
from sam_med2d.data.index import read_index
from sam_med2d.evaluation.rows import read_rows
from sam_med2d.evaluation.summary import all_tables
from segment_anything import sam_model_registry
from segment_anything.build_sam import build_sam
from segment_anything.sizes import SIZES, Size

OLD = Path(__file__).with_name("before_the_move")


@pytest.fixture(autouse=True)
def mini(monkeypatch) -> None:
    monkeypatch.setitem(SIZES, "mini", Size(channels=32, depth=4, heads=2, global_blocks=(1, 3)))
    monkeypatch.setitem(sam_model_registry, "mini", partial(build_sam, model_type="mini"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLD / "data", tmp_path / "data"))


@pytest.fixture
def last(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "last.pth"
    path.write_bytes(lzma.decompress((OLD / "last.pth.xz").read_bytes()))
    yield path
    shutil.rmtree(tmp_path, ignore_errors=True)  # 50 MB


def test_a_run_goes_on(last: Path, data: Path, tmp_path: Path) -> None:
    """Nothing is told but the place: model, size, batch and rounds are those of the old run."""
    train.main(
        [
            *("--resume", str(last), "--epochs", "2", "--data_path", str(data), "--work_dir", str(tmp_path / "work")),
            *("--run_name", "on", "--num_workers", "0"),
        ]
    )
    saved = torch.load(tmp_path / "work/models/on/last.pth", weights_only=True)
    assert (saved["progress"]["epoch"], saved["progress"]["step"]) == (2, 4)
    assert saved["flags"]["model_type"] == "mini" and saved["flags"]["iter_point"] == 2
    moments = saved["optimizer"]["state"]
    assert {int(moment["step"]) for moment in moments.values()} == {
        4,
        8,
        12,
    }  # adapters: once a batch; mask branch: twice; others: thrice


def test_an_index_opens_beside_its_old_copy(data: Path, monkeypatch) -> None:
    """The copy has no hash of its own, so it is made anew, once, into the same file."""
    monkeypatch.setattr(arrow_copy, "COPY_FROM", 0)

    def opened() -> None:
        for split in ("train", "test"):
            index = read_index(data, split)
            assert index.columns.path == str(data / ".arrow" / f"{Path(index.source).name}.arrow")
            assert len(index) == 3 and index.mask_count == 6
            assert index[2] == ("images/2.png", ["masks/2_0.png", "masks/2_1.png"])

    opened()
    for path in sorted((OLD / "data/.arrow").iterdir()):  # what it says has not changed
        old, new = (
            arrow_copy.Columns(None, pa.memory_map(str(one)).read_buffer())
            for one in (path, data / ".arrow" / path.name)
        )
        assert old.facts == new.facts and old.batches == new.batches
    monkeypatch.setattr(index_build, "_build", lambda *_: pytest.fail("the copy was made anew again"))
    opened()


def test_a_cache_is_read(data: Path, tmp_path: Path, monkeypatch) -> None:
    made = TrainingDataset(data, 32, cache=tmp_path / "cache")
    expected = [TrainingDataset(data, 32)[0, i] for i in range(3)]
    (folder,) = (tmp_path / "cache").iterdir()
    for name in ("images", "masks", "records"):
        shutil.copyfile(OLD / "cache" / name, folder / name)
    monkeypatch.setattr(datasets, "read_image", lambda *_: pytest.fail("an image was read"))
    monkeypatch.setattr(datasets, "read_mask", lambda *_: pytest.fail("a mask was read"))
    for i, sample in enumerate(expected):
        assert torch.equal(made[0, i].image, sample.image) and torch.equal(made[0, i].masks, sample.masks)


def test_rows_make_the_tables_they_made(tmp_path: Path) -> None:
    found = all_tables(read_rows(OLD / "run"))["overall"]
    assert found.query("mode == 'bbox' and metric == 'dice'")["objects"].tolist() == [6]
    assert np.isfinite(found["mean"].to_numpy()[:2]).all()


def test_prompts_are_asked_again(data: Path, tmp_path: Path, last: Path) -> None:
    folder = scoring.main(
        [
            *("--model_type", "mini", "--image_size", "32", "--sam_checkpoint", str(last), "--data_path", str(data)),
            *("--prompt_path", str(OLD / "run/prompts.json"), "--prompt_modes", "bbox", "3pts", "--num_workers", "0"),
            *("--work_dir", str(tmp_path / "work"), "--report", "False", "--protocol", "paper"),
        ]
    )
    assert (folder / "prompts.json").read_bytes() == (OLD / "run/prompts.json").read_bytes()
