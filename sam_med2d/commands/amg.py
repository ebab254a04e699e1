"""Everything mode: all masks of an image, or of a folder of images, without prompts.

    sam-med2d amg --input scan.png --output workdir/everything
    sam-med2d amg --input images/ --output workdir/everything --convert-to-rle
    sam-med2d amg --input data_demo/images/mni152_axial_094.png --output workdir/everything \\
        --checkpoint small --image_size 192 --pred-iou-thresh 0.2 --stability-score-thresh 0.1      # as it stands

In a clone, `python scripts/amg.py ...` is the same.

Options and files are those of SAM's script. For each image a folder with 0.png, 1.png ... (0/255, the most certain
first) and metadata.csv; with --convert-to-rle one JSON file instead, a list of masks as COCO run lengths. Beside them
{image}_overlay.png. Images are only read. Thresholds that suit your weights are found in docs/use.md.
"""

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from tqdm import tqdm

from sam_med2d.cli import Parser, add_flag, ending_in_one_line
from sam_med2d.data.reading import read_image
from sam_med2d.drawing import overlay
from sam_med2d.errors import UsageError
from sam_med2d.image_files import check_output, find_images, write_png
from sam_med2d.inference.models import add_backend_flags, add_model_flags, add_zoom_flag, load_segmenter
from sam_med2d.outputs import check_no_input, distinct, place, without_endings
from sam_med2d.ownership import check_writable
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.automatic_mask_generator import Dropped
from segment_anything.files import replacing
from segment_anything.zoom import NEVER

