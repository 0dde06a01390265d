"""Adapting to a new task, and judging x by how well adaptation works."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from metaprox import checks
from metaprox.arguments import check_adapt, check_evaluate, check_number_of_tasks, parameters_of
from metaprox.call import begun
from metaprox.checks.trees import kind
from metaprox.data.batch import TaskBatch
from metaprox.data.task import Task
from metaprox.errors import InputError, NonFiniteError
from metaprox.inner.proximal import proximal_solve, residual_at
from metaprox.inner.solve import Stopping
from metaprox.losses.checked import joined
from metaprox.losses.choose import BackendName, Choice
from metaprox.problem import ProximalProblem
from metaprox.solvers.protocol import InnerSolver
from metaprox.solvers.stability import check_stable
from metaprox.types import Metrics, Params


@dataclass(frozen=True)
class Statistic:
    """Mean over n tasks, standard deviation between tasks, and the half-width of the mean's 95 % interval."""

    mean: float
    std: float
    ci95: float
    n: int

    @classmethod
    def of(cls, values: Tensor) -> "Statistic":
        """ci95 = 1.96 std / sqrt(n), the normal approximation; std with n - 1. Both are NaN for n = 1."""
        if not isinstance(values, Tensor) or not values.numel():
            raise InputError(f"values must be a tensor of at least one number, got {kind(values)}")
        n = values.numel()
        std = float(values.double().std()) if n > 1 else math.nan
        return cls(float(values.double().mean()), std, 1.96 * std / math.sqrt(n), n)

    def __str__(self) -> str:
        return f"{self.mean:.4g} ± {self.ci95:.2g} (n = {self.n})"


@dataclass(frozen=True)
class Evaluation:
    """What adaptation reaches on a fixed list of n tasks.

    loss: of the query loss after adaptation; metrics: of whatever else it returned. values: the same by name for
    every task [n], in the order of the ids, for paired comparisons. transductive: whether query examples were
    seen together in a way that their predictions depend on each other (None: unknown).
    """

    loss: Statistic
    metrics: dict[str, Statistic]
    values: dict[str, Tensor]
    transductive: bool | None

    def with_metric(self, name: str, values: Tensor) -> "Evaluation":
        """The same with one more metric, of ``values`` [n]. Raises InputError unless it is another, and of n."""
        n = self.loss.n
        if name in self.values:
            raise InputError(f"there is a metric {name!r} already: give this one another name")
        if not isinstance(values, Tensor) or values.shape != (n,):
            raise InputError(f"metric {name!r} must be a tensor of a number for each of {n} tasks, got {kind(values)}")
        metrics = self.metrics | {name: Statistic.of(values)}
        return replace(self, metrics=metrics, values=self.values | {name: values})


def adapt(
    problem: ProximalProblem,
    support: Any,
    solver: InnerSolver,
    steps: int | None = None,
    *,
    tol: float | None = None,
    max_steps: int | None = None,
    params: Params | None = None,
) -> dict[str, Tensor]:
    """Adapt to one task: ``steps`` of ``solver`` on fhat(y) + (lam/2) ||y - x||^2, from x.

    ``support`` is one task's data, without a task dimension. x is ``params``, or else the module's trainable
    parameters. With ``tol``, in place of ``steps``, it stops once the gradient norm is <= tol, and after ``max_steps``
    at the latest. Costs K support gradients. The model is not changed.

    Returns:
        y, of the parameters that adapt and no others, by name and in their own shapes. Use it with
        ``torch.func.functional_call(model, adapted, inputs)``, or load it with ``model.load_state_dict(adapted,
        strict=False)``.

    Raises:
        InputError: bad input.
        NonFiniteError: the solve diverged.
    """
    return solved(problem, support, solver, Stopping.of(steps, tol, max_steps), params).y


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
) -> Solved:
    """Returns what ``adapt`` returns, and how the solve ended. The residual costs a further gradient.

    Raises:
        InputError, NonFiniteError: as ``adapt``.
    """
    x = parameters_of(problem, params)
    check_adapt(support, solver)
    check_stable(solver, problem.lam, stopping.max_steps)
    # The query data are never looked at; the support stands in for them so that the batch is a whole Task.
    batch = TaskBatch.of([Task(support, support)])
    with begun(problem, x, batch, Choice("loop", None), query="nothing") as call:
        gradients = call.gradients((0, 1))
        found = proximal_solve(gradients, solver, stopping)
        _require_finite(found.y, "point after the last step", 0)
        left = residual_at(gradients, found.y, None)[1] if residual else found.y.new_zeros(1)
        _require_finite(left, "gradient after the last step", 0)
        y = gradients.parameters.adapted.unflatten(found.y[0, 0])
        own = {name: value.clone() for name, value in y.items()}
        return Solved(own, float(left), int(found.steps), bool(found.converged))


