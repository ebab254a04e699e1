"""The demo's table of what was lost elsewhere, from what test.py leaves."""

from pathlib import Path

import demo

from sam_med2d.evaluation.results import Results, write_results


def test_elsewhere_has_a_row_a_run_and_what_it_started_from(tmp_path: Path) -> None:
    as_it_is = [
        {"data": "phantoms", "mode": mode, "objects": 48, "Dice": dice}
        for mode, dice in (("bbox", 0.64), ("5pts", 0.5))
    ]
    trained = [row | {"Dice": row["Dice"] - 0.25, "before": row["Dice"], "change": -0.25} for row in as_it_is]
    for name, rows in (("sam", as_it_is), ("sam-med2d", trained)):
        (tmp_path / name).mkdir()
        write_results(tmp_path / name, Results(tables={"elsewhere": rows}))
    table = demo.table_of_elsewhere({"SAM": tmp_path / "sam", "SAM-Med2D": tmp_path / "sam-med2d"})
    assert table.splitlines() == [
        "| Elsewhere (48 objects of phantoms), Dice % | bbox | before | 5pts | before |",
        "| ---|---:|---:|---:|---: |",
        "| SAM | 64.00 | – | 50.00 | – |",
        "| SAM-Med2D | 39.00 | 64.00 | 25.00 | 50.00 |",
    ]
