"""Losses evaluated at all points at once, under vmap, eager or compiled."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.func import grad, vjp, vmap
from torch.utils import _pytree as pytree

from metaprox.data.batch import TaskBatch
from metaprox.data.task import Task
from metaprox.losses.adapted import AdaptedLoss, guarded
from metaprox.losses.backend import Evaluation, Seed, Step
from metaprox.losses.memory import Memory
from metaprox.losses.vmapped import FlatLoss, evaluate_all
from metaprox.types import Metrics
from metaprox.vectors.norms import norm_here
from metaprox.vectors.terms import ProximalTerm


@dataclass(frozen=True)
class VmapBackend:
    """One vmapped call for all tasks and branches, ``chunk_size`` tasks at a time (None: all), compiled or not."""

    chunk_size: int | None = None
    compile: bool = False
    sequential: ClassVar[bool] = False

    def chunks(self, size: int) -> list[tuple[int, int]]:
        step = self.chunk_size or size
        return [(start, min(start + step, size)) for start in range(0, size, step)]

    def data(self, batch: TaskBatch, start: int, stop: int) -> Task:
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
        self,
        loss: FlatLoss,
        y: Tensor,
        data: Any,
        seed: Seed,
        total: Tensor,
        weight: Tensor | None = None,
        memory: Memory | None = None,
    ) -> None:
        in_graph = self.compile
        gradient = self.evaluate(loss, y, data, seed).grad if in_graph else self._eagerly(loss, y, data, seed)[0]
        if weight is None:
            total.add_(gradient)
        else:
            total.addcmul_(weight, gradient)

    def step(self, loss: FlatLoss, y: Tensor, data: Any, seed: Seed, term: ProximalTerm, size: float) -> Step | None:
        if not self.compile:
            return None
        assert isinstance(loss, AdaptedLoss)
        y = y.contiguous()
        linear = torch.zeros_like(y) if term.linear is None else term.linear.vector
        lam, length, x = y.new_full((), term.lam), y.new_full((), size), term.parameters.x
        if x.dim() > 1:  # tasks with parameters of their own: a graph takes one x, and what others differ by is linear
            x, linear = x[0, 0], linear + term.lam * (x[0, 0] - x)
        with seed(0):
            found = loss.graphs.step(loss.w, x, lam, length, y, linear, data)
        if found is not None:
            return Step(*found)
        gradient = term.gradient(y).add_(self._eagerly(loss, y, data, seed)[0])
        return Step(y.add(gradient, alpha=-size), gradient, norm_here(gradient).squeeze(-1))

    def values(self, loss: FlatLoss, y: Tensor, data: Any, seed: Seed) -> tuple[Tensor, Metrics]:
        def one(point: Tensor, of_task: Any) -> tuple[Tensor, Metrics]:
            # Not loss(point, ...): p requires grad, as parameters do elsewhere.
            value, _, metrics = vjp(lambda p: loss(p, of_task), point, has_aux=True)  # type: ignore[misc]
            return value, metrics

        with seed(0), _vmap_errors_explained():
            return vmap(one, randomness="different")(guarded(y), data)

    def join(self, *parts: Any) -> Any:
        return parts

    def inner_value(self, loss: FlatLoss, y: Tensor, data: Any) -> tuple[Tensor, Metrics]:
        return loss(y, data)

    def inner_gradient(self, loss: FlatLoss, y: Tensor, data: Any) -> Tensor:
        return grad(loss, has_aux=True)(y.clone(), data)[0]


@contextmanager
def _vmap_errors_explained() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        error.add_note("metaprox: raised under vmap; a model that vmap can't take runs with backend='loop'")
        raise
