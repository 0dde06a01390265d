"""``mp.evaluate`` by several processes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from metaprox.call import Place
from metaprox.data.task import Task
from metaprox.distributed.exchange import Exchange
from metaprox.distributed.group import Group
from metaprox.distributed.packing import packed, unpacked
from metaprox.distributed.shards import span
from metaprox.evaluation import Evaluation, Judge, check_metric
from metaprox.losses.checked import joined
from metaprox.problem import ProximalProblem
from metaprox.solvers.protocol import InnerSolver
from metaprox.types import Metrics

More = Callable[[Sequence[int]], Mapping[str, Tensor]]


def evaluate(
    problem: ProximalProblem,
    tasks: Callable[[Sequence[int]], Task | Sequence[Task]] | Task | Sequence[Task],
    ids: Sequence[int] | None,
    solver: InnerSolver,
    steps: int | None = None,
    *,
    more: More | None = None,
    group: Any = None,
    shared: bool = True,
    **settings: Any,
) -> Evaluation:
    """``mp.evaluate``, with the tasks shared by the processes; each of them calls it alike, and gets all of the result.

    That is what one process gets, to rounding; in a single process it is ``mp.evaluate``.

    Args:
        problem: the losses, lam, and what adapts; alike in all processes.
        tasks: as for ``mp.evaluate``; of a function of ids each process makes its own tasks alone.
        ids: of all tasks.
        solver: the inner solver.
        steps: inner steps K. Or ``tol`` with ``max_steps``.
        more: further metrics of the tasks of some ids, a number for each.
        group: a process group of torch; None: the default one.
        shared: whether there are other processes that do the same; or else this one takes all tasks.
        settings: tol, max_steps, params, batch_size, backend and compile of ``mp.evaluate``.

    Returns:
        The mean over all tasks of the query loss and of what else it returns, with intervals, and the tasks' own [n].

    Raises:
        InputError: bad input. NonFiniteError: a solve diverged; a note names the task's id. PeerError: another process
            failed otherwise, is gone or silent.
    """
    own = Group.of(group) if shared else None
    if own is None:
        judge = Judge.of(problem, tasks, ids, solver, steps, **settings)
        return Evaluation.of(_values(judge, Place.alone(), 0, len(judge.ids), more), problem, judge.seen)
    exchange = Exchange(own)
    with exchange.guarded():
        judge = Judge.of(problem, tasks, ids, solver, steps, **settings)
        seed = exchange.begin([Place.alone().seed])[0][0]
        first, last = span(len(judge.ids), group)
        found = _values(judge, Place(seed, 0), first, last, more) if last > first else {}
        parts = exchange.end(packed(found))
        device = next(iter(judge.x.values())).device
        columns = (unpacked(part, device)[0] for part in parts)
        return Evaluation.of(joined([one for one in columns if one]), problem, judge.seen)


def _values(judge: Judge, place: Place, first: int, last: int, more: More | None) -> Metrics:
    """Of the tasks from the ``first`` one on, with further metrics."""
    values = judge.values(place, first, last)
    for name, found in (more(judge.ids[first:last]) if more else {}).items():
        check_metric(name, found, last - first, values)
        values[name] = found.detach()
    return values
