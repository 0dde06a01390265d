"""Losses evaluated at all points at once, under vmap, eager or compiled."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.func import grad, grad_and_value, vjp, vmap

from metaprox.checks.trees import flattened, mapped, unflattened
from metaprox.data.batch import TaskBatch
from metaprox.data.task import Task
from metaprox.losses.adapted import AdaptedLoss, guarded
from metaprox.losses.backend import Evaluation, Further, Run, Seed, Step, Steps
from metaprox.losses.checked import joined
from metaprox.losses.memory import Memory
from metaprox.losses.noise import CPU
from metaprox.losses.traced import MOST_STEPS, Rule
from metaprox.losses.vmapped import FlatLoss, at_all
from metaprox.solvers.protocol import InnerSolver, promised
from metaprox.types import Metrics
from metaprox.vectors.norms import norm_here
from metaprox.vectors.terms import ProximalTerm


@dataclass(frozen=True)
class VmapBackend:
    """One vmapped call for all tasks and branches, ``chunk_size`` tasks at a time (None: all), compiled or not.

    branches_apart: a call for each branch, where what several draw in one operation is not what one draws: the fused
    dropout of devices is another operation under two levels of vmap.
    """

    chunk_size: int | None = None
    compile: bool = False
    branches_apart: bool = False
    sequential: ClassVar[bool] = False

    def chunks(self, size: int) -> list[tuple[int, int]]:
        step = self.chunk_size or size
        return [(start, min(start + step, size)) for start in range(0, size, step)]

    def data(self, batch: TaskBatch, start: int, stop: int) -> Task:
        tasks = batch.many(start, stop)
        return _apart(tasks) if self.compile else tasks

    def evaluate(self, loss: FlatLoss, y: Tensor, data: Any, seed: Seed) -> Evaluation:
        if self.branches_apart and y.shape[1] > 1:
            parts = [self.evaluate(loss, branch, data, seed) for branch in y.split(1, 1)]
            return Evaluation(
                torch.cat([part.grad for part in parts], 1),
                torch.cat([part.value for part in parts], 1),
                joined([part.metrics for part in parts], partial(torch.cat, dim=1)),
            )
        found = None
        if self.compile and isinstance(loss, AdaptedLoss):
            with seed(0):
                found = loss.graphs.run("evaluate", (loss.w,), (y.contiguous(),), data)
        gradient, (value, metrics) = self._eagerly(loss, y, data, seed) if found is None else rows_of(found, len(y))
        return Evaluation(gradient, value, metrics)

    def _eagerly(self, loss: FlatLoss, y: Tensor, data: Any, seed: Seed) -> tuple[Tensor, tuple[Tensor, Metrics]]:
        with seed(0), _vmap_errors_explained():
            return at_all(grad_and_value(loss, has_aux=True), guarded(y), data)

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
        whole = self.compile or self.branches_apart
        gradient = self.evaluate(loss, y, data, seed).grad if whole else self._eagerly(loss, y, data, seed)[0]
        if weight is None:
            total.add_(gradient)
        else:
            total.addcmul_(weight, gradient)

    def step(self, loss: FlatLoss, y: Tensor, data: Any, seed: Seed, term: ProximalTerm, size: float) -> Step | None:
        if not self.compile or (self.branches_apart and y.shape[1] > 1):
            return None
        assert isinstance(loss, AdaptedLoss)
        y = y.contiguous()
        x, linear = _in_graph(term, y)
        numbers = constant(y.dtype, y.device, term.lam, size)
        with seed(0):
            found = loss.graphs.run("step", (loss.w, x, numbers), (y, linear), data)
        if found is not None:
            return Step(*rows_of(found, len(y)))
        gradient = term.gradient(y).add_(self._eagerly(loss, y, data, seed)[0])
        return Step(y.add(gradient, alpha=-size), gradient, norm_here(gradient).squeeze(-1))

    def steps(
        self, loss: FlatLoss, data: Any, seed: Seed, term: ProximalTerm, run: Run, further: Further | None = None
    ) -> Steps | None:
        if not self.compile:
            return None
        assert isinstance(loss, AdaptedLoss)
        y, steps, tasks = run.y.contiguous(), _part(run.steps), len(run.y)
        looks = steps + (run.ends and steps == run.steps)
        x, linear = _in_graph(term, y)
        numbers, weights = constant(y.dtype, y.device, term.lam, run.size), constant(y.dtype, y.device, *run.weights)
        limit, plan = constant(torch.int64, CPU, looks)[0], constant(torch.int64, y.device, looks, steps, run.freezes)
        rule = None if run.solver is None else (rule_of(run.solver), run.state[0])
        rows, graphs = [y, linear, run.active, _memory(run), ()], loss.graphs
        if further is not None:
            assert isinstance(further.loss, AdaptedLoss)
            rows[-1] = (further.weight,)
            graphs, data = loss.graphs_with(further.loss), (data, further.data)
        with seed(0):
            fixed = (loss.w, x, numbers, limit, zero(), plan, weights, rule)
            found = graphs.run("solve", fixed, rows, data, looks, kind=type(run.solver))
        if found is None:
            return None
        y, records, kept = found
        if len(y) > tasks:
            y, records, kept = y[:tasks], [one[:, :tasks] for one in records], [one[:tasks] for one in kept]
        norms, lengths, curvatures, *sizes = records
        own = (None, ()) if rule is None else (sizes[0][:steps], tuple(kept[1:]))
        return Steps(y, kept[0], norms[:steps], lengths[:looks], curvatures[:looks], *own)

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


def _apart(tree: Any) -> Any:
    """The same tensors, contiguous, of which none shares memory with another one: loops in graphs take no such two."""
    leaves, form = flattened(tree)
    own: dict[Any, Tensor] = {}
    for place, leaf in enumerate(leaves):
        leaves[place] = one = leaf.contiguous()
        other = own.setdefault(_memory_of(one), one)
        if other is not one and one.numel():
            same = (other.data_ptr(), other.shape, other.dtype) == (one.data_ptr(), one.shape, one.dtype)
            leaves[place] = other if same else one.clone()
    return unflattened(leaves, form)


def _carried(tensors: Sequence[Tensor], y: Tensor) -> tuple[Tensor, ...]:
    """The same, of which none shares memory with another one, or with ``y``, or is one."""
    taken, found = {_memory_of(y)}, []
    for tensor in tensors:
        one = tensor.contiguous()
        found.append(one.clone() if _memory_of(one) in taken else one)
        taken.add(_memory_of(one))
    return tuple(found)


def _memory_of(tensor: Tensor) -> tuple[torch.device, int]:
    return tensor.device, tensor.untyped_storage().data_ptr()


def rule_of(solver: InnerSolver) -> Rule:
    """Its steps, as a graph takes them."""
    return Rule(solver, *(promised(solver, name) is not None for name in ("step_size", "lasting")))


def _memory(run: Run) -> tuple[Tensor, ...]:
    """What is known of the step before, or as much of anything."""
    y, tasks = run.y, len(run.y)
    way = y.new_zeros(tasks, 1, y.shape[2]) if run.way is None else run.way
    length = y.new_ones(tasks) if run.length is None else run.length
    if run.solver is None:
        return way, length
    slope = y.new_zeros(tasks) if run.slope is None else run.slope
    return _carried([way, length, slope, *run.state[1]], y)


def _in_graph(term: ProximalTerm, y: Tensor) -> tuple[Tensor, Tensor]:
    """The one x [P] that a graph takes, and the linear term [T, B, P]: what tasks have of their own is linear."""
    linear, x = torch.zeros_like(y) if term.linear is None else term.linear.vector, term.parameters.x
    if x.dim() > 1:
        return x[0, 0], linear + term.lam * (x[0, 0] - x)
    return x, linear


def rows_of(found: Any, tasks: int) -> Any:
    """The rows of tasks, without those that filled the batch up."""
    return found if len(found[0]) == tasks else mapped(lambda leaf: leaf[:tasks], found)


def _part(steps: int) -> int:
    """How many of so many steps are taken in one graph: all, or what leaves some for the last one, whose end counts."""
    return steps if steps < MOST_STEPS else min(MOST_STEPS - 1, steps - MOST_STEPS // 2)


@lru_cache(maxsize=1)
def zero() -> Tensor:
    """The first step, not to be written on."""
    return torch.zeros((), dtype=torch.int64, device=CPU)


@lru_cache(maxsize=256)
def constant(dtype: torch.dtype, device: torch.device, *numbers: float) -> Tensor:
    """Not to be written on."""
    return torch.tensor(numbers, dtype=dtype, device=device)
