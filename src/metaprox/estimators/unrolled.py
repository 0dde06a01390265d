"""MAML: differentiation through the unrolled inner solver."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from metaprox.backends import Evaluation
from metaprox.errors import InputError
from metaprox.estimators.base import ChunkResult, Estimator, Info
from metaprox.gradients import Gradients
from metaprox.problem import ProximalProblem
from metaprox.solve import Solution, check_finite, step_size
from metaprox.solvers.protocol import check_differentiable


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

    def check(self, problem: ProximalProblem) -> None:
        return None

    def _evaluations_held(self) -> int:
        assert self.steps is not None
        return 2 * self.steps + 1  # all steps' graphs, and those of their gradients

    def _estimate(self, gradients: Gradients, keep_adapted: bool) -> ChunkResult:
        x = gradients.start_at_x()
        tasks = len(x)
        out = gradients.through(self._unrolled(gradients.lam), x)
        assert self.steps is not None  # __post_init__ has checked
        gradients.counts.hessian_vector_products += tasks * self.steps
        records = out.metrics["records"]
        check_finite(records["norms"].movedim(-1, 0), self.solver, self.steps, "base solve", gradients.start)
        taken = torch.full((tasks,), self.steps, device=x.device)
        base = Solution((records["y"],), None, taken, records["sizes"].squeeze(1))
        info = Info.of_base(base, gradients.counts)
        query = Evaluation(out.grad, out.value, out.metrics["metrics"])
        size = x.shape[-1]
        return ChunkResult.of(base.y, out.grad[..., :size], out.grad[..., size:], query, info, gradients.start)

    def _unrolled(self, lam: float) -> Callable[..., tuple[Tensor, dict[str, Tensor]]]:
        def solve(x: Tensor, gradient: Callable[[Tensor, int], Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
            y = x[None, None]
            state = self.solver.init(y)
            norms, sizes = [], []
            assert self.steps is not None
            for step in range(self.steps):
                grad = gradient(y[0, 0], step) + lam * (y - x)
                new, state = self.solver.step(grad, y, state)
                norms.append(torch.linalg.vector_norm(grad.detach(), dim=-1)[0])
                sizes.append(step_size(self.solver, new.detach(), y.detach(), norms[-1][None]))
                y = new
            y = y[0, 0]
            return y, {"y": y.detach(), "norms": torch.cat(norms), "sizes": torch.cat(sizes)}

        return solve
