"""compare_runs: the paper's two tables from finished runs, paired differences, and runs that must not be compared."""

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from sam_med2d.commands import compare_runs
from sam_med2d.evaluation.comparison import signed_rank
from tests.conftest import ROOT
from tests.evaluation.test_tables import synthetic_rows, write_run

MODES = ("bbox", "1pt", "3pts", "5pts")
RESULTS = {"seed": 0, "data_hash": "aa", "images_per_second": 10.0, "flags": {"image_size": 64}}


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, Path]:
    """Three models on the same 60 objects, each better than the one before."""
    folders = {}
    for i, name in enumerate(("sam", "ft-sam", "sam-med2d")):
        rows = synthetic_rows(60, MODES, skill=0.4 * i)
        folders[name] = write_run(tmp_path / name, rows, **RESULTS | {"images_per_second": 10.0 - i})
        prompts = {
            mask: {
                "boxes": [[0, 0, 9, 9]],
                "point_coords": [[5, 5], [i, 1]],
                "point_labels": [1, 0],
                "others": {
                    "bbox": {"boxes": [[0, 0, 9, 9]], "point_coords": [[i, 2]]},
                    "bbox_jitter5": {"boxes": [[1, 0, 9, 8]]},
                    "5shot": {"point_coords": [[5, 5], [7, 7]]},
                },
            }
            for mask in rows["mask"].unique()
        }
        (tmp_path / name / "prompts.json").write_text(json.dumps({"image_size": 64, **prompts}))
    return folders


