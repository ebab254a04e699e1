"""The command make-index on volumes (DICOM and nnU-Net among them): real files of packages, and made ones."""

import gzip
import json
import shutil
import warnings
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("SimpleITK", reason="the extra data is not installed")
pytest.importorskip("highdicom", reason="the extra data is not installed")

import highdicom
import pydicom
import SimpleITK as sitk
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ExplicitVRLittleEndian, HTJ2KLossless, generate_uid

from sam_med2d.errors import UsageError
from sam_med2d.volumes.contours import inside
from sam_med2d.volumes.intensity import WINDOWS, parse_window, to_8_bits
from sam_med2d.volumes.scans import canonical, grids_differ
from tests.conftest import fails
from tests.convert.helpers import (
    block,
    contents,
    image_of,
    index,
    mask_of,
    metadata,
    picture,
    run,
    training_batch,
    write,
)
from tests.volumes.dicom_files import add_contours

EVERYTHING = ("--ratios", 1, 0, 0)
SHAPE = (14, 20, 26)  # Z, Y, X of the made scan


def itk(array: np.ndarray, spacing=(1.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0), direction=None) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    if direction is not None:
        image.SetDirection(direction)
    return image


def save(image: sitk.Image, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))
    return path


def made_scan() -> np.ndarray:
    """A ramp that tells every voxel from its neighbours, air below zero included."""
    z, y, x = np.indices(SHAPE)
    return (x * 10 + y * 3 + z - 1000).astype(np.int16)


def made_labels() -> np.ndarray:
    labels = block(SHAPE, (3, 11), (4, 14), (5, 15), value=1)
    labels[4:10, 6:12, 18:24] = 2
    return labels


def make_source(folder: Path, suffix: str = ".nii.gz", **geometry) -> Path:
    save(itk(made_scan(), **geometry), folder / "scans" / f"one{suffix}")
    save(itk(made_labels(), **geometry), folder / "labels" / f"one{suffix}")
    return folder


def of_volumes(folder: Path, *flags: object, **options) -> Path:
    options.setdefault("output", folder / "out")
    return run("volumes", "--images", folder / "scans", "--labels", folder / "labels", *EVERYTHING, *flags, **options)


def error_of(folder: Path, *flags: object) -> str:
    return fails(lambda: of_volumes(folder, *flags))


def row_of(output: Path, axis: str, slice: int, class_name: str) -> dict[str, str]:
    (found,) = (
        row for row in metadata(output) if (row["axis"], row["slice"], row["class"]) == (axis, str(slice), class_name)
    )
    return found


# ---------------------------------------------------------------- slices


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_slices_of_all_axes(tmp_path, suffix):
    make_source(tmp_path, suffix, spacing=(0.7, 0.8, 2.5))
    output = of_volumes(tmp_path, "--classes", "liver=1", "spleen=2", "--modality", "ct", "--min_aspect", 0)
    scan, labels = made_scan(), made_labels()
    for axis, number, cut in (("z", 5, np.s_[5]), ("y", 7, np.s_[::-1, 7]), ("x", 20, np.s_[::-1, :, 20])):
        name = "spleen" if axis == "x" else "liver"
        row = row_of(output, axis, number, name)
        assert (mask_of(output, row) == (labels[cut] == (2 if axis == "x" else 1))).all()
        values = scan[cut].astype(float)
        assert np.abs(image_of(output, row) - (values - values.min()) * 255 / np.ptp(values)).max() <= 0.51
    rows = metadata(output)
    assert {row["axis"]: row["spacing"] for row in rows} == {"z": "0.8x0.7", "y": "2.5x0.7", "x": "2.5x0.8"}
    assert Counter((row["axis"], row["class"]) for row in rows) == {
        ("z", "liver"): 8,
        ("y", "liver"): 10,
        ("x", "liver"): 10,
        ("z", "spleen"): 6,
        ("y", "spleen"): 6,
        ("x", "spleen"): 6,
    }
    assert "ct--out--one--z_0005.png" in row_of(output, "z", 5, "liver")["image"]
    training_batch(output)


def test_every_stored_orientation_gives_the_same_pictures(tmp_path):
    """The same patient, stored in four ways: the files that come out are the same."""
    make_source(tmp_path / "LPS")
    expected = contents(of_volumes(tmp_path / "LPS", "--dataset", "d"))
    scan, labels = (sitk.ReadImage(str(tmp_path / "LPS" / kind / "one.nii.gz")) for kind in ("scans", "labels"))
    for code in ("RAS", "PIR", "SLA"):
        save(sitk.DICOMOrient(scan, code), tmp_path / code / "scans" / "one.nii.gz")
        save(sitk.DICOMOrient(labels, "RAS"), tmp_path / code / "labels" / "one.nii.gz")
        made = contents(of_volumes(tmp_path / code, "--dataset", "d"))
        drop = ".cases/d--one.json"  # it remembers the source files
        assert {k: v for k, v in made.items() if k != drop} == {k: v for k, v in expected.items() if k != drop}


