"""What an estimator returns, of all tasks and of a chunk of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from metaprox.errors import NonFiniteError
from metaprox.estimators.info import Info
from metaprox.inner.failures import Purpose, failure_at_end
from metaprox.inner.progress import Solution
from metaprox.losses.backend import Evaluation
from metaprox.solvers.protocol import InnerSolver
from metaprox.types import Metrics
from metaprox.vectors.norms import largest, norm
from metaprox.vectors.shards import everywhere


@dataclass(frozen=True)
class MetaGradient:
    """A meta-gradient and what was computed on the way.

    grad: mean over tasks of grad F_i(x), shaped like the parameters, adapted and shared ones alike.
    query_loss: f_i(y_i) at the adapted parameters [T]. metrics: whatever else the outer loss returned [T].
    adapted: y_i with a leading dimension T, of the parameters that adapt. None if not asked for, or where tasks have
        parameters of their own of unequal shapes.
    per_task: the gradient of each task, with a leading dimension T, as ``reduce`` left it. None if not asked for.

    In several processes ``adapted`` and ``per_task`` are of the tasks of this one; all else is of all tasks.
    """

    grad: dict[str, Tensor]
    query_loss: Tensor
    metrics: dict[str, Tensor]
    adapted: dict[str, Tensor] | None
    info: Info
    per_task: dict[str, Tensor] | None = None

    def without_vectors(self) -> "MetaGradient":
        """The same without gradient and parameters: a few numbers a task."""
        return replace(self, grad={}, adapted=None)


@dataclass(frozen=True)
class Estimate:
    """An estimate for some of the tasks, as it comes out of the formulas, finite or not.

    y: y_i [T, 1, P] where it is kept. grad: with respect to x and w [T, 1, P + W]. query: f_i at y_i, gradient aside.
    solves: whatever was solved on the way, the base first. seen: of which tasks all was seen to be finite [T].
    length: ||grad|| [T], where it was taken.
    """

    y: Tensor | None
    grad: Tensor
    query: Evaluation
    info: Info
    solves: Sequence[Solution]
    seen: Tensor | None = None
    length: Tensor | None = None

    @classmethod
    def of(
        cls, y: Tensor | None, grad: Tensor, shared_grad: Tensor, query: Evaluation, info: Info, *solves: Solution
    ) -> "Estimate":
        """From the gradients with respect to x [T, 1, P] and w [T, 1, W] apart."""
        whole = torch.cat([grad, shared_grad], dim=-1) if shared_grad.shape[-1] else grad
        return cls(y, whole, query, info, solves)

    @property
    def finite(self) -> Tensor:
        """Whether all of it is [T]."""
        if self.seen is not None:
            return self.seen
        parts = [finite_rows(self.grad), self.query.value.isfinite().all(1), *(solve.finite for solve in self.solves)]
        return everywhere(torch.stack(parts).all(0))

    def where(self, here: Tensor, other: "Estimate") -> "Estimate":
        """This one for the tasks ``here`` [T], the ``other`` one for the rest; y_i is the same in both."""
        grad = torch.where(here[:, None, None], self.grad, other.grad)
        kept = (replace(solve, finite=solve.finite | ~here) for solve in self.solves)
        others = (replace(solve, finite=solve.finite | here) for solve in other.solves)
        return Estimate(self.y, grad, self.query, self.info.where(here, other.info), (*kept, *others))


@dataclass(frozen=True)
class ChunkResult:
    """An estimate for some of the tasks: gradient [T, P + W], adapted parameters [T, P] if kept, the rest.

    failure: why the first of the tasks that are skipped is; their gradients are 0. length: ||grad|| [T], if known.
    """

    grad: Tensor
    adapted: Tensor | None
    query_loss: Tensor
    metrics: Metrics
    info: Info
    failure: NonFiniteError | None = None
    length: Tensor | None = None

    @classmethod
    def of(cls, estimate: Estimate, solver: InnerSolver, purpose: Purpose) -> "ChunkResult":
        """Raises NonFiniteError, naming the task, where the estimate is not finite, unless such tasks are skipped."""
        y, grad, query, info = estimate.y, estimate.grad, estimate.query, estimate.info
        finite, loss = estimate.finite, query.value
        failed = (solve.failure for solve in estimate.solves if solve.failure and not bool(solve.finite.all()))
        failure = next(failed, None) or failure_at_end(finite, solver, purpose)
        if failure is not None:
            if purpose.on_nonfinite == "raise":
                raise failure
            adapts = estimate.solves[0].finite[:, None]
            grad, info = torch.where(finite[:, None, None], grad, 0.0), replace(info, skipped=~finite)
            loss = torch.where(adapts, loss, torch.nan)
            y = None if y is None else torch.where(adapts[..., None], y, torch.nan)
        metrics = {name: metric.squeeze(1) for name, metric in query.metrics.items()}
        length, own = None if failure else estimate.length, None if y is None else y.squeeze(1)
        return cls(grad.squeeze(1), own, loss.squeeze(1), metrics, info, failure, length)

    def without_vectors(self) -> "ChunkResult":
        """The same without what takes P numbers a task."""
        return replace(self, grad=self.grad.new_empty(0), adapted=None)


def ratio(vector: Tensor, reference: Tensor) -> Tensor:
    """||vector|| / ||reference|| [T] of tensors [T, 1, P], 0 where the reference is 0."""
    scale = norm(reference)
    return torch.where(scale > 0, norm(vector) / scale, 0.0).flatten()


def finite_rows(tensor: Tensor) -> Tensor:
    """Whether all of [T, 1, ...] is finite [T]; needs no memory of that size."""
    if not tensor.shape[-1]:  # of a rank that holds none of the numbers
        return torch.ones(len(tensor), dtype=torch.bool, device=tensor.device)
    return largest(tensor).squeeze(-1).isfinite().all(1)
