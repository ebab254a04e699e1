"""Headers of NRRD and MetaImage that ITK's parser would not survive."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("SimpleITK", reason="the extra data is not installed")

import SimpleITK as sitk

from sam_med2d.errors import DataError
from sam_med2d.volumes.scans import read_scan

VALUES = np.arange(4 * 8 * 10, dtype=np.int16).reshape(4, 8, 10)


def changed(folder: Path, before: bytes, after: bytes, name: str = "scan.nrrd") -> str:
    path = folder / name
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


@pytest.mark.parametrize("count", ["-1", "0", "5", "18446744073709551616", "1e+308", "three", ""])
def test_a_metaimage_of_dimensions_that_are_none(count: str, tmp_path: Path) -> None:
    path = changed(tmp_path, b"NDims = 3", f"NDims = {count}".encode(), "scan.mha")
    with pytest.raises(DataError, match="scan.mha: says that it has .* dimensions; export it again"):
        read_scan(path)


@pytest.mark.parametrize(
    "name, before, after",
    [
        ("scan.mha", b"TransformMatrix = 1 0 0", b"TransformMatrix = 1 0 1e308"),
        ("scan.mha", b"TransformMatrix = 1 0 0", b"TransformMatrix = inf 0 0"),
        ("scan.mha", b"Offset = 0 0", b"Offset = 0 -3e9"),
        ("scan.mha", b"ElementSpacing = 1", b"ElementSpacing = 1e300"),
        ("scan.nrrd", b"space directions: (1,0,0)", b"space directions: (1,1e308,0)"),
        ("scan.nrrd", b"space origin: (0,0,0)", b"space origin: (0,-inf,0)"),
    ],
)
def test_places_beyond_any_patient(name: str, before: bytes, after: bytes, tmp_path: Path) -> None:
    path = changed(tmp_path, before, after, name)
    with pytest.raises(DataError, match=rf"{name}: its header has \S+ for a place or a distance; export it again"):
        read_scan(path)


@pytest.mark.parametrize("name", ["scan.mha", "scan.mhd", "scan.nrrd", "scan.nhdr"])
def test_what_programs_write_is_read(name: str, tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(VALUES)
    image.SetOrigin((-120.5, 1e-7, 3000))
    image.SetSpacing((0.25, 1e-3, 12))
    image.SetMetaData("conversion", "1e400 " * 1000)
    sitk.WriteImage(image, str(tmp_path / name))
    read = read_scan(str(tmp_path / name))
    assert (sitk.GetArrayFromImage(read) == VALUES).all()
    assert np.allclose(read.GetOrigin(), image.GetOrigin()) and np.allclose(read.GetSpacing(), image.GetSpacing())
