"""The outer optimizers that settings can name. A script gives any optimizer of torch to the Trainer."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim.optimizer import Optimizer

from metaprox import checks
from metaprox.optim import ClippedSGD, NormalizedSGD


@dataclass(frozen=True)
class Outer(ABC):
    """Settings of an outer optimizer, whose step decays linearly to 0."""

    @abstractmethod
    def of(self, params: Iterable[nn.Parameter]) -> Optimizer:
        """The optimizer of these parameters."""


@dataclass(frozen=True)
class Normalized(Outer):
    """Normalized SGD with momentum, ``mp.optim.NormalizedSGD``."""

    lr: float = 0.1
    """Outer step, which is the length of the step."""
    momentum: float = 0.9
    """Momentum of normalized SGD."""

    def __post_init__(self) -> None:
        checks.settle(self, lr=checks.nonnegative, momentum=checks.fraction)

    def of(self, params: Iterable[nn.Parameter]) -> Optimizer:
        return NormalizedSGD(params, self.lr, self.momentum)


@dataclass(frozen=True)
class Clipped(Outer):
    """Clipped SGD, ``mp.optim.ClippedSGD``."""

    lr: float = 0.1
    """Outer step, for small gradients."""
    gamma: float = 0.1
    """Longest step of clipped SGD."""

    def __post_init__(self) -> None:
        checks.settle(self, lr=checks.nonnegative, gamma=checks.positive)

    def of(self, params: Iterable[nn.Parameter]) -> Optimizer:
        return ClippedSGD(params, self.lr, self.gamma)


@dataclass(frozen=True)
class Adam(Outer):
    """Adam, ``torch.optim.Adam``."""

    lr: float = 0.001
    """Outer step."""

    def __post_init__(self) -> None:
        checks.settle(self, lr=checks.nonnegative)

    def of(self, params: Iterable[nn.Parameter]) -> Optimizer:
        return torch.optim.Adam(params, self.lr)


@dataclass(frozen=True)
class SGD(Outer):
    """Plain SGD, ``torch.optim.SGD``; for Reptile it is the interpolation of its authors."""

    lr: float = 1.0
    """Outer step; for Reptile the part of the way to the adapted parameters."""

    def __post_init__(self) -> None:
        checks.settle(self, lr=checks.nonnegative)

    def of(self, params: Iterable[nn.Parameter]) -> Optimizer:
        return torch.optim.SGD(params, self.lr)


OUTER: dict[str, type] = {"normalized": Normalized, "clipped": Clipped, "adam": Adam, "sgd": SGD}
