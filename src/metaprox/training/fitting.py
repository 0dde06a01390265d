"""Whether the parts of a run fit each other."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.optimizer import Optimizer

from metaprox import checks
from metaprox.errors import InputError
from metaprox.estimators import Estimator
from metaprox.modules.loss import ModuleLoss
from metaprox.problem import ProximalProblem
from metaprox.training.pace import Pace

if TYPE_CHECKING:
    from metaprox.training.trainer import Trainer

KINDS: dict[str, type] = {
    "problem": ProximalProblem,
    "estimator": Estimator,
    "optimizer": Optimizer,
    "tasks": Mapping,
    "pace": Pace,
}


def check_parts(trainer: "Trainer") -> None:
    """Raise InputError where a part is another thing, does not belong to the others, or could not be resumed."""
    for name, kind in KINDS.items():
        checks.instance_of(kind)(name, getattr(trainer, name))
    if not isinstance(trainer.problem.inner_loss, ModuleLoss):
        raise InputError("problem must be of a model, whose weights are kept: ProximalProblem.from_module(...)")
    for split in ("train", trainer.pace.eval_split, "test"):
        source = trainer.tasks.get(split)
        if source is None or not (callable(source) or callable(getattr(source, "batch", None))):
            raise InputError(
                f"tasks[{split!r}] must be a function of ids, or an object with batch(ids), got {checks.shown(source)}"
            )
    _check_belonging(trainer)
    trainer.estimator.check(trainer.problem)
    _check_kept(trainer)


def _check_belonging(trainer: "Trainer") -> None:
    own = {id(p) for p in trainer.model.parameters()}
    if not all(id(p) in own for group in trainer.optimizer.param_groups for p in group["params"]):
        raise InputError("optimizer moves parameters that are not those of the problem's model: make it of these")
    schedule, evaluated = trainer.schedule, trainer.evaluated
    if schedule is not None and getattr(schedule, "optimizer", None) is not trainer.optimizer:
        raise InputError(f"schedule {checks.shown(schedule)} is not one of the optimizer: make it of this one")
    if evaluated is not None and getattr(getattr(evaluated, "inner_loss", None), "model", None) is not trainer.model:
        raise InputError("evaluated must be a problem of the model that is trained")


def _check_kept(trainer: "Trainer") -> None:
    """Raise InputError where a state is one that a checkpoint does not hold."""
    if isinstance(trainer.optimizer, torch.optim.LBFGS):
        raise InputError("optimizer LBFGS evaluates the loss several times a step: use another")
    if isinstance(trainer.schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
        raise InputError("schedule ReduceLROnPlateau waits for a metric at each step: use another, or none")
    states: dict[str, Any] = {"optimizer": trainer.optimizer.state_dict()["param_groups"]}
    if trainer.schedule is not None:
        states["schedule"] = trainer.schedule.state_dict()
    for name, state in states.items():
        try:
            json.dumps(state)
        except TypeError as error:
            kind = type(getattr(trainer, name)).__name__
            raise InputError(
                f"the state of {name} {kind} can't be kept as JSON, so that the run could not be resumed: {error}"
            ) from error
