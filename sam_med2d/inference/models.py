"""The model that a command works with: its flags, and what they mean when nobody gives them.

A weight file says of itself which size it is, at which image size it was trained and whether it has adapters; flags are
for those who want something else.
"""

import argparse
import copy
import importlib.resources
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from sam_med2d.cli import add_flag
from sam_med2d.device import best_device
from sam_med2d.errors import CheckpointError, UsageError
from sam_med2d.inference.backends import BACKENDS, PRECISIONS, open_runtime
from sam_med2d.memory import keep_freed_memory
from segment_anything import Sam, sam_model_registry
from segment_anything.checkpoint import (
    Architecture,
    WeightFile,
    check_is_sam,
    fit_weights,
    frame_of,
    open_weights,
    room_for,
)
from segment_anything.errors import UserError
from segment_anything.frames import FRAMES, SAM, SAM_MED2D
from segment_anything.predictor import Segmenter
from segment_anything.zoom import AUTO, Zoom

DEFAULT_CHECKPOINT = "pretrain_model/sam-med2d_b.pth"
SMALL = "small"  # says as a checkpoint: the weights of this package
PYTORCH = "pytorch"  # the backend that needs no export

WITH, WITHOUT = "with adapters", "without adapters"
Layer = TypeVar("Layer", bound=torch.nn.Module)


def add_model_flags(parser: argparse.ArgumentParser, frame_flag: str = "--frame") -> None:
    """frame_flag: what the flag for the frame of the weights is called; its value is args.model_frame."""
    group = parser.add_argument_group("model")
    # fmt: off
    group.add_argument("--sam_checkpoint", "--checkpoint", default=DEFAULT_CHECKPOINT, metavar="FILE",
        help=f"Any SAM or SAM-Med2D weights, or {SMALL} for the small ones of this package. Default: %(default)s.")
    group.add_argument("--model_type", "--model-type", choices=[*sam_model_registry],
        help="Size of the model. Default: what the weights are.")
    group.add_argument("--image_size", type=int,
        help="Side of the square frame that the model sees, in pixels, a multiple of 32. Default: what the weights "
             "were trained at.")
    add_flag(group, "--encoder_adapter", None,
        "Use adapters; False leaves those of the file out. Default: what the file has.")
    add_frame_flag(group, frame_flag, "model_frame")
    add_flag(group, "--refine", None,
        "Use the refinement network; False leaves that of the file out. Default: what the file has.")
    group.add_argument("--device",
        help="Where the model runs, such as cuda, cuda:1, mps or cpu. Default: the best there is.")
    # fmt: on


def add_frame_flag(group: argparse._ActionsContainer, name: str = "--frame", dest: str = "frame") -> None:
    group.add_argument(
        name,
        dest=dest,
        choices=FRAMES,
        help=f"How pictures reach the model: {SAM} is RGB, longest side, padded, bilinear; {SAM_MED2D} is BGR, "
        "stretched, nearest neighbour. Default: what the weights were trained in.",
    )


def add_backend_flags(parser: argparse.ArgumentParser) -> None:
    """For commands that only predict, and so can run exported files too; `load_segmenter` opens what is asked for."""
    group = parser.add_argument_group("backend")
    # fmt: off
    group.add_argument(
        "--backend",
        type=lambda word: PYTORCH if word == "torch" else word,  # its name in earlier versions
        choices=[PYTORCH, *BACKENDS],
        default=PYTORCH,
        help="What computes; onnxruntime and openvino run exported files on the CPU, in place of --sam_checkpoint. "
        "Default: %(default)s.",
    )
    group.add_argument("--encoder_model", metavar="FILE.onnx",
        help="The encoder for --backend, as sam-med2d export-encoder wrote it.")
    group.add_argument("--decoder_model", metavar="FILE.onnx",
        help="The decoder for --backend, as sam-med2d export-decoder wrote it.")
    group.add_argument("--refinement_model", metavar="FILE.onnx",
        help="The refinement network for --backend, which sam-med2d export-decoder wrote beside the decoder of a "
             "model that has one.")
    group.add_argument("--precision", choices=[*PRECISIONS], default="float32",
        help="In what pytorch and openvino compute the encoder; bfloat16 gains where the processor has it. "
             "Default: %(default)s.")
    add_flag(group, "--compile", False,
        "Compile the encoder by torch.compile, which takes a minute at the first picture.")
    # fmt: on
    add_threads_flag(group)


def add_zoom_flag(group: argparse._ActionsContainer, default: str = AUTO) -> None:
    group.add_argument(
        "--zoom",
        type=zoom_of,
        default=default,
        metavar="WHEN",
        help="Look closer at objects, in a crop that fills the frame: auto (those that are small in the picture), "
        "always, never, or a number: always, the sides of the crop as a multiple of the object's box. "
        "Default: %(default)s.",
    )


