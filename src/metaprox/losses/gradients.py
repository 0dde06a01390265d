"""Gradients of the two losses at T x B points, counted and with coupled noise."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from metaprox.data.batch import TaskBatch
from metaprox.errors import MetaproxError
from metaprox.losses.adapted import AdaptedLoss, apart
from metaprox.losses.backend import Backend, Evaluation, Seed, Step
from metaprox.losses.checked import CheckedLoss
from metaprox.losses.noise import Noise
from metaprox.losses.vmapped import FlatLoss
from metaprox.problem import ProximalProblem
from metaprox.solvers.protocol import InnerSolver, for_parameters, relative_step
from metaprox.types import Metrics
from metaprox.vectors.parameters import Parameters
from metaprox.vectors.terms import Pull, Shift

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
    """Gradients of one problem's losses on tasks start..stop-1 of a batch, counted and with coupled noise.

    ``writes``: whether the losses write on their parameters.
    """

    def __init__(
        self,
        problem: ProximalProblem,
        parameters: Parameters,
        engine: Backend,
        noise: Noise,
        batch: TaskBatch,
        tasks: tuple[int, int],
        *,
        writes: bool,
    ) -> None:
        self.start, self.stop = tasks
        self.lam = problem.lam
        self.counts = Counts()
        self._engine = engine
        self._noise = noise
        self._data = engine.take(batch, self.start, self.stop)
        self._parameters = parameters
        inner = CheckedLoss(problem.inner_loss, "inner_loss")
        outer = CheckedLoss(problem.outer_loss, "outer_loss")
        self._losses = (inner, outer)
        at_w = (parameters.structure, parameters.w)
        self._inner = AdaptedLoss(inner, *at_w, writes)
        self._outer = AdaptedLoss(outer, *at_w, writes)
        self._values = AdaptedLoss(replace(outer, differentiable=False), *at_w, writes)
        self._version = parameters.w._version
        self._writes = writes
        self._inner_z = replace(inner, differentiable=False)
        self._outer_z = flat_loss(outer, parameters, writes=writes)

    def for_parameters(self, solver: InnerSolver) -> InnerSolver:
        """``solver``, told of the parameters' shapes if it wants to know."""
        return for_parameters(solver, self._parameters.adapted.views)

    def per_task(self, value: float) -> Tensor:
        """``value`` for each task [T], in the dtype of the parameters."""
        return self._parameters.pieces[0].new_full((self.stop - self.start,), value)

    def start_at_x(self) -> Tensor:
        """x for each task [T, 1, P]; not the live parameters, but not to be written on."""
        return self._parameters.start().expand(self.stop - self.start, 1, -1)

    def displacement(self, y: Tensor) -> Tensor:
        """y - x [T, B, P], a new tensor."""
        return self._parameters.displacement(y)

    def proximal(self, y: Tensor, *noise_ids: int, shift: Shift | None = None) -> Tensor:
        """grad fhat(y) + lam (y - x) + shift [T, B, P]: the gradient of the inner problem, a linear term added to it.

        Equal ``noise_ids`` mean equal noise. A new tensor.
        """
        self.counts.support_gradients += y.shape[0] * y.shape[1]
        pull = Pull(self._parameters, self.lam, shift)
        with self._evaluation("support"):
            return self._engine.proximal(self._inner, y, self._data.support, self._seed((0, *noise_ids)), pull)

    def step(self, solver: InnerSolver, y: Tensor, *noise_ids: int, shift: Shift | None = None) -> Step | None:
        """``proximal`` and the step of ``solver`` along it in one, where that can be had; None where not."""
        size = relative_step(solver) if self._engine.compile else None
        if size is None:
            return None
        pull = Pull(self._parameters, self.lam, shift)
        with self._evaluation("support"):
            step = self._engine.step(self._inner, y, self._data.support, self._seed((0, *noise_ids)), pull, size)
        if step is not None:
            self.counts.support_gradients += y.shape[0] * y.shape[1]
        return step

    def query(self, y: Tensor, *noise_ids: int) -> Evaluation:
        """grad f at y [T, B, P]; equal ``noise_ids`` mean equal noise."""
        self.counts.query_gradients += y.shape[0] * y.shape[1]
        return self._evaluate("query", self._outer, y, self._data.query, (1, *noise_ids))

    def add_query(self, total: Tensor, weight: Tensor, y: Tensor, *noise_ids: int) -> None:
        """Add ``weight`` [T, B, 1] times grad f at y to ``total`` [T, B, P] in place; noise as in ``query``."""
        self.counts.query_gradients += y.shape[0] * y.shape[1]
        with self._evaluation("query"):
            self._engine.add_gradient(self._outer, y, self._data.query, self._seed((1, *noise_ids)), total, weight)

    def query_both(self, y: Tensor, *noise_ids: int) -> tuple[Evaluation, Tensor]:
        """grad f at y with respect to y, as ``query``, and with respect to w [T, B, W], for the price of one."""
        if not self.shares:
            return self.query(y, *noise_ids), self._nothing(y)
        self.counts.query_gradients += y.shape[0] * y.shape[1]
        out = self._evaluate("query", self._outer_z, self._parameters.at(y), self._data.query, (1, *noise_ids))
        size = y.shape[-1]
        return Evaluation(out.grad[..., :size], out.value, out.metrics), out.grad[..., size:]

    def support_shared(self, y: Tensor, *noise_ids: int) -> Tensor:
        """grad fhat at y [T, B, P] with respect to w [T, B, W]. Costs nothing where W is 0."""
        if not self.shares:
            return self._nothing(y)
        self.counts.support_gradients += y.shape[0] * y.shape[1]
        size = y.shape[-1]

        inner = flat_loss(self._inner_z, self._parameters, writes=self._writes)

        def at_fixed_y(z: Tensor, data: Any) -> tuple[Tensor, Metrics]:
            return inner(torch.cat([z[:size].detach(), z[size:]]), data)

        z = self._parameters.at(y)
        return self._evaluate("support", at_fixed_y, z, self._data.support, (0, *noise_ids)).grad[..., size:]

    def query_values(self, y: Tensor, *noise_ids: int) -> tuple[Tensor, Metrics]:
        """f and its metrics [T] at y [T, P], without a gradient (and so not counted as one)."""
        with self._evaluation("query"):
            return self._engine.values(self._values, y, self._data.query, self._seed((1, *noise_ids)))

    def hessian_vector(self, y: Tensor, p: Tensor, *noise_ids: int) -> Tensor:
        """Hess fhat(y) p [T, 1, P] for y and p [T, 1, P], by differentiating <grad fhat, p>."""
        self.counts.hessian_vector_products += y.shape[0]

        def product(flat: Tensor, joined: Any) -> tuple[Tensor, Metrics]:
            data, direction = joined
            return self._engine.inner_gradient(self._inner, flat, data) @ direction, {}

        joined = self._engine.join(self._data.support, p.squeeze(1))
        with _second_derivatives_explained():
            return self._evaluate("support", product, y, joined, (0, *noise_ids)).grad

    def mixed_product(self, y: Tensor, p: Tensor, *noise_ids: int) -> Tensor:
        """d/dw <grad_y fhat, p> [T, 1, W] for y and p [T, 1, P]. Costs a Hessian-vector product, nothing if W is 0."""
        if not self.shares:
            return self._nothing(y)
        self.counts.hessian_vector_products += y.shape[0]
        size = y.shape[-1]

        def product(z: Tensor, joined: Any) -> tuple[Tensor, Metrics]:
            data, direction = joined
            at_w = self._at_w(self._inner_z, z[size:])
            return self._engine.inner_gradient(at_w, z[:size], data) @ direction, {}

        joined = self._engine.join(self._data.support, p.squeeze(1))
        with _second_derivatives_explained():
            return self._evaluate("support", product, self._parameters.at(y), joined, (0, *noise_ids)).grad[..., size:]

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
                at_w = self._at_w(self._inner_z.fork(), w)  # the graphs of all steps are alive together
                return self._engine.inner_gradient(at_w, y, support)

            y, records = solve(x, gradient)
            self._noise.set(1, BRANCH_NOISE, 0, self.start)
            value, metrics = self._outer_z(torch.cat([y, w]), query)
            return value, {"metrics": metrics, "records": records}

        tasks, size = x.shape[0], x.shape[-1]
        self.counts.query_gradients += tasks
        with _second_derivatives_explained():
            joined = self._engine.join(*self._data)
            return self._evaluate("", objective, self._parameters.at(x), joined, (0, BASE_NOISE, 0))

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

    def _at_w(self, inner: CheckedLoss, w: Tensor) -> FlatLoss:
        """The inner loss as one of y, at another w."""
        loss = flat_loss(inner, self._parameters, writes=self._writes)
        return lambda y, data: loss(torch.cat([y, w]), data)

    def _evaluate(self, half: str, loss: FlatLoss, y: Tensor, data: Any, noise_ids: Sequence[int]) -> Evaluation:
        with self._evaluation(half):
            return self._engine.evaluate(loss, y, data, self._seed(noise_ids))

    @contextmanager
    def _evaluation(self, half: str) -> Iterator[None]:
        """Around a call of the engine: losses let go of its tensors; errors of the user's code say where they arose."""
        try:
            yield
        except Exception as error:
            if not isinstance(error, MetaproxError):
                tasks = (
                    f"task {self.start}" if self.stop == self.start + 1 else f"tasks {self.start} to {self.stop - 1}"
                )
                error.add_note(f"metaprox: in {tasks}{half and f', {half}'}")
            raise
        for loss in self._losses:
            loss.release()
        if self._parameters.w._version != self._version:
            raise MetaproxError(
                "a loss wrote on parameters that do not adapt, which it did not when it was first looked at; let them "
                "adapt, or write on a copy"
            )

    def _seed(self, noise_ids: Sequence[int]) -> Seed:
        return lambda task: self._noise.of(*noise_ids, self.start + task)


@contextmanager
def _second_derivatives_explained() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        error.add_note(
            "metaprox: raised while the inner loss was differentiated twice; FOBMAML, FOMAML and Reptile never do that"
        )
        raise


def flat_loss(loss: CheckedLoss, parameters: Parameters, *, writes: bool = False) -> FlatLoss:
    """``loss`` as a function of z [P + W]; ``writes``: whether it writes on its parameters."""
    if writes:
        return lambda z, data: loss(apart(parameters.unflatten(z)), data)
    return lambda z, data: loss(parameters.unflatten(z), data)


def flat_losses(problem: ProximalProblem, parameters: Parameters) -> tuple[FlatLoss, FlatLoss]:
    """The inner and the outer loss as functions of z [P + W], on replicas of their models."""
    own = problem.private()
    inner = CheckedLoss(own.inner_loss, "inner_loss", differentiable=False)
    outer = CheckedLoss(own.outer_loss, "outer_loss", differentiable=False)
    return flat_loss(inner, parameters), flat_loss(outer, parameters)
