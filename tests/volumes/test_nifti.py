"""NIfTI: where voxels lie and what they are, as nibabel has it; what is assumed is said; labels keep both forms."""

import gzip
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

nib = pytest.importorskip("nibabel")
sitk = pytest.importorskip("SimpleITK")

from sam_med2d.convert.classes import whole_numbers
from sam_med2d.errors import DataError
from sam_med2d.limits import MOST_VOXELS
from sam_med2d.volumes.scans import (
    canonical,
    notes_of,
    read_label_volume,
    read_scan,
    rounding_of,
    write_labels,
)

SHAPE = (5, 6, 7)
PLACES = {"dim": (40, "i2"), "kind": (70, "i2"), "pixdim": (76, "f4"), "start": (108, "f4"), "slope": (112, "f4")}
PLACES |= {"units": (123, "u1"), "qform": (252, "i2"), "sform": (254, "i2"), "magic": (344, "S4")}


def affine_of(spacing=(1.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0), angle=0.0) -> np.ndarray:
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * spacing, origin
    return affine


def made(path: Path, affine: np.ndarray | None = None, sform: int = 1, qform: int = 1, **more) -> Path:
    """A NIfTI with the two codes; qaffine: of the qform, where it differs; array; kind of file (nib.Nifti2Image)."""
    array = more.get("array", np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE))
    image = more.get("kind", nib.Nifti1Image)(array, affine_of() if affine is None else affine)
    image.set_sform(affine_of() if affine is None else affine, sform)
    image.set_qform(more.get("qaffine", affine_of() if affine is None else affine), qform)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    return path


def changed(path: Path, **values) -> Path:
    """The same file with other values of PLACES in its header; nibabel would refuse to write some of them."""
    raw = bytearray(path.read_bytes())
    for name, value in values.items():
        at, kind = PLACES[name]
        written = np.array(value, f"<{kind}" if kind != "S4" else kind).tobytes()
        raw[at : at + len(written)] = written
    path.write_bytes(raw)
    return path


def places(image: sitk.Image) -> np.ndarray:
    """(8, 3) of the corner voxels, as nibabel counts: x to the right, y to the front."""
    corners = [[(n - 1) * bit for n, bit in zip(image.GetSize(), bits)] for bits in np.ndindex(2, 2, 2)]
    return np.array([image.TransformIndexToPhysicalPoint([int(i) for i in one]) for one in corners]) * [-1, -1, 1]


def corners_by(affine: np.ndarray, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    corners = np.array([[(n - 1) * bit for n, bit in zip(shape, bits)] + [1] for bits in np.ndindex(2, 2, 2)])
    return (corners @ affine.T)[:, :3]


def refused(path: Path, **flags) -> str:
    with pytest.raises(DataError) as error:
        read_scan(str(path), **flags)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


# ---------------------------------------------------------------- what is read


@pytest.mark.parametrize("codes", [(1, 1), (2, 1), (4, 1), (0, 1), (3, 0)])
def test_voxels_lie_where_nibabel_has_them(tmp_path, codes) -> None:
    sform, qform = codes
    affine = affine_of((0.8, 1.2, 3), (-40, 12, 7), 0.3)
    path = made(tmp_path / "a.nii.gz", affine, sform, qform)
    image = read_scan(str(path))
    assert np.allclose(places(image), corners_by(nib.load(path).affine), atol=1e-4) and notes_of(image) == []
    assert np.allclose(image.GetSpacing(), (0.8, 1.2, 3), rtol=1e-6)
    assert (np.asarray(nib.load(path).dataobj) == sitk.GetArrayFromImage(image).T).all()


@pytest.mark.parametrize("code", ["RAS", "LPS", "LPI", "PIR", "ASL"])
def test_every_orientation_and_a_flip_of_the_qform(tmp_path, code) -> None:
    """LPI and RAS are mirror images in voxels: pixdim[0] of the qform is -1 in one of them."""
    affine_of((1, 2, 3), (5, 6, 7), 0.2)
    whole = nib.Nifti1Image(
        np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE), affine_of((1, 2, 3), (5, 6, 7), 0.2)
    )
    start = nib.orientations.io_orientation(whole.affine)
    turned = whole.as_reoriented(nib.orientations.ornt_transform(start, nib.orientations.axcodes2ornt(code)))
    for codes in ((1, 0), (0, 1)):
        path = made(tmp_path / "a.nii", turned.affine, *codes, array=np.asarray(turned.dataobj))
        image = read_scan(str(path))
        assert np.allclose(places(image), corners_by(nib.load(path).affine, turned.shape), atol=1e-4)
        reference = canonical(read_scan(str(made(tmp_path / "b.nii", whole.affine))))
        assert (sitk.GetArrayFromImage(canonical(image)) == sitk.GetArrayFromImage(reference)).all()


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.uint32, np.float32, np.float64])
@pytest.mark.parametrize("order", ["<", ">"])
def test_number_types_byte_orders_and_both_versions(tmp_path, kind, order) -> None:
    values = np.random.default_rng(0).integers(0, 100, SHAPE).astype(kind)
    for version in (nib.Nifti1Image, nib.Nifti2Image):
        header = version.header_class(endianness=order)
        header.set_data_dtype(kind)
        image = version(values, affine_of((2, 2, 3)), header)
        nib.save(image, tmp_path / "a.nii.gz")
        read = read_scan(str(tmp_path / "a.nii.gz"))
        assert (values == sitk.GetArrayFromImage(read).T).all() and sitk.GetArrayViewFromImage(read).dtype == kind
        assert np.allclose(places(read), corners_by(affine_of((2, 2, 3))))
        labels = np.zeros(values.shape[::-1], np.uint16)
        labels[3] = 300
        write_labels(tmp_path / "l.nii.gz", labels, read, read)
        assert (labels == np.asarray(nib.load(tmp_path / "l.nii.gz").dataobj).T).all()


