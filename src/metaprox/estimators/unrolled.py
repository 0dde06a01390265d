"""MAML: differentiation through the unrolled inner solver."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from metaprox.errors import InputError
from metaprox.estimators.base import Estimator
from metaprox.estimators.info import Info
from metaprox.estimators.result import Estimate
from metaprox.inner.failures import failure_of
from metaprox.inner.progress import Solution
from metaprox.losses.backend import Evaluation
from metaprox.losses.gradients import Gradients
from metaprox.losses.second_order import gradient_through
from metaprox.problem import ProximalProblem
from metaprox.solvers.protocol import check_differentiable, step_size_of
from metaprox.vectors.norms import norm


@dataclass(frozen=True)
class MAML(Estimator):
    """MAML: the exact gradient of f_i(y_K(x)), through all K steps of the inner solver.

    y_K is what ``steps=K`` steps of ``solver`` reach from x on fhat(y) + (lam/2) ||y - x||^2; with lam = 0 this is
    plain MAML. Any solver whose step is made of differentiable operations will do. Needs second derivatives of the
    inner loss, and memory for the graphs of all K steps (of all tasks of a chunk under vmap).

    Cost per task: K support gradients and 1 query gradient, and the backward pass through them, which costs
    about as much as K Hessian-vector products; these are what the counts say.

    Raises:
        InputError: a tolerance instead of a number of steps, or a solver that can't be differentiated.

    Source: Finn, Abbeel & Levine, arXiv 1703.03400.
    """

    _differentiates_twice: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._check_base()
        if self.steps is None:
            raise InputError(f"MAML differentiates a fixed number of steps: give steps=K, not tol={self.tol!r}")
        check_differentiable(self.solver, "MAML")

    def _check_problem(self, problem: ProximalProblem) -> None:
        return None

    def _evaluations_at_once(self) -> int:
        assert self.steps is not None
        return 2 * self.steps + 1  # all steps' graphs, and those of their gradients

    def _estimate(self, gradients: Gradients, keep_adapted: bool) -> Estimate:
        x = gradients.start_at_x()
        tasks = len(x)
        out = gradient_through(gradients, self._unrolled(gradients.lam), x)
        assert self.steps is not None  # __post_init__ has checked
        gradients.counts.hessian_vector_products += tasks * self.steps
        base = self._solution(gradients, **out.metrics["records"])
        query = Evaluation(out.grad, out.value, out.metrics["metrics"])
        grad, shared = out.grad.split([x.shape[-1], out.grad.shape[-1] - x.shape[-1]], -1)
        return Estimate.of(base.y, grad, shared, query, Info.of(base, None, gradients.counts), base)

    def _solution(self, gradients: Gradients, y: Tensor, norms: Tensor, sizes: Tensor) -> Solution:
        """From y_K [T, 1, P], and the gradients' norms and the step sizes [T, 1, K]. Raises as a solve does."""
        assert self.steps is not None
        by_step = norms.movedim(-1, 0)
        failure = failure_of(by_step, self.solver, self.steps, self._purpose("base solve", gradients))
        if failure is not None and self.on_nonfinite == "raise":
            raise failure
        finite = by_step.isfinite().all(-1).all(0)
        taken = torch.full_like(finite, self.steps, dtype=torch.int64)
        return Solution((y,), None, taken, sizes.squeeze(1), torch.ones_like(finite), finite, failure)

    def _unrolled(self, lam: float) -> Callable[..., tuple[Tensor, dict[str, Tensor]]]:
        def solve(x: Tensor, gradient: Callable[[Tensor, int], Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
            y = x[None, None]
            state, size = self.solver.init(y), step_size_of(self.solver)
            norms, sizes = [], []
            assert self.steps is not None
            for step in range(self.steps):
                grad = gradient(y[0, 0], step) + lam * (y - x)
                new, state = self.solver.step(grad, y, state)
                norms.append(norm(grad.detach()).squeeze(-1)[0])
                sizes.append(size(state, new.detach(), y.detach(), norms[-1][None]))
                y = new
            y = y[0, 0]
            return y, {"y": y.detach(), "norms": torch.cat(norms), "sizes": torch.cat(sizes)}

        return solve
