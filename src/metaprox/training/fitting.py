"""Whether the parts of a run fit each other."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.parameter import UninitializedParameter
from torch.optim.optimizer import Optimizer

from metaprox import checks
from metaprox.data.task import Task
from metaprox.errors import InputError
from metaprox.estimators import Estimator
from metaprox.modules.loss import ModuleLoss
from metaprox.problem import ProximalProblem
from metaprox.tasks import Picture
from metaprox.training.callbacks import Callback
from metaprox.training.pace import Pace
from metaprox.training.packed import pack
from metaprox.vectors.shards import refuse_shards

if TYPE_CHECKING:
    from metaprox.training.trainer import Trainer

KINDS: dict[str, type] = {
    "problem": ProximalProblem,
    "estimator": Estimator,
    "optimizer": Optimizer,
    "tasks": Mapping,
    "pace": Pace,
}
OPTIONAL: dict[str, type] = {"picture": Picture, "configuration": Mapping, "contents": Mapping, "baseline": Callable}  # type: ignore[dict-item]


def check_parts(trainer: "Trainer") -> None:
    """Raise InputError where a part is another thing, does not belong to the others, or could not be resumed."""
    for name, kind in KINDS.items():
        checks.instance_of(kind)(name, getattr(trainer, name))
    for name, kind in OPTIONAL.items():
        checks.optional(checks.instance_of(kind))(name, getattr(trainer, name))
    if not isinstance(trainer.problem.inner_loss, ModuleLoss):
        raise InputError("problem must be of a model, whose weights are kept: ProximalProblem.from_module(...)")
    for split in ("train", trainer.pace.eval_split, "test"):
        source = trainer.tasks.get(split)
        by_ids = callable(source) or callable(getattr(source, "batch", None))
        listed = isinstance(source, (list, tuple)) and not all(isinstance(one, Task) for one in source)
        if isinstance(source, (type, Task, str)) or listed or not (by_ids or isinstance(source, Iterable)):
            raise InputError(
                f"tasks[{split!r}] must be a function of ids, an object with batch(ids), or an iterable of tasks, got "
                f"{checks.shown(source)}"
            )
    for name, parameter in trainer.model.named_parameters():
        if isinstance(parameter, UninitializedParameter):
            raise InputError(f"parameter {name!r} of the model has no values yet: call the model once, on a batch")
    refuse_shards(trainer.model.parameters(), "training.Trainer, whose checkpoints are of whole parameters,")
    _check_callbacks(trainer.callbacks)
    _check_belonging(trainer)
    trainer.estimator.check(trainer.problem)
    _check_kept(trainer)


def _check_callbacks(callbacks: Any) -> None:
    for callback in checks.instance_of(Sequence)("callbacks", callbacks):
        checks.instance_of(Callback)("callbacks", callback)


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
    for name in ("optimizer", "schedule"):
        part = getattr(trainer, name)
        try:
            pack(name, part.state_dict() if part else None, {})
        except InputError as error:
            what = f"the state of {name} {type(part).__name__}"
            raise InputError(f"{what} can't be kept, so that the run could not be resumed: {error}") from error
    try:
        json.dumps(trainer.configuration)
    except TypeError as error:
        raise InputError(f"configuration must be what config.json can hold: {error}") from error
