"""A DICOM series as a volume: values, places, what is refused, and what is recognised by content alone."""

import resource
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("SimpleITK", reason="the extra data is not installed")
pytest.importorskip("pydicom", reason="the extra data is not installed")

import pydicom
import SimpleITK as sitk
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

from sam_med2d.errors import DataError
from sam_med2d.volumes.dicom import read_series
from sam_med2d.volumes.dicom_bytes import is_dicom
from sam_med2d.volumes.dicom_labels import read_structures
from sam_med2d.volumes.scans import AXES, as_viewed, files_of, read_scan, slices_along, volume_of_slices, write_labels
from tests.volumes.dicom_files import box, write_series, write_slice, write_structures

RAMP = np.arange(12 * 10, dtype=np.int16).reshape(12, 10)


def stack(count: int = 5, kind=np.int16) -> np.ndarray:
    return np.stack([RAMP + 200 * i for i in range(count)]).astype(kind)


def read(folder: Path) -> sitk.Image:
    return read_scan(files_of(folder))


def array_of(folder: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(read(folder))


def refused(folder: Path) -> str:
    with pytest.raises(DataError) as error:
        read(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def change(path: Path, **elements) -> None:
    data = pydicom.dcmread(path)
    for name, value in elements.items():
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)
    data.save_as(path)


# ---------------------------------------------------------------- values


def test_a_series_lies_where_its_slices_say(tmp_path):
    write_series(tmp_path, stack(), step=2.5, PixelSpacing=[0.5, 0.75])
    image = read(tmp_path)
    assert (sitk.GetArrayFromImage(image) == stack()).all() and image.GetPixelID() == sitk.sitkInt16
    assert image.GetSpacing() == (0.75, 0.5, 2.5)
    assert image.TransformIndexToPhysicalPoint((0, 0, 4)) == (0, 0, 10)


def test_each_slice_is_rescaled_by_its_own_header(tmp_path):
    """Intercept 0 in the first and below in others; slopes of other sizes; fractions; all in one type."""
    paths = write_series(tmp_path / "a", stack(4, np.uint16))
    for path, intercept in zip(paths, (0, -1000, -1000, -24)):
        change(path, RescaleIntercept=intercept)
    got = array_of(tmp_path / "a")
    assert got.dtype.kind == "i" and (got == stack(4).astype(int) - np.array([0, 1000, 1000, 24])[:, None, None]).all()

    paths = write_series(tmp_path / "b", stack(4, np.uint16))
    scales = ((1, -1000), (2, -1000), (0.25, 0), (1, -0.5))
    for path, (slope, intercept) in zip(paths, scales):
        change(path, RescaleSlope=slope, RescaleIntercept=intercept)
    expected = [values * slope + intercept for values, (slope, intercept) in zip(stack(4).astype(float), scales)]
    assert (array_of(tmp_path / "b") == expected).all()

    paths = write_series(tmp_path / "c", stack(3), RescaleIntercept=-0.5)
    assert (array_of(tmp_path / "c") == stack(3) - 0.5).all()


def test_bits_and_signs_that_differ_by_slice(tmp_path):
    volume = np.full((4, 12, 10), 300, np.uint16)
    volume[0], volume[2] = 65000, 0x0FFF
    paths = write_series(tmp_path, volume)
    change(paths[1], PixelRepresentation=1)
    change(paths[2], BitsStored=12, HighBit=11, PixelRepresentation=1)  # 0x0FFF is -1 in 12 bits
    write_slice(paths[3], np.full((12, 10), 200, np.uint8), (0, 0, 6), InstanceNumber=4)
    assert [int(np.unique(one).item()) for one in array_of(tmp_path)] == [65000, 300, -1, 200]


def test_a_slope_of_nothing_is_refused(tmp_path):
    paths = write_series(tmp_path, stack())
    change(paths[2], RescaleSlope=0)
    assert "s02: its RescaleSlope is 0" in refused(tmp_path)


# ---------------------------------------------------------------- places


@pytest.mark.parametrize("degrees", [-15, 3, 20])
def test_a_tilted_gantry_is_refused_with_its_angle(tmp_path, degrees):
    angle = np.radians(degrees)
    write_series(tmp_path, stack(8), step=4, ImageOrientationPatient=[1, 0, 0, 0, *np.cos([angle, np.pi / 2 - angle])])
    said = refused(tmp_path)
    assert f"tilted: the stack runs {abs(degrees)} degrees off their normal" in said
    assert "dcm2niix" in said and "--geometry" not in said


def test_an_oblique_straight_stack_is_no_tilt(tmp_path):
    turn = sitk.Euler3DTransform((0, 0, 0), 0.4, -0.3, 0.2)
    direction = np.array(turn.GetMatrix()).reshape(3, 3)
    for i, pixels in enumerate(stack(30)):
        write_slice(tmp_path / f"{i:02d}", pixels, direction[:, 2] * 3 * i + (5, 6, 7), direction[:, :2].T.ravel())
    image = read(tmp_path)
    assert (sitk.GetArrayFromImage(image) == stack(30)).all()
    assert np.allclose(image.GetDirection(), direction.ravel(), atol=1e-6) and image.GetSpacing()[2] == pytest.approx(3)
    assert image.GetOrigin() == pytest.approx((5, 6, 7))


def test_slices_that_drift_are_refused(tmp_path):
    paths = write_series(tmp_path / "a", stack(6))
    change(paths[3], ImagePositionPatient=[0.4, 0, 6])
    assert "its slices drift sideways, up to 0.4 pixels" in refused(tmp_path / "a")
    write_series(tmp_path / "b", stack(6), drift=(0.5, 0))
    assert "tilted: the stack runs 14 degrees" in refused(tmp_path / "b")
    write_series(tmp_path / "c", stack(6), drift=(0.01, 0))  # rounding: a twentieth of a pixel in all
    assert (array_of(tmp_path / "c") == stack(6)).all()


def test_uneven_slices_are_refused_even_if_no_step_stands_out(tmp_path):
    paths = write_series(tmp_path, stack(40))
    for i, path in enumerate(paths[20:]):
        change(path, ImagePositionPatient=[0, 0, 40 + 2.15 * i])
    assert "uneven: 2 to 2.15 mm apart" in refused(tmp_path)


@pytest.mark.parametrize(
    "elements, said",
    [
        ({"PixelSpacing": [0.8, 0.8]}, "its PixelSpacing (0.8, 0.8) differs from that of"),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 0.9998, 0.02]}, "its ImageOrientationPatient"),
        ({"PhotometricInterpretation": "MONOCHROME1"}, "its PhotometricInterpretation (MONOCHROME1)"),
        ({"Rows": 10, "Columns": 12}, "its Rows and Columns (10, 12) differs"),
        ({"ImagePositionPatient": None}, "(ImagePositionPatient is missing)"),
        ({"ImageOrientationPatient": None}, "(ImageOrientationPatient is missing)"),
        ({"PixelSpacing": None}, "(PixelSpacing is missing)"),
        ({"PixelSpacing": [0, 1]}, "its PixelSpacing (0, 1) must be above 0"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "is not two directions at right angles"),
        ({"Rows": 60000}, "it is cut off"),
        ({"NumberOfFrames": 3}, "has 3 frames in one file"),
        ({"SamplesPerPixel": 3}, "is a colour image"),
    ],
)
def test_one_slice_that_does_not_belong_is_named(tmp_path, elements, said):
    paths = write_series(tmp_path, stack())
    change(paths[3], **elements)
    assert "s03: " in refused(tmp_path) and said in refused(tmp_path)


