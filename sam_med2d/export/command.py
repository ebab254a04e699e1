"""What the two export scripts share: their flags, and the end of every export, a comparison with the eager model."""

import argparse
import copy
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx

from sam_med2d.data.index import find_index, read_index
from sam_med2d.data.reading import read_image
from sam_med2d.errors import DataError, UsageError
from sam_med2d.export.graphs import approximate_gelu
from sam_med2d.export.onnx_files import DEFAULT_OPSET, EXPORTERS, HALF, TRACE, describe, halve, placed, save
from sam_med2d.export.parity import PARITY, agreement, dice_table, refinement_difference
from sam_med2d.export.quantize import quantize
from sam_med2d.image_files import find_images
from sam_med2d.inference.backends import OnnxRuntimeSession, Session
from sam_med2d.inference.models import add_model_flags, load_model, weights_file
from sam_med2d.outputs import folded
from sam_med2d.ownership import check_writable
from segment_anything import Sam
from segment_anything.geometry import EXACT, PROTOCOLS
from segment_anything.weight_files import WINDOW

DEMO = Path("data_demo")  # of a clone
COMPARED = 3  # images, in the comparison with the eager model

Differences = Callable[[Session, list[np.ndarray]], float]  # prints, and gives the largest
Feeds = Callable[[Session, list[np.ndarray]], list[dict[str, np.ndarray]]]  # the graph's inputs for some images
Served = Callable[[Sam, Session], Sam]  # the model with this part replaced


def add_export_flags(parser: argparse.ArgumentParser) -> None:
    add_model_flags(parser)
    parser.set_defaults(device="cpu")
    group = parser.add_argument_group("file")
    # fmt: off
    group.add_argument("--output", required=True, type=Path, metavar="FILE.onnx", help="The ONNX file to write.")
    group.add_argument("--exporter", choices=[*EXPORTERS], default=TRACE,
        help="Which of PyTorch's exporters writes the file; it will keep dynamo alone, which needs onnxscript and "
             "takes minutes. Default: %(default)s.")
    opsets = ", ".join(f"{name}: {opsets[0]} to {opsets[-1]}" for name, opsets in EXPORTERS.items())
    defaults = ", ".join(f"{name}: {opset}" for name, opset in DEFAULT_OPSET.items())
    group.add_argument("--opset", type=int, help=f"Opset of the file ({opsets}). Default: {defaults}.")
    group.add_argument("--protocol", choices=PROTOCOLS, default=EXACT,
        help="How masks come back from the frame, in the decoder's graph and in the comparisons: exact, to the "
             "pixels that it shows, or as in the paper. Default: %(default)s.")
    group.add_argument("--precision", choices=["float32", *HALF], default="float32",
        help="Precision of the stored weights: with 16 bits the file is half as large, and computes in float32 or "
             "as the runtime is told. Default: %(default)s.")
    group.add_argument("--gelu-approximate", action="store_true", help="Compute GELU by tanh in place of erf.")
    group = parser.add_argument_group("int8")
    group.add_argument("--quantize", action="store_true",
        help="Write a static int8 file as well, beside --output NAME.onnx as NAME.int8.onnx.")
    group.add_argument("--quantize-out", type=Path, metavar="FILE.onnx",
        help="Write a static int8 file as well, with this name.")
    group.add_argument("--calibration_path", type=Path, metavar="FOLDER",
        help="Images that the ranges of the int8 file are taken from: a data folder (its train split), or any "
             "folder of images. Default: --data_path.")
    group.add_argument("--calibration_images", type=int, default=32,
        help="Number of these images, at most. Default: %(default)s.")
    group = parser.add_argument_group("comparison with the eager model")
    group.add_argument("--data_path", type=Path, metavar="FOLDER",
        help="A data folder: its images are what the file is compared on with the model, and its test split gives "
             "the Dice of the int8 file. Default: data_demo in the current folder, which a clone has.")
    # fmt: on


def load_for_export(args: argparse.Namespace) -> Sam:
    """The model, with the GELU that was asked for; the default of --data_path is filled in.

    Raises CheckpointError, UsageError.
    """
    check_writable(args.output.parent)
    if args.quantize_out:
        check_writable(args.quantize_out.parent)
        if folded(os.path.abspath(args.quantize_out)) == folded(os.path.abspath(args.output)):
            raise UsageError(f"--quantize-out {args.quantize_out}: is --output as well; give each file its own name")
    if args.calibration_images < 1:
        raise UsageError("--calibration_images must be at least 1")
    if args.data_path is None:
        args.data_path = DEMO
        if not DEMO.is_dir():
            raise UsageError(
                "--data_path: there is no data_demo in this folder; name a folder of images to compare the export on"
            )
    model = load_model(args).for_inference()
    if args.gelu_approximate:
        approximate_gelu(model)
    return model


