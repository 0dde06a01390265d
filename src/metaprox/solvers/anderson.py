"""Anderson acceleration of gradient descent."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from metaprox import checks
from metaprox.vectors.norms import norm
from metaprox.vectors.shards import total


@dataclass(frozen=True)
class AndersonState:
    """The last point and gradient [T, B, P], and their latest differences [T, B, m, P]."""

    y: Tensor
    grad: Tensor
    dy: Tensor
    dgrad: Tensor


@dataclass(frozen=True)
class Anderson:
    """Gradient descent from the point of least (linearized) gradient among the last ``memory`` + 1.

        gamma = argmin || grad - dG gamma ||^2,     y <- y - dY gamma - lr (grad - dG gamma)

    dY, dG: the last differences of points and gradients. On a quadratic this is a Krylov method (GMRES), at one
    gradient a step: the solver of choice for the branches, whose problem is nearly quadratic and starts close
    to its solution. Each task and branch has its own coefficients.

    Args:
        lr: the step along the remaining gradient; of the order of 1 / L.
        memory: how many differences are kept; costs 2 memory P numbers for each task and branch.

    Source: Walker & Ni, Anderson acceleration for fixed-point iterations, SIAM J. Numer. Anal. 49 (2011).
    """

    lr: float
    memory: int = 5
    separate_branches: ClassVar[bool] = True
    takes_shards: ClassVar[bool] = True

    def __post_init__(self) -> None:
        checks.settle(self, lr=checks.positive, memory=checks.count)

    def init(self, y: Tensor) -> AndersonState | None:
        return None

    def step(self, grad: Tensor, y: Tensor, state: AndersonState | None) -> tuple[Tensor, AndersonState]:
        if state is None:
            none = y.new_empty(*y.shape[:2], 0, y.shape[2])
            return y.add(grad, alpha=-self.lr), AndersonState(y, grad, none, none)
        dy = torch.cat([state.dy, (y - state.y).unsqueeze(2)], 2)[:, :, -self.memory :]
        dgrad = torch.cat([state.dgrad, (grad - state.grad).unsqueeze(2)], 2)[:, :, -self.memory :]
        gamma = _least_squares(dgrad, grad)
        remaining = grad - _combine(dgrad, gamma)
        return (y - _combine(dy, gamma)).add_(remaining, alpha=-self.lr), AndersonState(y, grad, dy, dgrad)

    def lasting(self, state: AndersonState) -> AndersonState:
        """The same with as many differences as there will be: what is not there yet are zeros, which change nothing."""
        missing = self.memory - state.dy.shape[2]
        if not missing:
            return state
        dy, dgrad = (functional.pad(rows, (0, 0, missing, 0)) for rows in (state.dy, state.dgrad))
        return AndersonState(state.y, state.grad, dy, dgrad)


def _combine(rows: Tensor, coefficients: Tensor) -> Tensor:
    """[T, B, m, P], [T, B, m] -> sum over m [T, B, P]."""
    return (coefficients.unsqueeze(-2) @ rows).squeeze(-2)


def _least_squares(rows: Tensor, target: Tensor) -> Tensor:
    """Returns argmin_c || target - sum_j c_j rows_j || for rows [T, B, m, P], by the normal equations of unit rows.

    The equations are solved in float64, damped at the rounding level of the rows' own inner products, so that
    (nearly) dependent and zero rows get small coefficients instead of large ones.
    """
    norms = norm(rows)
    unit = rows / torch.where(norms > 0, norms, 1)
    gram = total((unit @ unit.mT).double())
    right = total((unit @ target.unsqueeze(-1)).double())
    damping = 10 * torch.finfo(rows.dtype).eps
    damped = gram + damping * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    solution: Tensor
    solution, _ = torch.linalg.solve_ex(damped, right)
    return (solution / torch.where(norms > 0, norms, 1)).squeeze(-1).to(rows.dtype)