def compared(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[str, str]:
    """-> stdout, stderr"""
    compare_runs.main([*map(str, arguments), "--resamples", "300"])
    return tuple(capsys.readouterr())


def refused(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    with pytest.raises(SystemExit) as end:
        compared(capsys, *arguments)
    message = str(end.value)
    assert message.startswith("error: ") and "\n" not in message
    return message


def markdown_rows(text: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|") and not line.startswith("|---")
    ]


def rewrite(folder: Path, change) -> None:
    rows = pd.read_csv(folder / "rows.csv", keep_default_na=False, dtype=str)
    change(rows).to_csv(folder / "rows.csv", index=False)


def mean(folder: Path, mode: str, **where: str) -> float:
    rows = pd.read_csv(folder / "rows.csv")
    rows = rows[rows["mode"] == mode]
    for column, value in where.items():
        rows = rows[rows[column] == value]
    return rows["dice"].mean()


# ---------------------------------------------------------------- tables


def test_first_table_of_the_paper(runs: dict[str, Path], capsys) -> None:
    out, err = compared(capsys, *runs.values(), "--names", "SAM", "FT-SAM", "SAM-Med2D", "--differences", "False")
    header, *body = markdown_rows(out)
    assert header == ["Dice %", *MODES, "FPS"] and not err
    for row, (name, folder), speed in zip(body, runs.items(), (10, 9, 8), strict=True):
        for cell, mode in zip(row[1:-1], MODES, strict=True):
            assert f"{100 * mean(folder, mode):.2f}" in cell and re.search(r"\[\d+\.\d, \d+\.\d\]", cell)
            assert ("**" in cell) == (name == "sam-med2d")
        assert float(row[-1]) == speed
    assert [row[0] for row in body] == ["SAM", "FT-SAM", "SAM-Med2D"]


def test_second_table_of_the_paper(runs: dict[str, Path], capsys) -> None:
    out, _ = compared(capsys, *runs.values(), "--by", "dataset", "--modes", "bbox", "1pt", "--differences", "False")
    header, *body = markdown_rows(out)
    assert header[2:] == [f"{mode} {name}" for mode in ("bbox", "1pt") for name in runs]
    table = {row[0]: row[2:] for row in body}
    assert [*table] == ["AMOS22", "BraTS21", "KiTS23", "mean of datasets", "mask-weighted mean"]
    for dataset in ("AMOS22", "BraTS21", "KiTS23"):
        assert table[dataset][3].split()[0] == f"{100 * mean(runs['sam'], '1pt', dataset=dataset):.2f}"
    assert table["mask-weighted mean"][1].split()[0] == f"{100 * mean(runs['ft-sam'], 'bbox'):.2f}"
    assert all(re.search(r" \[[\d.]+, [\d.]+\]†?$", cell) for cell in table["mask-weighted mean"])
    assert all(cell.startswith("**") == (i % 3 == 2) for row in table.values() for i, cell in enumerate(row))


def test_lower_is_better_for_distances_and_clicks(runs: dict[str, Path], capsys) -> None:
    for metric in ("hd95", "noc85", "nof85"):
        out, _ = compared(capsys, *runs.values(), "--metric", metric, "--modes", "5pts", "--differences", "False")
        assert ["**" in row[1] for row in markdown_rows(out)[1:]] == [False, False, True]


def test_equal_runs_are_all_best_and_differ_by_nothing(runs: dict[str, Path], capsys) -> None:
    out, _ = compared(capsys, runs["sam"], runs["sam"], "--names", "a", "b", "--modes", "bbox")
    rows = markdown_rows(out)
    assert all(row[1].startswith("**") for row in rows[1:3])
    assert rows[-1][:4] == ["bbox", "b", "+0.00 [+0.0, +0.0]†", "1.000"]


def test_paired_difference_interval_and_test(runs: dict[str, Path], capsys) -> None:
    out, _ = compared(
        capsys,
        runs["sam"],
        runs["sam-med2d"],
        "--reference",
        runs["sam-med2d"],
        "--modes",
        "1pt",
        "--format",
        "csv",
        "--resamples",
        "9999",
    )
    row = next(row for row in csv.DictReader(io.StringIO(out)) if row["model"] == "sam")
    one, two = (pd.read_csv(runs[name] / "rows.csv").query("mode == '1pt'") for name in ("sam", "sam-med2d"))
    d = one.set_index("mask")["dice"] - two.set_index("mask")["dice"]
    groups = d.groupby([one.set_index("mask")[key] for key in ("dataset", "case")])
    theirs = scipy.stats.bootstrap(
        (groups.sum().to_numpy(), groups.size().to_numpy()),
        lambda s, n, axis=-1: s.sum(axis=axis) / n.sum(axis=axis),
        paired=True,
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert row["reference"] == "sam-med2d" and float(row["difference"]) == pytest.approx(d.mean())
    limits = float(row["difference_low"]), float(row["difference_high"])
    assert limits == pytest.approx([*theirs], abs=0.1 * (theirs.high - theirs.low))
    assert float(row["p"]) == pytest.approx(scipy.stats.wilcoxon(groups.mean()).pvalue)
    assert int(row["clusters"]) == len(groups) < int(row["n"]) == 60


def test_signed_rank_by_hand() -> None:
    """Three cases, all better: of the 8 equally likely signs, two are as extreme."""
    assert signed_rank(np.array([0.1, 0.2, 0.3])) == 0.25
    assert signed_rank(np.zeros(5)) == 1


def test_differences_by_group(runs: dict[str, Path], capsys) -> None:
    out, _ = compared(capsys, runs["sam"], runs["ft-sam"], "--by", "dataset", "--modes", "bbox")
    table = {row[0]: row for row in markdown_rows(out)[-5:]}
    d = mean(runs["ft-sam"], "bbox", dataset="KiTS23") - mean(runs["sam"], "bbox", dataset="KiTS23")
    assert table["KiTS23"][3].startswith(f"{100 * d:+.2f}") and table["mean of datasets"][4] == "–"
    assert table["mask-weighted mean"][4] not in ("–", "")


def test_latex_has_a_line_of_modes_and_one_cell_a_column(runs: dict[str, Path], capsys) -> None:
    out, _ = compared(
        capsys,
        *runs.values(),
        "--by",
        "dataset",
        "--modes",
        "bbox",
        "1pt",
        "--format",
        "latex",
        "--differences",
        "False",
        "--names",
        "SAM",
        "FT_SAM",
        "SAM-Med2D",
    )
    assert r"\multicolumn{3}{c}{bbox} & \multicolumn{3}{c}{1pt}" in out and r"FT\_SAM" in out
    body = out.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert len(body) == 5 and {line.count(" & ") for line in body} == {7} and body[0].count(r"\textbf") == 2
    # outside the table there are comments alone
    assert all(line.startswith("%") or not line for line in out.split(r"\begin{tabular}")[0].splitlines())


def test_a_run_may_be_called_like_a_column(runs: dict[str, Path], capsys) -> None:
    out, _ = compared(capsys, runs["sam"], runs["ft-sam"], "--names", "dice", "mode", "--modes", "bbox")
    assert markdown_rows(out)[1][0] == "dice" and f"{100 * mean(runs['sam'], 'bbox'):.2f}" in out


def test_from_the_command_line(runs: dict[str, Path]) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "compare_runs.py", runs["sam"], runs["ft-sam"], "--resamples", "50"],
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=runs["sam"],
    )
    assert done.returncode == 0 and "| sam |" in done.stdout and not done.stderr


# ---------------------------------------------------------------- which runs, which objects


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"seed": 1}, "not the same seed (sam 0, ft-sam 1)"),
        ({"data_hash": "bb"}, "not the same index of the data (sam aa, ft-sam bb)"),
        (
            {"flags": RESULTS["flags"] | {"protocol": "exact"}},
            "not the same --protocol (sam paper, ft-sam exact)",
        ),
    ],
)
def test_other_questions_are_refused_or_warned_of(runs: dict[str, Path], capsys, changed: dict, said: str) -> None:
    (runs["ft-sam"] / "results.json").write_text(json.dumps(RESULTS | changed))
    assert said in refused(capsys, runs["sam"], runs["ft-sam"])
    out, err = compared(capsys, runs["sam"], runs["ft-sam"], "--allow_differences")
    assert said in err and err.startswith("warning: ") and "| ft-sam |" in out


