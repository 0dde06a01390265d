"""The derivative that FO-B-MAML's difference approximates, by forward mode through the same solve."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from metaprox.estimators.branched import Branched
from metaprox.estimators.error import BASE_STEPS, linear_residual, of_base, of_difference, of_last_steps
from metaprox.estimators.info import Info
from metaprox.estimators.result import Estimate, ratio
from metaprox.inner.progress import Solution
from metaprox.inner.proximal import proximal_solve, residual_at
from metaprox.inner.solve import solve
from metaprox.losses.gradients import Gradients
from metaprox.losses.second_order import hessian_vector, mixed_product
from metaprox.solvers.protocol import check_differentiable, resumed
from metaprox.vectors.norms import norm


@dataclass(frozen=True)
class Tangent(Branched):
    """g = -lam d y_nu / d nu at nu = 0, differentiated through the branch solve in forward mode.

    It is the limit of ``FOBMAML`` for nu -> 0 with the same settings: no truncation error, no rounding divided by
    nu, memory that does not grow with the steps. But it needs Hessian-vector products: a reference, not a
    first-order method. Without residual correction the solver is differentiated too, in forward mode, and its
    step must be made of differentiable operations. With it the branch problem is linear in nu, and the solver is
    run on (H + lam I) z + v = 0; this is the limit for every solver that commutes with scaling, so for all but Adam.

    Args:
        perturb, branch_solver, branch_steps, residual_correction, start: as for ``FOBMAML``.

    Cost per task, with J branch steps: K + 1 + J support gradients, J Hessian-vector products, and 1 query gradient
    ("center") or 1 + J ("loss"). With residual correction K + 1, J - 1 from y_0, and 1.

    Raises:
        InputError: an argument is out of range, or lam is 0. NonFiniteError: a solve overflowed.
    """

    _differentiates_twice: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.residual_correction:
            check_differentiable(self._solver_of_branches, "Tangent without residual correction")

    def _evaluations_at_once(self) -> int:
        return 3  # of a gradient and its derivative

    def _estimate(self, gradients: Gradients, keep_adapted: bool) -> Estimate:
        stopping = self._stopping()
        base = proximal_solve(gradients, self.solver, stopping, self.on_nonfinite, watched=BASE_STEPS)
        y0, lam = base.y, gradients.lam
        residual, norm_residual = residual_at(gradients, y0, base.trail)
        query, shared = gradients.query_both(y0, 0)
        self._require_finite(gradients, residual, query.grad)
        start = query.grad * (-1 / lam if self.start == "predictor" else 0.0)
        if self.residual_correction:
            branch = self._solve_linear(gradients, base, query.grad, start)
            end, tangent = y0, branch.y
        else:
            branch, tangent = self._solve_dual(gradients, base, query.grad, start)
            end = branch.y
        g = -lam * tangent
        info = Info.of(
            base,
            branch,
            gradients.counts,
            base_residual=norm_residual.flatten(),
            gradient_ratio=ratio(g, query.grad),
            nu=torch.zeros_like(y0[:, 0, 0]),
            **self._judged(gradients, base, branch, query.grad, g),
        )
        shared = shared + mixed_product(gradients, end, tangent, 0)
        return Estimate.of(base.y, g, shared, query, info, base, branch)

    def _judged(self, gradients: Gradients, base: Solution, branch: Solution, v: Tensor, g: Tensor) -> dict[str, Any]:
        """What is seen of the error of g [T, 1, P]; of a solver that was differentiated nothing is."""
        length, norm_v, one = norm(g).flatten(), norm(v).flatten(), torch.ones_like(g[:, 0, 0])
        seen = of_difference(gradients.lam, length, of_base(base.trail, gradients, base.y), branch, one)
        seen = replace(seen, per_nu=0 * seen.per_nu)  # nothing is divided by nu
        return {"linear_residual": linear_residual(branch.trail, norm_v, one), "seen": seen}

    def _solve_linear(self, gradients: Gradients, base: Solution, v: Tensor, start: Tensor) -> Solution:
        y0 = base.y

        def gradient(z: Tensor, step: int) -> Tensor:
            if step == 0 and self.start == "base":
                return v  # z is 0
            return hessian_vector(gradients, y0, z, 0).add(z, alpha=gradients.lam).add(v)

        solver, steps = gradients.for_parameters(self._solver_of_branches), self._steps_of_branches
        return solve(
            gradient,
            start,
            solver,
            steps,
            trail=of_last_steps((1.0,), solver, steps),
            begin=resumed(solver, self.solver, base.step_sizes),
            purpose=self._purpose("branch solve", gradients),
        )

    def _solve_dual(self, gradients: Gradients, base: Solution, v: Tensor, start: Tensor) -> tuple[Solution, Tensor]:
        solver = gradients.for_parameters(self._solver_of_branches)

        def gradient(dual: Tensor, step: int) -> Tensor:
            """The gradient of the branch problem at nu = 0, and its derivative along the solution's."""
            y, tangent = forward_ad.unpack_dual(dual)
            grad = gradients.proximal(y, step)
            turned = hessian_vector(gradients, y, tangent, step).add(tangent, alpha=gradients.lam)
            tilt = v if self.perturb == "center" else gradients.query(y, step).grad
            return forward_ad.make_dual(grad, turned + tilt)

        with forward_ad.dual_level():
            branch = solve(
                gradient,
                forward_ad.make_dual(base.y, start),
                solver,
                self._steps_of_branches,
                begin=resumed(solver, self.solver, base.step_sizes),
                purpose=self._purpose("branch solve", gradients),
            )
            y, tangent = forward_ad.unpack_dual(branch.y)
            sizes = forward_ad.unpack_dual(branch.step_sizes).primal
        return replace(branch, parts=(y,), step_sizes=sizes), tangent
