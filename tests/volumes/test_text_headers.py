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


@pytest.mark.parametrize("name", ["scan.nhdr", "scan.mhd"])
@pytest.mark.parametrize("elsewhere", ["{away}", "../away.raw", "sub/../../away.raw", "LIST\n{away}", "C:\\away.raw"])
def test_data_elsewhere_on_the_machine_are_not_opened(name: str, elsewhere: str, tmp_path: Path) -> None:
    """A header that somebody else made says which file is read: not one that lies anywhere."""
    folder = tmp_path / "given"
    folder.mkdir()
    (tmp_path / "away.raw").write_bytes(VALUES.tobytes())
    sitk.WriteImage(sitk.GetImageFromArray(VALUES), str(folder / name))
    path = folder / name
    before = next(line for line in path.read_text().splitlines() if "scan." in line)
    key = before[: before.index("scan.")]
    path.write_text(path.read_text().replace(before, key + elsewhere.format(away=tmp_path / "away.raw")))
    with pytest.raises(DataError, match=f"{name}: names .* for its data; they must lie in its own folder"):
        read_scan(str(path))


@pytest.mark.parametrize("pattern", ["s%s.raw 1 4 1", "s%n%d.raw 1 4 1", "s%999999999d.raw 1 4 1"])
def test_patterns_of_names_that_are_none(pattern: str, tmp_path: Path) -> None:
    path = tmp_path / "scan.nhdr"
    path.write_text(
        f"NRRD0004\ntype: short\ndimension: 3\nsizes: 10 8 4\nencoding: raw\nendian: little\ndata file: {pattern}\n"
    )
    with pytest.raises(DataError, match=r"scan.nhdr: names .* which is no pattern such as slice%03d.raw"):
        read_scan(str(path))


def test_a_file_a_slice(tmp_path: Path) -> None:
    header = "NRRD0004\ntype: short\ndimension: 3\nsizes: 10 8 4\nencoding: raw\nendian: little\ndata file: "
    for i, values in enumerate(VALUES):
        (tmp_path / f"s{i:03d}.raw").write_bytes(values.tobytes())
    for names in ("s%03d.raw 0 3 1", "LIST\n" + "\n".join(f"s{i:03d}.raw" for i in range(4))):
        (tmp_path / "scan.nhdr").write_text(f"{header}{names}\n")
        assert (sitk.GetArrayFromImage(read_scan(str(tmp_path / "scan.nhdr"))) == VALUES).all()
