"""Quadratic tasks: everything about F is known in closed form."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from metaprox import checks
from metaprox.data.task import Task
from metaprox.problem import ProximalProblem
from metaprox.tasks.base import SPLITS, Split, stacked
from metaprox.tasks.draws import generator
from metaprox.types import Params


def loss(params: Params, data: tuple[Tensor, Tensor]) -> Tensor:
    """(1/2) (y - c)^T A (y - c) for data = (A, c) and y = params["y"]."""
    curvature, center = data
    offset = params["y"] - center
    return 0.5 * offset @ curvature @ offset


@dataclass(frozen=True)
class Quadratic:
    """fhat(y) = 1/2 (y-a)^T A (y-a),  f(y) = 1/2 (y-b)^T B (y-b), different A, B, a, b for every task.

    A and B are random rotations of curvatures spread geometrically over [1/condition, 1] by a random amount, so
    that tasks differ in curvature; a and b are standard normal. With M = lam (A + lam I)^{-1}:

        y(x) = M x + (A + lam I)^{-1} A a,      grad F(x) = E [ M B (y(x) - b) ],      F is quadratic in x.

    Support and query of a task are the pairs (A, a) [T, P, P], [T, P] and (B, b).
    """

    dim: int = 20
    condition: float = 10.0
    seed: int = 0
    split: Split = "train"

    def __post_init__(self) -> None:
        checks.settle(self, dim=checks.count, seed=checks.seed, split=checks.one_of(*SPLITS))
        checks.settle(self, condition=partial(checks.at_least, least=1))

    def problem(self, lam: float) -> ProximalProblem:
        """The problem of these losses; its parameters are {"y": [P]}."""
        return ProximalProblem(loss, loss, lam)

    def batch(self, ids: Sequence[int]) -> Task:
        """Tasks in float64."""
        return stacked(self._task, ids)

    def _task(self, task_id: int) -> Task:
        rng = generator(self.seed, self.split, task_id)
        support, query = ((self._curvature(rng), torch.from_numpy(rng.standard_normal(self.dim))) for _ in range(2))
        return Task(support, query)

    def _curvature(self, rng: np.random.Generator) -> Tensor:
        rotation, _ = np.linalg.qr(rng.standard_normal((self.dim, self.dim)))
        eigenvalues = self.condition ** -rng.uniform(size=self.dim)
        return torch.from_numpy((rotation * eigenvalues) @ rotation.T)


def solution(x: Tensor, tasks: Task, lam: float) -> Tensor:
    """y_i(x) [T, P]."""
    curvature, center = tasks.support
    right = (curvature @ center[..., None]).squeeze(-1) + lam * x
    return torch.linalg.solve(_shifted(curvature, lam), right)


def meta_gradient(x: Tensor, tasks: Task, lam: float) -> Tensor:
    """grad F_i(x) = lam (A + lam I)^{-1} B (y_i(x) - b) [T, P]."""
    curvature, center = tasks.query
    v = (curvature @ (solution(x, tasks, lam) - center)[..., None]).squeeze(-1)
    return torch.linalg.solve(_shifted(tasks.support[0], lam), lam * v)


def objective(x: Tensor, tasks: Task, lam: float) -> Tensor:
    """F_i(x) [T]."""
    curvature, center = tasks.query
    offset = solution(x, tasks, lam) - center
    return 0.5 * (offset[:, None] @ curvature @ offset[..., None]).flatten()


def minimizer(tasks: Task, lam: float) -> Tensor:
    """The x [P] where the mean of grad F_i over these tasks is 0: it is affine in x, so one solve finds it."""
    dim = tasks.support[1].shape[-1]
    origin = tasks.support[1].new_zeros(dim)
    constant = meta_gradient(origin, tasks, lam).mean(0)
    m = lam * torch.linalg.inv(_shifted(tasks.support[0], lam))
    hessian = (m @ tasks.query[0] @ m).mean(0)
    return torch.linalg.solve(hessian, -constant)


def _shifted(curvature: Tensor, lam: float) -> Tensor:
    return curvature + lam * torch.eye(curvature.shape[-1], dtype=curvature.dtype, device=curvature.device)