def test_scaled_values_and_a_slope_of_0(tmp_path) -> None:
    path = made(tmp_path / "a.nii")
    stored = np.asarray(nib.load(path).dataobj)
    for slope, right in (
        ((0.5, -3), stored * 0.5 - 3),
        ((0, 7), stored),
        ((np.nan, np.nan), stored),
        ((-1, 0), -stored),
    ):
        read = read_scan(str(changed(path, slope=slope)))
        assert np.allclose(sitk.GetArrayFromImage(read).T, right)
    assert rounding_of(read_scan(str(changed(path, slope=(0.5, 0))))) == 0.25
    assert rounding_of(read_scan(str(changed(path, slope=(1, 0))))) == 0


def test_one_volume_of_several(tmp_path) -> None:
    array = np.arange(4 * np.prod(SHAPE), dtype=np.int16).reshape(*SHAPE, 4)
    path = made(tmp_path / "four.nii.gz", array=array)
    for frame in range(4):
        assert (array[..., frame] == sitk.GetArrayFromImage(read_scan(str(path), frame)).T).all()
        (layer,), _ = read_label_volume(str(path), frame)
        assert (array[..., frame] == sitk.GetArrayFromImage(layer).T).all()
    assert "is 4D (5 x 6 x 7 x 4: 4 volumes); choose one with --frame 0 .. 3" in refused(path)
    for frame in (4, -1):
        assert "--frame goes from 0 to 3" in refused(path, frame=frame)
    three = str(made(tmp_path / "three.nii.gz"))
    (layer,), _ = read_label_volume(three, 1)  # labels of three dimensions belong to every frame
    assert layer.GetSize() == read_scan(three, 1).GetSize() == SHAPE
    with pytest.raises(DataError, match="choose one with --frame"):
        read_label_volume(str(path))
    picture = made(tmp_path / "flat.nii", array=array[:, :, 0, 0])
    assert read_scan(str(picture)).GetSize() == (5, 6, 1)


def test_pictures_without_a_thickness(tmp_path) -> None:
    """pixdim[3] of a file of two dimensions says nothing; 0 there is usual."""
    path = changed(made(tmp_path / "a.nii", array=np.ones((5, 6, 1), np.uint8), sform=0), pixdim=[1, 2, 3, 0])
    assert read_scan(str(path)).GetSpacing() == (2, 3, 1)


# ---------------------------------------------------------------- what is said, or refused


def test_an_sform_and_pixdim_that_differ(tmp_path) -> None:
    path = changed(made(tmp_path / "a.nii", affine_of((3, 4, 2)), 1, 0), pixdim=[1, 1, 1, 1])
    image = read_scan(str(path))
    assert np.allclose(image.GetSpacing(), (3, 4, 2))
    assert notes_of(image) == [
        "its sform has voxels of 3 x 4 x 2 mm and its pixdim of 1 x 1 x 1 mm; the sform is taken"
    ]


