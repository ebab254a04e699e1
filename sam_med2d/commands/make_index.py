"""Turn scans, label maps, masks or annotations into the folder that train.py and test.py read.

    sam-med2d make-index masks --images photos --masks masks --output data/mine
    sam-med2d make-index labelmaps --images frames --labels labels --classes liver=1 --case '(.+)_\\d+' --output data/a
    sam-med2d make-index volumes --images scans --labels segmentations --classes labels.json --output data/mine
    sam-med2d make-index volumes --dicom study --window abdomen --output data/mine
    sam-med2d make-index nnunet nnUNet_raw/Dataset001_Name --output data/mine
    sam-med2d make-index coco --annotations instances.json --images photos --output data/mine
    sam-med2d make-index sa-med2d SAMed2Dv1 --output index

In a clone, `python scripts/make_index.py ...` is the same.

Leaves in --output: images/ and masks/ (PNG, one object a mask), image2label_{train,val,test}.json,
label2image_test.json and metadata.csv (case, modality, class, axis, slice, spacing of every mask). Splits are made by
case, never by slice. A second run converts only what is new or has changed, so a run that was stopped goes on where it
was; sources are only read. docs/data.md goes through every kind of source.
"""

import argparse
import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from sam_med2d.cli import Parser, add_flag, ending_in_one_line
from sam_med2d.convert.cases import Case, Converter
from sam_med2d.convert.classes import Classes, parse_classes
from sam_med2d.convert.objects import PAPER_MIN_AREA, PAPER_MIN_ASPECT, Preparation
from sam_med2d.convert.pipeline import convert
from sam_med2d.convert.splits import Splits, read_split_file
from sam_med2d.convert.writer import WRITTEN, check_apart
from sam_med2d.data.decoding import add_reading_flags, reading_flags
from sam_med2d.data.windows import keep_windows
from sam_med2d.errors import UsageError
from sam_med2d.limits import MOST_VOXELS
from sam_med2d.outputs import check_no_input
from sam_med2d.ownership import owned
from sam_med2d.volumes.intensity import WINDOWS, Intensity, check_windows, parse_windows

CASE_HELP = (
    "Regular expression whose first group in a picture's path, below --images and without its ending, is the case, "
    "such as '(.+)_\\d+'. Default: every picture is a case, which is refused where names look like several of one."
)