def test_the_paper_s_filters_are_flags(tmp_path):
    labels = made_labels()
    labels[5, 0, 0] = 2  # a speck
    save(itk(made_scan()), tmp_path / "scans" / "one.mha")
    save(itk(labels), tmp_path / "labels" / "one.mha")
    everything = ("--min_aspect", 0, "--min_area", 0)
    assert len(metadata(of_volumes(tmp_path, *everything))) == 46 + 3
    assert (
        len(metadata(of_volumes(tmp_path, *everything, "--components", "False"))) == 46 + 2
    )  # x 0 and y 0 show the speck alone
    assert len(metadata(of_volumes(tmp_path, "--min_aspect", 0, "--min_area", 1))) == 46  # a speck is 0.2 to 0.4 %
    assert {row["axis"] for row in metadata(of_volumes(tmp_path, "--min_aspect", 0.6))} == {"x", "z"}  # 14 x 26 is out
    assert {row["axis"] for row in metadata(of_volumes(tmp_path, "--axes", "zy", "--min_aspect", 0))} == {"y", "z"}
    assert {row["slice"] for row in metadata(of_volumes(tmp_path, "--axes", "z", "--step", 4, "--min_area", 1))} == {
        "4",
        "8",
    }
    assert {row["class"] for row in metadata(of_volumes(tmp_path, "--only", "label_002"))} == {"label_002"}
    for flags, said in (
        (("--axes", "a"), "--axes a"),
        (("--step", 0), "--step"),
        (("--window", "liverr"), "--window liverr"),
        (("--window", "lung", "--scale", "slice"), "leave out --scale"),
        (("--percentiles", 90, 10), "--percentiles"),
    ):
        assert said in error_of(tmp_path, *flags)


def test_windows_and_scales(tmp_path):
    make_source(tmp_path)
    scan = made_scan().astype(float)

    def slice_5(*flags: object) -> np.ndarray:
        output = of_volumes(tmp_path, "--axes", "z", *flags)
        return image_of(output, row_of(output, "z", 5, "label_001")).astype(float)

    assert np.abs(slice_5("--scale", "slice") - (scan[5] - scan[5].min()) * 255 / np.ptp(scan[5])).max() <= 0.51
    assert np.abs(slice_5("--scale", "volume") - (scan[5] - scan.min()) * 255 / np.ptp(scan)).max() <= 0.51
    assert np.abs(slice_5("--window", -850, 200) - np.clip((scan[5] + 950) * 255 / 200, 0, 255)).max() <= 0.51
    low, high = np.percentile(scan, (10, 90))
    assert (
        np.abs(
            slice_5("--scale", "volume", "--percentiles", 10, 90)
            - np.clip((scan[5] - low) * 255 / (high - low), 0, 255)
        ).max()
        <= 0.51
    )
    assert parse_window(["lung"]) == (-1350, 150) and parse_window(["40", "400"]) == (-160, 240)
    assert all(np.diff(parse_window([name])) == width for name, (_, width) in WINDOWS.items())
    for bad in (["40"], ["a", "b"], ["40", "0"]):
        with pytest.raises(UsageError):
            parse_window(bad)
    assert (to_8_bits(np.full((2, 2), 7), 7, 7) == 0).all()


def test_a_class_a_file_and_overlaps_and_patterns(tmp_path):
    """TotalSegmentator's layout: s001/ct.nii.gz, s001/segmentations/liver.nii.gz. Two of the masks overlap."""
    for case in ("s001", "s002"):
        save(itk(made_scan()), tmp_path / "set" / case / "ct.nii.gz")
        save(itk((made_labels() == 1).astype(np.uint8)), tmp_path / "set" / case / "segmentations" / "body.nii.gz")
        save(
            itk(block(SHAPE, (4, 9), (5, 12), (6, 13), value=1)),
            tmp_path / "set" / case / "segmentations" / "liver.nii.gz",
        )
    output = run(
        "volumes",
        "--images",
        tmp_path / "set",
        "--labels",
        tmp_path / "set",
        "--image_pattern",
        "{case}/ct.nii.gz",
        "--label_pattern",
        "{case}/segmentations/{class}.nii.gz",
        *EVERYTHING,
        "--axes",
        "z",
        output=tmp_path / "out",
    )
    assert Counter((row["case"], row["class"]) for row in metadata(output)) == {
        (case, name): n for case in ("s001", "s002") for name, n in (("body", 8), ("liver", 5))
    }
    assert mask_of(output, row_of_case(output, "s001", 5, "body")).sum() == 100
    assert mask_of(output, row_of_case(output, "s001", 5, "liver")).sum() == 49
    output = run(
        "volumes",
        "--images",
        tmp_path / "set",
        "--labels",
        tmp_path / "set",
        "--image_pattern",
        "{case}/ct.nii.gz",
        "--label_pattern",
        "{case}/segmentations/{class}.nii.gz",
        *EVERYTHING,
        "--axes",
        "z",
        "--patient",
        "(s).*",
        output=tmp_path / "one",
    )
    assert {row["case"] for row in metadata(output)} == {"s"}


def row_of_case(output: Path, case: str, slice: int, class_name: str) -> dict[str, str]:
    (found,) = (
        row
        for row in metadata(output)
        if (row["case"], row["axis"], row["slice"], row["class"]) == (case, "z", str(slice), class_name)
    )
    return found


def test_names_that_slicer_keeps_in_a_segmentation(tmp_path):
    """.seg.nrrd names its segments; those that overlap are in layers, which are channels."""
    save(itk(made_scan()), tmp_path / "set" / "D1" / "D1.nrrd")
    layers = sitk.JoinSeries(
        [itk((made_labels() == 1).astype(np.uint8)), itk(block(SHAPE, (4, 9), (5, 12), (6, 13), value=3))]
    )
    vector = sitk.Compose([layers[:, :, :, i] for i in (0, 1)])
    for i, (name, layer, value) in enumerate((("Aorta", 0, 1), ("False lumen", 1, 3))):
        vector.SetMetaData(f"Segment{i}_Name", name)
        vector.SetMetaData(f"Segment{i}_Layer", str(layer))
        vector.SetMetaData(f"Segment{i}_LabelValue", str(value))
    save(vector, tmp_path / "set" / "D1" / "D1.seg.nrrd")
    output = run(
        "volumes",
        "--images",
        tmp_path / "set",
        "--labels",
        tmp_path / "set",
        "--image_pattern",
        "{case}/{case}.nrrd",
        "--label_pattern",
        "{case}/{case}.seg.nrrd",
        *EVERYTHING,
        "--axes",
        "z",
        output=tmp_path / "out",
    )
    assert Counter(row["class"] for row in metadata(output)) == {"Aorta": 8, "False lumen": 5}
    assert mask_of(output, row_of(output, "z", 5, "False lumen")).sum() == 49


