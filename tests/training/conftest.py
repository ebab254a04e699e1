"""What the tests of training share."""

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from sam_med2d.training import monitor
from segment_anything import sam_model_registry
from segment_anything.build_sam import build_sam
from segment_anything.sizes import SIZES
from tests.training.helpers import fit, make_data
from tests.training.mini import MINI


@pytest.fixture(scope="module", autouse=True)
def small_and_repeatable() -> Iterator[None]:
    """A mini model in the registry, and one thread: the number of threads may change the last bits of a sum."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "mini", MINI)
        patch.setitem(sam_model_registry, "mini", partial(build_sam, model_type="mini"))
        patch.setattr(monitor, "PANEL_IMAGES", 2)  # drawn after each epoch: nearly half of what an epoch here takes
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Path]:
    """A --work_dir. Removed afterwards: pytest keeps its temporary folders, and checkpoints are large."""
    yield tmp_path / "work"
    shutil.rmtree(tmp_path / "work", ignore_errors=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images: three batches of two an epoch. No validation."""
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def first_epoch(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The --work_dir of a run of one epoch on `data`. To be read, or copied."""
    folder = tmp_path_factory.mktemp("first_epoch")
    fit(data, folder, "--epochs", 1)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def begun(first_epoch: Path, work: Path) -> Path:
    """A --work_dir of one's own in which an epoch was trained on `data`."""
    return shutil.copytree(first_epoch, work)


@pytest.fixture(scope="module")
def validated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a val split."""
    return make_data(tmp_path_factory.mktemp("validated"), ("train", "val"))
