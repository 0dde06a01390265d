"""The proximal solve that adaptation, evaluation and every estimator's base share."""

from dataclasses import replace

import torch
from torch import Tensor

from metaprox.gradients import BASE_NOISE, Gradients
from metaprox.solve import Solution, Stopping, solve
from metaprox.solvers.protocol import InnerSolver


def proximal_solve(lam: float, x: Tensor, gradients: Gradients, solver: InnerSolver, stopping: Stopping) -> Solution:
    """argmin_y fhat_i(y) + (lam/2) ||y - x||^2 from y = x [P], for each task of ``gradients``: y is [T, 1, P]."""
    tasks = gradients.stop - gradients.start
    solution = solve(
        lambda y, step: gradients.support(y, BASE_NOISE, step).grad.add_(y - x, alpha=lam),
        x.expand(tasks, 1, -1),
        solver,
        stopping.max_steps,
        tol=None if stopping.tol is None else torch.full_like(x[:1], stopping.tol).expand(tasks),
        describe="base solve",
        first_task=gradients.start,
    )
    return replace(solution, grad=None)  # nobody needs it, and it is a vector of P numbers
