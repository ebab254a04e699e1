"""Sources of pictures: images with a mask file an object, or with label maps."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sam_med2d.convert.cases import Case, Picture, cases_of_pictures
from sam_med2d.convert.classes import Classes, is_one_of, values_in, whole_numbers
from sam_med2d.convert.objects import Preparation
from sam_med2d.convert.patterns import below, groups_of, matches, matches_of_images, some, stem, walk
from sam_med2d.data.reading import read_image, read_label_map, read_mask
from sam_med2d.errors import DataError, UsageError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
SEPARATORS = "_-. "
MANY_VALUES = 1000  # distinct values without names: an image was taken for a label map


# ---------------------------------------------------------------- a mask file an object


@dataclass(frozen=True)
class MaskPictures:
    """Converter of images with binary masks. threshold: see read_mask."""

    preparation: Preparation
    modality: str = ""
    threshold: float | None = None

    def pictures(self, case: Case, tally: Counter) -> Iterator[Picture]:
        for entry in case.data["pictures"]:
            image = read_image(entry["image"], [path for path, _ in entry["masks"]], keep_grey=True)
            if not self.preparation.keeps_shape(*image.shape[:2]):
                tally["pictures below --min_aspect"] += 1
                continue
            masks = (
                (name, read_mask(path, image.shape[:2], entry["image"], self.threshold))
                for path, name in entry["masks"]
            )
            yield Picture(entry["name"], image, self.preparation.objects(masks, tally), self.modality)


def find_masks(images: Path, masks: Path, pattern: str | None = None, case: str | None = None) -> list[Case]:
    """Images and masks matched by name.

    pattern: of a mask's path below `masks`, with fields {image} (the image's path without its ending), {class} and
        {instance}. None: a mask is called as its image is, with _class and _number after it or without.
    case: see patterns.groups_of.
    Raises DataError, UsageError.
    """
    paths, inside = _images_by_stem(images), walk(masks)
    one_folder = images.resolve() == masks.resolve()
    if pattern and "{image}" not in pattern:
        raise UsageError(f"--pattern {pattern}: lacks {{image}}, which says whose mask it is")
    if pattern:
        known = ("image", "class", "instance")
        fitting = matches_of_images(pattern, inside, known, paths)
        several = {name: [one["image"] for one in found] for name, found in fitting.items()}
        _check_one_owner(masks, several, {}, paths)
        fields = dict(matches(pattern, inside, known)) | {name: found[0] for name, found in fitting.items()}
    elif one_folder:
        raise UsageError(
            f"{images}: holds images and masks alike; say what a mask is called with --pattern, such as "
            f"'{{image}}_mask.png'"
        )
    else:
        bare_names = {name: bare for name in inside if (bare := stem(name, SUFFIXES)) is not None}
        owners = {name: _owners(bare, paths) for name, bare in bare_names.items()}
        _check_one_owner(masks, owners, bare_names, paths)
        fields = {name: _fields(bare, owners[name]) for name, bare in bare_names.items()}
    if one_folder:
        paths = {bare: path for bare, path in paths.items() if path not in fields}

    of_image: dict[str, list[tuple[str, str]]] = {name: [] for name in paths}
    unmatched = []
    for name, found in fields.items():
        if found.get("image") in paths:
            of_image[found["image"]].append((below(masks, name), found.get("class") or "object"))
        else:
            unmatched.append(name)
    if len(unmatched) == len(fields):
        raise UsageError(
            f"{masks}: no mask belongs to an image of {images}: images are called {some(paths)}, masks "
            f"{some(inside)}; give --pattern, such as '{{image}}_{{class}}_{{instance}}.png'"
        )
    if unmatched:
        raise UsageError(
            f"{masks}: {len(unmatched)} mask(s) belong to no image of {images}: {some(unmatched)}; give "
            "--pattern, or take them out of the folder"
        )
    return _cases({name: {"image": below(images, path), "masks": of_image[name]} for name, path in paths.items()}, case)


def _owners(mask: str, images: dict[str, str]) -> list[str]:
    """The images whose name a mask has, or has before a separator; the longest name first."""
    found = [mask] if mask in images else []
    cut = len(mask)
    while (cut := max(mask.rfind(separator, 0, cut) for separator in SEPARATORS)) > 0:
        if mask[:cut] in images:
            found.append(mask[:cut])
    return found


def _check_one_owner(
    folder: Path, owners: dict[str, list[str]], bare_names: dict[str, str], images: dict[str, str]
) -> None:
    """Raises UsageError for a mask that may be of either of two images.

    Where there is one mask an image, each called as its image is, that is what the names mean; it is said.
    """
    several = {name: found for name, found in owners.items() if len(found) > 1}
    if not several:
        return
    name, found = next(iter(several.items()))
    said = f"{folder}: {len(several)} mask(s) fit two images, such as {name} for {images[found[1]]} and for "
    said += f"{images[found[0]]}"
    if sorted(bare_names.values()) == sorted(images):
        print(f"{said}; as every mask is called as an image is, each is taken for that one")
        return
    raise UsageError(
        f"{said}; say which with --pattern, such as '{{image}}_{{class}}_{{instance}}.png', or put masks into a folder "
        "for each image, with --pattern '{image}/*.png'"
    )


def _fields(mask: str, owners: list[str]) -> dict[str, str]:
    """The fields of a mask's name, none where it is of no image."""
    if not owners:
        return {}
    if mask == owners[0]:
        return {"image": mask}
    name = re.sub(r"(^|_)\d+$", "", mask[len(owners[0]) :].strip(SEPARATORS))  # without the number of the object
    return {"image": owners[0], "class": name}


