"""Do the files of an index exist? Each folder is listed once, and not again while its time stamp stays."""

import json
import os
import time
from array import array
from collections.abc import Iterator

import numpy as np
from tqdm import tqdm
from xxhash import xxh3_64_intdigest

from sam_med2d.data.arrow_copy import Columns
from sam_med2d.errors import DataError
from sam_med2d.json_files import parse_json
from segment_anything.files import replacing

MISSING_SHOWN = 3  # missing paths an error lists; the rest are counted

JUST_NOW = 2.0  # seconds; a folder that changed since may change again without a new time stamp


def check_files(source: str, root: str, columns: Columns) -> None:
    """Raise DataError if a path of the index does not exist. Lists each folder once: no stat a file.

    Of an index with a copy, the time stamps of its folders are kept beside the copy: while they stay as they are, no
    file was removed, and nothing is listed.
    """
    known = _read_checked(columns, root)
    current = {folder: _changed_at(root, folder) for folder in known}
    unchanged = {folder for folder, stamp in known.items() if stamp is not None and current[folder] == stamp}
    if known and len(unchanged) == len(known):
        return
    hashes: dict[bytes, array] = {}  # of the files of each folder; of 24 million files 190 MB
    for names in _names(columns):
        for name in names:
            cut = name.rfind(b"/") + 1
            of_folder = hashes.get(name[:cut])
            if of_folder is None:
                of_folder = hashes[name[:cut]] = array("Q")
            of_folder.append(xxh3_64_intdigest(name[cut:]))
    wanted = {os.fsdecode(folder): of_folder for folder, of_folder in hashes.items()}
    stamps = {folder: _changed_at(root, folder) for folder in wanted}  # before they are listed

    missing = {}
    for folder, of_folder in tqdm(
        wanted.items(),
        desc="looking for the files",
        unit="folder",
        leave=False,
        dynamic_ncols=True,
        disable=columns.path is None,
    ):
        if folder not in unchanged and len(not_listed := _not_listed(os.path.join(root, folder), _distinct(of_folder))):
            missing[folder] = not_listed
    if missing:
        _raise_if_missing(source, root, columns, missing)
    if columns.path:
        _write_checked(columns, root, stamps)


def _names(columns: Columns) -> Iterator[list[bytes]]:
    """Every path, in parts: images, then their masks."""
    for batch in columns.read_batches():
        yield batch["image"].to_pylist()
        yield batch["masks"].flatten().to_pylist()


def _distinct(hashes: array) -> np.ndarray:
    """Ascending. By sorting: numpy.unique makes a hash table, many times as large."""
    ordered = np.sort(np.frombuffer(hashes, np.uint64))
    return ordered[np.append(True, ordered[1:] != ordered[:-1])]


def _not_listed(folder: str, wanted: np.ndarray) -> np.ndarray:
    """Those of the hashes that are of no file name in the folder. Both are distinct and ascending."""
    found = np.zeros(len(wanted), bool)
    listed, enough = array("Q"), max(1 << 10, len(wanted)) // 4

    def mark() -> None:
        places, present = _look_up(np.sort(np.frombuffer(listed, np.uint64)), wanted)
        found[places[present]] = True

    try:
        with os.scandir(os.fsencode(folder) or b".") as entries:
            for entry in entries:
                listed.append(xxh3_64_intdigest(entry.name))
                # A small index of a folder with millions of files ends early.
                if len(listed) >= enough:
                    mark()
                    listed = array("Q")
                    if found.all():
                        return wanted[:0]
        mark()
    except (OSError, ValueError):  # ValueError: a null character in the path
        pass  # the folder is missing or cannot be listed; the files decide
    return wanted[~found]


def _look_up(hashes: np.ndarray, ordered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """-> of each hash its place in `ordered`, and whether it is there."""
    places = np.minimum(np.searchsorted(ordered, hashes), len(ordered) - 1)
    return places, ordered[places] == hashes


def _raise_if_missing(source: str, root: str, columns: Columns, suspects: dict[str, np.ndarray]) -> None:
    """suspects: of each folder, hashes of names that it does not list, ascending."""
    shown: dict[str, list[str]] = {folder: [] for folder in suspects}
    count = 0
    for names in _names(columns):
        in_folder: dict[bytes, list[bytes]] = {}
        for name in names:
            in_folder.setdefault(name[: name.rfind(b"/") + 1], []).append(name)
        for folder, here in ((os.fsdecode(folder), here) for folder, here in in_folder.items()):
            if folder not in suspects:
                continue
            hashes = np.fromiter(
                (xxh3_64_intdigest(name[name.rfind(b"/") + 1 :]) for name in here), np.uint64, len(here)
            )
            for i in np.flatnonzero(_look_up(hashes, suspects[folder])[1]).tolist():
                path = os.fsdecode(here[i])
                # A file system may open a name that it lists otherwise (letter case, Unicode form, backslashes).
                if os.path.isfile(os.path.join(root, path)):
                    continue
                count += 1
                if len(shown[folder]) < MISSING_SHOWN:
                    shown[folder].append(path)
    if count:
        first = [path for paths in shown.values() for path in paths][:MISSING_SHOWN]
        raise DataError(
            f"{source}: {count} listed file(s) missing under {root}: {', '.join(first)}"
            f"{', ...' if count > len(first) else ''}; restore them or take them out of the index"
        )


def _changed_at(root: str, folder: str) -> int | None:
    """When a folder last changed, in ns; None if that is unknown, or so recent that it may change again unseen."""
    try:
        stamp = os.stat(os.path.join(root, folder)).st_mtime_ns
    except (OSError, ValueError):
        return None
    return stamp if abs(time.time() - stamp / 1e9) > JUST_NOW else None


def _read_checked(columns: Columns, root: str) -> dict[str, int | None]:
    """{folder: when it had last changed before all its files were found}, of the same index under the same root."""
    if columns.path is None:
        return {}
    try:
        with open(f"{columns.path}.checked", "rb") as file:
            checked = parse_json(file.read())
        known = (checked["hash"], checked["root"]) == (columns.facts["hash"], root)
        return checked["folders"] if known and isinstance(checked["folders"], dict) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _write_checked(columns: Columns, root: str, stamps: dict[str, int | None]) -> None:
    try:
        with replacing(f"{columns.path}.checked") as path:
            path.write_text(json.dumps({"hash": columns.facts["hash"], "root": root, "folders": stamps}))
    except OSError:
        pass  # the folders are listed again next time
