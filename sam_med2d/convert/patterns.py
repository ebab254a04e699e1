"""Which files belong together, by their names.

A pattern is a path below a folder with fields in braces, such as `{case}/segmentation.nii.gz` or `{class}/{image}.png`.
A field stands for anything without a slash, `{image}` for anything; one that comes twice stands for the same text. * is
any text without a slash, or none.
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from sam_med2d.data.names import case_hint, case_pattern
from sam_med2d.errors import DataError, UsageError
from sam_med2d.image_files import is_hidden

SHOWN = 3


def walk(folder: str | os.PathLike) -> list[str]:
    """Paths of all files below a folder, relative to it, with / between, sorted.

    Hidden ones are left out (image_files.is_hidden), links are followed.
    Raises DataError: no such folder, or it cannot be listed.
    """
    top = os.fspath(folder)
    if not os.path.isdir(top):
        raise DataError(f"{top}: no such folder; check the path")
    found, visited = [], set()

    def fail(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be listed ({error.strerror}); check its permissions") from error

    for here, folders, files in os.walk(top, onerror=fail, followlinks=True):
        real = os.path.realpath(here)
        if real in visited:  # a link to a folder above
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        relative = os.path.relpath(here, top)
        found += [
            name if relative == "." else f"{relative}/{name}".replace(os.sep, "/")
            for name in files
            if not is_hidden(name)
        ]
    return sorted(found)


def compile_pattern(pattern: str, fields: tuple[str, ...], image_length: int = 0) -> re.Pattern:
    """image_length: of what {image} stands for; 0: any. Raises UsageError for a field that has no meaning here."""
    image = f".{{{image_length}}}" if image_length else ".+?"
    expression, seen = "", set()
    for part in re.split(r"(\{\w*\}|\*)", pattern):
        if part == "*":
            expression += "[^/]*"
        elif part.startswith("{") and part.endswith("}"):
            name = part[1:-1]
            if name not in fields:
                raise UsageError(
                    f"pattern '{pattern}': {part} is not one of {', '.join(f'{{{field}}}' for field in fields)}"
                )
            expression += f"(?P={name})" if name in seen else f"(?P<{name}>{image if name == 'image' else '[^/]+?'})"
            seen.add(name)
        else:
            expression += re.escape(part)
    return re.compile(expression)


def matches(pattern: str, names: Iterable[str], fields: tuple[str, ...]) -> list[tuple[str, dict[str, str]]]:
    """[(name, {field: text}), ...] of those names that fit a pattern."""
    compiled = compile_pattern(pattern, fields)
    return [(name, match.groupdict()) for name in names if (match := compiled.fullmatch(name))]


def matches_of_images(
    pattern: str, names: Iterable[str], fields: tuple[str, ...], images: Iterable[str]
) -> dict[str, list[dict[str, str]]]:
    """{name: [{field: text}, ...]} of those names that fit a pattern: one for each image that {image} may stand for."""
    known, names = set(images), list(names)
    found: dict[str, list[dict[str, str]]] = defaultdict(list)
    for length in sorted({len(image) for image in known}, reverse=True):
        compiled = compile_pattern(pattern, fields, length)
        for name in names:
            if (match := compiled.fullmatch(name)) and match["image"] in known:
                found[name].append(match.groupdict())
    return found


def groups_of(names: list[str], expression: str | None, what: str = "--case") -> dict[str, str]:
    """{name of a picture: the case it belongs to}, so that no two splits get pictures of one case.

    expression: of Python's re; its first group in the name is the case. None: every picture is a case, which is refused
    where names that differ in a last number alone may be slices of one patient, or pictures in one folder be of one.
    Raises UsageError.
    """
    if expression is None:
        families = defaultdict(list)
        for name in names:
            families[re.sub(r"[\W_]*[a-z]?\d+$", "", name, flags=re.IGNORECASE)].append(name)
            if "/" in name:
                families[name.rpartition("/")[0] + "/"].append(name)
        members = max(families.values(), key=len)
        if len(members) > 1:
            example = f"'{case_hint(names, members)}'"
            raise UsageError(
                f"are {members[0]} and {members[1]} of one patient? Splits are made by case: give {what} "
                f"{example} (a regular expression; its first group is the case), or {what} '(.+)' if every "
                "picture is a case"
            )
        return {name: name for name in names}
    compiled = case_pattern(expression, what)
    groups = {}
    for name in names:
        match = compiled.fullmatch(name)
        if not match or not match[1]:
            raise UsageError(f"{what} {expression}: does not fit {name}; '{case_hint(names)}' fits all names")
        groups[name] = match[1]
    return groups


def stem(name: str, suffixes: tuple[str, ...]) -> str | None:
    """A path without its ending, if that is one of `suffixes` (longest first), else None."""
    lower = name.lower()
    return next((name[: -len(suffix)] for suffix in suffixes if lower.endswith(suffix)), None)


def some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def below(folder: str | os.PathLike, name: str) -> str:
    return str(Path(folder) / name)
