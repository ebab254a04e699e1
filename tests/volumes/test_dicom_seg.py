"""Labels as DICOM-SEG on pydicom's CT series, read back by highdicom; and labels that are merged into earlier ones."""

import shutil
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.data import get_testdata_file

from sam_med2d.commands import segment_volume
from sam_med2d.errors import DataError
from sam_med2d.inference.models import SMALL, open_model
from sam_med2d.inference.session import AnnotationSession
from sam_med2d.inference.uploads import read_upload, restored, store
from sam_med2d.volumes.dicom_labels import read_segmentation
from sam_med2d.volumes.dicom_seg import slices_of, write_segmentation
from sam_med2d.volumes.scans import as_stored, as_viewed, files_of, read_scan

SERIES = Path(get_testdata_file("CT_small.dcm", download=False)).parent / "dicomdirtests/98892001/CT5N"


@pytest.fixture(scope="module")
def scan() -> sitk.Image:
    return read_scan(files_of(SERIES))


def labels_on(scan: sitk.Image) -> np.ndarray:
    """(Z, Y, X) on the stored grid; the second slice is empty."""
    labels = np.random.default_rng(0).integers(0, 4, scan.GetSize()[::-1]).astype(np.uint8)
    labels[labels == 3] = 7
    labels[1] = 0
    return labels


def read_back(path: Path, scan: sitk.Image, name: str) -> np.ndarray:
    """One segment, put where each of its frames says that it lies."""
    volume = np.zeros(scan.GetSize()[::-1], bool)
    for segment, frames in read_segmentation(str(path)):
        for frame in frames:
            place = frame.TransformIndexToPhysicalPoint((0, 0, 0))
            column, row, number = scan.TransformPhysicalPointToIndex(place)
            assert (column, row) == (0, 0)
            if segment == name:
                volume[number] |= sitk.GetArrayFromImage(frame)[0] > 0
    return volume


def test_voxel_by_voxel_there_and_back(scan, tmp_path) -> None:
    labels = labels_on(scan)
    write_segmentation(tmp_path / "seg.dcm", labels, slices_of(files_of(SERIES), scan), {1: "liver", 7: "tumour"})
    file = highdicom.seg.segread(tmp_path / "seg.dcm")
    sources = [pydicom.dcmread(path) for path in sorted(SERIES.iterdir())]
    assert file.FrameOfReferenceUID == sources[0].FrameOfReferenceUID
    assert file.StudyInstanceUID == sources[0].StudyInstanceUID and file.PatientID == sources[0].PatientID
    assert [file.get_segment_description(n).segment_label for n in (1, 2, 3)] == ["liver", "label 2", "tumour"]
    for label, name in ((1, "liver"), (2, "label 2"), (7, "tumour")):
        np.testing.assert_array_equal(read_back(tmp_path / "seg.dcm", scan, name), labels == label)
    # and by highdicom's own volume, on the geometry of the series
    volume = file.get_volume(combine_segments=True, skip_overlap_checks=True)
    origin = np.array(volume.affine)[:3, 3]
    image = sitk.GetImageFromArray(np.moveaxis(volume.array, 0, 0).astype(np.uint8))
    assert volume.frame_of_reference_uid == sources[0].FrameOfReferenceUID and image.GetSize() == scan.GetSize()
    ends = [np.array(scan.TransformIndexToPhysicalPoint((0, 0, n))) for n in (0, scan.GetSize()[2] - 1)]
    found = volume.array if np.allclose(origin, ends[0]) else volume.array[::-1]
    assert min(np.abs(origin - end).max() for end in ends) < 1e-3
    np.testing.assert_array_equal(found, np.select([labels == 1, labels == 2, labels == 7], [1, 2, 3]))


def test_labels_of_the_patients_axes_come_back_to_the_slices(scan) -> None:
    turned, _ = as_viewed(scan)
    numbers = np.arange(np.prod(turned.GetSize())).reshape(turned.GetSize()[::-1]).astype(np.int32)
    stored = as_stored(numbers, turned, scan)
    for index in ((0, 0, 0), (3, 5, 1)):
        there = turned.TransformPhysicalPointToIndex(scan.TransformIndexToPhysicalPoint(index))
        assert stored[index] == numbers[there[::-1]]


