"""What the benchmarks measure with."""

import os
import platform
import socket
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor


def provenance(*packages: str) -> dict[str, Any]:
    """Where a measurement was made, and with what: for the record."""
    versions = {name: version(name) for name in ("metaprox", "torch", *packages)}
    return {"machine": f"{platform.machine()}, {platform.system()}", "versions": versions}


def processor_seconds(run: Callable[[], Any]) -> float:
    """Of this process, which other processes on the machine do not lengthen; one thread is taken for granted."""
    start = time.process_time()
    run()
    return time.process_time() - start


def in_ranks(ranks: int, act: Callable[..., Any], *arguments: Any) -> None:
    """``act(rank, *arguments)`` in so many processes of one thread each, which are a gloo group."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    torch.multiprocessing.spawn(_rank, (ranks, port, act, arguments), nprocs=ranks)


def _rank(rank: int, ranks: int, port: int, act: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    act(rank, *arguments)
    dist.barrier()
    dist.destroy_process_group()


def together(act: Callable[[], Any], repeats: int = 1) -> float:
    """Seconds of one call, in which all ranks begin and end together."""
    dist.barrier()
    began = time.perf_counter()
    for _ in range(repeats):
        act()
    dist.barrier()
    return (time.perf_counter() - began) / repeats


def relative_error(one: Iterable[Tensor], other: Iterable[Tensor]) -> float:
    """||one - other|| / ||other|| of vectors in pieces."""
    pairs = list(zip(one, other, strict=True))
    difference = sum(float((a - b).square().sum()) for a, b in pairs) ** 0.5
    return difference / sum(float(b.square().sum()) for _, b in pairs) ** 0.5
