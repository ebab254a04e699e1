"""A source of COCO instances: polygons and run-length encodings, one object an annotation."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from sam_med2d.coco import mask_of, sound
from sam_med2d.convert.cases import Case, Picture, cases_of_pictures
from sam_med2d.convert.objects import Preparation
from sam_med2d.convert.patterns import below, groups_of
from sam_med2d.data.decoding import is_turned, open_picture
from sam_med2d.data.names import with_slashes
from sam_med2d.data.reading import read_image
from sam_med2d.errors import DataError
from sam_med2d.json_files import LARGE, read_json

SHOWN = 5  # bad annotations that are named
NO = ("", "0", "None", "False", "false")  # of iscrowd
LONGEST_SHOWN = 80  # characters of a value in a message


@dataclass(frozen=True)
class CocoPictures:
    """Converter of images with COCO annotations."""

    preparation: Preparation
    modality: str = ""

    def pictures(self, case: Case, tally: Counter) -> Iterator[Picture]:
        for entry in case.data["pictures"]:
            size = (entry["height"], entry["width"])
            image = read_image(entry["image"], [size], keep_grey=True)
            height, width = image.shape[:2]
            if (height, width) != size:
                raise DataError(
                    f"{entry['image']}: has {width} x {height} pixels, its annotations are for {entry['width']} x "
                    f"{entry['height']}; give the image that was annotated"
                )
            if not self.preparation.keeps_shape(height, width):
                tally["pictures below --min_aspect"] += 1
                continue
            masks = (
                (
                    one["class"],
                    mask_of(one["segmentation"], height, width, f"annotation {one['id']} of {entry['image']}"),
                )
                for one in entry["annotations"]
            )
            yield Picture(entry["name"], image, self.preparation.objects(masks, tally), self.modality)


@dataclass
class _Document:
    """A file of annotations, with ids as texts, so that 1, 1.0 and "1" are one. refused: a line for each bad one."""

    path: Path
    files: dict[str, dict]
    names: dict[str, object]
    annotations: list[dict]
    refused: list[str] = field(default_factory=list)


def find_coco(annotations: Path, images: Path, crowd: bool = False, case: str | None = None) -> list[Case]:
    """The images that have annotations. An annotation that is bad is left out and named; it costs no other.

    crowd: also regions that stand for a group of objects (iscrowd). case: see patterns.groups_of.
    Raises DataError, UsageError.
    """
    document = _document(annotations)
    of_image: dict[str, list[dict]] = defaultdict(list)
    crowds = without = 0
    for one in document.annotations:
        if _key(one.get("iscrowd")) not in NO and not crowd:
            crowds += 1
        elif not one.get("segmentation"):
            without += 1
        elif reason := _contradiction(one, document):
            document.refused.append(f"annotation {shown(one.get('id'))} {reason}")
        else:
            of_image[_key(one["image_id"])].append(one)
    entries = _entries(of_image, images, document)
    for count, what in (
        (crowds, "annotation(s) of crowds are left out; --crowd keeps them"),
        (without, "annotation(s) have no segmentation"),
        (len(document.files) - len(of_image), "image(s) have no annotation and are left out"),
        (len(document.refused), f"annotation(s) are bad and left out: {'; '.join(document.refused[:SHOWN])}"),
    ):
        if count and entries:
            print(f"{count} {what}")
    if not entries:
        raise DataError(f"{annotations}: {_why_nothing(crowds, document)}")
    return cases_of_pictures(list(entries.items()), groups_of(list(entries), case))


def _why_nothing(crowds: int, document: _Document) -> str:
    if document.refused:
        more = f" (and {len(document.refused) - 1} more)" if len(document.refused) > 1 else ""
        return f"has no annotation that can be used: {document.refused[0]}{more}"
    if crowds:
        return f"all {crowds} annotation(s) with a mask are of crowds; --crowd keeps them"
    return "has no annotation with a segmentation; boxes alone make no masks"


def _contradiction(one: dict, document: _Document) -> str:
    """What is wrong with an annotation beside its segmentation; nothing if all is well."""
    image, category = _key(one.get("image_id")), _key(one.get("category_id"))
    if image not in document.files:
        return f"is of image {shown(image)}, which is not listed; correct or remove it"
    if category not in document.names:
        return f"is of category {shown(category)}, which is not listed; correct or remove it"
    for what, text in (
        ("file name", document.files[image]["file_name"]),
        ("category's name", document.names[category]),
    ):
        if not isinstance(text, (str, int)) or not str(text).strip():
            return f"is of image {shown(image)}: its {what} is {shown(text)}; it must be a text"
        if "\0" in str(text) or any("\ud800" <= letter <= "\udfff" for letter in str(text)):
            return f"is of image {shown(image)}: its {what} {shown(text)} holds what is no letter; correct it"
    if PurePosixPath(with_slashes(str(document.files[image]["file_name"]))).name in ("", ".."):
        return f"is of image {shown(image)}: its file name {shown(document.files[image]['file_name'])} names a folder"
    return ""


def _entries(of_image: dict[str, list[dict]], images: Path, document: _Document) -> dict[str, dict]:
    """{name of the picture: what its case needs}, of those images of which an annotation is sound. Raises DataError."""
    entries: dict[str, dict] = {}
    short = 0
    for number, members in of_image.items():
        file_name = with_slashes(str(document.files[number]["file_name"]))
        name, path = str(PurePosixPath(file_name).with_suffix("")), below(images, file_name)
        if name in entries:
            raise DataError(f"{document.path}: two images are called {file_name}; correct it")
        kept = []
        try:
            height, width = _size(document.files[number], path)
        except DataError as error:
            document.refused += [f"annotation {shown(one.get('id'))}: {error}" for one in members]
            continue
        for one in members:
            try:
                what = f"annotation {shown(one.get('id'))} of {path}"
                segmentation, dropped = sound(one["segmentation"], height, width, what)
            except DataError as error:
                document.refused.append(str(error))
                continue
            short += dropped
            class_name = str(document.names[_key(one["category_id"])])
            kept.append({"id": one.get("id"), "class": class_name, "segmentation": segmentation})
        if kept:
            entries[name] = {"image": path, "height": height, "width": width, "annotations": kept}
    if short:
        print(f"{short} part(s) of polygons have fewer than three points and are left out")
    return entries


def _size(image: dict, path: str) -> tuple[int, int]:
    """(height, width) of what was annotated: as listed, else that of the file. Raises DataError."""
    listed = [image.get("height"), image.get("width")]
    if all(side is not None for side in listed):
        numbers = [int(side) for side in map(_key, listed) if re.fullmatch("[0-9]{1,6}", side)]
        if len(numbers) < 2 or not all(numbers):
            raise DataError(
                f"{path}: its size is listed as {shown(listed)} (height, width); correct it, or leave it out"
            )
        return numbers[0], numbers[1]
    file = open_picture(path)
    header = file.header
    if header.orientation == 1:
        return header.size
    turned = is_turned(file, [header.size, header.size_turned], "its annotations, which list no size,")
    return header.size_turned if turned else header.size


def _key(value: object) -> str:
    """An id as text, whether it was written as a number or as a text."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


def shown(value: object) -> str:
    """For a message, of one line and not long."""
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else str(value)
    return text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + "..."


def _document(path: Path) -> _Document:
    content = _read(path)
    files: dict[str, dict] = {}
    for one in content["images"]:
        if files.setdefault(_key(one["id"]), one) is not one:
            raise DataError(f"{path}: two images have the id {shown(one['id'])}; correct it")
    names: dict[str, object] = {}
    for one in content["categories"]:
        if names.setdefault(_key(one["id"]), one["name"]) != one["name"]:
            raise DataError(f"{path}: two categories have the id {shown(one['id'])}; correct it")
    return _Document(path, files, names, content["annotations"])


def _read(path: Path) -> dict:
    content = read_json(path, "give a file of COCO instances", most=LARGE)
    wanted = {"images": ("id", "file_name"), "annotations": (), "categories": ("id", "name")}
    for key, fields in wanted.items():
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(
            isinstance(one, dict) and all(f in one for f in fields) for one in entries
        ):
            raise DataError(
                f"{path}: '{key}' must be a list of objects"
                + (f" with {', '.join(fields)}" if fields else "")
                + "; it is no file of COCO instances"
            )
    return content
