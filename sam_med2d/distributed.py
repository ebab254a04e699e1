"""The processes that torchrun started: who they are, and what they tell one another."""

import atexit
import datetime
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from sam_med2d.errors import LostProcessError, UsageError

JOIN = 600  # seconds that the first of the processes waits for the last one to start
CONNECT = 60  # seconds that they may take to connect to one another once all have started
LOOK = 0.1  # seconds between two looks for the others
BUCKET = 2**23  # numbers that are sent at once: 32 MB of float32


@dataclass(frozen=True)
class Processes:
    """Those that torchrun started, or this one alone. rank: 0 .. count - 1; local_rank: among those of this machine.

    What one of them asks of the others, all of them have to ask, in the same order. Raises LostProcessError where
    another one is gone.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @property
    def leads(self) -> bool:
        """Whether this is the one that writes files and speaks."""
        return self.rank == 0

    def wait(self) -> None:
        """Until all have come here."""
        if self.count > 1:
            with _naming_the_lost():
                torch.distributed.barrier()

    def gather(self, own: Any) -> list[Any]:
        """What each of them has, in their order. own: anything that can be pickled."""
        if self.count == 1:
            return [own]
        found: list[Any] = [None] * self.count
        with _naming_the_lost():
            torch.distributed.all_gather_object(found, own)
        return found

    def numbers(self, own: Sequence[int]) -> list[list[int]]:
        """The same for a few whole numbers, as many in each, which takes a fraction of the time."""
        if self.count == 1:
            return [[*own]]
        found = torch.zeros(self.count, len(own), dtype=torch.int64)
        with _naming_the_lost():
            torch.distributed.all_gather([*found], torch.tensor(own, dtype=torch.int64))
        return [[int(number) for number in row] for row in found.numpy()]

    def any(self, own: bool) -> bool:
        """Whether one of them says yes."""
        return any(yes for (yes,) in self.numbers([own]))

    def sum(self, own: Tensor) -> Tensor:
        """The sum of a tensor over all of them, on its device."""
        if self.count > 1:
            with _naming_the_lost():
                torch.distributed.all_reduce(own)
        return own

    def copy_from_the_first(self, tensors: Sequence[Tensor]) -> None:
        """Make these tensors everywhere what they are in the process of rank 0."""
        if self.count > 1:
            with _naming_the_lost(), torch.no_grad():
                for tensor in tensors:
                    torch.distributed.broadcast(tensor, 0)

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Make each parameter's gradient the sum of its gradients in all processes.

        Where no process has one it stays None, so that the optimizer passes the parameter over as it would in a
        single process; where this one has none, it counts as zero. What is summed in which order depends on that
        alone: a resumed run gets the same bits.
        """
        if self.count == 1:
            return
        with _naming_the_lost(), torch.no_grad():
            reached = torch.tensor([p.grad is not None for p in parameters], dtype=torch.uint8)
            torch.distributed.all_reduce(reached, torch.distributed.ReduceOp.MAX)
            gradients = []
            for parameter, anywhere in zip(parameters, reached.numpy()):
                if anywhere:
                    if parameter.grad is None:
                        parameter.grad = torch.zeros_like(parameter)
                    gradients.append(parameter.grad)
            sent = []
            for bucket in _buckets(gradients):
                flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
                sent.append((bucket, flat, torch.distributed.all_reduce(flat, async_op=True)))
            for bucket, flat, work in sent:
                work.wait()
                parts = flat.split([gradient.numel() for gradient in bucket])
                for gradient, part in zip(bucket, parts):
                    gradient.copy_(part.view_as(gradient))


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of one type and device, about BUCKET numbers together."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        full = size + tensor.numel() > BUCKET
        if bucket and (full or (tensor.dtype, tensor.device) != (bucket[0].dtype, bucket[0].device)):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel()
    if bucket:
        yield bucket


@contextmanager
def _naming_the_lost() -> Iterator[None]:
    """gloo and NCCL raise a RuntimeError where a connection is closed, or nobody has answered for too long."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0].rpartition("] ")[2]
        raise LostProcessError(
            f"another of the processes of this run has ended, or cannot be reached ({reason}); look for its own "
            "message, and go on from the last checkpoint with --resume"
        ) from error


def join_processes(device: str | None = None, patience: float = 86400) -> Processes:
    """Find the others that torchrun started, if it did.

    device: as `best_device` takes it, where tensors of that device are shared too: between GPUs by NCCL. Signals,
    files and tensors of the CPU are always shared by gloo. patience: seconds that the slowest may take once all are
    there. Raises LostProcessError where one does not start within JOIN seconds, or ends while they join.
    """
    rank, count, local_rank = (
        int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    )
    if count > 1 and not torch.distributed.is_initialized():
        backend = "gloo"
        if device is not None and device.startswith("cuda"):
            torch.cuda.set_device(local_rank)
            backend = "cpu:gloo,cuda:nccl"
        with _naming_the_lost():
            store = _where_all_have_come(rank, count)
            # all are there, so that one which does not answer now is gone: it must not be waited for with patience
            torch.distributed.init_process_group(
                backend, store=store, rank=rank, world_size=count, timeout=datetime.timedelta(seconds=CONNECT)
            )
        atexit.register(_leave)
        all_of_them = torch.distributed.group.WORLD
        assert all_of_them is not None
        all_of_them.set_timeout(datetime.timedelta(seconds=patience))
    return Processes(rank, count, local_rank)


def _leave() -> None:
    """Before the interpreter goes: gloo's threads may hold tensors, and one that lets go of them later aborts."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _where_all_have_come(rank: int, count: int) -> torch.distributed.TCPStore:
    """The store at MASTER_ADDR and MASTER_PORT that the first process keeps, or torchrun for all, with word from each.

    What waits here waits in Python, and so hears signals.
    """
    address, port = (os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT"))
    if not (address and port.isdecimal() and int(port) < 2**16):
        raise UsageError(
            f"WORLD_SIZE says that this is one of {count} processes, but not MASTER_ADDR and MASTER_PORT where they "
            "meet: start them with torchrun"
        )
    deadline = time.monotonic() + JOIN
    store = _open_store(address, int(port), rank, count, deadline)
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    names = [f"sam_med2d/{attempt}/{number}" for number in range(count)]
    store.set(names[rank], "here")
    while missing := [number for number in range(count) if not store.check([names[number]])]:
        if time.monotonic() > deadline:
            raise LostProcessError(
                f"of the processes of this run, 0 to {count - 1}, {', '.join(map(str, missing))} did not start within "
                f"{JOIN} s: look for its own message, and start all of them anew"
            )
        time.sleep(LOOK)
    return store


def _open_store(address: str, port: int, rank: int, count: int, deadline: float) -> torch.distributed.TCPStore:
    """Kept here, or connected to as soon as it is there."""
    keeps = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    while True:
        try:
            return torch.distributed.TCPStore(
                address, port, count, keeps, datetime.timedelta(seconds=5), wait_for_workers=False, multi_tenant=True
            )
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            if keeps:
                raise UsageError(
                    f"{address}:{port}, where the processes of this run shall meet, is not free ({reason}): "
                    "choose another MASTER_PORT"
                ) from error
            if time.monotonic() > deadline:
                raise LostProcessError(
                    f"process 0 of this run could not be reached at {address}:{port} within {JOIN} s ({reason}): look "
                    "for its own message, and start all of them anew"
                ) from error
        time.sleep(LOOK)
