"""The processes of one run, which torchrun starts. With one process, all of this does nothing.

All processes run the same stages on the same data. Long lists of work are divided among them, and their
results are exchanged (`exchanging`). The first process writes and prints. torch.distributed connects them:
gloo for objects and for tensors on CPUs, NCCL for tensors on GPUs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

from qgait_ptq.errors import ConfigError, first_line

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # set by torchrun
LOCAL_COUNT = "LOCAL_WORLD_SIZE"  # set by torchrun, too; by default, all processes are on one machine
CONNECTING = timedelta(minutes=2)
WAITING = timedelta(hours=2)  # a process that is later than the others by more than this is stuck
FAILURE = "failure"  # key of the store: the process that failed first, and its exit code


@dataclass(frozen=True)
class Processes:
    """This process among those of the run.

    Attributes:
        rank: number of this process, from 0.
        local_rank: number of this process among those on the same machine.
        count: number of processes.
        store: key-value store that all processes share; None with one process.
        here: number of processes on this machine, which share its cores.
    """

    rank: int = 0
    local_rank: int = 0
    count: int = 1
    store: Store | None = None
    here: int = 1

    @property
    def first(self) -> bool:
        """Return whether this process writes and prints."""
        return self.rank == 0


_processes = Processes()


def processes() -> Processes:
    """Return this process among those of the run."""
    return _processes


def announced() -> Processes:
    """Return what the variables of torchrun say of this process, before it is connected to the others.

    Raises:
        ConfigError: a variable is not a number.
    """
    if any(name not in os.environ for name in VARIABLES):
        return Processes()
    try:
        rank, local_rank, count = (int(os.environ[name]) for name in VARIABLES[:3])
        here = int(os.environ.get(LOCAL_COUNT, count))
    except ValueError:
        given = ", ".join(f"{name}={os.environ[name]!r}" for name in VARIABLES[:3])
        raise ConfigError(f"{given}: these variables must be numbers; start the run with torchrun") from None
    return Processes(rank, local_rank, count, here=here)


@contextmanager
def process_group() -> Iterator[Processes]:
    """Connect this process to the others that torchrun started, until the block ends.

    Raises:
        ConfigError: the other processes cannot be reached.
    """
    global _processes
    found = announced()
    if found.count == 1 or _processes.count > 1:
        yield _processes
        return
    _processes = replace(found, store=_connect())
    try:
        yield _processes
    finally:
        _processes = Processes()
        _disconnect()


@contextmanager
def lost_processes() -> Iterator[None]:
    """Turn the error of a broken connection into one for the user.

    Raises:
        ConfigError: another process has ended.
    """
    try:
        yield
    except RuntimeError as error:  # the base of all errors of torch.distributed
        raise ConfigError(
            "another process of this run has ended, possibly out of memory; start the run again "
            "(fine-tuning and sensitivity continue with --resume)"
        ) from error


def wait_for_others() -> None:
    """Wait until all processes have come to this line.

    Raises:
        ConfigError: another process has ended.
    """
    if _processes.count > 1:
        import torch.distributed as dist

        with lost_processes():
            dist.barrier()


def first_failure(code: int) -> tuple[bool, int]:
    """Tell the other processes that this one fails, so that one of them prints and all end with one code.

    Args:
        code: exit code of this process, if it is the first to fail.

    Returns:
        Whether this process is the first to fail, and the exit code of the first.
    """
    own = f"{_processes.rank}:{code}"
    agreed = own
    if _processes.store is not None:
        with suppress(RuntimeError):  # the store has ended, so nobody else can be asked
            agreed = _processes.store.compare_set(FAILURE, "", own).decode()
    return agreed == own, int(agreed.partition(":")[2])


def _connect() -> Store:
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    try:
        store, rank, count = next(iter(rendezvous("env://", timeout=CONNECTING)))
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
        group_store = PrefixStore("group", store)
        dist.init_process_group(backend, store=group_store, rank=rank, world_size=count, timeout=WAITING)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"the other processes of the run cannot be reached ({first_line(error)}); start the run with "
            "torchrun, once on each machine"
        ) from None
    return PrefixStore("run", store)


def _disconnect() -> None:
    import torch.distributed as dist

    with suppress(RuntimeError):  # the connection is broken
        dist.destroy_process_group()
