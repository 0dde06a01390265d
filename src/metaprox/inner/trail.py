"""What a solve says of its last steps: the gradient that they follow, and the curvature along them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from metaprox.vectors.norms import along, norm


class Trail:
    """G_k = sum_j a_j grad_j(y_k) and S_k = sum_j a_j (y_(k+1) - y_k) over the last steps of a solve, as numbers.

    For a single branch of weight 1 these are its gradient and its step; for a difference of branches, nu/lam times the
    residual of the linear system that g solves, and how far that difference moved. The curvature of a pair of
    evaluations is <S_k, G_(k+1) - G_k> / <S_k, S_k>. Two vectors of P numbers are alive, G_k and S_(k-1), or
    G_(k-1) in the place of that, where the solver says that S_k = -h G_k; a third, S_k, while branches of several parts
    take their steps, if it is one after which they are evaluated again.

    Args:
        weights: a_j of the branches.
        relative_step: h, where the solver says it.
        evaluations: of which the last so many are looked at.
        closed: whether ``ended`` will be told of the gradient after the last step.
    """

    def __init__(
        self, weights: Sequence[float], relative_step: float | None, evaluations: int, *, closed: bool
    ) -> None:
        self.weights = tuple(weights)
        self.relative_step = relative_step
        self.evaluations = evaluations
        self.closed = closed
        self.curvatures: list[Tensor] = []  # [T] each, the latest last; NaN where a task did not move
        self.last: Tensor | None = None  # ||G|| [T] where a task was evaluated last,
        self.before: Tensor | None = None  # and one step before; NaN where there was none
        self._grad: Tensor | None = None  # G_k [T, 1, P]
        self._step: Tensor | None = None  # S_k, of the branches that have taken theirs
        self._way: Tensor | None = None  # S_(k-1), or G_(k-1)
        self._length: Tensor | None = None  # its norm [T, 1, 1]
        self._slope: Tensor | None = None  # <S_(k-1), G_(k-1)> / <S_(k-1), S_(k-1)> [T, 1, 1]
        self._went: Tensor | None = None  # who took that step [T]; None: all

    def evaluated(self, grad: Tensor, where: slice) -> None:
        """The gradients [T, b, P] of some of the branches; those of all make G_k."""
        self._grad = _add_weighted(None if where.start == 0 else self._grad, grad, self.weights[where])
        if where.stop == len(self.weights):
            self._pair(self._grad)

    def moved(self, new: Tensor, y: Tensor, where: slice, went: Tensor | None) -> None:
        """The step of some of the branches from y to ``new`` [T, b, P], which only tasks take that ``went`` [T]."""
        if self.relative_step is None:
            self._step = _add_weighted(None if where.start == 0 else self._step, new - y, self.weights[where])
        if where.stop == len(self.weights):
            assert self._grad is not None
            self._way = self._grad if self._step is None else self._step
            self._length = norm(self._way)
            self._slope = None if self._step is None else along(self._grad, self._way, self._length)
            self._grad, self._step, self._went = None, None, went

    def ended(self, grad: Tensor) -> None:
        """The gradient where the solve of a single branch ended [T, 1, P], which closes its last pair."""
        self._pair(grad)
        self.let_go()

    def let_go(self) -> None:
        """Of the vectors; numbers stay."""
        self._grad = self._step = self._way = None

    def _pair(self, grad: Tensor) -> None:
        """G_k, the end of a pair where there was a step before it."""
        length = norm(grad).flatten()
        if self._way is None or self._length is None:
            if self.last is None:
                self.last, self.before = length, torch.full_like(length, torch.nan)
            return
        found = along(grad, self._way, self._length)
        if self.relative_step is None:
            assert self._slope is not None
            curvature = (found - self._slope).flatten()
        else:  # S = -h G
            curvature = ((1 - found) / self.relative_step).flatten()
        assert self.last is not None
        assert self.before is not None
        if self._went is None:
            self.before, self.last = self.last, length
        else:
            self.before = torch.where(self._went, self.last, self.before)
            self.last = torch.where(self._went, length, self.last)
            curvature = torch.where(self._went, curvature, torch.nan)
        self.curvatures = [*self.curvatures, curvature][-self.evaluations :]
        self._way = None


def _add_weighted(total: Tensor | None, vectors: Tensor, weights: Sequence[float]) -> Tensor:
    """``total`` + sum_j weights_j vectors_j [T, 1, P]; the vector itself where there is one, of weight 1."""
    if total is None and len(weights) == 1 and weights[0] == 1:
        return vectors
    return add_weighted(total, vectors, weights)


def add_weighted(total: Tensor | None, vectors: Tensor, weights: Sequence[float]) -> Tensor:
    """``total`` + sum_j weights_j vectors_j [T, 1, P] for vectors [T, b, P], in place where there is a total."""
    for j, weight in enumerate(weights):
        vector = vectors[:, j : j + 1]
        total = vector * weight if total is None else total.add_(vector, alpha=weight)
    assert total is not None
    return total
