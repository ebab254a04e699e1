"""A source of nnU-Net v2: dataset.json, imagesTr, labelsTr and, where they are, imagesTs with labelsTs."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from sam_med2d.convert.cases import Case, cases_of_pictures
from sam_med2d.convert.classes import BACKGROUND, Classes
from sam_med2d.convert.images import SUFFIXES as PICTURES
from sam_med2d.convert.patterns import below, groups_of, some, walk
from sam_med2d.errors import DataError, UsageError
from sam_med2d.json_files import read_json

WHOLE = re.compile(r"[0-9]{1,9}")  # a number of a channel or a label
LONGEST_SHOWN = 80  # letters of a name in a message
FOLDERS = (("imagesTr", "labelsTr", ""), ("imagesTs", "labelsTs", "test"))


def read_dataset(folder: Path) -> dict:
    """dataset.json, checked. Raises DataError."""
    path = folder / "dataset.json"
    content = read_json(path, "give the folder of one dataset, such as Dataset001_Name")
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds a {type(content).__name__}; it must be an object")
    if "channel_names" not in content and "modality" in content:
        raise DataError(
            f"{path}: is of nnU-Net version 1 or of the Medical Segmentation Decathlon; convert it with "
            "nnUNetv2_convert_MSD_dataset or nnUNetv2_convert_old_nnUNet_dataset, or use the volumes subcommand"
        )
    for key in ("channel_names", "labels", "file_ending"):
        if key not in content:
            raise DataError(f"{path}: lacks '{key}'; it is no dataset.json of nnU-Net version 2")
    if wrong := next(_misfits(content), None):
        raise DataError(f"{path}: {wrong}; correct it, or write it again with nnU-Net version 2")
    return content


def _misfits(content: dict) -> Iterator[str]:
    """What a dataset.json holds in a form that it cannot have, a phrase each."""
    names, labels, listed = content["channel_names"], content["labels"], content.get("dataset")
    if not isinstance(names, dict) or not names or not all(WHOLE.fullmatch(number) for number in names):
        yield "'channel_names' must be {number: name}"
    if not isinstance(labels, dict):
        yield "'labels' must be {name: value}"
    else:
        for name, value in labels.items():
            several = value if isinstance(value, list) else [value]
            if not several or not all(
                WHOLE.fullmatch(f"{one:g}" if isinstance(one, float) else str(one)) for one in several
            ):
                yield f"label {name[:LONGEST_SHOWN]!a} must have a whole number, or a list of them"
    ending = content["file_ending"]
    if not isinstance(ending, str) or not re.fullmatch(r"\.[\w.]+", ending):
        yield "'file_ending' must be an ending, such as .nii.gz"
    if listed is not None and not (isinstance(listed, dict) and all(map(_is_listed, listed.values()))):
        yield "'dataset' must be {case: {images: [path, ...], label: path}}"


def _is_listed(one: object) -> bool:
    if not isinstance(one, dict) or not isinstance(one.get("images"), list):
        return False
    return all(isinstance(path, str) and path for path in (*one["images"], one.get("label")))


def classes_of(content: dict, unknown: str = "error") -> Classes:
    """Labels and regions (several values a class) by name; background and the ignore label are no objects."""
    names: list[tuple[str, tuple[int, ...]]] = []
    ignored: list[int] = []
    for name, value in content["labels"].items():
        values = tuple(int(v) for v in (value if isinstance(value, list) else [value]))
        if name == "ignore":
            ignored += values
        elif values != (BACKGROUND,):
            names.append((name, values))
    return Classes(tuple(names), tuple(ignored), unknown)


def find_nnunet(
    folder: Path, content: dict, channels: list[str] | None = None, patient: str | None = None
) -> list[Case]:
    """The cases with labels. Those of imagesTs are of the split "test".

    content: of read_dataset; channels: names or numbers of those to use; patient: see patterns.groups_of.
    Raises DataError, UsageError.
    """
    wanted = _channels(content["channel_names"], channels)
    ending = content["file_ending"]
    found: list[tuple[str, list[list[str]], str, str]] = []
    for images, labels, split in FOLDERS:
        if (folder / labels).is_dir():
            found += [
                (*one, split) for one in _labelled(folder, images, labels, ending, wanted, content.get("dataset"))
            ]
    if not found:
        raise DataError(
            f"{folder / 'labelsTr'}: holds no label with the ending {ending} and an image; check dataset.json"
        )
    groups = groups_of([name for name, *_ in found], patient or "(.+)", "--patient")
    if ending.lower() in PICTURES:
        return [
            case
            for split in ("", "test")
            for case in _cases_of_pictures([one for one in found if one[3] == split], groups, split)
        ]
    return [
        Case(
            name,
            groups[name],
            (*(path for path, _ in images), label),
            {"images": images, "labels": [[label, ""]]},
            split,
        )
        for name, images, label, split in sorted(found)
    ]


def _cases_of_pictures(
    found: list[tuple[str, list[list[str]], str, str]], groups: dict[str, str], split: str
) -> list[Case]:
    """Of one split. Where a case has several images, each is a picture."""
    entries, group_of = [], {}
    for name, images, label, _ in found:
        for number, (image, modality) in enumerate(images):
            picture = f"{name}_{number}" if len(images) > 1 else name
            entries.append((picture, {"image": image, "labels": label, "modality": modality}))
            group_of[picture] = groups[name]
    return cases_of_pictures(entries, group_of, split)


def _channels(names: dict[str, str], chosen: list[str] | None) -> list[tuple[int, str]]:
    """-> [(number, modality), ...]"""
    all_of_them = sorted((int(number), str(name)) for number, name in names.items())
    if not chosen:
        picked = all_of_them
    else:
        picked = [(number, name) for number, name in all_of_them if name in chosen or str(number) in chosen]
        strange = [
            one for one in chosen if one not in {name for _, name in picked} | {str(number) for number, _ in picked}
        ]
        if strange:
            raise UsageError(
                f"--channels {' '.join(strange)}: dataset.json has "
                f"{', '.join(f'{i} {name}' for i, name in all_of_them)}"
            )
    return [(number, name.lower()) for number, name in picked]


def _labelled(
    folder: Path, images: str, labels: str, ending: str, channels: list[tuple[int, str]], listed: dict | None
) -> list[tuple[str, list[list[str]], str]]:
    """[(case, [[image, modality], ...], label), ...] of one pair of folders, or those that dataset.json lists."""
    if listed is not None and images == "imagesTr":
        return [
            (
                name,
                [
                    [_beside(folder, one["images"][number]), modality]
                    for number, modality in channels
                    if number < len(one["images"])
                ],
                _beside(folder, one["label"]),
            )
            for name, one in sorted(listed.items())
        ]
    there = set(walk(folder / images)) if (folder / images).is_dir() else set()
    found, lacking = [], []
    for label in walk(folder / labels):
        if not label.endswith(ending):
            continue
        name = label[: -len(ending)]
        files = [
            [below(folder / images, f"{name}_{number:04d}{ending}"), modality]
            for number, modality in channels
            if f"{name}_{number:04d}{ending}" in there
        ]
        if len(files) == 1 and ending.lower() in PICTURES:  # a colour picture has its channels in one file
            files[0][1] = "".join(modality for _, modality in channels)
        elif len(files) < len(channels):
            lacking.append(name)
            continue
        found.append((name, files, below(folder / labels, label)))
    if lacking:
        raise DataError(
            f"{folder / images}: lacks an image (_0000{ending} ...) of {len(lacking)} case(s) with labels: "
            f"{some(lacking)}; restore it, or choose --channels"
        )
    return found


def _beside(folder: Path, path: str) -> str:
    return path if os.path.isabs(path) else str(folder / path)
