"""The commands of docs/first_day.md run in their order and leave what the page says, on less of everything."""

import csv
import shlex
import sys
from pathlib import Path

import pytest

pytest.importorskip("highdicom", reason="the extra data is not installed")
import SimpleITK as sitk

from tests.test_docs import ROOT, commands_of, module_of, script_and_words

PAGE = ROOT / "docs/first_day.md"

# Added to a command, so that it takes a second or two.
SHORT = {
    "train.py": "--image_size 64 --epochs 1 --iter_point 1 --mask_num 1 --num_workers 0 --prompt_modes bbox",
    "test.py": "--image_size 64 --num_workers 0 --report False --also",
    "scripts/make_index.py": "--num_workers 0",
    "scripts/check_index.py": "--num_workers 1",
    "scripts/compare_runs.py": "--resamples 20",
}
ELSEWHERE = {"pip", "sam-med2d app"}  # the installation is that of the tests, and the app has a browser of its own


def test_every_command_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    scans = ROOT.parent / "shared/data/scans"
    if scans.is_dir():
        (tmp_path / "tumours").symlink_to(scans)
    printed = {}
    for command in commands_of(PAGE):
        found = script_and_words(command)
        if found is None or found[0] in ELSEWHERE:
            assert command.words[0] in ELSEWHERE or found[0] in ELSEWHERE
            continue
        script, words = found
        if any("tumours" in word for word in words) and not scans.is_dir():
            continue
        monkeypatch.setattr(sys, "argv", [script, *words, *SHORT.get(script, "").split()])
        try:
            module_of(script).main()
        except SystemExit as end:
            assert not end.code, f"{shlex.join(command.words)}: {end.code}"
        printed[shlex.join(command.words)] = capsys.readouterr().out

    for source, count in (("maps", 5), ("scans", 2), ("study", 2), *([("tumours", 1)] if scans.is_dir() else [])):
        with open(tmp_path / f"first_day/data/{source}/metadata.csv", newline="") as file:
            assert len({row["class"] for row in csv.DictReader(file)}) == count, source
        if source != "tumours":  # which are tested on
            for split in ("train", "val", "test"):
                assert (tmp_path / f"first_day/data/{source}/image2label_{split}.json").is_file(), (source, split)
    (after,) = (text for words, text in printed.items() if words.startswith("python test.py") and "after" in words)
    assert "Dice % by class" in after and "volume error %" in after and "† from fewer than 10" in after
    (latex,) = (text for words, text in printed.items() if "compare_runs" in words)
    assert latex.count(r"\begin{tabular}") == 4
    by_class, differences, by_case, case_differences = latex.split(r"\begin{tabular}")[1:]
    for table, counted in (
        (by_class, "objects"),
        (differences, "objects"),
        (by_case, "cases"),
        (case_differences, "cases"),
    ):
        assert f"& {counted} " in table and ("mask-weighted" in table) == (counted == "objects")
    assert "organ & 3 & " in by_case and "lesion & 3 & " in by_case
    labels, scan = map(sitk.ReadImage, ("workdir/patient02.nii.gz", "first_day/scans/images/patient02.nii.gz"))
    assert labels.GetSize() == scan.GetSize() and labels.GetSpacing() == scan.GetSpacing()
    for name in ("sheet.png", "patient02.png", "patient02.csv", "models/first_day/best.pth"):
        assert (tmp_path / "workdir" / name).is_file(), name


def test_made_patients_are_always_the_same(tmp_path: Path) -> None:
    module = module_of("scripts/first_day_data.py")
    (scan, labels), (again, _) = module.patient(3), module.patient(3)
    assert (scan == again).all() and set(labels.flat) == {0, module.ORGAN, module.LESION}
    assert abs(scan[labels == module.ORGAN].mean() - 110) < 20
