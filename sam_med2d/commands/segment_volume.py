"""Segment a whole scan from prompts on one or a few slices.

    sam-med2d segment-volume --input ct.nii.gz --box 210 180 40 300 260 41
    sam-med2d segment-volume --input ct.nrrd --point 250 220 40 --background 300 220 40 --axis z --window liver
    sam-med2d segment-volume --input dicom_folder/ --prompts prompts.json --output labels.nii.gz --fuse

In a clone, `python scripts/segment_volume.py ...` is the same.

The input is NIfTI, NRRD, MHA/MHD, or a folder with the files of one DICOM series. Prompts are voxels of the volume as
it is stored, x y z from 0 at their centres, as viewers show them (ITK-SNAP counts from 1); a click belongs to the
nearest voxel. A box is x0 y0 z0 x1 y1 z1, x1 y1 z1 one past
the last voxel: one voxel thick it is drawn on one slice; thicker, it is a rough box around the object, which is then
looked for from its middle slice on, and not beyond it. A prompts file holds several objects, each with a label of its
own:

    {"objects": [{"label": 1, "name": "liver", "boxes": [[210, 180, 40, 300, 260, 41]]},
                 {"label": 2, "name": "kidney", "axis": "y", "points": [[120, 99, 30], [99, 99, 30]],
                  "point_labels": [1, 0]}]}

From each slice the mask goes on to its neighbours, in both directions, until the predicted IoU falls below --least_iou,
the area jumps, or what it lies on is no longer as bright or dark as the object was (--least_contrast). An object that
reaches both ends of the volume, or grows several times its first area, is named in capitals at the end. Slices are cut
along --axis: z (axial), y (coronal), x (sagittal), of the patient, however the volume is stored.

Written: the labels, with the volume's own geometry, or, of a DICOM series and where the name ends in .dcm, a DICOM-SEG
on its frame of reference; beside them a .csv (voxels, millilitres, slices, why each end is
where it is) and a .png to look at. The volume is only read. Needs the extra "data": pip install "sam-med2d[data]".
"""

import argparse
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from pydicom import Dataset
from tqdm import tqdm

from sam_med2d import drawing
from sam_med2d.cli import Parser, add_flag, ending_in_one_line
from sam_med2d.errors import DataError, UsageError
from sam_med2d.image_files import check_output, write_png
from sam_med2d.inference.models import add_backend_flags, add_model_flags, add_zoom_flag, load_segmenter
from sam_med2d.inference.windows import add_scale_flag, add_window_flag, shown_by
from sam_med2d.limits import MOST_VOXELS
from sam_med2d.outputs import check_no_input
from sam_med2d.ownership import check_writable
from sam_med2d.volumes.dicom_bytes import is_dicom
from sam_med2d.volumes.dicom_seg import DICOM, slices_of, write_segmentation
from sam_med2d.volumes.prompts import Object3d, check_inside, object_of, objects_of_file
from sam_med2d.volumes.propagation import CARRIED, Rule, Slices
from sam_med2d.volumes.scans import (
    AXES,
    VOLUMES,
    as_stored,
    as_viewed,
    files_of,
    notes_of,
    read_scan,
    stem_of,
    upright,
    write_labels,
)
from sam_med2d.volumes.segmentation import (
    Result,
    earlier_labels,
    label_volume,
    merged,
    row_of,
    segment,
    spread_slices,
    unused_labels,
    warning_of,
    write_table,
)
from segment_anything import PromptError, SamPredictor

