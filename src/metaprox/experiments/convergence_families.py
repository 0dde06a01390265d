"""The two families of problems that the convergence experiment runs on, with their exact grad F.

Their settings are in the docstring of ``metaprox.experiments.convergence``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.func import hessian, jacfwd, vmap

import metaprox as mp
from metaprox.experiments.problems import logistic_loss
from metaprox.tasks import Quadratic
from metaprox.tasks import quadratic as closed_form
from metaprox.types import Params

QUADRATIC_LAM, QUADRATIC_DIM, CONDITION = 0.2, 10, 30.0
ALPHA, LOGISTIC_LAM, LOGISTIC_DIM, OUTER_STEP = 0.15, 0.25, 6, 6.0
SUPPORT, QUERY, INPUT_SCALES, COMMON = 4, 20, (0.3, 1.2), 3.0


@dataclass(frozen=True)
class Setting:
    """A problem, its tasks, and what a run on it needs.

    curvature: bounds on that of the inner problem, lam included. look: x -> what is recorded of it, ||grad F(x)|| as
    "norm".
    """

    problem: mp.ProximalProblem
    tasks: mp.Task
    start: dict[str, Tensor]
    outer_step: float
    curvature: tuple[float, float]
    look: Callable[[dict[str, Tensor]], dict[str, float]]


def _quadratic_tasks(count: int, seed: int) -> mp.Task:
    return Quadratic(QUADRATIC_DIM, CONDITION, seed).batch(range(count))


def quadratic(count: int, seed: int) -> Setting:
    tasks = _quadratic_tasks(count, seed)
    best = closed_form.minimizer(tasks, QUADRATIC_LAM)
    hessian_of_f = jacfwd(partial(_gradient, tasks))(best)

    def look(params: dict[str, Tensor]) -> dict[str, float]:
        x = params["y"]
        return {"norm": float(_gradient(tasks, x).norm()), "distance": float((x - best).norm())}

    return Setting(
        problem=Quadratic(QUADRATIC_DIM, CONDITION, seed).problem(QUADRATIC_LAM),
        tasks=tasks,
        start={"y": torch.full_like(best, 3.0)},
        outer_step=1 / float(torch.linalg.eigvalsh(hessian_of_f)[-1]),
        curvature=(1 / CONDITION + QUADRATIC_LAM, 1 + QUADRATIC_LAM),
        look=look,
    )


def _gradient(tasks: mp.Task, x: Tensor) -> Tensor:
    """grad F [P] of quadratic tasks."""
    return closed_form.meta_gradient(x, tasks, QUADRATIC_LAM).mean(0)


def levels(count: int, seed: int) -> dict[str, float]:
    """||grad F|| at the points where the biased methods come to rest. Their directions are affine in x."""
    tasks = _quadratic_tasks(count, seed)
    curvature, center = tasks.query

    def fomaml(x: Tensor) -> Tensor:
        offset = closed_form.solution(x, tasks, QUADRATIC_LAM) - center
        return (curvature @ offset[..., None]).squeeze(-1).mean(0)

    def reptile(x: Tensor) -> Tensor:
        return (x - closed_form.solution(x, tasks, QUADRATIC_LAM)).mean(0)

    return {
        name: float(_gradient(tasks, _root(direction, torch.zeros_like(center[0]))).norm())
        for name, direction in (("fomaml", fomaml), ("reptile", reptile))
    }


def _root(affine: Callable[[Tensor], Tensor], origin: Tensor) -> Tensor:
    return origin - torch.linalg.solve(jacfwd(affine)(origin), affine(origin))


def nonconvex(count: int, seed: int) -> Setting:
    tasks = _logistic_tasks(count, seed)
    inputs, _ = tasks.support
    problem = mp.ProximalProblem(_regularized_loss, _regularized_loss, LOGISTIC_LAM)
    of_data = torch.linalg.eigvalsh(inputs.mT @ inputs)[:, -1].max() / (4 * SUPPORT)
    curvature_at = vmap(hessian(lambda w, data: _regularized_loss({"w": w}, data)))

    def look(params: dict[str, Tensor]) -> dict[str, float]:
        exact = mp.exact_meta_gradient(problem, params, tasks)
        least = torch.linalg.eigvalsh(curvature_at(exact.solutions, tasks.support)).min()
        return {"norm": float(exact.grad["w"].norm()), "least_curvature": float(least)}

    return Setting(
        problem=problem,
        tasks=tasks,
        start={"w": torch.ones(LOGISTIC_DIM, dtype=torch.float64)},
        outer_step=OUTER_STEP,
        curvature=(LOGISTIC_LAM - ALPHA / 2, LOGISTIC_LAM + 2 * ALPHA + float(of_data)),
        look=look,
    )


def _regularized_loss(params: Params, data: tuple[Tensor, Tensor]) -> Tensor:
    square = params["w"].square()
    return logistic_loss(params, data) + ALPHA * (square / (1 + square)).sum()


def _logistic_tasks(count: int, seed: int) -> mp.Task:
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=rng)

    low, high = INPUT_SCALES
    scale = low * (high / low) ** torch.rand(count, 1, 1, dtype=torch.float64, generator=rng)
    truth = COMMON * normal(LOGISTIC_DIM, 1) + normal(count, LOGISTIC_DIM, 1)

    def data(examples: int) -> tuple[Tensor, Tensor]:
        inputs = scale * normal(count, examples, LOGISTIC_DIM)
        chance = torch.sigmoid((inputs @ truth).squeeze(-1))
        return inputs, (torch.rand(chance.shape, dtype=torch.float64, generator=rng) < chance).double()

    return mp.Task(data(SUPPORT), data(QUERY))
