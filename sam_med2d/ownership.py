"""A folder that one run writes into: checked before the work, and nobody else's meanwhile.

    with owned(folder, "train.py", room=2 * checkpoint):
        ...

The owner holds an operating system's lock on `.lock` in the folder, which a killed process loses, and says in `.owner`
who it is. Both are gone when the run ends. Where the file system has no locks, `.owner` alone decides: a process of
this machine that runs no more counts as gone.
"""

import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from sam_med2d.errors import OutputError, UsageError
from sam_med2d.json_files import parse_json
from segment_anything.files import birth, machine, passing, runs, sweep

LOCK, OWNER = ".lock", ".owner"
JUST_NOW = 10  # seconds
PROBE = 4096  # bytes that are written to see whether any can be


class Owner(NamedTuple):
    """Of a folder: a process, by what tells it from all others, and as people call it."""

    machine: str
    process: int
    birth: str
    host: str
    task: str

    def __str__(self) -> str:
        return f"{self.task}, process {self.process} on {self.host}"

    def gone(self) -> bool:
        """Whether it surely runs no more. Of another machine's process that cannot be known."""
        return self.machine == machine() and not runs(self.process, self.birth)


@contextmanager
def owned(folder: Path, task: str, room: int = 0) -> Iterator[None]:
    """In the block `folder`, which is made, is this process's alone, and what killed runs left half written is gone.

    task: what people call the process. room: bytes that must be free there.
    Raises OutputError where nothing can be written, or not so much; UsageError where another process is at work.
    """
    made = _make_writable(folder, room)
    lock, me = _locked(folder), Owner(machine(), os.getpid(), birth(os.getpid()), socket.gethostname(), task)
    try:  # the lock is next to what it guards, so that all machines see it
        _sign(folder, me, held=lock is not None)
        try:
            sweep(folder, everything=True)
            yield
        finally:
            (folder / OWNER).unlink(missing_ok=True)
    finally:
        if lock is not None:
            lock.release()
            (folder / LOCK).unlink(missing_ok=True)  # whoever waits for the old file is stopped by the next .owner
        _remove_empty(made)


def check_writable(folder: Path, room: int = 0) -> None:
    """Make the folder, write a little into it, and leave everything as it was. room: bytes that must be free there.

    Raises OutputError where that fails.
    """
    _remove_empty(_make_writable(folder, room))


def _make_writable(folder: Path, room: int) -> list[Path]:
    """-> the folders that were not there, the innermost first."""
    made = [one for one in (folder, *folder.parents) if not os.path.lexists(one)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with passing(folder / "probe") as probe:
            with probe.open("wb") as file:
                file.write(bytes(PROBE))
                file.flush()
                os.fsync(file.fileno())
            free = shutil.disk_usage(folder).free + PROBE
    except OSError as error:
        raise OutputError(
            f"{folder}: cannot be written ({error.strerror or error}); make room there, or choose another place"
        ) from error
    if free < room:
        raise OutputError(
            f"{folder}: has {free / 1e6:.0f} MB free, but {room / 1e6:.0f} MB will be written; make room there, or "
            "choose another place"
        )
    return made


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def _locked(folder: Path) -> FileLock | None:
    """The lock, held; None where the file system has none, or where it is held by children of an owner that is gone.

    Raises UsageError where another process holds it.
    """
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        owner = _read_owner(folder)
        if owner is None or not owner.gone():
            raise _taken(folder, owner) from None
        return None
    except (OSError, NotImplementedError):
        return None
    return lock


def _sign(folder: Path, me: Owner, held: bool) -> None:
    """Write `.owner`. held: whether the lock is ours: then another machine's process is gone, as it would hold it.

    Raises UsageError where another process that may still run has signed.
    """
    path = folder / OWNER
    for _ in range(3):
        try:
            with open(path, "x", encoding="utf-8") as file:
                json.dump(me._asdict(), file)
            return
        except FileExistsError:
            owner = _read_owner(folder)
        if not (_is_old(path) if owner is None else owner.gone() or (held and owner.machine != machine())):
            raise _taken(folder, owner)
        path.unlink(missing_ok=True)
    raise _taken(folder, _read_owner(folder))


def _is_old(path: Path) -> bool:
    """Whether what is half written in it was not written just now."""
    try:
        return time.time() - path.stat().st_mtime > JUST_NOW
    except OSError:
        return True


def _read_owner(folder: Path) -> Owner | None:
    try:
        return Owner(**parse_json((folder / OWNER).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _taken(folder: Path, owner: Owner | None) -> UsageError:
    return UsageError(
        f"{folder}: {owner or 'another process'} is writing there; wait until it has ended, or choose another name "
        f"(if it runs no more, remove {folder / OWNER})"
    )
