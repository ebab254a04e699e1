"""Objects of a test run that no model was asked for: masks without an object, and objects that vanish in the frame."""

import pandas as pd

from sam_med2d.data.vanishing import Vanished, told
from sam_med2d.evaluation.rows import ALONE, EMPTY, VANISHED, measured

LEAVE_OUT, ZERO = "leave_out", "zero"  # what becomes of objects that vanish


class LeftOut:
    """scored, unscored: objects with and without metrics; empty: masks without an object; vanished: said, or ""."""

    def __init__(self, rows: pd.DataFrame, shown_from: int, image_size: int) -> None:
        """rows: of read_rows; shown_from: the side of the frame that shows all objects; image_size: that of the run."""
        objects = rows[rows["status"] != ALONE]  # which is said in some modes alone
        objects = objects[objects["mode"] == objects["mode"].value_counts().idxmax()]
        self.scored = int(measured(objects).sum())
        self.unscored = len(objects) - self.scored
        self.empty = sorted(objects["mask"][objects["status"] == EMPTY].astype(str))
        gone = objects[objects["status"] == VANISHED]
        areas = {mask: Vanished(int(area), shown_from) for mask, area in zip(gone["mask"], gone["true_area"])}
        self.vanished_count = len(areas)
        self.vanished = told(areas, image_size) if areas else ""

    def nothing_scored(self) -> str:
        """Why there is nothing to make tables from."""
        reasons = [self.vanished] * bool(self.vanished)
        reasons += [f"{len(self.empty)} of its masks are empty: correct the index"] * bool(self.empty)
        return f"nothing of its test split can be scored: {'; '.join(reasons)}"

    def lines(self, vanished: str) -> list[str]:
        """What is said of them after a run. vanished: LEAVE_OUT or ZERO."""
        found = [f"{len(self.empty)} empty mask(s) skipped, such as {self.empty[0]}"] if self.empty else []
        if self.vanished:
            became = "they count as 0" if vanished == ZERO else f"in no mean, unless --vanished {ZERO} counts them as 0"
            found.append(f"{self.vanished}; {became}")
        return found
