"""Weight files, read and written: `open_weights`, `read_checkpoint`, `save_weights`, `save_checkpoint`.

Read are Meta's SAM (a bare state dict), SAM-Med2D's (`{"model": state dict, "optimizer": a pickled optimizer}`), the
training checkpoints of this project, Hugging Face's SamModel, and what forks make of them: state dicts under other keys
and with prefixes before their names, as `.pth` or `.safetensors`. The first bytes decide, not the ending.

Nothing from a file is ever executed (weight_pickles.py), nothing is read that its checksums do not cover where it has
some, and weights are finite numbers or refused by name. What is written here always has checksums: a `.pth` is a zip
archive with the CRC-32 of every tensor, a `.safetensors` has a SHA-256 of its tensors in its metadata.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from .errors import CheckpointError
from .file_kinds import Kind, kind_of
from .files import replacing
from .frames import FRAMES, SAM_MED2D
from .weight_names import GAUSSIAN, find_weights
from .weight_pickles import Archive, read_archive, read_old_pickle

DIGEST = "sha256"  # the key in the metadata of a safetensors file
FRAME = "frame"  # the key there, and in a .pth beside its weights
WINDOW = "window"  # the same: two numbers, in safetensors as "-150 250"
# never rounded: these 256 numbers are multiplied by coordinates, and cost as much accuracy as all others together
FULL_PRECISION = GAUSSIAN
DEEPEST = 8  # levels of a checkpoint's content
REPEATS = 4  # times the size of its file that tensors may have together: some share their bytes
NO_FLOATS = (torch.complex32, torch.complex64, torch.complex128)

Named = tuple[str, Tensor]
Verify = Callable[[Iterable[Named]], None]


@dataclass
class WeightFile:
    """What a weight file holds. tensors: {SAM's name: tensor on the CPU}; notes: how they were found, a line each;
    flags: those of the run of train.py that made it, empty where it is of none; frame: of
    segment_anything.frames.FRAMES, None where the file does not tell; window: (lowest, highest) value of a scanner's
    that became 0 and 255 in the pictures it was trained on, None where none did or the file does not tell."""

    path: Path
    tensors: dict[str, Tensor]
    notes: list[str] = field(default_factory=list)
    flags: dict[str, object] = field(default_factory=dict)
    frame: str | None = None
    window: tuple[float, float] | None = None


def open_weights(path: str | Path) -> WeightFile:
    """The weights of any file named at the top of this module, checked: they are whole and finite.

    Tensors may be a view of the file: do not write over it while they are in use (`save_weights` does not).
    Raises CheckpointError.
    """
    path = Path(path)
    kind = kind_of(path)
    content, verify = _read(path, kind)
    tensors, notes = find_weights(content, path)
    named = [(name, tensor.detach()) for name, tensor in tensors.items()]
    _check_tensors(path, named, verify)
    flags = content.get("flags") if isinstance(content, dict) else None
    beside = _metadata(path) if kind == "safetensors" else content
    beside = beside if isinstance(beside, dict) else {}
    frame = _frame_in(path, beside, content)
    flags = flags if isinstance(flags, dict) else {}
    return WeightFile(path, dict(named), notes, flags, frame, window_in(path, beside.get(WINDOW)))


def window_in(path: Path, said: object) -> tuple[float, float] | None:
    """Raises CheckpointError: what is said is no window."""
    if said is None:
        return None
    try:
        low, high = map(float, said.split() if isinstance(said, str) else said)  # type: ignore[call-overload]
    except (TypeError, ValueError):
        low = high = math.nan
    if not -math.inf < low < high < math.inf:
        raise CheckpointError(f"{path}: says {said!r:.40} for the window of its training; get the file again")
    return low, high


def _frame_in(path: Path, beside: dict, content: object) -> str | None:
    """The frame that a file says; runs of this project that name none are older than any but SAM-Med2D's.

    beside: what the file says beside its weights. Raises CheckpointError: it names one that is unknown here.
    """
    said = beside.get(FRAME)
    if isinstance(said, str) and said not in FRAMES:
        raise CheckpointError(
            f"{path}: is of the frame {said!r}, which this version does not know; install a newer sam-med2d"
        )
    if isinstance(said, str):
        return said
    return SAM_MED2D if isinstance(content, dict) and isinstance(content.get("flags"), dict) else None


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The state dict of `open_weights`: {parameter name: tensor on the CPU}. Raises CheckpointError."""
    return open_weights(path).tensors


def read_checkpoint(path: str | Path) -> dict:
    """Everything a training checkpoint of this project holds, checked as weights are. Raises CheckpointError."""
    path = Path(path)
    kind = kind_of(path)
    content, verify = _read(path, kind)
    if kind == "safetensors" or not isinstance(content, dict):
        held = "weights alone" if kind == "safetensors" else f"a {type(content).__name__.lstrip('_')}"
        raise CheckpointError(f"{path}: holds {held}, not a checkpoint; name a last.pth of a training run")
    _check_tensors(path, list(_tensors_in(content, path)), verify)
    return content


def save_weights(
    state_dict: dict[str, Tensor],
    path: str | Path,
    dtype: torch.dtype | None = None,
    metadata: dict[str, str] | None = None,
) -> None:
    """Write a `.safetensors` file of weights alone. Whoever reads `path` sees the old file or the whole new one.

    dtype: of the floating point tensors in the file, but for `FULL_PRECISION`; None keeps each one's own.
    Raises CheckpointError where a value is too large for dtype.
    """
    tensors = {name: _stored(name, tensor, dtype) for name, tensor in state_dict.items()}
    for name, tensor in tensors.items():
        if not is_finite(tensor) and is_finite(state_dict[name]):
            raise CheckpointError(f"{path}: {name} has values too large for {tensor.dtype}; keep the type it has")
    with replacing(path) as temporary:
        temporary.touch()
        usual_mode = temporary.stat().st_mode  # save_file makes files that only their owner can read
        save_file(tensors, temporary, {"format": "pt", **(metadata or {}), DIGEST: digest_of(tensors)})
        temporary.chmod(usual_mode)


def save_checkpoint(content: dict[str, Any], path: str | Path) -> None:
    """Write a `.pth` of tensors and plain values. Whoever reads `path` sees the old file or the whole new one."""
    with replacing(path) as temporary:
        torch.save(content, temporary)


def is_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite: 7 GB/s, where `isfinite().all()` makes 0.3."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    values = tensor.float() if tensor.element_size() == 1 else tensor  # 8-bit floats have no minimum of their own
    return all(bound.isfinite() for bound in torch.aminmax(values))


def digest_of(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and bytes, 64 hexadecimal digits, whatever their order. Tensors on the CPU."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _stored(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    keep = dtype is None or not tensor.is_floating_point() or name == FULL_PRECISION
    return tensor.detach().to("cpu", tensor.dtype if keep else dtype).contiguous()


# ---------------------------------------------------------------- reading


def _read(path: Path, kind: Kind) -> tuple[object, Verify]:
    """-> what the file holds, and what compares tensors of it with the file's checksums."""
    if kind == "zip":
        archive = Archive(path)
        return read_archive(archive), archive.verify
    if kind == "pickle":
        return read_old_pickle(path), lambda _: None
    return _read_safetensors(path), lambda _: None


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    """All of a file is read at once, so its digest is compared here."""
    try:
        metadata = _metadata(path)
        tensors = load_file(path)
    except (SafetensorError, OSError, KeyError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: damaged, or not safetensors ({reason}); download or copy it again") from error
    written = metadata.get(DIGEST)
    if written and written != digest_of(tensors):
        raise CheckpointError(
            f"{path}: damaged: its tensors differ from the checksum it was written with; download or copy it again"
        )
    return tensors


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


# ---------------------------------------------------------------- checks


def _tensors_in(content: object, path: Path, place: str = "", depth: int = 0) -> Iterator[Named]:
    if isinstance(content, Tensor):
        yield place, content.detach()
    elif isinstance(content, dict | list | tuple):
        if depth == DEEPEST:
            raise CheckpointError(f"{path}: {place} is nested deeper than a checkpoint of this project")
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from _tensors_in(value, path, f"{place}/{key}" if place else str(key), depth + 1)


def _check_tensors(path: Path, named: list[Named], verify: Verify) -> None:
    """Raises CheckpointError, by name, for tensors that have no values of their own, or damaged or infinite ones."""
    for name, tensor in named:
        kind = _no_values(tensor)
        if kind:
            raise CheckpointError(f"{path}: {name} is a {kind}; save tensors with values: dense, on the CPU")
    size = path.stat().st_size
    total = sum(tensor.numel() * tensor.element_size() for _, tensor in named)
    held = sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for _, t in named}.values())
    if total > REPEATS * max(held, 2**20) or held > max(8 * size, 2**26):
        raise CheckpointError(
            f"{path}: a file of {size / 1e6:.1f} MB whose tensors have {max(total, held) / 1e6:.1f} MB; "
            "they repeat themselves, which weights do not"
        )
    verify(named)
    broken = [name for name, tensor in named if not is_finite(tensor)]
    if broken:
        tensors = "1 tensor" if len(broken) == 1 else f"{len(broken)} tensors"
        raise CheckpointError(
            f"{path}: {tensors} with values that are NaN or infinite, such as {broken[0]}; the run that wrote it "
            "diverged: take an earlier checkpoint"
        )


def _no_values(tensor: Tensor) -> str:
    if tensor.layout != torch.strided:
        return f"sparse tensor ({str(tensor.layout).removeprefix('torch.')})"
    if tensor.is_quantized:
        return "quantized tensor"
    if tensor.device.type != "cpu":
        return f"tensor without values (on the {tensor.device.type} device)"
    if tensor.dtype in NO_FLOATS:
        return "tensor of complex numbers"
    return ""
