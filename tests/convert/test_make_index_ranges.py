"""The command make-index on volumes: windows and what they cut off, sides in millimetres, frames, notes and limits."""

from collections import Counter

import numpy as np
import pytest

pytest.importorskip("SimpleITK", reason="the extra data is not installed")
pytest.importorskip("highdicom", reason="the extra data is not installed")

import SimpleITK as sitk

from sam_med2d.convert.saturation import ALL, lines
from tests.convert.helpers import contents, image_of, index, mask_of, metadata, run
from tests.convert.test_make_index_volumes import (
    EVERYTHING,
    error_of,
    itk,
    made_labels,
    made_scan,
    make_source,
    nnunet,
    of_volumes,
    row_of,
    save,
)


def test_the_aspect_of_a_slice_is_that_of_its_millimetres(tmp_path, capsys):
    """14 x 20 x 26 voxels of 1 x 1 x 3 mm: the slices along y are 42 x 26 mm, those along z 20 x 26 mm."""
    make_source(tmp_path, spacing=(1.0, 1.0, 3.0))
    rows = metadata(of_volumes(tmp_path, "--min_aspect", 0.6, "--min_area", 0))
    assert {row["axis"] for row in rows} == {"y", "z"}  # 42 x 20 mm along x
    said = capsys.readouterr().out
    assert "note: no slices along x: in mm, their short side is under 0.6 of the long one" in said
    assert "(1 case(s), such as one)" in said and "no slices along y" not in said
    assert "26 slices along x below --min_aspect" in said
    for kind in ("scans", "labels"):  # an array says nothing of millimetres
        np.save(tmp_path / kind / "one.npy", {"scans": made_scan(), "labels": made_labels()}[kind])
        (tmp_path / kind / "one.nii.gz").unlink()
    rows = metadata(of_volumes(tmp_path, "--min_aspect", 0.6, "--min_area", 0, output=tmp_path / "arrays"))
    assert {row["axis"] for row in rows} == {"x", "z"}  # 14 x 20 and 20 x 26 voxels; 14 x 26 is out


def test_labels_of_four_dimensions_with_a_frame(tmp_path):
    """A segmentation of every frame of a moving scan, and one of a scan that stands still."""
    first, second = made_labels(), np.roll(made_labels(), 2, axis=2)
    four = lambda *arrays: sitk.JoinSeries([itk(array) for array in arrays])
    save(four(made_scan(), made_scan()), tmp_path / "scans" / "one.nii.gz")
    for suffix in (".nii.gz", ".nrrd"):
        save(four(first, second), tmp_path / "labels" / f"one{suffix}")
        for frame, right in ((0, first), (1, second)):
            output = of_volumes(tmp_path, "--frame", frame, "--axes", "z", "--components", "False")
            assert (mask_of(output, row_of(output, "z", 5, "label_001")) == (right[5] == 1)).all()
        (tmp_path / "labels" / f"one{suffix}").unlink()
    save(itk(first), tmp_path / "labels" / "one.nii.gz")
    output = of_volumes(tmp_path, "--frame", 1, "--axes", "z")
    assert (mask_of(output, row_of(output, "z", 5, "label_001")) == (first[5] == 1)).all()


def test_what_a_window_cuts_off_is_counted_and_warned_of(tmp_path, capsys):
    make_source(tmp_path)
    of_volumes(tmp_path, "--axes", "z", "--window", -900, 10)
    said = capsys.readouterr().out
    output = tmp_path / "out"
    images = [image_of(output, row) for row in metadata(output)]
    pictures = np.stack([image_of(output, {"image": name}) for name in index(output)])
    labelled = np.concatenate([image[mask_of(output, row)] for image, row in zip(images, metadata(output))])
    for value in (0, 255):
        assert f"{100 * (pictures == value).mean():.3g} % " in said.partition("at the ends of the range: ")[2]
        assert f"{100 * (labelled == value).mean():.3g} %" in said.partition("of labelled pixels")[2]
    for name in ("label_001", "label_002"):
        of_class = [image[mask_of(output, row)] for image, row in zip(images, metadata(output)) if row["class"] == name]
        share = (np.concatenate(of_class) == 255).mean()
        assert (f"are 255: {name}" in said or f", {name} {100 * share:.3g} %" in said) == (share > 0.5)
    of_volumes(tmp_path, "--axes", "z", "--window", "abdomen")  # all of it is below
    said = capsys.readouterr().out
    assert "100 % of pixels are 0 and 0 % are 255; of labelled pixels 100 % and 0 %" in said
    assert "warning: most pixels of 2 class(es) are 0: label_001 100 %, label_002 100 %" in said
    assert "warning: 8 of 8 pictures are of one grey value" in said
    of_volumes(tmp_path, "--axes", "z", "--window", -5000, 100)  # not in Hounsfield units: all of it is above
    assert "warning: most pixels of 2 class(es) are 255" in capsys.readouterr().out
    of_volumes(tmp_path, "--axes", "z")
    assert "warning" not in capsys.readouterr().out


