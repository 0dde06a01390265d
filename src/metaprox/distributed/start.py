"""Joining the processes that torchrun has started."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from metaprox.distributed.group import Group
from metaprox.distributed.meeting import fresh_store, outlives_processes
from metaprox.distributed.pulse import Heart


def several() -> bool:
    """Whether torchrun has started more processes than this one."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


def restarted() -> bool:
    """Whether torchrun has started these processes anew, since some of them failed (``--max-restarts``)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


@contextmanager
def processes() -> Iterator[int]:
    """Yields the rank of this process among those that ``torchrun`` has started, which belong together within it.

    In a single process it is 0, and nothing is done. They communicate by gloo and, on GPUs, nccl. With GPUs each
    process has the one of its local rank, on which the device "cuda" is; where a machine has fewer of them than
    processes they take turns, and communicate by gloo alone. A process group that there is already is used.
    After a restart (``--max-restarts``) they find each other whatever those before them have left in torchrun's store.

    Example:
        >>> import metaprox as mp
        >>> with mp.distributed.processes() as rank:
        ...     rank
        0
    """
    if not dist.is_available() or dist.is_initialized() or not several():
        yield dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        return
    backend = "gloo"
    if torch.cuda.is_available():
        local, devices = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
        torch.cuda.set_device(local % devices)
        if int(os.environ.get("LOCAL_WORLD_SIZE", local + 1)) <= devices:  # nccl has no two processes on a device
            backend = "cpu:gloo,cuda:nccl"
    if outlives_processes():
        rank, size = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
        dist.init_process_group(backend, store=fresh_store(rank, size), rank=rank, world_size=size)
    else:
        dist.init_process_group(backend)
    yield dist.get_rank()
    if own := Group.of():
        own.together()  # what is left of the last operations is done in all
    Heart.end()
    dist.destroy_process_group()  # not where something was raised: the others may be gone
