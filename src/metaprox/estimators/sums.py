"""The sum over tasks, as chunk after chunk of them comes, and the meta-gradient that it gives."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from metaprox.call import Place
from metaprox.checks import shown
from metaprox.data.batch import TaskBatch
from metaprox.errors import InputError, NonFiniteError
from metaprox.estimators.error import sampling_error
from metaprox.estimators.info import Info
from metaprox.estimators.reduce import (
    Reduce,
    Start,
    TaskGradients,
    TaskResults,
    Total,
    check_shards,
    leaves_tasks_alone,
)
from metaprox.estimators.result import ChunkResult, MetaGradient
from metaprox.losses.checked import joined, together
from metaprox.problem import ProximalProblem
from metaprox.types import Params
from metaprox.vectors.norms import norm
from metaprox.vectors.parameters import Parameters
from metaprox.vectors.rest import Rest, Vector, whole
from metaprox.vectors.shards import over


class Sums:
    """Adds up what ``reduce`` makes of the gradients of the tasks of a call, of weights [T].

    Args:
        keep_adapted: whether y_i are kept.
        keep_tasks: whether each task's gradient is kept, T times the memory.
        rest: where the sum is while the next tasks' gradients are computed.
    """

    def __init__(
        self, reduce: Reduce, start: Start, weights: Tensor | None, rest: Rest, *, keep_adapted: bool, keep_tasks: bool
    ) -> None:
        self.rest = rest
        self._reduce, self._start, self._weights = reduce, start, weights
        self._keep_adapted, self._keep_tasks = keep_adapted, keep_tasks
        self._total: Vector | None = None
        self._chunks: list[ChunkResult] = []
        self._adapted: list[Tensor] = []
        self._tasks: list[Tensor] = []
        self._lengths: list[Tensor] = []
        self._of_tasks: list[Tensor] = []
        self._named: Callable[[Sequence[Tensor]], dict[str, Tensor] | None] | None = None

    @classmethod
    def begun(
        cls,
        reduce: Reduce,
        problem: ProximalProblem,
        params: Params,
        batch: TaskBatch | None,
        weights: Any,
        *,
        rest_on: Callable[[torch.device], Rest],
        keep_adapted: bool,
        keep_tasks: bool,
    ) -> "Sums":
        """Of the tasks of ``batch``, which have the noise of their places. Raises InputError for odd weights."""
        with torch.inference_mode(False), torch.no_grad():
            everything = problem.per_task is not None  # what is learned is x alone then, in this order
            parameters = Parameters.of(params, (lambda names: names) if everything else problem.adapted_names)
            count = batch.size if batch else 0
            given = _checked_weights(weights, count, parameters.pieces[0])
            check_shards(reduce, parameters)
            place = Place.alone().shared(problem, params, batch, given)
            start = reduce.start(Start(count, place, parameters))
        rest = rest_on(parameters.device)
        return cls(reduce, start, given, rest, keep_adapted=keep_adapted, keep_tasks=keep_tasks)

    @property
    def place(self) -> Place:
        """Of the first task of this process."""
        return self._start.place

    @property
    def parameters(self) -> Parameters:
        """What is learned."""
        return self._start.parameters

    def add(self, chunk: ChunkResult, span: tuple[int, int]) -> None:
        """The tasks ``span`` of this process."""
        size, skipped = span[1] - span[0], chunk.info.skipped
        weights = torch.ones_like(chunk.query_loss) if self._weights is None else self._weights[slice(*span)]
        first, structure = self._start.place.first + span[0], self._start.parameters.structure
        grad = self._reduce.of_tasks(TaskGradients(chunk.grad, weights, skipped, first, structure))
        _check_gradients(grad, chunk.grad)
        if chunk.failure is not None:
            grad = torch.where(skipped[:, None], 0.0, grad)
        as_it_was = chunk.length is not None and grad is chunk.grad and leaves_tasks_alone(self._reduce)
        self._lengths.append(chunk.length if as_it_was and chunk.length is not None else norm(grad).flatten())
        if self._keep_tasks:
            self._tasks.append(grad.clone() if self._total is None else grad)
        if self._weights is not None:
            grad = grad * weights[:, None]
        some = grad[0] if size == 1 else grad.sum(0)
        if self._total is not None or span[1] < self._start.count:
            self._total = self.rest.plus(self._total, some, (1.0,))
        else:
            self._total = some
        self._of_tasks.append(weights)
        if self._keep_adapted:
            assert chunk.adapted is not None
            self._adapted.append(chunk.adapted)
        self._chunks.append(chunk.without_vectors())

    def result(self) -> MetaGradient:
        """The meta-gradient. Raises NonFiniteError where all tasks are skipped."""
        parameters, own = self._start.parameters, self._own_results()
        grad = parameters.zeros() if self._total is None else whole(self._total)
        self._total = None
        total = self._reduce.of_sum(Total(grad, *self._kept(own), own, self._start.place.seed))
        _check_gradients(total.grad, grad)
        tasks = total.tasks
        if tasks is None:
            raise InputError("no process has a task: give at least one")
        if not total.count or not total.weight > 0:
            raise _nothing_left(tasks)
        mean = total.grad.div_(total.weight)
        plain = tasks is own and self._plain
        weights = None if plain or bool((tasks.weights == tasks.weights[0]).all()) else tasks.weights[tasks.kept]
        with over(parameters.shards):
            spread = sampling_error(tasks.length if plain else tasks.length[tasks.kept], mean, weights)
        return MetaGradient(
            grad=parameters.named(mean),
            query_loss=tasks.query_loss,
            metrics=tasks.metrics,
            adapted=(self._named or self._of_none)(self._adapted) if self._keep_adapted else None,
            info=replace(tasks.info, sampling_error=spread),
            per_task=parameters.named(self._rows(self._tasks)) if self._keep_tasks else None,
        )

    @property
    def _plain(self) -> bool:
        """Whether all of its tasks count alike, and none is skipped."""
        return self._weights is None and not any(chunk.failure for chunk in self._chunks)

    def _kept(self, own: TaskResults | None) -> tuple[float, int]:
        """The sum of the weights of those that are not skipped, and how many these are."""
        if own is None or self._plain:
            count = 0 if own is None else len(own.weights)
            return float(count), count
        weights = own.weights[own.kept]
        return float(weights.sum()), len(weights)

    def _own_results(self) -> TaskResults | None:
        chunks = self._chunks
        if not chunks:
            return None
        return TaskResults(
            together(self._of_tasks),
            together(self._lengths),
            together([chunk.query_loss for chunk in chunks]),
            joined([chunk.metrics for chunk in chunks]),
            Info.join([chunk.info for chunk in chunks]),
            next((chunk.failure for chunk in chunks if chunk.failure), None),
        )

    def name_adapted(self, named: Callable[[Sequence[Tensor]], dict[str, Tensor] | None]) -> None:
        """``named``: y_i [t, P] of the chunks -> y_i [T, *shape] by name."""
        self._named = named

    def _of_none(self, parts: Sequence[Tensor]) -> dict[str, Tensor]:
        """y_i where this process has no task."""
        size = self._start.parameters.adapted.size
        return self._start.parameters.named_adapted(self._rows(parts)[:, :size])

    def _rows(self, parts: Sequence[Tensor]) -> Tensor:
        """[T, N] of this process's tasks."""
        return torch.cat(list(parts)) if parts else self._start.parameters.zeros()[None][:0]


