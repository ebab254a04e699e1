"""What a result was made from: enough to say whether two results compare, and to make one again.

Nothing in here may end a run: what cannot be found out is None.
"""

import hashlib
import importlib
import os
import platform
import subprocess
from pathlib import Path

import torch

from sam_med2d import __version__

MODULES = ("torch", "numpy", "cv2", "scipy", "pandas")  # by import name: any distribution may have brought them


def provenance(device: torch.device, files: dict[str, str | os.PathLike]) -> dict[str, object]:
    """files: {name: path}, each of which is hashed: {"weights": ...} -> {"weights_hash": "sha256 ...", ...}.

    To be asked for at the start of a run, when the files are those that it reads.
    """
    return {
        **{f"{name}_hash": _hash_or_none(path) for name, path in files.items()},
        "commit": commit(),
        "device": str(device),
        "device_name": device_name(device),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "versions": versions(),
    }


def versions() -> dict[str, str | None]:
    """Of this package, and of those that results depend on; None for one that does not say."""
    return {"sam-med2d": __version__, **{name: _version(name) for name in MODULES}}


def _version(module: str) -> str | None:
    try:
        return str(importlib.import_module(module).__version__)
    except Exception:  # of a package that does not fit the others: whatever its import runs into
        return None


def file_hash(path: str | os.PathLike) -> str:
    """SHA-256 of a file's content, 64 hexadecimal digits. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _in_pieces(file)


def _hash_or_none(path: str | os.PathLike) -> str | None:
    try:
        return file_hash(path)
    except OSError:
        return None


def _in_pieces(file) -> str:  # Python 3.10
    digest = hashlib.sha256()
    while piece := file.read(2**20):
        digest.update(piece)
    return digest.hexdigest()


def commit() -> str | None:
    """The commit of this code, "+changes" added where files differ from it; None where it is no checkout of its own.

    Installed into an environment that lies in somebody else's repository, this code has no commit: the one that git
    tells there is of the other project. The package's version says what it is then.
    """
    top = Path(__file__).resolve().parents[1]

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(top), *words], check=True, capture_output=True, timeout=60, encoding="utf-8"
        )
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != top:
            return None
        git("ls-files", "--error-unmatch", "sam_med2d/provenance.py")  # fails where it is not tracked
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError, ValueError):  # ValueError: bytes that are no text
        return None


def device_name(device: torch.device) -> str:
    """Of the graphics card, or of the processor; "" where it has no name."""
    if device.type == "cuda":
        try:
            return torch.cuda.get_device_name(device)
        except (RuntimeError, AssertionError):
            return ""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except (OSError, ValueError):
        lines = []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
