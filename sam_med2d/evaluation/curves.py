"""Scores along something: clicks, the jitter of a box, the predicted IoU."""

import numpy as np
import pandas as pd

from sam_med2d.evaluation.columns import NOC_LEVELS
from sam_med2d.evaluation.estimates import scored
from sam_med2d.prompts.modes import BEST, SWAPPED, known_mode

CALIBRATION_BINS = 10


def calibration(rows: pd.DataFrame) -> pd.DataFrame:
    """Predicted against true IoU, object by object.

    -> a row a mode: mode, n, mean_absolute_error, bias (predicted minus true), correlation (Pearson; NaN where one of
    the two does not vary).
    """
    table = []
    for mode, part in _with_prediction(rows).groupby("mode", observed=True):
        error = part["predicted_iou"] - part["iou"]
        varies = len(part) > 1 and min(part["predicted_iou"].std(), part["iou"].std()) > 0
        table.append(
            {
                "mode": str(mode),
                "n": len(part),
                "mean_absolute_error": error.abs().mean(),
                "bias": error.mean(),
                "correlation": np.corrcoef(part["predicted_iou"], part["iou"])[0, 1] if varies else np.nan,
            }
        )
    return pd.DataFrame(table, columns=["mode", "n", "mean_absolute_error", "bias", "correlation"])


def calibration_bins(rows: pd.DataFrame) -> pd.DataFrame:
    """-> mode, bin_from, bin_to, n, predicted (mean), true (mean): CALIBRATION_BINS equal bins of the predicted IoU in
    0..1.

    The head is not confined to 0..1: what it predicts outside counts in the first or the last bin. Empty bins are left
    out.
    """
    rows = _with_prediction(rows)
    place = np.clip(np.floor(rows["predicted_iou"] * CALIBRATION_BINS), 0, CALIBRATION_BINS - 1).astype(int)
    groups = rows.assign(bin=place).groupby(["mode", "bin"], observed=True)
    table = groups.agg(n=("iou", "size"), predicted=("predicted_iou", "mean"), true=("iou", "mean")).reset_index()
    table.insert(1, "bin_from", table["bin"] / CALIBRATION_BINS)
    table.insert(2, "bin_to", (table["bin"] + 1) / CALIBRATION_BINS)
    return table.drop(columns="bin").astype({"mode": str})


def _with_prediction(rows: pd.DataFrame) -> pd.DataFrame:
    rows = scored(rows)
    return rows[rows["predicted_iou"].notna() & rows["iou"].notna()]


def click_curves(overall: pd.DataFrame) -> pd.DataFrame:
    """Dice against the number of clicks, from summarise(rows).

    -> series, clicks, mean, low, high, n: "iterative clicks" (1pt 3pts ...), "clicks at once" (5shot), "box, then
    clicks" (bbox counting as no click), "iterative scribbles"; and of each, where modes such as 3pts@best are there,
    "..., the best of the answers".
    """
    series = {
        "click": "iterative clicks",
        "at_once": "clicks at once",
        "box": "box, then clicks",
        "stroke": "iterative scribbles",
    }
    found = []
    for row in overall[overall["metric"] == "dice"].itertuples():
        mode = known_mode(row.mode)
        if mode.start in series and not (mode.jitter or mode.drawn or mode.strokes or mode.scored == SWAPPED):
            name = series[mode.start] + ", the best of the answers" * (mode.scored == BEST) + ", zoom" * mode.zoomed
            found.append((name, mode.clicks, row.mean, row.low, row.high, row.n))
    curves = pd.DataFrame(found, columns=["series", "clicks", "mean", "low", "high", "n"])
    for name in ("box, then clicks", "box, then clicks, zoom"):
        if not (curves["clicks"][curves["series"] == name] > 0).any():
            curves = curves[curves["series"] != name]  # a box alone is no curve
    return curves.sort_values(["series", "clicks"]).reset_index(drop=True)


def jitter_curve(overall: pd.DataFrame) -> pd.DataFrame:
    """Dice against box jitter, from summarise(rows).

    -> jitter (pixels, at most), mean, low, high, n; empty without such modes.
    """
    found = []
    for row in overall[overall["metric"] == "dice"].itertuples():
        mode = known_mode(row.mode)
        if mode.start == "box" and not (mode.clicks or mode.drawn or mode.scored or mode.zoomed):
            found.append((mode.jitter, row.mean, row.low, row.high, row.n))
    curve = pd.DataFrame(found, columns=["jitter", "mean", "low", "high", "n"])
    return curve.sort_values("jitter", ignore_index=True) if (curve["jitter"] > 0).any() else curve[:0]


def reached_curves(rows: pd.DataFrame) -> pd.DataFrame:
    """Share of objects that have reached a Dice within so many clicks, in the longest mode of iterative clicks.

    -> mode, level (80, 85, 90), clicks, share; empty without such a mode.
    """
    rows = scored(rows)
    modes = [m for m in map(known_mode, rows["mode"].unique()) if m.start == "click" and not (m.scored or m.zoomed)]
    found = []
    if modes:
        mode = max(modes, key=lambda mode: mode.clicks)
        part = rows[rows["mode"] == mode.name]
        for level in NOC_LEVELS:
            clicks = part[f"noc{level}"].where(part[f"nof{level}"] == 0)
            found += [(mode.name, level, k, (clicks <= k).mean()) for k in range(1, mode.clicks + 1)]
    return pd.DataFrame(found, columns=["mode", "level", "clicks", "share"])