def test_an_sform_and_a_qform_that_lie_apart(tmp_path) -> None:
    path = made(tmp_path / "a.nii", affine_of(), 2, 1, qaffine=affine_of(origin=(6, 0, 0)))
    image = read_scan(str(path))
    assert np.allclose(places(image), corners_by(affine_of()))  # as nibabel and FSL
    assert notes_of(image) == ["its qform and its sform lie up to 6 mm apart; the sform is taken"]


@pytest.mark.parametrize("size", [0, -2, np.nan, np.inf])
def test_voxels_without_a_size(tmp_path, size) -> None:
    shown = f"{size:.3g} x 2 x 2 mm"
    for sform, qform in ((0, 1), (0, 0)):
        path = changed(made(tmp_path / "a.nii", affine_of((2, 2, 2)), sform, qform), pixdim=[1, size, 2, 2])
        assert shown in refused(path)
    path = changed(made(tmp_path / "a.nii", affine_of((2, 2, 2)), 1, 0), pixdim=[1, size, 2, 2])
    image = read_scan(str(path))
    assert (
        image.GetSpacing() == (2, 2, 2)
        and shown in notes_of(image)[0]
        and "2 x 2 x 2 mm, are taken" in notes_of(image)[0]
    )


def test_a_file_that_does_not_say_where_it_lies(tmp_path) -> None:
    image = read_scan(str(made(tmp_path / "a.nii", affine_of((2, 2, 2)), 0, 0)))
    assert image.GetSpacing() == (2, 2, 2) and "neither qform nor sform" in notes_of(image)[0]


def test_a_small_shear_is_read_on_request_with_its_angle(tmp_path) -> None:
    sheared = affine_of((2, 2, 2), (-3, -4, -5), 0.2)
    sheared[:3, 1] += 0.002 * sheared[:3, 0] / 2 * 1
    path = made(tmp_path / "a.nii", sheared, 1, 0)
    said = refused(path)
    degrees = np.degrees(np.arccos(sheared[:3, 0] @ sheared[:3, 1] / np.linalg.norm(sheared[:3, :2], axis=0).prod()))
    assert f"{90 - degrees:.3g} degrees off right angles" in said and "--straighten" in said
    image = read_scan(str(path), straighten=True)
    assert f"{90 - degrees:.3g} degrees" in notes_of(image)[0] and "nearest axes" in notes_of(image)[0]
    direction = np.array(image.GetDirection()).reshape(3, 3)
    assert np.allclose(direction.T @ direction, np.eye(3), atol=1e-9)
    assert np.abs(places(image) - corners_by(sheared)).max() < 0.01
    (layer,), _ = read_label_volume(str(path), straighten=True)
    assert layer.GetSpacing() == image.GetSpacing()
    labels = np.ones(SHAPE[::-1], np.uint8)
    write_labels(tmp_path / "l.nii", labels, canonical(image), image)
    assert np.array_equal(nib.load(tmp_path / "l.nii").affine, nib.load(path).affine)  # sheared as its scan
    sheared[:3, 1] += 0.1 * sheared[:3, 0]
    steep = made(tmp_path / "steep.nii", sheared, 1, 0)
    assert "degrees off right angles" in refused(steep, straighten=True)
    both = read_scan(str(made(tmp_path / "both.nii", sheared, 1, 1, qaffine=affine_of((2, 2, 2)))))
    assert "the qform is taken" in notes_of(both)[0] and np.allclose(places(both), corners_by(affine_of((2, 2, 2))))


@pytest.mark.parametrize("rows", [np.zeros((3, 4)), np.full((3, 4), np.nan), np.ones((3, 4))])
def test_an_sform_that_is_no_place(tmp_path, rows) -> None:
    path = made(tmp_path / "a.nii")
    raw = bytearray(path.read_bytes())
    raw[280:328] = rows.astype("<f4").tobytes()
    path.write_bytes(raw)
    assert "the qform is taken" in notes_of(read_scan(str(path)))[0]
    assert "its sform" in refused(changed(path, qform=0))


@pytest.mark.parametrize(
    "values, said",
    [
        ({"dim": [3, 5, 0, 7]}, "3 dimensions of 5 x 0 x 7 voxels"),
        ({"dim": [9, 5, 6, 7]}, "9 dimensions"),
        ({"dim": [3, 5, 6, 8]}, "is cut off"),
        ({"kind": 32}, "complex numbers"),
        ({"kind": 1536}, "of the kind 1536"),
        ({"start": 100}, "would begin at byte 100"),
        ({"start": np.nan}, "would begin at byte nan"),
        ({"start": 1e30}, "would begin at byte 1e+30"),
        ({"magic": b"\0\0\0\0"}, "no NIfTI"),
    ],
)
def test_headers_that_are_none(tmp_path, values, said) -> None:
    assert said in refused(changed(made(tmp_path / "a.nii"), **values))