def test_numpy_arrays(tmp_path):
    """ToothFairy's layout: P1/data.npy, P1/gt_alpha.npy."""
    for case in ("P1", "P2"):
        (tmp_path / "set" / case).mkdir(parents=True)
        np.save(tmp_path / "set" / case / "data.npy", made_scan())
        np.save(tmp_path / "set" / case / "gt_alpha.npy", made_labels() == 1)
    command = (
        "volumes",
        "--images",
        tmp_path / "set",
        "--labels",
        tmp_path / "set",
        "--image_pattern",
        "{case}/data.npy",
        "--label_pattern",
        "{case}/gt_alpha.npy",
        "--classes",
        "canal=1",
        *EVERYTHING,
    )
    output = run(*command, output=tmp_path / "out")
    rows = metadata(output)
    assert {(row["case"], row["class"], row["spacing"]) for row in rows} == {("P1", "canal", ""), ("P2", "canal", "")}
    assert (mask_of(output, row_of_case(output, "P1", 5, "canal")) == (made_labels()[5] == 1)).all()
    for bad in (np.array([{}]), np.zeros((3, 3))):
        np.save(tmp_path / "set" / "P1" / "data.npy", bad)
        with pytest.raises(SystemExit, match="data.npy: "):
            run(*command, output=tmp_path / "out")


# ---------------------------------------------------------------- real volumes