SHOWN = 12  # slices in the picture


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    # fmt: off
    parser.add_argument("--input", required=True, type=Path,
        help="A volume, or a folder with the files of one DICOM series.")
    parser.add_argument("--output", type=Path,
        help=f"A label volume to write ({' '.join(VOLUMES)}), or, of a DICOM series, a DICOM-SEG ({DICOM}). "
             f"Default: workdir/volumes/{{name}}_labels.nii.gz.")
    parser.add_argument("--merge_into", type=Path, metavar="FILE",
        help="A label volume of this scan, whose labels are kept: new ones take what is free, and numbers that are "
             "taken become the next free ones. It may be --output as well.")
    parser.add_argument("--frame", type=int, help="Which volume of a 4D scan is segmented, counted from 0.")
    add_flag(parser, "--straighten", False,
        "Read a slightly sheared NIfTI on the nearest axes at right angles, and say the angle.")
    parser.add_argument("--max_voxels", type=float, default=MOST_VOXELS,
        help="Refuse a file with more voxels, by its header, before it is decoded. Default: %(default)s.")
    group = parser.add_argument_group("prompts: a file, or flags, which are one object")
    group.add_argument("--prompts", type=Path, metavar="FILE", help="File of prompts, JSON, whose form stands above.")
    group.add_argument("--box", type=float, nargs=6, action="append", metavar=("X0", "Y0", "Z0", "X1", "Y1", "Z1"),
        help="A box around the object, in voxels; may be given several times.")
    group.add_argument("--point", type=float, nargs=3, action="append", metavar=("X", "Y", "Z"),
        help="A click on the object, in voxels; may be given several times.")
    group.add_argument("--background", type=float, nargs=3, action="append", metavar=("X", "Y", "Z"),
        help="A click off the object, in voxels; may be given several times.")
    group.add_argument("--axis", choices=[*AXES],
        help="The axis that slices are perpendicular to. Default: z, or the one that a volume of a single slice is "
             "cut across.")
    group = parser.add_argument_group("intensities, which should be as those of the training data")
    add_window_flag(group)
    add_scale_flag(group)
    group = parser.add_argument_group("from slice to slice")
    rule = Rule()
    group.add_argument("--carry", nargs="+", choices=CARRIED, default=[*rule.carry],
        help=f"What the last mask says to the next slice. Default: {' '.join(rule.carry)}.")
    group.add_argument("--margin", type=float, default=rule.margin,
        help="Share of its sides by which the box of the last mask is widened for the next slice. Default: "
             "%(default)s.")
    group.add_argument("--least_iou", type=float, default=rule.least_iou,
        help="Predicted IoU below which the object has ended, or 0.8 of the prompted slice's where that is less. "
             "Default: %(default)s.")
    group.add_argument("--least_area", type=int, default=rule.least_area,
        help="Area in pixels below which the object has ended. Default: %(default)s.")
    group.add_argument("--shrink", type=float, default=rule.shrink,
        help="Area as a share of the last slice's below which the object has ended. Default: %(default)s.")
    group.add_argument("--grow", type=float, default=rule.grow,
        help="Area as a multiple of the last slice's above which the object has ended. Default: %(default)s.")
    group.add_argument("--least_contrast", type=float, default=rule.least_contrast,
        help="Difference in brightness from what surrounds the object below which it has ended, as a share of the "
             "difference on the prompted slice; a large negative number ignores it. Default: %(default)s.")
    add_flag(group, "--fuse", False, "Look again along the other two axes, and take the mean of the three.")
    # fmt: on
    add_zoom_flag(group)
    add_model_flags(parser, frame_flag="--model_frame")  # --frame is of DICOM files
    add_backend_flags(parser)
    args = parser.parse_args(argv)
    if bool(args.prompts) == bool(args.box or args.point):
        parser.error("say what to segment: either --prompts FILE, or --box and --point")
    if not args.max_voxels >= 1:
        parser.error("--max_voxels must be at least 1")
    if not 0 <= args.shrink < 1 < args.grow:
        parser.error("--shrink must be between 0 and 1, and --grow above 1")
    args.output = args.output or Path("workdir/volumes") / f"{stem_of(args.input)}_labels.nii.gz"
    if not args.output.name.endswith((*VOLUMES, DICOM)):
        parser.error(f"--output {args.output}: its name must end in {', '.join(VOLUMES)} or {DICOM}")
    return args


def object_of_flags(args: argparse.Namespace) -> Object3d:
    return object_of(args.axis, args.point or [], args.background or [], args.box or [])


@ending_in_one_line(kept="nothing was written")
def main(argv: list[str] | None = None) -> None:
    run(parse_args(argv))


def run(args: argparse.Namespace) -> None:
    if args.input.is_dir():
        check_output(args.output, args.input)
    files = files_of(args.input)
    most_voxels = int(min(args.max_voxels, 2**63))
    stored = read_scan(files, args.frame, straighten=args.straighten, most_voxels=most_voxels)
    for note in notes_of(stored):
        print(f"note: {args.input}: {note}")
    scan, axis = as_viewed(stored)
    args.axis = args.axis or axis
    if args.output.exists() and args.input.is_file() and args.output.samefile(args.input):
        raise UsageError(f"--output {args.output}: is the volume itself; choose another name")
    base = args.output.with_name(stem_of(args.output))
    table, drawn = base.with_name(f"{base.name}.csv"), base.with_name(f"{base.name}.png")
    check_writable(args.output.parent)
    read = [files] if isinstance(files, str) else files
    check_no_input([args.output, table, drawn], [*read, *filter(None, [args.prompts])])
    slices = slices_to_refer_to(args, read, stored)
    objects, earlier = objects_and_earlier_labels(args, scan, stored)
    array = sitk.GetArrayFromImage(scan)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError(f"{args.input}: has voxels that are no finite numbers; replace them")
    rule = Rule(
        tuple(args.carry), args.margin, args.least_iou, args.least_area, args.shrink, args.grow, args.least_contrast
    )
    model = load_segmenter(args)
    seen = shown_by(args, model)
    seen.say(array.dtype)
    predictor = SamPredictor(model, zoom=args.zoom)
    along = {axis: Slices(predictor, array, 2 - AXES.index(axis), seen.of(array.dtype)) for axis in AXES}

    results = []
    with tqdm(unit="slice", dynamic_ncols=True) as bar:
        for one in objects:
            bar.set_description(one.name)
            try:
                results.append(segment(one, along, stored, scan, rule, args.fuse, bar.update))
            except PromptError as error:
                raise DataError(f"{args.prompts or args.input}: {one.name}: {error}") from error
    warn_of_one_value(results, along, args.input)
    labels = label_volume(results, array.shape)
    if earlier is not None:
        labels = merged(earlier, labels)
    if slices:
        names = {one.label: one.name for one in objects}
        write_segmentation(args.output, sitk.GetArrayFromImage(as_stored(labels, scan, stored)), slices, names)
    else:
        write_labels(args.output, labels, scan, stored)
    rows = [row_of(result, labels, stored, scan) for result in results]
    write_table(table, rows)
    say_what_was_found(rows, with_labels=bool(args.merge_into))
    write_png(drawn, picture(results, along, labels))
    print(f"labels: {args.output}")
    if warning := warning_of(rows):
        print(warning)


