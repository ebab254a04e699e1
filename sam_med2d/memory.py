"""How this process asks the system for memory."""

import ctypes
import sys
from typing import Any

KEPT = 2**28  # bytes of freed memory at the heap's end that are not given back
FROM_HEAP = 2**25  # bytes up to which a block is taken from the heap: the most that glibc allows
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # of glibc's malloc.h
_NEVER = -1  # as a threshold


def keep_freed_memory(all_of_it: bool = False) -> bool:
    """Let freed blocks of a few megabytes, as layers need them for every picture, be taken again as they are.

    glibc gives them back to the system, which has to clear each page anew: a fifth of a decoder's time. all_of_it:
    whatever the size, for who does the same over and over again: a step of training frees a gigabyte of gradients and
    activations, and the next one needs it. -> whether the C library of this process can be told so; elsewhere nothing
    changes.
    """
    mallopt = _function("mallopt")
    if mallopt is None:
        return False
    if all_of_it:
        return bool(mallopt(_TRIM_THRESHOLD, _NEVER) and mallopt(_MMAP_MAX, 0))
    return bool(mallopt(_TRIM_THRESHOLD, KEPT) and mallopt(_MMAP_THRESHOLD, FROM_HEAP))


def give_back_freed_memory() -> None:
    """Give the system what is free between blocks that are not, which a server would keep long after its people went.

    It takes milliseconds, and whoever works next has its pages cleared anew.
    """
    if trim := _function("malloc_trim"):
        trim(0)


def _function(name: str) -> Any:
    """Of the C library of this process, or None: musl and other systems have none of these."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None
