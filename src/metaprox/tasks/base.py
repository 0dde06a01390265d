"""What a family of tasks is: tasks that are a pure function of (seed, split, id), and all that a run on them needs."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, Self

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from metaprox import checks
from metaprox.data.contents import Contents
from metaprox.data.examples import Examples
from metaprox.data.preprocessing import Preprocessing
from metaprox.data.task import Task
from metaprox.errors import InputError
from metaprox.modules.head import Head
from metaprox.modules.loss import ModelLoss
from metaprox.serving import Blueprint

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class TaskSource(Protocol):
    """Tasks by number. Task i is the same on every machine and after every restart."""

    def batch(self, ids: Sequence[int]) -> Task | Sequence[Task]:
        """The tasks of these ids, stacked along a leading dimension; or a list of them, where sizes are unequal."""


class Picture(NamedTuple):
    """How a task is drawn: a title, and ``draw(axes, task, before, after)`` on axes of matplotlib.

    ``task`` is a single one; ``before`` and ``after`` are the model before and after adaptation to it, as functions of
    inputs.
    """

    title: str
    draw: Callable[[Any, Task, Callable[[Any], Tensor], Callable[[Any], Tensor]], None]


@dataclass(frozen=True)
class Family(ABC):
    """Tasks by split, a model, a loss and defaults: a file of ``metaprox.tasks``, or a class of your own.

    A subclass is a frozen dataclass. Its fields are the settings of the family, each with a default and, in the
    docstring or below the field, a sentence of help; they become options of the command line. Own ones are named as
    ``package.module:Class`` there.

    Args:
        seed: of the tasks and of the model's weights.
        split: which tasks ``batch`` makes: classes, or whatever a task is made of, are not shared between splits.
    """

    _: KW_ONLY
    seed: int = 0
    split: Split = "train"

    defaults: ClassVar[Mapping[str, Any]] = {}
    """Options of the command line -> values that suit this family. ``lr`` is that of the optimizer that it names."""
    compiles: ClassVar[bool] = False
    """Whether the losses are those of a small network, which long runs compile."""

    def __post_init__(self) -> None:
        checks.settle(self, seed=checks.seed, split=checks.one_of(*SPLITS))

    @abstractmethod
    def batch(self, ids: Sequence[int]) -> Task | Sequence[Task]:
        """The tasks of these ids of ``split``, stacked along a leading dimension, or a list of them; on the CPU."""

    @abstractmethod
    def model(self) -> nn.Module:
        """A model before meta-training, a function of the settings and ``seed``; on the CPU."""

    @property
    @abstractmethod
    def loss(self) -> ModelLoss:
        """``loss(model, batch)`` on a task's support and query: a scalar, or (scalar, {name: scalar})."""

    @property
    def adapts(self) -> str | Sequence[str] | None:
        """Names or patterns of the parameters that adapt to a task. None: all that require gradients."""
        return None

    def learned(self, model: nn.Module) -> Iterable[nn.Parameter]:
        """The parameters that the outer optimizer moves."""
        return (p for p in model.parameters() if p.requires_grad)

    def baseline(self, model: nn.Module, tasks: Task) -> dict[str, Tensor]:
        """Name -> a number for each task [T]: what can be had without adaptation, to be reported beside it."""
        return {}

    def picture(self) -> Picture | None:
        """How a task is drawn in reports."""
        return None

    @property
    def distinct(self) -> int | None:
        """How many different tasks ``split`` has, of which an evaluation takes each once at most. None: no end."""
        return None

    def fingerprint(self) -> str | None:
        """SHA-256 of what its data decide of tasks and inputs, by which a run knows them again. None: it makes them."""
        return None

    def contents(self) -> Contents | None:
        """What the examples of its data hold, by which a run sees that one is another. None: it makes them."""
        return None

    def known(self) -> dict[str, Any] | None:
        """What its data decide of model, loss and inputs, as JSON holds it; for ``remembering``. None: not said."""
        return None

    @classmethod
    def remembering(cls, data: Any, known: Mapping[str, Any]) -> Any:
        """What to give as the setting ``data``, so that none are read before a task of them is asked for."""
        return data

    scales: ClassVar[bool] = False
    """Whether inputs or outputs are scaled by the data, so that what was learned means nothing beside others."""

    def of_split(self, split: Split) -> Self:
        """The same family for the tasks of another split."""
        return replace(self, split=split)

    @property
    def task_head(self) -> Head | None:
        """The layer of the model that each task has of its own, for its classes. None: all of it is learned."""
        return None

    @property
    def answers(self) -> tuple[str, ...] | None:
        """The classes that the model's outputs stand for, by name, if all tasks have the same. None: they have not."""
        return None

    def blueprint(self) -> Blueprint | None:
        """How ``model`` is made, without the data, so that a saved learner needs nothing beside it. None: not said."""
        return None

    def preprocessing(self) -> Preprocessing | None:
        """How items that a person has become inputs of the model. None: the family makes its own data."""
        return None

    def examples(self, path: str | Path, *, labels: bool = True) -> Examples:
        """What ``path`` holds, read as the family reads its data: items for ``preprocessing``, labels and names.

        Raises:
            InputError: the family makes its own data, or the path can't be read.
        """
        raise InputError(f"{type(self).__name__} makes its own data: it reads none from {path}")

    reads: ClassVar[tuple[str, ...]] = ()
    """Fields that say how files are read, such as the names of columns."""

    reads_once: ClassVar[tuple[str, ...]] = ()
    """Fields that say what of one path is read, and nothing of another's."""

    one_group: ClassVar[bool] = False
    """Whether a task is a group, so that the examples of several are no support."""

    def reading(self, **columns: Any) -> Self:
        """Returns the same family with others of its ``reads``, for ``examples`` alone: its own data stay as they are.

        Those of ``reads_once`` can be given too, and are None where they are not.

        Raises:
            InputError: it reads by no such field.
        """
        if odd := sorted(columns.keys() - {*self.reads, *self.reads_once}):
            raise InputError(f"{type(self).__name__} reads files by {', '.join(self.reads) or 'nothing'}, not {odd[0]}")
        found = copy.copy(self)
        for name, value in (dict.fromkeys(self.reads_once) | columns).items():
            object.__setattr__(found, name, value)
        return found

    def of_one(self, path: str | Path) -> Self:
        """Returns the same family as it reads ``path`` where that holds the examples of one task: as it is, unless the
        file need not say which.

        Raises:
            InputError: the path can't be read.
        """
        return self

    @classmethod
    def items(cls, path: str | Path, preprocessing: Any, **columns: Any) -> Examples:
        """Items without labels, for a model that was adapted; read by ``columns``, of ``reads``.

        Raises:
            InputError: the family makes its own data, or the path can't be read.
        """
        raise InputError(f"{cls.__name__} makes its own data: it reads none from {path}")

    def on(self, path: str | Path) -> TaskSource:
        """Test tasks of other data, made of all that it holds.

        Raises:
            InputError: the family makes its own data, or the path can't be read.
        """
        raise InputError(f"{type(self).__name__} makes its own data: it reads none from {path}")


def shots_of(family: Any) -> int:
    """Support examples in the tasks of the family's split: ``train_shots``, where given, in those of training."""
    some: int | None = family.train_shots if family.split == "train" else None
    return family.shots if some is None else some


def in_float64(tasks: Task) -> Task:
    """The same with every floating-point tensor in float64."""
    return pytree.tree_map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, tasks)


def stacked(task: Callable[[int], Task], ids: Sequence[int]) -> Task:
    """``task(i)`` for each of ``ids``, as a batch. Raises InputError unless these are integers >= 0, at least one."""
    found = checks.ids("ids", ids)
    if min(found) < 0:
        raise InputError(f"task ids must be >= 0, got {min(found)}")
    return Task.stack([task(i) for i in found])
