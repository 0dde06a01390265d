"""Gradient descent."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from metaprox import checks


@dataclass(frozen=True)
class GradientDescent:
    """y <- y - lr grad.

    Converges for lr < 2 / L, with L the largest curvature of the proximal objective (lam included). Costs a gradient a
    step, and keeps nothing.

    Args:
        lr: step size.
    """

    lr: float
    separate_branches: ClassVar[bool] = True
    keeps_gradients: ClassVar[bool] = False
    takes_shards: ClassVar[bool] = True

    def __post_init__(self) -> None:
        checks.settle(self, lr=checks.positive)

    @property
    def relative_step(self) -> float:
        return self.lr

    def init(self, y: Tensor) -> None:
        return None

    def step(self, grad: Tensor, y: Tensor, state: None) -> tuple[Tensor, None]:
        return y.add(grad, alpha=-self.lr), None
