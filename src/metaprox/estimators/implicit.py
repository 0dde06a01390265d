"""iMAML: the implicit meta-gradient by conjugate gradients on Hessian-vector products."""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from metaprox import checks
from metaprox.estimators.base import Estimator
from metaprox.estimators.error import BASE_STEPS, Seen, of_base, of_system
from metaprox.estimators.info import Info
from metaprox.estimators.result import Estimate, ratio
from metaprox.inner.proximal import proximal_solve, residual_at
from metaprox.losses.gradients import Gradients
from metaprox.losses.second_order import hessian_vector, mixed_product
from metaprox.problem import ProximalProblem
from metaprox.vectors.norms import norm


@dataclass(frozen=True)
class IMAML(Estimator):
    """Implicit MAML: g solves (H + lam I) g = lam v, with H = Hess fhat(y_K) and v = grad f(y_K).

    Exact where the base has converged and CG has. Needs second derivatives of the inner loss, but keeps no graph
    of the inner steps. ``info.branch_error`` is that of the system.

    Args:
        cg_steps: steps of conjugate gradients, each one Hessian-vector product.
        cg_tol: a task stops early once its residual relative to lam ||v|| is <= cg_tol. The others go on.
        damping: solve (H + (lam + damping) I) g = lam v instead. A bias, for ill-conditioned or indefinite H.

    Where a direction of negative curvature is met, CG stops for that task with what it has.

    Cost per task: K + 1 support gradients, 1 query gradient, and up to ``cg_steps`` Hessian-vector products.

    Source: Rajeswaran, Finn, Kakade & Levine, arXiv 1909.04630.
    """

    _: KW_ONLY
    cg_steps: int = 5
    cg_tol: float = 0.0
    damping: float = 0.0

    _differentiates_twice: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._check_base()
        checks.settle(self, cg_steps=checks.count, cg_tol=checks.nonnegative, damping=checks.nonnegative)

    def _check_problem(self, problem: ProximalProblem) -> None:
        checks.positive("lam", problem.lam, "IMAML differentiates a proximal solve, which needs a proximal term")

    def _evaluations_at_once(self) -> int:
        return 3  # of a gradient and its derivative

    def _estimate(self, gradients: Gradients, keep_adapted: bool) -> Estimate:
        stopping, lam = self._stopping(), gradients.lam
        base = proximal_solve(gradients, self.solver, stopping, self.on_nonfinite, watched=BASE_STEPS)
        _, norm_residual = residual_at(gradients, base.y, base.trail)
        query, shared = gradients.query_both(base.y, 0)
        shift = lam + self.damping
        z, left = conjugate_gradients(  # z = g / lam
            lambda p: hessian_vector(gradients, base.y, p, 0).add(p, alpha=shift),
            query.grad,
            self.cg_steps,
            self.cg_tol,
        )
        left = left.add(z, alpha=self.damping)  # v - (H + lam I) z
        info = Info.of(
            base,
            None,
            gradients.counts,
            base_residual=norm_residual.flatten(),
            gradient_ratio=lam * ratio(z, query.grad),
            linear_residual=ratio(left, query.grad),
            seen=Seen(
                lam,
                lam * norm(z).flatten(),
                **of_base(base.trail, gradients, base.y),
                **of_system(z, query.grad, left),
            ),
        )
        shared = shared - mixed_product(gradients, base.y, z, 0)
        return Estimate.of(base.y, lam * z, shared, query, info, base)


def conjugate_gradients(
    product: Callable[[Tensor], Tensor], right: Tensor, max_steps: int, tol: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Returns z with A z = right, from z = 0, all leading dimensions at once; and right - A z, by recursion.

    A problem stops once ||right - A z|| <= tol ||right||, or where <p, A p> is not positive. It is solved for a right
    side of unit length, whose squares are numbers in all units.
    """
    length = norm(right)
    r = p = right / torch.where(length > 0, length, 1.0)
    z = torch.zeros_like(right)
    square = _dot(r, r)
    limit = tol**2 * square
    for _ in range(max_steps):
        going = square > limit
        if not going.any():
            break
        q = product(p)
        curvature = _dot(p, q)
        going = going & (curvature > 0)
        alpha = torch.where(going, square / curvature, 0.0)
        z = z + alpha * p
        r = r - alpha * q
        new = _dot(r, r)
        p = torch.where(going, r + new / square * p, 0.0)
        square = torch.where(going, new, 0.0)
    return z * length, r * length


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1, keepdim=True)
