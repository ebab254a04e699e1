"""The ablation: a run is made once, a failure is a line, and the table says what all seeds agree on."""

import json

import ablate
import pytest


def line(row: str, seed: int, box: float) -> dict:
    return {"row": row, "seed": seed, "flags": "", "minutes": 1.0, "dice": {"own": {"bbox": box, "1pt": box - 10}}}


def test_a_change_is_bold_where_three_seeds_agree() -> None:
    runs = [line("ours", seed, 80 + seed) for seed in range(3)]
    runs += [line("better", seed, 82 + seed) for seed in range(3)] + [line("chance", s, 79 + 2 * s) for s in range(3)]
    runs.append({"row": "worse", "seed": 0, "flags": "", "failed": "error: step 3: the loss is nan"})
    text = ablate.table(runs, ["ours", "better", "chance", "worse"])
    rows = {cells[1].strip(): cells[2:] for cells in (one.split("|") for one in text.split("\n")) if len(cells) > 2}
    header = [cell.strip() for cell in rows["change"]]
    box = header.index("own bbox")
    assert rows["ours"][box].strip() == "81.0"
    assert rows["better"][box].strip() == "83.0 **+2.0 [+2.0, +2.0]**"
    assert rows["chance"][box].strip() == "81.0 +0.0 [-1.0, +1.0]"
    assert "worse, seed 0: error: step 3: the loss is nan" in text


def test_a_call_that_was_stopped_goes_on(tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "runs.jsonl").write_text(json.dumps(line("mine", 0, 80)) + "\n" + '{"row": "mine", "se')
    asked = []
    monkeypatch.setattr(ablate, "made", lambda args, row, seed, flags: asked.append((row, seed)) or {"failed": "no"})
    with pytest.raises(SystemExit):
        ablate.main(["--row", "mine"])
    ablate.main(["--output", str(tmp_path), "--row", "mine:", "--seeds", "0", "1"])
    assert asked == [("mine", 1)]
    ablate.main(["--output", str(tmp_path), "--row", "mine:", "--seeds", "0", "1"])
    assert asked == [("mine", 1)], "runs that have their line are not made again"


def test_a_run_that_fails_has_a_line_that_says_so(tmp_path) -> None:
    ablate.main(["--output", str(tmp_path), "--row", "odd: --lr -1", "--seeds", "0"])
    assert "--lr must be above 0" in json.loads((tmp_path / "runs.jsonl").read_text())["failed"]
