"""How the gradients of many tasks become one: what an estimator's ``reduce`` gets, and what it is to return."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from metaprox import checks
from metaprox.call import Place
from metaprox.errors import InputError
from metaprox.estimators.info import Info
from metaprox.types import Metrics
from metaprox.vectors.parameters import Parameters, Structure


@dataclass(frozen=True)
class Start:
    """What a call begins with.

    count: how many tasks this process has, which may be none. place: seed of the noise of all tasks, and how many come
    before this process's own. parameters: x and w.
    """

    count: int
    place: Place
    parameters: Parameters


@dataclass(frozen=True)
class TaskGradients:
    """The gradients of the t tasks of a chunk: one in the loop backend, where they come one after another.

    grad: g_i [t, N] with respect to all N parameters, flat, 0 for tasks that are skipped. weights: w_i [t]. failed:
    which tasks are skipped, since they diverged [t]. first: the position of the first among all tasks. structure: which
    of the N numbers is what.
    """

    grad: Tensor
    weights: Tensor
    failed: Tensor
    first: int
    structure: Structure

    def by_name(self) -> dict[str, Tensor]:
        """The gradients [t, *shape] of each parameter: views, through which ``grad`` can be written on."""
        size = self.structure.adapted.size
        return self.structure.unflatten(self.grad[:, :size], self.grad[:, size:])


@dataclass(frozen=True)
class TaskResults:
    """What else is known of T tasks. length: ||g_i|| as ``of_tasks`` left it. failure: why the first one is skipped."""

    weights: Tensor
    length: Tensor
    query_loss: Tensor
    metrics: Metrics
    info: Info
    failure: Exception | None = None

    @property
    def kept(self) -> Tensor:
        """Which tasks were not skipped [T]."""
        return ~self.info.skipped


@dataclass(frozen=True)
class Total:
    """The sum over tasks.

    grad: sum_i w_i g_i [N] over those that were not skipped, to be written on. weight: sum_i w_i of these; the
    meta-gradient is grad / weight. count: how many these are. tasks: of each, None where there is none. seed: a number
    that is another one in each call and the same in all processes, for noise that these agree on.
    """

    grad: Tensor
    weight: float
    count: int
    tasks: TaskResults | None
    seed: int


class Reduce:
    """The weighted mean over tasks, and the base of other ways: sum_i w_i g_i / sum_i w_i.

    An estimator always calls it, in this order: ``call`` around all; ``start`` once; ``of_tasks`` for each chunk as it
    comes, so that no more than a chunk's gradients are ever there; ``of_sum`` once. A subclass overrides what it
    changes: ``of_tasks`` to clip each task or encode a client's gradient, ``of_sum`` to add noise, or to sum over
    processes. Several are given as a list, ``reduce=[Clip(), mp.distributed.AllReduce()]``, and called in this order.

    Example:
        >>> import torch, metaprox as mp
        >>> class Clip(mp.Reduce):
        ...     def of_tasks(self, tasks):
        ...         length = torch.linalg.vector_norm(tasks.grad, dim=1, keepdim=True)
        ...         return tasks.grad / length.clamp(min=1.0)
        >>> loss = lambda params, target: 0.5 * ((params["w"] - target) ** 2).sum()
        >>> problem = mp.ProximalProblem(loss, loss, lam=1.0)
        >>> tasks = mp.Task(support=torch.zeros(2, 1), query=torch.tensor([[9.0], [1.0]]))
        >>> meta = mp.FOBMAML(mp.GradientDescent(lr=0.5), steps=20, reduce=Clip())
        >>> meta(problem, {"w": torch.zeros(1)}, tasks).grad["w"]  # of -4.5, which is clipped, and -0.5
        tensor([-0.7500])
    """

    takes_no_tasks: bool = False
    """Whether a process may have no task at all, as others have some."""
    takes_shards: bool = False
    """Whether its methods do for a model in shards, where each rank sees the N numbers that it holds. A promise of the
    class that makes it alone; norms over all ranks are those of ``metaprox.vectors.norms``."""

    def call(self) -> "AbstractContextManager[Reduce]":
        """Around one call of an estimator; its errors pass through. Yields what its other methods are called on."""
        return _unchanged(self)

    def start(self, start: Start) -> Start:
        """What the call begins with, before any loss is evaluated; one with another place, where there are others."""
        return start

    def of_tasks(self, tasks: TaskGradients) -> Tensor:
        """What is summed [t, N] of a chunk's tasks, before their weights; ``tasks.grad`` may be written on."""
        return tasks.grad

    def of_sum(self, total: Total) -> Total:
        """The sum over all tasks."""
        return total


