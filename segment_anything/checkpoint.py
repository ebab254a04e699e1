"""Every weight file in: `load_checkpoint(model, path)` fits a file to a model and reports what it did.

Files: Meta's SAM (a bare state dict), SAM-Med2D's (`{"model": state dict, "optimizer": a pickled optimizer}`), the
training checkpoints of this project (`{"model": state dict, ...}`), each with or without the "module." of
DistributedDataParallel, and `.safetensors`. Whatever the image size of the file, it becomes that of the model.

Nothing from a file is ever executed: see `_read_pickle`.
"""

import pickle
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .errors import CheckpointError
from .files import replacing
from .modeling import Sam
from .modeling.image_encoder import PATCH_SIZE, Block
from .sizes import SIZES

POSITIONS = "image_encoder.pos_embed"
BLOCK = re.compile(r"image_encoder\.blocks\.(\d+)\.")
ADAPTER = re.compile(BLOCK.pattern + r"Adapter\.")
CONSTANTS = {"pixel_mean", "pixel_std"}  # in some files; in the model they are fixed
# never rounded: these 256 numbers are multiplied by coordinates, and cost as much accuracy as all others together
FULL_PRECISION = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
LISTED = 10  # names shown in an error message


class Architecture(NamedTuple):
    """What a state dict was built as. str: "vit_b, 1024 px, no adapters"."""

    model_type: str | None  # the name in the registry, None for a size that is not there
    channels: int
    depth: int
    image_size: int  # pixels
    adapters: tuple[int, ...]  # the blocks that have one

    def __str__(self) -> str:
        size = self.model_type or f"an unknown size ({self.channels} channels, {self.depth} blocks)"
        some = f"adapters in {len(self.adapters)} of {self.depth} blocks"
        adapters = {0: "no adapters", self.depth: "adapters"}.get(len(self.adapters), some)
        return f"{size}, {self.image_size} px, {adapters}"


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

    def __str__(self) -> str:
        lines = [f"weights: {self.path} ({self.source})", f"  read {self.read} tensors"]
        if self.resized:
            tables = [name for name in self.resized if name != POSITIONS]
            parts = ["pos_embed"] * (POSITIONS in self.resized)
            parts += [f"rel_pos of {_count_blocks(tables)} blocks"] * bool(tables)
            lines.append(f"  resized to {self.image_size} px: {', '.join(parts)}")
        if self.new:
            lines.append(f"  newly started: adapters of {_count_blocks(self.new)} blocks (no-op)")
        left_out = f"adapters of {_count_blocks(self.left_out)} blocks" if self.left_out else "none"
        return "\n".join([*lines, f"  left out: {left_out}"])


def load_checkpoint(model: Sam, path: str | Path) -> LoadReport:
    """Copy the weights of a file into a model, at any image size of either: `read_weights`, then `fit_weights`."""
    return fit_weights(model, read_weights(path), path)


def fit_weights(model: Sam, weights: dict[str, Tensor], path: str | Path) -> LoadReport:
    """Copy a state dict into a model, at any image size of either. path: what messages call it.

    Weights with adapters fill a model without them (the paper's "SAM-Med2D*": they are left out), and weights
    without adapters fill a model that has them (they stay as they were built, which adds nothing).

    Raises CheckpointError, with the model unchanged, if anything else differs.
    """
    path = Path(path)
    weights = {name: tensor for name, tensor in weights.items() if name not in CONSTANTS}
    own = model.state_dict()
    source, target = describe(weights), describe(own)
    _check_architecture(path, source, target)

    left_out = [] if target.adapters else [name for name in weights if ADAPTER.match(name)]
    new = [] if source.adapters else [name for name in own if ADAPTER.match(name)]
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
    return LoadReport(path, source, target.image_size, len(wanted), resized, new, left_out)


def describe(weights: dict[str, Tensor]) -> Architecture:
    """Infer from names and shapes what a state dict was built as. Without an image encoder: size 0."""
    positions = weights.get(POSITIONS)
    image_size, channels = 0, 0
    if positions is not None and positions.dim() == 4:  # (1, h, w, C)
        image_size, channels = positions.shape[1] * PATCH_SIZE, positions.shape[3]
    depth = len(_blocks_of(weights))
    names = {(size.channels, size.depth): name for name, size in SIZES.items()}
    adapters = tuple(sorted(_blocks_of([name for name in weights if ADAPTER.match(name)])))
    return Architecture(names.get((channels, depth)), channels, depth, image_size, adapters)


