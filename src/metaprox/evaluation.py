"""Adapting to a new task, and judging x by how well adaptation works."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from metaprox import checks
from metaprox.arguments import check_adapt, check_evaluate, check_number_of_tasks, parameters_of
from metaprox.backends import LoopBackend
from metaprox.batch import TaskBatch
from metaprox.choose import BackendName, Choice
from metaprox.errors import NonFiniteError
from metaprox.gradients import BRANCH_NOISE, Gradients
from metaprox.noise import coupled_noise
from metaprox.parameters import Parameters
from metaprox.problem import Metrics, Params, ProximalProblem, Task
from metaprox.proximal import proximal_solve
from metaprox.solve import Stopping
from metaprox.solvers.protocol import InnerSolver


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
        n = values.numel()
        std = float(values.double().std()) if n > 1 else math.nan
        return cls(float(values.double().mean()), std, 1.96 * std / math.sqrt(n), n)

    def __str__(self) -> str:
        return f"{self.mean:.4g} ± {self.ci95:.2g} (n = {self.n})"


@dataclass(frozen=True)
class Evaluation:
    """What adaptation reaches on a fixed list of tasks.

    loss: of the query loss after adaptation; metrics: of whatever else it returned. values: the same by name for
    every task [n], in the order of the ids, for paired comparisons. transductive: whether query examples were
    seen together in a way that their predictions depend on each other (None: unknown).
    """

    loss: Statistic
    metrics: dict[str, Statistic]
    values: dict[str, Tensor]
    transductive: bool | None

    def with_metric(self, name: str, values: Tensor) -> "Evaluation":
        """The same with one more metric, of ``values`` [n]."""
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
    """Adapt to one task: ``steps`` of ``solver`` on fhat(y) + (lam/2) ||y - x||^2, from x. Returns y.

    ``support`` is one task's data, without a task dimension. The model is not changed: use the result with
    ``torch.func.functional_call(model, adapted, inputs)``, or load it with ``model.load_state_dict(adapted,
    strict=False)``. Only the parameters that adapt are in it. x is ``params``, or else the module's trainable
    parameters. Costs K support gradients.

    Raises:
        InputError: bad input. NonFiniteError: the solve diverged.
    """
    x = parameters_of(problem, params)
    check_adapt(support, solver)
    stopping = Stopping.of(steps, tol, max_steps)
    parameters = Parameters.of(problem, x).joined(sparing=True)
    # The query data are never looked at; the support stands in for them so that the batch is a whole Task.
    batch = TaskBatch.of([Task(support, support)])
    with torch.no_grad(), coupled_noise(parameters.device) as noise:
        gradients = Gradients(problem, parameters, LoopBackend(), noise, batch, (0, 1))
        y = proximal_solve(gradients, solver, stopping).y
    return {name: value.clone() for name, value in parameters.adapted.unflatten(y[0, 0]).items()}


def evaluate(
    problem: ProximalProblem,
    batch: Callable[[Sequence[int]], Task | Sequence[Task]],
    ids: Sequence[int],
    solver: InnerSolver,
    steps: int | None = None,
    *,
    tol: float | None = None,
    max_steps: int | None = None,
    params: Params | None = None,
    batch_size: int = 100,
    backend: BackendName = "auto",
) -> Evaluation:
    """Adapt from x to each task of ``ids`` and judge y_i on its query.

    Equal ids give equal tasks, so results of different x or solvers can be compared in pairs. Costs K support
    gradients and one forward pass on the query per task; memory grows with ``batch_size``, which does not change
    the result (but for noise in the losses).

    Args:
        batch: ids -> tasks, such as the ``batch`` method of a family in ``metaprox.tasks``.
        params: x; the module's trainable parameters unless given.

    Raises:
        InputError: bad input. NonFiniteError: a solve diverged; a note names the task's id.

    Example:
        >>> import torch, metaprox as mp
        >>> from metaprox.tasks import Sinusoid
        >>> from metaprox.models import mean_squared_error, mlp
        >>> problem = mp.ProximalProblem.from_module(mlp([1, 40, 40, 1]), mean_squared_error, lam=0.5)
        >>> mp.evaluate(problem, Sinusoid(split="test").batch, range(100), mp.GradientDescent(lr=0.01), steps=10).loss.n
        100
    """
    x = parameters_of(problem, params)
    ids = check_evaluate(batch, ids, solver)
    stopping, choice = Stopping.of(steps, tol, max_steps), Choice(backend, "auto")
    batch_size = checks.count("batch_size", batch_size)
    losses: list[Tensor] = []
    columns: list[Metrics] = []
    for start in range(0, len(ids), batch_size):
        some = ids[start : start + batch_size]
        loss, metrics = _evaluate_batch(problem, x, batch(some), some, solver, stopping, choice)
        losses.append(loss)
        columns.append(metrics)
    values = {"loss": torch.cat(losses)}
    values |= {name: torch.cat([column[name] for column in columns]) for name in columns[0]}
    return Evaluation(
        loss=Statistic.of(values["loss"]),
        metrics={name: Statistic.of(values[name]) for name in columns[0]},
        values=values,
        transductive=problem.transductive() if problem.transductive else None,
    )


@torch.no_grad()
def _evaluate_batch(
    problem: ProximalProblem,
    x: Params,
    tasks: Task | Sequence[Task],
    ids: Sequence[int],
    solver: InnerSolver,
    stopping: Stopping,
    choice: Choice,
) -> tuple[Tensor, Metrics]:
    checked = TaskBatch.of(tasks)
    check_number_of_tasks(checked.size, len(ids))
    parameters = Parameters.of(problem, x)
    results = []
    with coupled_noise(parameters.device) as noise:
        engine = choice.of(problem, parameters, checked, noise)
        parameters = parameters.joined(sparing=engine.sequential)
        for span in engine.chunks(checked.size):
            gradients = Gradients(problem, parameters, engine, noise, checked, span)
            try:
                y = proximal_solve(gradients, solver, stopping).y
            except NonFiniteError as error:
                if error.task is not None:
                    error.add_note(f"task {error.task} of this batch has id {ids[error.task]}")
                raise
            results.append(gradients.query_values(y.squeeze(1), BRANCH_NOISE, 0))
    names = results[0][1]
    return torch.cat([loss for loss, _ in results]), {
        name: torch.cat([metrics[name] for _, metrics in results]) for name in names
    }