def zoom_of(text: str) -> str:
    """An argparse type: what somebody says of zooming, as it is. Raises ArgumentTypeError: nothing that zooms."""
    try:
        Zoom.of(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def add_threads_flag(group: argparse._ActionsContainer, default: int | None = None) -> None:
    told = "all cores" if default is None else default
    group.add_argument("--threads", type=int, default=default, help=f"Number of threads on a CPU. Default: {told}.")


def check_backend(args: argparse.Namespace) -> None:
    """Raises UsageError where the flags of `add_backend_flags` contradict each other."""
    exported = [args.encoder_model, args.decoder_model]
    if args.backend == PYTORCH and any((*exported, args.refinement_model)):
        raise UsageError(
            "--encoder_model, --decoder_model and --refinement_model are exported files: say with which --backend they "
            "run"
        )
    if args.backend != PYTORCH and not all(exported):
        raise UsageError(
            f"--backend {args.backend} needs --encoder_model and --decoder_model, the two files of an export"
        )
    if args.backend != PYTORCH and args.compile:
        raise UsageError(f"--compile is for --backend {PYTORCH}: {args.backend} runs what an export wrote")
    if args.threads is not None and args.threads < 1:
        raise UsageError(f"--threads must be at least 1, not {args.threads}")


def load_segmenter(args: argparse.Namespace) -> Segmenter:
    """What the flags of `add_model_flags` and `add_backend_flags` ask for. Raises CheckpointError, UsageError."""
    check_backend(args)
    if args.backend != PYTORCH:
        return open_runtime(
            args.backend,
            args.encoder_model,
            args.decoder_model,
            args.refinement_model,
            threads=args.threads,
            precision=args.precision,
        )
    if args.threads:
        torch.set_num_threads(args.threads)
    return load_model(args).for_inference(getattr(torch, args.precision), args.compile)


def load_model(args: argparse.Namespace) -> Sam:
    """The model that the flags of `add_model_flags` ask for. Raises CheckpointError, UsageError."""
    return open_model(
        args.sam_checkpoint,
        model_type=args.model_type,
        image_size=args.image_size,
        encoder_adapter=args.encoder_adapter,
        frame=args.model_frame,
        refine=args.refine,
        device=args.device,
    )


def small_weights() -> Path:
    """The weights that come with this package: a vit_t of 21 MB for frames of 192 px, with a refinement network,
    trained on generated scenes, drawn phantoms and regions of unlabelled pictures (docs/training.md)."""
    file = importlib.resources.files("sam_med2d") / "weights" / "vit_t_small.safetensors"
    if not isinstance(file, Path) or not file.is_file():
        raise CheckpointError(f"{file}: the weights of this package are not there; install sam-med2d again")
    return file


def weights_file(checkpoint: str) -> str:
    """What a person says of weights -> a path. Raises CheckpointError where the default is meant and is not there."""
    if checkpoint == SMALL:
        return str(small_weights())
    if checkpoint == DEFAULT_CHECKPOINT and not Path(checkpoint).exists():
        raise CheckpointError(
            f"{checkpoint}: is not in this folder; download it (sam-med2d_b.pth, from the SAM-Med2D repository), name "
            f"your own weights with --sam_checkpoint, or take the small ones of this package: --sam_checkpoint {SMALL}"
        )
    return checkpoint


class Plan(NamedTuple):
    """A weight file, read and checked, and the model that it becomes. differences: flags that say otherwise."""

    file: WeightFile
    model_type: str
    image_size: int
    encoder_adapter: bool
    frame: str
    differences: list[str]
    refine: bool = False

    def warn(self) -> None:
        for difference in self.differences:
            print(f"warning: {difference}", file=sys.stderr)

    def build(self, say: Callable[[object], None] = print) -> Sam:
        """The model with the weights of the file, on the CPU; says how they fit. Raises CheckpointError."""
        keep_freed_memory()  # of all who work with a model
        with room_for(self.file, self.encoder_adapter, self.refine):
            model = sam_model_registry[self.model_type](
                image_size=self.image_size,
                encoder_adapter=self.encoder_adapter,
                refine=self.refine,
                frame=self.frame,
            )
        say(fit_weights(model, self.file))
        return model


def plan_model(
    checkpoint: str,
    *,
    model_type: str | None = None,
    image_size: int | None = None,
    encoder_adapter: bool | None = None,
    frame: str | None = None,
    refine: bool | None = None,
    usual_size: Callable[[Architecture], int] = lambda found: found.image_size,
    may_add_parts: bool = False,
    training: bool = False,
) -> Plan:
    """Read a weight file and settle what becomes of it; what is not given is as the file says.

    checkpoint: a path, or SMALL for the weights that come with this package.
    usual_size: the image size where none is given. may_add_parts: adapters or a refinement network that the file has
    not are no difference, since new ones are to be trained. training: weights that name no frame, as SAM's own, are
    trained in SAM-Med2D's, which is the paper's recipe, unless frame says otherwise; either is no difference.
    Raises CheckpointError, UsageError.
    """
    file = open_weights(weights_file(checkpoint))
    found = check_is_sam(file)
    model_type = model_type or found.model_type
    if model_type is None:
        raise CheckpointError(f"{file.path}: is {found}; give a checkpoint of SAM or SAM-Med2D")
    size = image_size or usual_size(found)
    if size < 32 or size % 32:
        said = f"not {size}" if image_size else f"and {file.path} was trained at {size} px: say which is wanted"
        raise UsageError(f"--image_size must be a multiple of 32, {said}")
    has_adapters = bool(found.adapters)
    adapters = has_adapters if encoder_adapter is None else encoder_adapter
    differences = []
    if image_size and size != found.image_size:
        differences.append(
            f"--image_size {size}, but {file.path} was trained at {found.image_size} px; without the flag "
            "the file's is taken"
        )
    refined = found.refinement if refine is None else refine
    if adapters and not has_adapters and not may_add_parts:
        differences.append(f"--encoder_adapter True, but {file.path} has no adapters; new ones add nothing")
    if has_adapters and not adapters:
        differences.append(f"--encoder_adapter False, but {file.path} has adapters, which are left out")
    if refined and not found.refinement and not may_add_parts:
        differences.append(f"--refine True, but {file.path} has no refinement network; a new one adds nothing")
    if found.refinement and not refined:
        differences.append(f"--refine False, but {file.path} has a refinement network, which is left out")
    usual = frame_of(file, adapters)
    if training and file.frame is None:
        usual = frame or SAM_MED2D
    if frame and frame != usual:
        differences.append(f"--frame {frame}, but {file.path} was trained in the frame {usual}")
    return Plan(file, model_type, size, adapters, frame or usual, differences, refined)


def settle(args: argparse.Namespace, **options: Any) -> Plan:
    """Read the weights that the flags of train.py or test.py name; those of the model become what it will be.

    options: what else `plan_model` takes. Raises CheckpointError, UsageError.
    """
    plan = plan_model(
        args.sam_checkpoint,
        model_type=args.model_type,
        image_size=args.image_size,
        encoder_adapter=args.encoder_adapter,
        frame=args.frame,
        refine=args.refine,
        **options,
    )
    args.model_type, args.image_size, args.frame = plan.model_type, plan.image_size, plan.frame
    args.encoder_adapter, args.refine = plan.encoder_adapter, plan.refine
    return plan


def open_model(
    checkpoint: str,
    *,
    model_type: str | None = None,
    image_size: int | None = None,
    encoder_adapter: bool | None = None,
    frame: str | None = None,
    refine: bool | None = None,
    device: str | None = None,
) -> Sam:
    """The model of a weight file, on its device; what is not given is as the file says.

    checkpoint: a path, or SMALL for the weights that come with this package. Raises CheckpointError, UsageError.
    """
    on = best_device(device)
    plan = plan_model(
        checkpoint,
        model_type=model_type,
        image_size=image_size,
        encoder_adapter=encoder_adapter,
        frame=frame,
        refine=refine,
    )
    plan.warn()
    return plan.build().to(on)


def models_of(args: argparse.Namespace) -> dict[str, Segmenter]:
    """What `load_segmenter` opens, by name; a model with adapters also without them, as the second.

    Raises CheckpointError, UsageError.
    """
    model = load_segmenter(args)
    if not isinstance(model, Sam):
        return {args.backend: model}
    return {WITH: model, WITHOUT: without_adapters(model)} if model.image_encoder.adapters() else {WITHOUT: model}


def without_adapters(model: Sam) -> Sam:
    """The same weights, and nothing beside the MLPs: the paper's SAM-Med2D*."""
    encoder = _alias(model.image_encoder)
    blocks = [_alias(block) for block in encoder.blocks]
    for block in blocks:
        block._modules["Adapter"] = None
    encoder.blocks = torch.nn.ModuleList(blocks)
    plain = _alias(model)
    plain.image_encoder = encoder
    return plain


def _alias(module: Layer) -> Layer:
    """A module of the same layers, whose own list of layers can be changed."""
    alias = copy.copy(module)
    alias._modules = dict(module._modules)
    return alias