@contextmanager
def _unchanged(reduce: Reduce) -> Iterator[Reduce]:
    yield reduce


class _Several(Reduce):
    """One after another."""

    def __init__(self, parts: Sequence[Reduce]) -> None:
        self._parts = parts
        self.takes_no_tasks = any(part.takes_no_tasks for part in parts)
        self.takes_shards = all(map(_takes_shards, parts))

    @contextmanager
    def call(self) -> Iterator[Reduce]:
        with ExitStack() as stack:
            yield _Several([stack.enter_context(part.call()) for part in self._parts])

    def start(self, start: Start) -> Start:
        for part in self._parts:
            start = part.start(start)
        return start

    def of_tasks(self, tasks: TaskGradients) -> Tensor:
        for part in self._parts:
            tasks = replace(tasks, grad=part.of_tasks(tasks))
        return tasks.grad

    def of_sum(self, total: Total) -> Total:
        for part in self._parts:
            total = part.of_sum(total)
        return total


ReduceSetting = Reduce | Sequence[Reduce] | None


def check_reduce(name: str, value: Any) -> ReduceSetting:
    """A setting ``reduce``. Raises InputError where it is another thing."""
    parts = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
    for part in parts:
        if not isinstance(part, Reduce):
            raise InputError(f"{name} must be a mp.Reduce, a list of them or None, got {checks.shown(part)}")
    return tuple(value) if isinstance(value, list) else value


def reduction(setting: ReduceSetting) -> Reduce:
    """What is called."""
    if setting is None:
        return _Alone()
    return setting if isinstance(setting, Reduce) else _Several(setting)


class _Alone(Reduce):
    """None is given: there is nobody to sum with."""

    takes_shards = True

    def __init__(self) -> None:
        self.takes_no_tasks = _processes() > 1  # which ``start`` refuses before all else

    def start(self, start: Start) -> Start:
        """Raises InputError where there are other processes, which would go apart."""
        shards = start.parameters.shards
        processes, own = _processes(), 1 if shards is None else shards.size
        if processes > own:
            who = "one" if shards is None else f"{own}, which share a model's shards,"
            group = "" if shards is None else "group=...), of the ranks that hold the same shard"
            raise InputError(
                f"reduce is None in {who} of {processes} processes of torch.distributed, each of which would keep the "
                f"gradient of its own tasks: give reduce=mp.distributed.AllReduce({group or ')'}, or, where that is "
                "meant, reduce=mp.Reduce()"
            )
        return start


def leaves_tasks_alone(reduce: Reduce) -> bool:
    """Whether gradients of tasks are summed as they are."""
    return type(reduce).of_tasks is Reduce.of_tasks and "of_tasks" not in vars(reduce)


def check_shards(reduce: Reduce, parameters: Parameters) -> None:
    """Raise InputError where ``parameters`` are in shards and ``reduce`` does not say that it takes them."""
    if parameters.shards is not None and not _takes_shards(reduce):
        raise InputError(
            f"{type(reduce).__name__} does not say that it takes the gradients of a model in shards, of which each "
            "rank sees its own numbers alone: with norms of metaprox.vectors.norms, or none, say takes_shards = True"
        )


def _takes_shards(reduce: Reduce) -> bool:
    """What its class itself says."""
    if type(reduce) is Reduce:
        return True
    return reduce.takes_shards and (isinstance(reduce, _Several) or "takes_shards" in vars(type(reduce)))


def _processes() -> int:
    """How many belong together."""
    own = torch.distributed
    return own.get_world_size() if own.is_available() and own.is_initialized() else 1
