"""Gradient descent with a step of its own for each task, from differences of gradients."""

from dataclasses import dataclass, fields
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
class Way:
    """What a task's steps have led over, those taken back apart.

    point, grad: where the last step began [T, B, P]. loss: there, above that at the start; total: its sum over all
    points so far [T, B, 1], of which there are ``points`` [T, 1, 1].
    """

    point: Tensor
    grad: Tensor
    loss: Tensor
    total: Tensor
    points: Tensor


@dataclass(frozen=True)
class AdaptiveState:
    """The last step size [T, 1, 1], 0 where there was none, and whether it was adapted, and no probe."""

    lr: Tensor
    adapted: Tensor
    way: Way | None


@dataclass(frozen=True)
class AdaptiveGradientDescent:
    """y <- y - lr_k grad, with lr_k from the curvature that the last step has met.

        s = y_k - y_(k-1),  d = grad_k - grad_(k-1),  L = ||d|| / ||s||,  c = max( <s, d> / (||s|| ||d||), 1/4 )
        lr_k = min( lr,  1.5 lr_(k-1),  1 / (sqrt(c) L) )                  (the least over a task's branches)

    c L is the curvature along the step: beyond lr_k c L = 2 a step raises the loss. L counts besides how the gradient
    turns, which is most of it where a net has batch statistics. 1/L is short there, and 1/(c L) too long where the loss
    curves more on the way: this is the geometric mean of the two, from 1/L to 2/L.

    A step that ends where the loss of a branch is above its mean over the points before is taken back: the next starts
    where that one began, with lr_k <= lr_(k-1) / 2. What losses rise is <s, grad_k + grad_(k-1)> / 2, by the trapezoid
    rule. Without this a solve may end on such a step, where the query gradient is large along what is steep, of which
    a few branch steps take little away.

    The first step is a probe, ``probe`` min(lr, ||y|| / ||grad||); the second may be as long as the curvature allows.
    Branches go on with the last step of their base, where that was solved in the same way, and need no probe. All
    branches of a task take the same steps, so that the differences between them stay clean. Needs no line search and
    no function values. Costs a gradient a step, the probe and those taken back included, and keeps 2 P numbers for each
    task and branch.

    Where gradients jump over ever shorter steps, at kinks such as ReLU's or with noise at each step, L grows with each
    of them and a long solve comes to rest short of the solution, its step sizes near 0.

    Args:
        lr: the longest step (None: no bound).
        probe: of the first step: its length relative to ||y||, or its size to lr, whichever is less. Where y = 0 and
            there is no lr, its length.

    Source: steps of the kind of Barzilai & Borwein (IMA J. Numer. Anal. 8, 1988), whose two 1/(c L) and c/L are, with
    the bounded growth of Malitsky & Mishchenko, arXiv 1910.09529, and taken back as in the nonmonotone line search of
    Zhang & Hager (SIAM J. Optim. 14, 2004), with the plain mean.
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

    def step_size(self, state: AdaptiveState) -> Tensor:
        return state.lr[:, 0, 0]

    def step(self, grad: Tensor, y: Tensor, state: AdaptiveState) -> tuple[Tensor, AdaptiveState]:
        if state.way is None:
            lr, adapted, none = state.lr, state.adapted, torch.zeros_like(grad[..., :1])
            way = Way(y, grad, none, none, torch.ones_like(lr))
        else:
            moved, turned = y - state.way.point, grad - state.way.grad
            length = norm(moved)
            unit = moved / length  # NaN where a branch did not move
            lr, adapted = self._next(unit, length, turned, state), torch.ones_like(state.adapted)
            way, too_far = _went(state.way, y, grad, unit, length)
            lr = torch.where(too_far, torch.minimum(lr, state.lr / 2), lr)
        lr = torch.where(lr > 0, lr, self._probe(way.grad, way.point))
        lr = forward_ad.unpack_dual(lr).primal  # of a step that branches share, a derivative over them sees nothing
        if self.lr is not None:
            lr = lr.clamp(max=self.lr)
        return torch.addcmul(way.point, way.grad, lr, value=-1), AdaptiveState(lr, adapted & (state.lr > 0), way)

    def _probe(self, grad: Tensor, y: Tensor) -> Tensor:
        """The first step size [T, 1, 1]; 0 where the gradient is."""
        size, slope = norm(y), norm(grad)
        reach = torch.where(size > 0, size, 1.0 if self.lr is None else torch.inf) / slope
        if self.lr is not None:
            reach = reach.clamp(max=self.lr)
        least = torch.where(slope > 0, self.probe * reach, torch.inf).amin(1, keepdim=True)
        return torch.where(least.isfinite(), least, 0.0)

    def _next(self, unit: Tensor, length: Tensor, turned: Tensor, state: AdaptiveState) -> Tensor:
        """Returns the next step size [T, 1, 1], by where and how far points went, and how gradients turned [T, B, P].

        A branch that did not move says nothing about the curvature; where none did, the task keeps its step.
        """
        change = norm(turned)
        along = total((unit * turned).sum(-1, keepdim=True)) / change
        size = length / change / along.clamp(ALONG, 1.0).sqrt()
        size = torch.where((length > 0) & (change > 0), size, torch.inf).amin(1, keepdim=True)
        bounded = torch.where(state.adapted | size.isinf(), torch.minimum(size, GROWTH * state.lr), size)
        return torch.where((length > 0).any(1, keepdim=True), bounded, state.lr)


def _went(way: Way, y: Tensor, grad: Tensor, unit: Tensor, length: Tensor) -> tuple[Way, Tensor]:
    """Returns the way to y, or as it was where the step to y went too far, and where it did [T, 1, 1].

    The step is ``length`` [T, B, 1] times ``unit``, and multiplied by it after the sum, lest that overflows.
    """
    rise = length * total((unit * (grad + way.grad)).sum(-1, keepdim=True)) / 2
    loss = way.loss + torch.where(length > 0, rise, 0.0)
    too_far = (loss > way.total / way.points).any(1, keepdim=True)
    there = Way(y, grad, loss, way.total + loss, way.points + 1)
    pairs = [(getattr(way, name.name), getattr(there, name.name)) for name in fields(way)]
    return Way(*(torch.where(too_far, *pair) for pair in pairs)), too_far