def images_of(folder: Path, split: str, count: int) -> list[np.ndarray]:
    """Up to `count` images, spread evenly over a data folder's split, or over a plain folder. BGR. Raises DataError."""
    try:
        find_index(str(folder), split)
    except DataError:
        root, names = find_images(folder)
        paths = [str(root / name) for name in names]
    else:
        index = read_index(folder, split)
        paths = [index.path(index[i][0]) for i in range(len(index))]
    chosen = np.linspace(0, len(paths) - 1, min(count, len(paths))).round().astype(int)
    return [read_image(paths[i]) for i in chosen]


def write(
    args: argparse.Namespace,
    model: Sam,
    proto: onnx.ModelProto,
    differences: Differences,
    feeds: Feeds,
    served: Served,
    **facts: object,
) -> None:
    """Write the file, and the int8 one beside it, each after its comparison. Raises UsageError where float32 is not
    equal.
    """
    images = images_of(args.data_path, "test", COMPARED)
    facts = {
        "image_size": model.image_size,
        "channels": model.image_format,
        "frame": model.frame,
        **({WINDOW: "{:g} {:g}".format(*model.window)} if model.window else {}),
        "source": Path(weights_file(args.sam_checkpoint)).name,
        "exporter": args.exporter,
        **facts,
    }
    with placed(args.output) as path:
        describe(proto, **facts, precision=args.precision)
        stored = proto
        if args.precision != "float32":
            stored = copy.deepcopy(proto)  # int8 is made from float32
            halve(stored, args.precision)
        save(stored, path)
        session = OnnxRuntimeSession(path)
        print(f"compared with the eager model on {len(images)} images of {args.data_path}:")
        largest = differences(session, images)
        if args.precision == "float32" and not largest <= PARITY:
            raise UsageError(
                f"{args.output}: not written, because it differs from the eager model by {largest:.1e}; "
                f"float32 may differ by {PARITY:.0e}"
            )
        if args.precision != "float32":
            dice = agreement(model, served(model, session), images, args.protocol)
            print(f"mean Dice between the masks of {args.precision} and float32: {dice:.4f}")
    print(f"{args.output}: {args.precision}, {_megabytes(args.output)}, largest difference {largest:.1e}")
    if args.quantize or args.quantize_out:
        _write_int8(args, model, proto, feeds, served, images, facts)


def write_refinement(args: argparse.Namespace, model: Sam, proto: onnx.ModelProto) -> Path:
    """Write the refinement network beside the decoder, after its comparison. Raises UsageError where it is not equal.

    -> its path: `x.refinement.onnx` beside `x.onnx` or `x.decoder.onnx`.
    """
    path = args.output.with_name(f"{args.output.stem.removesuffix('.decoder')}.refinement.onnx")
    images = images_of(args.data_path, "test", COMPARED)
    with placed(path) as temporary:
        describe(proto, image_size=model.image_size, source=Path(weights_file(args.sam_checkpoint)).name)
        save(proto, temporary)
        largest = refinement_difference(model, OnnxRuntimeSession(temporary), images)
        if not largest <= PARITY:
            raise UsageError(
                f"{path}: not written, because it differs from the eager model by {largest:.1e}; "
                f"float32 may differ by {PARITY:.0e}"
            )
    print(f"{path}: float32, {_megabytes(path)}, largest difference {largest:.1e}")
    return path


def _write_int8(
    args: argparse.Namespace,
    model: Sam,
    proto: onnx.ModelProto,
    feeds: Feeds,
    served: Served,
    images: list[np.ndarray],
    facts: dict[str, object],
) -> None:
    output = args.quantize_out or args.output.with_suffix(".int8.onnx")
    calibration = images_of(args.calibration_path or args.data_path, "train", args.calibration_images)
    print(f"int8: calibrating on {len(calibration)} images of {args.calibration_path or args.data_path}")
    quantized = quantize(proto, iter(feeds(OnnxRuntimeSession(args.output), calibration)))
    describe(quantized, **facts, precision="int8")
    with placed(output) as path:
        save(quantized, path)
        int8 = served(model, OnnxRuntimeSession(path))
        print(f"mean Dice between the masks of int8 and float32: {agreement(model, int8, images, args.protocol):.4f}")
        try:
            models = {"float32, eager": model, "int8, ONNX Runtime": int8}
            dice_table(models, args.data_path, model.image_size, args.protocol)
        except DataError as error:
            print(f"no Dice against true masks: {error}")
    print(f"{output}: int8, {_megabytes(output)}")


def _megabytes(path: Path) -> str:
    data = path.with_name(f"{path.name}.data")
    return f"{(path.stat().st_size + (data.stat().st_size if data.exists() else 0)) / 1e6:.1f} MB"