def test_sizes_are_refused_before_anything_is_decoded(tmp_path) -> None:
    """Ten megabytes of zeros pack into ten kilobytes; the header says a hundred gigabytes."""
    path = changed(made(tmp_path / "a.nii"), dim=[3, 4000, 4000, 3000])
    packed = tmp_path / "a.nii.gz"
    packed.write_bytes(gzip.compress(path.read_bytes() + bytes(10_000_000)))
    images = [packed]
    for suffix, header in (
        (".nrrd", "NRRD0004\ntype: short\ndimension: 3\nsizes: 4000 4000 3000\nencoding: gzip\nendian: little\n\n"),
        (
            ".mha",
            "ObjectType = Image\nNDims = 3\nDimSize = 4000 4000 3000\nElementType = MET_SHORT\n"
            "ElementDataFile = LOCAL\n",
        ),
    ):
        images.append(tmp_path / f"b{suffix}")
        images[-1].write_bytes(header.encode() + gzip.compress(bytes(10_000)))
    array = tmp_path / "c.npy"
    np.save(array, np.zeros((2, 3, 4), np.int16))
    array.write_bytes(array.read_bytes().replace(b"(2, 3, 4), }" + b" " * 9, b"(3000, 4000, 4000), }"))
    for one in images:
        start = time.monotonic()
        assert "4000 x 4000 x 3000 voxels, 48000 million" in refused(one) and "--max_voxels" in refused(one)
        assert time.monotonic() - start < 60  # decoding would take minutes
    assert "cannot be read" in refused(array)  # it is shorter than it says
    small = made(tmp_path / "small.nii")
    assert "5 x 6 x 7 voxels" in refused(small, most_voxels=200) and read_scan(str(small), most_voxels=210)
    assert MOST_VOXELS >= 512 * 512 * 1024


def mutations(raw: bytes, count: int) -> list[bytes]:
    rng = np.random.default_rng(0)
    found = []
    for number in range(count):
        one = bytearray(raw)
        if number % 3 == 0:
            one = one[: int(rng.integers(0, len(one)))]
        else:
            for _ in range(int(rng.integers(1, 12))):
                one[int(rng.integers(0, min(len(one), 400)))] = int(rng.integers(0, 256))
        found.append(bytes(one))
    return found


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd", ".mha", ".npy"])
def test_damaged_files_end_in_our_own_errors(tmp_path, ending) -> None:
    whole = made(tmp_path / "whole.nii")
    path = tmp_path / f"a{ending}"
    if ending == ".npy":
        np.save(path, np.asarray(nib.load(whole).dataobj))
    else:
        sitk.WriteImage(sitk.ReadImage(str(whole)), str(path))
    raw, accepted = path.read_bytes(), 0
    for one in mutations(raw, 150):
        path.write_bytes(one)
        for read in (read_scan, read_label_volume):
            try:
                read(str(path), most_voxels=10**6)
                accepted += 1
            except DataError as error:
                assert str(path) in str(error)
    assert accepted < 300  # some of the mutations must hurt


# ---------------------------------------------------------------- labels


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint16])
def test_labels_that_nibabel_scaled_are_whole_numbers_again(tmp_path, kind) -> None:
    """Floats saved as whole numbers of a few bits get a slope that fills the type: 1 of 0 .. 2 comes back as 1.004."""
    path = tmp_path / "a.nii"
    for count in (*range(1, 120), 200, 300 if kind != np.uint8 else 120):
        labels = np.tile(np.arange(count + 1.0), 3).reshape(-1, 3, 1)
        image = nib.Nifti1Image(labels, np.eye(4))
        image.set_data_dtype(kind)
        nib.save(image, path)
        (layer,), _ = read_label_volume(str(path))
        whole = whole_numbers(sitk.GetArrayFromImage(layer), str(path), rounding_of(layer))
        assert (labels == whole.T).all() and whole.dtype in (np.uint8, np.uint16), count


