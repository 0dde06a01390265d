"""N-way K-shot tasks from labelled data."""

from collections.abc import Callable, Hashable, Iterable
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import torch
from torch import Tensor

from metaprox import checks
from metaprox.data.drawn import Drawn, named
from metaprox.data.draws import Draws, KeyedDraws
from metaprox.data.sources import Source
from metaprox.data.task import Task
from metaprox.errors import InputError

Count = int | tuple[int, int]


@dataclass(frozen=True, eq=False)
class FewShot(Drawn):
    """N-way K-shot tasks: task i is a function of ``seed`` and i, on every machine and in every process.

    Support is (inputs [ways * shots, ...], labels [ways * shots]), query likewise with ``queries`` of each class, no
    example in both, in random order. Labels are 0..ways-1, for classes in random order; ``names(i)`` tells which.

    ``tasks[i]`` is one task, ``tasks.batch(ids)`` several: stacked where all are of the same sizes, else a list, which
    estimators take with the loop backend. A plain DataLoader reads it, with workers: ``DataLoader(tasks, batch_size=4,
    num_workers=2)`` with a ``length``, or ``sampler=range(1000)``; of tasks of unequal sizes with ``collate_fn=list``.

    Args:
        source: a pair (x, y) of tensors or arrays; a torch Dataset of pairs (x, label); a HuggingFace Dataset, with
            ``columns``; or the Examples of a reader. Inputs are read for the examples of a task alone. Labels come
            from ``labels``, y, the column, or the Dataset's ``targets`` or ``labels``; a Dataset without these is read
            once for them.
        ways: classes of a task, or the (least, most) of a range.
        shots: support examples of each class, or a range.
        queries: query examples of each class, or a range.
        seed: of the tasks.
        classes: the labels, or their names, that tasks are made of, as ``split_classes`` gives them. None: all.
        labels: one for each example, where the source has none or others.
        columns: of a HuggingFace Dataset: that of the inputs and that of the labels.
        inputs: what makes tensors of items, such as ``metaprox.readers.Pictures``, given a list of a task's. None: they
            are tensors, or numbers, that stack.
        transform: of the inputs of a task's support, and of its query, [N, ...]. What it draws from torch's global
            generator is drawn from the task's own, as is what a Dataset draws in reading.
        together: how many tasks, by number, have the same sizes where these are ranges: with the number that makes a
            batch, batches stack.
        small: what becomes of classes with too few examples: they are refused by name, or left out.
        length: how many tasks there are for a DataLoader's sampler. None: they have no end.
        draws: of a task's number, the choices that make it; by ``seed`` unless given.

    Raises:
        InputError: the source is of another kind, or has too few classes or examples; names them.

    Example:
        >>> import torch
        >>> from metaprox.data import FewShot
        >>> x, y = torch.randn(60, 4), torch.arange(60) % 6
        >>> tasks = FewShot((x, y), ways=3, shots=2, queries=5)
        >>> tasks.batch([0, 1]).query[0].shape
        torch.Size([2, 15, 4])
    """

    ways: Count
    shots: Count
    queries: Count
    _: KW_ONLY
    classes: Iterable[Hashable] | None = None
    together: int = 1
    draws: Callable[[int], Draws] | None = None
    _rows: list[tuple[Any, list[int]]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        most = {name: _range(name, getattr(self, name))[1] for name in ("ways", "shots", "queries")}
        checks.settle(self, together=checks.count)
        rows: dict[Any, list[int]] = {}
        for row, label in enumerate(self._source.required()):
            rows.setdefault(label, []).append(row)
        if self.classes is not None:
            rows = _chosen(rows, self._source, list(self.classes))
        self._keep(rows, **most)

    def _keep(self, rows: dict[Any, list[int]], ways: int, shots: int, queries: int) -> None:
        """The classes with enough examples, in the order of their labels."""
        small = {self._source.names(label): len(found) for label, found in rows.items() if len(found) < shots + queries}
        why = f"{shots} shots and {queries} queries need {shots + queries} examples of a class"
        self._leave_out(small, why)
        kept = sorted((label for label, found in rows.items() if len(found) >= shots + queries), key=_order)
        if ways > len(kept):
            because = f" with enough examples: {why}, but {named(small)}" if small else ""
            raise InputError(f"{ways}-way tasks need {ways} classes, but there are {len(kept)}{because}")
        object.__setattr__(self, "_rows", [(label, rows[label]) for label in kept])

    def names(self, task_id: int) -> tuple[str, ...]:
        """The names of the classes of a task, in the order of its labels 0..ways-1."""
        ways, _, _ = self._sizes(task_id)
        return tuple(self._source.names(self._rows[i][0]) for i in self._of(task_id).choose(len(self._rows), ways))

    def task(self, task_id: int) -> Task:
        """One task. Raises InputError unless its number is >= 0."""
        ways, shots, queries = self._sizes(task_id)
        draws = self._of(task_id)
        classes = [self._rows[i][1] for i in draws.choose(len(self._rows), ways)]
        drawn = [[rows[i] for i in draws.choose(len(rows), shots + queries)] for rows in classes]
        support, labels = _shuffled([rows[:shots] for rows in drawn], draws)
        query, query_labels = _shuffled([rows[shots:] for rows in drawn], draws)
        inputs, query_inputs = self._read(support, query, draws)
        return Task((inputs, labels), (query_inputs, query_labels))

    def _of(self, task_id: int) -> Draws:
        checks.count("id", task_id, least=0)
        return self.draws(task_id) if self.draws else KeyedDraws("task", self.seed, task_id)

    def _sizes(self, task_id: int) -> tuple[int, ...]:
        """Ways, shots and queries."""
        pairs = [_range(name, getattr(self, name)) for name in ("ways", "shots", "queries")]
        draws = KeyedDraws("sizes", self.seed, task_id // self.together)
        return tuple(draws.within(*pair) for pair in pairs)


def _range(name: str, value: Any) -> tuple[int, int]:
    """A number as a range of itself. Raises InputError where it is none of both."""
    if not isinstance(value, (tuple, list)):
        one = checks.count(name, value)
        return one, one
    low, high = checks.tuple_of(name, value, checks.count, 2)
    if low > high:
        raise InputError(f"{name} must be a number, or the (least, most) of a range, got {checks.shown(value)}")
    return low, high


def _order(label: Any) -> tuple[bool, Any, str]:
    """Numbers by size, all else by name."""
    number = isinstance(label, (int, float))
    return (not number, label if number else 0, str(label))


def _chosen(rows: dict[Any, list[int]], source: Source, classes: list[Any]) -> dict[Any, list[int]]:
    """The rows of these labels, or of the labels of these names. Raises InputError where there is none."""
    named = {source.names(label): label for label in rows}
    found = {}
    for one in classes:
        label = one if one in rows else named.get(one)
        if label is None:
            raise InputError(f"classes has {one!r}, of which the source has no example")
        found[label] = rows[label]
    return found


def _shuffled(rows: list[list[int]], draws: Draws) -> tuple[list[int], Tensor]:
    """Rows of each class [ways][count] and their labels, in random order."""
    count = len(rows[0])
    order = draws.order(len(rows) * count)
    return [rows[i // count][i % count] for i in order], torch.tensor([i // count for i in order], device="cpu")