def test_mni152_as_nifti(tmp_path):
    """The template of nilearn, with its maps of grey and white matter as labels: 1 mm, in another orientation."""
    datasets = pytest.importorskip("nilearn.datasets")
    folder = Path(datasets.__file__).parent / "data"
    kinds = {kind: folder / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz" for kind in ("t1", "gm", "wm")}
    (tmp_path / "scans").mkdir()
    shutil.copy(kinds["t1"], tmp_path / "scans" / "mni152.nii.gz")
    for name, kind in (("grey matter", "gm"), ("white matter", "wm")):
        save(sitk.ReadImage(str(kinds[kind])) > 127, tmp_path / "labels" / "mni152" / f"{name}.nii.gz")
    output = of_volumes(
        tmp_path,
        "--label_pattern",
        "{case}/{class}.nii.gz",
        "--image_pattern",
        "{case}.nii.gz",
        "--modality",
        "mr_t1",
        "--step",
        20,
    )
    rows = metadata(output)
    assert {row["axis"] for row in rows} == {"x", "y", "z"} and {row["class"] for row in rows} == {
        "grey matter",
        "white matter",
    }
    assert {row["spacing"] for row in rows} == {"1x1"} and {row["case"] for row in rows} == {"mni152"}
    # In axial slices the cerebellum is at the bottom (the back), in the others at the bottom too (the feet).
    low = image_of(output, next(row for row in rows if row["axis"] == "z" and row["slice"] == "20"))
    assert low.shape == (233, 197) and low[120:].mean() > low[:120].mean()
    sagittal = image_of(output, next(row for row in rows if row["axis"] == "x" and row["slice"] == "80"))
    assert sagittal.shape == (189, 233)
    filled = np.nonzero(sagittal.max(1) > 100)[0]
    assert filled.min() > 20  # the template has room above the head, and is cut off at the neck
    for row in rows:
        assert mask_of(output, row).shape == image_of(output, row).shape
    batch = training_batch(output, 64)
    assert batch.masks.float().mean() > 0.01


def test_nibabel_s_volumes(tmp_path):
    """Real headers, one of them turned by an oblique matrix; the labels are thresholds of the scans."""
    data = Path(pytest.importorskip("nibabel").__file__).parent / "tests" / "data"
    for name in ("anatomical.nii", "reoriented_anat_moved.nii"):
        scan = sitk.ReadImage(str(data / name))
        (tmp_path / "scans").mkdir(exist_ok=True)
        shutil.copy(data / name, tmp_path / "scans" / name)
        array = sitk.GetArrayFromImage(scan)
        label = sitk.GetImageFromArray((array > np.percentile(array, 70)).astype(np.uint8))
        label.CopyInformation(scan)
        save(label, tmp_path / "labels" / name)
    output = of_volumes(tmp_path, "--classes", "bright=1")
    assert {row["case"] for row in metadata(output)} == {"anatomical", "reoriented_anat_moved"}
    training_batch(output)
    shutil.copy(data / "example4d.nii.gz", tmp_path / "scans" / "four.nii.gz")
    four = sitk.ReadImage(str(data / "example4d.nii.gz"))
    save(four[:, :, :, 1] > 100, tmp_path / "labels" / "four.nii.gz")
    said = error_of(tmp_path)
    assert "four.nii.gz: is 4D (128 x 96 x 24 x 2: 2 volumes); choose one with --frame 0 .. 1" in said
    output = of_volumes(tmp_path, "--frame", 1, "--min_aspect", 0, "--step", 8)
    assert "four" in {row["case"] for row in metadata(output)}
    assert "--frame goes from 0 to 1" in error_of(tmp_path, "--frame", 2)


# ---------------------------------------------------------------- bad volumes


def test_grids_that_differ_are_refused_resampled_or_ignored(tmp_path):
    make_source(tmp_path)
    moved = itk(made_labels(), origin=(2.0, 0.0, 0.0))
    save(moved, tmp_path / "labels" / "one.nii.gz")
    said = error_of(tmp_path)
    assert "one.nii.gz: is not on the grid of" in said and "2 mm apart" in said and "--geometry resample" in said
    shifted = mask_of(tmp_path / "out", row_of(of_volumes(tmp_path, "--geometry", "resample"), "z", 5, "label_001"))
    assert (shifted == (block(SHAPE[1:], (4, 14), (7, 17)) > 0)).all()
    same = mask_of(tmp_path / "out", row_of(of_volumes(tmp_path, "--geometry", "ignore"), "z", 5, "label_001"))
    assert (same == (block(SHAPE[1:], (4, 14), (5, 15)) > 0)).all()
    save(
        itk(np.repeat(np.repeat(made_labels(), 2, 1), 2, 2), spacing=(0.5, 0.5, 1), origin=(-0.25, -0.25, 0)),
        tmp_path / "labels" / "one.nii.gz",
    )
    assert "52 x 40 x 14 voxels against 26 x 20 x 14" in error_of(tmp_path)
    assert "so its place cannot be ignored" in error_of(tmp_path, "--geometry", "ignore")
    finer = mask_of(tmp_path / "out", row_of(of_volumes(tmp_path, "--geometry", "resample"), "z", 5, "label_001"))
    assert (finer == (block(SHAPE[1:], (4, 14), (5, 15)) > 0)).all()
    turn = np.array([[0.98, -np.sqrt(1 - 0.98**2), 0], [np.sqrt(1 - 0.98**2), 0.98, 0], [0, 0, 1]])
    save(itk(made_labels(), direction=turn.ravel().tolist()), tmp_path / "labels" / "one.nii.gz")
    assert "turned against each other" in error_of(tmp_path)
    almost = itk(made_labels(), origin=(0.02, 0, 0))
    assert not grids_differ(canonical(almost), canonical(itk(made_scan())))  # as rounding in headers moves it


def test_intensities_that_are_negative_or_no_numbers(tmp_path, capsys):
    make_source(tmp_path)
    scan = made_scan().astype(np.float32)
    scan[5, 0, :3] = np.nan
    scan[5, 1, 0] = np.inf
    save(itk(scan), tmp_path / "scans" / "one.nii.gz")
    output = of_volumes(tmp_path, "--axes", "z")
    assert "4 voxels that are no numbers, set to the lowest value" in capsys.readouterr().out
    image = image_of(output, row_of(output, "z", 5, "label_001"))
    assert image[0, 0] == 0 and image.max() == 255 and len(np.unique(image)) > 100
    save(itk(scan * np.nan), tmp_path / "scans" / "one.nii.gz")
    assert "one.nii.gz: has no finite value at all" in error_of(tmp_path)


@pytest.mark.parametrize(
    "labels, said",
    [
        (made_labels().astype(np.float32) / 3, "not whole numbers, so it is no label map"),
        (-made_labels().astype(np.int16), "from -2 to 0"),
        (made_labels().astype(np.int32) * 70000, "from 0 to 140000"),
        (np.stack([made_labels()] * 2, -1), "2 channels a voxel and names no segments"),
    ],
)
def test_label_volumes_that_are_none(tmp_path, labels, said):
    make_source(tmp_path, ".mha")
    save(sitk.GetImageFromArray(labels, isVector=labels.ndim == 4), tmp_path / "labels" / "one.mha")
    assert said in error_of(tmp_path)


def test_label_volumes_of_any_number_type(tmp_path):
    make_source(tmp_path)
    for kind in (np.float64, np.int16, np.int64, np.uint32):
        save(itk(made_labels().astype(kind)), tmp_path / "labels" / "one.nii.gz")
        assert Counter(row["class"] for row in metadata(of_volumes(tmp_path, "--axes", "z"))) == {
            "label_001": 8,
            "label_002": 6,
        }


def test_unexpected_values_and_an_empty_case(tmp_path, capsys):
    make_source(tmp_path)
    assert "has values that no class is named for: 2" in error_of(tmp_path, "--classes", "liver=1")
    assert {
        r["class"] for r in metadata(of_volumes(tmp_path, "--classes", "liver=1", "--unknown_values", "ignore"))
    } == {"liver"}
    save(itk(made_scan()), tmp_path / "scans" / "two.nii.gz")
    save(itk(made_labels() * 0), tmp_path / "labels" / "two.nii.gz")
    capsys.readouterr()
    of_volumes(tmp_path)
    assert "1 case(s) have no object and are in no index, such as two" in capsys.readouterr().out


def test_files_that_cannot_be_read(tmp_path):
    make_source(tmp_path)
    path = tmp_path / "scans" / "one.nii.gz"
    whole = path.read_bytes()
    for content in (whole[:300], b"", gzip.compress(b"no image" * 100)):
        path.write_bytes(content)
        assert "one.nii.gz: " in error_of(tmp_path) and "cannot be read" in error_of(tmp_path)
    for suffix in (".nii", ".mha", ".nrrd"):
        half = save(itk(made_scan()), tmp_path / "half" / f"one{suffix}")
        half.write_bytes(half.read_bytes()[:-1000])
        with pytest.raises(SystemExit, match=f"one{suffix}: cannot be read"):
            run("volumes", "--images", tmp_path / "half", "--labels", tmp_path / "labels", output=tmp_path / "out")
        half.unlink()
    save(sitk.Compose([itk(made_scan())] * 3), path)
    assert "has 3 channels a voxel" in error_of(tmp_path)
    path.write_bytes(whole)
    (tmp_path / "scans" / "other.nii.gz").write_bytes(whole)
    (tmp_path / "scans" / "one.nii.gz").unlink()
    assert "no label in" in error_of(tmp_path) and "{case}_image.nii.gz" in error_of(tmp_path)
    save(itk(made_scan()), tmp_path / "scans" / "one.nii.gz")
    for kind in ("scans", "labels"):
        save(itk(made_scan()), tmp_path / kind / "one.mha")
        assert "2 files belong to the case 'one'" in error_of(tmp_path)
        (tmp_path / kind / "one.mha").unlink()
    with pytest.raises(SystemExit, match="give --images and --labels, or --dicom"):
        run("volumes", output=tmp_path / "out")


# ---------------------------------------------------------------- DICOM


def stack_of(name: str, folder: Path, count: int, step: float = 2.0, **changes) -> list[Path]:
    """A series of `count` slices made of one real file of pydicom, each shifted by a few rows to tell them apart."""
    source = pydicom.dcmread(get_testdata_file(name, download=False))
    series, paths = generate_uid(), []
    position = np.array(source.ImagePositionPatient, float)
    normal = np.cross(*np.array(source.ImageOrientationPatient, float).reshape(2, 3))
    folder.mkdir(parents=True, exist_ok=True)
    pixels = source.pixel_array
    for i in range(count):
        slice = source.copy()
        slice.SeriesInstanceUID, slice.SOPInstanceUID = series, generate_uid()
        slice.file_meta.MediaStorageSOPInstanceUID = slice.SOPInstanceUID
        slice.ImagePositionPatient = (position + i * step * normal).round(4).tolist()
        slice.InstanceNumber = i + 1
        slice.PixelData = np.roll(pixels, i, 0).tobytes()
        for key, value in changes.items():
            setattr(slice, key, value)
        paths.append(folder / f"IM{(7 * i) % count:03d}")  # in another order than the slices'
        slice.save_as(paths[-1])
    return paths


def segmentation_of(paths: list[Path], masks: dict[str, np.ndarray], target: Path, kind: str = "BINARY") -> None:
    """A DICOM-SEG by highdicom; masks: {label: (slices, rows, columns)}, slices in the order of paths."""
    source = [pydicom.dcmread(path) for path in paths]
    code = highdicom.sr.CodedConcept("91723000", "SCT", "Anatomical structure")
    algorithm = highdicom.AlgorithmIdentificationSequence("test", code, "1")
    segments = [
        highdicom.seg.SegmentDescription(i, label, code, code, "AUTOMATIC", algorithm)
        for i, label in enumerate(masks, 1)
    ]
    pixels = np.stack([*masks.values()], -1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        highdicom.seg.Segmentation(
            source, pixels, kind, segments, generate_uid(), 99, generate_uid(), 1, "maker", "model", "1", "1"
        ).save_as(target)


def structures_of(paths: list[Path], contours: dict[str, list[np.ndarray]], target: Path) -> None:
    """An RTSTRUCT; contours: {label: [(N, 3) points in mm, ...]}."""
    source = pydicom.dcmread(paths[0], stop_before_pixels=True)
    data = Dataset()
    data.SOPClassUID, data.SOPInstanceUID = UID("1.2.840.10008.5.1.4.1.1.481.3"), generate_uid()
    data.Modality = "RTSTRUCT"
    data.PatientID = source.PatientID
    data.StudyInstanceUID = source.StudyInstanceUID
    data.SeriesInstanceUID = generate_uid()
    series, study, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = source.SeriesInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID, frame.RTReferencedStudySequence = source.FrameOfReferenceUID, [study]
    data.ReferencedFrameOfReferenceSequence = [frame]
    add_contours(data, contours)
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    data.save_as(target, enforce_file_format=True)


def of_dicom(folder: Path, *flags: object, output: Path | None = None) -> Path:
    return run("volumes", "--dicom", folder, *EVERYTHING, *flags, output=output or folder.parent / "out")


def dicom_error(folder: Path, *flags: object) -> str:
    return fails(lambda: of_dicom(folder, *flags))


@pytest.mark.parametrize(
    "name, modality, kind", [("CT_small.dcm", "ct", "BINARY"), ("MR_small.dcm", "mr", "FRACTIONAL")]
)
def test_series_with_a_dicom_seg(tmp_path, name, modality, kind):
    """Slices of pydicom's real CT and MR, with segments that overlap and that leave slices out."""
    study = tmp_path / "study"
    paths = stack_of(name, study / "series", 6)
    rows, columns = pydicom.dcmread(paths[0]).pixel_array.shape
    one, two = np.zeros((2, 6, rows, columns), np.uint8)
    one[1:4, 10:40, 5:30] = 1
    two[2:5, 20:50, 10:35] = 1
    values = {"Liver": one, "Tumour": two}
    segmentation_of(
        paths,
        {k: v.astype(np.float32) * 0.8 for k, v in values.items()} if kind == "FRACTIONAL" else values,
        study / "seg.dcm",
        kind,
    )
    output = of_dicom(study, "--window", *((-300, 2500) if modality == "ct" else (600, 1600)))
    table = metadata(output)
    assert Counter((row["axis"], row["class"]) for row in table)["z", "Liver"] == 3 and {
        row["modality"] for row in table
    } == {modality}
    for slice, place in enumerate(paths):
        image = pydicom.dcmread(place)
        for label, mask in values.items():
            if mask[slice].any():
                row = row_of(output, "z", slice, label)
                assert (mask_of(output, row) == mask[slice]).all()
                low, high = (-1550, 950) if modality == "ct" else (-200, 1400)
                stored = image.pixel_array * float(image.get("RescaleSlope") or 1) + float(
                    image.get("RescaleIntercept") or 0
                )
                assert (
                    np.abs(image_of(output, row) - np.clip((stored - low) * 255 / (high - low), 0, 255)).max() <= 0.51
                )
    patient = str(pydicom.dcmread(paths[0]).PatientID)
    assert {row["case"] for row in table} == {patient}
    training_batch(output)


def test_series_with_an_rtstruct(tmp_path):
    """Contours in millimetres, one with a hole."""
    study = tmp_path / "study"
    paths = stack_of("CT_small.dcm", study, 6)
    header = pydicom.dcmread(paths[2], stop_before_pixels=True)
    origin, (row_mm, column_mm) = np.array(header.ImagePositionPatient, float), map(float, header.PixelSpacing)

    def square(left: float, top: float, right: float, bottom: float) -> np.ndarray:
        corners = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
        return np.column_stack(
            [origin[0] + corners[:, 0] * column_mm, origin[1] + corners[:, 1] * row_mm, np.full(4, origin[2])]
        )

    structures_of(
        paths,
        {"Bladder": [square(10 - 0.5, 20 - 0.5, 60 - 0.5, 50 - 0.5), square(19.5, 29.5, 29.5, 39.5)]},
        study / "rt.dcm",
    )
    output = of_dicom(study, "--axes", "z")
    (row,) = metadata(output)
    expected = block((128, 128), (20, 50), (10, 60))
    expected[30:40, 20:30] = 0
    assert (mask_of(output, row) == (expected > 0)).all() and (row["slice"], row["class"]) == ("2", "Bladder")
    training_batch(output)


def test_points_inside_a_polygon_as_opencv_has_them():
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    polygon = np.column_stack([20.3 + 13.1 * np.cos(angles), 17.8 + 9.4 * np.sin(angles)])
    mask = inside(polygon, 36, 44)
    expected = np.array(
        [[cv2.pointPolygonTest(polygon.astype(np.float32), (x, y), False) > 0 for x in range(44)] for y in range(36)]
    )
    assert (mask == expected).all() and mask.sum() > 300
    assert (
        inside(polygon - (30, 0), 36, 44) == np.roll(inside(polygon, 36, 74), -30, 1)[:, :44]
    ).all()  # cut off by the border


def test_a_real_dicom_seg(tmp_path, capsys):
    """pydicom's segmentation of a liver, on a CT with the geometry and the identifiers it names."""
    source = pydicom.dcmread(get_testdata_file("liver_1frame.dcm", download=False))
    study = tmp_path / "study"
    study.mkdir()
    shutil.copy(get_testdata_file("liver_1frame.dcm", download=False), study / "liver.dcm")
    template = pydicom.dcmread(get_testdata_file("CT_small.dcm", download=False))
    for i, item in enumerate(source.ReferencedSeriesSequence[0].ReferencedInstanceSequence):
        template.SOPInstanceUID = template.file_meta.MediaStorageSOPInstanceUID = item.ReferencedSOPInstanceUID
        template.SeriesInstanceUID = source.ReferencedSeriesSequence[0].SeriesInstanceUID
        template.PatientID, template.FrameOfReferenceUID = source.PatientID, source.FrameOfReferenceUID
        template.Rows = template.Columns = 512
        template.PixelSpacing = source.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
        template.ImagePositionPatient = (
            source.PerFrameFunctionalGroupsSequence[i].PlanePositionSequence[0].ImagePositionPatient
        )
        template.PixelData = np.arange(512 * 512, dtype=np.int16).tobytes()
        template.save_as(study / f"ct{i}")
    output = of_dicom(study, "--min_area", 0)
    rows = metadata(output)
    assert {(row["class"], row["axis"], row["case"]) for row in rows} == {("Liver", "z", "99000")}
    drawn = np.zeros((512, 512), bool)
    for row in rows:
        drawn |= mask_of(output, row)
    assert (drawn == (source.pixel_array > 0)).all() and drawn.sum() > 5000
    assert "slices along x below --min_aspect" in capsys.readouterr().out


def test_a_single_dicom_file_and_a_folder_of_slices_with_label_volumes(tmp_path):
    for name in ("CT_small", "MR_small"):
        (tmp_path / "scans").mkdir(exist_ok=True)
        shutil.copy(get_testdata_file(f"{name}.dcm", download=False), tmp_path / "scans" / f"{name}.dcm")
        scan = sitk.ReadImage(str(tmp_path / "scans" / f"{name}.dcm"))
        save(scan > 700, tmp_path / "labels" / f"{name}.nii.gz")
    output = of_volumes(tmp_path, "--classes", "bright=1")
    assert {row["axis"] for row in metadata(output)} == {"z"} and {row["case"] for row in metadata(output)} == {
        "CT_small",
        "MR_small",
    }
    training_batch(output)

    stack_of("CT_small.dcm", tmp_path / "folders" / "p1" / "ct", 5)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "folders" / "p1" / "ct")))
    save(reader.Execute() > 0, tmp_path / "folders" / "p1" / "label.nii.gz")
    output = run(
        "volumes",
        "--images",
        tmp_path / "folders",
        "--labels",
        tmp_path / "folders",
        "--image_pattern",
        "{case}/ct/",
        "--label_pattern",
        "{case}/label.nii.gz",
        *EVERYTHING,
        output=tmp_path / "out2",
    )
    assert {row["slice"] for row in metadata(output)} == {"0", "1", "2", "3", "4"}


