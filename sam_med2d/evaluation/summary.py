"""Every table that is made from the rows of an evaluation: summaries with intervals, calibration, curves.

    rows = read_rows("workdir/sammed")                  # the folder of a run, or its rows.csv or rows.parquet
    tables = all_tables(rows)
    print(format_table(tables["overall"]))              # grids.py; also "markdown", "latex", "csv", "json"

Conventions:
  - A row is one object in one mode. Rows whose status is not "ok" carry no metrics: they are counted and listed
    (`unscored`), and in no mean.
  - Numbers in tables are fractions and pixels. Only printed text shows per cent, and says so.
  - A cluster is a case where names tell the case (the same case name in two data sets is two cases), else an image.
    Intervals are 95 % percentile intervals of a bootstrap that resamples clusters: slices of one scan are no
    independent witnesses (Field and Welsh, Journal of the Royal Statistical Society B 69, 2007).
Definitions: docs/evaluation.md.
"""

import pandas as pd

from sam_med2d.errors import DataError
from sam_med2d.evaluation.cases import CASE_METRICS
from sam_med2d.evaluation.columns import MAIN_METRICS, NOC_METRICS
from sam_med2d.evaluation.curves import calibration, calibration_bins, click_curves, jitter_curve, reached_curves
from sam_med2d.evaluation.estimates import GROUPS, RESAMPLES, UNKNOWN, WEIGHTED, scored, summarise, unscored


def all_tables(
    rows: pd.DataFrame, *, cases: pd.DataFrame | None = None, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, pd.DataFrame]:
    """Every table of a run by name; breakdowns by names that no row tells are left out. Raises DataError: nothing
    scored.

    overall, noc, dataset, modality, class, size (as of summarise); calibration, calibration_bins, dice_by_clicks,
    reached, dice_by_jitter; case, by class, where `cases` are given, of read_cases.
    """
    objects = scored(rows)
    if objects.empty:
        reasons = ", ".join(f"{n} x {why}" for why, n in unscored(rows)["status"].value_counts().items() if n)
        raise DataError(f"no object could be scored ({reasons}); correct the data")
    overall = summarise(objects, metrics=(*MAIN_METRICS, *NOC_METRICS), resamples=resamples, seed=seed)
    is_noc = overall["metric"].isin(NOC_METRICS)
    noc = overall[is_noc & (overall["n"] > 0)]
    several = noc[~noc["mode"].isin(["1pt"])]  # with a cap of one click every NoC is 1
    tables = {"overall": overall[~is_noc], "noc": several if len(several) else noc}
    for by in GROUPS:
        if any(name != UNKNOWN for name in objects[by].unique()):
            totals = by != "size" and objects[by].nunique() > 1
            tables[by] = summarise(objects, by, totals=totals, resamples=resamples, seed=seed)
    if cases is not None:
        totals = cases["class"].nunique() > 1
        by_class = summarise(cases, "class", CASE_METRICS, totals=totals, resamples=resamples, seed=seed)
        tables["case"] = by_class[by_class["class"] != WEIGHTED]  # a patient has no more votes for more classes
    tables |= {
        "calibration": calibration(objects),
        "calibration_bins": calibration_bins(objects),
        "dice_by_clicks": click_curves(tables["overall"]),
        "reached": reached_curves(objects),
        "dice_by_jitter": jitter_curve(tables["overall"]),
    }
    return {name: table.reset_index(drop=True) for name, table in tables.items()}
