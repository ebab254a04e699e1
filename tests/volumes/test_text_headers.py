"""Headers of NRRD that ITK's parser would not survive."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("SimpleITK", reason="the extra data is not installed")

import SimpleITK as sitk

from sam_med2d.errors import DataError
from sam_med2d.volumes.scans import read_scan

VALUES = np.arange(4 * 8 * 10, dtype=np.int16).reshape(4, 8, 10)


def changed(folder: Path, before: bytes, after: bytes) -> str:
    path = folder / "scan.nrrd"
    sitk.WriteImage(sitk.GetImageFromArray(VALUES), str(path))
    data = path.read_bytes()
    assert before in data
    path.write_bytes(data.replace(before, after, 1))
    return str(path)


@pytest.mark.parametrize("field", [b"type:", b"space:", b"kinds:", b"endian:", b"encoding:"])
@pytest.mark.parametrize("length", [501, 5000])
def test_a_line_that_is_too_long_for_the_parser(field: bytes, length: int, tmp_path: Path) -> None:
    path = changed(tmp_path, field, field + b" " + b"9" * length)
    with pytest.raises(DataError, match="scan.nrrd: has a line of more than 500 letters in its header; export it"):
        read_scan(path)


def test_comments_and_pairs_are_as_long_as_they_like(tmp_path: Path) -> None:
    path = changed(tmp_path, b"type:", b"# " + b"c" * 5000 + b"\nconversion:=" + b"v" * 5000 + b"\ntype:")
    image = read_scan(path)
    assert (sitk.GetArrayFromImage(image) == VALUES).all() and image.GetMetaData("conversion") == "v" * 5000
