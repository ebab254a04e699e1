"""Segment an image, or a folder of images, from prompts.

    sam-med2d predict --input scan.png --box 30 40 120 150 --box 140 40 220 150
    sam-med2d predict --input scan.png --point 80 90 --background 20 30
    sam-med2d predict --input images/ --prompts prompts.json --output workdir/mine
    sam-med2d predict --input data_demo/images/mni152_axial_094.png --box 20 20 150 180 \\
        --sam_checkpoint small --image_size 192        # works as it stands

In a clone, `python scripts/predict.py ...` is the same.

Prompts are in pixels of the image, x before y, 0 at the upper left; boxes are x0 y0 x1 y1, x1 and y1 one past the last.
A prompts file is JSON or CSV; of an object it may hold a box, clicks (label 1 on the object, 0 off it) and a mask file:

    {"a.png": [{"name": "liver", "box": [30, 40, 120, 150]},
               {"name": "spleen", "points": [[80, 90], [20, 30]], "labels": [1, 0]}]}

    image,name,x0,y0,x1,y1,x,y,label,mask            rows of one image and name are one object; without a name, a row is
    a.png,liver,30,40,120,150,,,,                    an object; labels are 1 where empty
    a.png,spleen,,,,,80,90,1,

Objects that are small in the picture are looked at closer, in a crop that fills the frame; --zoom never does not.

Left in --output: masks/ (0/255, at the image's size), overlays/, annotations.json (COCO) and objects.csv (predicted
IoU, area). The images are only read.
"""

import argparse
import csv
import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from sam_med2d import drawing
from sam_med2d.cli import Parser, add_flag, ending_in_one_line
from sam_med2d.coco import Annotations
from sam_med2d.data.decoding import open_picture
from sam_med2d.data.reading import read_image, read_mask
from sam_med2d.data.windows import Window, shown
from sam_med2d.errors import DataError
from sam_med2d.image_files import ENDINGS, check_output, find_images, write_png
from sam_med2d.inference.models import add_backend_flags, add_model_flags, add_zoom_flag, load_segmenter
from sam_med2d.inference.prompt_tables import Wanted, prompt_of, wanted_by_file
from sam_med2d.outputs import cell, check_no_input, distinct, place, without_endings
from sam_med2d.ownership import check_writable
from segment_anything import BACKGROUND, FOREGROUND, PromptError, SamPredictor
from segment_anything.files import replacing
from segment_anything.zoom import Crop


class Predicted(NamedTuple):
    """mask: (H, W) bool; iou: the model's own estimate; closer: whether a crop was looked at."""

    name: str
    mask: np.ndarray
    iou: float
    closer: bool = False


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    # fmt: off
    parser.add_argument("--input", required=True, type=Path,
        help=f"An image, or a folder of them ({' '.join(ENDINGS)}), searched deep.")
    parser.add_argument("--output", type=Path, default=Path("workdir/predict"),
        help="The folder that masks and tables are written into. Default: %(default)s.")
    group = parser.add_argument_group("prompts: a file, or flags, which hold for every image")
    group.add_argument("--prompts", type=Path, metavar="FILE",
        help="File of prompts, JSON or CSV, whose form stands above.")
    group.add_argument("--box", type=float, nargs=4, action="append", metavar=("X0", "Y0", "X1", "Y1"),
        help="A box around an object, in pixels; given several times, each is an object.")
    group.add_argument("--point", type=float, nargs=2, action="append", metavar=("X", "Y"),
        help="A click on the object, in pixels; may be given several times.")
    group.add_argument("--background", type=float, nargs=2, action="append", metavar=("X", "Y"),
        help="A click off the object, in pixels; may be given several times.")
    group.add_argument("--name", default="object",
        help="What the objects of --box and --point are called. Default: %(default)s.")
    add_model_flags(parser)
    add_backend_flags(parser)
    group = parser.add_argument_group("answers")
    add_zoom_flag(group)
    add_flag(group, "--multimask", True, "Give the best of outputs 1 to 3; False: output 0.")
    add_flag(group, "--save_overlays", True, "Write pictures with the masks and prompts drawn in.")
    # fmt: on
    args = parser.parse_args(argv)
    flags = [name for name in ("box", "point", "background") if getattr(args, name)]
    if bool(args.prompts) == bool(flags):
        parser.error("say what to segment: either --prompts FILE, or --box, --point and --background")
    if len(args.box or []) > 1 and len(flags) > 1:
        parser.error("clicks belong to one object, but there are several boxes: say which is whose in a --prompts file")
    if args.background and not (args.point or args.box):
        parser.error("--background alone says what the object is not: add --point or --box")
    return args


@ending_in_one_line(kept="what was written is whole; the same command starts anew")
def main(argv: list[str] | None = None) -> None:
    run(parse_args(argv))


