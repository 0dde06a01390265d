"""How a loss is evaluated at T x B points: what the backends, one by one and all at once, have in common."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from metaprox.data.batch import TaskBatch
from metaprox.losses.vmapped import FlatLoss
from metaprox.types import Metrics
from metaprox.vectors.terms import Pull

Seed = Callable[[int], AbstractContextManager[None]]  # around an evaluation: fixes the noise of that task of a chunk


@dataclass(frozen=True)
class Evaluation:
    """A loss at T x B points: gradient [T, B, P], value [T, B], further metrics [T, B]."""

    grad: Tensor
    value: Tensor
    metrics: Metrics


@dataclass(frozen=True)
class Step:
    """A step that was taken: the new point [T, b, P], the gradient that led there, its norm [T, b]."""

    y: Tensor
    grad: Tensor
    norm: Tensor


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
