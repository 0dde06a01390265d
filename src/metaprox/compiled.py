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

from metaprox.norms import norm
from metaprox.parameters import Structure
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

    @cached_property
    def evaluate(self) -> CompiledEvaluation:
        """(w [W], y [T, B, P], data) -> gradients, (values, metrics)."""
        loss, structure = self.loss, self.structure  # no tensors

        def evaluate(w: Tensor, y: Tensor, data: Any) -> Any:
            return evaluate_all(lambda point, one: loss(structure.unflatten(point, w), one), y, data)

        return self._cached(evaluate)

    @cached_property
    def step(self) -> CompiledEvaluation:
        """(w [W], x [P], lam, size [], y, shift [T, B, P], data) -> y - size g, g, ||g||, for any solver and step size.

        g = gradients + lam (y - x) + shift.
        """
        loss, structure = self.loss, self.structure

        def step(
            w: Tensor, x: Tensor, lam: float, size: Tensor, y: Tensor, shift: Tensor, data: Any
        ) -> tuple[Tensor, ...]:
            gradient, _ = evaluate_all(lambda point, one: loss(structure.unflatten(point, w), one), y, data)
            gradient = gradient + lam * (y - x) + shift
            return y - size * gradient, gradient, norm(gradient).squeeze(-1)

        return self._cached(step)

    def _cached(self, evaluate: Evaluate) -> CompiledEvaluation:
        place = (evaluate.__name__, self.structure)
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