def test_dicom_that_is_refused(tmp_path):
    def fresh(name: str, count: int = 4, **changes) -> tuple[Path, list[Path]]:
        study = tmp_path / name
        paths = stack_of("CT_small.dcm", study, count, **changes)
        mask = np.zeros((count, 128, 128), np.uint8)
        mask[:, 20:60, 20:60] = 1
        segmentation_of(paths, {"x": mask}, study / "seg.dcm")
        return study, paths

    study, paths = fresh("missing", 5)
    paths[2].unlink()
    assert "slices are missing or uneven: 2 to 4 mm apart" in dicom_error(study)
    study, paths = fresh("double")
    twice = pydicom.dcmread(paths[1])
    twice.SOPInstanceUID = twice.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    twice.save_as(study / "again")
    assert "another slice of its series is in the same place" in dicom_error(study)
    study, paths = fresh("codec")
    for path in paths:
        slice = pydicom.dcmread(path)
        slice.file_meta.TransferSyntaxUID = HTJ2KLossless
        slice.PixelData = encapsulate([b"\xff\x4f\xff\x51" + bytes(200)])
        slice["PixelData"].is_undefined_length = True
        slice.save_as(path)
    assert "is compressed as High-Throughput JPEG 2000" in dicom_error(study) and "gdcmconv --raw" in dicom_error(study)
    study, paths = fresh("elsewhere")
    for path in paths:
        path.unlink()
    stack_of("MR_small.dcm", study, 3)
    assert "refers to series" in dicom_error(study) and "not in the folder" in dicom_error(study)
    study = tmp_path / "unlabelled"
    stack_of("MR_small.dcm", study, 3)
    assert "neither DICOM-SEG nor RTSTRUCT" in dicom_error(study)
    assert "leave out" in dicom_error(study, "--modality", "mr")
    (tmp_path / "none").mkdir()
    assert "holds no DICOM series" in dicom_error(tmp_path / "none")
    study, paths = fresh("moved")
    broken = pydicom.dcmread(study / "seg.dcm")
    for frame in broken.PerFrameFunctionalGroupsSequence:
        position = frame.PlanePositionSequence[0]
        position.ImagePositionPatient = [
            float(position.ImagePositionPatient[0]) + 0.3,
            *position.ImagePositionPatient[1:],
        ]
    broken.save_as(study / "seg.dcm")
    assert "seg.dcm: is not on the grid of" in dicom_error(study)
    assert len(metadata(of_dicom(study, "--geometry", "resample", "--axes", "z"))) == 4
    (study / "seg.dcm").write_bytes((study / "seg.dcm").read_bytes()[:4000])
    assert "seg.dcm: " in dicom_error(study)