# ---------------------------------------------------------------- label maps


@dataclass(frozen=True)
class LabelPictures:
    """Converter of images with label maps.

    An image may have several channels, each a picture of a modality of its own.
    """

    preparation: Preparation
    classes: Classes
    modality: str = ""

    def pictures(self, case: Case, tally: Counter) -> Iterator[Picture]:
        for entry in case.data["pictures"]:
            image = read_image(entry["image"], [entry["labels"]], keep_grey=True)
            labels = read_label_map(entry["labels"], image.shape[:2], entry["image"], self.classes.colours)
            labels = labels if self.classes.colours else whole_numbers(labels, entry["labels"])
            if not self.preparation.keeps_shape(*labels.shape):
                tally["pictures below --min_aspect"] += 1
                continue
            values = values_in(labels)
            if self.classes.names is None and not self.classes.instances and len(values) > MANY_VALUES:
                raise DataError(
                    f"{entry['labels']}: has {len(values)} values; it looks like an image. Swap --images and "
                    "--labels, or give --instances CLASS if every value is one object"
                )
            classes = self.classes.present(values, entry["labels"])
            objects = self.preparation.objects(
                ((name, is_one_of(labels, of_class)) for name, of_class in classes), tally
            )
            yield Picture(entry["name"], image, objects, entry.get("modality", self.modality))


def find_label_maps(images: Path, labels: Path, pattern: str | None = None, case: str | None = None) -> list[Case]:
    """Images and label maps matched by name.

    pattern: of a label map's path below `labels`, with the field {image}. None: it is called as its image is.
    case: see patterns.groups_of.
    Raises DataError, UsageError.
    """
    paths, inside = _images_by_stem(images), walk(labels)
    if pattern and "{image}" not in pattern:
        raise UsageError(f"--pattern {pattern}: lacks {{image}}, which says whose label map it is")
    if pattern:
        of_image = {found["image"]: below(labels, name) for name, found in matches(pattern, inside, ("image",))}
    elif images.resolve() == labels.resolve():
        raise UsageError(
            f"{images}: holds images and label maps alike; say what a label map is called with --pattern, "
            "such as '{image}_labels.png'"
        )
    else:
        of_image = {bare: below(labels, name) for name in inside if (bare := stem(name, SUFFIXES)) is not None}
    if images.resolve() == labels.resolve():
        paths = {bare: path for bare, path in paths.items() if below(labels, path) not in of_image.values()}
    found = {
        name: {"image": below(images, path), "labels": of_image[name]}
        for name, path in paths.items()
        if name in of_image
    }
    if not found:
        raise UsageError(
            f"{labels}: no label map belongs to an image of {images}: images are called {some(paths)}, label "
            f"maps {some(inside)}; give --pattern, such as '{{image}}_seg.png'"
        )
    if len(found) < len(paths):
        lacking = [name for name in paths if name not in found]
        print(f"{len(lacking)} image(s) have no label map and are left out: {some(lacking)}")
    return _cases(found, case)


# ---------------------------------------------------------------- what both share


def _images_by_stem(folder: Path) -> dict[str, str]:
    """{path without ending: path} of all images below a folder. Raises DataError."""
    paths: dict[str, str] = {}
    for name in walk(folder):
        bare = stem(name, SUFFIXES)
        if bare is not None and paths.setdefault(bare, name) != name:
            raise DataError(f"{folder}: {paths[bare]} and {name} have one name but for their endings; keep one of them")
    if not paths:
        raise DataError(f"{folder}: holds no image ({' '.join(SUFFIXES)}); check the path")
    return paths


def _cases(entries: dict[str, dict], case: str | None) -> list[Case]:
    return cases_of_pictures(list(entries.items()), groups_of(list(entries), case))
