"""The model that a run starts from: what its flags mean, its weights, and what of it is trained."""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch

from sam_med2d.data.embedding_cache import PRECISIONS
from sam_med2d.data.phantoms import PHANTOMS
from sam_med2d.errors import UsageError
from sam_med2d.inference.models import Plan, plan_model, settle
from sam_med2d.memory import keep_freed_memory
from sam_med2d.seeds import seed_of
from sam_med2d.training.embeddings import AGAIN
from sam_med2d.training.published import begin_as_published
from sam_med2d.training.teacher import Teacher
from segment_anything import Sam, flops, sam_model_registry
from segment_anything.checkpoint import Architecture, CheckpointError, check_is_sam
from segment_anything.frames import SAM, SAM_MED2D, likely_frame
from segment_anything.modeling.lora import DECODER, add_lora
from segment_anything.modeling.tuning import count_trained

DEFAULT_CHECKPOINT = "pretrain_model/sam_vit_b.pth"
FROM_SCRATCH = "none"  # says as a checkpoint: random weights
NEW_TYPE, NEW_SIZE = "vit_b", 256  # of a model from scratch, and pixels
LAST = "last"  # the first word of --tune_blocks


def tuned_without_the_flag(encoder_adapter: bool | None) -> str:
    """What --tune is where nobody gives it, as in runs that are older than the flag."""
    return "decoder" if encoder_adapter is False else "adapters"


