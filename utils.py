"""Flags, devices, processes and random seeds, as scripts share them.

This file is a door: what it hands on lives in sam_med2d/cli.py, device.py, distributed.py, seeds.py and errors.py.
"""

from sam_med2d.cli import add_flag, boolean, check_numbers, finish
from sam_med2d.device import amp_dtype, best_device, seed_everything
from sam_med2d.distributed import Processes, join_processes
from sam_med2d.errors import UsageError
from sam_med2d.seeds import seed_of

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
