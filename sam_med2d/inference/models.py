"""The model that a script works with: its flags, and what they mean when nobody gives them.

A weight file says of itself which size it is, at which image size it was trained and whether it has adapters; flags are
for those who want something else.
"""

import argparse
import copy

import torch

from sam_med2d.cli import add_flag
from sam_med2d.device import best_device
from sam_med2d.errors import UsageError
from sam_med2d.inference.backends import BACKENDS, PRECISIONS, open_runtime
from segment_anything import Sam, sam_model_registry
from segment_anything.checkpoint import CheckpointError, describe, load_checkpoint, read_weights
from segment_anything.predictor import Segmenter

DEFAULT_CHECKPOINT = "pretrain_model/sam-med2d_b.pth"

WITH, WITHOUT = "with adapters", "without adapters"


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--sam_checkpoint",
        "--checkpoint",
        default=DEFAULT_CHECKPOINT,
        metavar="FILE",
        help="any SAM or SAM-Med2D weights; default: %(default)s",
    )
    group.add_argument("--model_type", "--model-type", choices=[*sam_model_registry], help="default: what the file is")
    group.add_argument(
        "--image_size", type=int, help="side of the frame that the model sees; default: what the file was trained at"
    )
    add_flag(
        group, "--encoder_adapter", None, "False on a file with adapters leaves them out; default: what the file has"
    )
    group.add_argument("--device", help="default: cuda, mps or cpu, the best there is")


def add_backend_flags(parser: argparse.ArgumentParser) -> None:
    """For scripts that only predict."""
    group = parser.add_argument_group("backend")
    group.add_argument(
        "--backend",
        choices=["torch", *BACKENDS],
        default="torch",
        help="onnxruntime and openvino take exported models, on the CPU, in place of --sam_checkpoint; "
        "default: %(default)s",
    )
    group.add_argument("--encoder_model", metavar="FILE.onnx", help="of scripts/export_onnx_encoder_model.py")
    group.add_argument("--decoder_model", metavar="FILE.onnx", help="of scripts/export_onnx_model.py")
    group.add_argument("--precision", choices=[*PRECISIONS], default="float32", help="of the encoder, with openvino")
    group.add_argument("--threads", type=int, help="of onnxruntime and openvino; default: all cores")


def load_segmenter(args: argparse.Namespace) -> Segmenter:
    """What the flags of both functions above ask for. Raises CheckpointError, UsageError."""
    if args.backend == "torch":
        if args.encoder_model or args.decoder_model:
            raise UsageError(
                "--encoder_model and --decoder_model are exported files: say with which --backend they run"
            )
        return load_model(args)
    if not (args.encoder_model and args.decoder_model):
        raise UsageError(
            f"--backend {args.backend} needs --encoder_model and --decoder_model, the two files of an export"
        )
    return open_runtime(
        args.backend, args.encoder_model, args.decoder_model, threads=args.threads, precision=args.precision
    )


def load_model(args: argparse.Namespace) -> Sam:
    """The model that the flags of `add_model_flags` ask for. Raises CheckpointError, UsageError."""
    return open_model(
        args.sam_checkpoint,
        model_type=args.model_type,
        image_size=args.image_size,
        encoder_adapter=args.encoder_adapter,
        device=args.device,
    )


def open_model(
    checkpoint: str,
    *,
    model_type: str | None = None,
    image_size: int | None = None,
    encoder_adapter: bool | None = None,
    device: str | None = None,
) -> Sam:
    """The model of a weight file, on its device; what is not given is as the file says. Raises CheckpointError,
    UsageError.
    """
    on = best_device(device)
    if image_size is not None and (image_size < 32 or image_size % 32):
        raise UsageError(f"--image_size must be a multiple of 32, not {image_size}")
    found = describe(read_weights(checkpoint))
    model_type, image_size = model_type or found.model_type, image_size or found.image_size
    if model_type is None or not image_size:
        raise CheckpointError(f"{checkpoint}: is {found}; give a checkpoint of SAM or SAM-Med2D")
    adapters = bool(found.adapters) if encoder_adapter is None else encoder_adapter
    model = sam_model_registry[model_type](image_size=image_size, encoder_adapter=adapters)
    print(load_checkpoint(model, checkpoint))
    return model.to(on)


def models_of(args: argparse.Namespace) -> dict[str, Segmenter]:
    """By name, the one to start with first. Raises CheckpointError, UsageError."""
    if args.backend != "pytorch":
        return {
            args.backend: open_runtime(
                args.backend, args.encoder_model, args.decoder_model, threads=args.threads, precision=args.precision
            )
        }
    if args.threads:
        torch.set_num_threads(args.threads)
    model = load_model(args).eval()
    return {WITH: model, WITHOUT: without_adapters(model)} if model.image_encoder.adapters() else {WITHOUT: model}


def without_adapters(model: Sam) -> Sam:
    """The same weights, and nothing beside the MLPs: the paper's SAM-Med2D*."""
    encoder = _alias(model.image_encoder)
    encoder.blocks = torch.nn.ModuleList(_alias(block) for block in encoder.blocks)
    for block in encoder.blocks:
        block.Adapter = None
    plain = _alias(model)
    plain.image_encoder = encoder
    return plain


def _alias(module: torch.nn.Module) -> torch.nn.Module:
    """A module of the same layers, whose own list of layers can be changed."""
    alias = copy.copy(module)
    alias._modules = dict(module._modules)
    return alias
