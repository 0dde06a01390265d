"""What tasks that are drawn from examples have in common: reading, transforms, batches, the protocol of a dataset."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

from torch.utils import _pytree as pytree

from metaprox import checks
from metaprox.checks.trees import check_alike
from metaprox.data.draws import Draws, seeded
from metaprox.data.sources import Source, inputs_of, source_of
from metaprox.data.task import Task
from metaprox.errors import InputError

NAMED = 10  # classes or groups that a message names


@dataclass(frozen=True, eq=False, kw_only=True)
class Drawn(ABC):
    """Tasks by number, drawn from a source; ``FewShot`` and ``Grouped`` say how."""

    source: Any = field(kw_only=False)
    seed: int = 0
    labels: Any = None
    columns: Sequence[str] | None = None
    inputs: Callable[[Any], Any] | None = None
    transform: Callable[[Any], Any] | None = None
    small: Literal["refuse", "leave out"] = "refuse"
    length: int | None = None
    left_out: tuple[str, ...] = field(init=False, default=())
    _source: Source = field(init=False, repr=False)

    def __post_init__(self) -> None:
        checks.settle(self, seed=checks.seed, length=checks.optional(checks.count))
        checks.settle(self, small=checks.one_of("refuse", "leave out"))
        for name in ("inputs", "transform", "draws"):
            found = getattr(self, name, None)
            if found is not None and not callable(found):
                raise InputError(f"{name} must be a function, got {checks.shown(found)}")
        object.__setattr__(self, "_source", source_of(self.source, self.labels, self.columns))

    @abstractmethod
    def task(self, task_id: int) -> Task:
        """One task. Raises InputError unless its number is >= 0."""

    def batch(self, ids: Sequence[int]) -> Task | list[Task]:
        """The tasks of these ids, stacked where they are of the same sizes. Raises InputError unless ids are >= 0."""
        tasks = [self.task(i) for i in checks.ids("ids", ids)]
        try:
            check_alike(tasks, "")
        except InputError:
            return tasks
        return Task.stack(tasks)

    def __getitem__(self, task_id: int) -> Task:
        if self.length is not None and not 0 <= task_id < self.length:
            raise IndexError(f"task {task_id} of {self.length}")
        return self.task(task_id)

    def __len__(self) -> int:
        if self.length is None:
            raise TypeError("these tasks have no end: give them a length, or a DataLoader of them a sampler")
        return self.length

    def _read(self, support: list[int], query: list[int], draws: Draws) -> tuple[Any, Any]:
        """Inputs of the rows of both parts, read together, and transformed one after the other."""
        spans = slice(len(support)), slice(len(support), None)
        with seeded(draws.seed()) if self._source.random or self.transform else nullcontext():
            both = inputs_of(self._source, support + query, self.inputs)
            first, second = (pytree.tree_map(lambda leaf, span=span: leaf[span], both) for span in spans)
            return (self.transform(first), self.transform(second)) if self.transform else (first, second)

    def _leave_out(self, small: Mapping[str, int], why: str) -> None:
        """Remember what has too few examples. Raises InputError, naming it, where it is to be refused."""
        if small and self.small == "refuse":
            raise InputError(f"{why}, but {named(small)}: ask for fewer, or give small='leave out'")
        object.__setattr__(self, "left_out", tuple(small))


def named(small: Mapping[str, int]) -> str:
    """Classes or groups with their numbers of examples, the first few."""
    shown = ", ".join(f"{name} has {count}" for name, count in list(small.items())[:NAMED])
    return f"{shown}, and {len(small) - NAMED} more have too few" if len(small) > NAMED else shown
