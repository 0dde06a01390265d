"""How a loss is evaluated at T x B points: vmapped, or one by one."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.func import grad, vjp, vmap
from torch.utils import _pytree as pytree

from metaprox.adapted import AdaptedLoss, guarded
from metaprox.batch import TaskBatch
from metaprox.problem import Task
from metaprox.pull import Pull
from metaprox.solve import Step
from metaprox.types import Metrics
from metaprox.vmapped import FlatLoss, evaluate_all

Seed = Callable[[int], AbstractContextManager[None]]  # around an evaluation: fixes the noise of that task of a chunk


@dataclass(frozen=True)
class Evaluation:
    """A loss at T x B points: gradient [T, B, P], value [T, B], further metrics [T, B]."""

    grad: Tensor
    value: Tensor
    metrics: Metrics


class Backend(Protocol):
    """How gradients at many points are evaluated. ``compile``: in compiled graphs. ``sequential``: one by one."""

    @property
    def compile(self) -> bool: ...
    @property
    def sequential(self) -> bool: ...

    def chunks(self, size: int) -> list[tuple[int, int]]:
        """The ranges [start, stop) in which ``size`` tasks are processed."""

    def take(self, batch: TaskBatch, start: int, stop: int) -> Any:
        """Tasks start..stop-1 as ``evaluate`` wants them, as a Task of data."""

    def evaluate(self, loss: FlatLoss, y: Tensor, data: Any, seed: Seed) -> Evaluation:
        """``loss`` at y [T, B, P] on the data of T tasks."""

    def add_gradient(
        self, loss: FlatLoss, y: Tensor, data: Any, seed: Seed, total: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        """``total`` [T, B, P], to which the gradient of ``loss`` at y was added, times ``weight`` [T, B, 1] or 1."""

    def proximal(self, loss: FlatLoss, y: Tensor, data: Any, seed: Seed, pull: Pull) -> Tensor:
        """The gradient of ``loss`` at y and the ``pull`` there, a new tensor [T, B, P]."""

    def step(self, loss: FlatLoss, y: Tensor, data: Any, seed: Seed, pull: Pull, size: float) -> Step | None:
        """``proximal`` and y - ``size`` times it, where both in one are faster; else None."""

    def values(self, loss: FlatLoss, y: Tensor, data: Any, seed: Seed) -> tuple[Tensor, Metrics]:
        """``loss`` and metrics [T] at y [T, P], without a gradient."""

    def join(self, *parts: Any) -> Any:
        """Several data of T tasks as one: a loss then sees them as a tuple."""

    def inner_gradient(self, loss: FlatLoss, y: Tensor, data: Any) -> Tensor:
        """grad ``loss`` at y [P] for one task, inside another loss that is to be differentiated through it."""


@dataclass(frozen=True)
class VmapBackend:
    """One vmapped call for all tasks and branches, ``chunk_size`` tasks at a time (None: all), compiled or not."""

    chunk_size: int | None = None
    compile: bool = False
    sequential: ClassVar[bool] = False

    def chunks(self, size: int) -> list[tuple[int, int]]:
        step = self.chunk_size or size
        return [(start, min(start + step, size)) for start in range(0, size, step)]

    def take(self, batch: TaskBatch, start: int, stop: int) -> Task:
        tasks = batch.many(start, stop)
        return pytree.tree_map(torch.Tensor.contiguous, tasks) if self.compile else tasks

    def evaluate(self, loss: FlatLoss, y: Tensor, data: Any, seed: Seed) -> Evaluation:
        found = None
        if self.compile and isinstance(loss, AdaptedLoss):
            with seed(0):
                found = loss.graphs.evaluate(loss.w, y.contiguous(), data)
        gradient, (value, metrics) = found or self._eagerly(loss, y, data, seed)
        return Evaluation(gradient, value, metrics)

    def _eagerly(self, loss: FlatLoss, y: Tensor, data: Any, seed: Seed) -> tuple[Tensor, tuple[Tensor, Metrics]]:
        with seed(0), _vmap_errors_explained():
            return evaluate_all(loss, guarded(y), data)

    def add_gradient(
        self, loss: FlatLoss, y: Tensor, data: Any, seed: Seed, total: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        gradient = self.evaluate(loss, y, data, seed).grad
        return total.add_(gradient) if weight is None else total.addcmul_(weight, gradient)

    def proximal(self, loss: FlatLoss, y: Tensor, data: Any, seed: Seed, pull: Pull) -> Tensor:
        step = self.step(loss, y, data, seed, pull, 0.0)
        return pull.at(y).add_(self._eagerly(loss, y, data, seed)[0]) if step is None else step.grad

    def step(self, loss: FlatLoss, y: Tensor, data: Any, seed: Seed, pull: Pull, size: float) -> Step | None:
        if not self.compile or not isinstance(loss, AdaptedLoss):
            return None
        y = y.contiguous()
        shift = torch.zeros_like(y) if pull.shift is None else pull.shift.vector
        lam, length = y.new_full((), pull.lam), y.new_full((), size)
        with seed(0):
            found = loss.graphs.step(loss.w, pull.parameters.x, lam, length, y, shift, data)
        return None if found is None else Step(*found)

    def values(self, loss: FlatLoss, y: Tensor, data: Any, seed: Seed) -> tuple[Tensor, Metrics]:
        def one(point: Tensor, of_task: Any) -> tuple[Tensor, Metrics]:
            # Not loss(point, ...): p requires grad, as parameters do elsewhere.
            value, _, metrics = vjp(lambda p: loss(p, of_task), point, has_aux=True)  # type: ignore[misc]
            return value, metrics

        with seed(0), _vmap_errors_explained():
            return vmap(one, randomness="different")(guarded(y), data)

    def join(self, *parts: Any) -> Any:
        return parts

    def inner_gradient(self, loss: FlatLoss, y: Tensor, data: Any) -> Tensor:
        return grad(loss, has_aux=True)(y.clone(), data)[0]


@contextmanager
def _vmap_errors_explained() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        error.add_note("metaprox: raised under vmap; a model that vmap can't take runs with backend='loop'")
        raise
