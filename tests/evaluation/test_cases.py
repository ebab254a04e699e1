"""Cases as one: against the volumes that their slices make, with numpy and SciPy alone."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import distance_transform_edt

from sam_med2d.errors import DataError
from sam_med2d.evaluation.cases import CASE_METRICS, COLUMNS, KEYS, pool_of, read_cases, write_cases
from sam_med2d.evaluation.estimates import summarise
from sam_med2d.evaluation.grids import format_table, grid_of_cases
from sam_med2d.evaluation.surface import Tolerance, outline, surface_metrics, surfaces_of

SPACINGS = [None, (1.0, 1.0), (0.5, 0.5), (0.7, 1.3)]


def volume(seed: int, slices: int = 5) -> np.ndarray:
    """(slices, H, W) bool: an ellipse that changes from slice to slice."""
    draw = np.random.default_rng(seed)
    y, x = np.mgrid[:40, :50]

    def ellipse() -> np.ndarray:
        (b, a), (down, right) = draw.uniform(5, 12, 2), draw.normal(size=2)
        return ((y - 20 - down) / b) ** 2 + ((x - 25 - right) / a) ** 2 < 1

    return np.array([ellipse() for _ in range(slices)])


def keys(**known: str) -> dict[str, object]:
    return dict.fromkeys(KEYS) | {"dataset": "A", "class": "liver", "case": "1", "axis": "z", "mode": "bbox"} | known


def pools(
    predicted: np.ndarray, truth: np.ndarray, spacing, tolerance: Tolerance | float = 2, **known: str
) -> list[dict]:
    return [
        pool_of(keys(**known), one, other, surfaces_of(one, other, tolerance, spacing), spacing) | {"objects": 1}
        for one, other in zip(predicted, truth)
    ]


def distances(predicted: np.ndarray, truth: np.ndarray, spacing) -> tuple[list[float], list[float]]:
    """Of all slices, in millimetres, or pixels without a spacing; the diagonal where nothing was predicted."""
    sampling = spacing or (1, 1)
    there, back = [], []
    for one, other in zip(map(outline, predicted), map(outline, truth)):
        if one.any():
            there += distance_transform_edt(~other, sampling=sampling)[one].tolist()
            back += distance_transform_edt(~one, sampling=sampling)[other].tolist()
        else:
            back += [float(np.hypot(*np.multiply(truth.shape[1:], sampling)))] * int(other.sum())
    return there, back


@pytest.mark.parametrize("missed", [False, True])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_a_case_is_its_slices_together(tmp_path: Path, spacing, missed: bool) -> None:
    predicted, truth = volume(0), volume(1)
    if missed:
        predicted[2] = False
    assert write_cases(tmp_path / "cases.csv", pools(predicted, truth, spacing)) == 1
    row = read_cases(tmp_path).iloc[0]
    assert row["dice"] == pytest.approx(2 * (predicted & truth).sum() / (predicted.sum() + truth.sum()))
    assert (row["true_volume"], row["predicted_volume"], row["slices"]) == (truth.sum(), predicted.sum(), 5)
    assert row["volume_error"] == pytest.approx(abs(predicted.sum() / truth.sum() - 1))
    there, back = distances(predicted, truth, None)
    assert row["nsd"] == pytest.approx(np.mean(np.array(there + back) <= 2))
    assert row["hd95"] == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)))
    if spacing is None:
        assert np.isnan(row["hd95_mm"])
    else:
        there, back = distances(predicted, truth, spacing)
        assert row["hd95_mm"] == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)))


def test_one_slice_is_what_its_row_is(tmp_path: Path) -> None:
    predicted, truth = volume(2, 1), volume(3, 1)
    write_cases(tmp_path / "cases.csv", pools(predicted, truth, None))
    row, expected = read_cases(tmp_path).iloc[0], surface_metrics(predicted[0], truth[0], 2.0)
    assert {name: row[name] for name in expected} == pytest.approx(expected)


def test_means_are_over_cases(tmp_path: Path) -> None:
    """Every case has one vote, however many slices; classes and axes are apart."""
    lines = [
        *pools(volume(0, 9), volume(1, 9), (1.0, 1.0)),
        *pools(volume(2, 1), volume(3, 1), (1.0, 1.0), case="2"),
        *pools(volume(4, 2), volume(5, 2), (1.0, 1.0), **{"class": "spleen"}),
    ]
    write_cases(tmp_path / "cases.csv", lines)
    cases = read_cases(tmp_path)
    assert cases[["class", "case"]].astype(str).to_numpy().tolist() == [["liver", "1"], ["liver", "2"], ["spleen", "1"]]
    table = summarise(cases, "class", CASE_METRICS, totals=True)
    counts = {row[0].text: row[2].text for row in grid_of_cases(table).body}
    assert counts["liver"] == counts["mean of classes"] == "2" and counts["spleen"] == "1"  # a case with two is one
    dice = table[table["metric"] == "dice"].set_index("class")["mean"]
    own = cases["dice"].to_numpy()
    assert dice["liver"] == pytest.approx(own[:2].mean()) and dice["spleen"] == pytest.approx(own[2])
    assert dice["mean of classes"] == pytest.approx((own[:2].mean() + own[2]) / 2)
    assert table[table["class"] == "liver"]["clusters"].tolist() == [2] * len(CASE_METRICS)
    text = format_table(table)
    assert "HD95 mm" in text and "volume error %" in text.splitlines()[0] and text.splitlines()[1].startswith("liver")


def test_vanished_objects_add_to_the_volume_alone(tmp_path: Path) -> None:
    predicted, truth = volume(0), volume(1)
    gone = {**keys(), "true_volume": 7, "objects": 0}
    write_cases(tmp_path / "cases.csv", [*pools(predicted, truth, None), gone, {**gone, "case": "2"}])
    one, two = read_cases(tmp_path).itertuples()
    assert one.true_volume == truth.sum() + 7 and one.slices == 5 and one.hd95 > 0
    assert one.dice == pytest.approx(2 * (predicted & truth).sum() / (predicted.sum() + truth.sum() + 7))
    assert (two.dice, two.volume_error, two.true_volume) == (0, 1, 7) and np.isnan(two.hd95) and np.isnan(two.nsd)


def test_without_cases_there_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "cases.csv").write_text("of an earlier run")
    assert write_cases(tmp_path / "cases.csv", []) == 0 and read_cases(tmp_path) is None


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", ",".join(COLUMNS) + "\n" + "," * (len(COLUMNS) - 1) + "\n"])
def test_what_is_no_table_of_cases_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "cases.csv").write_text(text)
    with pytest.raises(DataError, match=r"cases\.csv: is no .*run test.py again"):
        read_cases(tmp_path)


# ---------------------------------------------------------------- tolerances


@pytest.mark.parametrize(
    "text, tolerance, pixels",
    [
        ("2", Tolerance(2), 2),
        (2.0, Tolerance(2), 2),
        ("1.5px", Tolerance(1.5), 1.5),
        ("1.5 mm", Tolerance(1.5, "mm"), 3),
        ("1%", Tolerance(1, "%"), 0.5),
        ("0", Tolerance(0), 0),
    ],
)
def test_tolerances(text: str | float, tolerance: Tolerance, pixels: float) -> None:
    assert Tolerance.of(text) == tolerance == Tolerance.of(tolerance.plain())
    assert tolerance.pixels(30, 40, (0.5, 0.5)) == pytest.approx(pixels)


@pytest.mark.parametrize("text", ["", "-1", "2cm", "mm", "nan", "inf", "1e999", "two"])
def test_what_is_no_tolerance(text: str) -> None:
    with pytest.raises(ValueError, match="is no distance"):
        Tolerance.of(text)


def test_a_tolerance_in_millimetres_follows_the_pixels() -> None:
    """Two lines, three rows apart: of rows of 0.5 mm that is 1.5 mm, whatever columns are."""
    predicted, truth = np.zeros((2, 20, 20), bool)
    predicted[5, 3:15] = truth[8, 3:15] = True
    for spacing, tolerance, expected in [
        ((0.5, 0.5), 1.5, 1.0),
        ((0.5, 0.5), 1.4, 0.0),
        ((0.5, 2.0), 1.5, 1.0),
        ((1.0, 0.1), 2.9, 0.0),
        ((1.0, 0.1), 3.0, 1.0),
    ]:
        found = surface_metrics(predicted, truth, Tolerance(tolerance, "mm"), spacing=spacing)
        assert found == {"nsd": expected, "hd95": 3.0}
    with pytest.raises(ValueError, match="needs the spacing"):
        surface_metrics(predicted, truth, Tolerance(1, "mm"))


def test_pooled_nsd_is_of_millimetres_too(tmp_path: Path) -> None:
    predicted, truth, spacing = volume(0), volume(1), (0.7, 1.3)
    write_cases(tmp_path / "cases.csv", pools(predicted, truth, spacing, Tolerance(1.5, "mm")))
    there, back = distances(predicted, truth, spacing)
    assert pd.read_csv(tmp_path / "cases.csv")["nsd"].item() == pytest.approx(np.mean(np.array(there + back) <= 1.5))