COLUMNS = (
    "id",
    "area",
    "bbox_x0",
    "bbox_y0",
    "bbox_w",
    "bbox_h",
    "point_input_x",
    "point_input_y",
    "predicted_iou",
    "stability_score",
    "crop_box_x0",
    "crop_box_y0",
    "crop_box_w",
    "crop_box_h",
)
# Options of the generator that are flags here, and what they mean.
OPTIONS = {
    "points_per_side": (int, "Number of clicks along each side of the grid."),
    "points_per_batch": (int, "Number of clicks that are decoded at a time."),
    "pred_iou_thresh": (float, "Drop masks with a lower predicted IoU."),
    "stability_score_thresh": (float, "Drop masks with a lower stability."),
    "stability_score_offset": (float, "How far the threshold of the logits moves, up and down, for the stability."),
    "mask_nms_thresh": (float, "Of two masks with a higher IoU drop one."),
    "box_nms_thresh": (float, "Of two masks whose boxes have a higher IoU drop one; 1 is off."),
    "crop_n_layers": (int, "Number of layers of crops, which find small objects."),
    "crop_nms_thresh": (float, "As --mask-nms-thresh, between masks of different crops."),
    "crop_overlap_ratio": (float, "Overlap of the crops of the first layer, as a share of the short side."),
    "crop_n_points_downscale_factor": (int, "What --points-per-side is divided by, once for each layer of crops."),
    "min_mask_region_area": (int, "Remove holes and islands of fewer pixels."),
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("--input", required=True, type=Path, help="An image, or a folder of them, searched deep.")
    parser.add_argument("--output", required=True, type=Path, help="The folder that masks and tables are written into.")
    parser.add_argument(
        "--convert-to-rle",
        "--convert_to_rle",
        action="store_true",
        help="Write one JSON file an image, with COCO run lengths, in place of PNGs.",
    )
    add_flag(parser, "--save_overlays", True, "Write a picture of all masks for each image.")
    add_model_flags(parser)
    add_backend_flags(parser)
    group = parser.add_argument_group("masks; what is not given is as in SamAutomaticMaskGenerator")
    for name, (kind, text) in OPTIONS.items():
        group.add_argument(f"--{name.replace('_', '-')}", f"--{name}", type=kind, help=text)
    add_zoom_flag(group, NEVER)
    return parser.parse_args(argv)


@ending_in_one_line(kept="what was written is whole; the same command starts anew")
def main(argv: list[str] | None = None) -> None:
    run(parse_args(argv))


def run(args: argparse.Namespace) -> None:
    folder, images = find_images(args.input)
    check_output(args.output, args.input)
    check_writable(args.output)
    places = distinct(without_endings(images))  # an image's masks lie in a folder, or a file beside it
    stems = [args.output / places[name] for name in images]
    outputs = [path for stem in stems for path in (stem, Path(f"{stem}.json"), Path(f"{stem}_overlay.png"))]
    check_no_input(outputs, [folder / name for name in images])
    options = {name: getattr(args, name) for name in OPTIONS if getattr(args, name) is not None}
    model = load_segmenter(args)
    try:
        mode = "coco_rle" if args.convert_to_rle else "binary_mask"
        generator = SamAutomaticMaskGenerator(model, output_mode=mode, zoom=args.zoom, **options)
    except ValueError as error:
        raise UsageError(str(error)) from error
    count, without, dropped = 0, list[str](), Dropped()
    for name in tqdm(images, unit="image", dynamic_ncols=True):
        image = read_image(str(folder / name))
        masks = generator.generate(image, "BGR")
        stem = place(args.output, places[name])
        if args.convert_to_rle:
            with replacing(stem.with_name(f"{stem.name}.json")) as path:
                path.write_text(json.dumps(masks), encoding="utf-8")
        else:
            write_folder(stem, masks)
        if args.save_overlays:
            write_png(stem.with_name(f"{stem.name}_overlay.png"), picture_of(image, masks))
        count += len(masks)
        if not masks:
            without.append(name)
            dropped.add(generator.dropped)
    print(f"{count} masks in {len(images)} images: {args.output}")
    if without:
        print(why_nothing(without, dropped, generator))


def why_nothing(images: list[str], dropped: Dropped, generator: SamAutomaticMaskGenerator) -> str:
    """What each threshold dropped of the candidates of images of which none was kept, and what to lower."""
    said, lower = [], []
    for count, flag, least, best in (
        (dropped.uncertain, "--pred-iou-thresh", generator.pred_iou_thresh, dropped.best_iou),
        (dropped.unstable, "--stability-score-thresh", generator.stability_score_thresh, dropped.best_stability),
    ):
        if count:
            said.append(f"{count} are below {flag} {least:g} (the best has {best:.2f})")
            lower.append(flag)
    if dropped.empty_or_cut:
        said.append(f"{dropped.empty_or_cut} are empty or cut by the edge of a crop")
    return (
        f"{len(images)} image(s) without a mask, such as {images[0]}: of {dropped.candidates} candidates "
        + ", ".join(said)
        + (f"; lower {' and '.join(lower)}" if lower else "")
    )


def write_folder(folder: Path, masks: list[dict[str, Any]]) -> None:
    if (folder / "metadata.csv").exists():  # an earlier run may have found more
        for left in folder.glob("[0-9]*.png"):
            if left.stem.isdecimal():  # other names are of images that lie in a folder of this one's name
                left.unlink()
    for number, mask in enumerate(masks):
        write_png(folder / f"{number}.png", mask["segmentation"])
    with replacing(folder / "metadata.csv") as path, open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for number, mask in enumerate(masks):
            writer.writerow(
                [
                    number,
                    mask["area"],
                    *mask["bbox"],
                    *mask["point_coords"][0],
                    mask["predicted_iou"],
                    mask["stability_score"],
                    *mask["crop_box"],
                ]
            )


def picture_of(image: np.ndarray, masks: list[dict[str, Any]]) -> np.ndarray:
    """The largest at the bottom, so that none hides another."""
    ordered = sorted(masks, key=lambda mask: -mask["area"])
    return overlay(image, [pixels_of(mask["segmentation"]) for mask in ordered])


def pixels_of(segmentation: np.ndarray | dict[str, Any]) -> np.ndarray:
    """-> (H, W) bool."""
    if isinstance(segmentation, np.ndarray):
        return segmentation
    return coco_mask.decode(segmentation).astype(bool)


if __name__ == "__main__":
    main()
