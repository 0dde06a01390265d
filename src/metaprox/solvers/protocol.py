"""What an inner solver is: any object with ``init`` and ``step``."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor
from torch.optim.optimizer import Optimizer

from metaprox.checks import shown
from metaprox.errors import InputError
from metaprox.vectors.norms import norm

Views = Callable[[Tensor], dict[str, Tensor]]  # a vector of P numbers -> the parameters in it, by name


class InnerSolver(Protocol):
    """Settings of an iterative minimizer that sees gradients only.

    All tensors have the shape [T, B, P]: T tasks, B coupled branches of each task, P parameters. Tasks never
    mix. A step size that is adapted is to be the same for all branches of a task (reduce over dimension 1), so
    that the difference of two branches is the effect of the perturbation alone.

    With ``compile=True`` ``step`` is traced, and steps are taken in one graph, where the state is tensors [T, ...] in
    tuples or dataclasses, and a step leaves it built as it was, a count of steps as a tensor too.

    What else a solver may say of itself, as an attribute or a property of its class:

    - ``separate_branches = True``: it steps each branch without a look at the others. The loop backend then gives it
      one branch at a time, in the memory of one; ``offload=True`` needs it.
    - ``relative_step = h``: all its steps are -h times the gradient, so that nobody needs to measure them, and in the
      loop, and with ``compile=True``, they are taken without a call of ``step``: in place, in a graph.
    - ``keeps_gradients = False``: after a step it holds neither the gradient nor a view of it, whose memory the loop
      backend then fills anew at the next one.
    - ``largest_curvature(steps)``: up to which curvature so many steps come closer to a minimum; None: not known. With
      ``relative_step`` it is 2/h. A lam above it is refused before the solve.
    - ``differentiable = False``: its step can't be differentiated, so that MAML and Tangent refuse it.
    - ``resume(y, step_sizes)``: the state before the first step of branches from ``y``, in place of ``init``, where
      their base was solved by an equal solver, in steps of these sizes [T, K] (NaN after a task's last).
    - ``lasting(state)``: of a state that grows at first, the same as it is built at last, such as with rows of zeros,
      for steps that are taken in one graph.
    - ``step_size(state)``: of the last step, for each task [T], where it is not ||step|| / ||grad||.
    - ``takes_shards = True``: of a vector that ranks hold parts of, it steps each number by itself, or takes norms and
      sums over all ranks (``metaprox.vectors.norms.norm``, ``metaprox.vectors.shards.total``).
    - ``for_parameters(views)``: a solver to use in its place, which knows the parameters' names and shapes.

    The first four, ``resume``, ``lasting``, ``step_size`` and ``takes_shards`` are promises, and hold for the class
    that makes them alone: a subclass, which may step otherwise, makes them anew or goes without, and so does whatever
    has its ``step`` replaced, or wrapped by a decorator.
    """

    def init(self, y: Tensor) -> Any:
        """State before the first step from ``y``."""

    def step(self, grad: Tensor, y: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One step from ``y``, where the gradient is ``grad``: the new point and state, the old point untouched."""


def check_solver(name: str, solver: Any) -> Any:
    """Returns ``solver``. Raises InputError, saying how to write one, unless it has ``init`` and ``step``."""
    made = solver.func if isinstance(solver, functools.partial) else solver
    kind = made if isinstance(made, type) else type(made)
    if issubclass(kind, Optimizer):
        remedy = f"wrap how to make one: mp.TorchOptimizer(functools.partial({_torch_name(kind)}, lr=...))"
    elif isinstance(solver, type) or not all(callable(getattr(solver, part, None)) for part in ("init", "step")):
        remedy = "such as mp.GradientDescent(lr=0.1), or any with init(y) and step(grad, y, state)"
    else:
        return solver
    raise InputError(f"{name} must be an inner solver, an object, got {shown(solver)}; {remedy}")


def _torch_name(kind: type) -> str:
    own = kind.__module__.startswith("torch.optim.")
    return f"torch.optim.{kind.__name__}" if own else kind.__name__


def for_parameters(solver: InnerSolver, views: Views) -> InnerSolver:
    """Returns ``solver`` on parameters of these names and shapes.

    Raises:
        InputError: ``for_parameters`` is inherited and hands out a solver that would not step as this one does.
    """
    tell = getattr(solver, "for_parameters", None)
    if tell is None:
        return solver
    told: InnerSolver = tell(views)
    if "for_parameters" not in vars(type(solver)) and _methods(told) != _methods(solver):
        raise InputError(
            f"{solver!r} has an init or step of its own, but the for_parameters that {type(solver).__name__} inherits "
            f"hands out a {type(told).__name__}, which does not know them: define for_parameters anew"
        )
    return told


def take_step(solver: InnerSolver, grad: Tensor, y: Tensor, state: Any) -> tuple[Tensor, Any]:
    """``solver.step``. Raises InputError unless it returns a point like ``y``, and a state, and leaves ``y`` alone."""
    written = y.is_inference() or y._version
    result = solver.step(grad, y, state)
    if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[0], Tensor):
        raise InputError(f"step of {solver!r} must return a new point and state, got {shown(result)}")
    new, state = result
    if (new.shape, new.dtype, new.device) != (y.shape, y.dtype, y.device):
        raise InputError(
            f"step of {solver!r} must return a point of shape {tuple(y.shape)}, {y.dtype}, on {y.device}, "
            f"got {shown(new)}"
        )
    if written != (y.is_inference() or y._version):
        raise InputError(f"step of {solver!r} has written on the point that it was given: it must return a new one")
    return new, state


