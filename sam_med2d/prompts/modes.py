"""Prompt modes by name: what the simulated annotator gives the model before an object is scored.

bbox            the exact box of the true mask in the S x S frame
bbox_jitter5    the same, each of its four sides moved by up to 5 pixels of the frame
1pt 3pts ...    iterative clicks: one on the object, then each time one on a wrong pixel of the last prediction, added
                to the earlier clicks, with the last mask fed back. 1pt, 3pts and 5pts share one sequence.
bbox+2pts       a box, exact or jittered, then two corrective clicks as above, the box staying
1shot 5shot ... clicks placed at once: half of them (rounded down, at least one) on the object, the rest off it
mask            the mask prompt alone: the truth at a quarter of the frame's resolution, averaged over 4 x 4 pixels
"""

import argparse
import re
from typing import NamedTuple

DEFAULT_MODES = ("bbox", "1pt", "3pts", "5pts")


class Mode(NamedTuple):
    """start: "box", "click", "at_once" or "mask".

    clicks: all clicks that were given when the object is scored. jitter: of a box, in pixels of the frame.
    """

    name: str
    start: str
    clicks: int = 0
    jitter: int = 0

    @property
    def sequence(self) -> str:
        """Modes of one sequence are answered along the way: its clicks are drawn, and predicted from, once."""
        if self.start == "box":
            return f"bbox_jitter{self.jitter}" if self.jitter else "bbox"
        return {"click": "clicks", "at_once": f"{self.clicks}shot", "mask": "mask"}[self.start]


def parse_mode(name: str) -> Mode:
    """Raises ValueError for a name that is no mode."""
    if name == "mask":
        return Mode(name, "mask")
    if match := re.fullmatch(r"([1-9]\d*)pts?", name):
        return Mode(_clicks(match[1]), "click", int(match[1]))
    if match := re.fullmatch(r"([1-9]\d*)shot", name):
        return Mode(name, "at_once", int(match[1]))
    if match := re.fullmatch(r"bbox(?:_jitter([1-9]\d*))?(?:\+([1-9]\d*)pts?)?", name):
        jitter, clicks = match[1], match[2]
        name = "bbox" + (f"_jitter{jitter}" if jitter else "") + (f"+{_clicks(clicks)}" if clicks else "")
        return Mode(name, "box", int(clicks or 0), int(jitter or 0))
    raise ValueError(
        f"unknown prompt mode {name!r}: use bbox, bbox_jitter5, clicks such as 1pt or 5pts, bbox+2pts, 5shot, or mask"
    )


def mode_name(text: str) -> str:
    """An argparse type for the name of a prompt mode -> the name as it is written everywhere: 3pt becomes 3pts.

    A name, and not a Mode, so that the values of flags stay plain text wherever they are kept.
    """
    try:
        return parse_mode(text).name
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _clicks(count: str) -> str:
    return f"{count}pt{'s' * (count != '1')}"


def known_mode(name: str) -> Mode:
    """With start "" for a name that is no mode of this version: such rows are in the tables, and on no curve."""
    try:
        return parse_mode(name)
    except ValueError:
        return Mode(name, start="")
