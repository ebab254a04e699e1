"""What a result was made from: enough to say whether two results compare, and to make one again."""

import hashlib
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

PACKAGES = ("torch", "numpy", "opencv-python-headless", "scipy", "pandas")


def provenance(device: torch.device, files: dict[str, str | os.PathLike]) -> dict[str, object]:
    """files: {name: path}, each of which is hashed: {"weights": ...} -> {"weights_hash": "sha256 ...", ...}."""
    return {
        **{f"{name}_hash": file_hash(path) for name, path in files.items()},
        "commit": commit(),
        "device": str(device),
        "device_name": device_name(device),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def file_hash(path: str | os.PathLike) -> str:
    """SHA-256 of a file's content, 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _in_pieces(file)


def _in_pieces(file) -> str:  # Python 3.10
    digest = hashlib.sha256()
    while piece := file.read(2**20):
        digest.update(piece)
    return digest.hexdigest()


def commit() -> str | None:
    """The commit of this code, "+changes" added where files differ from it; None where it is no git checkout."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=Path(__file__).parent, check=True, capture_output=True, text=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
