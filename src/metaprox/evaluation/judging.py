"""Judging x by how well adaptation works."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch.utils import _pytree as pytree

from metaprox import checks
from metaprox.arguments import check_evaluate, check_number_of_tasks, parameters_of
from metaprox.call import Place, begun
from metaprox.data.batch import TaskBatch
from metaprox.data.task import Task
from metaprox.errors import NonFiniteError
from metaprox.evaluation.adapting import require_finite
from metaprox.evaluation.results import Evaluation
from metaprox.inner.proximal import proximal_solve
from metaprox.inner.solve import Stopping
from metaprox.losses.checked import joined
from metaprox.losses.choose import BackendName, Choice
from metaprox.modules.company import Company, company
from metaprox.modules.loss import ModuleLoss
from metaprox.problem import ProximalProblem
from metaprox.solvers.protocol import InnerSolver
from metaprox.solvers.stability import check_stable
from metaprox.types import Metrics, Params


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
    compile: bool = False,  # noqa: A002
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
        compile: compile solves, as for every estimator; the query loss is evaluated in eager mode.

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
        compile=compile,
    )
    return Evaluation.of(judge.values(Place.alone(), 0, len(judge.ids)), problem, judge.seen)


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
    seen: list[Company] = field(default_factory=list, init=False, repr=False, compare=False)
    """What was found of the first task that was evaluated."""

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
        compile: bool = False,  # noqa: A002
    ) -> "Judge":
        """Raises InputError for whatever ``evaluate`` refuses before it sees a task."""
        x, ids = parameters_of(problem, params), check_evaluate(tasks, ids, solver)
        stopping = Stopping.of(steps, tol, max_steps)
        check_stable(solver, problem.lam, stopping.max_steps)
        size = checks.count("batch_size", batch_size)
        choice = Choice(backend, "auto", checks.switch("compile", compile))
        return cls(problem, x, tasks, ids, solver, stopping, choice, size)

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
        results, adapted, place = [], None, place.shared(self.problem, self.x, batch)
        outer = self.problem.outer_loss
        asked = outer if isinstance(outer, ModuleLoss) and not self.seen else None
        with begun(self.problem, self.x, batch, self.choice, query="value", place=place, takes_shards=True) as call:
            for span in call.chunks():
                gradients = call.gradients(span)
                try:
                    y = proximal_solve(gradients, self.solver, self.stopping).y
                    if adapted is None and asked is not None:
                        adapted = gradients.parameters.adapted.unflatten(y[0, 0].clone())  # lest all of y lives on
                    loss, metrics = gradients.query_values(y.squeeze(1), 0)
                    require_finite(loss, "query loss at the adapted parameters", gradients.start)
                except NonFiniteError as error:
                    if error.task is not None:
                        error.add_note(f"task {error.task} of this evaluation has id {self.ids[error.task]}")
                    raise
                results.append({"loss": loss} | metrics)
        if asked is not None and adapted is not None:
            self.seen.append(company(asked, {**self.x, **adapted}, batch.one(0).query))
        return joined(results)


def _part(tasks: Task | Sequence[Task], start: int, stop: int) -> Task | Sequence[Task]:
    """Those from start to stop - 1."""
    return pytree.tree_map(lambda leaf: leaf[start:stop], tasks) if isinstance(tasks, Task) else tasks[start:stop]
