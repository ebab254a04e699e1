"""Sources of pictures: images with a mask file an object, or with label maps."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from sam_med2d.convert.cases import Case, Picture, cases_of_pictures
from sam_med2d.convert.classes import Classes, values_in, whole_numbers
from sam_med2d.convert.objects import Preparation
from sam_med2d.convert.patterns import below, groups_of, matches, some, stem, walk
from sam_med2d.data.reading import read_image, read_mask
from sam_med2d.errors import DataError, UsageError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
SEPARATORS = "_-. "
MANY_VALUES = 1000  # distinct values without names: an image was taken for a label map


# ---------------------------------------------------------------- a mask file an object


@dataclass(frozen=True)
class MaskPictures:
    """Converter of images with binary masks."""

    preparation: Preparation
    modality: str = ""

    def pictures(self, case: Case, tally: Counter) -> Iterator[Picture]:
        for entry in case.data["pictures"]:
            image = read_picture(entry["image"])
            if not self.preparation.keeps_shape(*image.shape[:2]):
                tally["pictures below --min_aspect"] += 1
                continue
            masks = ((name, read_mask(path, image.shape[:2], entry["image"])) for path, name in entry["masks"])
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
        fields = dict(matches(pattern, inside, ("image", "class", "instance")))
    elif one_folder:
        raise UsageError(
            f"{images}: holds images and masks alike; say what a mask is called with --pattern, such as "
            f"'{{image}}_mask.png'"
        )
    else:
        fields = {name: _by_prefix(bare, paths) for name in inside if (bare := stem(name, SUFFIXES)) is not None}
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


def _by_prefix(mask: str, images: dict[str, str]) -> dict[str, str]:
    """The longest name of an image that a mask's name begins with -> the fields of the mask's name, or none."""
    if mask in images:
        return {"image": mask}
    cut = len(mask)
    while (cut := max(mask.rfind(separator, 0, cut) for separator in SEPARATORS)) > 0:
        if mask[:cut] in images:
            name = re.sub(r"(^|_)\d+$", "", mask[cut:].strip(SEPARATORS))  # the number of the object, if there is one
            return {"image": mask[:cut], "class": name}
    return {}


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
            labels = read_label_map(entry["labels"], self.classes.colours)
            image = read_picture(entry["image"])
            if labels.shape != image.shape[:2]:
                raise DataError(
                    f"{entry['labels']}: label map of {labels.shape[1]} x {labels.shape[0]} pixels, but "
                    f"{entry['image']} has {image.shape[1]} x {image.shape[0]}; give both the same size"
                )
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
            objects = self.preparation.objects(((name, np.isin(labels, of_class)) for name, of_class in classes), tally)
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


def read_label_map(path: str, colours: bool) -> np.ndarray:
    """-> (H, W) whole numbers: the values, of a palette image its indices; with `colours`, 0xRRGGBB.

    Pillow reads it: OpenCV turns a palette's indices into colours. Raises DataError.
    """
    with _open(path) as image:
        if image.format == "JPEG":
            raise DataError(f"{path}: a label map cannot be a JPEG, which changes its values; export it again as PNG")
        if colours:
            red, green, blue = np.moveaxis(np.asarray(image.convert("RGB"), np.int32), 2, 0)
            return red << 16 | green << 8 | blue
        if image.mode in ("RGB", "RGBA", "LA"):
            channels = np.asarray(image.convert("RGB"))
            if not (channels == channels[..., :1]).all():
                found = np.unique(channels.reshape(-1, 3), axis=0)
                shown = ", ".join("#{:02x}{:02x}{:02x}".format(*colour) for colour in found[:8])
                raise DataError(
                    f"{path}: is colour-coded ({len(found)} colours: {shown}); give --classes with a colour a class"
                )
            return channels[..., 0]
        if image.mode == "1":
            return np.asarray(image).astype(np.uint8)
        return whole_numbers(np.asarray(image), path)


# ---------------------------------------------------------------- what both share


def read_picture(path: str) -> np.ndarray:
    """read_image, but a file of several pages is refused: OpenCV would read the first and drop the rest.

    Raises DataError.
    """
    if path.lower().endswith((".tif", ".tiff", ".webp")):
        with _open(path):
            pass
    return read_image(path)


def _open(path: str) -> Image.Image:
    """A file of one picture, its pixels read. Raises DataError."""
    try:
        image: Image.Image = Image.open(path)
        pages = getattr(image, "n_frames", 1)
        if pages > 1:
            raise DataError(
                f"{path}: has {pages} pages; save them as single pictures, or as a NIfTI for the volumes subcommand"
            )
        image.load()
    except FileNotFoundError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions") from error
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be decoded ({error}); copy or export it again, as PNG for instance") from error
    return image


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
