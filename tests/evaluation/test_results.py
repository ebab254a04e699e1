"""results.json: what is written reads back, and files of earlier versions open."""

import json
from pathlib import Path

import pytest

from sam_med2d.errors import DataError
from sam_med2d.evaluation.results import Results, read_results, write_results

RESULTS = Results(
    means={"dice": {"bbox": 0.75, "1pt": 0.5}, "hd95": {"bbox": 3.5, "1pt": 9.0}},
    objects=44,
    images=16,
    unscored=1,
    images_per_second=3.5,
    seed=7,
    model_type="vit_t",
    processes=2,
    provenance={"weights_hash": "c" * 64, "data_hash": "d" * 64, "device": "cpu", "versions": {"torch": "2.13.0"}},
    flags={"image_size": 128, "nsd_tolerance": 2.0, "prompt_path": None},
    tables={"noc": [{"mode": "5pts", "metric": "nof80", "mean": 0.25, "low": None}]},
)

# as test.py wrote it when a failure was called "never"; shortened
EARLIER = """{
 "dice": {"bbox": 0.75, "1pt": 0.5}, "hd95": {"bbox": 3.5, "1pt": 9.0},
 "objects": 44, "images": 16, "unscored": 1, "images_per_second": 3.5, "seed": 7, "model_type": "vit_t", "processes": 2,
 "weights_hash": "WEIGHTS", "data_hash": "DATA", "device": "cpu", "versions": {"torch": "2.13.0"},
 "flags": {"image_size": 128, "nsd_tolerance": 2.0, "prompt_path": null},
 "tables": {"noc": [{"mode": "5pts", "metric": "never80", "mean": 0.25, "low": null}]}
}""".replace("WEIGHTS", "c" * 64).replace("DATA", "d" * 64)


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    write_results(tmp_path, RESULTS)
    assert read_results(tmp_path) == RESULTS


def test_the_file_is_flat_for_those_who_read_it_themselves(tmp_path: Path) -> None:
    write_results(tmp_path, RESULTS)
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["dice"]["bbox"] == 0.75 and content["weights_hash"] == "c" * 64 and content["seed"] == 7
    assert [*content] == [*json.loads(EARLIER)]  # the same names in the same order as ever


def test_files_of_earlier_versions_open(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(EARLIER)
    assert read_results(tmp_path) == RESULTS


def test_what_comparisons_ask_for(tmp_path: Path) -> None:
    asked = RESULTS.data_hash, RESULTS.device, RESULTS.image_size, RESULTS.nsd_tolerance
    assert asked == ("d" * 64, "cpu", 128, 2.0)
    nothing = Results()
    assert {nothing.data_hash, nothing.device, nothing.image_size, nothing.nsd_tolerance, nothing.seed} == {None}
    assert read_results(tmp_path) is None


@pytest.mark.parametrize(
    "text, said",
    [
        ("{", "not valid JSON"),
        ("[]", "is no results file of test.py \\(it holds a list\\)"),
        ('{"tables": {"overall": 3}}', "is no results file of test.py \\(its table 'overall' is no list of rows\\)"),
        (
            '{"tables": {"overall": [3.5]}}',
            "is no results file of test.py \\(its table 'overall' is no list of rows\\)",
        ),
        ('{"tables": {"a": [{"metric": ["dice"]}]}}', "is no results file of test.py \\(its table 'a' has a metric"),
        ('{"tables": []}', "is no results file of test.py \\('tables' holds a list\\)"),
    ],
)
def test_anything_else_ends_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(DataError, match=f"results.json: {said}.*; run test.py again"):
        read_results(tmp_path)
