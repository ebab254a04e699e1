"""Weights into a model: `load_checkpoint(model, path)` fits a file to a model and reports what it did.

Which files are read, and how, is in weight_files.py. Whatever the image size of the file, it becomes that of the model.
"""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .errors import CheckpointError
from .frames import described, likely_frame
from .modeling import Sam
from .modeling.image_encoder import PATCH_SIZE, Block
from .modeling.lora import PART, merge_lora
from .sizes import SIZES
from .weight_files import WeightFile, open_weights, read_weights, save_weights
from .weight_names import other_model

__all__ = [
    "Architecture",
    "CheckpointError",
    "LoadReport",
    "WeightFile",
    "check_is_sam",
    "describe",
    "fit_weights",
    "frame_of",
    "load_checkpoint",
    "merged_weights",
    "open_weights",
    "read_weights",
    "room_for",
    "save_weights",
]

POSITIONS = "image_encoder.pos_embed"
BLOCK = re.compile(r"image_encoder\.blocks\.(\d+)\.")
ADAPTER = re.compile(BLOCK.pattern + r"Adapter\.")
REFINEMENT = "refinement."  # an optional part of its own, beside SAM's
BEHAVIOUR = ("refinement.choosing", "refinement.settling")  # of it, numbers that older files lack
# In some files, and no weights: what the model has fixed, and how many models a moving average is of.
CONSTANTS = {"pixel_mean", "pixel_std", "n_averaged"}
LISTED = 10  # names shown in an error message


class Architecture(NamedTuple):
    """What a state dict was built as. str: "vit_b, 1024 px, no adapters"."""

    model_type: str | None  # the name in the registry, None for a size that is not there
    channels: int
    depth: int
    image_size: int  # pixels
    adapters: tuple[int, ...]  # the blocks that have one
    refinement: bool = False
    lora: tuple[str, ...] = ()  # the layers that have a pair

    def __str__(self) -> str:
        size = self.model_type or f"an unknown size ({self.channels} channels, {self.depth} blocks)"
        some = f"adapters in {len(self.adapters)} of {self.depth} blocks"
        adapters = {0: "no adapters", self.depth: "adapters"}.get(len(self.adapters), some)
        pairs = f", LoRA pairs in {len(self.lora)} layers" if self.lora else ""
        refinement = ", a refinement network" * self.refinement
        return f"{size}, {self.image_size} px, {adapters}{pairs}{refinement}"


@dataclass
class LoadReport:
    """What `load_checkpoint` did. The lists hold parameter names."""

    path: Path
    source: Architecture  # of the file
    image_size: int  # of the model, pixels
    read: int  # tensors copied into the model
    resized: list[str] = field(default_factory=list)  # of those, the ones fitted to another image size
    new: list[str] = field(default_factory=list)  # in the model alone: as they were built
    left_out: list[str] = field(default_factory=list)  # in the file alone
    merged: tuple[str, ...] = ()  # layers whose LoRA pair was added to their weight, as the model has no pairs
    notes: list[str] = field(default_factory=list)  # how the weights were found in the file, a line each
    frame: str = ""  # of the model, and what it is said to be; "" is not said

    def __str__(self) -> str:
        lines = [f"weights: {self.path} ({self.source})", *(f"  {note}" for note in self.notes)]
        lines.append(f"  read {self.read} tensors")
        if self.resized:
            tables = [name for name in self.resized if name != POSITIONS]
            parts = ["pos_embed"] * (POSITIONS in self.resized)
            parts += [f"rel_pos of {_count_blocks(tables)} blocks"] * bool(tables)
            lines.append(f"  resized to {self.image_size} px: {', '.join(parts)}")
        if self.merged:
            lines.append(f"  merged into their layers: LoRA pairs of {len(self.merged)} layers")
        if self.new:
            lines.append(f"  newly started: {_parts(self.new)} (no-op)")
        lines.append(f"  left out: {_parts(self.left_out) or 'none'}")
        return "\n".join([*lines, *[f"  {self.frame}"] * bool(self.frame)])


def load_checkpoint(model: Sam, path: str | Path) -> LoadReport:
    """Copy the weights of a file into a model, at any image size of either: `open_weights`, then `fit_weights`."""
    return fit_weights(model, open_weights(path))