# ---------------------------------------------------------------- flags


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="SOURCE")

    masks = _command(commands, "masks", run_masks, "images, and a file for each object")
    # fmt: off
    masks.add_argument("--images", type=Path, required=True, help="Folder of the images.")
    masks.add_argument("--masks", type=Path, required=True,
        help="Folder of the masks; may be that of the images, with --pattern.")
    masks.add_argument("--pattern",
        help="Pattern of a mask's path below --masks, with {image}, {class} and {instance}. Default: as its image, "
             "with _class and _number after it or without.")
    masks.add_argument("--case", help=CASE_HELP)
    masks.add_argument("--threshold", type=float, metavar="VALUE",
        help="Of masks with more than two values, as JPEG and antialiasing make them: the value, such as 128, from "
             "which on a pixel is of the object. Default: such masks are refused.")
    add_reading_flags(masks)
    _objects(masks, components=False, min_area=0, min_aspect=0)
    _output(masks)

    labelmaps = _command(commands, "labelmaps", run_labelmaps, "images, and label maps of many classes")
    labelmaps.add_argument("--images", type=Path, required=True, help="Folder of the images.")
    labelmaps.add_argument("--labels", type=Path, required=True, help="Folder of the label maps.")
    labelmaps.add_argument("--pattern",
        help="Pattern of a label map's path below --labels, with {image}. Default: as its image.")
    labelmaps.add_argument("--case", help=CASE_HELP)
    add_reading_flags(labelmaps)
    _classes(labelmaps)
    _objects(labelmaps, components=False, min_area=0, min_aspect=0)
    _output(labelmaps)

    volumes = _command(
        commands, "volumes", run_volumes, "scans: NIfTI, NRRD, MHA, numpy, DICOM with DICOM-SEG or RTSTRUCT"
    )
    volumes.add_argument("--images", type=Path, help="Folder of the scans.")
    volumes.add_argument("--labels", type=Path,
        help="Folder of the label volumes; may be that of the scans, with patterns.")
    volumes.add_argument("--image_pattern",
        help="Pattern of a scan's path, with {case}, such as {case}/ct.nii.gz; {case}/ is a folder of DICOM slices.")
    volumes.add_argument("--label_pattern",
        help="Pattern of a label's path, with {case} and, where each class has its file, {class}.")
    volumes.add_argument("--dicom", type=Path,
        help="In place of --images and --labels: a folder of DICOM files, series with their SEG and RTSTRUCT.")
    volumes.add_argument("--patient",
        help="Regular expression whose first group in a case's name is the patient. Default: the whole name.")
    _classes(volumes)
    _slices(volumes)
    _objects(volumes, components=True, min_area=PAPER_MIN_AREA, min_aspect=PAPER_MIN_ASPECT)
    _output(volumes)

    nnunet = _command(commands, "nnunet", run_nnunet, "a raw dataset of nnU-Net v2")
    nnunet.add_argument("folder", type=Path, help="Folder that holds dataset.json, imagesTr and labelsTr.")
    nnunet.add_argument("--channels", nargs="+",
        help="Names or numbers of the channels of dataset.json to take. Default: all, each as pictures of its own.")
    nnunet.add_argument("--patient",
        help="Regular expression whose first group in a case's name is the patient. Default: the whole name.")
    nnunet.add_argument("--unknown_values", choices=("error", "ignore"), default="error",
        help="What becomes of values that dataset.json does not name. Default: %(default)s.")
    add_reading_flags(nnunet)
    _slices(nnunet)
    _objects(nnunet, components=True, min_area=PAPER_MIN_AREA, min_aspect=PAPER_MIN_ASPECT)
    _output(nnunet, modality=False)

    coco = _command(commands, "coco", run_coco, "COCO instances: polygons and run-length encodings")
    coco.add_argument("--annotations", type=Path, required=True, help="The JSON file of the annotations.")
    coco.add_argument("--images", type=Path, required=True, help="Folder of the images that the annotations name.")
    add_flag(coco, "--crowd", False, "Take regions that stand for a group of objects too.")
    coco.add_argument("--case", help=CASE_HELP)
    add_reading_flags(coco)
    _objects(coco, components=False, min_area=0, min_aspect=0)
    _output(coco)

    published = _command(commands, "sa-med2d", run_sa_med2d, "SA-Med2D-20M as published: its index alone")
    published.add_argument("folder", type=Path, help="Folder that holds SAMed2D_v1.json, images and masks.")
    add_flag(published, "--exclude_defects", False,
        "Leave out what is known to be wrong in the data, which else is only counted.")
    published.add_argument("--datasets", nargs="+", default=[],
        help="Take these data sets alone, such as KiTS2021 AMOS2022. Default: all.")
    published.add_argument("--modalities", nargs="+", default=[],
        help="Take these modalities alone, such as ct or mr_t1. Default: all.")
    published.add_argument("--output", type=Path, required=True, help="Folder that the indexes are written into.")
    # fmt: on
    _splits(published)
    published.set_defaults(split_seed=0)  # of so many cases no split stays empty
    return parser.parse_args(argv)


def _command(commands: Any, name: str, run: Callable[[argparse.Namespace], None], help: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=help, description=help)
    parser.set_defaults(run=run)
    return parser


