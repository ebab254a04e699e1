"""Prompt modes by name: what the simulated annotator gives the model before an object is scored.

bbox            the exact box of the true mask in the S x S frame
bbox_jitter5    the same, each of its four sides moved by up to 5 pixels of the frame
bbox_drawn      a box as people draw them: each side moved by chance, in proportion to the box
1pt 3pts ...    iterative clicks: one on the object, then each time one on a wrong pixel of the last prediction, added
                to the earlier clicks, with the last mask fed back. 1pt, 3pts and 5pts share one sequence.
bbox+2pts       a box, exact, jittered or drawn, then two corrective clicks as above, the box staying
1shot 5shot ... clicks placed at once: half of them (rounded down, at least one) on the object, the rest off it
scribble 3scribbles ...     iterative strokes: one on the object, then each time one through the largest error
bbox+scribble bbox+2scribbles   a box, then corrective strokes, the box staying
lasso           a rough outline around the object: its box, and what it encloses as a mask
mask            the mask prompt alone: the truth at a quarter of the frame's resolution, averaged over 4 x 4 pixels

1..20pts        short for 1pt 2pts ... 20pts; bbox+0..5pts for bbox bbox+1pt ... bbox+5pts; 1..5scribbles alike
3pts@best       any of them, but of the model's answers the one that the truth calls the best is scored
3pts@swapped    the answer to the prompts of the next object of the picture, scored against this one: low where a model
                listens to its prompts
bbox@zoom 5pts@zoom     a box or clicks in pixels of the picture, asked of the predictor that looks at small ones closer
"""

import argparse
import re
from collections.abc import Iterable
from typing import NamedTuple

DEFAULT_MODES = ("bbox", "1pt", "3pts", "5pts")

BEST, SWAPPED = "best", "swapped"
SCORED = (BEST, SWAPPED)  # what may stand behind an @, and
ZOOM = "zoom"  # behind a box or clicks

MOST_OF_A_RANGE = 100  # modes


class Mode(NamedTuple):
    """start: "box", "click", "at_once", "stroke", "lasso" or "mask".

    clicks: all clicks, or strokes, that were given when the object is scored. jitter: of a box, in pixels of the frame.
    drawn: whether the box is as people draw them. strokes: whether what corrects a box are strokes.
    scored: "", or one of SCORED. zoomed: whether the predictor is asked, which looks at small objects closer.
    """

    name: str
    start: str
    clicks: int = 0
    jitter: int = 0
    drawn: bool = False
    strokes: bool = False
    scored: str = ""
    zoomed: bool = False

    @property
    def sequence(self) -> str:
        """Modes of one sequence are answered along the way: its clicks are drawn, and predicted from, once."""
        if self.zoomed:
            return f"{self._replace(zoomed=False).sequence}@{ZOOM}"
        if self.start == "box":
            box = f"bbox_jitter{self.jitter}" if self.jitter else "bbox_drawn" if self.drawn else "bbox"
            return f"{box}+scribbles" if self.strokes else box
        if self.start == "at_once":
            return f"{self.clicks}shot"
        return {"click": "clicks", "stroke": "scribbles"}.get(self.start, self.start)

    @property
    def by_strokes(self) -> bool:
        """Whether strokes are what it is corrected by."""
        return self.strokes or self.start == "stroke"


def parse_mode(name: str) -> Mode:
    """Raises ValueError for a name that is no mode."""
    asked, at, scored = name.partition("@")
    mode = _parse(asked)
    if mode and scored == ZOOM and mode.start in ("box", "click") and not mode.by_strokes:
        return mode._replace(name=f"{mode.name}@{ZOOM}", zoomed=True)
    if mode is None or (at and scored not in SCORED):
        raise ValueError(
            f"unknown prompt mode {name!r}: use bbox, bbox_jitter5, bbox_drawn, clicks such as 1pt or 5pts, 1..20pts, "
            "bbox+2pts, 5shot, scribble, 3scribbles, bbox+scribble, lasso, or mask; and behind each @best or @swapped, "
            "and @zoom behind a box or clicks"
        )
    return mode._replace(name=mode.name + at + scored, scored=scored)


def _parse(name: str) -> Mode | None:
    if name in ("mask", "lasso"):
        return Mode(name, name)
    if match := re.fullmatch(r"([1-9]\d*)pts?", name):
        return Mode(_clicks(match[1]), "click", int(match[1]))
    if match := re.fullmatch(r"([1-9]\d*)shot", name):
        return Mode(name, "at_once", int(match[1]))
    if match := re.fullmatch(r"([1-9]\d*)?scribbles?", name):
        return Mode(_scribbles(match[1] or "1"), "stroke", int(match[1] or 1))
    box = r"bbox(_drawn|_jitter[1-9]\d*)?"
    if match := re.fullmatch(box + r"(?:\+([1-9]\d*)pts?)?", name):
        kind, clicks = match[1] or "", match[2]
        name = f"bbox{kind}" + (f"+{_clicks(clicks)}" if clicks else "")
        return Mode(name, "box", int(clicks or 0), _jitter(kind), kind == "_drawn")
    if match := re.fullmatch(box + r"\+([1-9]\d*)?scribbles?", name):
        kind, count = match[1] or "", match[2] or "1"
        return Mode(f"bbox{kind}+{_scribbles(count)}", "box", int(count), _jitter(kind), kind == "_drawn", strokes=True)
    return None


def parse_modes(names: Iterable[str]) -> list[Mode]:
    """The modes of some names, each once, ranges such as 1..20pts as the modes they stand for. Raises ValueError."""
    return [*dict.fromkeys(mode for name in names for mode in _expanded(name))]


def longest_of(modes: Iterable[Mode]) -> dict[str, Mode]:
    """{sequence: its mode with the most clicks}, which is answered for all of them."""
    longest: dict[str, Mode] = {}
    for mode in modes:
        if mode.clicks >= longest.get(mode.sequence, mode).clicks:
            longest[mode.sequence] = mode
    return longest


def _expanded(name: str) -> list[Mode]:
    match = re.fullmatch(r"(.*?)(\d+)\.\.(\d+)(pts|scribbles)((?:@.*)?)", name)
    if not match:
        return [parse_mode(name)]
    before, first, last, kind, behind = match[1], int(match[2]), int(match[3]), match[4], match[5]
    if not first <= last < first + MOST_OF_A_RANGE or (not first and not before.endswith("+")):
        raise ValueError(f"prompt modes {name!r}: give a first and a last number, such as 1..20pts or bbox+0..5pts")
    return [
        parse_mode((f"{before}{count}{kind}" if count else before.removesuffix("+")) + behind)
        for count in range(first, last + 1)
    ]


def mode_name(text: str) -> str:
    """An argparse type for the name of a prompt mode -> the name as it is written everywhere: 3pt becomes 3pts.

    Ranges stay as they are. A name, and not a Mode, so that the values of flags stay plain text wherever they are kept.
    """
    try:
        modes = _expanded(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return modes[0].name if len(modes) == 1 else text


def _jitter(kind: str) -> int:
    return int(kind.removeprefix("_jitter")) if kind.startswith("_jitter") else 0


def _clicks(count: str) -> str:
    return f"{count}pt{'s' * (count != '1')}"


def _scribbles(count: str) -> str:
    return "scribble" if count == "1" else f"{count}scribbles"


def known_mode(name: str) -> Mode:
    """With start "" for a name that is no mode of this version: such rows are in the tables, and on no curve."""
    try:
        return parse_mode(name)
    except ValueError:
        return Mode(name, start="")
