"""Gradients of the two losses at T x B points, counted and with coupled noise."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from metaprox.backends import AdaptedLoss, Backend, Evaluation, Seed
from metaprox.batch import TaskBatch
from metaprox.errors import InputError
from metaprox.microbatches import weighted_sum
from metaprox.noise import Noise
from metaprox.parameters import Parameters
from metaprox.problem import Loss, Metrics, ModuleLoss, ProximalProblem
from metaprox.pull import Pull, Shift
from metaprox.solve import Step
from metaprox.solvers.protocol import InnerSolver, for_parameters, relative_step
from metaprox.vmapped import CheckedLoss, FlatLoss

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
        parameters: Parameters,
        engine: Backend,
        noise: Noise,
        batch: TaskBatch,
        tasks: tuple[int, int],
    ) -> None:
        self.start, self.stop = tasks
        self.lam = problem.lam
        self.counts = Counts()
        self._engine = engine
        self._noise = noise
        self._data = engine.take(batch, self.start, self.stop)
        self._parameters = parameters
        inner, outer = ((problem.inner_loss, "inner_loss"), (problem.outer_loss, "outer_loss"))
        if not engine.compile:  # a graph outlives what is looked up now
            inner, outer = ((_fixed(loss), role) for loss, role in (inner, outer))
        at_w = (parameters.structure, parameters.w)
        self._inner = AdaptedLoss(checked_loss(*inner), *at_w)
        self._outer = AdaptedLoss(checked_loss(*outer), *at_w)
        self._values = AdaptedLoss(checked_loss(*outer, differentiable=False), *at_w)
        self._inner_z = flat_loss(*inner, parameters, differentiable=False)
        self._outer_z = flat_loss(*outer, parameters)

    def for_parameters(self, solver: InnerSolver) -> InnerSolver:
        """``solver``, told of the parameters' shapes if it wants to know."""
        return for_parameters(solver, self._parameters.adapted.views)

    def per_task(self, value: float) -> Tensor:
        """``value`` for each task [T], in the dtype of the parameters."""
        return self._parameters.pieces[0].new_full((self.stop - self.start,), value)

    def start_at_x(self) -> Tensor:
        """x for each task [T, 1, P]; not to be written on."""
        return self._parameters.x.expand(self.stop - self.start, 1, -1)

    def displacement(self, y: Tensor) -> Tensor:
        """y - x [T, B, P], a new tensor."""
        return self._parameters.displacement(y)

    def proximal(self, y: Tensor, *noise_ids: int, shift: Shift | None = None) -> Tensor:
        """grad fhat(y) + lam (y - x) + shift [T, B, P]: the gradient of the inner problem, a linear term added to it.

        Equal ``noise_ids`` mean equal noise. A new tensor.
        """
        self.counts.support_gradients += y.shape[0] * y.shape[1]
        pull = Pull(self._parameters, self.lam, shift)
        return self._engine.proximal(self._inner, y, self._data.support, self._seed((0, *noise_ids)), pull)

    def step(self, solver: InnerSolver, y: Tensor, *noise_ids: int, shift: Shift | None = None) -> Step | None:
        """``proximal`` and the step of ``solver`` along it in one, where that can be had; None where not."""
        size = relative_step(solver)
        if size is None or not self._engine.compile:
            return None
        pull = Pull(self._parameters, self.lam, shift)
        step = self._engine.step(self._inner, y, self._data.support, self._seed((0, *noise_ids)), pull, size)
        if step is not None:
            self.counts.support_gradients += y.shape[0] * y.shape[1]
        return step

    def query(self, y: Tensor, *noise_ids: int) -> Evaluation:
        """grad f at y [T, B, P]; equal ``noise_ids`` mean equal noise."""
        self.counts.query_gradients += y.shape[0] * y.shape[1]
        return self._evaluate(self._outer, y, self._data.query, (1, *noise_ids))

    def add_query(self, total: Tensor, weight: Tensor, y: Tensor, *noise_ids: int) -> None:
        """Add ``weight`` [T, B, 1] times grad f at y to ``total`` [T, B, P] in place; noise as in ``query``."""
        self.counts.query_gradients += y.shape[0] * y.shape[1]
        self._engine.add_gradient(self._outer, y, self._data.query, self._seed((1, *noise_ids)), total, weight)

    def query_both(self, y: Tensor, *noise_ids: int) -> tuple[Evaluation, Tensor]:
        """grad f at y with respect to y, as ``query``, and with respect to w [T, B, W], for the price of one."""
        if not self.shares:
            return self.query(y, *noise_ids), self._nothing(y)
        self.counts.query_gradients += y.shape[0] * y.shape[1]
        out = self._evaluate(self._outer_z, self._parameters.at(y), self._data.query, (1, *noise_ids))
        size = y.shape[-1]
        return Evaluation(out.grad[..., :size], out.value, out.metrics), out.grad[..., size:]

    def support_shared(self, y: Tensor, *noise_ids: int) -> Tensor:
        """grad fhat at y [T, B, P] with respect to w [T, B, W]. Costs nothing where W is 0."""
        if not self.shares:
            return self._nothing(y)
        self.counts.support_gradients += y.shape[0] * y.shape[1]
        size = y.shape[-1]

        def at_fixed_y(z: Tensor, data: Any) -> tuple[Tensor, Metrics]:
            return self._inner_z(torch.cat([z[:size].detach(), z[size:]]), data)

        z = self._parameters.at(y)
        return self._evaluate(at_fixed_y, z, self._data.support, (0, *noise_ids)).grad[..., size:]

    def query_values(self, y: Tensor, *noise_ids: int) -> tuple[Tensor, Metrics]:
        """f and its metrics [T] at y [T, P], without a gradient (and so not counted as one)."""
        return self._engine.values(self._values, y, self._data.query, self._seed((1, *noise_ids)))

    def hessian_vector(self, y: Tensor, p: Tensor, *noise_ids: int) -> Tensor:
        """Hess fhat(y) p [T, 1, P] for y and p [T, 1, P], by differentiating <grad fhat, p>."""
        self.counts.hessian_vector_products += y.shape[0]

        def product(flat: Tensor, joined: Any) -> tuple[Tensor, Metrics]:
            data, direction = joined
            return self._engine.inner_gradient(self._inner, flat, data) @ direction, {}

        joined = self._engine.join(self._data.support, p.squeeze(1))
        with _second_derivatives_explained():
            return self._evaluate(product, y, joined, (0, *noise_ids)).grad

    def mixed_product(self, y: Tensor, p: Tensor, *noise_ids: int) -> Tensor:
        """d/dw <grad_y fhat, p> [T, 1, W] for y and p [T, 1, P]. Costs a Hessian-vector product, nothing if W is 0."""
        if not self.shares:
            return self._nothing(y)
        self.counts.hessian_vector_products += y.shape[0]
        size = y.shape[-1]

        def product(z: Tensor, joined: Any) -> tuple[Tensor, Metrics]:
            data, direction = joined
            at_w = self._at_w(z[size:])
            return self._engine.inner_gradient(at_w, z[:size], data) @ direction, {}

        joined = self._engine.join(self._data.support, p.squeeze(1))
        with _second_derivatives_explained():
            return self._evaluate(product, self._parameters.at(y), joined, (0, *noise_ids)).grad[..., size:]

    def through(self, solve: Unrolled, x: Tensor) -> Evaluation:
        """The gradient of f_i(solve(x)) with respect to z = (x, w) [T, 1, P + W], through all that ``solve`` does.

        ``solve(x, gradient)`` gets one task's x [P] and ``gradient(y, step) -> grad fhat`` [P], with the noise of
        a base solve; it returns y [P] and records. ``metrics`` holds {"metrics": of f, "records": [T, 1, ...]}.
        Counts the gradients of both losses, and not the backward pass through them.
        """

        def objective(flat: Tensor, task: Any) -> tuple[Tensor, Metrics]:
            support, query = task
            x, w = flat[:size], flat[size:]

            def gradient(y: Tensor, step: int) -> Tensor:
                self.counts.support_gradients += tasks
                self._noise.set(0, BASE_NOISE, step, self.start)
                return self._engine.inner_gradient(self._at_w(w), y, support)

            y, records = solve(x, gradient)
            self._noise.set(1, BRANCH_NOISE, 0, self.start)
            value, metrics = self._outer_z(torch.cat([y, w]), query)
            return value, {"metrics": metrics, "records": records}

        tasks, size = x.shape[0], x.shape[-1]
        self.counts.query_gradients += tasks
        with _second_derivatives_explained():
            return self._engine.evaluate(
                objective, self._parameters.at(x), self._engine.join(*self._data), lambda task: None
            )

    @property
    def shares(self) -> bool:
        """Whether there are parameters w that do not adapt."""
        return self._parameters.shared is not None

    @property
    def one_branch_at_a_time(self) -> bool:
        """Whether evaluating branches one after another takes less memory than all at once."""
        return self._engine.sequential

    @staticmethod
    def _nothing(y: Tensor) -> Tensor:
        return y.new_empty(*y.shape[:-1], 0)

    def _at_w(self, w: Tensor) -> FlatLoss:
        """The inner loss as one of y, at another w."""
        return lambda y, data: self._inner_z(torch.cat([y, w]), data)

    def _evaluate(self, loss: FlatLoss, y: Tensor, data: Any, noise_ids: Sequence[int]) -> Evaluation:
        return self._engine.evaluate(loss, y, data, self._seed(noise_ids))

    def _seed(self, noise_ids: Sequence[int]) -> Seed:
        return lambda task: self._noise.set(*noise_ids, self.start + task)


