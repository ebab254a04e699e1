"""Files that libraries write, on a disk that is full: one line and the status of what cannot be written."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from sam_med2d.errors import OutputError
from sam_med2d.evaluation.evaluate import Scored
from sam_med2d.evaluation.gallery import Predictions
from sam_med2d.prompts.modes import parse_mode
from segment_anything import Prompts
from tests.conftest import ROOT, file_system


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KB."""
    with file_system(tmp_path / "disk", "64k") as folder:
        yield folder


@pytest.mark.parametrize("name", ["labels.nii.gz", "labels.nrrd"])
def test_labels(disk: Path, name: str) -> None:
    pytest.importorskip("SimpleITK", reason="the extra data is not installed")
    from sam_med2d.volumes.scans import write_labels

    labels = np.random.default_rng(0).integers(0, 2**16, (40, 60, 60), np.uint16)
    with pytest.raises(OutputError, match=rf"disk/{name}: cannot be written \(.*\); make room there") as caught:
        write_labels(disk / name, labels, None, None)
    assert caught.value.status == 74 and "\n" not in str(caught.value)
    assert [*disk.iterdir()] == []


def test_the_status_is_right_where_not_even_the_line_can_be_written(disk: Path) -> None:
    """As where a scheduler keeps what a command says on the disk that is full."""
    with suppress(OSError):
        (disk / "filler").write_bytes(bytes(65536))
    program = "raise OutputError('full')", "print('x' * 100_000)"
    start = "from sam_med2d.cli import ending_in_one_line; from sam_med2d.errors import OutputError\n"
    for line in program:
        with open(disk / "said", "wb") as said:
            command = [sys.executable, "-c", f"{start}with ending_in_one_line(): {line}"]
            assert subprocess.run(command, cwd=ROOT, stdout=said, stderr=said).returncode == 74


def test_predictions_kept_for_the_report(disk: Path) -> None:
    kept = Predictions(disk, 0)
    masks = torch.rand(20, 200, 200) < 0.5
    prompts = Prompts(boxes=torch.tensor([[0.0, 0.0, 9.0, 9.0]] * 20))
    scored = Scored(parse_mode("bbox"), 0, [f"{i}.png" for i in range(20)], masks, masks, prompts, {}, [], None)
    with pytest.raises(OutputError, match=r"part_0\.sqlite: cannot be written \(.*\); make room there") as caught:
        for _ in range(3):
            kept.add(scored, [0, 0, 200, 200])
        kept.close()
    assert caught.value.status == 74
