"""One meta-step: the meta-gradient of its tasks, and the outer optimizer's step along it."""

from typing import TYPE_CHECKING

from metaprox.errors import NonFiniteError
from metaprox.estimators import MetaGradient

if TYPE_CHECKING:
    from metaprox.training.trainer import Trainer


def meta_step(trainer: "Trainer", step: int) -> MetaGradient:
    """Take meta-step ``step`` + 1. Raises NonFiniteError, which a note says where, where it diverges."""
    size = trainer.pace.meta_batch
    ids = range(size * step, size * (step + 1))
    trainer.model.zero_grad()
    try:
        out = trainer.estimator.backward(trainer.problem, trainer.batch("train", ids))
        trainer.optimizer.step()
    except NonFiniteError as error:
        task = "" if error.task is None else f", training task {ids[error.task]}"
        error.add_note(f"at meta-step {step + 1} of {trainer.pace.meta_steps}{task}")
        raise
    if trainer.schedule is not None:
        trainer.schedule.step()
    return out
