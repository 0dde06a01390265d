"""What an inner solver is: any object with ``init`` and ``step``."""

from typing import Any, Protocol

from torch import Tensor


class InnerSolver(Protocol):
    """Settings of an iterative minimizer that sees gradients only.

    All tensors have the shape [T, B, P]: T tasks, B coupled branches of each task, P parameters. Tasks never
    mix. A step size that is adapted is to be the same for all branches of a task (reduce over dimension 1), so
    that the difference of two branches is the effect of the perturbation alone.
    """

    def init(self, y: Tensor) -> Any:
        """State before the first step from ``y``."""

    def step(self, grad: Tensor, y: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One step from ``y``, where the gradient is ``grad``: the new point and state, the old ones untouched."""