def check_tuning(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Settle --tune, --encoder_adapter, --replay and --embeddings, and end with the parser's message where they
    contradict.
    """
    args.tune = args.tune or tuned_without_the_flag(args.encoder_adapter)
    if args.tune == "adapters":
        if args.encoder_adapter is False and not args.resume:  # a run that goes on says itself what does not fit
            parser.error("--tune adapters trains adapters, but --encoder_adapter False leaves them out: give one")
        args.encoder_adapter = args.encoder_adapter is not False
    if args.lora_rank < 1:
        parser.error(f"--lora_rank must be at least 1, not {args.lora_rank}")
    if args.tune_blocks is not None:
        word, count = args.tune_blocks
        if word != LAST or not count.isdecimal() or int(count) < 1:
            parser.error(f"--tune_blocks is written as: {LAST} 4; not {' '.join(args.tune_blocks)}")
        if args.tune == "decoder":
            parser.error("--tune_blocks is about the encoder, of which --tune decoder trains nothing")
    frozen = args.tune == "decoder" or (args.tune == "lora" and args.lora_targets == [DECODER])
    if args.replay is None:
        args.replay = [] if frozen or args.recipe == "paper" else [PHANTOMS]
    args.replay = [] if args.replay == ["none"] else args.replay
    if args.pull and not args.replay:
        parser.error("--pull is about the pictures of --replay, of which there are none: name some")
    if args.pull and args.sam_checkpoint.lower() == FROM_SCRATCH:
        parser.error("--pull is towards the weights that training starts from, which are random: leave it out")
    of_an_epoch = ("augment", "augment_with", "replay", "zoom_share")
    varying = [name for name in of_an_epoch if getattr(args, name)]
    if args.embeddings in PRECISIONS and (varying or not frozen):
        why = f"--{varying[0]} varies the images" if frozen else f"the encoder learns with --tune {args.tune}"
        parser.error(f"--embeddings {args.embeddings} keeps what does not change, but {why}; leave one of the two out")
    args.embeddings = args.embeddings or ("float16" if frozen and not varying else AGAIN)
    if not 0 < args.layer_decay <= 1:
        parser.error(f"--layer_decay must be above 0 and at most 1, not {args.layer_decay}")
    if args.layer_decay < 1 and args.tune != "all":
        parser.error("--layer_decay is for --tune all: only there the encoder's own layers learn")


def settle_model(args: argparse.Namespace) -> Plan | None:
    """Read the weights to start from, if any; the flags of the model become what it will be.

    Raises CheckpointError, UsageError.
    """
    if args.sam_checkpoint.lower() == FROM_SCRATCH:
        args.model_type = args.model_type or NEW_TYPE
        args.image_size = args.image_size or NEW_SIZE
        args.frame = args.frame or SAM_MED2D
        args.encoder_adapter, args.refine = bool(args.encoder_adapter), bool(args.refine)
        return None
    if args.sam_checkpoint == DEFAULT_CHECKPOINT and not Path(DEFAULT_CHECKPOINT).exists():
        raise CheckpointError(
            f"{DEFAULT_CHECKPOINT}: not found. Download SAM's ViT-B (sam_vit_b_01ec64.pth, from the Segment Anything "
            "repository's model checkpoints) or SAM-Med2D's weights (sam-med2d_b.pth, from its repository) and name "
            "the file with --sam_checkpoint; --sam_checkpoint none trains from scratch"
        )
    plan = settle(args, usual_size=training_size, may_add_parts=True, training=True)
    if plan.encoder_adapter and args.tune in ("decoder", "lora") and not check_is_sam(plan.file).adapters:
        raise UsageError(
            f"--encoder_adapter True would put adapters into {plan.file.path}, which --tune {args.tune} does not "
            "train; leave one of the two out"
        )
    plan.warn()
    return plan


def teacher_of(args: argparse.Namespace) -> Teacher | None:
    """The weights of settled flags as they were before anything was trained, frozen, on the CPU; None without --pull.

    Raises CheckpointError, UsageError.
    """
    if not args.pull:
        return None
    plan = plan_model(
        args.sam_checkpoint,
        model_type=args.model_type,
        image_size=args.image_size,
        encoder_adapter=None if args.encoder_adapter else False,  # new ones add nothing and take time
        frame=args.frame,
        refine=False,
        may_add_parts=True,
    )
    return Teacher(plan.build(lambda _: None).eval().requires_grad_(False), args.pull)


def training_size(found: Architecture) -> int:
    """What a file was trained at; but SAM's own, of 1024 pixels, are fine-tuned at 256, as SAM-Med2D was."""
    sams_own = likely_frame(found.image_size, bool(found.adapters)) == SAM
    return NEW_SIZE if sams_own else found.image_size


def build_model(plan: Plan | None, args: argparse.Namespace, say: Callable[[object], None] = print) -> Sam:
    """The model of a settled plan, or one of random weights, with what --tune adds to it; its trained part is chosen
    and said. On the CPU. Raises CheckpointError, UsageError.
    """
    if plan is None:
        model = sam_model_registry[args.model_type](
            image_size=args.image_size,
            encoder_adapter=args.encoder_adapter,
            refine=bool(args.refine),
            frame=args.frame,
        )
    else:
        model = plan.build(say)
    keep_freed_memory(all_of_it=True)
    blocks, depth = last_blocks(args), len(model.image_encoder.blocks)
    if blocks is not None and blocks > depth:
        raise UsageError(f"--tune_blocks {LAST} {blocks}, but the encoder has {depth} blocks; take at most those")
    if args.tune == "lora":
        first_values = torch.Generator().manual_seed(seed_of(args.seed, "LoRA"))
        add_lora(model, args.lora_rank, args.lora_alpha, args.lora_targets, blocks, first_values)
    model.train_for(args.tune, blocks)
    if args.recipe == "paper":
        begin_as_published(model)
    say(trained_line(model, args.tune))
    if args.count_flops:
        say(f"model: {flops.count(model)}")
    return model


def last_blocks(args: argparse.Namespace) -> int | None:
    """Of the encoder's blocks, how many learn; None: all of them."""
    return int(args.tune_blocks[1]) if args.tune_blocks else None


def trained_line(model: Sam, tune: str) -> str:
    """ "trained (--tune lora): 4.12 M of 94.02 M parameters: LoRA pairs 44,240, prompt encoder 6,220, ..." """
    counts = count_trained(model)
    groups = ", ".join(f"{group} {count:,}" for group, count in counts.items())
    every = sum(parameter.numel() for parameter in model.parameters())
    return f"trained (--tune {tune}): {sum(counts.values()) / 1e6:.2f} M of {every / 1e6:.2f} M parameters: {groups}"
