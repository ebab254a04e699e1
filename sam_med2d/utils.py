"""Plumbing that the scripts share: flags, devices, processes, mixed precision, random seeds."""

import argparse
import datetime
import hashlib
import os
import random
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed


class UsageError(ValueError):
    """What a person asked for cannot be done. `str(error)` is one line that says why and what to do."""


def boolean(text: str) -> bool:
    """An argparse type for flags written as `--flag True` and `--flag False`."""
    if text.lower() in ("true", "yes", "1"):
        return True
    if text.lower() in ("false", "no", "0"):
        return False
    raise argparse.ArgumentTypeError(f"expected True or False, got {text!r}")


def add_flag(group: argparse._ActionsContainer, name: str, default: bool | None, help: str) -> None:
    """A boolean that parses `--flag`, `--flag True` and `--flag False`."""
    group.add_argument(name, type=boolean, nargs="?", const=True, default=default, metavar="True|False", help=help)


def check_numbers(
    parser: argparse.ArgumentParser, args: argparse.Namespace, positive: tuple[str, ...], not_negative: tuple[str, ...]
) -> None:
    """End with the parser's message where a flag has a number that makes no sense."""
    for least, names in ((1, positive), (0, not_negative)):
        for name in names:
            if getattr(args, name) < least:
                parser.error(f"--{name} must be at least {least}")
    if args.image_size % 32:
        parser.error(f"--image_size must be a multiple of 32, not {args.image_size}")


class Processes(NamedTuple):
    """Those that torchrun started, or this one alone. rank: 0 .. count - 1; local_rank: among those of this machine."""

    rank: int
    count: int
    local_rank: int

    def wait(self) -> None:
        """Until all have come here."""
        if self.count > 1:
            torch.distributed.barrier()


def join_processes() -> Processes:
    """Find the others that torchrun started, if it did."""
    rank, count, local_rank = (
        int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    )
    if count > 1 and not torch.distributed.is_initialized():
        # gloo: what is shared are signals and files, no tensors of a GPU. A day: processes wait for the slowest
        torch.distributed.init_process_group("gloo", timeout=datetime.timedelta(days=1))
    return Processes(rank, count, local_rank)


def best_device(name: str | None, local_rank: int = 0) -> torch.device:
    """`name` if one is given, else the best there is: cuda (of several GPUs that of this process), mps, cpu.

    Raises UsageError where the named device does not exist.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(f"cuda:{local_rank}" if name == "cuda" else name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:
        raise UsageError(f"--device {name} cannot be used here: {str(error).splitlines()[0]}") from error
    return device


def amp_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device has it, float16 (which needs a gradient scaler) elsewhere."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.float16 if device.type == "mps" else torch.bfloat16


def seed_of(*parts: object) -> int:
    """A 63-bit seed from the text of its parts: the same on every machine and in every process."""
    digest = hashlib.blake2b("|".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def finish(message: object) -> None:
    """End the script with one line for people and a failing exit status."""
    raise SystemExit(f"error: {message}")
