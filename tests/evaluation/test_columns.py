"""The table of metrics, and that everything that names metrics is made from it."""

import argparse
from collections.abc import Callable

import pytest

import test as scoring
import train
from sam_med2d.commands import compare_runs
from sam_med2d.evaluation import metrics, surface
from sam_med2d.evaluation.columns import (
    CASES,
    CLICKS,
    MAIN_METRICS,
    MASKS,
    METRICS,
    NOC_METRICS,
    SURFACES,
    TABLE,
    TABLES,
    computed_from,
)
from sam_med2d.evaluation.rows import COLUMNS


def test_every_metric_is_computed_where_the_table_says() -> None:
    assert tuple(metrics.METRICS) == computed_from(MASKS)
    assert tuple(surface.METRICS) == computed_from(SURFACES)
    assert {metric.source for metric in TABLE} == {MASKS, SURFACES, CLICKS, TABLES, CASES}
    assert {*MAIN_METRICS, *NOC_METRICS, *computed_from(CASES)} == METRICS.keys() and len(METRICS) == len(TABLE)


def test_rows_have_a_column_of_each_metric_but_those_of_tables() -> None:
    for metric in TABLE:
        assert (metric.column in COLUMNS) == (metric.source not in (TABLES, CASES))
        assert metric.source in (TABLES, CASES) or COLUMNS[metric.column] == metric.type


@pytest.mark.parametrize(
    "column, value, text, name",
    [
        ("dice", 0.12345, "12.35", "Dice"),
        ("hd95", 3.14159, "3.14", "HD95"),
        ("noc85", 4.5, "4.50", "NoC@85"),
        ("nof85", 0.7273, "72.7", "NoF@85"),
        ("nsd", float("nan"), "–", "NSD"),
    ],
)
def test_how_a_metric_is_printed(column: str, value: float, text: str, name: str) -> None:
    assert METRICS[column].text(value) == text and METRICS[column].name == name


def test_directions() -> None:
    better_when_higher = [name for name, metric in METRICS.items() if metric.higher_is_better]
    assert better_when_higher == ["dice", "iou", "nsd", "dice_auc", "nsd_auc"]


def flags(parse: Callable[[list[str]], argparse.Namespace], *words: str) -> argparse.Namespace:
    return parse([*words])


def test_flags_take_the_metrics_of_the_table(capsys) -> None:
    for name in METRICS:
        tables = ["case" if METRICS[name].source == CASES else "overall"]
        assert flags(compare_runs.parse_args, "a", "b", "--metric", name, "--tables", *tables).metric == name
    assert flags(scoring.parse_args).metrics == [*MAIN_METRICS]
    for name in computed_from(MASKS):
        assert flags(train.parse_args, "--metrics", name).metrics == [name]
    for parse, words in (
        (compare_runs.parse_args, ("a", "b", "--metric", "never80")),
        (scoring.parse_args, ("--metrics", "noc80")),
        (train.parse_args, ("--metrics", "nsd")),
    ):
        with pytest.raises(SystemExit) as end:
            flags(parse, *words)
        assert end.value.code == 2 and "invalid choice" in capsys.readouterr().err
