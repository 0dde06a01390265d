"""How much of g is the truncation of the difference, by one further gradient a task: how the branches' bend."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from metaprox.errors import InputError
from metaprox.estimators.branches import AtBase, Branches, Problems
from metaprox.estimators.stencil import Scheme
from metaprox.losses.backend import Run, Step
from metaprox.vectors.norms import inner, norm
from metaprox.vectors.rest import add_weighted, whole

OF_LOSS, OF_CENTER = 1.0, 3.0  # c of c theta^2; fixed before `metaprox reproduce calibration`


@dataclass(frozen=True)
class Further:
    """One more point in line with the branches', sum_j point_j y_j, of the problem at ``node``.

    The second difference of gradients is weight times the one there, and sum_j bend_j grad_j.
    """

    node: float
    point: tuple[float, ...]
    weight: float
    bend: tuple[float, ...]


FURTHER: dict[Scheme, Further] = {
    "symmetric": Further(0.0, (0.5, 0.5), -2.0, (1.0, 1.0)),  # mid-way
    "forward": Further(-1.0, (2.0, -1.0), 1.0, (-2.0, 1.0)),  # as far on the other side
}


class Bend:
    """d = sum_j a_j y_j and the gradients' own first and second difference, where the branches were evaluated last.

        theta = ||grad_+ + grad_- - 2 grad_0|| / (2 kappa ||d||)
        kappa = max(lam, |<d, sum_j a_j grad_j - nu v>| / <d, d>)

    is ||f''' d d / 2|| by ||(H + lam I) d||, as it is for the branches' problems: with "loss" nu (Hess f) d counts too.
    Four vectors of P numbers a task; a support gradient for theta, and one of f where the node is not 0 and f moves.

    Args:
        solved: the branches of the solve. further: those of the one more point.
        scheme: "forward" or "symmetric".
        v: grad f(y_0) [T, 1, P].
        since: the first step at which the branches may be evaluated last.
    """

    def __init__(self, solved: Problems, further: Problems, scheme: Scheme, v: Tensor, since: int) -> None:
        self.solved, self.further, self.v, self.since = solved, further, v, since
        self.rule, own = FURTHER[scheme], -len(solved.branches.nodes)
        self.step: int | None = None  # of the last evaluation; None where the branches never left y_0
        self._coefficients = (solved.branches.weights, self.rule.point[own:], self.rule.bend[own:])
        self._sums: list[Tensor | None] = [None] * 4

    @classmethod
    def of(cls, solved: Problems, at_base: AtBase, scheme: Scheme, since: int) -> "Bend":
        """From what is known at y_0."""
        own, node = solved.branches, FURTHER[scheme].node
        center, corrected = not solved.query_moves, not solved.noisy
        further = Branches.of(at_base, (node,), (1.0,), own.nu, center=center, corrected=corrected)
        return cls(solved, replace(solved, branches=further), scheme, whole(at_base.v), since)

    def gradient(self, y: Tensor, step: int, where: slice) -> Tensor:
        """That of the solve, watched."""
        grad = self.solved.gradient(y, step, where)
        self._see(y, grad, step, where)
        return grad

    def fused(self, y: Tensor, step: int, where: slice) -> Step | None:
        """That of the solve, watched."""
        if self.solved.memory is not None and step >= self.since:
            return None  # for ``gradient``, which is seen
        taken = self.solved.fused(y, step, where)
        if taken is not None and taken.grad is not None:
            self._see(y, taken.grad, step, where)
        return taken

    def in_one(self, run: Run) -> None:
        """Nothing: the last step is watched, and those before lead to it."""

    def _see(self, y: Tensor, grad: Tensor, step: int, where: slice) -> None:
        if step < self.since:
            return
        weights, point, bend = self._coefficients
        sums: list[Tensor | None] = self._sums if where.start else [None] * 4
        terms = ((y, weights), (y, point), (grad, weights), (grad, bend))
        self.step = step
        self._sums = [
            add_weighted(total, vectors, own[where]) for total, (vectors, own) in zip(sums, terms, strict=True)
        ]

    def theta(self) -> Tensor:
        """Returns it [T], 0 where the branches have not moved."""
        nothing = torch.zeros_like(self.v[:, 0, 0])
        if self.step is None:
            return nothing
        way, point, first, bend = (total for total in self._sums if total is not None)
        y0, nu, lam = self.solved.branches.y0, self.solved.branches.nu, self.solved.gradients.lam
        if y0 is not None:
            way, point = way - whole(y0), point.add(whole(y0), alpha=self.rule.point[0])
        bend.add_(self.further.gradient(point, self.step, slice(0, 1)), alpha=self.rule.weight)
        length = norm(way).flatten()
        curvature = (inner(first.addcmul_(nu, self.v, value=-1), way, length) / length).abs().clamp(min=lam)
        return torch.where(length > 0, norm(bend).flatten() / curvature / length / 2, nothing)


def truncation(theta: Tensor, order: int, *, center: bool) -> Tensor:
    """Relative to ||g||, for differences of order 1 and 2 [T]."""
    return theta if order == 1 else (OF_CENTER if center else OF_LOSS) * theta.square()


def check_known(scheme: str, estimate_error: bool) -> None:
    """Raise InputError where truncation can't be said."""
    if scheme not in FURTHER:
        raise InputError(
            f"estimate_truncation=True is for scheme='symmetric' and 'forward': of scheme={scheme!r} no estimate of "
            "the truncation is known that is right within a factor; info.truncation_error is NaN without it"
        )
    if not estimate_error:
        raise InputError("estimate_truncation=True is a part of the error that estimate_error=False switches off")
