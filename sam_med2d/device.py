"""Which device, which precision, which seed."""

import random

import numpy as np
import torch
import torch.distributed

from sam_med2d.errors import UsageError


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


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (libraries draw from it)
    torch.manual_seed(seed)
