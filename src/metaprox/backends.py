"""How a loss is evaluated at T x B points: vmapped, or one by one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor
from torch.func import grad, grad_and_value, vmap
from torch.utils import _pytree as pytree

from metaprox import checks
from metaprox.batch import TaskBatch
from metaprox.compiled import CompiledEvaluation
from metaprox.errors import InputError
from metaprox.microbatches import weighted_sum
from metaprox.parameters import Structure
from metaprox.problem import Metrics, Task

FlatLoss = Callable[[Tensor, Any], tuple[Tensor, Metrics]]
Seed = Callable[[int], None]  # fixes the noise of that task of a chunk
BackendName = Literal["vmap", "loop"]


@dataclass(frozen=True)
class Evaluation:
    """A loss at T x B points: gradient [T, B, P], value [T, B], further metrics [T, B]."""

    grad: Tensor
    value: Tensor
    metrics: Metrics


@dataclass(frozen=True)
class Onto:
    """Where a gradient goes: it is added in place to ``total`` [T, B, P], times ``weight`` [T, B, 1] if given."""

    total: Tensor
    weight: Tensor | None = None


@dataclass(frozen=True)
class AdaptedLoss:
    """A checked loss on all parameters, as a function of y [P] at the w there is. ``cache``: what is compiled of it."""

    loss: Callable[[dict[str, Tensor], Any], tuple[Tensor, Metrics]]
    structure: Structure
    w: Tensor
    cache: dict[Any, CompiledEvaluation] = field(default_factory=dict)

    def __call__(self, y: Tensor, data: Any) -> tuple[Tensor, Metrics]:
        return self.loss(self.structure.unflatten(y, self.w), data)

    def compiled(self) -> CompiledEvaluation:
        """Gradients, values and metrics at (y [T, B, P], w [W]), compiled; kept in the cache."""
        if self.structure not in self.cache:
            loss, structure = self.loss, self.structure  # no tensors

            def evaluate(y: Tensor, w: Tensor, data: Any) -> Any:
                return evaluate_all(lambda point, one: loss(structure.unflatten(point, w), one), y, data)

            self.cache[self.structure] = CompiledEvaluation(evaluate)
        return self.cache[self.structure]


def evaluate_all(loss: FlatLoss, y: Tensor, data: Any) -> tuple[Tensor, tuple[Tensor, Metrics]]:
    """Gradient [T, B, P], value and metrics [T, B] of ``loss`` at y [T, B, P] on the data of T tasks, vmapped."""
    one = grad_and_value(loss, has_aux=True)
    if y.shape[1] == 1:  # a second vmap level would cost as much overhead as the first
        results = vmap(one, randomness="different")(y.squeeze(1), data)
        return pytree.tree_map(lambda leaf: leaf.unsqueeze(1), results)
    # The data get a branch dimension too (a view): torch's rule for mse_loss is wrong under two levels of
    # vmap when one argument has only one of them.
    shared = pytree.tree_map(lambda leaf: leaf.unsqueeze(1).expand(-1, y.shape[1], *leaf.shape[1:]), data)
    return vmap(vmap(one, randomness="same"), randomness="different")(y, shared)


class Backend(Protocol):
    """How gradients at many points are evaluated. ``sequential``: one point after another."""

    sequential: ClassVar[bool]

    def chunks(self, size: int) -> list[tuple[int, int]]:
        """The ranges [start, stop) in which ``size`` tasks are processed."""

    def take(self, batch: TaskBatch, start: int, stop: int) -> Any:
        """Tasks start..stop-1 as ``evaluate`` wants them, as a Task of data."""

    def evaluate(self, loss: FlatLoss, y: Tensor, data: Any, seed: Seed, onto: Onto | None = None) -> Evaluation:
        """``loss`` at y [T, B, P] on the data of T tasks; the gradient in the result is that of ``onto`` if given."""

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
        return batch.many(start, stop)

    def evaluate(self, loss: FlatLoss, y: Tensor, data: Any, seed: Seed, onto: Onto | None = None) -> Evaluation:
        out = self._evaluate(loss, y, data, seed)
        if onto is None:
            return out
        if onto.weight is None:
            return replace(out, grad=onto.total.add_(out.grad))
        return replace(out, grad=onto.total.addcmul_(onto.weight, out.grad))

    def _evaluate(self, loss: FlatLoss, y: Tensor, data: Any, seed: Seed) -> Evaluation:
        seed(0)
        with _vmap_errors_explained():
            if self.compile and isinstance(loss, AdaptedLoss):
                gradient, (value, metrics) = loss.compiled()(y, loss.w, data)
            else:
                gradient, (value, metrics) = evaluate_all(loss, y, data)
        return Evaluation(gradient, value, metrics)

    def values(self, loss: FlatLoss, y: Tensor, data: Any, seed: Seed) -> tuple[Tensor, Metrics]:
        seed(0)
        with _vmap_errors_explained():
            return vmap(loss, randomness="different")(y, data)

    def join(self, *parts: Any) -> Any:
        return parts

    def inner_gradient(self, loss: FlatLoss, y: Tensor, data: Any) -> Tensor:
        return grad(loss, has_aux=True)(y, data)[0]


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

    sequential: ClassVar[bool] = True

    def chunks(self, size: int) -> list[tuple[int, int]]:
        return [(task, task + 1) for task in range(size)]

    def take(self, batch: TaskBatch, start: int, stop: int) -> Task:
        tasks = [batch.one(task) for task in range(start, stop)]
        return Task([task.support for task in tasks], [task.query for task in tasks])

    def evaluate(self, loss: FlatLoss, y: Tensor, data: Any, seed: Seed, onto: Onto | None = None) -> Evaluation:
        onto = onto or Onto(torch.zeros_like(y, memory_format=torch.contiguous_format))
        results = []
        for task, task_data in enumerate(data):
            for branch, (point, place) in enumerate(zip(y[task], onto.total[task], strict=True)):
                seed(task)
                scale = None if onto.weight is None else onto.weight[task, branch, 0]
                results.append(_evaluate_point(loss, point, task_data, place, scale))
        value, metrics = pytree.tree_map(lambda leaf: leaf.view(*y.shape[:2], *leaf.shape[1:]), _stack(results))
        return Evaluation(onto.total, value, metrics)

    def values(self, loss: FlatLoss, y: Tensor, data: Any, seed: Seed) -> tuple[Tensor, Metrics]:
        results = []
        for task, (point, task_data) in enumerate(zip(y, data, strict=True)):
            seed(task)
            results.append(loss(point, task_data))
        return _stack(results)

    def join(self, *parts: Any) -> Any:
        return list(zip(*parts, strict=True))

    def inner_gradient(self, loss: FlatLoss, y: Tensor, data: Any) -> Tensor:
        value, _ = loss(y, data)
        (gradient,) = torch.autograd.grad(value, y, create_graph=True)
        _require_second_derivatives(gradient, y)
        return gradient


def _require_second_derivatives(gradient: Tensor, y: Tensor) -> None:
    """Raise RuntimeError where a function between y and its gradient is ``once_differentiable``.

    torch would only say so in a pass that reaches it, and ``torch.autograd.grad`` skips what leads to no input: a term
    of the second derivative would be missing, and nobody told.
    """
    seen, left = {y.grad_fn}, [gradient.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        if node.name() == "torch::autograd::Error":  # what torch leaves in place of the second derivative
            raise RuntimeError("the inner loss has a function that is marked with @once_differentiable")
        seen.add(node)
        left += [parent for parent, _ in node.next_functions]


def _stack(results: list[Any]) -> Any:
    """Trees of tensors -> one tree with a leading dimension."""
    return pytree.tree_map(lambda *leaves: torch.stack(leaves), *results)


def _evaluate_point(
    loss: FlatLoss, point: Tensor, data: Any, gradient: Tensor, weight: Tensor | None
) -> tuple[Tensor, Metrics]:
    """Value and metrics at one point [P]; adds the gradient, times ``weight`` if given, to ``gradient`` [P]."""

    def one(batch: Any, share: float) -> tuple[Tensor, Metrics]:
        scale = weight if share == 1 else gradient.new_tensor(share) if weight is None else share * weight
        return _evaluate_batch(loss, point, batch, gradient, scale)

    return weighted_sum(one, data)


def _evaluate_batch(
    loss: FlatLoss, point: Tensor, data: Any, gradient: Tensor, weight: Tensor | None
) -> tuple[Tensor, Metrics]:
    with torch.enable_grad():
        if isinstance(loss, AdaptedLoss):
            value, metrics = _backward_in_place(loss, point, data, gradient, weight)
        else:
            leaf = point.detach().requires_grad_()
            value, metrics = loss(leaf, data)
            if value.requires_grad:
                (found,) = torch.autograd.grad(value, leaf, None if weight is None else weight.to(value.dtype))
                gradient.add_(found)
    return value.detach(), pytree.tree_map(torch.Tensor.detach, metrics)


def _backward_in_place(
    loss: AdaptedLoss, point: Tensor, data: Any, gradient: Tensor, weight: Tensor | None
) -> tuple[Tensor, Metrics]:
    """The backward pass adds to ``gradient`` as it goes, so that no second vector of P numbers is ever there."""
    layout = loss.structure.adapted
    leaves = {name: part.detach().requires_grad_() for name, part in layout.unflatten(point).items()}
    places = layout.views(gradient)
    for name, leaf in leaves.items():
        if leaf.dtype == gradient.dtype:
            leaf.grad = places[name]
    value, metrics = loss.loss(loss.structure.merge(dict(leaves), loss.w), data)
    value.backward(None if weight is None else weight.to(value.dtype), inputs=list(leaves.values()))
    for name, leaf in leaves.items():
        if leaf.dtype != gradient.dtype and leaf.grad is not None:
            places[name].add_(leaf.grad)
    return value, metrics


def backend(name: str, chunk_size: int | None, compile: bool = False) -> Backend:  # noqa: A002 - torch's word
    """The backend of that name. The loop backend takes one task at a time whatever the chunk size."""
    checks.choice("backend", name, ("vmap", "loop"))
    if chunk_size is not None:
        checks.count("chunk_size", chunk_size)
    if name == "vmap":
        return VmapBackend(chunk_size, compile)
    if compile:
        raise InputError("compile=True needs backend='vmap'; with 'loop' compile the model: torch.compile(model)")
    return LoopBackend()
