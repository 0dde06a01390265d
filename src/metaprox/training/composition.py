"""A run as the objects that it is made of."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LinearLR
from torch.optim.optimizer import Optimizer
from torch.utils import _pytree as pytree

from metaprox import checks
from metaprox.errors import InputError
from metaprox.estimators import Estimator
from metaprox.problem import ProximalProblem
from metaprox.tasks import Family
from metaprox.tasks.base import SPLITS
from metaprox.training.names import FAMILIES, METHODS, OPTIMIZERS, SOLVERS
from metaprox.training.outer import Outer
from metaprox.training.pace import Pace
from metaprox.training.stored import CONTENTS, DATA, KNOWN, OF_DATA, VERSION, described, flat, made, refused
from metaprox.training.trainer import Source, Trainer


@dataclass(frozen=True)
class DrawnExamples:
    """``loss`` on ``count`` examples of the batch, drawn without repetition, or on all where there are no more."""

    loss: Callable[[nn.Module, Any], Any]
    count: int

    def __call__(self, model: nn.Module, batch: Any) -> Any:
        first = pytree.tree_leaves(batch)[0]
        chosen = torch.randperm(len(first), device=first.device)[: self.count]
        return self.loss(model, pytree.tree_map(lambda leaf: leaf[chosen], batch))


@dataclass(frozen=True)
class Composition:
    """A run as its parts: a family of tasks, an estimator with its solvers, an outer optimizer, a pace.

    ``trainer()`` makes the model and trains it. On disk it is each part's class and settings, under a version.

    Args:
        lam: weight of the proximal term.
        inner_batch: support examples that an inner step of training sees, drawn anew for each step. None: all.
        device: of the model and the tasks.
    """

    family: Family
    estimator: Estimator
    lam: float
    optimizer: Outer
    pace: Pace
    inner_batch: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        kinds = {"family": Family, "estimator": Estimator, "optimizer": Outer, "pace": Pace}
        checks.settle(self, **{name: checks.instance_of(kind) for name, kind in kinds.items()})
        checks.settle(self, lam=checks.nonnegative, inner_batch=checks.optional(checks.count), device=checks.text)
        if self.family.seed != self.pace.seed or self.family.split != "train":
            object.__setattr__(self, "family", replace(self.family, seed=self.pace.seed, split="train"))

    def but(self, **changes: Any) -> "Composition":
        """The same with other numbers of its pace."""
        return replace(self, pace=replace(self.pace, **changes))

    @torch.inference_mode(False)
    def trainer(self, configuration: Mapping[str, Any] | None = None) -> Trainer:
        """Returns everything that the run needs.

        Args:
            configuration: that of the run's folder, where it goes by that, and its data need not be read.

        Raises:
            InputError: something can't be; before any work is done.
        """
        family, pace, contents = self.family, self.pace, None
        if configuration is None:
            configuration, contents = self.configuration(), self.family.contents()
        tasks: dict[str, Source] = {split: family.of_split(split) for split in SPLITS}
        model = _given(family.model(), nn.Module, family, "model").to(_device(self.device))
        make = partial(ProximalProblem.from_module, model, lam=self.lam, adapt=family.adapts, head=family.task_head)
        problem = evaluated = make(family.loss)
        made = family.task_head.names(model) if family.task_head else ()
        own = {id(parameter) for name, parameter in model.named_parameters() if name in made}
        learned = [parameter for parameter in family.learned(model) if id(parameter) not in own]
        optimizer = _given(self.optimizer.of(learned), Optimizer, self.optimizer, "of")
        if self.inner_batch:
            drawn = make(DrawnExamples(family.loss, self.inner_batch), outer_loss=family.loss)
            problem = replace(drawn, per_task=evaluated.per_task)  # which is made of the whole support
        return Trainer(
            problem,
            self.estimator,
            optimizer,
            tasks,
            pace,
            schedule=LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=pace.meta_steps),
            evaluated=evaluated,
            baseline=None if type(family).baseline is Family.baseline else family.baseline,
            picture=family.picture(),
            configuration=configuration,
            contents=None if contents is None else contents.parts,
        )

    def configuration(self) -> dict[str, Any]:
        """The parts as JSON holds them. Raises InputError where a part has a setting that it does not hold."""
        contents = self.family.contents()
        data = {
            DATA: self.family.fingerprint(),
            CONTENTS: None if contents is None else contents.sha256,
            KNOWN: self.family.known(),
        }
        return {"version": VERSION, **{key: value for key, value in data.items() if value is not None}, **self._parts()}

    def _parts(self) -> dict[str, Any]:
        """What there is to choose."""
        return {
            "tasks": described(self.family, FAMILIES.name_of, ("seed", "split"), refused),
            "method": described(self.estimator, _name_of, other=refused),
            "lam": self.lam,
            "inner_batch": self.inner_batch,
            "optimizer": described(self.optimizer, OPTIMIZERS.name_of, other=refused),
            "run": asdict(self.pace),
            "device": self.device,
        }

    def settings(self) -> dict[str, Any]:
        """The same as options by name."""
        return flat(self._parts())

    @classmethod
    def of(cls, values: Mapping[str, Any], *, remembering: bool = False) -> "Composition":
        """Returns what ``configuration`` gave; classes of one's own are imported.

        Args:
            values: a configuration.
            remembering: whether data are not read, as far as the configuration says what is known of them.

        Raises:
            InputError: it is anything else, or the data can't be read.
        """
        if not isinstance(values, Mapping):
            raise InputError(f"not the configuration of a run: {checks.shown(values)}")
        parts = {"tasks", "method", "lam", "inner_batch", "optimizer", "run", "device"}
        if odd := sorted((values.keys() - OF_DATA) ^ (parts | {"version"})):
            raise InputError(f"not the configuration of a run of this version of metaprox: odd {', '.join(odd)}")
        try:
            pace = made({"class": "run", **values["run"]}, lambda name: Pace)
            method = dict(values["method"])
            for name in ("solver", "branch_solver"):
                if method.get(name) is not None:
                    method[name] = made(method[name], SOLVERS.of)
            tasks = values["tasks"]
            if remembering and KNOWN in values:
                family: type[Family] = FAMILIES.of(tasks["class"])
                tasks = {**tasks, "data": family.remembering(tasks.get("data"), values[KNOWN])}
            return cls(
                made(tasks, FAMILIES.of, seed=pace.seed),
                made(method, METHODS.of),
                values["lam"],
                made(values["optimizer"], OPTIMIZERS.of),
                pace,
                values["inner_batch"],
                values["device"],
            )
        except InputError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InputError(f"not the configuration of a run: {type(error).__name__}: {error}") from error


def _given(value: Any, kind: type, part: Any, method: str) -> Any:
    """What a part gave. Raises InputError where it is of another kind."""
    return checks.instance_of(kind)(f"what {type(part).__name__}.{method}() gives", value)


def _name_of(kind: type) -> str:
    return METHODS.name_of(kind) if issubclass(kind, Estimator) else SOLVERS.name_of(kind)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name!r} can't be used here: {str(error).splitlines()[0]}") from error
    if device.type == "meta":
        raise InputError("device 'meta' can't be used here: its tensors have no values")
    return device