def fit_weights(model: Sam, file: WeightFile) -> LoadReport:
    """Copy what a file holds into a model, at any image size of either.

    Weights with adapters fill a model without them (the paper's "SAM-Med2D*": they are left out), and weights
    without adapters fill a model that has them (they stay as they were built, which adds nothing). The same holds for
    the refinement network. A model takes LoRA pairs too, or starts its own; a model without any gets them merged into
    the weights of their layers.

    Raises CheckpointError, with the model unchanged, if anything else differs.
    """
    path = file.path
    weights = {name: tensor for name, tensor in file.tensors.items() if name not in CONSTANTS}
    own = model.state_dict()
    source, target = check_is_sam(file), describe(own)
    _check_architecture(path, source, target)

    if source.refinement:
        for name in BEHAVIOUR:
            weights.setdefault(name, torch.zeros(1))  # files of before go on answering as they did

    merged = source.lora if not target.lora else ()
    if merged:
        weights = _merged(weights, path)
    left_out = _of_other_parts(weights, than=target)
    new = _of_other_parts(own, than=source)
    offered = {name: tensor for name, tensor in weights.items() if name not in left_out}
    wanted = {name: tensor for name, tensor in own.items() if name not in new}
    _check_names(path, wanted, offered)

    differing = [name for name in wanted if wanted[name].shape != offered[name].shape]
    resizable = _size_dependent(model)
    resized = [name for name in differing if name in resizable and _same_but_length(wanted[name], offered[name])]
    _check_tensors(path, wanted, offered, set(differing) - set(resized))

    fitted = {name: _resize(offered[name], wanted[name].shape) for name in resized}
    for name, tensor in wanted.items():
        tensor.copy_(fitted.get(name, offered[name]))  # casts to the model's dtype and device
    model.window = file.window
    usual = frame_of(file, bool(target.adapters))
    frame = described(model.frame) + ("" if model.frame == usual else f"; the file's own is {usual}")
    return LoadReport(path, source, target.image_size, len(wanted), resized, new, left_out, merged, file.notes, frame)


class _Unset(TorchFunctionMode):
    """New layers whose weights have the values that their memory happens to hold."""

    def __torch_function__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        if func in (nn.init.kaiming_uniform_, nn.init.uniform_, nn.init.trunc_normal_):
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def room_for(file: WeightFile, adapters: bool, refinement: bool) -> AbstractContextManager[object]:
    """Around the making of a model that `fit_weights` is to fill: no first value is drawn where the file has them all,
    which takes a second of ViT-B.

    adapters, refinement: whether the model has these parts.
    """
    source = describe(file.tensors)
    filled = (bool(source.adapters) or not adapters) and (source.refinement or not refinement)
    return _Unset() if filled else nullcontext()


def frame_of(file: WeightFile, adapters: bool = False) -> str:
    """The frame that a file's weights were trained in, one of segment_anything.frames.FRAMES: as it says, or as files
    of its kind have it.

    adapters: the model will have some; weights that do not say then become a SAM-Med2D, in its frame.
    """
    source = describe(file.tensors)
    return file.frame or likely_frame(source.image_size, adapters or bool(source.adapters))


def _of_other_parts(names: dict[str, Tensor], than: Architecture) -> list[str]:
    """The names of optional parts that another architecture has not."""
    return [
        name
        for name in names
        if (ADAPTER.match(name) and not than.adapters)
        or (name.startswith(REFINEMENT) and not than.refinement)
        or (PART.fullmatch(name) and not than.lora)
    ]


def describe(weights: dict[str, Tensor]) -> Architecture:
    """Infer from names and shapes what a state dict was built as. Without an image encoder: size 0."""
    positions = weights.get(POSITIONS)
    image_size, channels = 0, 0
    if positions is not None and positions.dim() == 4:  # (1, h, w, C)
        image_size, channels = positions.shape[1] * PATCH_SIZE, positions.shape[3]
    depth = len(_blocks_of(weights))
    names = {(size.channels, size.depth): name for name, size in SIZES.items()}
    adapters = tuple(sorted(_blocks_of([name for name in weights if ADAPTER.match(name)])))
    refinement = any(name.startswith(REFINEMENT) for name in weights)
    pairs = _layers_with_pairs(weights)
    return Architecture(names.get((channels, depth)), channels, depth, image_size, adapters, refinement, pairs)


def merged_weights(file: WeightFile) -> WeightFile:
    """The file with its LoRA pairs, if any, merged into the weights of their layers. Raises CheckpointError."""
    return WeightFile(file.path, _merged(file.tensors, file.path), file.notes)


def _merged(weights: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    try:
        return merge_lora(weights)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}; get a complete file") from error


# ---------------------------------------------------------------- another image size


def _size_dependent(model: Sam) -> set[str]:
    """The parameters whose length depends on the image size: absolute positions, and relative ones of global blocks."""
    return {POSITIONS} | {
        f"image_encoder.blocks.{index}.attn.rel_pos_{axis}"
        for index, block in enumerate(model.image_encoder.blocks)
        if isinstance(block, Block) and not block.attn.window
        for axis in "hw"
    }


