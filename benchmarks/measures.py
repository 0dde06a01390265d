"""What the benchmarks measure with."""

import time
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor


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
