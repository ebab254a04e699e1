"""The window of a data folder: which of a scanner's values became 0 and 255 in its pictures.

`windows.json` beside the indexes has it for each data set that `make-index` has made from scans:

    {"KiTS": {"": [-150, 250]}, "PET": {"pet": [0, 10]}, "MR": {}}      # by modality, "" all; {}: minimum to maximum

A model keeps the window that it was trained with, so that scans are shown to it in the same way.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from sam_med2d.errors import DataError
from sam_med2d.json_files import read_json
from segment_anything.files import replacing

FILE = "windows.json"
Window = tuple[float, float]


def keep_windows(folder: Path, dataset: str, windows: Mapping[str, Window]) -> None:
    """windows: {modality, or "" for all: lowest and highest value}. Raises DataError: the file there is damaged."""
    known = _read(folder) | {dataset: {name: list(window) for name, window in windows.items()}}
    with replacing(folder / FILE) as path:
        path.write_text(json.dumps(known, indent=1, sort_keys=True), encoding="utf-8")


def copy_windows(source: str | Path, target: Path) -> None:
    """Where there are any. Raises DataError: the file there is damaged."""
    for dataset, windows in _read(Path(source)).items():
        keep_windows(target, dataset, {name: (low, high) for name, (low, high) in windows.items()})


def window_of(folder: str | Path) -> Window | None:
    """The one window that all pictures of a data folder have; None where there is none, or several, or it is not known.

    Raises DataError: the file there is damaged.
    """
    found = {tuple(window) for windows in _read(Path(folder)).values() for window in windows.values() or [()]}
    only = found.pop() if len(found) == 1 else ()
    return (float(only[0]), float(only[1])) if only else None


def difference(trained: Window | None, folder: str | Path) -> str:
    """What to say where a model was trained with another window than the pictures of a folder have; else nothing."""
    there = window_of(folder)
    if trained is None or there is None or there == trained:
        return ""
    return f"the model was trained with the window {shown(trained)}, and the pictures of {folder} have {shown(there)}"


def shown(window: Window) -> str:
    return "{:g} to {:g}".format(*window)


def _read(folder: Path) -> dict[str, dict[str, list[float]]]:
    path = folder / FILE
    if not path.exists():
        return {}
    content = read_json(path, "remove it, or make the index again")
    if not isinstance(content, dict) or not all(map(_are_windows, content.values())):
        raise DataError(f"{path}: must be {{data set: {{modality: [lowest, highest]}}}}; make the index again")
    return content


def _are_windows(windows: object) -> bool:
    return isinstance(windows, dict) and all(
        isinstance(window, list)
        and len(window) == 2
        and all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in window)
        and window[0] < window[1]
        for window in windows.values()
    )