def test_another_choice_of_clicks_is_refused(runs: dict[str, Path], capsys) -> None:
    rewrite(runs["ft-sam"], lambda rows: rows.assign(strategy=rows["strategy"].replace("random", "center")))
    assert "not the same --click_strategy (sam random, ft-sam center)" in refused(capsys, runs["sam"], runs["ft-sam"])


def test_frames_and_devices_that_differ_are_told(runs: dict[str, Path], capsys) -> None:
    changed = RESULTS | {"device": "cuda:0", "flags": {"image_size": 128}}
    (runs["ft-sam"] / "results.json").write_text(json.dumps(changed))
    _, err = compared(capsys, runs["sam"], runs["ft-sam"])
    assert "frames of different sizes, so clicks are not the same pixels: sam 64, ft-sam 128" in err
    assert "speeds were measured on different devices: sam None, ft-sam cuda:0" in err


@pytest.mark.parametrize(
    "sequence, field, what",
    [
        (None, "boxes", "box"),
        (None, "point_coords", "first click"),
        ("bbox_jitter5", "boxes", "bbox_jitter5 box"),
        ("5shot", "point_coords", "5shot"),
    ],
)
def test_other_prompts_are_refused(runs: dict[str, Path], capsys, sequence: str | None, field: str, what: str) -> None:
    path = runs["ft-sam"] / "prompts.json"
    prompts = json.loads(path.read_text())
    name = list(prompts)[5]  # after the settings
    entry = prompts[name]["others"][sequence] if sequence else prompts[name]
    entry[field][0][0] += 1
    path.write_text(json.dumps(prompts))
    if sequence:  # which no mode of these runs made use of
        compared(capsys, runs["sam"], runs["ft-sam"])
        for run in ("sam", "ft-sam"):
            rewrite(runs[run], lambda rows: rows.assign(mode=rows["mode"].replace("bbox", sequence)))
    assert f"got another {what} for 1 object(s), such as {name}" in refused(capsys, runs["sam"], runs["ft-sam"])
    # in frames of two sizes pixels cannot agree: that is said, and no reason to refuse
    (runs["ft-sam"] / "results.json").write_text(json.dumps(RESULTS | {"flags": {"image_size": 128}}))
    assert "frames of different sizes" in compared(capsys, runs["sam"], runs["ft-sam"])[1]


def test_only_what_was_used_is_compared(runs: dict[str, Path], capsys) -> None:
    """Boxes need neither a seed nor a choice of clicks."""
    (runs["ft-sam"] / "results.json").write_text(json.dumps(RESULTS | {"seed": 9}))
    rewrite(runs["ft-sam"], lambda rows: rows.assign(strategy=rows["strategy"].replace("random", "center")))
    path = runs["ft-sam"] / "prompts.json"
    prompts = json.loads(path.read_text())
    name = max(prompts.keys() - {"image_size"})
    prompts[name]["point_coords"][0][0] += 1
    path.write_text(json.dumps(prompts))
    compared(capsys, runs["sam"], runs["ft-sam"], "--modes", "bbox")
    said = refused(capsys, runs["sam"], runs["ft-sam"], "--modes", "bbox", "1pt", "5pts")
    assert "not the same seed" in said and "not the same --click_strategy" in said and "another first click" in said


def test_nsd_needs_one_tolerance(runs: dict[str, Path], capsys) -> None:
    for name, tolerance in (("sam", 2), ("ft-sam", 3)):
        flags = {"image_size": 64, "nsd_tolerance": tolerance}
        (runs[name] / "results.json").write_text(json.dumps(RESULTS | {"flags": flags}))
    compared(capsys, runs["sam"], runs["ft-sam"], "--metric", "dice")
    assert "--nsd_tolerance" in refused(capsys, runs["sam"], runs["ft-sam"], "--metric", "nsd")


def test_rows_without_results_can_be_compared_on_request(runs: dict[str, Path], capsys) -> None:
    (runs["sam"] / "results.json").unlink()
    assert "no results.json in sam" in refused(capsys, runs["sam"], runs["ft-sam"])
    out, err = compared(capsys, runs["sam"], runs["ft-sam"], "--allow_differences")
    assert "no results.json in sam" in err and markdown_rows(out)[1][-1] == "–"