# ---------------------------------------------------------------- files


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The state dict of any file named at the top of this module: {parameter name: tensor on the CPU}.

    Tensors may be a view of the file: do not write over it while they are in use (`save_weights` does not).
    Raises CheckpointError.
    """
    path = Path(path)
    header = _read_header(path)
    content: object
    if path.suffix == ".safetensors":
        content = _read_safetensors(path)
    else:
        content = _read_pickle(path, is_zip=header.startswith(b"PK\x03\x04"))
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        content = content["model"]
    if not _is_state_dict(content):
        raise CheckpointError(f"{path}: holds no weights; expected {{name: tensor}}, bare or under the key 'model'")
    prefix = "module." if all(name.startswith("module.") for name in content) else ""  # of DistributedDataParallel
    return {name.removeprefix(prefix): tensor.detach() for name, tensor in content.items()}


def save_weights(
    state_dict: dict[str, Tensor],
    path: str | Path,
    dtype: torch.dtype | None = None,
    metadata: dict[str, str] | None = None,
) -> None:
    """Write a `.safetensors` file of weights alone. Whoever reads `path` sees the old file or the whole new one.

    dtype: of the floating point tensors in the file, but for `FULL_PRECISION`; None keeps each one's own.
    """
    tensors = {name: _stored(name, tensor, dtype) for name, tensor in state_dict.items()}
    with replacing(path) as temporary:
        temporary.touch()
        usual_mode = temporary.stat().st_mode  # save_file makes files that only their owner can read
        save_file(tensors, temporary, {"format": "pt", **(metadata or {})})
        temporary.chmod(usual_mode)


def _stored(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    keep = dtype is None or not tensor.is_floating_point() or name == FULL_PRECISION
    return tensor.detach().to("cpu", tensor.dtype if keep else dtype).contiguous()


def read_checkpoint(path: str | Path) -> dict:
    """Everything a training checkpoint of this project holds, weights included. Raises CheckpointError."""
    path = Path(path)
    content = _read_pickle(path, is_zip=_read_header(path).startswith(b"PK\x03\x04"))
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise CheckpointError(f"{path}: holds a {kind}, not a checkpoint; name a last.pth of a training run")
    return content


def _read_header(path: Path) -> bytes:
    """The first bytes of a file. Names the usual accidents, for which the readers have only riddles."""
    try:
        with path.open("rb") as file:
            header = file.read(256).lstrip()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be opened ({error.strerror}); check the path") from error
    if not header:
        raise CheckpointError(f"{path}: the file is empty; download or copy it again")
    if header.lower().startswith((b"<!doctype", b"<html", b"<?xml")):  # "<" alone can begin a safetensors file
        raise CheckpointError(f"{path}: is a web page, not weights; download the file it links to")
    if header.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path}: is a Git LFS pointer, not weights; run `git lfs pull` where it came from")
    return header


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: damaged, or not safetensors ({error}); download or copy it again") from error


class _Unread:
    """Stands for a pickled optimizer. Its content is dropped."""

    def __setstate__(self, state: object) -> None:
        pass


def _plain_dict(factory: object = None) -> dict:
    """Stands for collections.defaultdict, which PyTorch's restricted unpickler cannot fill."""
    return {}


# What a file may name beyond tensors and plain containers: the optimizers that the training script of SAM-Med2D and
# its forks leave in their files. Each name is read as something inert, so not even the optimizer's code runs.
STAND_INS: list[Any] = [
    (_Unread, "torch.optim.adam.Adam"),
    (_Unread, "torch.optim.adamw.AdamW"),
    (_Unread, "torch.optim.sgd.SGD"),
    (_plain_dict, "collections.defaultdict"),
    dict,
]


def _read_pickle(path: Path, is_zip: bool) -> object:
    """What torch.save wrote, if it is made of tensors, plain containers and `STAND_INS`; anything else is refused."""
    try:
        with torch.serialization.safe_globals(STAND_INS):
            # mmap: an optimizer's moments, half of such a file or more, are then never read from the disk
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # damaged bytes end in any exception the unpickler happens to run into
        found = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if found:
            raise CheckpointError(
                f"{path}: holds {found[1]}, which weights do not need; it was not executed. "
                "Ask its author for a file with the state dict alone"
            ) from error
        raise CheckpointError(f"{path}: damaged, or not a PyTorch checkpoint; download or copy it again") from error


def _is_state_dict(content: object) -> TypeGuard[dict[str, Tensor]]:
    return (
        isinstance(content, dict)
        and bool(content)
        and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items())
    )


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
    """(1, h, h, C) or (L, C), with the same C."""
    square = offered.dim() != 4 or offered.shape[1] == offered.shape[2]
    return square and wanted.dim() == offered.dim() and wanted.shape[-1] == offered.shape[-1]


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


def _check_architecture(path: Path, source: Architecture, target: Architecture) -> None:
    if not source.image_size or not source.depth:
        raise CheckpointError(f"{path}: has no SAM image encoder in it; give a checkpoint of SAM or SAM-Med2D")
    if (source.channels, source.depth) != (target.channels, target.depth):
        remedy = f"use --model_type {source.model_type}" if source.model_type else "no --model_type fits it"
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


def _count_blocks(names: list[str]) -> int:
    return len(_blocks_of(names))
