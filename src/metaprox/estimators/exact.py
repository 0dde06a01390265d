"""The exact meta-gradient of a small problem, by Newton's method and a dense solve: the reference."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad, vjp, vmap

from metaprox import checks
from metaprox.arguments import check_estimate
from metaprox.data.batch import TaskBatch
from metaprox.data.task import Task
from metaprox.errors import InputError, MetaproxError
from metaprox.losses.made import Made
from metaprox.losses.noise import coupled_noise
from metaprox.losses.second_order import flat_losses
from metaprox.problem import ProximalProblem
from metaprox.types import Params
from metaprox.vectors.layout import Layout
from metaprox.vectors.norms import norm
from metaprox.vectors.parameters import Parameters
from metaprox.vectors.shards import refuse_shards


@dataclass(frozen=True)
class ExactMetaGradient:
    """grad: mean over tasks. per_task: [T, P + W], adapted ones first. solutions: y_i(x) [T, P]. value: F(x) [].

    Where tasks have parameters of their own, per_task is [T, N], of x in the order it was given in.
    """

    grad: dict[str, Tensor]
    per_task: Tensor
    solutions: Tensor
    value: Tensor


@torch.inference_mode(False)
def exact_meta_gradient(
    problem: ProximalProblem, params: Params, tasks: Task | Sequence[Task], *, tol: float = 1e-12, max_steps: int = 100
) -> ExactMetaGradient:
    """F(x) and grad F_i(x) = lam (H + lam I)^{-1} grad f_i(y_i) for twice differentiable, deterministic losses.

    The inner problem is solved by damped Newton from x until its gradient norm is <= tol times that at x, or a step
    <= tol times ||x|| or ||y||, as where x is a solution up to rounding: the same in all units.
    Costs a dense P x P Hessian a step: for P up to a thousand or so, best in float64.

    Returns:
        The mean of the T tasks' gradients by name, each task's own [T, P + W], y_i(x) [T, P] and F(x) [].

    Raises:
        InputError: bad input, or lam is 0.
        MetaproxError: Newton's method did not converge, so that there is no reference.
    """
    check_estimate(problem, params)
    refuse_shards(params.values(), "exact_meta_gradient")
    tol, max_steps = checks.positive("tol", tol), checks.count("max_steps", max_steps)
    checks.positive("lam", problem.lam, "the inner problem is a proximal solve")
    batch = TaskBatch.of(tasks)
    with torch.no_grad(), coupled_noise(Layout.of(params).device) as noise:
        made = Made.of(problem.private(), params, batch, noise)
        parameters = Parameters.of(params, problem.adapted_names).flat() if made is None else made.parameters(0, 1)
        named = parameters.unflatten if made is None else made.learned.unflatten
        if made is not None and not made.alike:
            raise InputError(
                "tasks have parameters of their own of unequal shapes: give those of each shape by themselves"
            )
        solutions, gradients, values = [], [], []
        for index in range(batch.size):
            parameters = parameters if made is None else made.parameters(index, index + 1).flat()
            with torch.enable_grad():
                y, gradient, value = _of_task(problem, parameters, batch.one(index), index, tol, max_steps)
            gradient = gradient if made is None else made.pulled(parameters, gradient[None, None], index)[0][0, 0]
            solutions.append(y)
            gradients.append(gradient)
            values.append(value)
    per_task = torch.stack(gradients)
    return ExactMetaGradient(named(per_task.mean(0)), per_task, torch.stack(solutions), torch.stack(values).mean())


def _of_task(
    problem: ProximalProblem, parameters: Parameters, task: Task, index: int, tol: float, max_steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """y_i [P], its gradient with respect to (x, w) [P + W], and f_i there."""
    x, w = parameters.x, parameters.w
    inner, outer = flat_losses(problem, parameters)

    def phi(y: Tensor, w: Tensor = w) -> Tensor:
        return inner(torch.cat([y, w]), task.support)[0] + 0.5 * problem.lam * (y - x).square().sum()

    def f(y: Tensor, w: Tensor) -> Tensor:
        return outer(torch.cat([y, w]), task.query)[0]

    y = _newton(phi, x, tol, max_steps, index)
    v, direct = grad(f, (0, 1))(y, w)
    z = torch.linalg.solve(_hessian(phi, y), v)
    mixed = grad(lambda w: grad(phi)(y, w) @ z)(w)
    return y.detach(), torch.cat([problem.lam * z, direct - mixed]).detach(), f(y, w).detach()


def _newton(phi, x: Tensor, tol: float, max_steps: int, task: int) -> Tensor:  # type: ignore[no-untyped-def]
    y = x.clone()
    limit = tol * float(norm(grad(phi)(x)))
    for _ in range(max_steps):
        slope = grad(phi)(y)
        size = float(norm(slope))
        if size <= limit:
            return y
        direction = torch.linalg.solve(_hessian(phi, y), slope)
        if float(norm(direction)) <= tol * float(torch.maximum(norm(x), norm(y))):
            return y
        scale = 1.0
        while scale > 1e-10 and not float(norm(grad(phi)(y - scale * direction))) < size:
            scale /= 2
        y = y - scale * direction
    raise MetaproxError(
        f"task {task}: Newton's method stopped at gradient norm {size:.1e} > {limit:.1e} after {max_steps} steps; "
        "use float64, raise lam, or loosen tol"
    )


def _hessian(phi, y: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
    """[P, P]. torch's own makes its basis within a transform, which fails in torch 2.7 under a default device."""
    basis = torch.eye(len(y), dtype=y.dtype, device=y.device)
    pull = vjp(grad(phi), y)[1]
    rows: Tensor = vmap(lambda u: pull(u)[0])(basis)
    return rows
