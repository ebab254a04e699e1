"""The registry of models: `sam_model_registry["vit_b"](image_size=256)`."""

import os
from argparse import Namespace
from functools import partial
from pathlib import Path

from torch import nn

from .checkpoint import check_is_sam, fit_weights, frame_of, open_weights, room_for
from .frames import SAM, SAM_MED2D, SAMS_SIZE
from .modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Refinement, Sam
from .modeling.image_encoder import PATCH_SIZE
from .sizes import SIZES


def build_sam(
    args: Namespace | str | os.PathLike | None = None,
    *,
    model_type: str = "vit_b",
    image_size: int | None = None,
    encoder_adapter: bool | None = None,
    refine: bool | None = None,
    checkpoint: str | os.PathLike | None = None,
    frame: str | None = None,
) -> Sam:
    """The model of a weight file, or one with random weights.

    args: a path, as callers of SAM give it, or one Namespace with `image_size`, `encoder_adapter` and
    `sam_checkpoint`, as the scripts of SAM-Med2D do.
    checkpoint: any file that `load_checkpoint` reads. The image size, the adapters, the refinement network and the
    frame are then what the file says, unless they are given.
    Without a file: a plain SAM of 1024 px in its own frame; or, where image_size or encoder_adapter is given, a
    SAM-Med2D, by default of 256 px with adapters.
    refine: with a refinement network, which adds nothing until it is trained; without a file by default without.
    frame: one of segment_anything.frames.FRAMES; by default what the file says, but SAM-Med2D's for a Namespace and
    where adapters are added to weights without them.

    Raises CheckpointError: a file that is not SAM's, or of another model_type.
    """
    if isinstance(args, str | os.PathLike):
        checkpoint = args
    elif args is not None:
        image_size, encoder_adapter, checkpoint = args.image_size, args.encoder_adapter, args.sam_checkpoint
        frame = frame or SAM_MED2D
    if checkpoint is None:
        plain = image_size is None and encoder_adapter is None
        size, adapters = image_size or (SAMS_SIZE if plain else 256), not plain and encoder_adapter is not False
        return _new(model_type, size, adapters, frame or (SAM if plain else SAM_MED2D), bool(refine)).eval()
    file = open_weights(Path(checkpoint))
    found = check_is_sam(file)
    adapters = bool(found.adapters) if encoder_adapter is None else encoder_adapter
    frame, refine = frame or frame_of(file, adapters), found.refinement if refine is None else refine
    with room_for(file, adapters, refine):
        model = _new(model_type, image_size or found.image_size, adapters, frame, refine)
    print(fit_weights(model, file))
    return model.eval()


def _new(model_type: str, image_size: int, adapters: bool, frame: str, refine: bool) -> Sam:
    size = SIZES[model_type]
    side = image_size // PATCH_SIZE
    model = Sam(
        ImageEncoderViT(
            img_size=image_size,
            embed_dim=size.channels,
            depth=size.depth,
            num_heads=size.heads,
            out_chans=size.embedding,
            global_attn_indexes=size.global_blocks,
            adapter_train=adapters,
        ),
        PromptEncoder(size.embedding, (side, side), (image_size, image_size)),
        MaskDecoder(transformer_dim=size.embedding),
        frame=frame,
        refinement=Refinement() if refine else None,
    )
    _initialise(model)
    return model


def _initialise(model: Sam) -> None:
    """Small normal positions: they are added to the patches, and zeros would leave every position alike."""
    nn.init.trunc_normal_(model.image_encoder.pos_embed, std=0.02)


sam_model_registry = {name: partial(build_sam, model_type=name) for name in SIZES}
sam_model_registry["default"] = sam_model_registry["vit_h"]
build_sam_vit_b, build_sam_vit_l, build_sam_vit_h = (sam_model_registry[name] for name in ("vit_b", "vit_l", "vit_h"))