def test_probabilities_are_no_labels_however_they_are_stored(tmp_path) -> None:
    path = tmp_path / "a.nii"
    for kind, top in ((np.uint8, 1.0), (np.int16, 1.0), (np.float32, 1.0), (np.uint8, 100.0)):
        image = nib.Nifti1Image(np.linspace(0, top, 60).reshape(3, 4, 5), np.eye(4))
        image.set_data_dtype(kind)
        nib.save(image, path)
        (layer,), _ = read_label_volume(str(path))
        with pytest.raises(DataError, match="not whole numbers"):
            whole_numbers(sitk.GetArrayFromImage(layer), str(path), rounding_of(layer))
    for off, right in ((0.0009, True), (-0.0009, True), (0.002, False)):
        values = np.float32([0, 1, 2 + off])
        if right:
            assert whole_numbers(values, "a").tolist() == [0, 1, 2]
        else:
            with pytest.raises(DataError, match="not whole numbers"):
                whole_numbers(values, "a")
    for strange in (np.nan, np.inf):
        with pytest.raises(DataError, match="not whole numbers"):
            whole_numbers(np.float32([0, strange]), "a")


@pytest.mark.parametrize("codes", [(2, 1), (1, 3), (0, 1), (4, 0), (0, 0)])
@pytest.mark.parametrize("version", [nib.Nifti1Image, nib.Nifti2Image])
def test_labels_keep_both_geometries_with_their_codes(tmp_path, codes, version) -> None:
    sform, qform = codes
    affine, other = affine_of((1, 2, 3), (-9, 4, 2), 0.3), affine_of((1, 2, 3), (-3, 4, 2), 0.3)
    path = made(tmp_path / "a.nii.gz", affine, sform, qform, qaffine=other, kind=version)
    stored = read_scan(str(path))
    turned = canonical(stored)
    labels = np.arange(np.prod(SHAPE), dtype=np.uint16).reshape(turned.GetSize()[::-1])
    written = tmp_path / "l.nii.gz"
    write_labels(written, labels, turned, stored)
    one, two = nib.load(path), nib.load(written)
    assert type(one) is type(two) and (np.asarray(two.dataobj) != 0).sum() == labels.size - 1
    for field in ("qform_code", "sform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "quatern_c", "quatern_d"):
        assert (one.header[field] == two.header[field]).all(), field
    for field in ("qoffset_x", "qoffset_y", "qoffset_z", "xyzt_units"):
        assert one.header[field] == two.header[field], field
    assert (one.header["pixdim"][:4] == two.header["pixdim"][:4]).all()
    assert np.array_equal(one.affine, two.affine) and np.array_equal(one.get_qform(), two.get_qform())
    assert (sitk.GetArrayFromImage(canonical(read_scan(str(written)))) == labels).all()
    if version is nib.Nifti1Image:  # this build of ITK reads no NIfTI 2
        assert (np.asarray(two.dataobj) == sitk.GetArrayFromImage(sitk.ReadImage(str(written))).T).all()


def test_labels_of_one_frame_of_a_scaled_scan(tmp_path) -> None:
    """What the header says of the scan's values and of its frames is not said of its labels."""
    array = np.zeros((*SHAPE, 3), np.int16)
    path = changed(made(tmp_path / "a.nii", array=array), slope=(0.25, 10))
    stored = read_scan(str(path), 2)
    write_labels(tmp_path / "l.nii", np.full(SHAPE[::-1], 3, np.uint8), canonical(stored), stored)
    labels = nib.load(tmp_path / "l.nii")
    assert labels.shape == SHAPE and (np.asarray(labels.dataobj) == 3).all() and labels.get_data_dtype() == np.uint8


def test_labels_of_other_kinds_of_files(tmp_path) -> None:
    stored = read_scan(str(made(tmp_path / "a.nii", affine_of((1, 2, 3)))))
    labels = np.ones(SHAPE[::-1], np.uint8)
    for name in ("l.nrrd", "l.mha"):
        write_labels(tmp_path / name, labels, canonical(stored), stored)
        back = sitk.ReadImage(str(tmp_path / name))
        assert np.allclose(places(back), places(stored)) and (sitk.GetArrayFromImage(back) == 1).all()
    shutil.copy(tmp_path / "l.nrrd", tmp_path / "scan.nrrd")
    stored = read_scan(str(tmp_path / "scan.nrrd"))
    write_labels(tmp_path / "l.nii.gz", labels, canonical(stored), stored)
    assert np.allclose(places(read_scan(str(tmp_path / "l.nii.gz"))), places(stored))
