"""Nesterov's accelerated gradient."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from metaprox import checks


@dataclass(frozen=True)
class NesterovState:
    """The last plain gradient step [T, B, P] and how many steps were taken."""

    previous: Tensor
    count: int


@dataclass(frozen=True)
class Nesterov:
    """z <- y - lr grad;  y <- z + beta (z - z_previous), with the gradient taken at the extrapolated y.

    Args:
        lr: step size; converges for lr <= 1 / L, with L the largest curvature of the proximal objective.
        momentum: beta. None takes k / (k + 3) at step k, which needs no knowledge of the curvature; for strongly
            convex problems of condition number kappa, (sqrt(kappa) - 1) / (sqrt(kappa) + 1) is optimal.

    Source: Nesterov, Introductory Lectures on Convex Optimization (2004), section 2.2.
    """

    lr: float
    momentum: float | None = None
    separate_branches: ClassVar[bool] = True

    def __post_init__(self) -> None:
        checks.settle(self, lr=checks.positive, momentum=checks.optional(checks.fraction))

    def init(self, y: Tensor) -> NesterovState:
        return NesterovState(y, 0)

    def step(self, grad: Tensor, y: Tensor, state: NesterovState) -> tuple[Tensor, NesterovState]:
        beta = state.count / (state.count + 3) if self.momentum is None else self.momentum
        z = y.add(grad, alpha=-self.lr)
        return z.lerp(state.previous, -beta), NesterovState(z, state.count + 1)