def separates_branches(solver: InnerSolver) -> bool:
    """Whether the class of ``solver`` promises that it steps each branch without a look at the others."""
    return bool(promised(solver, "separate_branches"))


def keeps_gradients(solver: InnerSolver) -> bool:
    """Whether ``solver`` may hold a gradient beyond its step: unless its class says that it does not."""
    return promised(solver, "keeps_gradients") is not False


def relative_step(solver: InnerSolver) -> float | None:
    """h, where the class of ``solver`` promises that all its steps are -h times the gradient."""
    return promised(solver, "relative_step")


def step_size_of(solver: InnerSolver) -> Callable[[Any, Tensor, Tensor, Tensor], Tensor]:
    """Returns what gives the size [T] of a step from y to ``new`` [T, b, P], to ``state``: what ``solver`` says of it.

    Or else ||new - y|| / ||grad|| of the first branch; ``slope``: the norms of the gradients [T, b].
    """
    known, told = relative_step(solver), promised(solver, "step_size")

    def size(state: Any, new: Tensor, y: Tensor, slope: Tensor) -> Tensor:
        if known is not None:
            return slope.new_full((len(slope),), known)
        return norm(new[:, 0] - y[:, 0]).squeeze(-1) / slope[:, 0] if told is None else told(state)

    return size


def resumed(solver: InnerSolver, base: InnerSolver, step_sizes: Tensor) -> Callable[[Tensor], Any] | None:
    """Returns what makes the state of branches where they start, after a ``base`` of these steps; None: ``init``."""
    if not resumes(solver, base):
        return None
    resume = promised(solver, "resume")
    return lambda y: resume(y, step_sizes)


def resumes(solver: InnerSolver, base: InnerSolver) -> bool:
    """Whether branches by ``solver`` go on with the steps of their ``base``."""
    return promised(solver, "resume") is not None and type(base) is type(solver) and base == solver


def lasting(solver: InnerSolver, state: Any) -> Any:
    """A state after a step as it is built at last, where the class of ``solver`` says how."""
    told = promised(solver, "lasting")
    return state if told is None or state is None else told(state)


def check_takes_shards(solver: InnerSolver) -> None:
    """Raise InputError unless the class of ``solver`` promises that it can step vectors that ranks hold parts of."""
    if not promised(solver, "takes_shards"):
        raise InputError(
            f"{solver!r} does not say that it can step a model in shards, of which each rank sees its own numbers: "
            "take a solver of metaprox, or mp.TorchOptimizer(..., elementwise=True); one of your own that steps each "
            "number by itself, or takes its sums over all ranks, says so: takes_shards = True"
        )


def check_differentiable(solver: InnerSolver, method: str) -> None:
    """Raise InputError where ``solver`` has declared, or inherited, that its step can't be differentiated."""
    if not getattr(solver, "differentiable", True):
        raise InputError(
            f"{method} differentiates the steps of the inner solver, which {solver!r} does not allow; "
            "use FOBMAML, or one of metaprox's own solvers; a solver whose step can be differentiated, although it "
            "inherits from one whose can't, says so: differentiable = True"
        )


def promised(solver: InnerSolver, name: str) -> Any:
    """What the class of ``solver`` itself says under ``name``; None where it says nothing, or its step was replaced."""
    own = vars(type(solver))
    if name not in own and name not in own.get("__annotations__", {}):
        return None
    return getattr(solver, name) if _steps_as_written(solver) else None


def _steps_as_written(solver: InnerSolver) -> bool:
    """Whether ``init`` and ``step`` are those that a class statement defined, and nothing was put in their place."""
    if {"init", "step"} & getattr(solver, "__dict__", {}).keys():
        return False
    return all(_as_written(type(solver), name) for name in ("init", "step"))


def _as_written(kind: type, name: str) -> bool:
    owner = next((cls for cls in kind.__mro__ if name in vars(cls)), kind)
    method = vars(owner).get(name)
    place = (owner.__module__, f"{owner.__qualname__}.{name}")
    return (
        inspect.isfunction(method)
        and (method.__module__, method.__qualname__) == place
        and getattr(method, "__wrapped__", None) is None  # a wrapper takes over the name of what it wraps
    )


def _methods(solver: InnerSolver) -> list[Any]:
    """``init`` and ``step`` as the functions they are, whatever object they are bound to."""
    methods = [getattr(solver, name) for name in ("init", "step")]
    return [getattr(method, "__func__", method) for method in methods]
