"""Whatever a file calls SAM's weights, under the names of SAM's own code.

Found are the one state dict among what else a file holds, the prefix that wrappers and larger models put before every
name, and the names that Hugging Face's SamModel gives.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import CheckpointError

# Parts of names that wrappers add, anywhere: DistributedDataParallel, torch.compile, FSDP, activation checkpoints.
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
OF_AN_ENCODER = re.compile(r"(?:(?P<prefix>.*)\.)?(?P<encoder>image_encoder|vision_encoder)\.pos_embed")
DEEPEST = 4  # levels of dicts in which a state dict is looked for
USUAL = ("model", "state_dict", "model_state_dict", "model_state", "net", "network", "sam", "weights")
AVERAGES = ("ema", "model_ema", "ema_model", "state_dict_ema", "ema_state_dict", "model_ema_state_dict", "teacher")
GAUSSIAN = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"

# Parts of names in Hugging Face's SamModel, and here.
PARTS = (
    (".patch_embed.projection.", ".patch_embed.proj."),
    (".neck.conv1.", ".neck.0."),
    (".neck.layer_norm1.", ".neck.1."),
    (".neck.conv2.", ".neck.2."),
    (".neck.layer_norm2.", ".neck.3."),
    (".point_embed.", ".point_embeddings."),
    (".mask_embed.conv1.", ".mask_downscaling.0."),
    (".mask_embed.layer_norm1.", ".mask_downscaling.1."),
    (".mask_embed.conv2.", ".mask_downscaling.3."),
    (".mask_embed.layer_norm2.", ".mask_downscaling.4."),
    (".mask_embed.conv3.", ".mask_downscaling.6."),
    (".upscale_conv1.", ".output_upscaling.0."),
    (".upscale_layer_norm.", ".output_upscaling.1."),
    (".upscale_conv2.", ".output_upscaling.3."),
)
HEAD = r"(iou_prediction_head|output_hypernetworks_mlps\.\d+)"
HUGGING_FACE = [  # patterns and what they become here, in this order
    (re.compile(pattern), ours)
    for pattern, ours in (
        (r"^(shared_image_embedding|prompt_encoder\.shared_embedding)\.positional_embedding$", GAUSSIAN),
        (r"^vision_encoder\.layers\.", "image_encoder.blocks."),
        (r"^vision_encoder\.", "image_encoder."),
        *((re.escape(theirs), ours) for theirs, ours in PARTS),
        (rf"{HEAD}\.layers\.0\.", r"\1.layers.1."),
        (rf"{HEAD}\.proj_in\.", r"\1.layers.0."),
        (rf"{HEAD}\.proj_out\.", r"\1.layers.2."),
        (r"\.layer_norm(\d|_final_attn)\.", r".norm\1."),
    )
]
TO_HUGGING_FACE = [  # and back
    (re.compile(pattern), theirs)
    for pattern, theirs in (
        (rf"^{re.escape(GAUSSIAN)}$", "shared_image_embedding.positional_embedding"),
        (r"^image_encoder\.blocks\.", "vision_encoder.layers."),
        (r"^image_encoder\.", "vision_encoder."),
        *((re.escape(ours), theirs) for theirs, ours in PARTS),
        (rf"{HEAD}\.layers\.0\.", r"\1.proj_in."),
        (rf"{HEAD}\.layers\.1\.", r"\1.layers.0."),
        (rf"{HEAD}\.layers\.2\.", r"\1.proj_out."),
        (r"\.norm(\d|_final_attn)\.", r".layer_norm\1."),
    )
]
OTHER_MODELS = (  # part of a name, whose it is
    ("image_encoder.trunk.", "SAM 2"),
    ("vision_encoder.backbone.", "SAM 2"),
    ("memory_attention.", "SAM 2"),
    ("mask_decoder.hf_", "SAM-HQ"),
    ("image_encoder.patch_embed.seq.", "MobileSAM"),
    ("lora_", "LoRA pairs"),
)


class Found(NamedTuple):
    """tensors: under SAM's names, as far as they are SAM's. notes: how they were found, a line each."""

    tensors: dict[str, Tensor]
    notes: list[str]


def find_weights(content: object, path: Path) -> Found:
    """The weights in what a file holds: {name: tensor}, bare or nested. Raises CheckpointError where there are none."""
    where, tensors, beside = _the_state_dict(content, path)
    notes = []
    if where and (where != ("model",) or beside):
        also = f", beside {', '.join(map(repr, beside))}" if beside else ""
        notes.append(f"found under {_spelled(where)}{also}")
    tensors, prefix = _without_prefix(tensors, path)
    if prefix:
        notes.append(f"names without their prefix {prefix}")
    if any(name.startswith("vision_encoder.") for name in tensors):
        tensors = _from_hugging_face(tensors, path)
        notes.append("names of Hugging Face's SamModel, translated")
    return Found(tensors, notes)


def other_model(names: dict[str, Tensor]) -> str:
    """ "of SAM 2" where names tell whose they are, else "without a SAM image encoder in it"."""
    for part, model in OTHER_MODELS:
        if any(part in name for name in names):
            return f"weights of {model}"
    return "weights of another network"


# ---------------------------------------------------------------- the state dict


def _the_state_dict(content: object, path: Path) -> tuple[tuple[str, ...], dict[str, Tensor], list[str]]:
    """-> the keys on the way to it, its tensors, and the keys of other models in the file."""
    if isinstance(content, Tensor) or not isinstance(content, dict):
        raise CheckpointError(
            f"{path}: holds no weights but a {type(content).__name__.lstrip('_')}; expected {{name: tensor}}, bare or "
            "under a key such as 'model'"
        )
    models = [(keys, tensors) for keys, tensors in _dicts_of(content) if any(map(_encoder_of, tensors))]
    if not models:
        models = [(keys, found) for keys, found in _dicts_of(content) if len(keys) < 2 and found]
    if not models:
        held = ", ".join(repr(key) for key in [*content][:5]) or "nothing"
        raise CheckpointError(
            f"{path}: holds no weights, only {held}; expected {{name: tensor}}, bare or under a key such as 'model'"
        )
    models.sort(key=lambda model: (len(model[0]), _rank(model[0])))
    keys, tensors = models[0]
    others = [other for other, _ in models[1:]]
    if others and keys and (len(others[0]), _rank(others[0])) == (len(keys), _rank(keys)):
        raise CheckpointError(
            f"{path}: holds more than one model, under {_spelled(keys)} and {_spelled(others[0])}; "
            "save the state dict of the one that you mean"
        )
    return keys, tensors, [".".join(other) for other in others if other]


def _dicts_of(content: dict, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Every dict that holds tensors under names, itself included: (the keys on the way, the tensors)."""
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if tensors:
        yield keys, tensors
    if len(keys) < DEEPEST:
        for key, value in content.items():
            if isinstance(key, str) and isinstance(value, dict):
                yield from _dicts_of(value, (*keys, key))


