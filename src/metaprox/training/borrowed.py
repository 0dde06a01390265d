"""Torch's threads and generators during a run, and after it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def borrowed_torch(device: torch.device, threads: int) -> Iterator[None]:
    """Set the threads of a run on ``device``, and put back the caller's threads and generators at the end."""
    before = torch.get_num_threads()
    on_device = device.type != "cpu"
    with torch.random.fork_rng([device] if on_device else [], device_type=device.type if on_device else "cuda"):
        torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)
