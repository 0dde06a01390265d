"""What the benchmarks measure with."""

import platform
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from typing import Any

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


def relative_error(one: Iterable[Tensor], other: Iterable[Tensor]) -> float:
    """||one - other|| / ||other|| of vectors in pieces."""
    pairs = list(zip(one, other, strict=True))
    difference = sum(float((a - b).square().sum()) for a, b in pairs) ** 0.5
    return difference / sum(float(b.square().sum()) for _, b in pairs) ** 0.5
