"""Segment an image, or a folder of images, from prompts.

    python scripts/predict.py --input scan.png --box 30 40 120 150 --box 140 40 220 150
    python scripts/predict.py --input scan.png --point 80 90 --background 20 30
    python scripts/predict.py --input images/ --prompts prompts.json --output workdir/mine
    python scripts/predict.py --input data_demo/images/mni152_axial_094.png --box 20 20 150 180 \\
        --sam_checkpoint pretrain_model/vit_t_phantoms.safetensors --image_size 192        # works as it stands

Prompts are in pixels of the image, x before y, 0 at the upper left; boxes are x0 y0 x1 y1, x1 and y1 one past the last.
A prompts file is JSON or CSV; of an object it may hold a box, clicks (label 1 on the object, 0 off it) and a mask file:

    {"a.png": [{"name": "liver", "box": [30, 40, 120, 150]},
               {"name": "spleen", "points": [[80, 90], [20, 30]], "labels": [1, 0]}]}

    image,name,x0,y0,x1,y1,x,y,label,mask            rows of one image and name are one object; without a name, a row is
    a.png,liver,30,40,120,150,,,,                    an object; labels are 1 where empty
    a.png,spleen,,,,,80,90,1,

Left in --output: masks/ (0/255, at the image's size), overlays/, annotations.json (COCO) and objects.csv (predicted IoU,
area). The images are only read.
"""

import argparse
import csv
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from sam_med2d.coco import Annotations
from sam_med2d.data.reading import DataError, read_image, read_mask
from sam_med2d.image_files import ENDINGS, check_output, find_images, overlay, without_endings, write_picture
from sam_med2d.inference.models import add_backend_flags, add_model_flags, load_segmenter
from sam_med2d.utils import UsageError, add_flag, finish
from segment_anything import BACKGROUND, FOREGROUND, ObjectPrompt, PromptError, SamPredictor
from segment_anything.checkpoint import CheckpointError
from segment_anything.files import replacing

COLUMNS = ("image", "name", "x0", "y0", "x1", "y1", "x", "y", "label", "mask")


class Wanted(NamedTuple):
    """One object that somebody asks for. mask: a file, or nothing; prompt: everything else that is said of it."""

    name: str
    prompt: ObjectPrompt
    mask: str | None = None


class Predicted(NamedTuple):
    """mask: (H, W) bool; iou: the model's own estimate."""

    name: str
    mask: np.ndarray
    iou: float


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--input", required=True, type=Path, help=f"an image, or a folder of them ({' '.join(ENDINGS)}), searched deep"
    )
    parser.add_argument("--output", type=Path, default=Path("workdir/predict"), help="default: %(default)s")
    group = parser.add_argument_group("prompts: a file, or flags, which hold for every image")
    group.add_argument("--prompts", type=Path, metavar="FILE", help="JSON or CSV, see above")
    group.add_argument(
        "--box", type=float, nargs=4, action="append", metavar=("X0", "Y0", "X1", "Y1"), help="each is an object"
    )
    group.add_argument(
        "--point", type=float, nargs=2, action="append", metavar=("X", "Y"), help="a click on the object"
    )
    group.add_argument(
        "--background", type=float, nargs=2, action="append", metavar=("X", "Y"), help="a click off the object"
    )
    group.add_argument("--name", default="object", help="of the objects of flags; default: %(default)s")
    add_model_flags(parser)
    add_backend_flags(parser)
    group = parser.add_argument_group("answers")
    add_flag(group, "--multimask", True, "the best of outputs 1 to 3; False: output 0")
    add_flag(group, "--save_overlays", True, "pictures with the masks and prompts drawn in")
    args = parser.parse_args(argv)
    flags = [name for name in ("box", "point", "background") if getattr(args, name)]
    if bool(args.prompts) == bool(flags):
        parser.error("say what to segment: either --prompts FILE, or --box, --point and --background")
    if len(args.box or []) > 1 and len(flags) > 1:
        parser.error("clicks belong to one object, but there are several boxes: say which is whose in a --prompts file")
    if args.background and not (args.point or args.box):
        parser.error("--background alone says what the object is not: add --point or --box")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    try:
        run(args)
    except (DataError, CheckpointError, UsageError) as error:
        finish(error)