# ---------------------------------------------------------------- acquisitions


def two(folder: Path, offset: float, first: dict, second: dict, **both) -> str:
    for number, (elements, start) in enumerate(((first, 0.0), (second, offset))):
        for i, pixels in enumerate(stack(5)):
            own = {name: value[i] if isinstance(value, list) else value for name, value in elements.items()}
            path = folder / f"{number}_{i}"
            write_slice(path, pixels, (0, 0, 4 * i + start), **{"SliceThickness": 4, **both, **own})
    return refused(folder)


@pytest.mark.parametrize("offset", [0, 2.0, 1.2])
@pytest.mark.parametrize(
    "name, values",
    [
        ("AcquisitionNumber", (1, 2)),
        ("AcquisitionTime", ("101500.5", "101700.25")),
        ("TemporalPositionIdentifier", (1, 2)),
        ("EchoNumbers", (1, 2)),
        ("EchoTime", (4.6, 9.2)),
        ("ImageType", ("ORIGINAL\\PRIMARY\\M", "ORIGINAL\\PRIMARY\\P")),
    ],
)
def test_two_acquisitions_are_refused_and_told_apart(tmp_path, offset, name, values):
    said = two(tmp_path, offset, {name: values[0]}, {name: values[1]})
    assert "acquisition" in said and name in said and "keep the files of one acquisition in a folder" in said