@pytest.mark.parametrize(
    "name, said",
    [
        ("SC_rgb_rle.dcm", "is a colour image"),
        ("rtdose_rle.dcm", "has 15 frames in one file"),
        ("MR_truncated.dcm", "cannot be read"),
    ],
)
def test_real_dicom_files_that_are_refused(tmp_path, name, said):
    """Colour, several frames, cut off: files that pydicom ships."""
    (tmp_path / "scans").mkdir()
    shutil.copy(get_testdata_file(name, download=False), tmp_path / "scans" / "one.dcm")
    save(itk(made_labels()), tmp_path / "labels" / "one.nii.gz")
    assert said in error_of(tmp_path)


@pytest.mark.parametrize(
    "name", ["MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_bigendian.dcm"]
)
def test_compressed_dicom_with_a_codec(tmp_path, name):
    for target, source in (("one", name), ("two", "MR_small.dcm")):
        (tmp_path / "scans").mkdir(exist_ok=True)
        shutil.copy(get_testdata_file(source, download=False), tmp_path / "scans" / f"{target}.dcm")
        save(
            sitk.ReadImage(get_testdata_file("MR_small.dcm", download=False)) > 700,
            tmp_path / "labels" / f"{target}.nii.gz",
        )
    output = of_volumes(tmp_path, "--components", "False")
    one, two = (
        image_of(output, next(row for row in metadata(output) if row["case"] == case)) for case in ("one", "two")
    )
    assert (one == two).all()