def _same_but_length(wanted: Tensor, offered: Tensor) -> bool:
    """(1, h, h, C) or (L, C), with the same C, and h or L above 0."""
    square = offered.dim() != 4 or offered.shape[1] == offered.shape[2]
    return square and offered.numel() > 0 and wanted.dim() == offered.dim() and wanted.shape[-1] == offered.shape[-1]


def _resize(positions: Tensor, shape: torch.Size) -> Tensor:
    """(1, h, w, C) bicubic, or (L, C) linear, to another length.

    align_corners=False, because a position belongs to the centre of its patch. No antialiasing: a position is a
    label, not a signal; averaging neighbours when shrinking would give labels that the blocks never saw.
    Relative positions are interpolated as SAM's own code does it when the map and the table differ.
    """
    positions = positions.float()  # half precision would round the result
    if len(shape) == 4:
        resized = F.interpolate(
            positions.permute(0, 3, 1, 2), size=shape[1:3], mode="bicubic", align_corners=False, antialias=False
        )
        return resized.permute(0, 2, 3, 1)
    return F.interpolate(positions.T[None], size=shape[0], mode="linear", align_corners=False)[0].T


# ---------------------------------------------------------------- checks


def check_is_sam(file: WeightFile) -> Architecture:
    """What the weights were built as. Raises CheckpointError where they are not SAM's, with whose they are."""
    source = describe(file.tensors)
    if not source.image_size or not source.depth:
        raise CheckpointError(
            f"{file.path}: has no SAM image encoder in it ({other_model(file.tensors)}); give a checkpoint of SAM or "
            "SAM-Med2D"
        )
    return source


def _check_architecture(path: Path, source: Architecture, target: Architecture) -> None:
    if (source.channels, source.depth) != (target.channels, target.depth):
        remedy = "no --model_type fits it"
        if source.model_type:
            fitting = f"--model_type {source.model_type} and --image_size {source.image_size}"
            remedy = f"use {fitting}, or leave both out: the file says so itself"
        raise CheckpointError(f"{path}: is {source}, but the model is {target.model_type}; {remedy}")
    without = sorted(set(range(source.depth)) - set(source.adapters))
    if source.adapters and without:
        missing = _listed([f"image_encoder.blocks.{index}.Adapter" for index in without])
        raise CheckpointError(f"{path}: has adapters in some blocks only; missing {missing}; get a complete file")


def _check_names(path: Path, wanted: dict[str, Tensor], offered: dict[str, Tensor]) -> None:
    missing = [name for name in wanted if name not in offered]
    extra = [name for name in offered if name not in wanted]
    problems = [f"missing {_listed(missing)}"] * bool(missing) + [f"unexpected {_listed(extra)}"] * bool(extra)
    if problems:
        raise CheckpointError(f"{path}: does not fit the model: {'; '.join(problems)}; get a complete SAM checkpoint")


def _check_tensors(path: Path, wanted: dict[str, Tensor], offered: dict[str, Tensor], misshapen: set[str]) -> None:
    """misshapen: the names whose shapes differ and cannot be resized."""
    shapes = [
        f"{name} {tuple(offered[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in wanted
        if name in misshapen
    ]
    if shapes:
        raise CheckpointError(f"{path}: other shapes than the model's: {_listed(shapes)}; get an unmodified checkpoint")
    types = [f"{name} {offered[name].dtype}" for name in wanted if not offered[name].is_floating_point()]
    if types:
        raise CheckpointError(f"{path}: not floating point: {_listed(types)}; get a file that is not quantized")


# ---------------------------------------------------------------- names


def _listed(names: list[str]) -> str:
    """ "2 names: a, b", the first few of many."""
    more = ", ..." if len(names) > LISTED else ""
    return f"{len(names)} name{'s' * (len(names) != 1)}: {', '.join(names[:LISTED])}{more}"


def _blocks_of(names: list[str] | dict[str, Tensor]) -> set[int]:
    """The indexes of the encoder's blocks that the names belong to."""
    return {int(found[1]) for name in names if (found := BLOCK.match(name))}


def _layers_with_pairs(names: list[str] | dict[str, Tensor]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(found["layer"] for name in names if (found := PART.fullmatch(name))))


def _parts(names: list[str]) -> str:
    """ "adapters of 12 blocks, the refinement network"."""
    blocks = _count_blocks([name for name in names if ADAPTER.match(name)])
    refinement = any(name.startswith(REFINEMENT) for name in names)
    layers = len(_layers_with_pairs(names))
    pairs = [f"LoRA pairs of {layers} layers"] * bool(layers)
    return ", ".join([f"adapters of {blocks} blocks"] * bool(blocks) + ["the refinement network"] * refinement + pairs)


def _count_blocks(names: list[str]) -> int:
    return len(_blocks_of(names))