def objects_and_earlier_labels(
    args: argparse.Namespace, scan: sitk.Image, stored: sitk.Image
) -> tuple[list[Object3d], np.ndarray | None]:
    """The objects that are asked for, and the labels of --merge_into, which they leave as they are.

    Raises DataError, UsageError.
    """
    objects = objects_of_file(args.prompts, args.axis) if args.prompts else [object_of_flags(args)]
    earlier = None
    if args.merge_into:
        if args.merge_into != args.output:
            check_no_input([args.output], [args.merge_into])
        earlier = earlier_labels(args.merge_into, scan)
        objects = unused_labels(objects, earlier)
    for one in objects:
        check_inside(one, stored.GetSize(), str(args.prompts or args.input))
        check_axis(one, scan, args)
    return objects, earlier


def slices_to_refer_to(args: argparse.Namespace, files: list[str], stored: sitk.Image) -> list[Dataset]:
    """Those of the series, where labels are to become a DICOM-SEG, else none. Raises DataError, UsageError."""
    if not args.output.name.endswith(DICOM):
        return []
    if not any(is_dicom(path) for path in files):
        raise UsageError(
            f"--output {args.output}: a DICOM-SEG refers to the slices of a DICOM series, and {args.input} is none; "
            "end its name in .nii.gz"
        )
    return slices_of(files, stored)


def check_axis(one: Object3d, scan: sitk.Image, args: argparse.Namespace) -> None:
    """Raises DataError where an object's slices, or those of --fuse, would be lines, one voxel wide."""
    sides = [n for axis, n in zip(AXES, scan.GetSize()) if axis != one.axis]
    if min(sides) == 1:
        _, axis = as_viewed(scan)
        raise DataError(
            f"{args.input}: is one voxel thick, so that the slices along {one.axis} of {one.name} would be "
            f"{sides[0]} x {sides[1]} voxels; choose the axis {axis}, or leave it out"
        )
    if args.fuse and 1 in scan.GetSize():
        raise DataError(f"{args.input}: is one voxel thick and has no other axis to look along; leave out --fuse")


def warn_of_one_value(results: list[Result], along: dict[str, Slices], source: Path) -> None:
    """Of prompted slices in which the model sees nothing."""
    for result in results:
        sliced = along[result.wanted.axis]
        if flat := [number for number in result.prompted if np.ptp(sliced.image(number)) == 0]:
            print(
                f"warning: {source}: {len(flat)} prompted slice(s) of {result.wanted.name} are of one value; is "
                "the range (--window) that of this scan?"
            )


def say_what_was_found(rows: list[dict], with_labels: bool) -> None:
    """rows: of `row_of`, one an object."""
    numbered = " (label {label})" if with_labels else ""
    for row in rows:
        print(
            f"{row['name']}{numbered.format(**row)}: {row['voxels']} voxels, {row['millilitres']} ml, "
            f"slices {row['first_slice']} to {row['last_slice']} along {row['axis']} "
            f"({row['first_end']}; {row['last_end']}), predicted IoU {row['mean_predicted_iou']}"
        )


def picture(results: list[Result], along: dict[str, Slices], labels: np.ndarray) -> np.ndarray:
    """Slices spread over all objects, along the axis of the first, with every object drawn in."""
    sliced = along[results[0].wanted.axis]
    names, tiles = [result.wanted.name for result in results], []
    for number in spread_slices(labels, sliced.axis, SHOWN):
        cut = upright(np.take(labels, number, sliced.axis), sliced.axis)
        image = np.repeat(sliced.image(number)[..., None], 3, axis=2)
        tiles.append(drawing.overlay(image, [cut == result.wanted.label for result in results], names=names))
    return drawing.grid(tiles, columns=4)


if __name__ == "__main__":
    main()
