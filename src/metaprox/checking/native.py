"""Meta-gradients as the user gets them: on the backend and in the precision that were asked for."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from metaprox.checking.subject import Subject
from metaprox.estimators import FOBMAML, Estimator
from metaprox.estimators.result import ChunkResult
from metaprox.losses.gradients import Gradients


@dataclass(frozen=True)
class Native:
    """One task's meta-gradient [N], and its estimator with the step of the difference written out."""

    g: Tensor
    estimator: Estimator


def natives(subject: Subject, estimator: Estimator) -> list[Native]:
    """Of all tasks, not compiled. Raises what the estimator raises."""
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    with subject.call(replace(subject.choice, compile=False)) as call:
        lam = call.problem.lam
        for span in call.chunks():
            gradients = call.gradients(span)
            part, size = _result(estimator, gradients), gradients.parameters.adapted.size
            norm_v = torch.linalg.vector_norm(part.grad[:, :size], dim=-1) / part.info.gradient_ratio
            g = call.of_learned(part.grad.unsqueeze(1), gradients).squeeze(1)
            found += zip(g, part.info.nu, norm_v, strict=True)
    return [
        Native(one, _with_step(estimator, float(step), float(step * norm) / lam if lam else 0.0))
        for one, step, norm in found
    ]


def _result(estimator: Estimator, gradients: Gradients) -> ChunkResult:
    purpose = estimator._purpose("meta-gradient", gradients)
    return ChunkResult.of(estimator._estimate(gradients, keep_adapted=False), estimator.solver, purpose)


def _with_step(estimator: Estimator, nu: float, eps: float) -> Estimator:
    """FOBMAML at the step that it has found for a task, so that another precision finds no other one."""
    if not isinstance(estimator, FOBMAML) or not 0 < eps < torch.inf:  # where v is 0 any step will do
        return estimator
    return replace(estimator, nu=nu) if estimator.perturb == "loss" else replace(estimator, eps=eps)