def run(args: argparse.Namespace) -> None:
    folder, images = find_images(args.input)
    check_output(args.output, args.input)
    if args.prompts:
        wanted, masks = wanted_by_file(args.prompts, folder, images), args.prompts.parent
    else:
        wanted, masks = {name: wanted_by_flags(args) for name in images}, folder
    if len(wanted) < len(images):
        print(f"{len(images) - len(wanted)} of {len(images)} images have no prompts in {args.prompts} and are left out")
    predictor = SamPredictor(load_segmenter(args))
    annotations, rows = Annotations(), []
    bare = without_endings([*wanted])
    try:
        for name, objects in tqdm(wanted.items(), unit="image", dynamic_ncols=True):
            image = read_image(str(folder / name))
            predicted = predict(predictor, image, name, objects, args.multimask, masks)
            number = annotations.add_image(name, image.shape[:2])
            for one, file in zip(predicted, file_names(bare[name], [one.name for one in predicted])):
                write_picture(args.output / "masks" / file, one.mask.astype(np.uint8) * 255)
                rows.append([name, one.name, file, f"{one.iou:.4f}", int(one.mask.sum())])
                if one.mask.any():
                    annotations.add_object(number, one.name, one.mask, one.iou)
            if args.save_overlays:
                labels = [f"{one.name} {one.iou:.2f}" for one in predicted]
                picture = overlay(image, [one.mask for one in predicted], [one.prompt for one in objects], labels)
                write_picture(args.output / "overlays" / f"{bare[name]}.png", picture)
    finally:  # also of the images before one that cannot be read
        write_tables(args.output, annotations, rows)
    empty = sum(area == 0 for *_, area in rows)
    print(
        f"{len(rows)} objects in {len(wanted)} images"
        + (f", {empty} of them empty" if empty else "")
        + f": {args.output}"
    )


def write_tables(output: Path, annotations: Annotations, rows: list[list]) -> None:
    with replacing(output / "annotations.json") as path:
        path.write_text(json.dumps(annotations.document), encoding="utf-8")
    with replacing(output / "objects.csv") as path, open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "name", "mask", "predicted_iou", "area"])
        writer.writerows(rows)


def predict(
    predictor: SamPredictor, image: np.ndarray, name: str, objects: Sequence[Wanted], multimask: bool, masks: Path
) -> list[Predicted]:
    """image: BGR; masks: the folder that mask files are relative to. Raises DataError."""
    predictor.set_image(image, "BGR")
    prompts = [
        one.prompt
        if one.mask is None
        else one.prompt._replace(mask=predictor.logits_of(read_mask(str(masks / one.mask), image.shape[:2], name)))
        for one in objects
    ]
    try:
        found = predictor.predict_objects(prompts, multimask)
    except PromptError as error:
        raise DataError(f"{name}: {error}") from error
    best = found.iou.argmax(axis=1)
    return [Predicted(one.name, found.masks[i, best[i]], float(found.iou[i, best[i]])) for i, one in enumerate(objects)]


def file_names(image: str, names: Sequence[str]) -> list[str]:
    """a/b, [liver, liver] -> [a/b_liver_000.png, a/b_liver_001.png], names of SA-Med2D's kind."""
    counts: Counter[str] = Counter()
    files = []
    for name in names:
        safe = re.sub(r"[^\w.-]+", "_", name)
        files.append(f"{image}_{safe}_{counts[safe]:03d}.png")
        counts[safe] += 1
    return files


# ---------------------------------------------------------------- prompts


def wanted_by_flags(args: argparse.Namespace) -> list[Wanted]:
    clicks = [(xy, FOREGROUND) for xy in args.point or []] + [(xy, BACKGROUND) for xy in args.background or []]
    return [Wanted(args.name, prompt_of(clicks, box)) for box in args.box or [None]]


def prompt_of(clicks: Sequence[tuple[Sequence[float], int]], box: Sequence[float] | None) -> ObjectPrompt:
    """clicks: (x, y) and label."""
    points = np.array([xy for xy, _ in clicks], np.float32) if clicks else None
    labels = np.array([label for _, label in clicks], np.int64) if clicks else None
    return ObjectPrompt(points, labels, None if box is None else np.array(box, np.float32))


def wanted_by_file(path: Path, folder: Path, images: list[str]) -> dict[str, list[Wanted]]:
    """The objects of each image that the file names. Raises DataError."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets begin a CSV with a byte order mark
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text; save it as JSON or as CSV in UTF-8") from error
    found = dict(from_csv(path, text) if path.suffix.lower() == ".csv" else from_json(path, text))
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


def from_json(path: Path, text: str) -> Iterator[tuple[str, list[Wanted]]]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error}); correct it") from error
    if not isinstance(content, dict) or not all(isinstance(objects, list) and objects for objects in content.values()):
        raise DataError(
            f'{path}: must hold {{image: [{{"name": ..., "box": ...}}, ...]}}; see scripts/predict.py --help'
        )
    for image, objects in content.items():
        yield image, [_from_entry(entry, f"{path}: {image}, object {number}") for number, entry in enumerate(objects)]


def _from_entry(entry: object, where: str) -> Wanted:
    known = {"name", "box", "points", "labels", "mask"}
    if not isinstance(entry, dict) or entry.keys() - known:
        raise DataError(
            f"{where}: must hold {', '.join(sorted(known))} and nothing else; see scripts/predict.py --help"
        )
    if not entry.keys() & {"box", "points", "mask"}:
        raise DataError(f"{where}: has neither box, points nor mask; add one")
    points = _array(entry.get("points") or None, (-1, 2), where, "points as [[x, y], ...]")
    points = [] if points is None else points
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
        array = np.zeros(0)
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


if __name__ == "__main__":
    main()
