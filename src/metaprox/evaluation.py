"""Adapting to a new task, and judging x by how well adaptation works."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from metaprox import checks
from metaprox.arguments import check_adapt, check_evaluate, check_number_of_tasks, parameters_of
from metaprox.call import Place, begun
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

    @classmethod
    def of(cls, values: dict[str, Tensor], problem: ProximalProblem) -> "Evaluation":
        """From the query loss of every task, as "loss", and its metrics, all [n]."""
        statistics = {name: Statistic.of(value) for name, value in values.items()}
        loss = statistics.pop("loss")
        return cls(loss, statistics, values, problem.transductive() if problem.transductive else None)

    def with_metric(self, name: str, values: Tensor) -> "Evaluation":
        """The same with one more metric, of ``values`` [n]. Raises InputError unless it is another, and of n."""
        check_metric(name, values, self.loss.n, self.values)
        metrics = self.metrics | {name: Statistic.of(values)}
        return replace(self, metrics=metrics, values=self.values | {name: values})


def check_metric(name: str, values: Any, n: int, known: Mapping[str, Tensor]) -> None:
    """Raise InputError unless ``values`` are a number for each of n tasks, of another name than those ``known``."""
    if name in known:
        raise InputError(f"there is a metric {name!r} already: give this one another name")
    if not isinstance(values, Tensor) or values.shape != (n,):
        raise InputError(f"metric {name!r} must be a tensor of a number for each of {n} tasks, got {kind(values)}")


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
        batch_size: how many tasks are made and adapted at a time. Memory grows with it; the result does not change.
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
    judge = Judge.of(
        problem,
        tasks,
        ids,
        solver,
        steps,
        tol=tol,
        max_steps=max_steps,
        params=params,
        batch_size=batch_size,
        backend=backend,
    )
    return Evaluation.of(judge.values(Place.alone(), 0, len(judge.ids)), problem)


@dataclass(frozen=True)
class Judge:
    """The arguments of ``evaluate``, checked; what ``tasks`` are evaluated, and when, is up to the caller."""

    problem: ProximalProblem
    x: Params
    tasks: Callable[[Sequence[int]], Task | Sequence[Task]] | Task | Sequence[Task]
    ids: list[int]
    solver: InnerSolver
    stopping: Stopping
    choice: Choice
    batch_size: int

    @classmethod
    def of(
        cls,
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
    ) -> "Judge":
        """Raises InputError for whatever ``evaluate`` refuses before it sees a task."""
        x, ids = parameters_of(problem, params), check_evaluate(tasks, ids, solver)
        stopping = Stopping.of(steps, tol, max_steps)
        check_stable(solver, problem.lam, stopping.max_steps)
        size = checks.count("batch_size", batch_size)
        return cls(problem, x, tasks, ids, solver, stopping, Choice(backend, "auto"), size)

    def values(self, place: Place, first: int, last: int) -> Metrics:
        """Returns the query loss, as "loss", and its metrics [last - first] of the tasks from the ``first`` one on.

        ``place``: of task 0. Raises NonFiniteError where a solve diverged; a note names the task's id.
        """
        columns = []
        for start in range(first, last, self.batch_size):
            stop = min(start + self.batch_size, last)
            some = self.ids[start:stop]
            chosen = self.tasks(some) if callable(self.tasks) else _part(self.tasks, start, stop)
            batch = TaskBatch.of(chosen)
            check_number_of_tasks(batch.size, len(some))
            columns.append(self._values(batch, place.after(start)))
        return joined(columns)

    def _values(self, batch: TaskBatch, place: Place) -> Metrics:
        results = []
        with begun(self.problem, self.x, batch, self.choice, query="value", place=place) as call:
            for span in call.chunks():
                gradients = call.gradients(span)
                try:
                    y = proximal_solve(gradients, self.solver, self.stopping).y
                    loss, metrics = gradients.query_values(y.squeeze(1), 0)
                    _require_finite(loss, "query loss at the adapted parameters", gradients.start)
                except NonFiniteError as error:
                    if error.task is not None:
                        error.add_note(f"task {error.task} of this evaluation has id {self.ids[error.task]}")
                    raise
                results.append({"loss": loss} | metrics)
        return joined(results)


def _require_finite(values: Tensor, what: str, first_task: int) -> None:
    """Raise NonFiniteError, naming the first task, unless all of ``values`` [T, ...] are finite."""
    good = values.isfinite().flatten(1).all(1) if values.dim() > 1 else values.isfinite()
    if not bool(good.all()):
        task = first_task + int((~good).int().argmax())
        raise NonFiniteError(f"task {task}: the {what} is not finite. Lower lr, or use another solver.", task=task)


def _part(tasks: Task | Sequence[Task], start: int, stop: int) -> Task | Sequence[Task]:
    """Those from start to stop - 1."""
    return pytree.tree_map(lambda leaf: leaf[start:stop], tasks) if isinstance(tasks, Task) else tasks[start:stop]
