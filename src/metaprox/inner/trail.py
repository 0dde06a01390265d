"""What a solve says of its last steps: the gradient that they follow, and the curvature along them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from metaprox.vectors.norms import inner, norm

AT_ONCE = 2**13  # numbers up to which several products at once are faster, copies and all


class Trail:
    """G_k = sum_j a_j grad_j(y_k) and S_k = sum_j a_j (y_(k+1) - y_k) over the last steps of a solve, as numbers.

    For a single branch of weight 1 these are its gradient and its step; for a difference of branches, nu/lam times the
    residual of the linear system that g solves, and how far that difference moved. The curvature of a pair of
    evaluations is <S_k, G_(k+1) - G_k> / <S_k, S_k>. Two vectors of P numbers are alive, G_k and S_(k-1), or
    G_(k-1) in the place of that, where the solver says that S_k = -h G_k; a third, S_k, while branches of several parts
    take their steps, if it is one after which they are evaluated again. Where they are short the last ones are all
    kept, so that their products are taken at once.

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
        self.last: Tensor | None = None  # ||G|| [T] where a task was evaluated last,
        self.before: Tensor | None = None  # and one step before; None where there was none
        self._curvatures: list[Tensor] = []  # [T, pairs] each
        self._pairs: list[_Pair] = []  # whose curvature is not yet computed: of small vectors that is done at once
        self._grad: Tensor | None = None  # G_k [T, 1, P]
        self._step: Tensor | None = None  # S_k, of the branches that have taken theirs
        self._way: Tensor | None = None  # S_(k-1), or G_(k-1)
        self._length: Tensor | None = None  # its norm [T]
        self._slope: Tensor | None = None  # <S_(k-1), G_(k-1)> / ||S_(k-1)|| [T]
        self._went: Tensor | None = None  # who took that step [T]; None: all

    @property
    def curvatures(self) -> Tensor | None:
        """Of the pairs, the latest last [T, pairs]; NaN where a task did not move. None: there are none."""
        self._compute()
        return torch.cat(self._curvatures, 1)[:, -self.evaluations :] if self._curvatures else None

    def evaluated(self, grad: Tensor, norms: Tensor, where: slice) -> None:
        """The gradients [T, b, P] of some of the branches, and their norms [T, b]; those of all make G_k."""
        self._grad = _add_weighted(None if where.start == 0 else self._grad, grad, self.weights[where])
        if where.stop == len(self.weights):
            self._pair(self._grad, norms[:, 0] if self.weights == (1.0,) else norm(self._grad).flatten())

    def moved(self, new: Tensor, y: Tensor, where: slice, went: Tensor | None) -> None:
        """The step of some of the branches from y to ``new`` [T, b, P], which only tasks take that ``went`` [T]."""
        if self.relative_step is None:
            self._step = _add_weighted(None if where.start == 0 else self._step, new - y, self.weights[where])
        if where.stop == len(self.weights):
            assert self._grad is not None
            self._way, self._went = self._grad if self._step is None else self._step, went
            if self._step is None:
                self._length = self.last
            else:
                self._length = norm(self._way).flatten()
                self._slope = inner(self._grad, self._way, self._length[:, None]).flatten()
            self._grad = self._step = None

    def ended(self, grad: Tensor, length: Tensor) -> None:
        """The gradient where the solve of a single branch ended [T, 1, P], and its norm [T]: the last pair's end."""
        self._pair(grad, length)
        self.let_go()

    def let_go(self) -> None:
        """Of the vectors; numbers stay."""
        self._compute()
        self._grad = self._step = self._way = None

    def _pair(self, grad: Tensor, length: Tensor) -> None:
        """G_k and its norm [T]: the end of a pair, where there was a step before it."""
        if self._way is None or self._length is None:
            if self.last is None:
                self.last = length
            return
        self._pairs.append(_Pair(self._way, self._length, grad, self._slope, self._went))
        self._way = None
        if self._went is None or self.before is None or self.last is None:
            self.before = self.last
            self.last = length
        else:
            self.before = torch.where(self._went, self.last, self.before)
            self.last = torch.where(self._went, length, self.last)
        if grad.numel() > AT_ONCE:
            self._compute()

    def _compute(self) -> None:
        """The curvatures of the pairs that wait for it."""
        if not self._pairs:
            return
        pairs, self._pairs = self._pairs[-self.evaluations :], []
        way, grad = _joined([pair.way for pair in pairs]), _joined([pair.grad for pair in pairs])
        length = torch.stack([pair.length for pair in pairs], 1)
        slope, went = _stacked([pair.slope for pair in pairs]), _stacked([pair.went for pair in pairs])
        slopes = inner(grad, way, length)
        found = (slopes if slope is None else slopes - slope) / length
        if self.relative_step is not None:  # S = -h G
            found = (1 - found) / self.relative_step
        self._curvatures.append(found if went is None else torch.where(went, found, torch.nan))


class _Pair(NamedTuple):
    """Two evaluations with a step between them: S_k or G_k, its norm, G_(k+1), <S_k, G_k> / ||S_k||, who took it."""

    way: Tensor
    length: Tensor
    grad: Tensor
    slope: Tensor | None
    went: Tensor | None


def _joined(vectors: list[Tensor]) -> Tensor:
    """[T, 1, P] each -> [T, n, P]; a single one as it is."""
    return vectors[0] if len(vectors) == 1 else torch.cat(vectors, 1)


def _stacked(numbers: list[Tensor | None]) -> Tensor | None:
    """[T] each -> [T, n]; None where they are."""
    found = [number for number in numbers if number is not None]
    return torch.stack(found, 1) if found else None


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
