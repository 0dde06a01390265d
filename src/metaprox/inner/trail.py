"""What a solve says of its last step: the gradient that it follows, how much less that became, and the curvature."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from metaprox.losses.backend import Run, Steps
from metaprox.vectors.norms import inner, norm
from metaprox.vectors.rest import HERE, Away, Rest, Vector


class Trail:
    """G_k = sum_j a_j grad_j(y_k) and S_k = sum_j a_j (y_(k+1) - y_k) over the last step of a solve, as numbers.

    For a single branch of weight 1 these are its gradient and its step; for a difference of branches, nu/lam times the
    residual of the linear system that g solves, and how far that difference moved. The curvature along the step is
    <S_k, G_(k+1) - G_k> / <S_k, S_k>; of several steps the least counts. Two vectors of P numbers are alive, G_(k+1)
    and S_k, or G_k in the place of that, where the solver says that S_k = -h G_k.

    Args:
        weights: a_j of the branches.
        relative_step: h, where the solver says it.
        evaluations: the last so many are looked at: one more than steps, or as many where ``ended`` tells of one more.
        closed: whether ``ended`` will be told of the gradient after the last step.
        rest: where those vectors are until they are looked at. Branches may then come one after another, each with all
            of its steps, and there are two vectors of each step that is looked at.
    """

    def __init__(
        self,
        weights: Sequence[float],
        relative_step: float | None,
        evaluations: int,
        *,
        closed: bool,
        rest: Rest = HERE,
    ) -> None:
        self.weights = tuple(weights)
        self.relative_step = relative_step
        self.evaluations = evaluations
        self.closed = closed
        self.last: Tensor | None = None  # ||G|| [T] where a task was evaluated last,
        self.before: Tensor | None = None  # and one step before; None where there was none
        self._steps = evaluations - (not closed)
        self._curvatures: list[Tensor] = []  # along the latest steps [T]; NaN where a task has taken none
        self._rest = rest
        self._grads: dict[int, Vector] = {}  # G_k [T, 1, P] by k, of the branches that were evaluated there
        self._moves: dict[int, Vector] = {}  # S_k, of the branches that have taken theirs
        self._way: Vector | None = None  # S_(k-1), or G_(k-1)
        self._length: Tensor | None = None  # its norm [T]
        self._slope: Tensor | None = None  # <S_(k-1), G_(k-1)> / ||S_(k-1)|| [T]
        self._end: Tensor | None = None  # the curvature along the last step, where it is known [T]
        self._went: Tensor | None = None  # who took that step [T]; None: all

    @property
    def curvature(self) -> Tensor | None:
        """The least along the latest steps [T], infinite where it is not known; None where there was no step."""
        if len(self._curvatures) < 2:
            return self._curvatures[0] if self._curvatures else None
        return torch.stack(self._curvatures).nan_to_num(torch.inf, torch.inf, -torch.inf).amin(0)

    @property
    def keeps_gradients(self) -> bool:
        """Whether it holds the gradients that it is shown, and no sum of them."""
        return self.weights == (1.0,) and not self._rest.moves

    def evaluated(self, step: int, grad: Tensor, norms: Tensor, where: slice) -> None:
        """The gradients [T, b, P] of some of the branches, and their norms [T, b]; those of all make G_k."""
        total = self._grads[step] = self._rest.plus(self._grads.pop(step, None), grad, self.weights[where])
        if where.stop == len(self.weights):
            self._look(total, (norms if self.weights == (1.0,) else norm(total)).flatten())

    def moved(self, step: int, new: Tensor, y: Tensor, where: slice, went: Tensor | None) -> None:
        """The step of some of the branches from y to ``new`` [T, b, P], which only tasks take that ``went`` [T]."""
        if self.relative_step is None:
            self._moves[step] = self._rest.plus(self._moves.pop(step, None), new - y, self.weights[where])
        if where.stop == len(self.weights):
            grad, move = self._grads.pop(step), self._moves.pop(step, None)
            self._way, self._went = grad if move is None else move, went
            if move is None:
                self._length = self.last
            else:
                self._length = norm(move).flatten()
                self._slope = inner(grad, move, self._length)

    def told(self, run: Run) -> Run:
        """``run`` with the branches' weights, and what is known of the step before."""
        assert not isinstance(self._way, Away)
        return replace(run, weights=self.weights, way=self._way, length=self._length, slope=self._slope)

    def took(self, steps: Steps, went: Tensor | None) -> None:
        """The last steps of a solve, which were taken in one; ``went`` [n, T] as ``moved``."""
        count = len(steps.norms)
        for k in range(max(0, count - self.evaluations), count):
            self._turned(steps.lengths[k], steps.curvatures[k])
            self._length, self._went = self.last, None if went is None else went[k]
        if steps.ended:
            self._end = steps.curvatures[-1]
        elif self.closed:
            self._way, self._length, self._slope = steps.kept[:3] if steps.kept else (steps.grad, self._length, None)

    def ended(self, grad: Tensor, length: Tensor) -> None:
        """The gradient where the solve of a single branch ended [T, 1, P], and its norm [T]."""
        if self._end is None:
            self._look(grad, length)
        else:
            self._turned(length, self._end)
        self.let_go()

    def let_go(self) -> None:
        """Of the vectors; numbers stay."""
        self._grads.clear()
        self._moves.clear()
        self._way = None

    def _look(self, grad: Vector, length: Tensor) -> None:
        """G_k and its norm [T], after the step that led there, if there was one."""
        if self._way is None or self._length is None:
            self._turned(length, None)
            return
        curvature = inner(grad, self._way, self._length)
        if self._slope is not None:
            curvature = (curvature - self._slope) / self._length
        else:
            assert self.relative_step is not None  # S = -h G
            curvature = (1 - curvature / self._length) / self.relative_step
        self._turned(length, curvature)
        self._way = None

    def _turned(self, length: Tensor, curvature: Tensor | None) -> None:
        """||G_k|| and the curvature along the step that led there, if there was one that is looked at."""
        if curvature is None or self._length is None:
            self.last = length if self.last is None else self.last
            return
        assert self.last is not None
        if self._went is None:
            self.before, self.last = self.last, length
            self._curvatures = [*self._curvatures, curvature][-self._steps :]
        else:
            unknown = torch.full_like(length, torch.nan)
            self.before = torch.where(self._went, self.last, unknown if self.before is None else self.before)
            self.last = torch.where(self._went, length, self.last)
            old = [*self._curvatures, unknown][: self._steps]  # who stops takes no step again
            new = [*self._curvatures, curvature][-self._steps :]
            self._curvatures = [torch.where(self._went, *pair) for pair in zip(new, old, strict=True)]
