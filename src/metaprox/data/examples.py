"""Labelled examples as a reader found them: items, labels, the names of classes, and what could not be read."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaprox import checks
from metaprox.errors import InputError

SHOWN = 5  # problems that a message names


class Problem(NamedTuple):
    """Something that was left out: where it is, a file or a line of one, and what is wrong with it."""

    place: str
    what: str

    def __str__(self) -> str:
        return f"{self.place}: {self.what}"


@dataclass(frozen=True, eq=False)
class Examples:
    """N examples: what a person has, before it is made into tensors. ``examples[i]`` is (item, label).

    Args:
        source: what was read, for messages.
        items: of the N examples: paths of pictures, texts, or rows of a table.
        labels: [N], int64 indices into ``names``, or float32 targets where ``names`` is empty. None: none were read.
        names: of the classes.
        groups: of each example, the group that it belongs to (an alphabet, a domain, a patient). None: there are none.
        columns: of a table, the names of the numbers in a row, in their order.
        problems: what was left out. All else is in ``items``.

    Raises:
        InputError: there are not as many labels or groups as items.
    """

    source: str
    items: Sequence[Any] | Tensor
    labels: Tensor | None = None
    names: tuple[str, ...] = ()
    groups: Sequence[str] | None = None
    columns: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()

    def __post_init__(self) -> None:
        for name in ("labels", "groups"):
            found = getattr(self, name)
            if found is not None and len(found) != len(self.items):
                raise InputError(f"{name} must be one for each of {len(self.items)} items, got {len(found)}")

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.items[index], None if self.labels is None else self.labels[index]

    @property
    def targets(self) -> Tensor:
        """The labels, where there are some. Raises InputError else."""
        if self.labels is None:
            raise InputError(f"{self.source} was read without labels")
        return self.labels

    def where(self, chosen: Sequence[int]) -> "Examples":
        """Those of the indices ``chosen``, with all names."""
        rows = torch.as_tensor(chosen, dtype=torch.int64, device="cpu")
        items = self.items[rows] if isinstance(self.items, Tensor) else [self.items[i] for i in rows.tolist()]
        labels = None if self.labels is None else self.labels[rows]
        groups = None if self.groups is None else [self.groups[i] for i in rows.tolist()]
        return replace(self, items=items, labels=labels, groups=groups)

    def with_names_in_use(self) -> "Examples":
        """The same without the names of classes that have no examples."""
        if self.labels is None or not self.names:
            return self
        used, labels = self.labels.unique(return_inverse=True)
        return replace(self, labels=labels, names=tuple(self.names[i] for i in used.tolist()))

    def report(self) -> str:
        """What was left out, the first few by name, and what became of the rest; "" where nothing was."""
        if not self.problems:
            return ""
        some = "; ".join(map(str, self.problems[:SHOWN]))
        more = f"; and {len(self.problems) - SHOWN} more" if len(self.problems) > SHOWN else ""
        rest = f"the other {len(self)} are used" if len(self) else "nothing else was found"
        return f"{checks.text('source', self.source)}: {len(self.problems)} left out ({some}{more}); {rest}"