def _checked_weights(weights: Any, count: int, like: Tensor) -> Tensor | None:
    """``weights`` [T] of ``count`` tasks, as numbers of the kind of ``like``. Raises InputError for other things."""
    if weights is None:
        return None
    if not isinstance(weights, (Tensor, Sequence)) or isinstance(weights, str):
        raise InputError(f"weights must be a tensor or a list of a number for each task, got {shown(weights)}")
    try:
        found = (weights if isinstance(weights, Tensor) else torch.as_tensor(weights, device="cpu")).detach().to(like)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"weights must be numbers, got {shown(weights)}") from error
    if found.shape != (count,):
        raise InputError(f"weights must be a number for each of {count} tasks, got shape {tuple(found.shape)}")
    if not bool((found.isfinite() & (found >= 0)).all()):
        raise InputError(f"weights must be finite and >= 0, got {shown(weights)}")
    return found


def _check_gradients(found: Any, wanted: Tensor) -> None:
    if not isinstance(found, Tensor) or found.shape != wanted.shape or found.dtype != wanted.dtype:
        raise InputError(
            f"reduce must return gradients of shape {tuple(wanted.shape)} and {wanted.dtype}, got {shown(found)}"
        )


def _nothing_left(tasks: TaskResults) -> Exception:
    """The error for a mean over no task."""
    failure, count = tasks.failure, len(tasks.weights)
    if failure is None:
        return InputError(f"weights must not all be 0, got {count} of them")
    all_of = "" if not bool(tasks.kept.any()) else " with a weight"
    return NonFiniteError(
        f"all {count} tasks{all_of} diverged, so that on_nonfinite='skip' leaves none; the first: {failure}",
        task=getattr(failure, "task", None),
        step=getattr(failure, "step", None),
    )
