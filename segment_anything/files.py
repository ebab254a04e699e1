"""Files that are never half written."""

import hashlib
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from segment_anything.errors import UserError

TEMPORARY = re.compile(r"\..*\.(?P<machine>[0-9a-f]{8})-(?P<process>\d+)-(?P<birth>[0-9a-f]{8})-[0-9a-f]{8}\.tmp")
LONGEST_NAME = 150  # bytes of a name in the name of its temporary file

_swept: set[str] = set()  # folders that this process has looked through


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it takes the place of `path` in one step.

    Whenever the process dies, `path` is either the old file or the new one, whole. Two processes that write one file
    do not disturb each other: the last one to finish wins. What a killed process left of a temporary file is removed
    by the next that writes in its folder.

    An OSError names `path`. A writer in C++ that fails without an OSError where there is no room, as those of torch
    and safetensors do, ends in the OSError that it met.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with passing(path) as temporary:  # beside it: os.replace needs one file system
        try:
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            if error.errno is not None and error.filename in (None, str(temporary), temporary):
                error.filename = str(path)
            raise
        except UserError:
            raise
        except Exception as error:
            if (cause := _what_the_disk_says(temporary, error)) is not None:
                raise OSError(cause, os.strerror(cause), str(path)) from error
            raise


@contextmanager
def passing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, for a file or a folder that is gone after the block.

    What a killed process left of one is removed by the next that writes in its folder.
    """
    if str(path.parent) not in _swept:
        _swept.add(str(path.parent))
        sweep(path.parent)
    temporary = _temporary(path)
    try:
        yield temporary
    finally:
        _remove(temporary)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sweep(folder: Path, everything: bool = False) -> None:
    """Remove the temporary files and folders of processes that are no more.

    everything: all of them, for the caller who knows that nobody else writes in the folder.
    """
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.name.startswith(".") and entry.name.endswith(".tmp")]
    for name in names:
        found = TEMPORARY.fullmatch(name)
        if found is None:
            continue
        if everything or (found["machine"] == machine() and not runs(int(found["process"]), found["birth"])):
            _remove(folder / name)


def _temporary(path: Path) -> Path:
    short = os.fsencode(path.name)[:LONGEST_NAME].decode("utf-8", errors="ignore")
    return path.with_name(f".{short}.{machine()}-{os.getpid()}-{birth(os.getpid())}-{secrets.token_hex(4)}.tmp")


def _what_the_disk_says(temporary: Path, error: Exception) -> int | None:
    """The number of the OSError behind an error that is none, or None: it has nothing to do with the disk."""
    if said := re.search(r"os error (\d+)", str(error)):  # as Rust writes it
        return int(said[1])
    if not temporary.exists():
        return None
    try:
        with temporary.open("ab") as file:  # what was written is still there, and there is room for more or not
            file.write(bytes(1 << 20))
            file.flush()
            os.fsync(file.fileno())
    except OSError as cause:
        return cause.errno
    return None


# ---------------------------------------------------------------- processes


@cache
def machine() -> str:
    """What tells this machine from others, and its containers from one another."""
    try:
        processes = os.readlink("/proc/self/ns/pid")
    except OSError:
        processes = ""
    return _hash(f"{socket.gethostname()} {processes}")


def birth(process: int) -> str:
    """What tells a process from earlier and later ones of its number."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        fields = Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return _hash("")
    return _hash(f"{boot} {fields[19]}")  # the moment it started, in ticks since the machine did


def runs(process: int, born: str) -> bool:
    """Whether a process of this machine is still there; where that cannot be known, it is."""
    if os.name == "nt":  # where signal 0 is none that asks
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return birth(process) == born


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
