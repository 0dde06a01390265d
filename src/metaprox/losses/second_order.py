"""What differentiates the inner loss twice: for references and rivals, not for FO-B-MAML."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from metaprox.data.microbatches import weighted_sum
from metaprox.losses.adapted import apart, flat_loss
from metaprox.losses.backend import Evaluation
from metaprox.losses.checked import CheckedLoss
from metaprox.losses.gradients import BASE_NOISE, BRANCH_NOISE, Gradients
from metaprox.losses.vmapped import FlatLoss
from metaprox.problem import ProximalProblem
from metaprox.types import Metrics
from metaprox.vectors.parameters import Parameters

Unrolled = Callable[[Tensor, Callable[[Tensor, int], Tensor]], tuple[Tensor, Metrics]]


def hessian_vector(gradients: Gradients, y: Tensor, p: Tensor, step: int) -> Tensor:
    """Hess fhat(y) p [T, 1, P] for y and p [T, 1, P], by differentiating <grad fhat, p>."""
    gradients.counts.hessian_vector_products += y.shape[0]
    backend = gradients.backend

    def product(flat: Tensor, joined: Any) -> tuple[Tensor, Metrics]:
        data, direction = joined
        return backend.inner_gradient(gradients.adapted_inner, flat, data) @ direction, {}

    return _along(gradients, product, y, p, step)


def mixed_product(gradients: Gradients, y: Tensor, p: Tensor, step: int) -> Tensor:
    """d/dw <grad_y fhat, p> [T, 1, W] for y and p [T, 1, P]. Costs a Hessian-vector product, nothing if W is 0."""
    if not gradients.shares:
        return gradients.nothing(y)
    gradients.counts.hessian_vector_products += y.shape[0]
    size, inner = y.shape[-1], _any(gradients.inner)

    def product(z: Tensor, joined: Any) -> tuple[Tensor, Metrics]:
        data, direction = joined
        return gradients.backend.inner_gradient(_inner_at(gradients, inner, z[size:]), z[:size], data) @ direction, {}

    return _along(gradients, product, gradients.parameters.at(y), p, step)[..., size:]


def gradient_through(gradients: Gradients, solve: Unrolled, x: Tensor) -> Evaluation:
    """Returns the gradient of f_i(solve(x)) with respect to z = (x, w) [T, 1, P + W], through all that ``solve`` does.

    ``solve(x, gradient)`` gets one task's x [P] and ``gradient(y, step) -> grad fhat`` [P], with the noise of
    a base solve; it returns y [P] and records. ``metrics`` holds {"metrics": of f, "records": [T, 1, ...]}.
    Counts the gradients of both losses, and not the backward pass through them.
    """
    tasks, size = x.shape[0], x.shape[-1]
    backend, noise, parameters = gradients.backend, gradients.noise, gradients.parameters
    outer = flat_loss(_any(gradients.outer), parameters, writes=gradients.writes)

    def objective(flat: Tensor, task: Any) -> tuple[Tensor, Metrics]:
        support, query = task
        x, w = flat[:size], flat[size:]

        def gradient(y: Tensor, step: int) -> Tensor:
            gradients.counts.support_gradients += tasks
            noise.again(0, BASE_NOISE, step)
            own = _any(gradients.inner).fork()  # the graphs of all steps are alive together
            return backend.inner_gradient(_inner_at(gradients, own, w), y, support)

        y, records = solve(x, gradient)
        noise.again(1, BRANCH_NOISE, 0)
        value, metrics = backend.inner_value(outer, torch.cat([y, w]), query)
        return value, {"metrics": metrics, "records": records}

    gradients.counts.query_gradients += tasks
    with _explained(), gradients.evaluation(""):
        joined = backend.join(*gradients.data)
        return backend.evaluate(objective, parameters.at(x), joined, gradients.seed(0, BASE_NOISE, 0))


def flat_losses(problem: ProximalProblem, parameters: Parameters) -> tuple[FlatLoss, FlatLoss]:
    """The inner and the outer loss as functions of z [P + W] and a task's data, on replicas of their models."""
    own = problem.private()
    inner = flat_loss(CheckedLoss(own.inner_loss, "inner_loss", differentiable=False), parameters)
    outer = flat_loss(CheckedLoss(own.outer_loss, "outer_loss", differentiable=False), parameters)
    return _summed(inner), _summed(outer)


def _summed(loss: FlatLoss) -> FlatLoss:
    """Over micro-batches."""
    return lambda z, data: weighted_sum(lambda batch: loss(z, batch), data)


def _any(loss: CheckedLoss) -> CheckedLoss:
    """The same, which need not depend on the parameters: a derivative of it is 0 then."""
    return replace(loss, differentiable=False)


def _inner_at(gradients: Gradients, inner: CheckedLoss, w: Tensor) -> FlatLoss:
    """The inner loss as one of y, at another w."""
    unflatten, writes = gradients.parameters.structure.unflatten, gradients.writes
    return lambda y, batch: inner(apart(unflatten(y, w)) if writes else unflatten(y, w), batch)


def _along(gradients: Gradients, product: FlatLoss, z: Tensor, p: Tensor, step: int) -> Tensor:
    """The gradient at z of ``product``, of a task's support and p [T, 1, P]."""
    with _explained(), gradients.evaluation("support"):
        joined = gradients.backend.join(gradients.data.support, p.squeeze(1))
        return gradients.backend.evaluate(product, z, joined, gradients.seed(0, BRANCH_NOISE, step)).grad


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        error.add_note(
            "metaprox: raised while the inner loss was differentiated twice; FOBMAML, FOMAML and Reptile never do that"
        )
        raise
