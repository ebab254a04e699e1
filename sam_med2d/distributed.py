"""The processes that torchrun started."""

import datetime
import os
from dataclasses import dataclass

import torch
import torch.distributed


@dataclass(frozen=True)
class Processes:
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
