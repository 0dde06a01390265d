"""What the estimators share whose branches are perturbed proximal solves from y_0."""

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from metaprox import checks
from metaprox.estimators.base import Estimator
from metaprox.estimators.result import finite_rows
from metaprox.inner.failures import failure_at_end
from metaprox.losses.gradients import Gradients
from metaprox.problem import ProximalProblem
from metaprox.solvers.protocol import InnerSolver, check_solver
from metaprox.solvers.stability import check_first_step


@dataclass(frozen=True)
class Branched(Estimator):
    """Settings of the branches. The subclasses' docstrings say more of what they do.

    Args:
        perturb: where nu enters, the query loss or the centre of the proximal term (default: the centre).
        branch_solver: solver of the branches (default: ``solver``).
        branch_steps: steps of each branch (default: ``steps`` or ``max_steps``).
        residual_correction: make y_0 exactly stationary for the branches.
        start: where branches start: "base", y_0, or "predictor", the solution to first order where fhat is flat.
    """

    _: KW_ONLY
    perturb: Literal["loss", "center"] | None = None
    branch_solver: InnerSolver | None = None
    branch_steps: int | None = None
    residual_correction: bool = False
    start: Literal["base", "predictor"] = "base"

    def __post_init__(self) -> None:
        self._check_base()
        if self.perturb is None:
            object.__setattr__(self, "perturb", self.perturbs_by_default(vars(self)))
        checks.settle(self, perturb=checks.one_of("loss", "center"), start=checks.one_of("base", "predictor"))
        checks.settle(self, branch_solver=checks.optional(check_solver), residual_correction=checks.switch)
        check_first_step(self._solver_of_branches, self.solver)
        least = 0 if self.start == "predictor" else 1
        checks.settle(self, branch_steps=checks.optional(partial(checks.count, least=least)))

    @classmethod
    def perturbs_by_default(cls, given: Mapping[str, Any]) -> str:
        """``perturb`` where it is not among the settings that are given."""
        return "center" if given.get("nu") is None else "loss"

    def _check_problem(self, problem: ProximalProblem) -> None:
        name = type(self).__name__
        checks.positive("lam", problem.lam, f"{name} differentiates a proximal solve, which needs a proximal term")

    def _solves(self) -> list[tuple[str, InnerSolver, int]]:
        name = "solver" if self.branch_solver is None else "branch_solver"
        base = ("solver", self.solver, self._stopping().max_steps)
        return [base, (name, self._solver_of_branches, self._steps_of_branches)]

    @property
    def _solver_of_branches(self) -> InnerSolver:
        return self.branch_solver or self.solver

    @property
    def _steps_of_branches(self) -> int:
        return self._stopping().max_steps if self.branch_steps is None else self.branch_steps

    def _require_finite(self, gradients: Gradients, *vectors: Tensor) -> None:
        """Raise NonFiniteError, naming the first task, unless what branches start from [T, 1, ...] is finite."""
        if self.on_nonfinite == "raise":
            finite = torch.stack([finite_rows(vector) for vector in vectors]).all(0)
            failure = failure_at_end(finite, self.solver, self._purpose("meta-gradient", gradients))
            if failure is not None:
                raise failure