def _classes(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("classes")
    # fmt: off
    group.add_argument("--classes", nargs="+", metavar="NAME=VALUE",
        help="Names of the values, or one file of them, JSON or CSV; values are numbers or colours such as "
             "#ff8000. Default: every value is a class, label_001 and so on.")
    group.add_argument("--instances", default="", metavar="CLASS",
        help="In place of --classes: every value is one object of this class.")
    group.add_argument("--ignore_values", nargs="+", type=int, default=[], help="Values that are no object, beside 0.")
    group.add_argument("--unknown_values", choices=("error", "ignore"), default="error",
        help="What becomes of values that --classes does not name. Default: %(default)s.")
    # fmt: on


def _slices(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("slices (volumes)")
    # fmt: off
    group.add_argument("--axes", default="xyz",
        help="Axes that slices are cut across: x gives sagittal, y coronal, z axial slices. Default: all, as in "
             "the paper.")
    group.add_argument("--step", type=int, default=1, help="Take every so many slices. Default: %(default)s.")
    group.add_argument("--window", nargs="+",
        help=f"Window of intensities: centre and width, such as 40 400, or one of {', '.join(WINDOWS)}; for "
             "channels of their own, CT=abdomen PET=5,10. Default: minimum to maximum.")
    group.add_argument("--scale", choices=("slice", "volume"),
        help="Take minimum and maximum of each slice, as the paper does, or of the volume. Default: slice.")
    group.add_argument("--percentiles", nargs=2, type=float, metavar=("LOW", "HIGH"),
        help="Take these percentiles in place of minimum and maximum, such as 0.5 99.5.")
    group.add_argument("--geometry", choices=("refuse", "resample", "ignore"), default="refuse",
        help="Where a label's grid is not the scan's: refuse it, resample it by nearest neighbour, or ignore "
             "places and go by order. Default: %(default)s.")
    group.add_argument("--frame", type=int,
        help="Which volume of 4D images is taken, and of their labels where these are 4D too, counted from 0.")
    add_flag(group, "--straighten", False,
        "Read slightly sheared NIfTI on the nearest axes at right angles, and say the angle.")
    group.add_argument("--max_voxels", type=float, default=MOST_VOXELS,
        help="Refuse files with more voxels, by their headers, before they are decoded. Default: %(default)s.")
    # fmt: on


def _objects(parser: argparse.ArgumentParser, components: bool, min_area: float, min_aspect: float) -> None:
    group = parser.add_argument_group("objects")
    # fmt: off
    add_flag(group, "--components", components,
        f"Take every 8-connected piece as an object of its own. Default: {components}.")
    group.add_argument("--min_area", type=float, default=min_area, metavar="PERCENT",
        help=f"Drop objects below this share of the picture. Default: {min_area}; the paper's: {PAPER_MIN_AREA}.")
    group.add_argument("--min_aspect", type=float, default=min_aspect, metavar="RATIO",
        help="Drop pictures whose short side is below this share of the long, of slices in mm. Default: "
             f"{min_aspect}; the paper's: {PAPER_MIN_ASPECT}.")
    group.add_argument("--only", nargs="+", default=[], metavar="CLASS", help="Keep these classes alone.")
    # fmt: on


def _output(parser: argparse.ArgumentParser, modality: bool = True) -> None:
    group = parser.add_argument_group("output")
    # fmt: off
    group.add_argument("--output", type=Path, required=True,
        help="Folder to write, in which other data sets may be already.")
    group.add_argument("--dataset", help="Name of the data set. Default: the name of the folder of --output.")
    if modality:
        group.add_argument(
            "--modality",
            default="",
            help="Modality of all pictures, such as ct, mr_t1 or dermoscopy. Default: unknown, but --dicom takes "
            "it from the files.",
        )
    group.add_argument("--num_workers", type=int, default=min(8, os.cpu_count() or 1),
        help="Number of processes, each with one case in memory; 0 is this one alone. Default: as many as there "
             "are cores, at most 8.")
    add_flag(group, "--skip_bad_cases", False, "Write the indexes without the cases that could not be converted.")
    add_flag(group, "--prune", False, "Remove cases of this data set that are no longer in the source.")
    # fmt: on
    _splits(parser)


def _splits(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("splits, of all that is in --output")
    # fmt: off
    group.add_argument("--ratios", nargs=3, type=float, default=(0.7, 0.1, 0.2), metavar=("TRAIN", "VAL", "TEST"),
        help="Shares of the cases that fall to each split. Default: 0.7 0.1 0.2.")
    group.add_argument("--split_seed", type=_seed, metavar="SEED",
        help="Number that decides which case falls to which split, or auto: that which --output keeps; of a new "
             "folder 0 if that leaves no split empty, else the number that suits best. Default: auto.")
    group.add_argument("--folds", type=int, default=0,
        help="Number of folds that train and val are dealt into, for --data_path OUTPUT/fold_0 and so on. Default: "
             "none.")
    group.add_argument("--split_file", type=Path, help="JSON of {split: [case, ...]}, or a list of these, one a fold.")
    # fmt: on


def _seed(text: str) -> int | None:
    """None: auto."""
    if text == "auto":
        return None
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number or auto, got {text!r}") from None


# ---------------------------------------------------------------- from flags to settings


def preparation_of(args: argparse.Namespace) -> Preparation:
    if not 0 <= args.min_area < 100:
        raise UsageError("--min_area is a share in per cent, from 0 to 100")
    if not 0 <= args.min_aspect <= 1:
        raise UsageError("--min_aspect is a ratio, from 0 to 1")
    return Preparation(args.components, args.min_area, args.min_aspect, tuple(args.only))


def classes_of(args: argparse.Namespace) -> Classes:
    if args.classes and args.instances:
        raise UsageError(
            "--classes and --instances contradict each other: values are either classes or objects of one class"
        )
    names, colours = parse_classes(args.classes) if args.classes else (None, False)
    return Classes(names, tuple(args.ignore_values), args.unknown_values, args.instances, colours)


def intensity_of(args: argparse.Namespace) -> Intensity:
    if args.window and (args.scale or args.percentiles):
        raise UsageError("--window fixes what is black and white: leave out --scale and --percentiles")
    low, high = args.percentiles or (0, 100)
    if not 0 <= low < high <= 100:
        raise UsageError(f"--percentiles {low:g} {high:g}: give a low and a high one, from 0 to 100")
    window, windows = parse_windows(args.window) if args.window else (None, ())
    return Intensity(window, args.scale == "volume", (low, high), windows)


def slices_of(args: argparse.Namespace) -> dict:
    if not args.axes or set(args.axes) - set("xyz") or len(set(args.axes)) < len(args.axes):
        raise UsageError(f"--axes {args.axes}: give one or more of x, y and z")
    if args.step < 1 or (args.frame or 0) < 0:
        raise UsageError("--step must be at least 1, and --frame at least 0")
    if not args.max_voxels >= 1:
        raise UsageError("--max_voxels must be at least 1")
    return {
        "axes": args.axes,
        "step": args.step,
        "geometry": args.geometry,
        "frame": args.frame,
        "straighten": args.straighten,
        "most_voxels": int(min(args.max_voxels, 2**63)),
    }


def splits_of(args: argparse.Namespace) -> Splits:
    if min(args.ratios) < 0 or not sum(args.ratios):
        raise UsageError("--ratios are three shares, such as 0.7 0.1 0.2")
    if args.folds < 0 or args.folds == 1:
        raise UsageError("--folds must be at least 2, or 0 for none")
    if args.folds and args.split_file:
        raise UsageError(
            "--folds and --split_file contradict each other: a file of folds is a list of {split: [case, ...]}"
        )
    fixed = read_split_file(args.split_file) if args.split_file else ()
    train, val, test = (share / sum(args.ratios) for share in args.ratios)
    folds = len(fixed) if len(fixed) > 1 else args.folds
    return Splits((train, val, test), args.split_seed or 0, folds, fixed, args.split_seed is None)


# ---------------------------------------------------------------- the sources


def run_masks(args: argparse.Namespace) -> None:
    from sam_med2d.convert.images import MaskPictures, find_masks

    converter = MaskPictures(preparation_of(args), args.modality, args.threshold)
    _convert(
        args, lambda: find_masks(args.images, args.masks, args.pattern, args.case), converter, [args.images, args.masks]
    )


def run_labelmaps(args: argparse.Namespace) -> None:
    from sam_med2d.convert.images import LabelPictures, find_label_maps

    converter = LabelPictures(preparation_of(args), classes_of(args), args.modality)
    _convert(
        args,
        lambda: find_label_maps(args.images, args.labels, args.pattern, args.case),
        converter,
        [args.images, args.labels],
    )


def run_volumes(args: argparse.Namespace) -> None:
    if bool(args.dicom) == bool(args.images or args.labels) or bool(args.images) != bool(args.labels):
        raise UsageError("give --images and --labels, or --dicom")
    if args.dicom and (args.image_pattern or args.label_pattern or args.patient or args.modality):
        raise UsageError(
            "DICOM names its series, patients and modalities itself: leave out --image_pattern, "
            "--label_pattern, --patient and --modality"
        )
    from sam_med2d.convert.dicom import find_dicom
    from sam_med2d.convert.volumes import Volumes, find_volumes

    classes = classes_of(args)
    if classes.colours:
        raise UsageError("--classes: label volumes hold numbers, not colours")
    converter = Volumes(preparation_of(args), intensity_of(args), classes, **slices_of(args))
    if args.dicom:
        _convert(args, lambda: find_dicom(args.dicom), converter, [args.dicom])
    else:
        _convert(
            args,
            lambda: find_volumes(
                args.images, args.labels, args.image_pattern, args.label_pattern, args.patient, args.modality
            ),
            converter,
            [args.images, args.labels],
        )


def run_nnunet(args: argparse.Namespace) -> None:
    from sam_med2d.convert.images import SUFFIXES, LabelPictures
    from sam_med2d.convert.nnunet import classes_of as named_classes
    from sam_med2d.convert.nnunet import find_nnunet, read_dataset
    from sam_med2d.convert.volumes import Volumes

    content = read_dataset(args.folder)
    classes = named_classes(content, args.unknown_values)
    if content["file_ending"].lower() in SUFFIXES:
        defaults = {
            "axes": "xyz",
            "step": 1,
            "window": None,
            "scale": None,
            "percentiles": None,
            "geometry": "refuse",
            "frame": None,
            "straighten": False,
            "max_voxels": MOST_VOXELS,
        }
        given = [flag for flag, default in defaults.items() if getattr(args, flag) != default]
        if given:
            raise UsageError(f"--{given[0]}: {args.folder} holds pictures, not volumes; leave it out")
        converter: Converter = LabelPictures(preparation_of(args), classes)
    else:
        converter = Volumes(preparation_of(args), intensity_of(args), classes, **slices_of(args))
    _convert(args, lambda: find_nnunet(args.folder, content, args.channels, args.patient), converter, [args.folder])


def run_coco(args: argparse.Namespace) -> None:
    from sam_med2d.convert.coco import CocoPictures, find_coco

    converter = CocoPictures(preparation_of(args), args.modality)
    _convert(args, lambda: find_coco(args.annotations, args.images, args.crowd, args.case), converter, [args.images])


def run_sa_med2d(args: argparse.Namespace) -> None:
    from sam_med2d.convert.sa_med2d import index_sa_med2d

    if args.split_seed is None:
        raise UsageError("--split_seed auto: is for small data sets, whose splits may stay empty; give a number")
    splits = splits_of(args)
    with owned(args.output, "make-index"):
        index_sa_med2d(
            args.folder,
            args.output,
            splits,
            exclude_defects=args.exclude_defects,
            datasets=tuple(args.datasets),
            modalities=tuple(args.modalities),
        )


def _convert(
    args: argparse.Namespace, find: Callable[[], list[Case]], converter: Converter, sources: list[Path]
) -> None:
    if args.num_workers < 0:
        raise UsageError("--num_workers must be 0 or more")
    splits = splits_of(args)
    cases = find()
    if isinstance(intensity := getattr(converter, "intensity", None), Intensity):
        check_windows(intensity, {modality for case in cases for _, modality in case.data.get("images", ())})
    check_apart(args.output, sources)
    check_no_input([args.output / name for name in WRITTEN], sources)
    with owned(args.output, "make-index"):
        convert(
            cases,
            converter,
            args.output,
            args.dataset or args.output.resolve().name,
            splits,
            sources=sources,
            num_workers=args.num_workers,
            skip_bad_cases=args.skip_bad_cases,
            prune=args.prune,
        )
        if isinstance(intensity, Intensity):
            windows = dict(intensity.windows) | ({"": intensity.window} if intensity.window else {})
            keep_windows(args.output, args.dataset or args.output.resolve().name, windows)


@ending_in_one_line(kept="the same command goes on where this one was")
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    with reading_flags(args) if "orientation" in args else nullcontext():
        args.run(args)


if __name__ == "__main__":
    main()
