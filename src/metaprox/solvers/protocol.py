"""What an inner solver is: any object with ``init`` and ``step``."""

from typing import Any, Protocol

from torch import Tensor


class InnerSolver(Protocol):
    """Settings of an iterative minimizer that sees gradients only.

    All tensors have the shape [T, B, P]: T tasks, B coupled branches of each task, P parameters. Tasks never
    mix. A step size that is adapted is to be the same for all branches of a task (reduce over dimension 1), so
    that the difference of two branches is the effect of the perturbation alone.

    A solver that steps each branch without a look at the others says so with ``separate_branches = True``: the loop
    backend then gives it one branch at a time, in the memory of one.
    """

    def init(self, y: Tensor) -> Any:
        """State before the first step from ``y``."""

    def step(self, grad: Tensor, y: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One step from ``y``, where the gradient is ``grad``: the new point and state, the old ones untouched."""


def separates_branches(solver: InnerSolver) -> bool:
    """Whether ``solver`` has declared that it steps each branch without a look at the others."""
    return bool(getattr(solver, "separate_branches", False))