def test_a_case_that_a_window_does_not_suit_is_named_though_others_outweigh_it():
    ct = {ALL: [9000, 4000, 100], "tumour": [1000, 70, 60], "rib": [500, 0, 260]}
    mr = {ALL: [900, 0, 300], "tumour": [100, 0, 81]}
    said = lines({"lung/a": ct, "brain/b": mr}, Counter({False: 2}))
    assert said[0].endswith("of labelled pixels 4.38 % and 25.1 %")
    assert said[1].startswith("warning: most pixels of 1 class(es) are 255: rib 52 %;") and len(said) == 2
    del ct["rib"]
    (_, warned) = lines({"lung/a": ct, "brain/b": mr}, Counter({False: 2}))
    assert warned.startswith("warning: most labelled pixels of 1 case(s) are 255: brain/b 81 %; is the range (")
    assert len(lines({"lung/a": ct, "brain/b": {}}, Counter({False: 2}))) == 1


def test_a_window_for_each_channel(tmp_path):
    scan, labels = made_scan(), made_labels()
    folder = nnunet(tmp_path / "raw", {"background": 0, "liver": 1, "spleen": 2}, {"0": "CT", "1": "PET"})
    for name in ("imagesTr/a_0000", "imagesTr/a_0001"):
        save(itk(scan), folder / f"{name}.nii.gz")
    save(itk(labels), folder / "labelsTr" / "a.nii.gz")

    def slice_5(*flags: object) -> dict[str, np.ndarray]:
        output = run("nnunet", folder, *EVERYTHING, "--axes", "z", *flags, output=tmp_path / "out")
        rows = [row for row in metadata(output) if (row["slice"], row["class"]) == ("5", "liver")]
        return {row["modality"]: image_of(output, row).astype(float) for row in rows}

    windowed = np.clip((scan[5] + 950.0) * 255 / 200, 0, 255)
    whole = (scan[5] - scan[5].min()) * 255.0 / np.ptp(scan[5])
    made = slice_5("--window", "CT=-850,200")
    assert np.abs(made["ct"] - windowed).max() <= 0.51 and np.abs(made["pet"] - whole).max() <= 0.51
    made = slice_5("--window", "pet=-850,200", "CT=lung")
    assert np.abs(made["pet"] - windowed).max() <= 0.51
    assert np.abs(made["ct"] - np.clip((scan[5] + 1350.0) * 255 / 1500, 0, 255)).max() <= 0.51
    for words, said in (
        (("abdomen",), "of 2 kinds (ct, pet), which do not share a range"),
        (("MR=abdomen",), "no image is of that kind; there are ct, pet"),
        (("CT=abdomen", "40"), "give each channel one window"),
        (("CT=abdomen", "ct=lung"), "give each channel one window"),
        (("CT=40",), "give centre and width"),
    ):
        with pytest.raises(SystemExit) as stopped:
            slice_5("--window", *words)
        assert said in str(stopped.value)
    run(
        "nnunet",
        folder,
        *EVERYTHING,
        "--channels",
        "CT",
        "--window",
        "abdomen",
        "--min_area",
        0,
        output=tmp_path / "one",
    )


def test_what_a_header_contradicts_is_said_and_limits_are_flags(tmp_path, capsys):
    make_source(tmp_path, suffix=".nii")
    path = tmp_path / "scans" / "one.nii"
    raw = bytearray(path.read_bytes())
    raw[80:92] = np.array([4, 4, 4], "<f4").tobytes()  # pixdim
    raw[252:256] = np.array([0, 1], "<i2").tobytes()  # no qform, an sform
    path.write_bytes(raw)
    output = of_volumes(tmp_path, "--axes", "z")
    note = "note: its sform has voxels of 1 x 1 x 1 mm and its pixdim of 4 x 4 x 4 mm; the sform is taken (1 case(s)"
    assert note in capsys.readouterr().out and metadata(output)[0]["spacing"] == "1x1"
    before = contents(output)
    of_volumes(tmp_path, "--axes", "z", "--max_voxels", 8000)
    assert contents(output) == before and note in capsys.readouterr().out  # a limit changes nothing that is done
    assert "26 x 20 x 14 voxels" in error_of(tmp_path, "--axes", "zy", "--max_voxels", 7000)
    raw[280:284], raw[284:288] = np.array([-1], "<f4").tobytes(), np.array([0.002], "<f4").tobytes()
    path.write_bytes(raw)
    assert "0.115 degrees off right angles" in error_of(tmp_path) and "--straighten" in error_of(tmp_path)
    of_volumes(tmp_path, "--straighten", "--axes", "z")
    assert "0.115 degrees off right angles" in capsys.readouterr().out
