"""The perturbed inner problems: their gradients at y_0, where all of them start, and away from it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from metaprox.estimators.step import Lengths
from metaprox.inner.proximal import residual_at
from metaprox.inner.trail import Trail
from metaprox.losses.backend import Evaluation, Run, Step, Steps
from metaprox.losses.descent import descend
from metaprox.losses.gradients import Gradients
from metaprox.losses.memory import Memory
from metaprox.solvers.protocol import InnerSolver
from metaprox.vectors.norms import norm
from metaprox.vectors.rest import Away, Rest, Vector, add_to, whole
from metaprox.vectors.terms import LinearTerm


@dataclass(frozen=True)
class AtBase:
    """What is known at y_0, before any branch has moved: ``leave`` consumes it.

    y0 [T, 1, P]; residual: r = grad fhat(y_0) + lam (y_0 - x); v = grad f(y_0); their norms [T, 1, 1], and lengths
    where they are wanted. Where vectors rest elsewhere, r and v do, and y_0 where it is said so.
    """

    y0: Vector
    residual: Vector
    v: Vector
    norm_residual: Tensor
    norm_v: Tensor
    lengths: Lengths | None

    @classmethod
    def of(
        cls, gradients: Gradients, y0: Tensor, *, measured: bool, trail: Trail | None = None
    ) -> tuple["AtBase", Evaluation, Tensor]:
        """Returns it, f at y_0 with ||v|| in the gradient's place, and grad_w f. Costs a gradient of each loss.

        ``trail``: of the base solve, which is told of r and holds no vector any more when f is evaluated.
        """
        found, norm_residual = residual_at(gradients, y0, trail)
        residual, lengths = gradients.rest.away(found), None
        del found
        if measured:
            lam, coarse = gradients.lam, gradients.coarse
            moved = gradients.displacement(y0)  # which nothing else holds
            lengths = Lengths.of(y0, moved, residual, lam, coarse, norm_residual)
            del moved
        query, shared = gradients.query_both(y0, 0)
        norm_v = norm(query.grad)
        if lengths is not None:
            lengths = lengths.or_else(norm_v / gradients.lam)
        at_base = cls(y0, residual, gradients.rest.away(query.grad), norm_residual, norm_v, lengths)
        return at_base, Evaluation(norm_v, query.value, query.metrics), shared

    def leave(
        self, tilt: Tensor, parts: Sequence[slice], *, lam: float | Tensor, corrected: bool, predict: bool
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Returns where the branches in each part start, and their gradients there where known; ``tilt``: n_j nu.

        They start at y_0, or at y_0 - (n_j nu/lam) v. Their gradients at y_0 are r + n_j nu v, without r where the
        residual is subtracted; the last one takes over the memory of r.
        """
        y0, residual, v = whole(self.y0), whole(self.residual), whole(self.v)
        if predict:
            return [y0 - (tilt[:, part] / lam) * v for part in parts], []
        starts = [y0.expand(-1, part.stop - part.start, -1) for part in parts]
        if corrected:
            return starts, [tilt[:, part] * v for part in parts]
        *others, last = (tilt[:, part] for part in parts)
        first = [torch.addcmul(residual, one, v) for one in others]
        add = residual.addcmul_ if others else residual.addcmul
        return starts, [*first, add(last, v)]

    def resting(self, rest: Rest) -> "AtBase":
        """The same with y_0 at rest too."""
        return replace(self, y0=rest.away(whole(self.y0)))

    def begin(
        self, tilt: Tensor, *, lam: float | Tensor, corrected: bool, predict: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Returns what ``leave`` does of one branch, in vectors of its own, where all of this is away."""
        v = whole(self.v)
        if predict:
            v.mul_(tilt / lam)
            return whole(self.y0).sub_(v), None
        first = v.mul_(tilt) if corrected else whole(self.residual).addcmul_(tilt, v)
        del v
        return whole(self.y0), first


@dataclass(frozen=True)
class Branches:
    """What is the same at all steps of the branches that are solved.

    nodes n_j and weights a_j. nu [T, 1, 1]. tilt: n_j nu [T, B, 1], the weight of the query loss. linear: the linear
    term of their problems. y0: where the difference is to y_0 itself, as there is a single branch.
    """

    nodes: tuple[float, ...]
    weights: tuple[float, ...]
    nu: Tensor
    tilt: Tensor
    linear: LinearTerm | None
    y0: Vector | None

    @classmethod
    def of(
        cls,
        at_base: AtBase,
        nodes: tuple[float, ...],
        weights: tuple[float, ...],
        nu: Tensor,
        *,
        center: bool,
        corrected: bool,
    ) -> "Branches":
        """``center``: v stays as it is at y_0, at all steps. ``corrected``: r is subtracted at all steps."""
        tilt, terms = nu.new_tensor(nodes)[:, None] * nu, []
        if center:
            terms.append((tilt, whole(at_base.v)))
        if corrected:
            terms.append((-torch.ones_like(tilt), whole(at_base.residual)))
        y0, linear = at_base.y0 if len(nodes) == 1 else None, LinearTerm(terms) if terms else None
        if linear is not None and y0 is not None:  # of a single branch u is a vector like those that it is the sum of
            linear = LinearTerm([(torch.ones_like(tilt), linear.total())])
        return cls(nodes, weights, nu, tilt, linear, y0)

    def per_nu(self, difference: Tensor) -> Tensor:
        """``difference`` / nu in place; 0 where nu is, because branches are then alike."""
        return difference.div_(torch.where(self.nu > 0, self.nu, torch.inf))

    def difference(self, parts: Iterable[Vector], *, consumed: bool = False) -> Tensor:
        """Returns sum_j a_j y_j [T, 1, P], as differences to the first branch (of one: to y_0): sum_j a_j is 0.

        ``consumed``: whether the points may be written on, so that no vector is made. Of those that are away one comes
        back at a time.
        """
        points = (point for part in parts for point in _by_branch(part))
        first = next(points) if self.y0 is None else self.y0
        total: Tensor | None = None
        for point, weight in zip(points, self.weights[self.y0 is None :], strict=True):
            own = whole(point)
            moved = add_to(own, first, -1.0) if consumed or own is not point else own - whole(first)
            total = moved.mul_(weight) if total is None else total.add_(moved, alpha=weight)
            del own, moved
        assert total is not None
        return total

    def derivative(self, parts: Iterable[Vector], lam: float | Tensor, *, consumed: bool = False) -> Tensor:
        """Returns -(lam/nu) sum_j a_j y_j [T, 1, P]; ``consumed`` as for the difference."""
        return self.per_nu(self.difference(parts, consumed=consumed).mul_(-lam))

    @property
    def queried(self) -> Tensor:
        """The weights [T, b, 1] of f where it is evaluated at all steps: not at node 0, which comes first."""
        return self.tilt[:, 1:] if self.nodes[0] == 0 else self.tilt

    def shared_difference(self, gradients: Gradients, parts: Sequence[Vector]) -> Tensor:
        """sum_j a_j grad_w fhat(y_j) [T, 1, W], with the same noise at every point. Costs a gradient for each."""
        if not gradients.shares:
            return self.nu[..., :0]
        weights = self.nu.new_tensor(self.weights)[:, None]
        each = torch.cat([gradients.support_shared(whole(part), 0) for part in parts], 1)
        total = (weights * each).sum(1, keepdim=True)
        return total if self.y0 is None else total - gradients.support_shared(whole(self.y0), 0)


@dataclass(frozen=True)
class Problems:
    """The branches' problems away from y_0, as the loop wants them.

    query_moves: whether grad f is taken where the branches are, and not v at all steps. noisy: whether each step has a
    noise of its own.
    """

    branches: Branches
    gradients: Gradients
    solver: InnerSolver
    query_moves: bool
    noisy: bool

    @cached_property
    def memory(self) -> Memory | None:
        """Of their solve, if it has one."""
        return self.gradients.memory(self.solver)

    def gradient(self, y: Tensor, step: int, where: slice) -> Tensor:
        """At the points y [T, b, P] of the branches ``where``. Costs a gradient of each loss, f's not at node 0."""
        branches, noise, memory = self.branches, self._noise(step), self.memory
        grad = self.gradients.proximal(y, noise, where, linear=branches.linear, memory=memory)
        if not self._queries(where):
            return grad
        tilt, part, point = branches.tilt[:, where], grad, y
        if branches.nodes[where][0] == 0:
            tilt, part, point = tilt[:, 1:], grad[:, 1:], y[:, 1:]
        self.gradients.add_query(part, tilt, point, noise, memory)
        return grad

    def fused(self, y: Tensor, step: int, where: slice) -> Step | None:
        """That and the step along it in one, where that can be had."""
        branches, noise = self.branches, self._noise(step)
        if self.memory is not None:
            tilt = branches.tilt[0, where.start, 0] if self._queries(where) else None
            return descend(self.gradients, self.memory, y, noise, where, linear=branches.linear, tilt=tilt)
        if self.query_moves:
            return None
        return self.gradients.step(self.solver, y, noise, where, linear=branches.linear)

    def in_one(self, run: Run) -> Steps | None:
        """Several steps of all branches in one; each has the same noise, as losses draw none."""
        tilt = self.branches.queried if self.query_moves else None
        return self.gradients.steps(run, linear=self.branches.linear, tilt=tilt)

    def derivative(self, parts: Sequence[Vector]) -> Tensor:
        """Returns -(lam/nu) sum_j a_j y_j [T, 1, P], where the solve's points are its own in their memory."""
        own = self.memory is not None and self.memory.size is not None
        return self.branches.derivative(parts, self.gradients.lam, consumed=own)

    def _noise(self, step: int) -> int:
        return step if self.noisy else 0

    def _queries(self, where: slice) -> bool:
        """Whether f is evaluated at one of these branches: not at node 0, which comes first."""
        return self.query_moves and any(self.branches.nodes[where])


def _by_branch(part: Vector) -> Iterable[Vector]:
    """What is away is one."""
    return [part] if isinstance(part, Away) else [part[:, j : j + 1] for j in range(part.shape[1])]
