"""Random numbers in the user's loss (dropout, augmentation) as functions of integer ids.

Two evaluations with the same ids see the same noise, however far the generator has run in between. That is
what couples the branches of a task: their noise cancels in the difference instead of being divided by nu.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Noise:
    """Seeds torch's global generators with hash(seed, ids)."""

    seed: int
    device: torch.device

    def set(self, *ids: int) -> None:
        """Make what the generators produce next a function of (seed, ids) alone."""
        digest = hashlib.blake2b(repr((self.seed, ids)).encode(), digest_size=8).digest()
        value = int.from_bytes(digest)
        torch.default_generator.manual_seed(value)
        if self.device.type != "cpu":
            torch.get_device_module(self.device).manual_seed(value)


@contextmanager
def coupled_noise(device: torch.device) -> Iterator[Noise]:
    """A Noise with a fresh seed. The caller's generators are left as if one number had been drawn, also on errors."""
    seed = int(torch.randint(2**63 - 1, ()))
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
        yield Noise(seed, device)
