"""Gradients of the two losses at T x B points: vmapped, or one by one. The only place that calls the user's losses."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap
from torch.utils import _pytree as pytree

from metaprox import checks
from metaprox.batch import TaskBatch
from metaprox.errors import InputError
from metaprox.layout import Layout
from metaprox.noise import Noise
from metaprox.problem import Loss, ProximalProblem, Task

Metrics = dict[str, Tensor]
FlatLoss = Callable[[Tensor, Any], tuple[Tensor, Metrics]]
BackendName = Literal["vmap", "loop"]


@dataclass(frozen=True)
class Evaluation:
    """A loss at T x B points: gradient [T, B, P], value [T, B], further metrics [T, B]."""

    grad: Tensor
    value: Tensor
    metrics: Metrics


@dataclass
class Counts:
    """Work done, one per task and branch: gradients of each loss, Hessian-vector products."""

    support_gradients: int = 0
    query_gradients: int = 0
    hessian_vector_products: int = 0

    @classmethod
    def total(cls, parts: Sequence["Counts"]) -> "Counts":
        return cls(*(sum(getattr(part, field.name) for part in parts) for field in fields(cls)))


class Backend(Protocol):
    """How gradients at many points are evaluated."""

    def chunks(self, size: int) -> list[tuple[int, int]]:
        """The ranges [start, stop) in which ``size`` tasks are processed."""

    def take(self, batch: TaskBatch, start: int, stop: int) -> Any:
        """Tasks start..stop-1 as ``evaluate`` wants them, as a Task of data."""

    def evaluate(self, loss: FlatLoss, y: Tensor, data: Any, seed: Callable[[int], None]) -> Evaluation:
        """``loss`` at y [T, B, P] on the data of T tasks; ``seed(t)`` fixes the noise of task t of this chunk."""

    def values(self, loss: FlatLoss, y: Tensor, data: Any, seed: Callable[[int], None]) -> tuple[Tensor, Metrics]:
        """``loss`` and metrics [T] at y [T, P], without a gradient."""


@dataclass(frozen=True)
class VmapBackend:
    """One vmapped call for all tasks and branches, ``chunk_size`` tasks at a time (None: all)."""

    chunk_size: int | None = None

    def __post_init__(self) -> None:
        if self.chunk_size is not None:
            checks.count("chunk_size", self.chunk_size)

    def chunks(self, size: int) -> list[tuple[int, int]]:
        step = self.chunk_size or size
        return [(start, min(start + step, size)) for start in range(0, size, step)]

    def take(self, batch: TaskBatch, start: int, stop: int) -> Task:
        return batch.many(start, stop)

    def evaluate(self, loss: FlatLoss, y: Tensor, data: Any, seed: Callable[[int], None]) -> Evaluation:
        seed(0)
        one = grad_and_value(loss, has_aux=True)
        with _vmap_errors_explained():
            if y.shape[1] == 1:  # a second vmap level would cost as much overhead as the first
                grad, (value, metrics) = vmap(one, randomness="different")(y.squeeze(1), data)
                columns = {name: metric.unsqueeze(1) for name, metric in metrics.items()}
                return Evaluation(grad.unsqueeze(1), value.unsqueeze(1), columns)
            # The data get a branch dimension too (a view): torch's rule for mse_loss is wrong under two levels of
            # vmap when one argument has only one of them.
            shared = pytree.tree_map(lambda leaf: leaf.unsqueeze(1).expand(-1, y.shape[1], *leaf.shape[1:]), data)
            branches = vmap(one, randomness="same")
            grad, (value, metrics) = vmap(branches, randomness="different")(y, shared)
        return Evaluation(grad, value, metrics)

    def values(self, loss: FlatLoss, y: Tensor, data: Any, seed: Callable[[int], None]) -> tuple[Tensor, Metrics]:
        seed(0)
        with _vmap_errors_explained():
            return vmap(loss, randomness="different")(y, data)


@contextmanager
def _vmap_errors_explained() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        error.add_note("metaprox: raised under vmap; a model that vmap can't take runs with backend='loop'")
        raise


@dataclass(frozen=True)
class LoopBackend:
    """One plain forward and backward pass per task and branch: works for any model and any data."""

    def chunks(self, size: int) -> list[tuple[int, int]]:
        return [(task, task + 1) for task in range(size)]

    def take(self, batch: TaskBatch, start: int, stop: int) -> Task:
        tasks = [batch.one(task) for task in range(start, stop)]
        return Task([task.support for task in tasks], [task.query for task in tasks])

    def evaluate(self, loss: FlatLoss, y: Tensor, data: Any, seed: Callable[[int], None]) -> Evaluation:
        points: list[Evaluation] = []
        for task, (branches, task_data) in enumerate(zip(y, data, strict=True)):
            for point in branches:
                seed(task)
                points.append(_evaluate_point(loss, point, task_data))
        lead = y.shape[:2]
        value, metrics = _stack([(p.value, p.metrics) for p in points])
        columns = {name: metric.view(lead) for name, metric in metrics.items()}
        return Evaluation(torch.stack([p.grad for p in points]).view(y.shape), value.view(lead), columns)

    def values(self, loss: FlatLoss, y: Tensor, data: Any, seed: Callable[[int], None]) -> tuple[Tensor, Metrics]:
        results = []
        for task, (point, task_data) in enumerate(zip(y, data, strict=True)):
            seed(task)
            results.append(loss(point, task_data))
        return _stack(results)


def _stack(results: list[tuple[Tensor, Metrics]]) -> tuple[Tensor, Metrics]:
    names = results[0][1]
    return torch.stack([value for value, _ in results]), {
        name: torch.stack([metrics[name] for _, metrics in results]) for name in names
    }


def _evaluate_point(loss: FlatLoss, point: Tensor, data: Any) -> Evaluation:
    with torch.enable_grad():
        leaf = point.detach().requires_grad_()
        value, metrics = loss(leaf, data)
        (grad,) = torch.autograd.grad(value, leaf)
    return Evaluation(grad, value.detach(), {name: metric.detach() for name, metric in metrics.items()})


def backend(name: str, chunk_size: int | None) -> Backend:
    """The backend of that name. The loop backend takes one task at a time whatever the chunk size."""
    checks.choice("backend", name, ("vmap", "loop"))
    return VmapBackend(chunk_size) if name == "vmap" else LoopBackend()


class Gradients:
    """Gradients of one problem's losses on tasks start..stop-1 of a batch, counted and with coupled noise."""

    def __init__(
        self,
        problem: ProximalProblem,
        layout: Layout,
        engine: Backend,
        noise: Noise,
        batch: TaskBatch,
        tasks: tuple[int, int],
    ) -> None:
        self.start, self.stop = tasks
        self.counts = Counts()
        self._engine = engine
        self._noise = noise
        self._data = engine.take(batch, self.start, self.stop)
        self._inner = flat_loss(problem.inner_loss, "inner_loss", layout)
        self._outer = flat_loss(problem.outer_loss, "outer_loss", layout)
        self._values = flat_loss(problem.outer_loss, "outer_loss", layout, differentiable=False)

    def support(self, y: Tensor, *noise_ids: int) -> Evaluation:
        """grad fhat at y [T, B, P]; equal ``noise_ids`` mean equal noise."""
        self.counts.support_gradients += y.shape[0] * y.shape[1]
        return self._evaluate(self._inner, y, self._data.support, (0, *noise_ids))

    def query(self, y: Tensor, *noise_ids: int) -> Evaluation:
        """grad f at y [T, B, P]; equal ``noise_ids`` mean equal noise."""
        self.counts.query_gradients += y.shape[0] * y.shape[1]
        return self._evaluate(self._outer, y, self._data.query, (1, *noise_ids))

    def query_values(self, y: Tensor, *noise_ids: int) -> tuple[Tensor, Metrics]:
        """f and its metrics [T] at y [T, P], without a gradient (and so not counted as one)."""
        return self._engine.values(self._values, y, self._data.query, self._seed((1, *noise_ids)))

    def _evaluate(self, loss: FlatLoss, y: Tensor, data: Any, noise_ids: Sequence[int]) -> Evaluation:
        return self._engine.evaluate(loss, y, data, self._seed(noise_ids))

    def _seed(self, noise_ids: Sequence[int]) -> Callable[[int], None]:
        return lambda task: self._noise.set(*noise_ids, self.start + task)


def flat_loss(loss: Loss, role: str, layout: Layout, *, differentiable: bool = True) -> FlatLoss:
    """``loss`` as a function of the flat vector that always returns (scalar, metrics).

    Raises InputError unless the loss is a scalar and, where ``differentiable``, depends on the vector.
    """

    def call(flat: Tensor, data: Any) -> tuple[Tensor, Metrics]:
        result = loss(layout.unflatten(flat), data)
        value, metrics = result if isinstance(result, tuple) else (result, {})
        if not isinstance(value, Tensor) or value.dim() != 0:
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise InputError(f"{role} must return a scalar tensor, got {got}; reduce it, for example with .mean()")
        if differentiable and not value.requires_grad:
            raise InputError(
                f"{role} does not depend on the parameters {list(layout.names)}; is the loss computed from them, "
                "and without detach() or no_grad()?"
            )
        return value, dict(metrics)

    return call
