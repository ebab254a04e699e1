"""Prompts of people for many images: a JSON or CSV file -> the objects of each image."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sam_med2d.data.names import with_slashes
from sam_med2d.data.tables import delimiter_of, rows_of
from sam_med2d.errors import DataError
from sam_med2d.json_files import read_bounded, read_json
from segment_anything import BACKGROUND, FOREGROUND, ObjectPrompt

COLUMNS = ("image", "name", "x0", "y0", "x1", "y1", "x", "y", "label", "mask")


FARTHEST = 1e9  # coordinates are smaller, in any picture
LONGEST_SHOWN = 80  # letters of a name in a message


class Wanted(NamedTuple):
    """One object that somebody asks for. mask: a file, or nothing; prompt: everything else that is said of it."""

    name: str
    prompt: ObjectPrompt
    mask: str | None = None


def prompt_of(
    clicks: Sequence[tuple[Sequence[float] | np.ndarray, int]], box: Sequence[float] | np.ndarray | None
) -> ObjectPrompt:
    """clicks: (x, y) and label."""
    points = np.array([xy for xy, _ in clicks], np.float32) if clicks else None
    labels = np.array([label for _, label in clicks], np.int64) if clicks else None
    return ObjectPrompt(points, labels, None if box is None else np.array(box, np.float32))


def wanted_by_file(path: Path, folder: Path, images: list[str]) -> dict[str, list[Wanted]]:
    """The objects of each image that the file names. Raises DataError."""
    found = dict(from_csv(path, _text_of(path)) if path.suffix.lower() == ".csv" else from_json(path))
    if not found:
        raise DataError(f"{path}: holds no prompts; give at least one image with one object")
    bare = Counter(Path(name).name for name in images)
    by_name = {Path(name).name: name for name in images if bare[Path(name).name] == 1} | {name: name for name in images}
    missing = [name for name in found if name not in by_name]
    if missing:
        more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DataError(
            f"{path}: names {missing[0]}, which is not in {folder}{more}; write image names as they are below --input"
        )
    wanted = {by_name[name]: objects for name, objects in found.items()}
    if len(wanted) < len(found):
        raise DataError(f"{path}: names an image twice, with and without its folder; write its objects together")
    return wanted


def _text_of(path: Path) -> str:
    try:
        # spreadsheets begin a CSV with a byte order mark
        return read_bounded(path, "check the path").decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text; save it as JSON or as CSV in UTF-8") from error


def from_json(path: Path) -> Iterator[tuple[str, list[Wanted]]]:
    content = read_json(path, "correct it")
    if not isinstance(content, dict) or not all(isinstance(objects, list) and objects for objects in content.values()):
        raise DataError(
            f'{path}: must hold {{image: [{{"name": ..., "box": ...}}, ...]}}; see sam-med2d predict --help'
        )
    for image, objects in content.items():
        yield (
            with_slashes(image),
            [_from_entry(entry, f"{path}: {image}, object {number}") for number, entry in enumerate(objects)],
        )


def _from_entry(entry: object, where: str) -> Wanted:
    known = {"name", "box", "points", "labels", "mask"}
    if not isinstance(entry, dict) or entry.keys() - known:
        raise DataError(f"{where}: must hold {', '.join(sorted(known))} and nothing else; see sam-med2d predict --help")
    if not entry.keys() & {"box", "points", "mask"}:
        raise DataError(f"{where}: has neither box, points nor mask; add one")
    given = _array(entry.get("points") or None, (-1, 2), where, "points as [[x, y], ...]")
    points = [] if given is None else [*given]
    labels = entry.get("labels", [FOREGROUND] * len(points))
    if not isinstance(labels, list) or len(labels) != len(points) or any(label not in (0, 1) for label in labels):
        raise DataError(f"{where}: labels must be 1 (on the object) or 0 (off it), one for each point")
    box = _array(entry.get("box"), (4,), where, "box as [x0, y0, x1, y1]")
    mask = entry.get("mask")
    if mask is not None and not isinstance(mask, str):
        raise DataError(f"{where}: mask must be the path of an image file")
    return _wanted(str(entry.get("name", "object")), [*zip(points, labels)], box, mask, where)


def _wanted(name: str, clicks: list, box: Sequence[float] | np.ndarray | None, mask: str | None, where: str) -> Wanted:
    """Raises DataError: clicks that say nothing of the object, or names that are no text."""
    if box is None and not mask and all(label == BACKGROUND for _, label in clicks):
        raise DataError(
            f"{where}: its clicks all have label {BACKGROUND}, which says what the object is not; add a click on it, a "
            "box or a mask"
        )
    for text in filter(None, (name, mask)):
        if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
            raise DataError(f"{where}: {text[:LONGEST_SHOWN]!a} holds what is no letter; correct it")
    return Wanted(name, prompt_of(clicks, box), mask and with_slashes(mask))


def _array(values: object, shape: tuple[int, ...], where: str, wanted: str) -> np.ndarray | None:
    if values is None:
        return None
    try:
        array = np.array(values, np.float64)
    except (TypeError, ValueError, OverflowError):
        array = np.zeros(0)
    if array.ndim != len(shape) or array.shape[-1] != shape[-1]:
        raise DataError(f"{where}: write {wanted}")
    _check_places(array, where)
    return array.astype(np.float32)


def _check_places(numbers: Sequence[float] | np.ndarray, where: str) -> None:
    """Raises DataError for what no picture is large enough for, infinity and NaN among them."""
    for number in np.ravel(numbers):
        if not abs(number) < FARTHEST:
            raise DataError(f"{where}: {number:g} is no place in a picture; correct it")


def from_csv(path: Path, text: str) -> Iterator[tuple[str, list[Wanted]]]:
    """Semicolons or tabs may stand for the commas; where they do, numbers may have commas for points."""
    rows = rows_of(text, path)
    columns = [name.strip() for name in next(rows, (0, []))[1]]
    decimal_comma = delimiter_of(text.lstrip().partition("\n")[0]) != ","
    unknown = [name for name in columns if name not in COLUMNS]
    if "image" not in columns or unknown:
        raise DataError(
            f"{path}: its first line must name columns out of {','.join(COLUMNS)}, image among them"
            + (f"; it has {unknown[0][:LONGEST_SHOWN]!r}" if unknown else "")
        )
    parts: dict[tuple[str, str, int], dict] = {}
    for line, row in rows:
        where = f"{path}, line {line}"
        cells = dict.fromkeys(COLUMNS, "") | {name: cell.strip() for name, cell in zip(columns, row)}
        image = with_slashes(cells["image"])
        if not image:
            raise DataError(f"{where}: names no image")
        key = image, cells["name"], 0 if cells["name"] else line
        part = parts.setdefault(key, {"clicks": [], "box": None, "mask": None, "where": where})
        box, click = (_cells(cells, names, where, decimal_comma) for names in (("x0", "y0", "x1", "y1"), ("x", "y")))
        if not (box or click or cells["mask"]):
            raise DataError(f"{where}: has neither a box (x0,y0,x1,y1), a click (x,y) nor a mask; add one")
        for what, value in (("box", box), ("mask", cells["mask"] or None)):
            if value and part[what]:
                raise DataError(
                    f"{where}: a second {what} of {cells['name']} in {image}; give each object a name of its own"
                )
            part[what] = value or part[what]
        if click:
            if cells["label"] not in ("", "0", "1"):
                raise DataError(f"{where}: label {cells['label']!r}; it must be 1 (on the object) or 0 (off it)")
            part["clicks"].append((click, int(cells["label"] or FOREGROUND)))
    found: dict[str, list[Wanted]] = {}
    for (image, name, _), part in parts.items():
        wanted = _wanted(name or "object", part["clicks"], part["box"], part["mask"], part["where"])
        found.setdefault(image, []).append(wanted)
    yield from found.items()


def _cells(cells: dict[str, str], names: Sequence[str], where: str, decimal_comma: bool) -> list[float] | None:
    """All of the numbers, or none. Raises DataError."""
    values = [cells[name] for name in names]
    if not any(values):
        return None
    try:
        numbers = [float(value.replace(",", ".") if decimal_comma else value) for value in values]
    except ValueError:
        raise DataError(
            f"{where}: {','.join(names)} are {','.join(values)}; write a number in each or in none"
        ) from None
    _check_places(numbers, where)
    return numbers