# ---------------------------------------------------------------- nnU-Net


def nnunet(folder: Path, labels: dict, channels: dict[str, str], ending: str = ".nii.gz", **more) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(
        json.dumps({"channel_names": channels, "labels": labels, "numTraining": 2, "file_ending": ending, **more})
    )
    return folder


def test_nnunet_volumes_with_channels_and_regions(tmp_path):
    folder = nnunet(
        tmp_path / "Dataset001_X", {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}, {"0": "T1", "1": "FLAIR"}
    )
    labels = made_labels()
    labels[0, 0] = 3
    for images, masks, case in (
        ("imagesTr", "labelsTr", "c1"),
        ("imagesTr", "labelsTr", "c2"),
        ("imagesTs", "labelsTs", "c3"),
    ):
        for channel in (0, 1):
            save(itk(made_scan() * (1 + channel)), folder / images / f"{case}_{channel:04d}.nii.gz")
        save(itk(labels), folder / masks / f"{case}.nii.gz")
    output = run("nnunet", folder, *EVERYTHING, "--axes", "z", output=tmp_path / "out")
    rows = metadata(output)
    assert Counter((row["case"], row["modality"], row["class"]) for row in rows) == {
        (case, modality, name): n
        for case in ("c1", "c2", "c3")
        for modality in ("t1", "flair")
        for name, n in (("whole", 14), ("core", 6))
    }
    whole = [
        row for row in rows if (row["case"], row["modality"], row["slice"], row["class"]) == ("c1", "t1", "5", "whole")
    ]
    assert [int(mask_of(output, row).sum()) for row in whole] == [100, 36]  # pieces of the union
    assert {row["case"] for row in rows if row["image"] in index(output, "test")} == {"c3"}
    training_batch(output)
    rows = metadata(run("nnunet", folder, *EVERYTHING, "--channels", "FLAIR", output=tmp_path / "out"))
    assert {row["modality"] for row in rows} == {"flair"}
    for flags, said in (
        (("--channels", "T9"), "0 T1, 1 FLAIR"),
        (("--window", "lung", "--scale", "volume"), "--scale"),
    ):
        with pytest.raises(SystemExit, match=said):
            run("nnunet", folder, *flags, output=tmp_path / "out")
    (folder / "imagesTr" / "c1_0001.nii.gz").unlink()
    with pytest.raises(SystemExit, match="lacks an image.*c1; restore"):
        run("nnunet", folder, output=tmp_path / "out")


