"""Write files with which other tools open a model, and compare what they show with the model itself.

    sam-med2d export --target sam1024 --sam_checkpoint small --refine False --output workdir/labelme
    sam-med2d export --target x-anylabeling --sam_checkpoint pretrain_model/sam-med2d_b.pth --output workdir/tool

In a clone, `python scripts/export.py ...` is the same.

targets:
{targets}

Each writes into a folder, with a README.md that says where to put the files, and ends with a comparison on real images:
the mean Dice between the masks that a client of these files shows, with its own way of preparing pictures and prompts,
and those of the predictor. docs/interop.md lists the tools.
"""

import argparse
from pathlib import Path

from sam_med2d.cli import ending_in_one_line
from sam_med2d.errors import UsageError
from sam_med2d.export.command import DEMO, images_of
from sam_med2d.export.frame1024 import PADDED, WHOLE
from sam_med2d.export.job import Job
from sam_med2d.export.targets import TARGETS, export, target_of
from sam_med2d.inference.models import add_model_flags, load_model, weights_file
from sam_med2d.outputs import below, check_no_input
from sam_med2d.ownership import check_writable

COMPARED = 3  # images


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    listed = "\n".join(f"  {name:15}{target.summary}" for name, target in TARGETS.items())
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").format(targets=listed), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    # fmt: off
    parser.add_argument("--target", required=True, metavar="NAME",
        help=f"What the files are for, one of {', '.join(TARGETS)}.")
    parser.add_argument("--output", type=Path, metavar="FOLDER",
        help="The folder to write. Default: workdir/export/ and the name of the target.")
    parser.add_argument("--name", help="What the files are called. Default: the name of the weights.")
    parser.add_argument("--opset", type=int, help="Opset of ONNX files, from 14 to 20. Default: 17.")
    parser.add_argument("--encoder_input", choices=[PADDED, WHOLE], default=PADDED,
        help=f"What the encoder of the target sam1024 takes: {PADDED} is (1, 3, 1024, 1024), normalised and padded, "
             f"for osam and samexporter; {WHOLE} is (height, width, 3), 0 to 255, for AnyLabeling and "
             "X-AnyLabeling. Default: %(default)s.")
    parser.add_argument("--mask-input-logits", action="store_true",
        help="Let mask_input of the target onnx hold logits, as clients of SAM feed them back. Default: "
             "probabilities, as clients of SAM-Med2D feed them back.")
    parser.add_argument("--data_path", type=Path, default=DEMO, metavar="FOLDER",
        help="A data folder, or any folder of images, that the files are compared on with the model. Default: "
             "%(default)s.")
    # fmt: on
    add_model_flags(parser)
    parser.set_defaults(device="cpu")
    args = parser.parse_args(argv)
    args.output = args.output or Path("workdir/export") / args.target
    return args


@ending_in_one_line()
def main(argv: list[str] | None = None) -> None:
    run(parse_args(argv))


def run(args: argparse.Namespace) -> None:
    target_of(args.target)
    if not args.data_path.is_dir():
        raise UsageError(f"--data_path: there is no folder {args.data_path}; name a folder of images to compare on")
    source = Path(weights_file(args.sam_checkpoint))
    check_no_input([args.output], [source])
    check_writable(args.output)
    model = load_model(args).for_inference()
    args.output.mkdir(parents=True, exist_ok=True)
    name = below(args.name or source.stem).replace("/", "_")
    images = images_of(args.data_path, "test", COMPARED)
    export(args.target, Job(model, args.output, name, images, args.encoder_input, args.mask_input_logits, args.opset))


if __name__ == "__main__":
    main()
