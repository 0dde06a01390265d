"""Rows of a table as inputs: some columns, standardized."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metaprox import checks
from metaprox.data.preprocessing import Preprocessing, register
from metaprox.errors import InputError


@register("columns")
@dataclass(frozen=True)
class Columns(Preprocessing):
    """Rows [N, F] in float32: (value - mean) / std of each column.

    An item is a mapping from names of columns to numbers, of which others than ``names`` are not looked at, or the F
    numbers in the order of ``names``. All items may be a tensor [N, F].

    Args:
        names: of the F columns.
        mean: of each; what is subtracted.
        std: of each; what is divided by, > 0.
    """

    names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        checks.settle(self, names=lambda name, value: checks.tuple_of(name, value, checks.text))
        numbers = {"mean": checks.number, "std": checks.positive}
        for field, check in numbers.items():
            checks.settle(
                self, **{field: lambda name, value, c=check: checks.tuple_of(name, value, c, len(self.names))}
            )

    def __call__(self, items: Sequence[Any] | Tensor) -> Tensor:
        """Rows [N, F]."""
        if isinstance(items, Tensor):
            rows = items
        else:
            found = [self._row(i, one) for i, one in enumerate(items)]
            rows = torch.tensor(found, dtype=torch.float64, device="cpu").view(-1, len(self.names))
        if rows.dim() != 2 or rows.shape[1] != len(self.names):
            raise InputError(f"rows must be of {len(self.names)} numbers each, got {checks.shown(rows)}")
        mean, std = (torch.tensor(one, dtype=torch.float64, device=rows.device) for one in (self.mean, self.std))
        return ((rows.double() - mean) / std).float()

    def _row(self, index: int, item: Any) -> tuple[float, ...]:
        if isinstance(item, Mapping):
            if lacking := [name for name in self.names if name not in item]:
                raise InputError(f"row {index} has no column {', '.join(lacking)}")
            item = [item[name] for name in self.names]
        return checks.tuple_of(f"row {index}", item, checks.number, len(self.names))
