"""Tasks that are groups of examples: patients, machines, speakers, clients."""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from metaprox import checks
from metaprox.data.drawn import Drawn
from metaprox.data.draws import KeyedDraws
from metaprox.data.examples import Examples
from metaprox.data.sources import plain
from metaprox.data.task import Task
from metaprox.errors import InputError


@dataclass(frozen=True, eq=False)
class Grouped(Drawn):
    """Tasks that are the groups of labelled examples, each with some of them as support and the others as query.

    With n groups, tasks 0 to n - 1 are these, each once, and so are the next n in another order and, at random, with
    another choice of support: task i is a function of ``seed`` and i. ``batch`` gives a list where groups are of
    unequal sizes, which estimators take with the loop backend. Support is (inputs [S, ...], targets [S]), query
    likewise.

    Args:
        source: as ``FewShot`` takes them; its labels are the targets, of which numbers that are no integers become
            float32, [S, 1].
        by: the group of each example, or a column of a HuggingFace Dataset. None: the groups of a reader's Examples.
        support: how many examples of a group are support, or which share of them, in (0, 1).
        queries: how many of the others are query, at most. None: all.
        how: which are support: some drawn at ``random``; or, by ``time``, the first, and the query those that follow.
        order: of each example, a number or text by which those of a group are sorted. None: they are in order.
        seed: of the tasks.
        groups: those that tasks are made of, as ``split_classes`` gives them. None: all.
        labels, columns, inputs, transform, length: as for ``FewShot``.
        small: what becomes of groups with too few examples for support and a query: refused by name, or left out.

    Raises:
        InputError: the source is of another kind, or groups are not as many as examples, or too small; names them.

    Example:
        >>> import torch
        >>> from metaprox.data import Grouped
        >>> x, y = torch.randn(9, 4), torch.randn(9)
        >>> tasks = Grouped((x, y), by=["ann"] * 4 + ["bob"] * 5, support=3)
        >>> [(len(task.support[1]), len(task.query[1])) for task in tasks.batch([0, 1])]
        [(3, 1), (3, 2)]
    """

    by: Any = None
    _: KW_ONLY
    support: float = 0.5
    queries: int | None = None
    how: Literal["random", "time"] = "random"
    order: Any = None
    groups: Iterable[Hashable] | None = None
    _rows: list[tuple[Any, list[int]]] = field(init=False, repr=False)
    _targets: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.settle(self, support=_share, queries=checks.optional(checks.count), how=checks.one_of("random", "time"))
        known = self._source.targets
        object.__setattr__(self, "_targets", _targets(self._source.required()) if known is None else known)
        rows: dict[Any, list[int]] = {}
        for row, group in enumerate(self._each("by", self._groups())):
            rows.setdefault(group, []).append(row)
        if self.groups is not None:
            wanted = list(self.groups)
            if odd := [group for group in wanted if group not in rows]:
                raise InputError(f"groups has {odd[0]!r}, of which the source has no example")
            rows = {group: rows[group] for group in wanted}
        if self.order is not None:
            place = self._each("order", self.order)
            rows = {group: sorted(some, key=lambda row: place[row]) for group, some in rows.items()}
        small = {str(group): len(some) for group, some in rows.items() if not self._supports(len(some))}
        self._leave_out(small, f"support={self.support} and a query need more examples of a group")
        kept = sorted((group for group in rows if str(group) not in small), key=lambda group: (str(group), repr(group)))
        if not kept:
            raise InputError("there is no group with enough examples for support and query")
        object.__setattr__(self, "_rows", [(group, rows[group]) for group in kept])

    def name(self, task_id: int) -> str:
        """The group of a task."""
        return str(self._rows[self._place(task_id)][0])

    @property
    def count(self) -> int:
        """How many groups there are."""
        return len(self._rows)

    @property
    def distinct(self) -> int:
        """The same: a run's evaluations take each group once at most, for further tasks of one are no new evidence."""
        return self.count

    def task(self, task_id: int) -> Task:
        """One task. Raises InputError unless its number is >= 0."""
        rows = self._rows[self._place(task_id)][1]
        draws = KeyedDraws("group", self.seed, task_id)
        if self.how == "random":
            rows = [rows[i] for i in draws.order(len(rows))]
        split = self._supports(len(rows))
        support, query = rows[:split], rows[split:] if self.queries is None else rows[split : split + self.queries]
        inputs, query_inputs = self._read(support, query, draws)
        return Task((inputs, self._targets[support]), (query_inputs, self._targets[query]))

    def _place(self, task_id: int) -> int:
        turn, place = divmod(checks.count("id", task_id, least=0), len(self._rows))
        return _orders(self.seed, turn, len(self._rows))[place]

    def _supports(self, size: int) -> int:
        """How many of a group are support; 0 where it is too small."""
        wanted = self.support if self.support >= 1 else min(max(1, round(self.support * size)), size - 1)
        return int(wanted) if wanted < size else 0

    def _groups(self) -> Any:
        if isinstance(self.by, str) and hasattr(self.source, "column_names"):
            return self.source.with_format(None)[self.by][:]
        if self.by is None and isinstance(self.source, Examples):
            return self.source.groups or [""] * len(self.source)
        return self.by

    def _each(self, name: str, values: Any) -> list[Any]:
        """One value for each example. Raises InputError where there are not as many."""
        if isinstance(values, str) or not hasattr(values, "__len__"):
            raise InputError(f"{name} must be one value for each example, got {checks.shown(values)}")
        found = plain(values)
        if len(found) != self._source.size:
            raise InputError(f"{name} must be one for each of {self._source.size} examples, got {len(found)}")
        return found


@lru_cache(maxsize=16)
def _orders(seed: int, turn: int, count: int) -> list[int]:
    """The order of the groups in each turn."""
    return list(range(count)) if turn == 0 else KeyedDraws("turn", seed, turn).order(count)


def _share(name: str, value: Any) -> float:
    """A number of examples, or a share of them."""
    found = checks.positive(name, value)
    return checks.count(name, int(found) if found == int(found) else value) if found >= 1 else found


def _targets(labels: Sequence[Any]) -> Tensor:
    """Classes as they are, by number; all other numbers [N, 1]."""
    try:
        found = torch.tensor(list(labels), device="cpu")
    except (TypeError, ValueError) as error:
        raise InputError(f"the targets of groups are numbers; give labels= as such ({error})") from error
    return found.float().unsqueeze(-1) if found.is_floating_point() else found
