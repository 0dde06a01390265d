"""Losses evaluated one by one, by plain forward and backward passes."""

from contextlib import closing
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from metaprox.data.batch import TaskBatch
from metaprox.data.microbatches import pieces, plus, weighted_sum
from metaprox.data.task import Task
from metaprox.errors import InputError
from metaprox.losses.backend import Evaluation, Further, Run, Seed, Step, Steps
from metaprox.losses.graph import nodes
from metaprox.losses.memory import Memory
from metaprox.losses.passes import differentiate, spot, value
from metaprox.losses.vmapped import FlatLoss
from metaprox.types import Metrics
from metaprox.vectors.terms import ProximalTerm

ONCE = "the inner loss has a function that is marked with @once_differentiable"
_MARK = torch.autograd.function.once_differentiable(lambda ctx: None).__code__  # the wrapper's, one for all


@dataclass(frozen=True)
class LoopBackend:
    """One plain forward and backward pass per task and branch: works for any model and any data."""

    compile: ClassVar[bool] = False
    sequential: ClassVar[bool] = True

    def chunks(self, size: int) -> list[tuple[int, int]]:
        return [(task, task + 1) for task in range(size)]

    def data(self, batch: TaskBatch, start: int, stop: int) -> Task:
        tasks = [batch.one(task) for task in range(start, stop)]
        return Task([task.support for task in tasks], [task.query for task in tasks])

    def evaluate(self, loss: FlatLoss, y: Tensor, data: Any, seed: Seed) -> Evaluation:
        gradient = torch.zeros_like(y, memory_format=torch.contiguous_format)
        stacked = _stack(self.add_gradient(loss, y, data, seed, gradient))
        value, metrics = pytree.tree_map(lambda leaf: leaf.view(*y.shape[:2], *leaf.shape[1:]), stacked)
        return Evaluation(gradient, value, metrics)

    def add_gradient(
        self,
        loss: FlatLoss,
        y: Tensor,
        data: Any,
        seed: Seed,
        total: Tensor,
        weight: Tensor | None = None,
        memory: Memory | None = None,
    ) -> list[tuple[Tensor, Metrics]]:
        """Returns the values and metrics, too, of branch after branch of task after task."""
        results: list[Any] = []
        for task, task_data in enumerate(data):
            for branch, (point, place) in enumerate(zip(y[task], total[task], strict=True)):
                where = spot(loss, point, memory, y, branch)
                places = None if memory is None else memory.places(total)[branch]
                scale = None if weight is None else weight[task, branch, 0]
                found: Any = None
                with seed(task), torch.enable_grad(), closing(pieces(task_data)) as parts:
                    for share, batch in parts:
                        one = differentiate(loss, where, batch, place, _product(share, scale, place), places)
                        found = plus(found, one, share)
                results.append(found)
        return results

    def step(self, loss: FlatLoss, y: Tensor, data: Any, seed: Seed, term: ProximalTerm, size: float) -> Step | None:
        return None

    def steps(
        self, loss: FlatLoss, data: Any, seed: Seed, term: ProximalTerm, run: Run, further: Further | None = None
    ) -> Steps | None:
        return None

    def values(self, loss: FlatLoss, y: Tensor, data: Any, seed: Seed) -> tuple[Tensor, Metrics]:
        results = []
        for task, (point, task_data) in enumerate(zip(y, data, strict=True)):
            with seed(task), torch.enable_grad():  # losses may take derivatives of their own
                found = weighted_sum(lambda batch: value(loss, point, batch), task_data)  # noqa: B023
            results.append(pytree.tree_map(torch.Tensor.detach, found))
        return _stack(results)

    def join(self, *parts: Any) -> Any:
        return list(zip(*parts, strict=True))

    def inner_value(self, loss: FlatLoss, y: Tensor, data: Any) -> tuple[Tensor, Metrics]:
        return weighted_sum(lambda batch: loss(y, batch), data)

    def inner_gradient(self, loss: FlatLoss, y: Tensor, data: Any) -> Tensor:
        y = y.clone()  # what the loss writes on is this
        total: Any = None
        with closing(pieces(data)) as parts:
            for share, batch in parts:
                total = plus(total, loss(y, batch)[0], share)
        (gradient,) = torch.autograd.grad(total, y, create_graph=True)
        _require_second_derivatives(total, gradient, y)
        return gradient


def _require_second_derivatives(value: Tensor, gradient: Tensor, y: Tensor) -> None:
    """Refuse functions between y and the value, or its gradient, that are ``once_differentiable``.

    torch would only say so in a pass that reaches it, and ``torch.autograd.grad`` skips what leads to no input. It says
    nothing where all that such a function gets in the backward pass is constant. A term of the second derivative would
    be missing, and nobody told.

    Raises:
        RuntimeError: there is one.
    """
    marked = []
    for node in nodes(value.grad_fn, gradient.grad_fn, end=y.grad_fn):
        if node.name() == "torch::autograd::Error":  # what torch leaves in place of the second derivative
            raise RuntimeError(ONCE)
        if _once_differentiable(node):
            marked.append(node)
    if any(found is y.grad_fn for node in marked for found in nodes(node)):
        raise RuntimeError(ONCE)


def _once_differentiable(node: Any) -> bool:
    """Whether a node of the graph is of a function of the user's with that mark."""
    backward = getattr(getattr(node, "_forward_cls", None), "backward", None)
    return getattr(backward, "__code__", None) is _MARK


def _stack(results: list[Any]) -> Any:
    """Trees of tensors -> one tree with a leading dimension."""
    for result in results:
        if pytree.tree_structure(result) != pytree.tree_structure(results[0]):
            raise InputError("a loss reports other metrics in one evaluation than in another")
    return pytree.tree_map(lambda *leaves: torch.stack(leaves), *results)


def _product(share: float | None, weight: Tensor | None, like: Tensor) -> Tensor | None:
    """The two factors of a gradient as one; None for 1."""
    if share is None or share == 1:
        return weight
    return like.new_tensor(share) if weight is None else share * weight
