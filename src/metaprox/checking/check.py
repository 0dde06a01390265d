"""``mp.check``: from a problem and a few tasks to a verdict."""

import warnings
from collections.abc import Sequence
from dataclasses import replace

import torch

from metaprox import checks
from metaprox.checking import losses
from metaprox.checking.examine import Examination
from metaprox.checking.findings import Check
from metaprox.checking.snapshot import Snapshot, copied
from metaprox.checking.solves import steps_for_lam
from metaprox.checking.subject import Subject
from metaprox.data.batch import TaskBatch
from metaprox.data.task import Task
from metaprox.errors import InputError
from metaprox.estimators import FOBMAML, Estimator
from metaprox.problem import ProximalProblem
from metaprox.solvers.protocol import InnerSolver
from metaprox.types import Params
from metaprox.vectors.parameters import Parameters
from metaprox.vectors.shards import refuse_shards


def check(
    problem: ProximalProblem,
    tasks: Task | Sequence[Task],
    solver: InnerSolver | Estimator | None = None,
    steps: int | None = None,
    *,
    tol: float | None = None,
    max_steps: int | None = None,
    params: Params | None = None,
    count: int = 3,
) -> Check:
    """A verdict on a model, its losses and the settings of a meta-gradient, found by trying them on a few tasks.

    Each finding has a name and says "ok", "note" (to be known) or "wrong" (what is computed is not what is wanted):

    - losses: they are losses, and finite. repeats: with equal seeds they give the same again.
    - writes: whether they write on the model, the parameters or the tasks.
    - backends: whether vmap gives what the loop gives, and which of them is taken, and why.
    - field: whether the inner loss's gradient is the gradient of anything: its Jacobian is symmetric.
    - steps: whether fixed inner steps are short enough. base: whether the base solve moves, and converges.
    - branches: whether the branches' objectives have minima.
    - nu: how much of the meta-gradient is rounding, and how far it is from its limit nu -> 0 (``Tangent``).
    - meta-gradient: whether it has the slopes of F, by differences of F itself.

    Everything but the first four is looked at in float64, on copies of the model and the tasks, where the losses allow
    for it. Nothing is written on, nor compiled; torch's generators advance.

    Costs, a task: some 150 gradients of both losses, four meta-gradients (of which one by Tangent), 5 to 17 base
    solves, and on one task, where the two differ, as many that are ten times as long; all in float64, one by one.
    Memory: that of the loop, a copy of the model in float64, and some 30 vectors of parameters.

    Args:
        problem: the losses, their model, lam, and what adapts.
        tasks: a Task whose tensors have a leading dimension T, or a sequence of T single ones; ``count`` of them are
            used.
        solver: that of ``FOBMAML``, whose other settings are then the defaults; or an estimator in place of it and of
            ``steps``, ``tol`` and ``max_steps``, which is checked with its own settings. None: what needs a solver is
            not checked.
        steps: base steps K, as for ``FOBMAML``. Or ``tol`` with ``max_steps``.
        tol: in place of ``steps``, as for ``FOBMAML``.
        max_steps: the most steps that are taken with ``tol``.
        params: x; the module's trainable parameters unless given.
        count: how many tasks are looked at, the first ones.

    Returns:
        The findings by name. ``print`` shows them, and ``raise_if_wrong`` makes an error of what is wrong.

    Raises:
        InputError: the arguments are not a problem, tasks, parameters and settings. What the losses do wrong is a
            finding, unless it is an error of their own: that passes through.

    Example:
        >>> import torch, metaprox as mp
        >>> loss = lambda params, data: 0.5 * ((params["w"] - data) ** 2).sum()
        >>> semi = lambda params, data: 0.5 * ((params["w"] - params["w"].detach().roll(1) - data) ** 2).sum()
        >>> tasks, w = mp.Task(torch.ones(2, 3), torch.zeros(2, 3)), {"w": torch.ones(3)}
        >>> mp.check(mp.ProximalProblem(loss, loss, lam=1.0), tasks, mp.GradientDescent(lr=0.3), steps=30, params=w).ok
        True
        >>> mp.check(mp.ProximalProblem(semi, loss, lam=1.0), tasks, params=w)["field"].verdict
        'wrong'
    """
    checks.count("count", count)
    estimator = _estimator(solver, steps, tol, max_steps)
    x = problem.live_parameters() if params is None else params
    refuse_shards(x.values(), "mp.check")
    if problem.per_task is None:
        Parameters.of(x, problem.adapted_names)
    batch = TaskBatch.of(tasks)
    if estimator is not None and not steps_for_lam(estimator, problem.lam):
        estimator.check(problem)
    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="metaprox")  # a finding says it
        seen = copied(batch, count)
        snapshot = Snapshot.of(problem, x, seen)
        own = {name: value.detach().clone() for name, value in x.items()}
        examination = Examination(Subject(replace(problem), own, seen, estimator), copied(batch, count))
        examination.make()
        examination.add(losses.writes(snapshot.changed(), examination.look))
    return Check(examination.complete(), min(count, batch.size))


def _estimator(
    solver: InnerSolver | Estimator | None, steps: int | None, tol: float | None, max_steps: int | None
) -> Estimator | None:
    settings = {"steps": steps, "tol": tol, "max_steps": max_steps}
    given = {name: value for name, value in settings.items() if value is not None}
    if solver is None or isinstance(solver, Estimator):
        if given:
            what = "no solver was given" if solver is None else f"{type(solver).__name__} has settings of its own"
            raise InputError(f"{', '.join(given)} belong{'s' * (len(given) == 1)} to a solver, but {what}")
        return solver
    return FOBMAML(solver, steps, tol=tol, max_steps=max_steps)
