"""Inputs that do not adapt, for one task."""

from collections.abc import Callable

import torch
from torch import Tensor


def fixed(*values: float) -> Callable[[], Tensor]:
    return lambda: torch.tensor(values)


def labels(*shape: int, classes: int) -> Callable[[], Tensor]:
    return lambda: torch.randint(classes, shape)


def ignored(*shape: int, classes: int) -> Callable[[], Tensor]:
    """Labels of which the first is to be ignored."""
    return lambda: torch.randint(classes, shape).index_fill(0, torch.tensor(0), -100)


def normal(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(shape)


def uniform(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.rand(shape)


def probabilities(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(shape).softmax(1)


def signs(*shape: int) -> Callable[[], Tensor]:
    return lambda: 2.0 * torch.randint(2, shape) - 1


def counts(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randint(5, shape).float()


def mask(*shape: int) -> Callable[[], Tensor]:
    """True somewhere, but not in the first place of a row."""
    return lambda: (torch.rand(shape) < 0.4).index_fill(-1, torch.tensor(0), False)


def permutation(size: int) -> Callable[[], Tensor]:
    return lambda: torch.randperm(size)
