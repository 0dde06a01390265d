"""Joining the processes that torchrun has started."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist


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
    process has the one of its local rank, on which the device "cuda" is. A process group that there is already is used.

    Example:
        >>> import metaprox as mp
        >>> with mp.distributed.processes() as rank:
        ...     rank
        0
    """
    if not dist.is_available() or dist.is_initialized() or not several():
        yield dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        dist.init_process_group("cpu:gloo,cuda:nccl")
    else:
        dist.init_process_group("gloo")
    yield dist.get_rank()
    dist.barrier()  # what is left of the last operations is done in all
    dist.destroy_process_group()  # not where something was raised: the others may be gone
