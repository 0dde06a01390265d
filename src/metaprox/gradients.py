"""Gradients of the two losses at T x B points, counted and with coupled noise."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from metaprox.backends import Backend, Evaluation, FlatLoss, Metrics
from metaprox.batch import TaskBatch
from metaprox.errors import InputError
from metaprox.layout import Layout
from metaprox.noise import Noise
from metaprox.problem import Loss, ProximalProblem

# First noise id of the gradients of a base solve, and of everything from its end on.
BASE_NOISE, BRANCH_NOISE = 0, 1

Unrolled = Callable[[Tensor, Callable[[Tensor, int], Tensor]], tuple[Tensor, Metrics]]


@dataclass
class Counts:
    """Work done, one per task and branch: gradients of each loss, Hessian-vector products."""

    support_gradients: int = 0
    query_gradients: int = 0
    hessian_vector_products: int = 0

    @classmethod
    def total(cls, parts: Sequence["Counts"]) -> "Counts":
        return cls(*(sum(getattr(part, field.name) for part in parts) for field in fields(cls)))


class Gradients:
    """Gradients of one problem's losses on tasks start..stop-1 of a batch, counted and with coupled noise."""

    def __init__(
        self,
        problem: ProximalProblem,
        layout: Layout,
        engine: Backend,
        noise: Noise,
        batch: TaskBatch,
        tasks: tuple[int, int],
    ) -> None:
        self.start, self.stop = tasks
        self.counts = Counts()
        self._engine = engine
        self._noise = noise
        self._data = engine.take(batch, self.start, self.stop)
        self._inner = flat_loss(problem.inner_loss, "inner_loss", layout)
        self._outer = flat_loss(problem.outer_loss, "outer_loss", layout)
        self._values = flat_loss(problem.outer_loss, "outer_loss", layout, differentiable=False)

    def support(self, y: Tensor, *noise_ids: int) -> Evaluation:
        """grad fhat at y [T, B, P]; equal ``noise_ids`` mean equal noise."""
        self.counts.support_gradients += y.shape[0] * y.shape[1]
        return self._evaluate(self._inner, y, self._data.support, (0, *noise_ids))

    def query(self, y: Tensor, *noise_ids: int) -> Evaluation:
        """grad f at y [T, B, P]; equal ``noise_ids`` mean equal noise."""
        self.counts.query_gradients += y.shape[0] * y.shape[1]
        return self._evaluate(self._outer, y, self._data.query, (1, *noise_ids))

    def query_values(self, y: Tensor, *noise_ids: int) -> tuple[Tensor, Metrics]:
        """f and its metrics [T] at y [T, P], without a gradient (and so not counted as one)."""
        return self._engine.values(self._values, y, self._data.query, self._seed((1, *noise_ids)))

    def hessian_vector(self, y: Tensor, p: Tensor, *noise_ids: int) -> Tensor:
        """Hess fhat(y) p [T, B, P] for y and p [T, 1, P], by differentiating <grad fhat, p>."""
        self.counts.hessian_vector_products += y.shape[0]

        def product(flat: Tensor, joined: Any) -> tuple[Tensor, Metrics]:
            data, direction = joined
            return self._engine.inner_gradient(self._inner, flat, data) @ direction, {}

        joined = self._engine.join(self._data.support, p.squeeze(1))
        return self._evaluate(product, y, joined, (0, *noise_ids)).grad

    def through(self, solve: Unrolled, x: Tensor) -> Evaluation:
        """The gradient of f_i(solve(x)) with respect to x [T, 1, P], through all that ``solve`` does.

        ``solve(x, gradient)`` gets one task's x [P] and ``gradient(y, step) -> grad fhat`` [P], with the noise of
        a base solve; it returns y [P] and records. ``metrics`` holds {"metrics": of f, "records": [T, 1, ...]}.
        Counts the gradients of both losses, and not the backward pass through them.
        """

        def objective(flat: Tensor, task: Any) -> tuple[Tensor, Metrics]:
            support, query = task

            def gradient(y: Tensor, step: int) -> Tensor:
                self.counts.support_gradients += x.shape[0]
                self._noise.set(0, BASE_NOISE, step, self.start)
                return self._engine.inner_gradient(self._inner, y, support)

            y, records = solve(flat, gradient)
            self._noise.set(1, BRANCH_NOISE, 0, self.start)
            value, metrics = self._outer(y, query)
            return value, {"metrics": metrics, "records": records}

        self.counts.query_gradients += x.shape[0]
        return self._engine.evaluate(objective, x, self._engine.join(*self._data), lambda task: None)

    def _evaluate(self, loss: FlatLoss, y: Tensor, data: Any, noise_ids: Sequence[int]) -> Evaluation:
        return self._engine.evaluate(loss, y, data, self._seed(noise_ids))

    def _seed(self, noise_ids: Sequence[int]) -> Callable[[int], None]:
        return lambda task: self._noise.set(*noise_ids, self.start + task)


def flat_loss(loss: Loss, role: str, layout: Layout, *, differentiable: bool = True) -> FlatLoss:
    """``loss`` as a function of the flat vector that always returns (scalar, metrics).

    Raises InputError unless the loss is a scalar and, where ``differentiable``, depends on the vector.
    """

    def call(flat: Tensor, data: Any) -> tuple[Tensor, Metrics]:
        result = loss(layout.unflatten(flat), data)
        value, metrics = result if isinstance(result, tuple) else (result, {})
        if not isinstance(value, Tensor) or value.dim() != 0:
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise InputError(f"{role} must return a scalar tensor, got {got}; reduce it, for example with .mean()")
        if differentiable and not value.requires_grad:
            raise InputError(
                f"{role} does not depend on the parameters {list(layout.names)}; is the loss computed from them, "
                "and without detach() or no_grad()?"
            )
        return value, dict(metrics)

    return call
