"""How a loss is evaluated at T x B points: what the backends, one by one and all at once, have in common."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from metaprox.data.batch import TaskBatch
from metaprox.data.task import Task
from metaprox.losses.memory import Memory
from metaprox.losses.vmapped import FlatLoss
from metaprox.types import Metrics
from metaprox.vectors.terms import ProximalTerm

# Around an evaluation: fixes the noise of that task of a chunk, or for a backend that is not sequential of all, from 0.
Seed = Callable[[int], AbstractContextManager[None]]


@dataclass(frozen=True)
class Evaluation:
    """A loss at T x B points: gradient [T, B, P], value [T, B], further metrics [T, B]."""

    grad: Tensor
    value: Tensor
    metrics: Metrics


@dataclass(frozen=True)
class Step:
    """A step that was taken: the new point [T, b, P], the gradient that led there and its norm [T, b].

    Where nobody sees the gradient it may be None, and another number stand for the norm: finite where that is.
    """

    y: Tensor
    grad: Tensor | None
    norm: Tensor


class Backend(Protocol):
    """How losses are evaluated at many points. ``compile``: in compiled graphs. ``sequential``: one by one."""

    @property
    def compile(self) -> bool: ...
    @property
    def sequential(self) -> bool: ...

    def chunks(self, size: int) -> list[tuple[int, int]]:
        """The ranges [start, stop) in which ``size`` tasks are processed."""

    def data(self, batch: TaskBatch, start: int, stop: int) -> Task:
        """Of tasks start..stop-1, as the other methods want them."""

    def evaluate(self, loss: FlatLoss, y: Tensor, data: Any, seed: Seed) -> Evaluation:
        """``loss`` at y [T, B, P] on the data of T tasks."""

    def add_gradient(
        self,
        loss: FlatLoss,
        y: Tensor,
        data: Any,
        seed: Seed,
        total: Tensor,
        weight: Tensor | None = None,
        memory: Memory | None = None,
    ) -> object:
        """Add the gradient of ``loss`` at y to ``total`` [T, B, P] in place, times ``weight`` [T, B, 1] if given.

        ``memory``: of the solve that y is a point of, where it has one.
        """

    def step(self, loss: FlatLoss, y: Tensor, data: Any, seed: Seed, term: ProximalTerm, size: float) -> Step | None:
        """The gradient of ``loss`` and ``term``, and y - ``size`` times it, in one graph; None if not ``compile``."""

    def values(self, loss: FlatLoss, y: Tensor, data: Any, seed: Seed) -> tuple[Tensor, Metrics]:
        """``loss`` and metrics [T] at y [T, P], without a gradient."""

    # For losses within a loss, of one task, that are to be differentiated through:

    def join(self, *parts: Any) -> Any:
        """Several data of T tasks as one: a loss then sees them as a tuple."""

    def inner_value(self, loss: FlatLoss, y: Tensor, data: Any) -> tuple[Tensor, Metrics]:
        """``loss`` at y [P]."""

    def inner_gradient(self, loss: FlatLoss, y: Tensor, data: Any) -> Tensor:
        """grad ``loss`` at y [P]."""
