"""Prompts of people for many images: a JSON or CSV file -> the objects of each image."""

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sam_med2d.errors import DataError
from sam_med2d.json_files import read_bounded, read_json
from segment_anything import FOREGROUND, ObjectPrompt

COLUMNS = ("image", "name", "x0", "y0", "x1", "y1", "x", "y", "label", "mask")


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
        yield image, [_from_entry(entry, f"{path}: {image}, object {number}") for number, entry in enumerate(objects)]


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
    if entry.get("mask") is not None and not isinstance(entry["mask"], str):
        raise DataError(f"{where}: mask must be the path of an image file")
    return Wanted(str(entry.get("name", "object")), prompt_of([*zip(points, labels)], box), entry.get("mask"))


def _array(values: object, shape: tuple[int, ...], where: str, wanted: str) -> np.ndarray | None:
    if values is None:
        return None
    try:
        array = np.array(values, np.float32)
    except (TypeError, ValueError):
        array = np.zeros(0, np.float32)
    if array.ndim != len(shape) or array.shape[-1] != shape[-1]:
        raise DataError(f"{where}: write {wanted}")
    return array


def from_csv(path: Path, text: str) -> Iterator[tuple[str, list[Wanted]]]:
    reader = csv.DictReader(text.splitlines())
    columns = [name.strip() for name in reader.fieldnames or []]
    reader.fieldnames = columns
    unknown = [name for name in columns if name not in COLUMNS]
    if "image" not in columns or unknown:
        raise DataError(
            f"{path}: its first line must name columns out of {','.join(COLUMNS)}, image among them"
            + (f"; it has {unknown[0]!r}" if unknown else "")
        )
    parts: dict[tuple[str, str, int], dict] = {}
    for line, row in enumerate(reader, start=2):
        where = f"{path}, line {line}"
        cells = {name: (row.get(name) or "").strip() for name in COLUMNS}
        if not cells["image"]:
            raise DataError(f"{where}: names no image")
        key = cells["image"], cells["name"], 0 if cells["name"] else line
        part = parts.setdefault(key, {"clicks": [], "box": None, "mask": None})
        box, click = (_cells(cells, names, where) for names in (("x0", "y0", "x1", "y1"), ("x", "y")))
        if not (box or click or cells["mask"]):
            raise DataError(f"{where}: has neither a box (x0,y0,x1,y1), a click (x,y) nor a mask; add one")
        for what, value in (("box", box), ("mask", cells["mask"] or None)):
            if value and part[what]:
                raise DataError(
                    f"{where}: a second {what} of {cells['name']} in {cells['image']}; give each object a name of "
                    "its own"
                )
            part[what] = value or part[what]
        if click:
            if cells["label"] not in ("", "0", "1"):
                raise DataError(f"{where}: label {cells['label']!r}; it must be 1 (on the object) or 0 (off it)")
            part["clicks"].append((click, int(cells["label"] or FOREGROUND)))
    found: dict[str, list[Wanted]] = {}
    for (image, name, _), part in parts.items():
        found.setdefault(image, []).append(
            Wanted(name or "object", prompt_of(part["clicks"], part["box"]), part["mask"])
        )
    yield from found.items()


def _cells(cells: dict[str, str], names: Sequence[str], where: str) -> list[float] | None:
    """All of the numbers, or none. Raises DataError."""
    values = [cells[name] for name in names]
    if not any(values):
        return None
    try:
        return [float(value) for value in values]
    except ValueError:
        raise DataError(
            f"{where}: {','.join(names)} are {','.join(values)}; write a number in each or in none"
        ) from None
