"""What scripts share; it lives in sam_med2d/."""

from sam_med2d.utils import (
    Processes,
    UsageError,
    add_flag,
    amp_dtype,
    best_device,
    boolean,
    check_numbers,
    finish,
    join_processes,
    seed_everything,
    seed_of,
)

__all__ = [
    "Processes",
    "UsageError",
    "add_flag",
    "amp_dtype",
    "best_device",
    "boolean",
    "check_numbers",
    "finish",
    "join_processes",
    "seed_everything",
    "seed_of",
]
