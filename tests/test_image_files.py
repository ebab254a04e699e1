"""Picture files: PNG that is written whole, in the colours and the shape it was given."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from sam_med2d.image_files import encode_png, write_png

COLOURS = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)


def read(path: Path) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)


@pytest.mark.parametrize("image", [COLOURS, COLOURS[..., 0]], ids=["colour", "grey"])
@pytest.mark.parametrize("level", [None, 9])
def test_a_picture_comes_back_as_it_was_written(tmp_path, image, level):
    path = tmp_path / "new folder" / "name ä.png"
    write_png(path, image, level)
    assert np.array_equal(read(path), image) and read(path).shape == image.shape
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_a_mask_becomes_0_and_255(tmp_path):
    mask = np.eye(3, dtype=bool)
    write_png(tmp_path / "mask.png", mask)
    assert np.array_equal(read(tmp_path / "mask.png"), np.eye(3, dtype=np.uint8) * 255)


def test_what_was_there_stays_where_writing_fails(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    write_png(path, COLOURS)
    before = path.read_bytes()

    def full(self, data):
        with open(self, "wb") as file:
            file.write(data[:10])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="no space"):
        write_png(path, COLOURS + 1)
    monkeypatch.undo()
    assert path.read_bytes() == before and [one.name for one in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("shape, kind", [((4, 5, 7), "u1"), ((4,), "u1"), ((4, 5), "i8"), ((4, 5, 3), "f4")])
def test_an_array_that_is_no_picture_is_refused(shape, kind):
    """OpenCV would make 8 bits of int64 and of floating point numbers, and only warn."""
    with pytest.raises(ValueError, match=re.escape(str(shape))):
        encode_png(np.zeros(shape, kind))