def test_two_sweeps_are_told_apart_by_the_order_of_their_slices(tmp_path):
    times = [[f"1015{second + 10 * sweep:02d}.5" for second in range(5)] for sweep in range(2)]
    said = two(tmp_path / "a", 2, {"AcquisitionTime": times[0]}, {"AcquisitionTime": times[1]})
    assert "AcquisitionTime (101500.5, 101501.5, 101502.5, 101503.5, ...)" in said
    said = two(tmp_path / "b", 2, {"InstanceNumber": [1, 2, 3, 4, 5]}, {"InstanceNumber": [6, 7, 8, 9, 10]})
    assert "told apart by InstanceNumber" in said


def test_the_same_slice_twice_is_said_to_be(tmp_path):
    paths = write_series(tmp_path, stack())
    shutil.copy(paths[2], tmp_path / "again")
    assert "is the same slice as" in refused(tmp_path)


def test_what_varies_in_one_acquisition_is_no_reason(tmp_path):
    """Every other slice first (MR), a number and a time a slice, runs of tables (CT), overlapping slices."""
    paths = write_series(tmp_path / "mr", stack(8))
    for i, path in enumerate(paths):
        change(path, AcquisitionTime=f"10150{i % 2}.0", InstanceNumber=i // 2 + 4 * (i % 2))
    assert (array_of(tmp_path / "mr") == stack(8)).all()
    paths = write_series(tmp_path / "ct", stack(8), SliceThickness=5)
    for i, path in enumerate(paths):
        change(path, AcquisitionTime=f"10150{i}.0", AcquisitionNumber=1 + i // 4, InstanceNumber=8 - i)
    assert (array_of(tmp_path / "ct") == stack(8)).all()


# ---------------------------------------------------------------- which files, which axis

PLANES = {
    "axial": ((1, 0, 0, 0, 1, 0), "z"),
    "prone": ((-1, 0, 0, 0, -1, 0), "z"),
    "coronal": ((1, 0, 0, 0, 0, -1), "y"),
    "sagittal": ((0, 1, 0, 0, 0, -1), "x"),
    "sagittal, lying": ((0, 0, -1, 0, 1, 0), "x"),
    "sagittal, mirrored": ((0, -1, 0, 0, 0, -1), "x"),
    "oblique": ((0.8, 0.6, 0, 0, 0, -1), "y"),
}


@pytest.mark.parametrize("plane", PLANES)
def test_a_single_slice_is_its_own_rows_and_columns(tmp_path, plane):
    turn, letter = PLANES[plane]
    path = write_slice(tmp_path / "one", RAMP, (3, -4, 5), turn)
    stored = read_scan(str(path))
    turned, axis = as_viewed(stored)
    slices = slices_along(sitk.GetArrayViewFromImage(turned), 2 - AXES.index(axis))
    assert axis == letter and slices.shape == (1, 12, 10) and (slices[0] == RAMP).all()
    places = [image.TransformIndexToPhysicalPoint((0, 0, 0)) for image in (stored, turned)]
    assert places[0] == (3, -4, 5) and (plane not in ("axial", "prone") or places[1] == places[0])
    labels = (slices > 50).astype(np.uint8)
    write_labels(tmp_path / "l.nii.gz", volume_of_slices(labels, 2 - AXES.index(axis)), turned, stored)
    written = sitk.ReadImage(str(tmp_path / "l.nii.gz"))
    assert (sitk.GetArrayFromImage(written)[0] == (RAMP > 50)).all()
    assert written.GetOrigin() == pytest.approx(stored.GetOrigin())
    assert written.GetDirection() == pytest.approx(stored.GetDirection(), abs=1e-6)


def test_a_single_slice_of_another_format_is_turned_upright(tmp_path):
    """Rows of NIfTI are not the rows of a picture: here they run from the feet up."""
    image = sitk.GetImageFromArray(RAMP[None])
    image.SetDirection((0, 0, 1, 1, 0, 0, 0, 1, 0))
    sitk.WriteImage(image, str(tmp_path / "one.nii.gz"))
    turned, axis = as_viewed(read_scan(str(tmp_path / "one.nii.gz")))
    assert axis == "x"
    assert (slices_along(sitk.GetArrayViewFromImage(turned), 2)[0] == RAMP[::-1]).all()


@pytest.mark.parametrize("name", ["one.dcm", "one.ima", "IM0001", "one.nii"])
def test_files_are_known_by_their_header(tmp_path, name):
    write_slice(tmp_path / name, np.repeat(RAMP, 4, 0), Rows=12, NumberOfFrames=4)
    with pytest.raises(DataError, match=f"{name}: has 4 frames in one file"):
        read_scan(str(tmp_path / name))


def without_preamble(path: Path, implicit: bool) -> None:
    data = pydicom.dcmread(path)
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, implicit
    del data.file_meta
    write_dataset(buffer, data)
    path.write_bytes(buffer.getvalue())


@pytest.mark.parametrize("implicit", [False, True])
def test_files_without_preamble_are_read(tmp_path, implicit):
    for path in write_series(tmp_path, stack(), RescaleIntercept=-7):
        without_preamble(path, implicit)
        assert is_dicom(path)
    assert (array_of(tmp_path) == stack() - 7).all()


def test_what_is_no_slice_in_a_folder_is_passed_over(tmp_path):
    write_series(tmp_path, stack())
    directory = pydicom.dataset.FileMetaDataset()
    directory.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    directory.MediaStorageSOPClassUID, directory.MediaStorageSOPInstanceUID = "1.2.840.10008.1.3.10", "1.2.3.9"
    data = pydicom.Dataset()
    data.file_meta, data.FileSetID = directory, "DISK"
    data.save_as(tmp_path / "DICOMDIR", enforce_file_format=True)
    write_structures(tmp_path / "rt.dcm", {"a": [box(1, 1, 5, 5)]})
    (tmp_path / "notes.txt").write_text("no slice")
    assert (array_of(tmp_path) == stack()).all()
    with pytest.raises(DataError, match="is a DICOMDIR, which lists files; give the folder"):
        read_scan(str(tmp_path / "DICOMDIR"))
    with pytest.raises(DataError, match=r"holds no picture \(RTSTRUCT\)"):
        read_scan(str(tmp_path / "rt.dcm"))
    (tmp_path / "cd").mkdir()
    shutil.copy(tmp_path / "DICOMDIR", tmp_path / "cd" / "DICOMDIR")
    shutil.copy(tmp_path / "notes.txt", tmp_path / "cd" / "notes.txt")
    assert "DICOMDIR: lists files and holds no picture; give the folder" in refused(tmp_path / "cd")


# ---------------------------------------------------------------- contours


def structures(tmp_path: Path, contours: list[np.ndarray], step: float = 4.0) -> tuple[np.ndarray, Counter]:
    write_series(tmp_path / "scan", np.zeros((6, 32, 32), np.int16), step=step)
    path, tally = write_structures(tmp_path / "rt.dcm", {"a": contours}), Counter()
    ((name, mask),) = read_structures(str(path), read(tmp_path / "scan"), tally)
    assert name == "a"
    return mask, tally


@pytest.mark.parametrize("every", [0.5, 1, 2, 4])
def test_planes_between_slices_are_united(tmp_path, every):
    heights = np.arange(4, 16.1, every)
    mask, tally = structures(tmp_path, [box(7.5, 7.5, 23.5, 23.5, height) for height in heights])
    expected = np.zeros((6, 32, 32), bool)
    expected[1:5, 8:24, 8:24] = True
    assert (mask == expected).all()
    assert sum(tally.values()) == sum(height % 4 != 0 for height in heights)


def test_holes_are_of_their_own_plane(tmp_path):
    outer, hole = (7.5, 7.5, 23.5, 23.5), (11.5, 11.5, 15.5, 15.5)
    expected = np.zeros((32, 32), bool)
    expected[8:24, 8:24] = True
    expected[12:16, 12:16] = False
    mask, _ = structures(tmp_path / "same", [box(*outer, 8), box(*hole, 8), box(*outer, 9), box(*hole, 9)])
    assert (mask[2] == expected).all() and not mask[[0, 1, 3, 4, 5]].any()
    expected[12:16, 12:16] = True
    mask, _ = structures(tmp_path / "other", [box(*outer, 8), box(*hole, 9)])
    assert (mask[2] == expected).all()


def test_contours_beyond_the_scan_are_counted(tmp_path):
    mask, tally = structures(tmp_path, [box(7.5, 7.5, 9.5, 9.5, height) for height in (-40, 4, 44)])
    assert mask.sum() == 4 and tally == {"planes of contours beyond the scan": 2}


@pytest.mark.parametrize(
    "points", ["1 2 3 4 5 6 7 8 nan", "1 2 3 4 5 6 7 8 1e9", "1 2 3 4 5 6 7 8", "1 2 3 4 5 6 7 8 x", None]
)
def test_damaged_contours_are_an_error_of_their_file(tmp_path, points):
    path = write_structures(tmp_path / "rt.dcm", {"a": [box(1, 1, 5, 5)]})
    data = pydicom.dcmread(path)
    contour = data.ROIContourSequence[0].ContourSequence[0]
    if points is None:
        del contour.ContourGeometricType
    else:  # as text, so that it is written as it is
        contour[0x30060050] = pydicom.DataElement(0x30060050, "LO", points.split())
    data.save_as(path)
    write_series(tmp_path / "scan", np.zeros((4, 32, 32), np.int16))
    with pytest.raises(DataError, match=r"rt\.dcm: "):
        list(read_structures(str(path), read(tmp_path / "scan"), Counter()))


def test_flipped_bits_end_in_our_own_errors(tmp_path):
    """Of headers, values and contours: no exception of pydicom's, numpy's or Python's comes through."""
    scan = write_series(tmp_path / "scan", stack(3))
    path = write_structures(tmp_path / "rt.dcm", {"a": [box(1, 1, 5, 5)], "b": [box(2, 2, 5, 5, 2)]})
    good, series = read(tmp_path / "scan"), [str(one) for one in scan]
    draw, kept, failed = np.random.default_rng(11), path.read_bytes(), 0
    slice_bytes = scan[1].read_bytes()
    for number in range(200):
        source = kept if number % 2 else slice_bytes
        data = bytearray(source[: draw.integers(200, len(source))] if number % 5 == 0 else source)
        for place in draw.integers(128, len(data), draw.integers(1, 4)):
            data[place] = draw.integers(256)
        try:
            if number % 2:
                path.write_bytes(data)
                list(read_structures(str(path), good, Counter()))
            else:
                scan[1].write_bytes(data)
                read_series(series)
        except DataError as error:
            failed += 1
            assert str(tmp_path) in str(error) and "\n" not in str(error)
    assert failed > 20


def test_an_element_that_promises_gigabytes_is_refused_before_there_is_room_for_it(tmp_path):
    paths = write_series(tmp_path, stack())
    data = paths[1].read_bytes()
    at = data.index(b"\x28\x00\x01\x01US")  # BitsStored becomes a private element of 4 GB, of no kind
    paths[1].write_bytes(data[:at] + b"\x29\x00\x01\x10UN\x00\x00" + b"\xfe\xff\xff\xef" + data[at + 12 :])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "s01: cannot be read, it is cut off in the element (0029,1001)" in refused(tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # kB


def test_a_series_is_held_against_the_budget_by_its_headers(tmp_path):
    paths = [str(path) for path in write_series(tmp_path / "scan", stack(5))]
    assert read_series(paths, 600).GetSize() == (10, 12, 5)
    for files, said in ((paths, r"scan: has 10 x 12 x 5 voxels"), (paths[:1], r"s00: has 10 x 12 x 1 voxels")):
        with pytest.raises(DataError, match=said) as caught:
            read_series(files, 119)
        assert caught.value.kind == "size"
