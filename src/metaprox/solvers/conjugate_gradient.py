"""Conjugate gradients, whose curvatures are differences of gradients."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from metaprox import checks
from metaprox.vectors.norms import norm, norm_here
from metaprox.vectors.shards import total

CURVED = 1e-3  # least cosine between p and H p; where H is positive definite it is at least 2 / sqrt(its condition)
GROWTH = 5.0  # by which a step is longer than its trial, or than lr, at most
ROUNDING = 4.0  # units in the last place of y: differences over shorter steps say nothing


@dataclass(frozen=True)
class ConjugateState:
    """The last trial, which went from z to y = z + size direction; ``size`` is [T, 1, 1].

    residual: the gradient at z [T, B, P], measured or extrapolated.
    """

    residual: Tensor
    direction: Tensor
    size: Tensor


@dataclass(frozen=True)
class ConjugateGradient:
    """Conjugate gradients at one gradient a step: each step is the trial that the next one puts right.

        s = <p, r> / <p, r - grad>,     z <- y + (s - 1) a p,     r <- r + s (grad - r),     a <- s a
        beta = max( 0, <r, r - r_before> / ||r_before||^2 ),      p <- -r + beta p,           y <- z + a p

    y = z + a p is the trial, grad its gradient, r that at z; s is the share of the trial after which the slope along p
    is 0. On a quadratic z is the iterate of conjugate gradients, and y is one step on, with the last one's a, so that
    each point is a good one to end at. The first step is -lr grad. All branches of a task have the same a and beta,
    from inner products over all of them together: the method for their problems side by side, by which the difference
    of two branches stays clean.

    Where the slope does not rise along p (negative curvature), or so little that p and H p are almost orthogonal, or
    the trial was within rounding of z, the trial stands and a step of -lr grad starts anew from there. s is at most
    5 max(1, lr / a). It is for branches, whose problem is nearly quadratic and starts close to its solution; far from
    one no descent is promised. The gradient's noise must be the same at all steps. Costs a gradient a step, and 2 P
    numbers for each task and branch.

    Args:
        lr: the first trial, and the step where there is no curvature; of the order of 1 / L. A larger one changes
            little from the second step on, one that is smaller by ten costs about two steps.

    Source: Hestenes & Stiefel, Methods of conjugate gradients for solving linear systems, J. Res. Natl. Bur. Stand. 49
    (1952); beta of Polak & Ribiere, Note sur la convergence de methodes de directions conjuguees (1969), cut at 0.
    """

    lr: float
    takes_shards: ClassVar[bool] = True

    def __post_init__(self) -> None:
        checks.settle(self, lr=checks.positive)

    def init(self, y: Tensor) -> ConjugateState | None:
        return None

    def step(self, grad: Tensor, y: Tensor, state: ConjugateState | None) -> tuple[Tensor, ConjugateState]:
        lr = grad.new_full((len(grad), 1, 1), self.lr)
        if state is None:
            return y.add(grad, alpha=-self.lr), ConjugateState(grad, -grad, lr)
        share, curved = _share(state, grad - state.residual, lr, y)
        residual = torch.lerp(state.residual, grad, share)  # grad itself where the share is 1
        beta = _primal(torch.where(curved, _polak_ribiere(state.residual, residual), 0.0))
        size = torch.where(curved, share * state.size, lr)
        direction = torch.addcmul(-residual, state.direction, beta)
        corrected = torch.addcmul(y, state.direction, (share - 1) * state.size)
        return torch.addcmul(corrected, direction, size), ConjugateState(residual, direction, size)


def _share(state: ConjugateState, turned: Tensor, lr: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Returns which share of the trial leads to the least value along it, and whether there is one [T, 1, 1].

    ``turned``: the gradient at y, where the trial ends, less that where it began. The share is 1 where there is none.
    """
    length, turn = _length(state.direction), _length(turned)
    unit = state.direction / torch.where(length > 0, length, 1.0)
    slope, rise = -_inner(unit, state.residual), _inner(unit, turned)
    seen = state.size * length > ROUNDING * torch.finfo(y.dtype).eps * _length(y)
    curved = seen & (slope > 0) & (rise > CURVED * turn) & (turn < torch.inf)
    most = GROWTH * (lr / state.size).clamp(min=1.0)
    share = torch.minimum(slope / torch.where(curved, rise, 1.0), most)
    return _primal(torch.where(curved, share, 1.0)), curved


def _polak_ribiere(before: Tensor, now: Tensor) -> Tensor:
    """Returns max(0, <now, now - before> / ||before||^2) [T, 1, 1], where ``before`` is not 0."""
    length = _length(before)
    scale = torch.where(length > 0, length, 1.0)
    return _inner(now / scale, (now - before) / scale).clamp(min=0.0)


def _length(vectors: Tensor) -> Tensor:
    """|| . || over all branches of a task: [T, B, P] -> [T, 1, 1]."""
    return norm_here(norm(vectors).mT)


def _inner(one: Tensor, other: Tensor) -> Tensor:
    """The inner product over all branches of a task: [T, B, P] -> [T, 1, 1]."""
    return total((one * other).sum((1, 2), keepdim=True))


def _primal(numbers: Tensor) -> Tensor:
    """Without a forward derivative: of what branches share, a derivative over them sees nothing."""
    return forward_ad.unpack_dual(numbers).primal
