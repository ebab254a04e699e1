"""Where results may be written: below their folder, never over another result, never over a source.

    places = distinct({mask: png_name(mask) for mask in masks})     # {mask: a path below a folder}
    write_png(place(folder, places[mask]), picture)

Every name of an output that comes from data or flags goes through `distinct` and `place`, run names through
`run_folder`. Names are made such that a folder of results can be carried to any file system: none of them is special
on Windows, and no two differ by letter case or Unicode form alone.
"""

import hashlib
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TypeVar

from sam_med2d.errors import UsageError

Key = TypeVar("Key", bound=Hashable)

LONGEST_PART = 150  # bytes of UTF-8; file systems allow 255, encrypted ones 143 characters
LONGEST_PATH = 600  # bytes of UTF-8 of a whole path below its folder
LONGEST_ENDING = 12
FORBIDDEN = re.compile('[\x00-\x1f\x7f<>:"|?*\ud800-\udfff]')  # on some file system; the last are no characters
CONTROL = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
DEVICE = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9\u00b9\u00b2\u00b3])\s*(\..*)?$", re.IGNORECASE)
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")

# ---------------------------------------------------------------- names


def below(name: str) -> str:
    """Any text -> a path below a folder, with / between its parts, which every file system takes.

    The drive, what is absolute and all .. fall away; what cannot be in a file name becomes _. Different texts may
    become one path: see `distinct`.
    """
    parts = [part for text in re.split(r"[/\\]", name) if (part := _part(text))]
    path = "/".join(parts) or "unnamed"
    if len(_bytes(path)) > LONGEST_PATH:
        return parts[-1]
    return path


def _part(text: str) -> str:
    stem, ending = _split(FORBIDDEN.sub("_", text).strip(". "))
    part = _cut(stem, LONGEST_PART - len(_bytes(ending))).rstrip(". ") + ending
    return f"_{part}" if DEVICE.match(part) else part


def _split(part: str) -> tuple[str, str]:
    """name.png -> name, .png; what is too long for an ending is none."""
    stem, ending = os.path.splitext(part)
    return (stem, ending) if len(_bytes(ending)) <= LONGEST_ENDING else (part, "")


def _cut(text: str, length: int) -> str:
    """The beginning of a text, of at most so many bytes."""
    return _bytes(text)[:length].decode("utf-8", errors="ignore")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", errors="replace")


def folded(path: str) -> str:
    """What two paths share that some file system takes for one: letter case, Unicode form and invisible characters do
    not count.
    """
    if path.isascii():
        return path.lower()
    seen = "".join(letter for letter in path if unicodedata.category(letter) != "Cf")
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", seen).upper().casefold())


def distinct(wanted: Mapping[Key, str]) -> dict[Key, str]:
    """{what an output is of: the name it would like} -> {...: its path below the folder}, each another one.

    A name that is fine, and that no other output comes near, stays as it is (see `below`). Where two would be one
    file, or one the folder of another, each gets a hash of what it is of. So the names of a run depend neither on the
    order of its outputs nor on who writes them.
    """
    plain = {key: below(name) for key, name in wanted.items()}
    claims: dict[str, list[Key]] = defaultdict(list)
    folders: set[str] = set()
    for key, path in plain.items():
        path = folded(path)
        claims[path].append(key)
        while (path := path.rpartition("/")[0]) and path not in folders:
            folders.add(path)
    taken = {path for path, keys in claims.items() if len(keys) == 1 and path not in folders}
    found = {claims[path][0]: plain[claims[path][0]] for path in taken}
    for key in sorted(plain.keys() - found.keys(), key=repr):
        found[key] = _marked(plain[key], f"{key!r} {wanted[key]!r}", taken | folders)
        taken.add(folded(found[key]))
    return {key: found[key] for key in wanted}


def _marked(path: str, of: str, taken: set[str]) -> str:
    """The path with a hash in its last part, before the ending: of the text, and of the first number that will do."""
    folder, slash, name = path.rpartition("/")
    stem, ending = _split(name)
    number = 0
    while True:
        text = f"{of} {number}" if number else of
        mark = "-" + hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
        marked = f"{folder}{slash}{_cut(stem, LONGEST_PART - len(_bytes(mark + ending)))}{mark}{ending}"
        if folded(marked) not in taken:
            return marked
        number += 1


def png_name(name: str) -> str:
    """.png is added after any other ending."""
    return name if name.lower().endswith(".png") else f"{name}.png"


def without_endings(names: Sequence[str]) -> dict[str, str]:
    """a/b.png -> a/b, as the base of what is written for it.

    Names that would become one keep their endings.
    """
    bare = Counter(Path(name).with_suffix("") for name in names)
    return {
        name: name if bare[Path(name).with_suffix("")] > 1 else Path(name).with_suffix("").as_posix() for name in names
    }


def cell(text: str) -> str:
    """A text for a CSV table that people open: what a spreadsheet would compute gets a ' before it."""
    return f"'{text}" if text.startswith(FORMULA) else text


# ---------------------------------------------------------------- places


def place(folder: Path, name: str) -> Path:
    """Where an output of `distinct` lies in its folder. Raises UsageError where a link leads out of the folder."""
    path = folder / name
    if not _real(path.parent).is_relative_to(_real(folder)):
        raise UsageError(f"{path.parent}: is a link to {_real(path.parent)}, outside {folder}; remove the link")
    return path


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def run_folder(parent: str | Path, name: str) -> Path:
    """The folder of a run, from --run_name. Raises UsageError where that is no name of a folder below `parent`."""
    windows = PureWindowsPath(name)
    parts = {*windows.parts, *PurePosixPath(name).parts}
    if not parts or ".." in parts or windows.drive or windows.root:
        raise UsageError(f"--run_name {name!r}: must name a folder below {parent}; leave out .. and what is absolute")
    if CONTROL.search(name) or any(len(_bytes(part)) > LONGEST_PART for part in parts):
        raise UsageError(f"--run_name {_cut(name, 40)!r}: cannot be the name of a folder; choose a short, plain one")
    return Path(parent) / name


def check_no_input(outputs: Iterable[str | Path], inputs: Iterable[str | Path]) -> None:
    """Raises UsageError where a file or folder that would be written is one that is read, whatever links lead there.

    An input inside a folder that would be written counts as well.
    """
    files: dict[tuple[int, int], Path] = {}
    folders: list[tuple[Path, Path]] = []
    real_parents: dict[str, Path] = {}
    for output in map(Path, outputs):
        if output.is_dir():
            folders.append((_real(output), output))
        elif (stamp := _stamp(output)) is not None:
            files[stamp] = output
    if not files and not folders:  # nothing is there yet that could be lost
        return
    for given in inputs:
        stamp = _stamp(given)
        over = files.get(stamp) if stamp else None
        if over is None and folders:
            parent, name = os.path.split(given)
            if parent not in real_parents:
                real_parents[parent] = _real(Path(parent))
            real = _real(Path(given)) if os.path.islink(given) else real_parents[parent] / name
            over = next((shown for folder, shown in folders if real.is_relative_to(folder)), None)
        if over is not None:
            raise UsageError(
                f"{over}: would be written over, but {given} is read; choose another place for the results"
            )


def _stamp(path: str | Path) -> tuple[int, int] | None:
    """What tells a file from every other one; None where there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino
