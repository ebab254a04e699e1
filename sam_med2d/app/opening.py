"""Files of others are opened in a process of their own, which is ended where it takes too long or too much memory.

What a decoder does with a hostile file, be it that it never ends or that it takes the process down, ends there. The
process writes what it has read as plain numbers (`sam_med2d.inference.uploads.store`).
"""

import multiprocessing
import os
import sys
import warnings
from multiprocessing.context import BaseContext
from pathlib import Path

from sam_med2d.data.decoding import reading_environment, set_reading_environment
from sam_med2d.errors import DataError, UserError
from sam_med2d.inference.uploads import DESCRIPTION, Scan, read_upload, restored, store

REFUSAL = "refusal.txt"
ROOM = 1 << 16  # bytes beside the numbers themselves: heads of files


class Opener:
    """Opens files in processes that start quickly: each is a fork of one that has loaded what they need."""

    def __init__(self, seconds: float, megabytes: int, most_voxels: int) -> None:
        """seconds, megabytes: that a file may take; most_voxels: of a volume."""
        self._seconds, self._megabytes, self._most_voxels = seconds, megabytes, most_voxels
        self._context: BaseContext = multiprocessing.get_context("spawn")
        if "forkserver" in multiprocessing.get_all_start_methods():
            self._context = multiprocessing.get_context("forkserver")
            self._context.set_forkserver_preload([__name__, "sam_med2d.volumes.scans"])

    def open(self, path: Path, folder: Path, room: int) -> Scan:
        """Read `path` into `folder`, an empty one, of at most `room` bytes. Raises DataError."""
        asked = (path, folder, self._most_voxels, self._megabytes, room, reading_environment())
        process = self._context.Process(target=_read, args=asked, daemon=True)  # type: ignore[attr-defined]
        process.start()
        process.join(self._seconds)
        if process.is_alive():
            process.kill()
            process.join()
            raise DataError(f"{path.name}: takes more than {self._seconds:g} s to open; make it smaller")
        process.close()
        if (folder / REFUSAL).exists():
            raise DataError((folder / REFUSAL).read_text(encoding="utf-8"))
        # not by its exit status: a process that another thread starts looks for ended ones, and may read it first
        if not (folder / DESCRIPTION).exists():
            raise DataError(f"{path.name}: cannot be read, it took its reader down; export it again")
        return restored(folder)


def _read(path: Path, folder: Path, most_voxels: int, megabytes: int, room: int, environment: dict[str, str]) -> None:
    """In the process that reads, which has the environment of one that may have been started long before."""
    set_reading_environment(environment)
    warnings.simplefilter("ignore")
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 2)  # libraries say on stderr what the refusal says
    _limit_memory(megabytes)
    try:
        scan = read_upload(path, most_voxels)
        if scan.slices.nbytes + ROOM > room:
            raise DataError(
                f"{path.name}: takes {scan.slices.nbytes / 1e6:.0f} MB when it is opened, and {room / 1e6:.0f} MB are "
                "left for it; close other tabs, or make it smaller"
            )
        store(scan, folder)
        return
    except UserError as error:
        said = str(error).replace(f"{path.parent}{os.sep}", "")  # the folder is of no concern to people elsewhere
    except MemoryError:
        said = f"{path.name}: takes more than {megabytes} MB to open; make it smaller"
    (folder / REFUSAL).write_text(" ".join(said.splitlines()), encoding="utf-8")


def _limit_memory(megabytes: int) -> None:
    """That this process may take beside what it has. Of systems other than Linux, time is the only bound."""
    if sys.platform != "linux":
        return
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + (megabytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