def test_nnunet_pictures(tmp_path):
    folder = nnunet(tmp_path / "Dataset002_Y", {"background": 0, "road": 1}, {"0": "R", "1": "G", "2": "B"}, ".png")
    for case in ("x", "y"):
        for channel in range(3):
            write(folder / "imagesTr" / f"{case}_{channel:04d}.png", picture(seed=channel)[..., 0])
        write(folder / "labelsTr" / f"{case}.png", block((24, 30), (2, 12), (3, 13), value=1))
    rows = metadata(run("nnunet", folder, "--channels", "R", *EVERYTHING, output=tmp_path / "out"))
    assert [(row["case"], row["modality"], row["class"], row["axis"]) for row in rows] == [
        ("x", "r", "road", ""),
        ("y", "r", "road", ""),
    ]
    assert len(metadata(run("nnunet", folder, *EVERYTHING, output=tmp_path / "out"))) == 6
    training_batch(tmp_path / "out")
    for path in (folder / "imagesTr").glob("*_000[12].png"):  # the usual: colour pictures have one file
        path.unlink()
        write(path.with_name(f"{path.name[0]}_0000.png"), picture())
    rows = metadata(run("nnunet", folder, *EVERYTHING, output=tmp_path / "out"))
    assert [row["modality"] for row in rows] == ["rgb", "rgb"] and (
        image_of(tmp_path / "out", rows[0]) == picture()
    ).all()
    with pytest.raises(SystemExit, match="--window: .* holds pictures"):
        run("nnunet", folder, "--window", "lung", output=tmp_path / "out")


def test_nnunet_s_splits_and_listed_files(tmp_path):
    source = make_source(tmp_path)
    save(itk(made_scan()), source / "scans" / "two.nii.gz")
    listed = {
        case: {"images": [f"../scans/{scan}.nii.gz"], "label": "../labels/one.nii.gz"}
        for case, scan in (("a", "one"), ("b", "two"))
    }
    folder = nnunet(tmp_path / "Dataset003_Z", {"background": 0, "l": 1, "s": 2}, {"0": "CT"}, dataset=listed)
    (folder / "labelsTr").mkdir()
    (tmp_path / "splits_final.json").write_text(
        json.dumps([{"train": ["a"], "val": ["b"]}, {"train": ["b"], "val": ["a"]}])
    )
    output = run("nnunet", folder, "--split_file", tmp_path / "splits_final.json", output=tmp_path / "out")
    cases = [
        {row["case"] for row in metadata(output / fold) if row["image"] in index(output / fold, "val")}
        for fold in ("fold_0", "fold_1")
    ]
    assert cases == [{"b"}, {"a"}]


WHOLE = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}, "file_ending": ".nii.gz"}


@pytest.mark.parametrize(
    "content, said",
    [
        ({"modality": {"0": "CT"}, "labels": {}}, "version 1"),
        ({"channel_names": {}, "labels": {}}, "lacks 'file_ending'"),
        ([], "holds a list"),
        (None, "give the folder of one dataset"),
        (WHOLE | {"channel_names": {"CT": "0"}}, "'channel_names' must be"),
        (WHOLE | {"channel_names": ["CT"]}, "'channel_names' must be"),
        (WHOLE | {"labels": ["liver"]}, "'labels' must be"),
        (WHOLE | {"labels": {"liver": "CT"}}, "label 'liver' must have a whole number"),
        (WHOLE | {"labels": {"liver": [1, [2]]}}, "label 'liver' must have a whole number"),
        (WHOLE | {"labels": {"liver": float("inf")}}, "label 'liver' must have a whole number"),
        (WHOLE | {"labels": {"liver": None}}, "label 'liver' must have a whole number"),
        (WHOLE | {"file_ending": 3}, "'file_ending' must be an ending"),
        (WHOLE | {"file_ending": ""}, "'file_ending' must be an ending"),
        (WHOLE | {"dataset": ["a"]}, "'dataset' must be"),
        (WHOLE | {"dataset": {"a": {"images": "a.png", "label": "b.png"}}}, "'dataset' must be"),
        (WHOLE | {"dataset": {"a": {"images": ["a.png"]}}}, "'dataset' must be"),
    ],
)
def test_nnunet_descriptions_that_are_none(tmp_path, content, said):
    (tmp_path / "set").mkdir()
    if content is not None:
        (tmp_path / "set" / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(SystemExit, match=said):
        run("nnunet", tmp_path / "set", output=tmp_path / "out")
