"""Adapting to a new task."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from metaprox import checks
from metaprox.arguments import check_adapt, parameters_of
from metaprox.call import begun
from metaprox.data.batch import TaskBatch
from metaprox.data.task import Task
from metaprox.errors import NonFiniteError
from metaprox.inner.proximal import proximal_solve, residual_at
from metaprox.inner.solve import Stopping
from metaprox.losses.choose import Choice
from metaprox.problem import ProximalProblem
from metaprox.solvers.protocol import InnerSolver
from metaprox.solvers.stability import check_stable
from metaprox.types import Params
from metaprox.vectors.shards import refuse_shards


def adapt(
    problem: ProximalProblem,
    support: Any,
    solver: InnerSolver,
    steps: int | None = None,
    *,
    tol: float | None = None,
    max_steps: int | None = None,
    params: Params | None = None,
    compile: bool = False,  # noqa: A002
) -> dict[str, Tensor]:
    """Adapt to one task: ``steps`` of ``solver`` on fhat(y) + (lam/2) ||y - x||^2, from x.

    ``support`` is one task's data, without a task dimension. x is ``params``, or else the module's trainable
    parameters. With ``tol``, in place of ``steps``, it stops once the gradient norm is <= tol, and after ``max_steps``
    at the latest. Costs K support gradients. The model is not changed. ``compile``: in a graph, as for every estimator,
    which tasks of these shapes share; losses that can't be vmapped go without, with a warning.

    Returns:
        y, of the parameters that adapt and no others, by name and in their own shapes. Use it with
        ``torch.func.functional_call(model, adapted, inputs)``, or load it with ``model.load_state_dict(adapted,
        strict=False)``.

    Raises:
        InputError: bad input.
        NonFiniteError: the solve diverged.
    """
    return solved(problem, support, solver, Stopping.of(steps, tol, max_steps), params, compiles=compile).y


@dataclass(frozen=True)
class Solved:
    """y by name; ||grad fhat(y) + lam (y - x)||, 0 where not asked for; steps taken; whether tol ended them."""

    y: dict[str, Tensor]
    residual: float
    steps: int
    converged: bool


def solved(
    problem: ProximalProblem,
    support: Any,
    solver: InnerSolver,
    stopping: Stopping,
    params: Params | None = None,
    *,
    residual: bool = False,
    compiles: bool = False,
) -> Solved:
    """Returns what ``adapt`` returns, and how the solve ended. The residual costs a further gradient.

    Raises:
        InputError, NonFiniteError: as ``adapt``.
    """
    x = parameters_of(problem, params)
    check_adapt(support, solver)
    refuse_shards(x.values(), "mp.adapt")
    check_stable(solver, problem.lam, stopping.max_steps)
    # The query data are never looked at; the support stands in for them so that the batch is a whole Task.
    batch = TaskBatch.of([Task(support, support)])
    choice = Choice("auto" if checks.switch("compile", compiles) else "loop", None, compiles)
    with begun(problem, x, batch, choice, query="nothing") as call:
        gradients = call.gradients((0, 1))
        found = proximal_solve(gradients, solver, stopping)
        require_finite(found.y, "point after the last step", 0)
        left = residual_at(gradients, found.y, None)[1] if residual else found.y.new_zeros(1)
        require_finite(left, "gradient after the last step", 0)
        y = gradients.parameters.adapted.unflatten(found.y[0, 0])
        own = {name: value.clone() for name, value in y.items()}
        return Solved(own, float(left), int(found.steps), bool(found.converged))


def require_finite(values: Tensor, what: str, first_task: int) -> None:
    """Raise NonFiniteError, naming the first task, unless all of ``values`` [T, ...] are finite."""
    good = values.isfinite().flatten(1).all(1) if values.dim() > 1 else values.isfinite()
    if not bool(good.all()):
        task = first_task + int((~good).int().argmax())
        raise NonFiniteError(f"task {task}: the {what} is not finite. Lower lr, or use another solver.", task=task)
