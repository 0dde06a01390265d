"""What families of labelled data have in common: N-way K-shot tasks of the classes of a split."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import ClassVar, Literal

from metaprox import checks
from metaprox.data import FewShot
from metaprox.data.contents import Contents
from metaprox.data.examples import Examples
from metaprox.data.sources import Source
from metaprox.data.task import Task
from metaprox.errors import InputError
from metaprox.models import cross_entropy
from metaprox.modules.head import Head
from metaprox.readers.hub import Part
from metaprox.tasks.base import Picture, TaskSource, shots_of
from metaprox.tasks.draws import draws_of
from metaprox.tasks.own import OwnData, digest, warn_of
from metaprox.tasks.pictures import probabilities


@dataclass(frozen=True, eq=False)
class Pool:
    """All labelled examples of a family, and the groups of its classes, where there are some.

    Args:
        source: of the examples.
        names: of the classes.
        groups: of the classes.
        checksums: of what each example holds.
        shown: of an example's place, what it is called in messages.
    """

    source: Source
    names: tuple[str, ...]
    groups: tuple[str, ...] | None
    checksums: Sequence[int]
    shown: Callable[[int], str]


@dataclass(frozen=True)
class Labelled(OwnData):
    """N-way K-shot tasks of the classes of a split.

    Args:
        ways: classes of a task.
        shots: support examples of each class.
        queries: query examples of each class.
        train_shots: support examples of each class in training tasks, where they are not as many.
        subset: of a dataset of HuggingFace (--data hf:NAME), which of its configurations.
        data_split: of such a dataset, which of its splits, one, or several with a +. Default: all.
        head: where the last layer starts in a task. zeros, means: at 0, or at the means of the classes, with a row for
            each class of the task, so that what was learned takes any number of classes. learned: where meta-learning
            says, for as many classes as ``ways``. Default: zeros, but for a model of one's own, whose head is learned.
    """

    ways: int = 5
    shots: int = 1
    queries: int = 5
    train_shots: int | None = None
    subset: str | None = field(default=None, kw_only=True)
    data_split: str | None = field(default=None, kw_only=True)
    head: Literal["zeros", "means", "learned"] | None = field(default=None, kw_only=True)

    loss = staticmethod(cross_entropy)
    small: ClassVar[Literal["refuse", "leave out"]] = "leave out"
    """What becomes of classes with too few examples."""

    of_datasets: ClassVar[tuple[str, ...]] = ("subset", "data_split")
    """Fields that say how datasets of HuggingFace are read, and nothing else is."""
    reads_once: ClassVar[tuple[str, ...]] = ("subset", "data_split")

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.settle(self, **dict.fromkeys(self.of_datasets, checks.optional(checks.text)))
        given = [name for name in self.of_datasets if getattr(self, name) is not None]
        if given and self.given_place is not None and Part.of(self.given_place) is None:
            raise InputError(
                f"{given[0]}={getattr(self, given[0])!r} is of datasets of HuggingFace (--data hf:NAME), and "
                f"{self.given_place} is none"
            )
        checks.settle(self, **dict.fromkeys(("ways", "shots", "queries"), checks.count))
        checks.settle(self, head=checks.optional(checks.one_of("zeros", "means", "learned")))
        checks.settle(self, train_shots=checks.optional(checks.count))

    @property
    def task_head(self) -> Head | None:
        """The layer "head" of the model, unless its start is learned."""
        start = self.usual_head if self.head is None else self.head
        return None if start == "learned" else Head("head", start)

    @property
    def usual_head(self) -> Literal["zeros", "learned"]:
        """What ``head`` is where it is not given; of a model of one's own, whose layers have other names, learned."""
        return "zeros" if self.network is None else "learned"

    @abstractmethod
    def pool(self, path: Path) -> Pool:
        """All examples at a path."""

    def fingerprint(self) -> str:
        """Of the names of all classes, their groups, and the class of each example in its order."""
        pool = self._everything
        return digest(pool.names, pool.groups, pool.source.labels)

    def contents(self) -> Contents:
        """Of every example."""
        pool = self._everything
        return Contents([pool.names[i] for i in pool.source.required()], pool.checksums, pool.shown)

    @property
    def _everything(self) -> Pool:
        """The examples of all splits, as they are."""
        return self.of_split("test").pool(self.place)

    @cached_property
    def drawn(self) -> FewShot:
        """The tasks. Raises InputError where there are too few classes or examples; names them."""
        pool = self.pool(self.place)
        classes = self.of_splits(pool.names, pool.groups, str(self.place))[self.split]
        return self._drawn(pool, classes, f"the {self.split} split of {self.place}")

    def _drawn(self, pool: Pool, classes: Sequence[str], what: str) -> FewShot:
        seed, split = self.seed, self.split
        try:
            found = FewShot(
                pool.source,
                self.ways,
                shots_of(self),
                self.queries,
                seed=seed,
                classes=classes,
                small=self.small,
                draws=partial(draws_of, seed, split),
            )
        except InputError as error:
            raise InputError(
                f"{what}: {error}. Lower --ways, --shots or --queries, or give that split more classes"
            ) from error
        if found.left_out:
            needed = shots_of(self) + self.queries
            warn_of(f"{what}: left out, with fewer than {needed} examples: ", found.left_out)
        return found

    def batch(self, ids: Sequence[int]) -> Task:
        """Tasks with labels in int64."""
        found = self.drawn.batch(ids)
        assert isinstance(found, Task)
        return found

    def on(self, path: str | Path) -> TaskSource:
        """Test tasks of all classes of other data. Raises InputError where it can't be read, or has too little."""
        test = self if self.split == "test" else self.of_split("test")
        pool = test.pool(checks.path("path", path))
        return test._drawn(pool, pool.names, str(path))

    def picture(self) -> Picture | None:
        return probabilities("Classes of an unseen task, after adaptation")


def class_groups(examples: Examples) -> tuple[str, ...] | None:
    """The group of each class. Raises InputError where the examples of one are in several."""
    if examples.groups is None:
        return None
    found: dict[int, str] = {}
    for label, group in zip(examples.targets.tolist(), examples.groups, strict=True):
        if found.setdefault(label, group) != group:
            name = examples.names[label]
            both = f"{found[label]!r} and {group!r}"
            raise InputError(f"{examples.source} has {name!r} in the groups {both}: all of a class belong in one")
    return tuple(found[label] for label in range(len(examples.names)))
