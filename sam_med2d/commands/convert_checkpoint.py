"""Turn any checkpoint of SAM or SAM-Med2D into a `.safetensors` file of weights alone.

    sam-med2d convert-checkpoint sam-med2d_b.pth
    sam-med2d convert-checkpoint workdir/last.pth --output small.safetensors --half
    sam-med2d convert-checkpoint workdir/models/lora/best.pth --merge

In a clone, `python scripts/convert_checkpoint.py ...` is the same.

The optimizer and everything else that is no weight is dropped: the published SAM-Med2D file, 2.4 GB, becomes
1.1 GB, or half of that with --half. Nothing that the file contains is executed. The result is read wherever a
checkpoint is expected. With --merge the LoRA pairs of a run with --tune lora become part of the weights of their
layers: what is left are SAM's own names, which every tool for SAM loads.
"""

import argparse
from pathlib import Path

import torch

from sam_med2d.cli import Parser, ending_in_one_line
from sam_med2d.errors import CheckpointError, UsageError
from sam_med2d.outputs import check_no_input
from sam_med2d.ownership import check_writable
from segment_anything.checkpoint import check_is_sam, frame_of, merged_weights, open_weights, save_weights
from segment_anything.weight_files import FRAME, WINDOW


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="The file of weights to convert.")
    parser.add_argument(
        "--output", type=Path, help="The file to write. Default: the name of the checkpoint with .safetensors."
    )
    parser.add_argument("--half", action="store_true", help="Store float16: half the size, values to 3 digits.")
    parser.add_argument("--merge", action="store_true", help="Add LoRA pairs to the weights of their layers.")
    parser.add_argument("--overwrite", action="store_true", help="Replace the output if it exists.")
    return parser.parse_args(argv)


def convert(source: Path, output: Path, half: bool, merge: bool = False) -> None:
    """Write `output`, and print what both files are. merge: LoRA pairs into their layers. Raises CheckpointError."""
    file = open_weights(source)
    architecture = check_is_sam(file)
    print(f"{source}: {architecture}, {megabytes(source)}", *file.notes, sep="; ")
    facts = {FRAME: frame_of(file)} | ({WINDOW: "{:g} {:g}".format(*file.window)} if file.window else {})
    if merge:
        if not architecture.lora:
            raise CheckpointError(f"{source}: has no LoRA pairs to merge; leave --merge out")
        file = merged_weights(file)
        architecture = check_is_sam(file)
        if architecture.adapters:
            print(f"{output}: has adapters too, which cannot be merged: other tools for SAM do not know them")
    facts["architecture"] = str(architecture)
    save_weights(file.tensors, output, torch.float16 if half else None, facts)
    print(f"{output}: {'float16' if half else 'types as they were'}, {megabytes(output)}")


def megabytes(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.1f} MB"


@ending_in_one_line()
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    output = args.output or args.checkpoint.with_suffix(".safetensors")
    if output.suffix != ".safetensors":
        raise UsageError(f"{output}: the output is a safetensors file; end its name in .safetensors")
    if output.exists() and not args.overwrite:
        raise UsageError(f"{output}: exists; choose another --output, or replace it with --overwrite")
    if not output.parent.is_dir():
        raise UsageError(f"{output}: there is no folder {output.parent}; create it first")
    if args.output:  # without it, --overwrite means the checkpoint itself
        check_no_input([output], [args.checkpoint])
    check_writable(output.parent)
    convert(args.checkpoint, output, args.half, args.merge)


if __name__ == "__main__":
    main()
