"""What the objects of a script say of themselves, as the configuration of their run."""

from collections import Counter
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from metaprox import checks
from metaprox.losses.origin import describe
from metaprox.problem import ProximalProblem
from metaprox.training.stored import VERSION, described
from metaprox.training.stream import is_stream

if TYPE_CHECKING:
    from metaprox.training.trainer import Trainer

SCRIPT = "script"
# What a schedule counts, and is no setting of it.
COUNTED = {"last_epoch", "_step_count", "_last_lr", "_get_lr_called_within_step", "_is_initial", "T_cur", "T_i"}


def configuration_of_script(trainer: "Trainer") -> dict[str, Any]:
    """The same shape as a composition's, so that reports and comparisons read both; it can be compared, not built."""
    model, evaluated = trainer.model, trainer.evaluated
    tasks = {split: _described(source) for split, source in trainer.tasks.items()}
    return {
        "version": VERSION,
        "made_by": SCRIPT,
        "tasks": {"class": tasks["train"], **{name: one for name, one in tasks.items() if one != tasks["train"]}},
        "model": f"{type(model).__qualname__} of {sum(p.numel() for p in model.parameters())} parameters",
        **_problem(trainer.problem),
        "evaluated": None if evaluated is None else [f"{name} {one}" for name, one in _problem(evaluated).items()],
        "method": described(trainer.estimator, _name_of),
        "optimizer": _optimizer(trainer),
        "schedule": _schedule(trainer.schedule) if trainer.schedule else None,
        "run": asdict(trainer.pace),
    }


def _problem(problem: ProximalProblem) -> dict[str, Any]:
    return {
        "loss": _described(problem.inner_loss),
        "query_loss": _described(problem.outer_loss),
        "lam": problem.lam,
        "adapt": checks.shown(problem.adapt),
    }


def _optimizer(trainer: "Trainer") -> dict[str, Any]:
    """Its groups as they were when it was made: the first, and what is another in the others."""
    first, *others = map(_group, trainer.optimizer.param_groups)
    more = [{name: value for name, value in group.items() if value != first.get(name)} for group in others]
    return {"class": type(trainer.optimizer).__qualname__, **first, **({"other_groups": more} if more else {})}


def _group(group: dict[str, Any]) -> dict[str, Any]:
    found = {name: value for name, value in group.items() if name not in ("params", "param_names")}
    if "initial_lr" in found:
        found["lr"] = found.pop("initial_lr")
    return _plain(found)


def _schedule(schedule: LRScheduler) -> dict[str, Any]:
    """Its settings, and those of the schedules that it is made of."""
    own = _plain({name: value for name, value in schedule.state_dict().items() if name not in COUNTED})
    parts = [_schedule(one) for one in getattr(schedule, "_schedulers", ())]
    return {"class": type(schedule).__qualname__, **own, **({"parts": parts} if parts else {})}


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Those that are numbers, words, or lists of them."""
    scalar = (bool, int, float, str, type(None))
    found: dict[str, Any] = {}
    for name, value in values.items():
        value = value.item() if isinstance(value, Tensor) and value.dim() == 0 else value
        value = sorted(value.elements()) if isinstance(value, Counter) else value
        value = list(value) if isinstance(value, (list, tuple)) else value
        if isinstance(value, scalar) or (isinstance(value, list) and all(isinstance(one, scalar) for one in value)):
            found[name] = value
    return found


def _described(source: Any) -> str:
    """A dataclass with its settings, and of all else the name of the function or class; also of what is read."""
    if is_stream(source):
        return getattr(source, "__qualname__", type(source).__qualname__)
    own = getattr(source, "__self__", source)
    return " ".join(repr(own).split()) if is_dataclass(own) else describe(source).split(" (")[0]


def _name_of(kind: type) -> str:
    return kind.__qualname__
