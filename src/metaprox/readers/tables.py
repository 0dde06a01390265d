"""Tables of numbers with a target, a table for each group or one with a column that names it."""

import math
import sys
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metaprox import checks
from metaprox.data.examples import Examples, Problem
from metaprox.errors import InputError
from metaprox.readers.rows import require, rows_of, tables_in


def read_tables(
    path: str | Path,
    target: str | None = None,
    *,
    by: str | None = None,
    order: str | None = None,
    columns: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
) -> Examples:
    """Rows of numbers and their targets, in CSV, JSON lines or Parquet; a folder gives all such files in it.

    Args:
        path: of the file or folder.
        target: the column with the targets. None: none are read.
        by: the column that names the group of a row. None: that is the name of its file, without its ending.
        order: the column, of numbers or of texts such as ISO dates, by which the rows of each group are sorted. None:
            they stay as they are in the file.
        columns: those with the inputs. None: all others.
        names: of classes, where the target is one of these; () for those that there are, sorted. None: it is a number.

    Returns:
        Examples whose items are a float64 tensor [N, F], group after group, with the names of its ``columns``. Rows
        that lack a number, a target or a group are left out.

    Raises:
        InputError: a file or column is missing, or a file can't be read, or a column holds no numbers.
    """
    path = checks.path("path", path)
    found = _Rows(_Wanted(target, by, order, None if columns is None else tuple(columns), names is not None))
    for file in tables_in(path):
        found.read(file)
    return found.examples(str(path), names)


@dataclass(frozen=True)
class _Wanted:
    target: str | None
    by: str | None
    order: str | None
    columns: tuple[str, ...] | None
    classes: bool

    @property
    def others(self) -> list[str]:
        return [name for name in (self.target, self.by, self.order) if name is not None]


@dataclass
class _Rows:
    """What was read so far."""

    wanted: _Wanted
    columns: tuple[str, ...] | None = None
    numbers: "array[float]" = field(default_factory=lambda: array("d"))
    targets: list[Any] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    orders: list[Any] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    files: dict[str, Path] = field(default_factory=dict)
    odd: Counter[str] = field(default_factory=Counter)

    def read(self, file: Path) -> None:
        """Every row of a file."""
        wanted, columns = self.wanted.others, self.columns or self.wanted.columns
        if self.wanted.by is None and (other := self.files.setdefault(file.stem, file)) != file:
            raise InputError(f"{other} and {file} are both the group {file.stem!r}: give one another name")
        needed = list(dict.fromkeys([*wanted, *(columns or ())]))
        for row in rows_of(file, needed, alone=columns is not None):
            if isinstance(row, Problem):
                self.problems.append(row)
                continue
            if self.columns is None:
                self.columns = columns or tuple(name for name in row.values if name not in wanted)
                if not self.columns:
                    raise InputError(f"{file} has no columns for the inputs beside {', '.join(wanted)}")
            require(file, self.columns, list(row.values))
            if wrong := self._add(row.values, file.stem):
                self.problems.append(Problem(row.place, wrong))

    def _add(self, values: dict[str, Any], stem: str) -> str:
        """Take a row, or say why not."""
        assert self.columns is not None
        wanted = self.wanted
        for name in wanted.others:
            if values[name] is None or not str(values[name]).strip():
                return f"nothing in {name!r}"
        numbers = [number(values[name]) for name in self.columns]
        self.odd.update(name for name, one in zip(self.columns, numbers, strict=True) if one is None)
        for name, one in zip(self.columns, numbers, strict=True):
            if one is None:
                return f"no number in {name!r}, but {checks.shown(values[name])}"
        target = values.get(wanted.target) if wanted.target else None
        if wanted.target and not wanted.classes and (target := number(target)) is None:
            return f"no number in {wanted.target!r}, but {checks.shown(values[wanted.target])}"
        self.numbers.extend(one for one in numbers if one is not None)
        self.targets.append(str(target).strip() if wanted.classes else target)
        self.groups.append(sys.intern(str(values[wanted.by]).strip() if wanted.by else stem))
        self.orders.append(values[wanted.order] if wanted.order else None)
        return ""

    def examples(self, source: str, names: Sequence[str] | None) -> Examples:
        """All of it, group after group."""
        rows = len(self.groups)
        if not rows:
            self._complain(source)
        assert self.columns is not None
        if names is not None:
            names = tuple(names) or tuple(sorted(set(self.targets)))
            if odd := sorted(set(self.targets) - set(names)):
                known = ", ".join(map(repr, names))
                raise InputError(f"{source} has {odd[0]!r} in {self.wanted.target!r}, which is none of {known}")
        order = sorted(range(rows), key=self._key(source))
        items = torch.frombuffer(self.numbers, dtype=torch.float64).view(rows, -1)[order]
        labels = None if self.wanted.target is None else self._labels(names)[order]
        groups = [self.groups[i] for i in order]
        return Examples(source, items, labels, tuple(names or ()), groups, self.columns, tuple(self.problems))

    def _labels(self, names: Sequence[str] | None) -> Tensor:
        if names is None:
            return torch.tensor(self.targets, dtype=torch.float32, device="cpu")
        place = {name: i for i, name in enumerate(names)}
        return torch.tensor([place[name] for name in self.targets], device="cpu")

    def _key(self, source: str) -> Callable[[int], Any]:
        """By which rows are sorted: the group, then the order within it."""
        if self.wanted.order is None:
            return lambda i: self.groups[i]
        numbers = [number(one) for one in self.orders]
        if None not in numbers:
            return lambda i: (self.groups[i], numbers[i])
        texts = [str(one) for one in self.orders]
        if any(one is not None for one in numbers):
            odd = texts[numbers.index(None)]
            raise InputError(f"{source} has numbers in {self.wanted.order!r} and {odd!r}, which do not order")
        return lambda i: (self.groups[i], texts[i])

    def _complain(self, source: str) -> None:
        """Raise InputError, for nothing could be taken."""
        left_out = Examples(source, [], problems=tuple(self.problems)).report()
        if self.odd:
            odd = ", ".join(map(repr, self.odd))
            by = "" if self.wanted.by else ", or name the one that says to which group a row belongs (--by)"
            why = f"no row of {source} has a number in each of its columns ({odd} lack some): choose others as columns"
            raise InputError(f"{why} (--columns){by}. {left_out}")
        raise InputError(left_out or f"{source} has no rows")


def number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, str):
        text = value.strip()
        value = None if "_" in text else text
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None
