"""Gradient descent with a step of its own for each task, from differences of gradients."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from metaprox import checks
from metaprox.vectors.norms import norm


@dataclass(frozen=True)
class AdaptiveState:
    """The last point and gradient [T, B, P], the step size taken there and the bound on the next one [T, 1, 1]."""

    y: Tensor
    grad: Tensor
    lr: Tensor
    bound: Tensor


@dataclass(frozen=True)
class AdaptiveGradientDescent:
    """y <- y - lr_k grad, with lr_k from the curvature seen between the last two points.

        L_k  = ||grad_k - grad_(k-1)|| / ||y_k - y_(k-1)||        (the largest over a task's branches)
        lr_k = min( 1 / (sqrt(2) L_k),  sqrt(1 + lr_(k-1) / lr_(k-2)) lr_(k-1),  max_lr )

    The first step is a probe of size ``probe * lr``, there to see the curvature at the start, so that no step is
    taken blindly; the second is at most ``lr``. Needs no line search and no function values, and converges on
    convex problems whose curvature is bounded only locally. All branches of a task take the same steps, so that
    the differences between them stay clean. Costs a gradient a step, and keeps 2 P numbers for each task and branch.

    Args:
        lr: the step that is hoped for; taken at once where the curvature allows, and grown from where it does not.
        max_lr: upper bound on every step (None: no bound), for losses that are flat far from their minimum.
        probe: size of the first step relative to ``lr``. It makes little progress and costs one gradient.

    Source: Malitsky & Mishchenko, arXiv 1910.09529, with the larger steps of the same authors' arXiv 2308.02261.
    """

    lr: float
    max_lr: float | None = None
    probe: float = 0.01

    def __post_init__(self) -> None:
        checks.settle(self, lr=checks.positive, probe=checks.positive, max_lr=checks.optional(checks.positive))

    def init(self, y: Tensor) -> AdaptiveState | None:
        return None

    def step(self, grad: Tensor, y: Tensor, state: AdaptiveState | None) -> tuple[Tensor, AdaptiveState]:
        if state is None:
            lr = grad.new_full((grad.shape[0], 1, 1), self.probe * self.lr)
            bound = torch.full_like(lr, self.lr)
        else:
            moved, turned = norm(y - state.y), norm(grad - state.grad)
            safe = (moved / (math.sqrt(2) * turned)).amin(1, keepdim=True)
            # A branch that did not move says nothing about the curvature (0/0): its task keeps its step.
            lr = torch.where(safe.isfinite(), torch.minimum(state.bound, safe), state.lr)
            bound = lr * (1 + (lr / state.lr).clamp(max=1.0)).sqrt()
        if self.max_lr is not None:
            lr = lr.clamp(max=self.max_lr)
        return torch.addcmul(y, grad, lr, value=-1), AdaptiveState(y, grad, lr, bound)