def evaluate(
    problem: ProximalProblem,
    tasks: Callable[[Sequence[int]], Task | Sequence[Task]] | Task | Sequence[Task],
    ids: Sequence[int] | None,
    solver: InnerSolver,
    steps: int | None = None,
    *,
    tol: float | None = None,
    max_steps: int | None = None,
    params: Params | None = None,
    batch_size: int = 100,
    backend: BackendName = "auto",
) -> Evaluation:
    """Adapt from x to each of ``tasks`` and judge y_i on its query.

    Equal ids give equal tasks, so results of different x or solvers can be compared in pairs. Costs K support
    gradients and one forward pass on the query per task.

    Args:
        problem: the losses, lam, and what adapts.
        tasks: a function of ids, such as the ``batch`` method of a family in ``metaprox.tasks``; or the tasks
            themselves, a list of single ones or a stack of them.
        ids: of the n tasks, for a function; for tasks None, or an id for each, for messages.
        solver: the inner solver.
        steps: inner steps K. Or ``tol`` with ``max_steps``.
        tol: in place of ``steps``: each task stops once its gradient norm is <= tol.
        max_steps: the most steps that are taken with ``tol``.
        params: x; the module's trainable parameters unless given.
        batch_size: how many tasks are made and adapted at a time. Memory grows with it; the result does not change
            (but for noise in the losses).
        backend: "vmap", "loop" or "auto", as for every estimator.

    Returns:
        The mean over tasks of the query loss and of what else it returns, with intervals, and the tasks' own [n].

    Raises:
        InputError: bad input.
        NonFiniteError: a solve diverged; a note names the task's id.

    Example:
        >>> import torch, metaprox as mp
        >>> from metaprox.tasks import Sinusoid
        >>> from metaprox.models import mean_squared_error, mlp
        >>> problem = mp.ProximalProblem.from_module(mlp([1, 40, 40, 1]), mean_squared_error, lam=0.5)
        >>> mp.evaluate(problem, Sinusoid(split="test").batch, range(100), mp.GradientDescent(lr=0.01), steps=10).loss.n
        100
    """
    x = parameters_of(problem, params)
    ids = check_evaluate(tasks, ids, solver)
    stopping, choice = Stopping.of(steps, tol, max_steps), Choice(backend, "auto")
    check_stable(solver, problem.lam, stopping.max_steps)
    batch_size = checks.count("batch_size", batch_size)
    losses: list[Tensor] = []
    columns: list[Metrics] = []
    for start in range(0, len(ids), batch_size):
        some = ids[start : start + batch_size]
        chosen = tasks(some) if callable(tasks) else _part(tasks, start, start + batch_size)
        loss, metrics = _evaluate_batch(problem, x, chosen, some, solver, stopping, choice)
        losses.append(loss)
        columns.append(metrics)
    values = {"loss": torch.cat(losses)}
    values |= joined(columns)
    return Evaluation(
        loss=Statistic.of(values["loss"]),
        metrics={name: Statistic.of(values[name]) for name in columns[0]},
        values=values,
        transductive=problem.transductive() if problem.transductive else None,
    )


def _evaluate_batch(
    problem: ProximalProblem,
    x: Params,
    tasks: Task | Sequence[Task],
    ids: Sequence[int],
    solver: InnerSolver,
    stopping: Stopping,
    choice: Choice,
) -> tuple[Tensor, Metrics]:
    batch, results = TaskBatch.of(tasks), []
    check_number_of_tasks(batch.size, len(ids))
    with begun(problem, x, batch, choice, query="value") as call:
        for span in call.chunks():
            gradients = call.gradients(span)
            try:
                y = proximal_solve(gradients, solver, stopping).y
                loss, metrics = gradients.query_values(y.squeeze(1), 0)
                _require_finite(loss, "query loss at the adapted parameters", gradients.start)
            except NonFiniteError as error:
                if error.task is not None:
                    error.add_note(f"task {error.task} of this batch has id {ids[error.task]}")
                raise
            results.append((loss, metrics))
    return torch.cat([loss for loss, _ in results]), joined([metrics for _, metrics in results])


def _require_finite(values: Tensor, what: str, first_task: int) -> None:
    """Raise NonFiniteError, naming the first task, unless all of ``values`` [T, ...] are finite."""
    good = values.isfinite().flatten(1).all(1) if values.dim() > 1 else values.isfinite()
    if not bool(good.all()):
        task = first_task + int((~good).int().argmax())
        raise NonFiniteError(f"task {task}: the {what} is not finite. Lower lr, or use another solver.", task=task)


def _part(tasks: Task | Sequence[Task], start: int, stop: int) -> Task | Sequence[Task]:
    """Those from start to stop - 1."""
    return pytree.tree_map(lambda leaf: leaf[start:stop], tasks) if isinstance(tasks, Task) else tasks[start:stop]
