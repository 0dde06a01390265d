"""Equation (2) by hand: FO-B-MAML as its abstract has it, naive and slow. To be read first; the oracle of a test."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from metaprox.data.task import Task
from metaprox.problem import ProximalProblem
from metaprox.types import Params


def finite_difference_by_hand(
    problem: ProximalProblem, x: Params, tasks: Sequence[Task], *, lr: float, steps: int, nu: float
) -> dict[str, Tensor]:
    """Returns g = -(lam / (2 nu)) mean_i (y_i(nu) - y_i(-nu)), each by K steps of gradient descent, from y_i(0).

    What ``FOBMAML(GradientDescent(lr), steps, nu=nu)`` is, to rounding, for losses without noise that return a scalar,
    and parameters that all adapt. Costs 3 K gradients of fhat + nu f a task.
    """
    fhat: Any = problem.inner_loss
    f: Any = problem.outer_loss

    def solve(start: Params, task: Task, nu: float) -> Params:
        y = dict(start)
        for _ in range(steps):
            y = {name: part.detach().requires_grad_() for name, part in y.items()}
            proximal = sum((0.5 * problem.lam * (y[name] - x[name]) ** 2).sum() for name in x)
            objective = fhat(y, task.support) + nu * f(y, task.query) + proximal
            slopes = torch.autograd.grad(objective, list(y.values()))
            y = {name: part.detach() - lr * slope for (name, part), slope in zip(y.items(), slopes, strict=True)}
        return y

    g = {name: torch.zeros_like(part) for name, part in x.items()}
    for task in tasks:
        y0 = solve(x, task, 0.0)
        plus, minus = solve(y0, task, nu), solve(y0, task, -nu)
        for name, total in g.items():
            total -= problem.lam / (2 * nu) * (plus[name] - minus[name]) / len(tasks)
    return g
