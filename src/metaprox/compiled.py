"""Evaluations that are compiled: one graph for each shape of the data, whatever the number of tasks and steps."""

import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from metaprox.parameters import Structure
from metaprox.solve import Step
from metaprox.solvers.protocol import InnerSolver
from metaprox.vmapped import CheckedLoss, evaluate_all

Evaluate = Callable[..., Any]


@dataclass
class CompiledEvaluation:
    """``evaluate(*fixed, *of_tasks)`` -> a tree of tensors [T, ...], compiled at the first call.

    ``of_tasks`` are trees of tensors [T, ...]. A batch of fewer tasks than one before is padded with copies of its
    first task, so that it needs no graph of its own. Where compiling fails, a warning says why, and ``evaluate`` is
    called as it is from then on.
    """

    evaluate: Evaluate
    tasks: int = 0
    fails: bool = False
    _compiled: Evaluate = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._compiled = torch.compile(_with_own_code(self.evaluate), fullgraph=True, dynamic=False)

    def __call__(self, fixed: tuple[Any, ...], of_tasks: tuple[Any, ...], count: int) -> Any:
        """The results for ``count`` tasks."""
        if self.fails:
            return self.evaluate(*fixed, *of_tasks)
        self.tasks = max(self.tasks, count)
        missing = self.tasks - count
        try:
            if not missing:
                return self._compiled(*fixed, *of_tasks)
            out = self._compiled(*fixed, *pytree.tree_map(lambda leaf: _padded(leaf, missing), of_tasks))
        except (torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.FailOnRecompileLimitHit) as error:
            self.fails = True
            warnings.warn(f"metaprox goes on without compile=True, which failed: {_reason(error)}", stacklevel=2)
            return self.evaluate(*fixed, *of_tasks)
        return pytree.tree_map(lambda leaf: leaf[:count], out)


@dataclass
class Graphs:
    """What is compiled of one loss on parameters of one structure; kept in ``cache``, whatever w is."""

    loss: CheckedLoss
    structure: Structure
    cache: dict[Any, CompiledEvaluation]
    _steps: dict[InnerSolver | None, CompiledEvaluation] = field(default_factory=dict)  # looked up so far, by solver

    @cached_property
    def evaluate(self) -> CompiledEvaluation:
        """(w [W], y [T, B, P], data) -> gradients, (values, metrics)."""
        loss, structure = self.loss, self.structure  # no tensors

        def evaluate(w: Tensor, y: Tensor, data: Any) -> Any:
            return evaluate_all(lambda point, one: loss(structure.unflatten(point, w), one), y, data)

        return self._cached(evaluate)

    @property
    def proximal(self) -> CompiledEvaluation:
        """(w [W], x [P], lam, y, shift [T, B, P], data) -> gradients + lam (y - x) + shift, and perhaps more.

        Where there is a graph that also takes a step, no other is compiled.
        """
        return next(iter(self._steps.values())) if self._steps else self.step(None)

    def step(self, solver: InnerSolver | None) -> CompiledEvaluation:
        """As ``proximal``, but -> that, the point after a step of ``solver``, the norm and the step size."""
        if solver not in self._steps:
            self._steps[solver] = self._take(solver)
        return self._steps[solver]

    def _take(self, solver: InnerSolver | None) -> CompiledEvaluation:
        loss, structure = self.loss, self.structure

        def take(w: Tensor, x: Tensor, lam: float, y: Tensor, shift: Tensor, data: Any) -> tuple[Tensor, ...]:
            gradient, _ = evaluate_all(lambda point, one: loss(structure.unflatten(point, w), one), y, data)
            gradient = gradient + lam * (y - x) + shift
            if solver is None:
                return (gradient,)
            taken = Step.take(solver, y, None, gradient)
            return gradient, taken.y, taken.norm, taken.size

        return self._cached(take, solver)

    def _cached(self, evaluate: Evaluate, *key: Any) -> CompiledEvaluation:
        place = (evaluate.__name__, self.structure, *key)
        if place not in self.cache:
            self.cache[place] = CompiledEvaluation(evaluate)
        return self.cache[place]


def _reason(error: Exception) -> str:
    if isinstance(error, torch._dynamo.exc.FailOnRecompileLimitHit):
        limit = torch._dynamo.config.recompile_limit
        return (
            f"torch's recompile_limit of {limit} graphs is reached, by as many shapes of data or because something in "
            "the loss changes from call to call; TORCH_LOGS=recompiles says what"
        )
    return " ".join(line.strip() for line in str(error).strip().splitlines()[:2])


def _padded(leaf: Tensor, missing: int) -> Tensor:
    """With ``missing`` further copies of the first row."""
    return torch.cat([leaf, leaf[:1].expand(missing, *leaf.shape[1:])])


def _with_own_code(function: Evaluate) -> Evaluate:
    """A copy with a code object of its own: torch limits the graphs for each code object, not for each function."""
    assert isinstance(function, types.FunctionType)
    code = function.__code__.replace(co_name=function.__name__)
    return types.FunctionType(
        code, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
