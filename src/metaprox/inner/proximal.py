"""The proximal solve that adaptation, evaluation and every estimator's base share."""

from metaprox.inner.failures import Purpose
from metaprox.inner.solve import Solution, Stopping, solve_parts
from metaprox.losses.gradients import BASE_NOISE, Gradients
from metaprox.solvers.protocol import InnerSolver


def proximal_solve(
    gradients: Gradients, solver: InnerSolver, stopping: Stopping, purpose: Purpose | None = None
) -> Solution:
    """argmin_y fhat_i(y) + (lam/2) ||y - x||^2 from y = x [P], for each task of ``gradients``: y is [T, 1, P].

    Raises NonFiniteError where a task diverges, unless ``purpose`` says otherwise.
    """
    solver = gradients.for_parameters(solver)
    return solve_parts(
        lambda y, step, branches: gradients.proximal(y, BASE_NOISE, step),
        [gradients.start_at_x()],
        solver,
        stopping.max_steps,
        fused=lambda y, step, branches: gradients.step(solver, y, BASE_NOISE, step),
        tol=None if stopping.tol is None else gradients.per_task(stopping.tol),
        purpose=purpose or Purpose("base solve", gradients.start, gradients.lam),
    )
