"""Torch's threads and the global generators during a run, and after it."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor


@contextmanager
def borrowed(device: torch.device, threads: int) -> Iterator[None]:
    """Set the threads of a run on ``device``, and put back the caller's threads and generators at the end."""
    before, states = torch.get_num_threads(), generators(device)
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        set_generators(states, device)


def seed_generators(seed: int) -> None:
    """Every global generator that tasks, losses and models might draw from: torch's, Python's and numpy's."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def generators(device: torch.device) -> dict[str, Tensor]:
    """The states of the global generators, as tensors by name."""
    _, words, gauss = random.getstate()
    found: Any = np.random.get_state(legacy=False)
    states = {
        "generator.cpu": torch.get_rng_state(),
        "generator.python": torch.tensor(words, dtype=torch.int64, device="cpu"),
        "generator.python_gauss": _of_gauss(gauss is not None, gauss),
    }
    if found["bit_generator"] == "MT19937":
        words = torch.from_numpy(found["state"]["key"].astype(np.int64))
        states["generator.numpy"] = torch.cat([words, torch.tensor([found["state"]["pos"]], device="cpu")])
        states["generator.numpy_gauss"] = _of_gauss(found["has_gauss"], found["gauss"])
    if device.type != "cpu":
        module: Any = torch.get_device_module(device)
        states["generator.device"] = module.get_rng_state(device)
    return states


def set_generators(states: dict[str, Tensor], device: torch.device) -> None:
    """Put back what ``generators`` gave; those that are not among ``states`` stay as they are."""
    torch.set_rng_state(states["generator.cpu"])
    if "generator.python" in states:
        there, gauss = states["generator.python_gauss"].tolist()
        random.setstate((3, tuple(states["generator.python"].tolist()), gauss if there else None))
    if "generator.numpy" in states:
        *words, place = states["generator.numpy"].tolist()
        there, gauss = states["generator.numpy_gauss"].tolist()
        np.random.set_state(("MT19937", np.array(words, dtype=np.uint32), place, int(there), gauss))
    if "generator.device" in states:
        torch.get_device_module(device).set_rng_state(states["generator.device"], device)


def _of_gauss(there: Any, value: float | None) -> Tensor:
    """The number of a pair of normal ones that the next draw gives, where there is one."""
    return torch.tensor([float(there), value or 0.0], dtype=torch.float64, device="cpu")
