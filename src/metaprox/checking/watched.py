"""An estimator's solves, watched: where they started and ended, and their last steps."""

from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from metaprox.call import Call
from metaprox.estimators import FOBMAML, Estimator, Info
from metaprox.estimators.branched import Branched
from metaprox.estimators.result import ChunkResult
from metaprox.solvers.protocol import InnerSolver, Views, for_parameters


@dataclass
class Record:
    """Of one solve: the points [B, P] before its last step and after it; None where it took none."""

    before: Tensor | None = None
    after: Tensor | None = None


@dataclass(frozen=True)
class Watched:
    """``solver``, which leaves a record of the solve of one task, with all its branches together.

    It promises no relative step, with which its own would not be called.
    """

    solver: InnerSolver
    record: Record = field(default_factory=Record)

    @property
    def differentiable(self) -> bool:
        return getattr(self.solver, "differentiable", True)

    def for_parameters(self, views: Views) -> InnerSolver:
        return Watched(for_parameters(self.solver, views), self.record)

    def init(self, y: Tensor) -> Any:
        return self.solver.init(y)

    def step(self, grad: Tensor, y: Tensor, state: Any) -> tuple[Tensor, Any]:
        new, state = self.solver.step(grad, y, state)
        self.record.before, self.record.after = y[0].detach(), new[0].detach()
        return new, state


@dataclass(frozen=True)
class Run:
    """One task's y_0 [P], meta-gradient g [N] and info, and how the estimator came to them.

    branches: empty for estimators without branches.
    """

    y0: Tensor
    g: Tensor
    info: Info
    base: Record
    branches: Record

    def without_records(self) -> "Run":
        return replace(self, base=Record(), branches=Record())


def run(call: Call, estimator: Estimator, task: int) -> Run:
    """``estimator`` on one task of a call in the loop, in the call's noise. Costs what the estimator costs."""
    base, branches = Watched(estimator.solver), Record()
    if isinstance(estimator, FOBMAML):  # offload: solvers that are watched have all branches together
        estimator = replace(estimator, estimate_error=True, offload=False)
    if isinstance(estimator, Branched):
        estimator = replace(estimator, branch_solver=Watched(estimator._solver_of_branches, branches))
    watched = replace(estimator, solver=base)
    gradients = call.gradients((task, task + 1))
    purpose = watched._purpose("meta-gradient", gradients)
    result = ChunkResult.of(watched._estimate(gradients, keep_adapted=True), base, purpose)
    assert result.adapted is not None
    g = call.of_learned(result.grad.unsqueeze(1), gradients)[0, 0]
    return Run(result.adapted[0], g, result.info, base.record, branches)
