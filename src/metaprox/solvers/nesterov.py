"""Nesterov's accelerated gradient."""

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from torch import Tensor

from metaprox import checks
from metaprox.solvers.state import none_taken


@dataclass(frozen=True)
class NesterovState:
    """The last plain gradient step [T, B, P] and how many steps were taken [T, 1, 1]."""

    previous: Tensor
    count: Tensor


@dataclass(frozen=True)
class Nesterov:
    """z <- y - lr grad;  y <- z + beta (z - z_previous), with the gradient taken at the extrapolated y.

    Costs a gradient a step, and keeps P numbers for each task and branch.

    Args:
        lr: step size; converges for lr <= 1 / L, with L the largest curvature of the proximal objective. On quadratics
            up to (2 + 2 beta) / (1 + 2 beta) / L, which is 4/3 / L in the end for momentum=None.
        momentum: beta. None takes k / (k + 3) at step k, which needs no knowledge of the curvature; for strongly
            convex problems of condition number kappa, (sqrt(kappa) - 1) / (sqrt(kappa) + 1) is optimal.

    Source: Nesterov, Introductory Lectures on Convex Optimization (2004), section 2.2.
    """

    lr: float
    momentum: float | None = None
    separate_branches: ClassVar[bool] = True
    keeps_gradients: ClassVar[bool] = False
    takes_shards: ClassVar[bool] = True

    def __post_init__(self) -> None:
        checks.settle(self, lr=checks.positive, momentum=checks.optional(checks.fraction))

    def largest_curvature(self, steps: int) -> float | None:
        """Up to which curvature ``steps`` steps on a quadratic come closer to its minimum."""
        if type(self).step is not Nesterov.step:
            return None
        beta = self.momentum
        return (_limit(steps) if beta is None else (2 + 2 * beta) / (1 + 2 * beta)) / self.lr

    def init(self, y: Tensor) -> NesterovState:
        return NesterovState(y, none_taken(y))

    def step(self, grad: Tensor, y: Tensor, state: NesterovState) -> tuple[Tensor, NesterovState]:
        z, count = y.add(grad, alpha=-self.lr), state.count
        back = -self.momentum if self.momentum is not None else (-count / (count + 3)).to(y.dtype)
        return z.lerp(state.previous, back), NesterovState(z, count + 1)


@lru_cache
def _limit(steps: int) -> float:
    """Returns the lr * curvature at which ``steps`` steps end as far from the minimum as they began.

    Their momentum is k / (k + 3). 2 for one step, 1.51 for ten, 4/3 for many; by bisection. On a quadratic
    z <- (1 - lr L) y.
    """
    low, high = 4 / 3, 2.0
    for _ in range(40):
        middle = (low + high) / 2
        y = previous = 1.0
        for k in range(steps):
            z = (1 - middle) * y
            y, previous = z + k / (k + 3) * (z - previous), z
        low, high = (middle, high) if abs(y) <= 1 else (low, middle)  # what overflowed is no number
    return high
