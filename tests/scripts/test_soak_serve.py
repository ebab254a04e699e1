"""A short form of the soak of the server: clients that are killed, cut off and wrong."""

import re

import pytest

pytest.importorskip("blosc2", reason='blosc2 is not installed: pip install -e ".[serve]"')

import soak_serve


def test_masks_stay_right_under_clients_that_are_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(soak_serve, "LIFE", (1.0, 4.0))  # long enough for a mask, on a slow machine too
    monkeypatch.setattr(soak_serve, "FLAGS", [*soak_serve.FLAGS, "--image_size", "64"])
    monkeypatch.setattr(soak_serve, "LOOK", 0.2)
    soak_serve.main(["--requests", "120", "--log", str(tmp_path / "log.txt"), "--least", "3"])
    told = (tmp_path / "log.txt").read_text()
    counted = ("requests", "of which were killed", "half requests", "refused", "masks and answers, all of them right")
    done, kills, half, refused, right = (int(re.search(rf"(\d+) {what}", told)[1]) for what in counted)
    assert done >= 120 and kills >= 4 and min(half, refused, right) > 0, told
