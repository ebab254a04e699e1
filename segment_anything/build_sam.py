"""The registry of models: `sam_model_registry["vit_b"](image_size=256)`."""

from argparse import Namespace
from functools import partial

from torch import nn

from .checkpoint import load_checkpoint
from .modeling import ImageEncoder, MaskDecoder, PromptEncoder, Refinement, Sam
from .modeling.image_encoder import EMBEDDING_CHANNELS, PATCH_SIZE
from .sizes import SIZES


def build_sam(
    args: Namespace | None = None,
    *,
    model_type: str = "vit_b",
    image_size: int = 256,
    encoder_adapter: bool = True,
    refine: bool = False,
    checkpoint: str | None = None,
) -> Sam:
    """A model with random weights, or those of `checkpoint` (any file that `load_checkpoint` reads).

    args: alternatively one Namespace with `image_size`, `encoder_adapter` and `sam_checkpoint`, as the scripts
    of SAM-Med2D pass it. refine: with a refinement network, which adds nothing until it is trained.
    """
    if args is not None:
        image_size, encoder_adapter, checkpoint = args.image_size, args.encoder_adapter, args.sam_checkpoint
    size = SIZES[model_type]
    model = Sam(
        ImageEncoder(image_size, size.channels, size.depth, size.heads, size.global_blocks, encoder_adapter),
        PromptEncoder(EMBEDDING_CHANNELS, image_size, image_size // PATCH_SIZE),
        MaskDecoder(EMBEDDING_CHANNELS),
        Refinement() if refine else None,
    )
    _initialise(model)
    if checkpoint is not None:
        print(load_checkpoint(model, checkpoint))
    return model.eval()


def _initialise(model: Sam) -> None:
    """Small normal positions: they are added to the patches, and zeros would leave every position alike."""
    nn.init.trunc_normal_(model.image_encoder.pos_embed, std=0.02)


sam_model_registry = {name: partial(build_sam, model_type=name) for name in SIZES}
sam_model_registry["default"] = sam_model_registry["vit_h"]
build_sam_vit_b, build_sam_vit_l, build_sam_vit_h = (sam_model_registry[name] for name in ("vit_b", "vit_l", "vit_h"))
