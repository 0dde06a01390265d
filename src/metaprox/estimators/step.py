"""The step of the difference where none is given: formula (5) of docs/method.md, which no change of units changes."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from metaprox.estimators.stencil import Stencil
from metaprox.vectors.norms import norm
from metaprox.vectors.rest import Vector, add_to

# eps at most LONGEST times the distance that the base moved, and nu ||v|| at most SHARE of ||grad fhat(y_0)|| for
# "loss": by `metaprox reproduce defaults`.
LONGEST, SHARE = 2.0, 0.175
REDUCTION = 0.01  # to which branches reduce their gradient, where the tolerance asks for no more


@dataclass(frozen=True)
class Lengths:
    """What the base solve says of lengths in parameter space, each [T, 1, 1]; u is the machine epsilon.

    moved: D = ||y_0 - x||, or sqrt(u) ||y_0|| where that is longer: what is shorter is next to rounding.
    size: the larger of ||y_0|| and D, which rounding is relative to; and D u' / u more in losses that are computed with
        a larger machine epsilon u', as in autocast, for they round gradients, which are of the order of lam D.
    left: ||r|| / lam, with r the gradient left at y_0; for a convex inner loss y_0 is no farther from its solution.
    pull: ||grad fhat(y_0)|| / lam.
    point, way: ||y_0|| and ||y_0 - x|| as they are, where they were taken.
    """

    moved: Tensor
    size: Tensor
    left: Tensor
    pull: Tensor
    point: Tensor | None = None
    way: Tensor | None = None

    @classmethod
    def of(
        cls,
        y0: Tensor,
        displacement: Tensor,
        residual: Vector,
        lam: float | Tensor,
        coarse: float = 0.0,
        length: Tensor | None = None,
    ) -> "Lengths":
        """Returns it from y_0, y_0 - x and r [T, 1, P]; ``displacement`` is written on.

        coarse: u', or 0 where it is u. length: ||r||, where it is known.
        """
        point, way, left = norm(y0), norm(displacement), (norm(residual) if length is None else length) / lam
        pull = norm(add_to(displacement.mul_(-lam), residual)) / lam
        moved = torch.maximum(way, torch.finfo(point.dtype).eps ** 0.5 * point)
        moved = torch.where(moved > 0, moved, left)  # x = y_0 = 0
        size = torch.maximum(point, moved)
        if coarse:
            size = size + coarse / torch.finfo(point.dtype).eps * moved
        return cls(moved, size, left, pull, point, way)

    def or_else(self, length: Tensor) -> "Lengths":
        """The same with ``length`` where there is none: x = y_0 = 0, and no gradient is left there."""
        moved = torch.where(self.moved > 0, self.moved, length)
        return replace(self, moved=moved, size=torch.maximum(self.size, moved))

    def least(self, rule: Stencil) -> Tensor:
        """(u size)^(1/(p+1)) D^(p/(p+1)), where truncation, (eps/D)^p, is of the order of rounding, u size / eps."""
        precision = torch.finfo(self.moved.dtype).eps * (self.size / self.moved)
        return self.moved * precision ** (1 / (rule.order + 1))

    def eps(self, rule: Stencil, *, query_moves: bool) -> Tensor:
        """Returns D min(LONGEST, (||r||/(lam D))^(1/p)): truncation is then of the order of what the base left over.

        Where the query loss itself enters the branches (``query_moves``), its gradient is at most SHARE of the support
        loss's: at -nu they minimize fhat - nu f, which has a minimum only while f is the smaller one. Never below
        ``least``.
        """
        eps = self.moved * ((self.left / self.moved) ** (1 / rule.order)).clamp(max=LONGEST)
        if query_moves:
            eps = torch.minimum(eps, SHARE * self.pull)
        return torch.maximum(eps, self.least(rule))

    def tolerance(self, tol: float, lam: float, eps: Tensor) -> Tensor:
        """Returns it for the branches [T], whose gradients begin at lam eps, as ``tol`` is for the base's lam D.

        So that both end as accurate, relative to how far they go; and branches to REDUCTION of their start at least.
        """
        return torch.where(eps > 0, eps * (tol / self.moved).clamp(max=REDUCTION * lam), tol).flatten()


def nu_of(
    rule: Stencil,
    lam: float | Tensor,
    norm_v: Tensor,
    lengths: Lengths | None,
    *,
    query_moves: bool,
    nu: float | Tensor | None = None,
    eps: float | Tensor | None = None,
) -> Tensor:
    """The step of the difference [T, 1, 1]: ``nu``, that of a given ``eps``, or by ``lengths`` that of the default."""
    if nu is not None:
        return torch.zeros_like(norm_v) + nu
    if eps is not None:
        return weight(eps, lam, norm_v)
    assert lengths is not None
    return weight(lengths.eps(rule, query_moves=query_moves), lam, norm_v)


def weight(eps: Tensor | float, lam: float | Tensor, norm_v: Tensor) -> Tensor:
    """nu = lam eps / ||v|| [T, 1, 1]; 0 where v = 0, and with it every derivative of y_nu at nu = 0."""
    largest = torch.finfo(norm_v.dtype).max / 16  # of subnormal v, whose direction is all that is wanted
    return torch.where(norm_v > 0, (lam * eps / norm_v).clamp(max=largest), 0.0)
