"""Tables: what is read, what is averaged over what, intervals against scipy, and every text format."""

import io
import json
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from sam_med2d.errors import DataError
from sam_med2d.evaluation import estimates
from sam_med2d.evaluation.curves import calibration, calibration_bins
from sam_med2d.evaluation.estimates import (
    UNKNOWN,
    WEIGHTED,
    interval,
    resampled_means,
    scored,
    size_bins,
    summarise,
    unscored,
)
from sam_med2d.evaluation.grids import format_table
from sam_med2d.evaluation.rows import COLUMNS, NUMBERS, _tidy, read_rows
from sam_med2d.evaluation.summary import all_tables

METRIC_COLUMNS = ("dice", "iou", "nsd", "hd95", "predicted_iou", "noc80", "noc85", "noc90")
MODES = ("bbox", "bbox_jitter5", "bbox_jitter10", "1pt", "3pts", "5pts", "5shot", "bbox+2pts")
DIFFICULTY = {
    "bbox": 0.0,
    "bbox_jitter5": 0.3,
    "bbox_jitter10": 0.7,
    "1pt": 1.2,
    "3pts": 0.7,
    "5pts": 0.4,
    "5shot": 0.9,
    "bbox+2pts": -0.3,
    "mask": 0.1,
}


def synthetic_rows(
    objects: int = 60,
    modes: Sequence[str] = MODES,
    *,
    seed: int = 0,
    skill: float = 0.0,
    unscored: int = 0,
    named: bool = True,
    classes: int = 4,
) -> pd.DataFrame:
    """What an evaluation might have written: slices of cases of three data sets, small objects and few clicks being
    harder.

    skill: raises every Dice of a model whose other properties (`seed`) stay the same. unscored: objects with an empty
    truth.
    named: with data set, modality, class and case.
    """
    rng = np.random.default_rng(seed)
    case = rng.integers(max(2, objects // 12), size=objects)
    share = np.exp(rng.uniform(np.log(4e-4), np.log(0.4), size=objects))
    ease = (
        1.8 + 0.35 * np.log(share / 0.01) + rng.normal(size=case.max() + 1)[case] * 0.5 + rng.normal(size=objects) * 0.4
    )
    rows = []
    for i in range(objects):
        dataset = ("AMOS22", "BraTS21", "KiTS23")[case[i] % 3]
        modality = {"AMOS22": "ct", "BraTS21": "mr", "KiTS23": "ct"}[dataset]
        side = int(rng.choice([256, 512]))
        image = f"images/{modality}_00--{dataset}--case_{case[i]:04d}--x_{i // 3:04d}.png"
        area = max(1, round(share[i] * side * side))
        for mode in modes:
            logit = ease[i] + skill - DIFFICULTY[mode] + rng.normal() * 0.3
            dice = 1 / (1 + np.exp(-logit))
            clicks = int("".join(c for c in mode.split("jitter")[0] if c.isdigit()) or 0)
            iterative = mode.endswith(("pt", "pts")) and "bbox" not in mode
            first = 1 + np.floor(np.exp(rng.normal() + 1.2 - logit))
            row = {
                "image": image,
                "mask": f"masks/{Path(image).stem}--{i % classes:04d}_{i:03d}.png",
                "dataset": dataset,
                "modality": modality,
                "class": f"organ {i % classes}",
                "case": f"case_{case[i]:04d}",
                "axis": "x",
                "slice": i // 3,
                "mode": mode,
                "strategy": "random" if clicks else "",
                "clicks": clicks,
                "box": int("bbox" in mode),
                "true_area": area,
                "image_area": side * side,
                "predicted_area": max(0, round(area * (1 + rng.normal() * 0.1))),
                "dice": dice,
                "iou": dice / (2 - dice),
                "nsd": min(1.0, dice * 1.05),
                "hd95": (1 - dice) * 40 if dice > 0.05 else np.nan,
                "predicted_iou": dice / (2 - dice) + 0.04 + rng.normal() * 0.06,
                **{
                    f"noc{level}": first + extra if iterative and first + extra <= clicks else np.nan
                    for extra, level in enumerate((80, 85, 90))
                },
                "status": "ok",
            }
            if i < unscored:
                row |= dict.fromkeys(METRIC_COLUMNS, np.nan) | {"status": "empty truth", "true_area": 0}
            if not named:
                row |= dict.fromkeys(("dataset", "modality", "class", "case", "axis"), "") | {"slice": None}
            rows.append(row)
    return pd.DataFrame(rows, columns=[*COLUMNS])


def write_run(folder: Path, rows: pd.DataFrame, **results: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rows.to_csv(folder / "rows.csv", index=False)
    if results:
        (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return folder


def few(values: dict[str, list[float]], **columns: object) -> pd.DataFrame:
    """Rows in mode bbox: {"dataset/case": [Dice, ...]}; other columns as given, for all."""
    rows = []
    for place, dices in values.items():
        dataset, case = place.split("/")
        for dice in dices:
            i = len(rows)
            rows.append(
                {
                    "image": f"{place}_{i}.png",
                    "mask": f"{place}_{i}_m.png",
                    "dataset": dataset,
                    "modality": "ct",
                    "class": "liver",
                    "case": case,
                    "axis": "",
                    "slice": pd.NA,
                    "mode": "bbox",
                    "strategy": "",
                    "clicks": 0.0,
                    "box": 1.0,
                    "true_area": 50.0,
                    "image_area": 1000.0,
                    "predicted_area": 50.0,
                    "dice": dice,
                    "iou": dice / (2 - dice),
                    "nsd": dice,
                    "hd95": 1.0,
                    "predicted_iou": 0.5,
                    "noc80": np.nan,
                    "noc85": np.nan,
                    "noc90": np.nan,
                    "status": "ok",
                }
                | columns
            )
    return _tidy(pd.DataFrame(rows))


def only(table: pd.DataFrame, **wanted: str) -> pd.Series:
    for column, value in wanted.items():
        table = table[table[column] == value]
    assert len(table) == 1
    return table.iloc[0]


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_rows_are_read_as_written(tmp_path: Path, kind: str) -> None:
    written = synthetic_rows(20, unscored=2)
    written.loc[0, "class"], written.loc[1, "class"], written.loc[2, "class"] = "NA", "nan", ""
    if kind == "csv":
        written.to_csv(tmp_path / "rows.csv", index=False)
    else:
        pytest.importorskip("pyarrow")
        written.to_parquet(tmp_path / "rows.parquet", index=False)
    rows = read_rows(tmp_path)
    pd.testing.assert_frame_equal(rows, read_rows(tmp_path / f"rows.{kind}"))
    assert list(rows.columns) == list(COLUMNS)
    assert [*rows["mode"].cat.categories] == [*MODES]  # in the order of the run
    for column in COLUMNS:
        expected = written[column].astype("float64") if column in NUMBERS else written[column].astype(str)
        found = rows[column].astype("float64") if column in NUMBERS else rows[column].astype(str)
        if column in NUMBERS:
            np.testing.assert_allclose(found, expected, rtol=1e-14, err_msg=column)
        else:
            assert found.tolist() == expected.tolist()


@pytest.mark.parametrize(
    "spoil, said",
    [
        (lambda folder: (folder / "rows.csv").unlink(), "holds no rows.csv"),
        (lambda folder: (folder / "rows.csv").write_text(""), "no column image, mask, dataset and 18 more"),
        (lambda folder: (folder / "rows.csv").write_text(",".join(COLUMNS) + "\n"), "holds no objects"),
        (
            lambda folder: (folder / "rows.csv").write_text("image,mask,mode,dice,iou\na,b,bbox,1,1\n"),
            "no column dataset, modality, class",
        ),
        (lambda folder: (folder / "rows.csv").write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe\x00"), "not a text file"),
        (lambda folder: change(folder, 3, "dice", "much"), "much"),
        (lambda folder: change(folder, 3, "slice", "1.5"), "cannot be read as rows of test.py"),
        (lambda folder: change(folder, 3, "dice", ""), "line 5 has status ok but no Dice"),
        (lambda folder: change(folder, 3, "status", ""), "line 5 is incomplete"),
        (lambda folder: (folder / "rows.csv").write_text((folder / "rows.csv").read_text()[:-60]), "is incomplete"),
        (
            lambda folder: (folder / "rows.csv").write_text((folder / "rows.csv").read_text() + "a,b,c\n"),
            "line 7 is incomplete",
        ),
        (lambda folder: (folder / "rows.parquet").write_bytes(b"PAR1"), "holds both"),
        (lambda folder: (folder / "rows.csv").rename(folder / "rows.parquet"), "cannot be read"),
    ],
)
def test_unusable_files_end_in_one_line(tmp_path: Path, spoil, said: str) -> None:
    write_run(tmp_path, synthetic_rows(5, ("bbox",)))
    spoil(tmp_path)
    with pytest.raises(DataError) as error:
        read_rows(tmp_path)
    assert said in str(error.value) and str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def change(folder: Path, row: int, column: str, value: object) -> None:
    rows = pd.read_csv(folder / "rows.csv", dtype=str, keep_default_na=False)
    rows.loc[row, column] = value
    rows.to_csv(folder / "rows.csv", index=False)


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_files_from_before_there_was_a_metric_are_read(tmp_path: Path, format: str) -> None:
    write_run(tmp_path, synthetic_rows(5, ("bbox",)))
    older = pd.read_csv(tmp_path / "rows.csv", keep_default_na=False, dtype=str).drop(columns=["nsd", "hd95"])
    (tmp_path / "rows.csv").unlink()
    if format == "csv":
        older.to_csv(tmp_path / "rows.csv", index=False)
    else:
        kinds = {"string": str, "int32": float, "int64": float, "double": float}
        typed = {name: older[name].replace("", np.nan).astype(kinds[str(COLUMNS[name])]) for name in older}
        pd.DataFrame(typed).to_parquet(tmp_path / "rows.parquet")
    rows = read_rows(tmp_path)
    assert [*rows.columns] == [*COLUMNS] and rows["nsd"].isna().all() and rows["dice"].notna().all()
    assert only(summarise(rows), metric="nsd")["n"] == 0 and "–" in format_table(all_tables(rows)["overall"])


def test_missing_path_is_named() -> None:
    with pytest.raises(DataError, match="no/such/run: not found"):
        read_rows("no/such/run")


# ---------------------------------------------------------------- means


def test_unweighted_and_mask_weighted_means() -> None:
    rows = few({"A/1": [0.2, 0.4], "A/2": [0.9], "B/1": [1.0]})
    table = summarise(rows, "dataset", totals=True)
    dice = table[table["metric"] == "dice"].set_index("dataset")
    assert dice["mean"].to_dict() == pytest.approx({"A": 0.5, "B": 1.0, "mean of datasets": 0.75, WEIGHTED: 0.625})
    assert dice["n"].to_dict() == {"A": 3, "B": 1, "mean of datasets": 4, WEIGHTED: 4}
    assert dice["clusters"].to_dict() == {"A": 2, "B": 1, "mean of datasets": 3, WEIGHTED: 3}
    assert dice.loc["A", "median"] == 0.4 and dice.loc[WEIGHTED, "median"] == pytest.approx(0.65)
    # one case gives no interval, nor does a mean in which it takes part
    assert dice["low"].isna().to_dict() == {"A": False, "B": True, "mean of datasets": True, WEIGHTED: False}
    overall = only(summarise(rows), metric="dice")
    assert overall[["mean", "low", "high"]].tolist() == dice.loc[WEIGHTED, ["mean", "low", "high"]].tolist()


def test_groups_without_a_name_are_shown_but_not_averaged_over() -> None:
    rows = few({"A/1": [0.2], "A/2": [0.4], "/3": [0.9], "B/4": [0.5, 0.7]})
    dice = summarise(rows, "dataset", totals=True).query("metric == 'dice'").set_index("dataset")["mean"]
    assert (
        dice[UNKNOWN] == 0.9
        and dice["mean of datasets"] == pytest.approx(0.45)
        and dice[WEIGHTED] == pytest.approx(0.54)
    )


def test_unscored_objects_are_counted_and_in_no_mean(tmp_path: Path) -> None:
    rows = read_rows(write_run(tmp_path, synthetic_rows(20, unscored=3)))
    whole = synthetic_rows(20)
    listed = unscored(rows)
    assert listed["mask"].tolist() == sorted(whole["mask"].unique()[:3])
    assert set(listed["status"]) == {"empty truth"} and set(listed["modes"]) == {len(MODES)}
    dice = only(summarise(rows), metric="dice", mode="bbox")
    kept = whole[(whole["mode"] == "bbox") & ~whole["mask"].isin(listed["mask"])]["dice"]
    assert dice["objects"] == dice["n"] == 17 and dice["mean"] == pytest.approx(kept.mean())
    with pytest.raises(DataError, match="no object could be scored .*3 x empty truth"):
        all_tables(rows[rows["status"] != "ok"])


def test_an_undefined_distance_is_left_out_and_counted() -> None:
    rows = few({"A/1": [0.0, 0.5], "A/2": [0.9]})
    rows.loc[0, "hd95"], rows.loc[1, "hd95"] = np.nan, 4.0
    hd95 = only(summarise(rows), metric="hd95")
    assert hd95["objects"] == 3 and hd95["n"] == 2 and hd95["mean"] == 2.5
    assert "n 2" in format_table(all_tables(rows)["overall"])


def test_size_bins_include_their_lower_edge() -> None:
    bins = size_bins(pd.Series([0.0, 9.9, 10, 29.9, 30, 100, 3000, 10000]), pd.Series([10000] * 8))
    assert [*bins.astype(str)] == [
        "below 0.1 %",
        "below 0.1 %",
        "0.1 to 0.3 %",
        "0.1 to 0.3 %",
        "0.3 to 1 %",
        "1 to 3 %",
        "30 % and more",
        "30 % and more",
    ]


# ---------------------------------------------------------------- intervals


def test_interval_agrees_with_scipy() -> None:
    """A ratio of sums over clusters of unequal size."""
    rng = np.random.default_rng(1)
    counts = rng.integers(1, 9, size=40).astype(float)
    sums = counts * rng.beta(5, 2, size=40)
    means = resampled_means(sums[:, None], counts[:, None], resamples=9999, seed=3)
    low, high = interval(means)
    theirs = scipy.stats.bootstrap(
        (sums, counts),
        lambda s, n, axis=-1: s.sum(axis=axis) / n.sum(axis=axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=9999,
        rng=np.random.default_rng(4),
    )
    assert means.std() == pytest.approx(theirs.standard_error, rel=0.04)
    width = high[0] - low[0]
    assert low[0] == pytest.approx(theirs.confidence_interval.low, abs=0.04 * width)
    assert high[0] == pytest.approx(theirs.confidence_interval.high, abs=0.04 * width)


def test_summary_resamples_cases_where_known_else_images(tmp_path: Path) -> None:
    rows = synthetic_rows(90, ("bbox",), seed=2)
    for named in (True, False):
        frame = _tidy(rows.assign(case=rows["case"] if named else ""))
        groups = rows.groupby(["dataset", "case"] if named else "image")["dice"]
        theirs = scipy.stats.bootstrap(
            (groups.sum().to_numpy(), groups.size().to_numpy()),
            lambda s, n, axis=-1: s.sum(axis=axis) / n.sum(axis=axis),
            paired=True,
            vectorized=True,
            method="percentile",
            n_resamples=9999,
            rng=np.random.default_rng(0),
        ).confidence_interval
        dice = only(summarise(frame, resamples=9999), metric="dice")
        assert dice["clusters"] == len(groups)
        assert [dice["low"], dice["high"]] == pytest.approx([*theirs], abs=0.05 * (theirs.high - theirs.low))


def test_more_slices_of_the_same_cases_are_no_more_evidence() -> None:
    values = {f"A/{case}": [0.1 * case, 0.05 * case] for case in range(1, 8)}
    once, often = (only(summarise(few({k: v * times for k, v in values.items()})), metric="dice") for times in (1, 20))
    assert often["n"] == 20 * once["n"]
    assert often[["mean", "low", "high"]].tolist() == pytest.approx(once[["mean", "low", "high"]].tolist())


def test_one_case_name_in_two_data_sets_is_two_cases() -> None:
    assert scored(few({"A/1": [0.1, 0.2], "B/1": [0.3]}))["cluster"].nunique() == 2


def test_mean_of_data_sets_resamples_each_within_itself() -> None:
    """Its variance: the sum of the parts' over the square of their number; equal clusters must not move together."""
    rng = np.random.default_rng(0)
    rows = few({f"{dataset}/{case}": [rng.beta(4, 2)] for dataset in "ABCD" for case in range(25)})
    dice = summarise(rows, "dataset", totals=True, resamples=4000).query("metric == 'dice'").set_index("dataset")
    widths = dice["high"] - dice["low"]
    assert widths["mean of datasets"] == pytest.approx(np.sqrt((widths[[*"ABCD"]] ** 2).sum()) / 4, rel=0.08)


def test_mean_of_classes_draws_a_case_with_all_that_is_in_it() -> None:
    """Two classes that say the same of every case are no more evidence than one."""
    rng = np.random.default_rng(0)
    rows = few(
        {f"{dataset}/{case}": [value, value] for dataset in "AB" for case in range(20) for value in [rng.beta(4, 2)]}
    )
    rows["class"] = pd.Categorical(["liver", "spleen"] * 40)
    dice = summarise(rows, "class", totals=True, resamples=4000).query("metric == 'dice'").set_index("class")
    widths = dice["high"] - dice["low"]
    assert dice["mean"].nunique() == 1 or np.ptp(dice["mean"]) < 1e-12
    assert widths["mean of classes"] == pytest.approx(widths["liver"], rel=0.06)
    assert set(dice["clusters"]) == {40}


def test_intervals_depend_on_the_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = _tidy(synthetic_rows(80, ("bbox", "1pt")))
    first = summarise(rows, "class")
    shuffled = rows.sample(frac=1, random_state=0)
    shuffled["mode"] = shuffled["mode"].cat.reorder_categories(["bbox", "1pt"])
    pd.testing.assert_frame_equal(summarise(shuffled, "class"), first)
    monkeypatch.setattr(estimates, "WEIGHTS_AT_ONCE", 50)  # resamples one by one
    pd.testing.assert_frame_equal(summarise(rows, "class"), first)
    assert not summarise(rows, "class", seed=1)["low"].equals(first["low"])


def test_memory_of_the_bootstrap_is_bounded() -> None:
    sums, counts = np.random.default_rng(0).random((20_000, 2)), np.ones((20_000, 2))
    tracemalloc.start()
    resampled_means(sums, counts, resamples=400)  # all weights at once would be 64 MB
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16e6


# ---------------------------------------------------------------- clicks and calibration


def test_number_of_clicks_counts_the_cap_where_a_dice_was_never_reached() -> None:
    rows = few({"A/1": [0.9, 0.7], "A/2": [0.86, 0.5]}, mode="5pts", clicks=5.0, box=0.0)
    rows["noc80"], rows["noc85"] = [1, np.nan, 3, np.nan], [2, np.nan, 4, np.nan]
    noc = all_tables(rows)["noc"].set_index("metric")
    assert noc["mean"].to_dict() == {
        "noc80": 3.5,
        "nof80": 0.5,
        "noc85": 4.0,
        "nof85": 0.5,
        "noc90": 5.0,
        "nof90": 1.0,
    }
    reached = all_tables(rows)["reached"]
    assert reached[reached["level"] == 85]["share"].tolist() == [0, 0.25, 0.25, 0.5, 0.5]


def test_what_clicks_do_is_counted_where_every_step_is_there() -> None:
    by_mode = {"1pt": [0.5, 0.8], "2pts": [0.9, 0.795], "3pts": [0.88, 0.7], "4pts": [0.9, 0.9], "5pts": [0.9, 1.0]}
    parts = [
        few({"A/1": dice}, mode=mode, clicks=float(k), box=0.0).assign(mask=["a", "b"], nsd=[d / 2 for d in dice])
        for k, (mode, dice) in enumerate(by_mode.items(), start=1)
    ]
    noc = all_tables(_tidy(pd.concat(parts, ignore_index=True)))["noc"]
    found = {(row.mode, row.metric): row.mean for row in noc.itertuples()}
    assert found["3pts", "worse1"] == (1 / 2 + 1 / 2) / 2 and found["3pts", "worse5"] == (0 + 1 / 2) / 2
    assert found["5pts", "worse1"] == (1 / 4 + 1 / 4) / 2
    area = ((0.5 + 0.9) / 2 + 0.9 + 0.88 + 0.9, (0.8 + 1.0) / 2 + 0.795 + 0.7 + 0.9)
    assert found["5pts", "dice_auc"] == pytest.approx(np.mean(area))
    assert found["5pts", "nsd_auc"] == pytest.approx(np.mean(area) / 2)
    assert ("4pts", "dice_auc") not in found and ("1pt", "worse1") not in found

    gaps = all_tables(_tidy(pd.concat([parts[0], *parts[2:]], ignore_index=True)))["noc"]
    assert not {"worse1", "dice_auc"} & {*gaps["metric"]}


def test_failures_are_printed_in_per_cent() -> None:
    rows = few({"A/1": [0.9, 0.7], "A/2": [0.86, 0.5]}, mode="5pts", clicks=5.0, box=0.0)
    rows["noc80"] = [1, 2, 3, np.nan]
    header, line, few_clusters = format_table(all_tables(rows)["noc"]).splitlines()
    assert few_clusters.startswith("† from fewer than 10 clusters")
    assert "NoF@80 %" in header and "never" not in header
    assert "2.75" in line and "25.0" in line  # 1, 2, 3 and the cap of 5; one of four never got there


def test_number_of_clicks_is_for_modes_of_clicks() -> None:
    made = all_tables(_tidy(synthetic_rows(30)))
    assert [*made["noc"]["mode"].unique()] == ["3pts", "5pts"]  # a single click has nothing to count
    assert not len(all_tables(few({"A/1": [0.5], "A/2": [0.6]}))["noc"])


def test_calibration_by_hand() -> None:
    rows = few({"A/1": [0.1] * 4})
    rows["predicted_iou"], rows["iou"] = [0.25, 0.21, 1.2, -0.1], [0.30, 0.11, 0.9, 0.1]
    found = calibration(rows).iloc[0]
    errors = np.array([-0.05, 0.1, 0.3, -0.2])
    assert found["mean_absolute_error"] == pytest.approx(np.abs(errors).mean()) and found["bias"] == pytest.approx(
        errors.mean()
    )
    assert found["correlation"] == pytest.approx(scipy.stats.pearsonr(rows["predicted_iou"], rows["iou"]).statistic)
    bins = calibration_bins(rows)
    assert bins[["bin_from", "bin_to", "n"]].to_numpy().tolist() == pytest.approx(
        np.array([[0, 0.1, 1], [0.2, 0.3, 2], [0.9, 1, 1]])
    )
    assert bins["predicted"].tolist() == pytest.approx([-0.1, 0.23, 1.2]) and bins["true"].tolist() == pytest.approx(
        [0.1, 0.205, 0.9]
    )


def test_calibration_of_a_constant_has_no_correlation() -> None:
    rows = few({"A/1": [0.1, 0.2]})
    assert np.isnan(calibration(rows)["correlation"][0])


def test_curves() -> None:
    made = all_tables(_tidy(synthetic_rows(60)))
    curves = made["dice_by_clicks"]
    assert {series: part["clicks"].tolist() for series, part in curves.groupby("series")} == {
        "box, then clicks": [0, 2],
        "clicks at once": [5],
        "iterative clicks": [1, 3, 5],
    }
    assert made["dice_by_jitter"]["jitter"].tolist() == [0, 5, 10]
    three = only(made["overall"], mode="3pts", metric="dice")
    assert only(curves[curves["clicks"] == 3], series="iterative clicks")["mean"] == three["mean"]
    boxes = all_tables(few({"A/1": [0.5], "A/2": [0.6]}))
    assert not len(boxes["dice_by_clicks"]) and not len(boxes["dice_by_jitter"]) and not len(boxes["reached"])


def test_breakdowns_that_no_row_tells_are_left_out() -> None:
    assert {"dataset", "modality", "class", "size"} <= all_tables(_tidy(synthetic_rows(20))).keys()
    assert {"dataset", "modality", "class"}.isdisjoint(all_tables(_tidy(synthetic_rows(20, named=False))))


# ---------------------------------------------------------------- text


def test_text_and_markdown() -> None:
    made = all_tables(few({"A/1": [0.5, 0.5], "B|2/1": [1.0]}))
    assert format_table(made["dataset"]).splitlines() == [
        "Dice % by dataset   objects                  bbox",
        "A                         2                 50.00",
        "B|2                       1                100.00",
        "mean of datasets          3                 75.00",
        "mask-weighted mean        3  66.67 [50.0, 100.0]†",
        "† from fewer than 10 clusters (cases, or images where no case is known): the interval is too narrow to be "
        "relied on",
    ]
    markdown = format_table(made["dataset"], "markdown").splitlines()
    assert markdown[0] == "| Dice % by dataset | objects | bbox |" and markdown[1] == "|---|--:|--:|"
    assert markdown[3] == r"| B\|2 | 1 | 100.00 |"


@pytest.mark.parametrize("cases", [2, 9, 10])
def test_intervals_from_few_cases_are_marked_everywhere(cases: int) -> None:
    made = all_tables(few({f"A/{case}": [0.5 + case / 100, 0.6] for case in range(cases)}))["overall"]
    text, markdown, latex = (format_table(made, format) for format in ("text", "markdown", "latex"))
    marked = cases < 10
    assert ("]†" in text) == ("]†" in markdown) == (r"]\textdagger{}" in latex) == marked
    said = "from fewer than 10 clusters (cases, or images where no case is known)"
    assert (
        (text.splitlines()[-1].startswith(f"† {said}")) == (markdown.splitlines()[-1].startswith(f"† {said}")) == marked
    )
    assert (latex.splitlines()[-1].startswith(rf"{{\footnotesize \textdagger{{}} {said}")) == marked
    assert latex.count("textdagger") == (text.count("†") if marked else 0)


def test_latex_escapes_names_and_has_one_cell_a_column() -> None:
    rows = few({"A_1 & B/1": [0.5], "50%#$/1": [1.0]})
    latex = format_table(all_tables(rows)["dataset"], "latex")
    assert r"A\_1 \& B & 1 & 50.00 \\" in latex and r"50\%\#\$ & 1 &" in latex
    body = [line for line in latex.splitlines() if line.endswith(r"\\")]
    assert {line.replace(r"\&", "").count("&") for line in body} == {2} and r"\begin{tabular}{lrr}" in latex


def test_csv_and_json_carry_every_number() -> None:
    table = all_tables(few({"A/1": [0.5], "B/2": [1 / 3]}))["dataset"]
    pd.testing.assert_frame_equal(
        pd.read_csv(io.StringIO(format_table(table, "csv"))), table, check_dtype=False, rtol=1e-14
    )
    records = json.loads(format_table(table, "json"), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert len(records) == len(table) and records[0]["mean"] == 0.5 and records[0]["low"] is None


@pytest.mark.parametrize("format", ["text", "markdown", "latex", "csv", "json"])
def test_every_table_in_every_format(format: str) -> None:
    for name, table in all_tables(_tidy(synthetic_rows(30)), resamples=50).items():
        assert format_table(table, format), name
