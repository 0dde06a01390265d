"""Gradient descent with a step of its own for each task, from differences of gradients."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from metaprox import checks
from metaprox.vectors.norms import norm
from metaprox.vectors.shards import total

GROWTH = 1.5  # by which a step is longer than the one before at most
ALONG = 1 / 4  # of L is counted at least, where the curvature along a step is less


@dataclass(frozen=True)
class AdaptiveState:
    """The last step size [T, 1, 1], 0 where there was none; whether it was adapted, and no probe; from where.

    ``last``: that point and the gradient there [T, B, P]. None at the start.
    """

    lr: Tensor
    adapted: Tensor
    last: tuple[Tensor, Tensor] | None


@dataclass(frozen=True)
class AdaptiveGradientDescent:
    """y <- y - lr_k grad, with lr_k from the curvature that the last step has met.

        s = y_k - y_(k-1),  d = grad_k - grad_(k-1),  L = ||d|| / ||s||,  c = max( <s, d> / (||s|| ||d||), 1/4 )
        lr_k = min( lr,  1.5 lr_(k-1),  1 / (sqrt(c) L) )                  (the least over a task's branches)

    c L is the curvature along the step: beyond lr_k c L = 2 a step raises the loss. L counts besides how the gradient
    turns, which is most of it where a net has batch statistics. 1/L is short there, and 1/(c L) too long where the loss
    curves more on the way: this is the geometric mean of the two, from 1/L to 2/L.

    The first step is a probe, ``probe`` min(lr, ||y|| / ||grad||); the second may be as long as the curvature allows.
    Branches go on with the last step of their base, where that was solved in the same way, and need no probe. All
    branches of a task take the same steps, so that the differences between them stay clean. Needs no line search and
    no function values. Costs a gradient a step, the probe included, and keeps 2 P numbers for each task and branch.

    Args:
        lr: the longest step (None: no bound).
        probe: of the first step: its length relative to ||y||, or its size to lr, whichever is less. Where y = 0 and
            there is no lr, its length.

    Source: steps of the kind of Barzilai & Borwein (IMA J. Numer. Anal. 8, 1988), whose two 1/(c L) and c/L are, with
    the bounded growth of Malitsky & Mishchenko, arXiv 1910.09529.
    """

    lr: float | None = None
    probe: float = 0.01
    takes_shards: ClassVar[bool] = True

    def __post_init__(self) -> None:
        checks.settle(self, lr=checks.optional(checks.positive), probe=checks.positive)

    def init(self, y: Tensor) -> AdaptiveState:
        return self.resume(y, y.new_empty(len(y), 0))

    def resume(self, y: Tensor, step_sizes: Tensor) -> AdaptiveState:
        """State before the first step from ``y``, by the sizes of the base's [T, K]: the last is taken again."""
        taken = step_sizes.isfinite().sum(1)
        lr = step_sizes.new_zeros(len(y))
        if step_sizes.shape[1]:
            last = step_sizes.gather(1, (taken - 1).clamp(min=0)[:, None])[:, 0]
            lr = torch.where(taken > 0, last, lr)
        return AdaptiveState(lr[:, None, None], (taken > 1)[:, None, None], None)

    def step(self, grad: Tensor, y: Tensor, state: AdaptiveState) -> tuple[Tensor, AdaptiveState]:
        if state.last is None:
            lr, adapted = state.lr, state.adapted
        else:
            lr, adapted = self._next(y - state.last[0], grad - state.last[1], state), torch.ones_like(state.adapted)
        lr = torch.where(lr > 0, lr, self._probe(grad, y))
        lr = forward_ad.unpack_dual(lr).primal  # of a step that branches share, a derivative over them sees nothing
        if self.lr is not None:
            lr = lr.clamp(max=self.lr)
        return torch.addcmul(y, grad, lr, value=-1), AdaptiveState(lr, adapted & (state.lr > 0), (y, grad))

    def _probe(self, grad: Tensor, y: Tensor) -> Tensor:
        """The first step size [T, 1, 1]; 0 where the gradient is."""
        size, slope = norm(y), norm(grad)
        reach = torch.where(size > 0, size, 1.0 if self.lr is None else torch.inf) / slope
        if self.lr is not None:
            reach = reach.clamp(max=self.lr)
        least = torch.where(slope > 0, self.probe * reach, torch.inf).amin(1, keepdim=True)
        return torch.where(least.isfinite(), least, 0.0)

    def _next(self, moved: Tensor, turned: Tensor, state: AdaptiveState) -> Tensor:
        """Returns the next step size [T, 1, 1], by how points and gradients have changed [T, B, P].

        A branch that did not move says nothing about the curvature; where none did, the task keeps its step.
        """
        length, change = norm(moved), norm(turned)
        along = total(((moved / length) * turned).sum(-1, keepdim=True)) / change
        size = length / change / along.clamp(ALONG, 1.0).sqrt()
        size = torch.where((length > 0) & (change > 0), size, torch.inf).amin(1, keepdim=True)
        bounded = torch.where(state.adapted | size.isinf(), torch.minimum(size, GROWTH * state.lr), size)
        return torch.where((length > 0).any(1, keepdim=True), bounded, state.lr)