def _fixed(loss: Loss) -> Loss:
    return loss.fixed() if isinstance(loss, ModuleLoss) else loss


@contextmanager
def _second_derivatives_explained() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        error.add_note(
            "metaprox: raised while the inner loss was differentiated twice; FOBMAML, FOMAML and Reptile never do that"
        )
        raise


def flat_loss(loss: Loss, role: str, parameters: Parameters, *, differentiable: bool = True) -> FlatLoss:
    """``loss`` as a checked function of z [P + W]."""
    checked = checked_loss(loss, role, differentiable=differentiable)
    return lambda z, data: checked(parameters.unflatten(z), data)


def checked_loss(loss: Loss, role: str, *, differentiable: bool = True) -> CheckedLoss:
    """``loss`` as a function that always returns (scalar, metrics).

    Raises InputError unless the loss is a scalar and, where ``differentiable``, depends on the parameters.
    """

    def call(params: dict[str, Tensor], data: Any) -> tuple[Tensor, Metrics]:
        return weighted_sum(lambda batch, weight: one(params, batch), data)

    def one(params: dict[str, Tensor], data: Any) -> tuple[Tensor, Metrics]:
        result = loss(params, data)
        value, metrics = result if isinstance(result, tuple) else (result, {})
        if not isinstance(value, Tensor) or value.dim() != 0:
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise InputError(f"{role} must return a scalar tensor, got {got}; reduce it, for example with .mean()")
        if differentiable and not value.requires_grad:
            raise InputError(
                f"{role} does not depend on the parameters {list(params)}; is the loss computed from them, "
                "and without detach() or no_grad()?"
            )
        return value, dict(metrics)

    return call