def run(args: argparse.Namespace) -> None:
    folder, images = find_images(args.input)
    check_output(args.output, args.input)
    if args.prompts:
        wanted, masks = wanted_by_file(args.prompts, folder, images), args.prompts.parent
    else:
        wanted, masks = {name: wanted_by_flags(args) for name in images}, folder
    if len(wanted) < len(images):
        print(f"{len(images) - len(wanted)} of {len(images)} images have no prompts in {args.prompts} and are left out")
    check_places(args, folder, wanted, masks)
    predictor = SamPredictor(load_segmenter(args), zoom=args.zoom)
    annotations, rows, closer, deep = Annotations(), [], 0, 0
    mask_files, overlays = places_of(wanted)
    colours = drawing.class_colours(one.name for objects in wanted.values() for one in objects)
    try:
        for name, objects in tqdm(wanted.items(), unit="image", dynamic_ncols=True):
            image = read_image(str(folder / name))
            deep += open_picture(str(folder / name)).header.bits > 8
            predicted = predict(predictor, image, name, objects, args.multimask, masks)
            number = annotations.add_image(name, image.shape[:2])
            closer += sum(one.closer for one in predicted)
            for i, one in enumerate(predicted):
                file = mask_files[name, i]
                write_png(place(args.output, f"masks/{file}"), one.mask)
                rows.append([cell(name), cell(one.name), cell(file), f"{one.iou:.4f}", int(one.mask.sum())])
                if one.mask.any():
                    annotations.add_object(number, one.name, one.mask, one.iou)
            if args.save_overlays:
                write_png(
                    place(args.output, f"overlays/{overlays[name]}"), picture_of(image, predicted, objects, colours)
                )
    finally:  # also of the images before one that cannot be read
        write_tables(args.output, annotations, rows)
    trained: Window | None = getattr(predictor.model, "window", None)
    if trained and deep:
        print(
            f"warning: {deep} image(s) of more than 8 bits were scaled from their own minimum and maximum, but the "
            f"model was trained with the window {shown(trained)}; window them yourself, or give the scan to "
            "sam-med2d segment-volume",
            file=sys.stderr,
        )
    empty = sum(area == 0 for *_, area in rows)
    print(
        f"{len(rows)} objects in {len(wanted)} images"
        + (f", {empty} of them empty" if empty else "")
        + (f", {closer} looked at closer (--zoom {args.zoom})" if closer else "")
        + f": {args.output}"
    )


def check_places(args: argparse.Namespace, folder: Path, wanted: dict[str, list[Wanted]], masks: Path) -> None:
    """Raises UsageError where results cannot be written, or would be written over what is read."""
    check_writable(args.output)
    outputs = [args.output / name for name in ("masks", "overlays", "annotations.json", "objects.csv")]
    prompts = [masks / one.mask for objects in wanted.values() for one in objects if one.mask]
    check_no_input(outputs, [*(folder / name for name in wanted), *prompts, *filter(None, [args.prompts])])


def places_of(wanted: dict[str, list[Wanted]]) -> tuple[dict[tuple[str, int], str], dict[str, str]]:
    """Where the mask of each image's objects lies, by image and number, and the overlay of each image: no two in one
    place.
    """
    bare = without_endings([*wanted])
    masks = {
        (name, i): file
        for name, objects in wanted.items()
        for i, file in enumerate(file_names(bare[name], [one.name for one in objects]))
    }
    return distinct(masks), distinct({name: f"{bare[name]}.png" for name in wanted})


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
    predictor.set_image(image, "BGR", encode=False)
    prompts = [
        one.prompt
        if one.mask is None
        else one.prompt._replace(mask=predictor.logits_of(read_mask(str(masks / one.mask), image.shape[:2], name)))
        for one in objects
    ]
    try:
        found = predictor.predict_objects(prompts, multimask, best=True)
    except PromptError as error:
        raise DataError(f"{name}: {error}") from error
    closer = [crop != Crop.whole(image.shape[:2]) for crop in predictor.crops]
    return [Predicted(one.name, found.masks[i, 0], float(found.iou[i, 0]), closer[i]) for i, one in enumerate(objects)]


def picture_of(
    image: np.ndarray, predicted: Sequence[Predicted], objects: Sequence[Wanted], colours: dict[str, drawing.Colour]
) -> np.ndarray:
    """The image with its objects and prompts, and below it those that are small in it, closer.

    colours: of each name; where there is one name alone, each object has its own.
    """
    names = [one.name for one in predicted]
    masks = [one.mask for one in predicted]
    prompts = [o.prompt for o in objects]
    own = [colours[name] for name in names] if len(colours) > 1 else [drawing.colour_of(i) for i in range(len(names))]
    labels = [f"{one.name} {one.iou:.2f}" for one in predicted]
    picture = drawing.overlay(image, masks, prompts, labels, own)
    picture = drawing.with_close_views(picture, image, masks, prompts, labels, own)
    shown = {name: colour for name, colour in colours.items() if name in names} if len(colours) > 1 else {}
    return drawing.with_legend(picture, shown)


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


if __name__ == "__main__":
    main()
