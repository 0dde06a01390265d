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
HALF = 1 / 2  # of the step by what is known of the curvature beside the last step is taken at least
ROUNDING = 100.0  # times machine epsilon ||y|| is what branches differ in to be taken for a difference


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
    """The last step size [T, 1, 1], 0 where there was none, and whether it was adapted, and no probe.

    moved, turned: the root of the sums of ||s||^2 and of ||d||^2 [T, B, 1] of all steps, those taken back included.
    """

    lr: Tensor
    adapted: Tensor
    way: Way | None
    moved: Tensor
    turned: Tensor


@dataclass(frozen=True)
class AdaptiveGradientDescent:
    """y <- y - lr_k grad, with lr_k from the curvature that the last step has met.

        s = y_k - y_(k-1),  d = grad_k - grad_(k-1),  L = ||d|| / ||s||,  c = max( <s, d> / (||s|| ||d||), 1/4 )
        M = (sum of ||d||^2 so far / sum of ||s||^2)^(1/2),  D = ||d - mean d|| / ||s - mean s||, means over branches
        lr_k = min( lr,  1.5 lr_(k-1),  max(1 / (sqrt(c) L), 1 / (2 M), 1 / (2 D)) )  (the least over its branches)

    c L is the curvature along the step: beyond lr_k c L = 2 a step raises the loss. L counts besides how the gradient
    turns, which is most of it where a net has batch statistics. 1/L is short there, and 1/(c L) too long where the loss
    curves more on the way: this is the geometric mean of the two, from 1/L to 2/L.

    Where gradients jump however short a step is, at kinks such as ReLU's or with noise at each step, L has no bound,
    and steps by it alone would die out short of the solution. By M, the curvature over the whole way, they fall off as
    the root of their number. D is the curvature in what branches differ in, and noise that they share is not in it; it
    counts where s - mean s is above the rounding of y.

    A step that ends where the loss of a branch is above its mean over the points before is taken back: the next starts
    where that one began, with lr_k <= lr_(k-1) / 2. What losses rise is <s, grad_k + grad_(k-1)> / 2, by the trapezoid
    rule. Without this a solve may end on such a step, where the query gradient is large along what is steep, of which
    a few branch steps take little away.

    The first step is a probe, ``probe`` min(lr, ||y|| / ||grad||); the second may be as long as the curvature allows.
    Branches go on with the last step of their base, where that was solved in the same way, and need no probe. All
    branches of a task take the same steps, so that the differences between them stay clean. Needs no line search and
    no function values. Costs a gradient a step, the probe and those taken back included, and keeps 2 P numbers for each
    task and branch.

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
        none = torch.zeros_like(y[..., :1])
        return AdaptiveState(lr[:, None, None], (taken > 1)[:, None, None], None, none, none)

    def step_size(self, state: AdaptiveState) -> Tensor:
        return state.lr[:, 0, 0]

    def step(self, grad: Tensor, y: Tensor, state: AdaptiveState) -> tuple[Tensor, AdaptiveState]:
        moved, turned = state.moved, state.turned
        if state.way is None:
            lr, adapted, none = state.lr, state.adapted, torch.zeros_like(grad[..., :1])
            way = Way(y, grad, none, none, torch.ones_like(lr))
        else:
            step, change = y - state.way.point, grad - state.way.grad
            length, turn = norm(step), norm(change)
            unit = step / length  # NaN where a branch did not move
            moved, turned = moved.hypot(length), turned.hypot(torch.where(length > 0, turn, 0.0))
            along = total((unit * change).sum(-1, keepdim=True)) / turn
            size = torch.maximum(length / turn / along.clamp(ALONG, 1.0).sqrt(), HALF * moved / turned)
            size = torch.maximum(size, HALF * _apart(step, change, y))
            lr, adapted = _least(size, length, turn, state), torch.ones_like(state.adapted)
            way, too_far = _went(state.way, y, grad, unit, length)
            lr = torch.where(too_far, torch.minimum(lr, state.lr / 2), lr)
        lr = torch.where(lr > 0, lr, self._probe(way.grad, way.point))
        lr = forward_ad.unpack_dual(lr).primal  # of a step that branches share, a derivative over them sees nothing
        if self.lr is not None:
            lr = lr.clamp(max=self.lr)
        new = torch.addcmul(way.point, way.grad, lr, value=-1)
        return new, AdaptiveState(lr, adapted & (state.lr > 0), way, moved, turned)

    def _probe(self, grad: Tensor, y: Tensor) -> Tensor:
        """The first step size [T, 1, 1]; 0 where the gradient is."""
        size, slope = norm(y), norm(grad)
        reach = torch.where(size > 0, size, 1.0 if self.lr is None else torch.inf) / slope
        if self.lr is not None:
            reach = reach.clamp(max=self.lr)
        least = torch.where(slope > 0, self.probe * reach, torch.inf).amin(1, keepdim=True)
        return torch.where(least.isfinite(), least, 0.0)


def _apart(step: Tensor, change: Tensor, y: Tensor) -> Tensor:
    """1 / D [T, B, 1]; 0 where branches do not differ by more than rounding. Of a derivative over them, its own."""
    if y.shape[1] > 1:
        length, turn = (norm(one - one.mean(1, keepdim=True)) for one in (step, change))
        least = ROUNDING * torch.finfo(y.dtype).eps * norm(y)
    else:
        along, turned = (forward_ad.unpack_dual(one).tangent for one in (step, change))
        if along is None or turned is None:
            return torch.zeros_like(y[..., :1])
        length, turn, least = norm(along), norm(turned), torch.zeros_like(y[..., :1])
    return torch.where((length > least) & (turn > 0), length / turn, 0.0)


def _least(size: Tensor, length: Tensor, turn: Tensor, state: AdaptiveState) -> Tensor:
    """Returns the next step size [T, 1, 1]: the least of ``size`` [T, B, 1] over branches, and bounded by the last one.

    A branch that did not move says nothing about the curvature; where none did, the task keeps its step.
    """
    size = torch.where((length > 0) & (turn > 0), size, torch.inf).amin(1, keepdim=True)
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
