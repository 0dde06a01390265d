"""Evaluations that are compiled: one graph for each shape of the data, whatever the number of tasks and steps."""

import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

Evaluate = Callable[[Tensor, Tensor, Any], Any]


@dataclass
class CompiledEvaluation:
    """``evaluate(y [T, B, P], w, data)`` -> a tree of tensors [T, ...], compiled at the first call.

    A batch of fewer tasks than one before is padded with copies of its first task, so that it needs no graph of its
    own. Where compiling fails, a warning says why, and ``evaluate`` is called as it is from then on.
    """

    evaluate: Evaluate
    tasks: int = 0
    fails: bool = False
    _compiled: Evaluate = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._compiled = torch.compile(_with_own_code(self.evaluate), fullgraph=True, dynamic=False)

    def __call__(self, y: Tensor, w: Tensor, data: Any) -> Any:
        if self.fails:
            return self.evaluate(y, w, data)
        count, self.tasks = len(y), max(self.tasks, len(y))
        missing = self.tasks - count
        try:
            out = self._compiled(_padded(y, missing), w, pytree.tree_map(lambda leaf: _padded(leaf, missing), data))
        except torch._dynamo.exc.TorchDynamoException as error:
            self.fails = True
            reason = " ".join(line.strip() for line in str(error).strip().splitlines()[:2])
            warnings.warn(f"metaprox goes on without compile=True, which failed: {reason}", stacklevel=2)
            return self.evaluate(y, w, data)
        return pytree.tree_map(lambda leaf: leaf[:count], out)


def _padded(leaf: Tensor, missing: int) -> Tensor:
    """With ``missing`` further copies of the first row."""
    return torch.cat([leaf, leaf[:1].expand(missing, *leaf.shape[1:])]) if missing else leaf.contiguous()


def _with_own_code(function: Evaluate) -> Evaluate:
    """A copy with a code object of its own: torch limits the graphs for each code object, not for each function."""
    assert isinstance(function, types.FunctionType)
    code = function.__code__.replace(co_name=function.__name__)
    return types.FunctionType(
        code, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
