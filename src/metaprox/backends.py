"""How a loss is evaluated at T x B points: vmapped, or one by one."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.func import grad, vjp, vmap
from torch.utils import _pytree as pytree

from metaprox.batch import TaskBatch
from metaprox.checked import CheckedLoss
from metaprox.compiled import Graphs
from metaprox.errors import InputError
from metaprox.microbatches import weighted_sum
from metaprox.module import PrivateLoss
from metaprox.parameters import Structure
from metaprox.problem import Task
from metaprox.pull import Pull
from metaprox.solve import Step
from metaprox.types import Metrics
from metaprox.vmapped import FlatLoss, evaluate_all

REENTRANT = (
    "the model recomputes activations with torch.utils.checkpoint and use_reentrant=True, which takes gradients of all "
    "that requires grad, and hides what that is; give use_reentrant=False (transformers: "
    "gradient_checkpointing_enable({'use_reentrant': False}))"
)
Seed = Callable[[int], AbstractContextManager[None]]  # around an evaluation: fixes the noise of that task of a chunk


@dataclass(frozen=True)
class Evaluation:
    """A loss at T x B points: gradient [T, B, P], value [T, B], further metrics [T, B]."""

    grad: Tensor
    value: Tensor
    metrics: Metrics


@dataclass(frozen=True)
class AdaptedLoss:
    """A checked loss on all parameters, as a function of y [P] at the w there is.

    ``writes``: whether it writes on its parameters, so that w is not given to it itself.
    """

    loss: CheckedLoss
    structure: Structure
    w: Tensor
    writes: bool = False

    def __call__(self, y: Tensor, data: Any) -> tuple[Tensor, Metrics]:
        parts = self.structure.adapted.unflatten(y)
        return self.at(apart(parts) if self.writes else parts, data)

    def at(self, adapted: dict[str, Tensor], data: Any) -> tuple[Tensor, Metrics]:
        """At the parameters that adapt, by name."""
        if not self.writes:
            return self.loss(self.structure.merge(adapted, self.w), data)
        parts = self.structure.merge(adapted, guarded(self.w))
        return self.loss({name: part if name in adapted else part.data for name, part in parts.items()}, data)

    def leaves(self, point: Tensor) -> dict[str, Tensor]:
        """The parameters that adapt at y [P], as leaves of a graph, in memory that a loss may write on."""
        parts = self.structure.adapted.unflatten(guarded(point))
        # data: each has a version of its own, and what is written on one spoils no graph that has saved another
        return {name: part.data.requires_grad_() for name, part in parts.items()}

    @cached_property
    def graphs(self) -> Graphs:
        """Of the live model's loss, which outlives a call."""
        own = self.loss.loss
        traced = replace(self.loss, loss=own.source if isinstance(own, PrivateLoss) else own, explains=False)
        return Graphs(traced, self.structure)


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


@dataclass(frozen=True)
class LoopBackend:
    """One plain forward and backward pass per task and branch: works for any model and any data."""

    compile: ClassVar[bool] = False
    sequential: ClassVar[bool] = True

    def chunks(self, size: int) -> list[tuple[int, int]]:
        return [(task, task + 1) for task in range(size)]

    def take(self, batch: TaskBatch, start: int, stop: int) -> Task:
        tasks = [batch.one(task) for task in range(start, stop)]
        return Task([task.support for task in tasks], [task.query for task in tasks])

    def evaluate(self, loss: FlatLoss, y: Tensor, data: Any, seed: Seed) -> Evaluation:
        gradient = torch.zeros_like(y, memory_format=torch.contiguous_format)
        results = []
        for task, task_data in enumerate(data):
            for point, place in zip(y[task], gradient[task], strict=True):
                with seed(task):
                    results.append(_evaluate_point(loss, point, task_data, place, None))
        value, metrics = pytree.tree_map(lambda leaf: leaf.view(*y.shape[:2], *leaf.shape[1:]), _stack(results))
        return Evaluation(gradient, value, metrics)

    def add_gradient(
        self, loss: FlatLoss, y: Tensor, data: Any, seed: Seed, total: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        for task, task_data in enumerate(data):
            for branch, (point, place) in enumerate(zip(y[task], total[task], strict=True)):
                scale = None if weight is None else weight[task, branch, 0]
                with seed(task):
                    _evaluate_point(loss, point, task_data, place, scale)
        return total

    def proximal(self, loss: FlatLoss, y: Tensor, data: Any, seed: Seed, pull: Pull) -> Tensor:
        return self.add_gradient(loss, y, data, seed, pull.at(y))

    def step(self, loss: FlatLoss, y: Tensor, data: Any, seed: Seed, pull: Pull, size: float) -> Step | None:
        return None

    def values(self, loss: FlatLoss, y: Tensor, data: Any, seed: Seed) -> tuple[Tensor, Metrics]:
        results = []
        for task, (point, task_data) in enumerate(zip(y, data, strict=True)):
            with seed(task), torch.enable_grad():  # losses may take derivatives of their own
                found = weighted_sum(lambda batch, share: _values(loss, point, batch), task_data)  # noqa: B023
            results.append(pytree.tree_map(torch.Tensor.detach, found))
        return _stack(results)

    def join(self, *parts: Any) -> Any:
        return list(zip(*parts, strict=True))

    def inner_gradient(self, loss: FlatLoss, y: Tensor, data: Any) -> Tensor:
        y = y.clone()  # what the loss writes on is this
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


def apart(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies with the graph of ``parts``: autograd lets nobody write on one of several views."""
    return {name: part.clone() for name, part in parts.items()}


def guarded(y: Tensor) -> Tensor:
    """``y``, in memory that a loss may write on: a copy that is made if and when it is written on, where torch can."""
    try:
        copied: Tensor = torch._lazy_clone(y.detach())
    except (AttributeError, RuntimeError):  # torch without it, or memory that is not torch's own
        return y.detach().clone()
    return copied


def _stack(results: list[Any]) -> Any:
    """Trees of tensors -> one tree with a leading dimension."""
    for result in results:
        if pytree.tree_structure(result) != pytree.tree_structure(results[0]):
            raise InputError("a loss reports other metrics in one evaluation than in another")
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
            leaf = guarded(point).requires_grad_()
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
    leaves = loss.leaves(point)
    value, metrics = loss.at(dict(leaves), data)
    places = layout.views(gradient)
    learned = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}  # unless the loss has frozen it
    for name, leaf in learned.items():  # now: the loss may have filled, or emptied, its parameters' .grad
        leaf.grad = places[name] if leaf.dtype == gradient.dtype else None
    try:
        value.backward(None if weight is None else weight.to(value.dtype), inputs=list(learned.values()))
    except RuntimeError as error:
        if "Checkpointing is not compatible" in str(error):
            raise InputError(REENTRANT) from error
        raise
    for name, leaf in learned.items():
        if leaf.dtype != gradient.dtype and leaf.grad is not None:
            places[name].add_(leaf.grad)
    return value, metrics


def _values(loss: FlatLoss, point: Tensor, data: Any) -> tuple[Tensor, Metrics]:
    if isinstance(loss, AdaptedLoss):
        return loss.at(loss.leaves(point), data)
    return loss(guarded(point), data)
