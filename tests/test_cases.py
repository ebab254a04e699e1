"""The recorded cases of ../shared/cases, each through the command that a user would type; one section a folder."""

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("SimpleITK", reason="the extra data is not installed")

import SimpleITK as sitk

from sam_med2d.commands import make_index, segment_volume


@pytest.fixture
def cases(shared) -> Path:
    return shared / "cases"


def refusal(main, *words: object) -> str:
    """The one line in which a command ends."""
    with pytest.raises(SystemExit) as end:
        main([*map(str, words)])
    assert str(end.value).startswith("error: ") and "\n" not in str(end.value)
    return str(end.value)


def rows_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metadata.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# ---------------------------------------------------------------- nifti-orientations


def segmented(cases: Path, tmp_path: Path, code: str, *prompts: object) -> tuple[str, np.ndarray]:
    """-> what the command said was wrong, or nothing; and the labels as they are stored, x first."""
    output = tmp_path / f"{code}.nii.gz"
    source = cases / "nifti-orientations" / f"{code}.nii.gz"
    words = ["--input", source, "--output", output, "--sam_checkpoint", "small", *prompts]
    try:
        segment_volume.main([*map(str, words)])
    except SystemExit as end:
        assert str(end.code).startswith("error: ") and "\n" not in str(end.code)
        return str(end.code).replace(code, "CODE"), np.zeros(0)
    return "", sitk.GetArrayFromImage(sitk.ReadImage(str(output))).T


@pytest.mark.parametrize(
    "prompts, refused",
    [
        (("--point", 15, 15, 9.7), "(15, 15, 9.7)"),
        (("--point", 31.8, 15, 5), "(31.8, 15, 5)"),
        (("--point", 15, 31.5, 5), "(15, 31.5, 5)"),
        (("--point", -0.6, 15, 5), "(-0.6, 15, 5)"),
        (("--point", 15, 15, "nan"), "(15, 15, nan)"),
        (("--box", 4, 4, 9.5, 28, 28, 10.5), "(4, 4, 9.5, 28, 28, 10.5)"),
    ],
)
def test_prompts_outside_are_refused_alike_in_every_orientation(cases, tmp_path, prompts, refused) -> None:
    said = {segmented(cases, tmp_path, code, *prompts)[0] for code in ("lps", "ras", "lpi")}
    assert len(said) == 1
    (line,) = said
    assert refused in line and "outside the volume of 32 x 32 x 10 voxels" in line


@pytest.mark.parametrize(
    "prompts, slices",
    [
        (("--point", 15, 15, 9.4), [9]),
        (("--point", 31.4, -0.4, 4.5), [5]),
        (("--point", 15.3, 15, 3.5), [4]),
        (("--box", 4, 4, 3.5, 28, 28, 4.5), [4]),
        (("--box", 4, 4, 3, 28, 28, 7), [5, 3, 6]),
        (("--box", 4.3, 4, 2.2, 28, 27.6, 8.6), [5, 2, 8]),
    ],
)
def test_fractions_mean_the_same_voxels_in_every_orientation(cases, tmp_path, prompts, slices) -> None:
    """slices: the prompted one in the file's own numbers, and the bounds of a thick box."""
    rule = ("--least_iou", 0, "--shrink", 0, "--grow", 1e9, "--least_contrast", -1e9)
    rule = (*rule, "--least_area", 10**6 if len(slices) == 1 else 0)  # too large for any neighbour: the prompt's alone
    for code in ("lps", "ras", "lpi"):
        said, labels = segmented(cases, tmp_path, code, *prompts, *rule)
        assert not said and labels.shape == (32, 32, 10)
        with open(tmp_path / f"{code}.csv", newline="") as file:
            (row,) = csv.DictReader(file)
        first, last = int(row["first_slice"]), int(row["last_slice"])
        if len(slices) == 1:
            assert (first, last) == (slices[0], slices[0]), code
        else:
            assert slices[1] <= first <= slices[0] <= last <= slices[2], code
        present = np.flatnonzero(labels.any(axis=(0, 1)))
        assert set(present.tolist()) <= set(range(first, last + 1))


# ---------------------------------------------------------------- nifti-scaled-labels


def test_scaled_labels_are_whole_numbers(cases, tmp_path) -> None:
    source = cases / "nifti-scaled-labels" / "set"
    output = tmp_path / "out"
    words = ["volumes", "--images", source, "--labels", source, "--image_pattern", "{case}_img.nii.gz"]
    words += ["--label_pattern", "{case}_seg.nii.gz", "--axes", "z", "--min_area", "0", "--ratios", "1", "0", "0"]
    make_index.main([*map(str, words), "--output", str(output), "--num_workers", "0", "--components", "False"])
    stored = np.asarray(sitk.GetArrayFromImage(sitk.ReadImage(str(source / "a_seg.nii.gz"))))
    right = np.rint(stored).astype(int)
    assert {row["class"] for row in rows_of(output)} == {f"label_{k:03d}" for k in np.unique(right)[1:]}
    for row in rows_of(output):
        mask = cv2.imread(str(output / row["mask"]), cv2.IMREAD_UNCHANGED) > 0
        assert (mask == (right[int(row["slice"])] == int(row["class"].removeprefix("label_")))).all()


def test_scaled_labels_of_120_classes(cases, tmp_path) -> None:
    """Stored as 16 bits with a slope: 8 reads as 8.0005. The same file plays the scan."""
    for kind in ("scans", "labels"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "x.nii.gz").write_bytes((cases / "nifti-scaled-labels" / "x.nii.gz").read_bytes())
    words = ["volumes", "--images", tmp_path / "scans", "--labels", tmp_path / "labels", "--axes", "z"]
    words += ["--min_area", 0, "--min_aspect", 0, "--ratios", 1, 0, 0, "--num_workers", 0, "--output", tmp_path / "out"]
    make_index.main([*map(str, words)])
    stored = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "labels" / "x.nii.gz")))
    right = {f"label_{k:03d}" for k in np.unique(np.rint(stored)).astype(int) if k}
    assert len(right) > 100 and {row["class"] for row in rows_of(tmp_path / "out")} == right
    index = json.loads((tmp_path / "out" / "image2label_train.json").read_text())
    assert sum(map(len, index.values())) == len(rows_of(tmp_path / "out"))
