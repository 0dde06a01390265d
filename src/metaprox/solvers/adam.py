"""Adam."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from metaprox import checks
from metaprox.solvers.state import none_taken


@dataclass(frozen=True)
class AdamState:
    """Running means of the gradient and of its square [T, B, P], and the number of steps [T, 1, 1]."""

    mean: Tensor
    square: Tensor
    count: Tensor


@dataclass(frozen=True)
class Adam:
    """y <- y - lr m / (sqrt(s) + eps), with bias-corrected running means m of grad and s of grad^2.

    The step does not shrink with the gradient, so it does not converge to a minimizer at a fixed lr; and since
    it is not linear in the gradient, branches need as many steps as any other solver's, not fewer. Costs a gradient a
    step, and keeps 2 P numbers for each task and branch.

    Args:
        lr: step size.
        betas: decay of the two running means, a step.
        eps: added to the root, against division by 0.

    Source: Kingma & Ba, arXiv 1412.6980, algorithm 1.
    """

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    separate_branches: ClassVar[bool] = True
    keeps_gradients: ClassVar[bool] = False
    takes_shards: ClassVar[bool] = True

    def __post_init__(self) -> None:
        checks.settle(self, lr=checks.positive, eps=checks.positive)
        checks.settle(self, betas=lambda name, betas: checks.tuple_of(name, betas, checks.fraction, length=2))

    def init(self, y: Tensor) -> AdamState:
        return AdamState(torch.zeros_like(y), torch.zeros_like(y), none_taken(y))

    def step(self, grad: Tensor, y: Tensor, state: AdamState) -> tuple[Tensor, AdamState]:
        beta1, beta2 = self.betas
        count = state.count + 1
        mean = state.mean.lerp(grad, 1 - beta1)
        square = torch.addcmul(state.square * beta2, grad, grad, value=1 - beta2)
        of_mean, of_square = (_weight(beta, count).to(y.dtype) for beta in self.betas)
        scale = (square * (of_mean.square() / of_square)).sqrt() + self.eps * of_mean
        return y.addcdiv(mean, scale, value=-self.lr), AdamState(mean, square, count)


def _weight(beta: float, count: Tensor) -> Tensor:
    """1 - beta^count, of the sum of weights of a running mean, with no more error than rounding."""
    return -torch.expm1(count * math.log(beta)) if beta else torch.ones_like(count)