def test_only_objects_of_all_runs_count(runs: dict[str, Path], capsys) -> None:
    dropped = pd.read_csv(runs["ft-sam"] / "rows.csv")["mask"].unique()[:7]
    rewrite(runs["ft-sam"], lambda rows: rows[~rows["mask"].isin(dropped)])
    assert "sam has 7 object(s) that ft-sam lacks, ft-sam 0 that sam lacks (53 in common)" in refused(
        capsys, runs["sam"], runs["ft-sam"]
    )
    out, _ = compared(capsys, runs["sam"], runs["ft-sam"], "--allow_differences", "--modes", "bbox")
    kept = pd.read_csv(runs["sam"] / "rows.csv").query("mode == 'bbox'")
    assert f"{100 * kept['dice'][~kept['mask'].isin(dropped)].mean():.2f}" in markdown_rows(out)[1][1]
    assert "53 objects" in out


def test_objects_scored_by_one_run_alone_are_told(runs: dict[str, Path], capsys) -> None:
    def fail(rows: pd.DataFrame) -> pd.DataFrame:
        rows.loc[rows["mask"] == rows["mask"][0], ["dice", "iou", "status"]] = ["", "", "unreadable"]
        return rows

    rewrite(runs["ft-sam"], fail)
    assert "1 object(s) were scored in only one of sam and ft-sam" in refused(capsys, runs["sam"], runs["ft-sam"])
    out, err = compared(capsys, runs["sam"], runs["ft-sam"], "--allow_differences")
    assert "bbox: 1 object(s) left out" in err and "59 objects" in out


def test_a_frame_in_which_objects_vanish_is_refused_with_the_remedy(runs: dict[str, Path], capsys) -> None:
    def vanish(rows: pd.DataFrame) -> pd.DataFrame:
        rows.loc[rows["mask"] == rows["mask"][0], ["dice", "iou", "status"]] = ["", "", "vanished"]
        return rows

    rewrite(runs["ft-sam"], vanish)
    said = refused(capsys, runs["sam"], runs["ft-sam"])
    assert "(1 vanish in the frame of one: score both with test.py --vanished zero)" in said


def test_masks_of_one_name_and_another_area_are_always_refused(runs: dict[str, Path], capsys) -> None:
    def grow(rows: pd.DataFrame) -> pd.DataFrame:
        rows.loc[rows["mask"] == rows["mask"][0], "true_area"] = "7"
        return rows

    rewrite(runs["ft-sam"], grow)
    assert "were scored on other masks" in refused(capsys, runs["sam"], runs["ft-sam"], "--allow_differences")


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--reference", "elsewhere"], "--reference elsewhere is none of the runs: use one of sam, ft-sam"),
        (["--modes", "bbox", "9pts"], "sam has no mode 9pts: it has bbox, 1pt, 3pts, 5pts"),
        (["nowhere"], "nowhere: not found; name the folder of a finished run of test.py"),
        (["--names", "x", "x"], "two runs are called x"),
        (["--metric", "noc80", "--modes", "bbox"], "share no object with a NoC@80 in bbox"),
    ],
)
def test_mistakes_end_in_one_line(runs: dict[str, Path], capsys, arguments: list[str], said: str) -> None:
    assert said in refused(capsys, runs["sam"], runs["ft-sam"], *arguments)


def test_modes_that_one_run_lacks_are_left_out_and_told(runs: dict[str, Path], capsys) -> None:
    rewrite(runs["ft-sam"], lambda rows: rows[rows["mode"].isin(["bbox", "3pts"])])
    out, err = compared(capsys, runs["sam"], runs["ft-sam"])
    assert markdown_rows(out)[0] == ["Dice %", "bbox", "3pts", "FPS"] and "1pt, 5pts" in err


def test_objects_listed_twice_cannot_be_matched(runs: dict[str, Path], capsys) -> None:
    rewrite(runs["ft-sam"], lambda rows: pd.concat([rows, rows[:1]]))
    assert "twice in mode bbox" in refused(capsys, runs["sam"], runs["ft-sam"])


def test_spoiled_results_are_named(runs: dict[str, Path], capsys) -> None:
    for text, said in (
        ('{"seed": ', "not valid JSON"),
        ("[1]", "is no results file of test.py (it holds a list)"),
        ('{"flags": 3}', "is no results file of test.py ('flags' holds a int)"),
    ):
        (runs["ft-sam"] / "results.json").write_text(text)
        assert f"results.json: {said}" in refused(capsys, runs["sam"], runs["ft-sam"])


def test_flags_that_contradict(capsys) -> None:
    for arguments in (
        ["a"],
        ["a", "b", "--names", "x"],
        ["a", "b", "--resamples", "0"],
        ["a", "b", "--metric", "never80"],
    ):
        with pytest.raises(SystemExit) as end:
            compare_runs.parse_args(arguments)
        assert end.value.code == 2 and "error: " in capsys.readouterr().err
