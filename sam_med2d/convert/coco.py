"""A source of COCO instances: polygons and run-length encodings, one object an annotation."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sam_med2d.coco import mask_of
from sam_med2d.convert.cases import Case, Picture, cases_of_pictures
from sam_med2d.convert.images import read_picture
from sam_med2d.convert.objects import Preparation
from sam_med2d.convert.patterns import below, groups_of
from sam_med2d.errors import DataError
from sam_med2d.json_files import LARGE, read_json


@dataclass(frozen=True)
class CocoPictures:
    """Converter of images with COCO annotations."""

    preparation: Preparation
    modality: str = ""

    def pictures(self, case: Case, tally: Counter) -> Iterator[Picture]:
        for entry in case.data["pictures"]:
            image = read_picture(entry["image"])
            height, width = image.shape[:2]
            if (height, width) != (entry["height"], entry["width"]):
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


def find_coco(annotations: Path, images: Path, crowd: bool = False, case: str | None = None) -> list[Case]:
    """The images that have annotations.

    crowd: also regions that stand for a group of objects (iscrowd). case: see patterns.groups_of.
    Raises DataError, UsageError.
    """
    content = _read(annotations)
    names = {one["id"]: str(one["name"]) for one in content["categories"]}
    of_image: dict[object, list[dict]] = defaultdict(list)
    crowds = without = 0
    files = {one["id"]: one for one in content["images"]}
    for one in content["annotations"]:
        what = f"{annotations}: annotation {one.get('id')}"
        if one.get("image_id") not in files:
            raise DataError(f"{what} is of image {one.get('image_id')}, which is not listed; correct or remove it")
        if one.get("category_id") not in names:
            raise DataError(
                f"{what} is of category {one.get('category_id')}, which is not listed; correct or remove it"
            )
        if one.get("iscrowd") and not crowd:
            crowds += 1
        elif not one.get("segmentation"):
            without += 1
        else:
            of_image[one["image_id"]].append(
                {"id": one.get("id"), "class": names[one["category_id"]], "segmentation": one["segmentation"]}
            )
    if not of_image:
        raise DataError(f"{annotations}: has no annotation with a segmentation; boxes alone make no masks")
    for count, what in (
        (crowds, "annotation(s) of crowds are left out; --crowd keeps them"),
        (without, "annotation(s) have no segmentation"),
        (len(files) - len(of_image), "image(s) have no annotation and are left out"),
    ):
        if count:
            print(f"{count} {what}")
    entries = {}
    for number, members in of_image.items():
        image = files[number]
        name = str(PurePosixPath(image["file_name"]).with_suffix(""))
        if name in entries:
            raise DataError(f"{annotations}: two images are called {image['file_name']}; correct it")
        entries[name] = {
            "image": below(images, image["file_name"]),
            "height": image["height"],
            "width": image["width"],
            "annotations": members,
        }
    return cases_of_pictures(list(entries.items()), groups_of(list(entries), case))


def _read(path: Path) -> dict:
    content = read_json(path, "give a file of COCO instances", most=LARGE)
    wanted = {"images": ("id", "file_name", "height", "width"), "annotations": (), "categories": ("id", "name")}
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
