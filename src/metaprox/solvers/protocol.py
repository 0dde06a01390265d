"""What an inner solver is: any object with ``init`` and ``step``."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from metaprox.errors import InputError

Views = Callable[[Tensor], dict[str, Tensor]]  # a vector of P numbers -> the parameters in it, by name


class InnerSolver(Protocol):
    """Settings of an iterative minimizer that sees gradients only.

    All tensors have the shape [T, B, P]: T tasks, B coupled branches of each task, P parameters. Tasks never
    mix. A step size that is adapted is to be the same for all branches of a task (reduce over dimension 1), so
    that the difference of two branches is the effect of the perturbation alone.

    What else a solver may say of itself:

    - ``separate_branches = True``: it steps each branch without a look at the others. The loop backend then gives it
      one branch at a time, in the memory of one.
    - ``relative_step = h``: all its steps are -h times the gradient, so that nobody needs to measure them, and with
      ``compile=True`` they are taken in one graph with the gradient, without a call of ``step``.
    - ``largest_curvature(steps)``: up to which curvature so many steps come closer to a minimum; None: not known. With
      ``relative_step`` it is 2/h. A lam above it is refused before the solve.
    - ``differentiable = False``: its step can't be differentiated, so that MAML and Tangent refuse it.
    - ``for_parameters(views)``: a solver to use in its place, which knows the parameters' names and shapes.
    """

    def init(self, y: Tensor) -> Any:
        """State before the first step from ``y``."""

    def step(self, grad: Tensor, y: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One step from ``y``, where the gradient is ``grad``: the new point and state, the old point untouched."""


@runtime_checkable
class ShapedSolver(Protocol):
    """A solver that wants to know the shapes of the parameters."""

    def for_parameters(self, views: Views) -> InnerSolver:
        """The solver to use on parameters that ``views`` finds in a vector."""


def for_parameters(solver: InnerSolver, views: Views) -> InnerSolver:
    """``solver`` on parameters of these names and shapes."""
    return solver.for_parameters(views) if isinstance(solver, ShapedSolver) else solver


def separates_branches(solver: InnerSolver) -> bool:
    """Whether ``solver`` has declared that it steps each branch without a look at the others."""
    return bool(getattr(solver, "separate_branches", False))


def relative_step(solver: InnerSolver) -> float | None:
    """h, where ``solver`` has declared that all its steps are -h times the gradient."""
    return getattr(solver, "relative_step", None)


def check_differentiable(solver: InnerSolver, method: str) -> None:
    """Raise InputError where ``solver`` has declared that its step can't be differentiated."""
    if not getattr(solver, "differentiable", True):
        raise InputError(
            f"{method} differentiates the steps of the inner solver, which {solver!r} does not allow; "
            "use FOBMAML, or one of metaprox's own solvers"
        )
