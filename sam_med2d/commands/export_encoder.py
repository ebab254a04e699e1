"""Export the image encoder to ONNX, and compare the file with the eager model.

    sam-med2d export-encoder --sam_checkpoint pretrain_model/sam-med2d_b.pth \\
        --output sam-med2d_b.encoder.onnx --model-type vit_b --image_size 256 --encoder_adapter True
    sam-med2d export-encoder --sam_checkpoint small --output workdir/vit_t.encoder.onnx --quantize      # seconds

In a clone, `python scripts/export_onnx_encoder_model.py ...` is the same.

input_image -> image_embeddings (B, 256, S/16, S/16). input_image is (1, 3, S, S): stretched to S x S with nearest
neighbour, BGR, normalised with the mean 123.675 116.28 103.53 and the deviation 58.395 57.12 57.375. With
--use-preprocess it is (H, W, 3): a BGR image of any size with values 0..255, float32. With --dynamic-batch it is (B, 3,
S, S).
"""

import argparse
import copy
from functools import partial

import numpy as np
import torch

from sam_med2d.cli import Parser, ending_in_one_line
from sam_med2d.export.command import add_export_flags, load_for_export, write
from sam_med2d.export.graphs import EncoderGraph
from sam_med2d.export.onnx_files import trace_encoder
from sam_med2d.export.parity import encoder_difference, encoder_inputs
from sam_med2d.inference.backends import RuntimeEncoder, Session
from segment_anything import Sam


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    add_export_flags(parser)
    parser.add_argument(
        "--use-preprocess", action="store_true", help="Put stretching and normalisation inside the graph."
    )
    parser.add_argument(
        "--dynamic-batch",
        action="store_true",
        help="Take any number of images at once; one at a time, the default, is faster, and what clients of "
        "SAM-Med2D expect.",
    )
    args = parser.parse_args(argv)
    if args.use_preprocess and args.dynamic_batch:
        parser.error("--use-preprocess takes one image, whose size is its own: leave out --dynamic-batch")
    if args.use_preprocess and (args.quantize or args.quantize_out):
        parser.error("int8 is for the encoder without --use-preprocess: export it in a run of its own")
    return args


@ending_in_one_line()
def main(argv: list[str] | None = None) -> None:
    run(parse_args(argv))


def run(args: argparse.Namespace) -> None:
    model = load_for_export(args)
    graph = EncoderGraph(model, preprocess=args.use_preprocess, batch=None if args.dynamic_batch else 1)

    def differences(session: Session, images: list[np.ndarray]) -> float:
        largest = encoder_difference(model, session, images)
        print(f"  image_embeddings       {largest:.1e}")
        return largest

    def served(model: Sam, session: Session) -> Sam:
        other = copy.copy(model)
        encode = partial(encode_whole, session) if args.use_preprocess else RuntimeEncoder(session).encode
        other.encode = encode  # type: ignore[method-assign]
        return other

    write(
        args,
        model,
        trace_encoder(graph, args.opset, args.exporter),
        differences,
        lambda session, images: [encoder_inputs(model, session, image) for image in images],
        served,
        part="encoder",
        preprocess=args.use_preprocess,
    )


def encode_whole(session: Session, images: torch.Tensor) -> torch.Tensor:
    """`Sam.encode` through a graph that takes one image of any size."""
    outputs = [session({"input_image": image.permute(1, 2, 0).float().numpy()})["image_embeddings"] for image in images]
    return torch.from_numpy(np.concatenate(outputs))


if __name__ == "__main__":
    main()
