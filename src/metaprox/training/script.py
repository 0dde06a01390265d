"""What the objects of a script say of themselves, as the configuration of their run."""

from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any

from metaprox import checks
from metaprox.losses.origin import describe
from metaprox.training.stored import VERSION, described

if TYPE_CHECKING:
    from metaprox.training.trainer import Trainer

SCRIPT = "script"


def configuration_of_script(trainer: "Trainer") -> dict[str, Any]:
    """The same shape as a composition's, so that reports and comparisons read both; it can be compared, not built."""
    model, problem = trainer.model, trainer.problem
    return {
        "version": VERSION,
        "made_by": SCRIPT,
        "tasks": {"class": _described(trainer.tasks["train"])},
        "model": f"{type(model).__qualname__} of {sum(p.numel() for p in model.parameters())} parameters",
        "loss": describe(problem.inner_loss).split(" (")[0],
        "method": described(trainer.estimator, _name_of),
        "lam": problem.lam,
        "adapt": checks.shown(problem.adapt),
        "optimizer": _optimizer(trainer),
        "schedule": type(trainer.schedule).__name__ if trainer.schedule else None,
        "run": asdict(trainer.pace),
    }


def _optimizer(trainer: "Trainer") -> dict[str, Any]:
    """Of its first group, as it was when the optimizer was made."""
    group = {name: value for name, value in trainer.optimizer.param_groups[0].items() if name != "params"}
    if "initial_lr" in group:
        group["lr"] = group.pop("initial_lr")
    kept = {name: value for name, value in group.items() if isinstance(value, (bool, int, float, str, type(None)))}
    return {"class": type(trainer.optimizer).__qualname__, **kept}


def _described(source: Any) -> str:
    if is_dataclass(source):
        return checks.shown(source)
    own = getattr(source, "__self__", source)
    return checks.shown(own) if is_dataclass(own) else describe(source).split(" (")[0]


def _name_of(kind: type) -> str:
    return kind.__qualname__
