"""One meta-step: the meta-gradient of its tasks, and the outer optimizer's step along it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from metaprox.errors import NonFiniteError
from metaprox.estimators import MetaGradient
from metaprox.estimators.info import Info
from metaprox.losses.checked import joined
from metaprox.training import ranks
from metaprox.training.records import length
from metaprox.vectors.norms import joint_norm

if TYPE_CHECKING:
    from metaprox.training.trainer import Trainer


def meta_step(trainer: "Trainer", step: int) -> MetaGradient:
    """Take meta-step ``step`` + 1.

    Returns:
        Its meta-gradient, as it was before it was clipped.

    Raises:
        NonFiniteError: a task diverged, and is not skipped, or all did; a note says where.
    """
    pace, params, estimator = trainer.pace, list(trainer.model.parameters()), ranks.summing(trainer.estimator)
    size = pace.meta_batch
    trainer.model.zero_grad()
    outs, total, tasks = [], None, 0
    for part in range(step * pace.accumulate, (step + 1) * pace.accumulate):
        ids = range(size * part, size * (part + 1))
        try:
            outs.append(estimator.backward(trainer.problem, ranks.own_batch(trainer, ids)))
        except NonFiniteError as error:
            task = "" if error.task is None else f", training task {ids[error.task]}"
            error.add_note(f"at meta-step {step + 1} of {pace.meta_steps}{task}")
            raise
        if pace.accumulate > 1:
            kept = int((~outs[-1].info.skipped).sum())
            total, tasks = _added(total, params, kept), tasks + kept
    if total is not None:
        for parameter, some in zip(params, total, strict=True):
            parameter.grad = None if some is None else some / tasks
    out = outs[0] if total is None else _joined(outs, trainer.model)
    if pace.clip is not None:
        _clip(trainer, pace.clip)
    trainer.optimizer.step()
    if trainer.schedule is not None:
        trainer.schedule.step()
    return out


def _added(total: list[Tensor | None] | None, params: Sequence[nn.Parameter], tasks: int) -> list[Tensor | None]:
    """``total`` and the gradients of ``params``, the mean over so many tasks, times these; which are taken away."""
    some = [None if p.grad is None else p.grad * tasks for p in params]
    for parameter in params:
        parameter.grad = None
    if total is None:
        return some
    return [one if more is None or one is None else one.add_(more) for one, more in zip(total, some, strict=True)]


def _joined(outs: Sequence[MetaGradient], model: nn.Module) -> MetaGradient:
    """The batches of a meta-step as one: its meta-gradient is in the parameters."""
    grad = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    counts = [int((~out.info.skipped).sum()) for out in outs]
    parts = [(n * out.info.sampling_error * length(out.grad)) ** 2 for n, out in zip(counts, outs, strict=True)]
    error = torch.stack(parts).sum().sqrt() / (sum(counts) * length(grad))
    return MetaGradient(
        grad=grad,
        query_loss=torch.cat([out.query_loss for out in outs]),
        metrics=joined([out.metrics for out in outs]),
        adapted=None,
        info=replace(Info.join([out.info for out in outs]), sampling_error=error),
    )


def _clip(trainer: "Trainer", most: float) -> None:
    """A meta-gradient longer than ``most``, over all that the optimizer moves, is scaled down to that length."""
    params = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    scale, own = joint_norm([p.grad for p in params if p.grad is not None])
    if own > most / scale:
        for parameter in params:
            if parameter.grad is not None:
                parameter.grad = parameter.grad / scale * (most / own)
