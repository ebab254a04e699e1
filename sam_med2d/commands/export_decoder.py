"""Export the prompt encoder and mask decoder to ONNX, and compare the file with the eager model.

    sam-med2d export-decoder --checkpoint pretrain_model/sam-med2d_b.pth --output sam-med2d_b.decoder.onnx \\
        --model-type vit_b --return-single-mask
    sam-med2d export-decoder --checkpoint small --output workdir/vit_t.decoder.onnx             # seconds

In a clone, `python scripts/export_onnx_model.py ...` is the same.

Inputs and outputs, for any number of objects and points (sam_med2d/export/graphs.py has the details):

    image_embeddings point_coords point_labels mask_input has_mask_input orig_im_size -> masks iou_predictions
    low_res_masks

Coordinates are in the S x S frame; mask_input holds probabilities (logits with --mask-input-logits); masks and
low_res_masks are logits. Of a model with a refinement network a third file, `*.refinement.onnx`, is written beside; it
reads the encoder's image, low_res_masks and the same prompts, and gives refined_masks at the frame's full size.
"""

import argparse
import copy

import numpy as np

from sam_med2d.cli import Parser, ending_in_one_line
from sam_med2d.export.command import add_export_flags, load_for_export, write, write_refinement
from sam_med2d.export.graphs import DecoderGraph, RefinementGraph
from sam_med2d.export.onnx_files import trace_decoder, trace_refinement
from sam_med2d.export.parity import PROMPT_KINDS, decoder_differences, given, prompts_of
from sam_med2d.inference.backends import (
    CHOOSING,
    LOGITS,
    PROBABILITIES,
    REFINED,
    RuntimeDecoder,
    Session,
    decoder_inputs,
)
from segment_anything import Sam, SamPredictor
from segment_anything.geometry import PAPER
from segment_anything.zoom import NEVER


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    add_export_flags(parser)
    group = parser.add_argument_group("outputs")
    # fmt: off
    group.add_argument("--return-single-mask", action="store_true",
        help="Give the best of outputs 1 to 3 by predicted IoU. Default: all four outputs, SAM's single mask first.")
    group.add_argument("--use-stability-score", action="store_true",
        help="Give stability scores in place of the predicted IoU.")
    group.add_argument("--return-extra-metrics", action="store_true",
        help="Give masks, iou_predictions, stability_scores, areas and low_res_masks; the third and the fourth are "
             "of the masks at full size.")
    group.add_argument(
        "--resize-logest-img-size",
        "--resize-longest-img-size",
        dest="longest_side",
        action="store_true",
        help="Serve clients that scale the longest side to S and pad at the right and the bottom. Default: images "
        "are stretched to S x S.",
    )
    group = parser.add_argument_group("inputs")
    group.add_argument("--mask-input-logits", action="store_true",
        help="Serve clients that feed low_res_masks back as they are, as SAM's do: the sigmoid of mask_input is "
             "taken inside. Default: mask_input holds probabilities, as clients of SAM-Med2D give.")
    # fmt: on
    return parser.parse_args(argv)


@ending_in_one_line()
def main(argv: list[str] | None = None) -> None:
    run(parse_args(argv))


def run(args: argparse.Namespace) -> None:
    model = load_for_export(args)
    graph = DecoderGraph(
        model,
        single_mask=args.return_single_mask,
        stability_score=args.use_stability_score,
        extra_metrics=args.return_extra_metrics,
        longest_side=args.longest_side,
        logits_in=args.mask_input_logits,
        paper=args.protocol == PAPER,
    )

    def differences(session: Session, images: list[np.ndarray]) -> float:
        found = decoder_differences(model, graph, session, images)
        print(f"  1 and 8 objects        {'  '.join(next(iter(found.values())))}")
        for kind, by_output in found.items():
            print(f"  {kind:22} " + "  ".join(f"{value:<{len(name)}.1e}" for name, value in by_output.items()))
        return max(value for by_output in found.values() for value in by_output.values())

    def feeds(session: Session, images: list[np.ndarray]) -> list[dict[str, np.ndarray]]:
        predictor, made = SamPredictor(model, zoom=NEVER), []
        for number, image in enumerate(images):
            predictor.set_image(image, "BGR")
            made += [
                decoder_inputs(
                    predictor.get_image_embedding(),
                    given(graph, prompts_of(kind, 2, model.image_size, number)),
                    (8, 8),
                )
                for kind in PROMPT_KINDS
                if kind != "mask"
            ]  # one without points would calibrate an empty tensor
        return made

    def served(model: Sam, session: Session) -> Sam:
        other = copy.copy(model)
        other.predict = RuntimeDecoder(session).predict  # type: ignore[method-assign]
        return other

    write(
        args,
        model,
        trace_decoder(graph, args.opset, args.exporter),
        differences,
        feeds,
        served,
        part="decoder",
        single_mask=args.return_single_mask,
        mask_input=LOGITS if graph.logits_in else PROBABILITIES,
        protocol=args.protocol,
        **({} if model.refinement is None else {REFINED: True, CHOOSING: int(model.refinement.choosing > 0)}),
    )
    if model.refinement is not None:
        write_refinement(args, model, trace_refinement(RefinementGraph(model), args.opset, args.exporter))


if __name__ == "__main__":
    main()
