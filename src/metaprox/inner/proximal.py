"""The proximal solve that adaptation, evaluation and every estimator's base share."""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from metaprox.inner.failures import OnNonfinite, Purpose
from metaprox.inner.progress import Enough, Solution
from metaprox.inner.solve import Stopping, solve_parts
from metaprox.inner.trail import Trail
from metaprox.losses.descent import descend
from metaprox.losses.gradients import BASE_NOISE, Gradients
from metaprox.solvers.protocol import InnerSolver, relative_step
from metaprox.vectors.norms import norm


def residual_at(gradients: Gradients, y0: Tensor, trail: Trail | None) -> tuple[Tensor, Tensor]:
    """r = grad fhat(y_0) + lam (y_0 - x) [T, 1, P] and ||r|| [T, 1, 1], which the ``trail`` of the solve is told of."""
    residual = gradients.proximal(y0, 0)
    length = norm(residual)
    if trail is not None:
        trail.ended(residual, length.flatten())
    return residual, length


def proximal_solve(
    gradients: Gradients,
    solver: InnerSolver,
    stopping: Stopping,
    on_nonfinite: OnNonfinite = "raise",
    *,
    watched: int = 0,
    enough: Callable[[Trail], Enough] | None = None,
) -> Solution:
    """Returns argmin_y fhat_i(y) + (lam/2) ||y - x||^2 from y = x [P], for each task of ``gradients``: y is [T, 1, P].

    ``watched``: how many of the last evaluations its trail looks at, which ``residual_at`` ends. By it ``enough`` may
    end the solve early.

    Raises:
        NonFiniteError: a task diverges, unless ``on_nonfinite`` says otherwise.
    """
    solver = gradients.for_parameters(solver)
    trail = Trail((1.0,), relative_step(solver), watched, closed=True, rest=gradients.rest) if watched else None
    tol = None if stopping.tol is None else gradients.per_task(stopping.tol)
    start, memory = gradients.start_at_x(), gradients.memory(solver)
    if memory is None:
        fused = partial(gradients.step, solver, noise=BASE_NOISE)
    else:
        memory.own(start, 0)
        fused = partial(descend, gradients, memory, noise=BASE_NOISE)
    starts = [start]
    del start  # of which ``starts`` has the only one
    return solve_parts(
        partial(gradients.proximal, noise=BASE_NOISE, memory=memory),
        starts,
        solver,
        stopping.max_steps,
        fused=fused,
        in_one=partial(gradients.steps, ends=watched > 0),
        memory=memory,
        tol=enough(trail) if enough and trail else tol,
        trail=trail,
        purpose=Purpose("base solve", gradients.start, gradients.lam, on_nonfinite=on_nonfinite),
    )
