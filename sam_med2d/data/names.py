"""File names of SA-Med2D-20M and its table of class names.

parse_name("masks/ct_00--AbdomenCT1K--Case_00011--x_0040--0003_000.png").dataset        # 'AbdomenCT1K'
read_class_names("data/SAMed2D_v1_class_mapping_id.json")["AbdomenCT1K"]                # {'liver': 1, ...}
"""

import os
import re
from collections.abc import Sequence
from typing import NamedTuple

from sam_med2d.errors import DataError, UsageError
from sam_med2d.json_files import read_json

CLASS_NAMES = "SAMed2D_v1_class_mapping_id.json"

# For Python's re and for RE2, which pyarrow searches whole columns with.
NAME_PATTERN = (
    r"^(?P<modality>[^_/]+)_(?P<sub_modality>[^/]+?)--(?P<dataset>[^/]+?)--(?P<case>[^/]+)"
    r"--(?:(?P<axis>[xyz])_(?P<slice>[0-9]+)|2d_none)(?:--(?P<class_id>[0-9]+)_(?P<instance>[0-9]+))?\.[a-zA-Z0-9]+$"
)

_NAME = re.compile(NAME_PATTERN)


class Name(NamedTuple):
    """The parts of an SA-Med2D-20M file name."""

    modality: str  # ct
    sub_modality: str  # 00
    dataset: str
    case: str
    axis: str  # x, y, z, or empty for sources that are pictures
    slice: int | None  # None with an empty axis
    class_id: int | None  # None, as is the instance, for images
    instance: int | None


def with_slashes(path: str) -> str:
    """A path of a file that people or programs wrote, on Windows perhaps -> the same with / between its parts."""
    return path.replace("\\", "/")


def parse_name(path: str | os.PathLike) -> Name | None:
    """An image's or a mask's path -> the parts of its file name, None if it is not one of SA-Med2D-20M."""
    match = _NAME.match(os.path.basename(path))
    if match is None:
        return None
    number = lambda group: None if match[group] is None else int(match[group])
    return Name(
        match["modality"],
        match["sub_modality"],
        match["dataset"],
        match["case"],
        match["axis"] or "",
        number("slice"),
        number("class_id"),
        number("instance"),
    )


def case_pattern(expression: str, what: str = "--case") -> re.Pattern[str]:
    """What tells the case of a picture by its name: the first group. Raises UsageError: it cannot."""
    try:
        compiled = re.compile(expression)
    except re.error as error:
        raise UsageError(f"{what} {expression}: not a regular expression ({error})") from error
    if not compiled.groups:
        raise UsageError(f"{what} {expression}: needs a group in parentheses, which is the case")
    return compiled


HINTS = (
    r"(.+)_\d+",  # what stands before the last number
    r"(?:.*/)?([^/]+?)[-_. ]+[A-Za-z]?\d+",
    r"(.+?)[\W_]*[A-Za-z]?\d+",
    r"(.+)/[^/]+",  # the folder
    r"(.+?)(?:[-_. ]+[A-Za-z]?\d+)?",  # as the first, where there is a number
    r"(?:.*/)?([^/]+)",  # each picture by itself
)


def case_hint(names: Sequence[str], together: Sequence[str] = ()) -> str:
    """An expression for --case that fits all these names, paths without their endings, and puts those of `together`
    into one case; one that tells nothing, as that all lie in one folder or each name is its own, is passed over.
    """
    every = {*names, *together}
    for hint in HINTS[:-1]:
        found = {name: match[1] for name in every if (match := re.fullmatch(hint, name))}
        cases = set(found.values())
        tells_nothing = cases == every or (len(cases) == 1 and cases == {os.path.dirname(name) for name in every})
        if found.keys() == every and len({found[name] for name in together}) <= 1 and not tells_nothing:
            return hint
    return HINTS[-1]


def read_class_names(path: str | os.PathLike) -> dict[str, dict[str, int]]:
    """SAMed2D_v1_class_mapping_id.json -> {dataset: {class name: id}}. Raises DataError."""
    classes = read_json(path, "get the file again, or check its permissions")
    if not isinstance(classes, dict):
        raise DataError(f"{path}: holds a {type(classes).__name__}; it must be {{dataset: {{class name: id}}}}")
    for dataset, ids in classes.items():
        if not isinstance(ids, dict):
            raise DataError(f"{path}: '{dataset}' holds a {type(ids).__name__}; it must be {{class name: id}}")
        for name, number in ids.items():
            try:
                ids[name] = int(number)
            except (TypeError, ValueError, OverflowError) as error:  # Overflow: infinity
                raise DataError(
                    f"{path}: class '{name}' of '{dataset}' has {number!r} for an id; it must be a number"
                ) from error
    return classes