def test_what_cannot_be_written_is_said_in_one_line(scan, tmp_path) -> None:
    slices = slices_of(files_of(SERIES), scan)
    with pytest.raises(DataError, match="there is nothing to write"):
        write_segmentation(tmp_path / "seg.dcm", np.zeros(scan.GetSize()[::-1], np.uint8), slices, {})
    other = sitk.Image(scan)
    other.SetOrigin((0, 0, 999))
    with pytest.raises(DataError, match="has no slice of its own at"):
        slices_of(files_of(SERIES), other)
    assert not [*tmp_path.iterdir()]


def run(*flags: object) -> None:
    segment_volume.main(["--sam_checkpoint", "small", "--device", "cpu", *map(str, flags)])


def test_the_command_writes_a_dicom_seg(scan, tmp_path, capsys) -> None:
    asked = ["--input", SERIES, "--box", 3, 3, 2, 12, 12, 3, "--least_iou", "0", "--least_contrast", "-9"]
    run(*asked, "--output", tmp_path / "seg.dcm")
    run(*asked, "--output", tmp_path / "labels.nii.gz")
    expected = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "labels.nii.gz"))) > 0
    (name,) = (name for name, _ in read_segmentation(str(tmp_path / "seg.dcm")))
    assert expected.any()
    np.testing.assert_array_equal(read_back(tmp_path / "seg.dcm", scan, name), expected)
    assert (tmp_path / "seg.csv").exists() and "labels: " in capsys.readouterr().out
    with pytest.raises(SystemExit, match="refers to the slices of a DICOM series, and .* is none"):
        run("--input", tmp_path / "labels.nii.gz", "--point", 5, 5, 2, "--output", tmp_path / "other.dcm")


def test_the_apps_files_hold_a_dicom_seg(scan, tmp_path) -> None:
    """Of a series that was opened in a process of its own, the files it came in being gone since."""
    for name in ("upload", "scan", "out"):
        (tmp_path / name).mkdir()
    for path in SERIES.iterdir():
        shutil.copy(path, tmp_path / "upload")
    store(read_upload(tmp_path / "upload"), tmp_path / "scan")
    shutil.rmtree(tmp_path / "upload")
    session = AnnotationSession({"": open_model(SMALL, device="cpu")})
    session.take(restored(tmp_path / "scan"))
    session.rename("liver")
    session.draw_box(3, 3, 12, 12)
    session.turn_to(0)
    session.add_object("spleen")
    session.click(4, 12, foreground=True)
    written = {path.name: path for path in session.save(tmp_path / "out")}
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(written["upload_labels.nii.gz"])))
    file = highdicom.seg.segread(written["upload_seg.dcm"])
    assert file.FrameOfReferenceUID == pydicom.dcmread(min(SERIES.iterdir())).FrameOfReferenceUID
    assert {1, 2} == {*np.unique(labels)} - {0}
    for label, name in ((1, "liver"), (2, "spleen")):
        np.testing.assert_array_equal(read_back(written["upload_seg.dcm"], scan, name), labels == label)


def test_earlier_labels_are_kept(scan, tmp_path, capsys) -> None:
    earlier = np.zeros(scan.GetSize()[::-1], np.uint8)
    earlier[:, 4:8, 4:8] = 1
    image = sitk.GetImageFromArray(earlier)
    image.CopyInformation(scan)
    old, new = tmp_path / "old.nii.gz", tmp_path / "new.nii.gz"
    sitk.WriteImage(image, str(old))
    asked = ["--input", SERIES, "--box", 3, 3, 2, 12, 12, 3, "--least_iou", "0", "--least_contrast", "-9"]
    run(*asked, "--output", new)
    alone = sitk.GetArrayFromImage(sitk.ReadImage(str(new)))
    run(*asked, "--merge_into", old, "--output", old)
    both = sitk.GetArrayFromImage(sitk.ReadImage(str(old)))
    np.testing.assert_array_equal(both == 1, earlier == 1)
    np.testing.assert_array_equal(both == 2, (alone == 1) & (earlier == 0))
    assert "(label 2)" in capsys.readouterr().out
    image.SetSpacing((9, 9, 9))
    sitk.WriteImage(image, str(old))
    with pytest.raises(SystemExit, match="old.nii.gz: is not on the grid of the scan"):
        run(*asked, "--merge_into", old, "--output", new)
