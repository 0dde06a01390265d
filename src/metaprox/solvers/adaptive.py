"""Gradient descent with a step of its own for each task, from differences of gradients."""

from dataclasses import dataclass

import torch
from torch import Tensor

from metaprox import checks


@dataclass(frozen=True)
class AdaptiveState:
    """The last point and gradient [T, B, P], the step size taken there and its growth [T, 1, 1]."""

    y: Tensor
    grad: Tensor
    lr: Tensor
    growth: Tensor


@dataclass(frozen=True)
class AdaptiveGradientDescent:
    """y <- y - lr_k grad, with lr_k from the curvature seen between the last two points.

        L_k  = ||grad_k - grad_(k-1)|| / ||y_k - y_(k-1)||        (the largest over a task's branches)
        lr_k = min( sqrt(1 + growth_(k-1)) lr_(k-1),  1 / (2 L_k),  max_lr ),   growth_k = lr_k / lr_(k-1)

    Needs no line search and no function values, and converges on convex problems whose curvature is bounded
    only locally. All branches of a task take the same steps, so the differences between them stay clean.

    Args:
        lr: the first step; also what the steps grow from. Too large costs one bad step, never the run.
        max_lr: upper bound on every step (None: no bound). A safeguard where the loss is flat at first.

    Source: Malitsky & Mishchenko, arXiv 1910.09529, algorithm 1.
    """

    lr: float
    max_lr: float | None = None

    def __post_init__(self) -> None:
        checks.positive("lr", self.lr)
        if self.max_lr is not None:
            checks.positive("max_lr", self.max_lr)

    def init(self, y: Tensor) -> AdaptiveState | None:
        return None

    def step(self, grad: Tensor, y: Tensor, state: AdaptiveState | None) -> tuple[Tensor, AdaptiveState]:
        if state is None:
            lr = grad.new_full((grad.shape[0], 1, 1), self.lr)
            growth = torch.full_like(lr, torch.inf)
        else:
            lr = (1 + state.growth).sqrt() * state.lr
            moved = torch.linalg.vector_norm(y - state.y, dim=-1, keepdim=True)
            turned = torch.linalg.vector_norm(grad - state.grad, dim=-1, keepdim=True)
            safe = (moved / (2 * turned)).amin(1, keepdim=True)
            # A branch that did not move says nothing about the curvature (0/0): its task keeps its step.
            lr = torch.where(safe.isfinite(), torch.minimum(lr, safe), state.lr)
            growth = lr / state.lr
        if self.max_lr is not None:
            lr = lr.clamp(max=self.max_lr)
        return torch.addcmul(y, grad, lr, value=-1), AdaptiveState(y, grad, lr, growth)