def _rank(keys: tuple[str, ...]) -> int:
    """The less, the rather it is what a person means: the model, then what is unknown, then moving averages."""
    order = {**{name: place for place, name in enumerate(USUAL)}, **dict.fromkeys(AVERAGES, 3 * len(USUAL))}
    return sum(order.get(key, 2 * len(USUAL)) for key in keys)


def _spelled(keys: tuple[str, ...]) -> str:
    return repr(".".join(keys))


# ---------------------------------------------------------------- prefixes


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _encoder_of(name: str) -> re.Match | None:
    return OF_AN_ENCODER.fullmatch(_unwrapped(name))


def _without_prefix(tensors: dict[str, Tensor], path: Path) -> tuple[dict[str, Tensor], str]:
    """-> the tensors without what wrappers and an enclosing model put before their names, and what that was."""
    found = [encoder for name in tensors if (encoder := _encoder_of(name))]
    prefixes = sorted({encoder["prefix"] or "" for encoder in found})
    if len(prefixes) > 1:
        raise CheckpointError(
            f"{path}: holds more than one model: names that begin with "
            f"{' and '.join(repr(prefix) for prefix in prefixes)}; save the state dict of the one that you mean"
        )
    prefix = f"{prefixes[0]}." if prefixes and prefixes[0] else ""
    stripped = {_unwrapped(name).removeprefix(prefix): tensor for name, tensor in tensors.items()}
    if len(stripped) < len(tensors):
        raise CheckpointError(f"{path}: has names that differ in wrappers alone, such as 'module.'; save it again")
    wrapped = sorted({part for name in tensors for part in name.split(".") if part in WRAPPERS})
    return stripped, prefix or "".join(f"{part}." for part in wrapped)


def to_hugging_face(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A plain SAM's state dict under the names of Hugging Face's SamModel; shared positions are named once."""
    theirs = {}
    for name, tensor in tensors.items():
        for pattern, replacement in TO_HUGGING_FACE:
            name = pattern.sub(replacement, name)
        theirs[name] = tensor
    return theirs


def _from_hugging_face(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    ours: dict[str, Tensor] = {}
    for theirs, tensor in tensors.items():
        name = theirs
        for pattern, replacement in HUGGING_FACE:
            name = pattern.sub(replacement, name)
        if name in ours and not (name == GAUSSIAN and torch.equal(ours[name], tensor)):  # it is there twice, shared
            raise CheckpointError(f"{path}: holds {name} twice, with different values; save it again")
        ours[name] = tensor
    return ours
