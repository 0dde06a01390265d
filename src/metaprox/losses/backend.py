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
from metaprox.solvers.protocol import InnerSolver
from metaprox.solvers.state import Form
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


@dataclass(frozen=True)
class Run:
    """Steps that are to be taken in one, from y [T, B, P] on.

    steps: how many. active: the tasks that step [T]. freezes: whether a task stays where its gradient is not finite.
    size: of steps that are multiples of the gradient, or else solver, and its state in two: how it is built, and the
    tensors in it. weights: a_j of the branches. way [T, 1, P], length and slope [T]: G = sum_j a_j grad_j one
    evaluation before, and its norm, or else S = sum_j a_j (y_j - y_j before), its norm and <S, G> / ||S||, where they
    are known. ends: whether the gradient after the last step is wanted too, of a single branch.
    """

    y: Tensor
    steps: int
    active: Tensor
    freezes: bool = False
    size: float = 0.0
    solver: InnerSolver | None = None
    state: tuple[Form, list[Tensor]] = (None, [])
    weights: tuple[float, ...] = (1.0,)
    way: Tensor | None = None
    length: Tensor | None = None
    slope: Tensor | None = None
    ends: bool = False


@dataclass(frozen=True)
class Steps:
    """The first n steps of a run: the new point [T, B, P], and the last G [T, 1, P].

    norms: of the steps' gradients [n, T, B]. lengths, curvatures: ||G|| and that along the step before [m, T], of each
    evaluation: m = n + 1 where the last one is at the new point, and else n. sizes: of a solver's steps [n, T]. kept:
    way, length, slope of the last step, and the tensors of the solver's state.
    """

    y: Tensor
    grad: Tensor
    norms: Tensor
    lengths: Tensor
    curvatures: Tensor
    sizes: Tensor | None = None
    kept: tuple[Tensor, ...] = ()

    @property
    def ended(self) -> bool:
        """Whether the last G is that of the new point."""
        return len(self.lengths) > len(self.norms)


@dataclass(frozen=True)
class Further:
    """A second loss, whose gradients are added, ``weight`` [T, b, 1] times, to those of the last b branches."""

    loss: FlatLoss
    data: Any
    weight: Tensor


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

    def steps(
        self, loss: FlatLoss, data: Any, seed: Seed, term: ProximalTerm, run: Run, further: Further | None = None
    ) -> Steps | None:
        """One or more of the steps of ``run``, and all if they are few, in one graph; None where there is none.

        The losses draw no random numbers.
        """

    def values(self, loss: FlatLoss, y: Tensor, data: Any, seed: Seed) -> tuple[Tensor, Metrics]:
        """``loss`` and metrics [T] at y [T, P], without a gradient."""

    # For losses within a loss, of one task, that are to be differentiated through:

    def join(self, *parts: Any) -> Any:
        """Several data of T tasks as one: a loss then sees them as a tuple."""

    def inner_value(self, loss: FlatLoss, y: Tensor, data: Any) -> tuple[Tensor, Metrics]:
        """``loss`` at y [P]."""

    def inner_gradient(self, loss: FlatLoss, y: Tensor, data: Any) -> Tensor:
        """grad ``loss`` at y [P]."""
