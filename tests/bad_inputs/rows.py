"""A row of the campaign, and how its outcome is judged."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

import metaprox as mp


@dataclass(frozen=True)
class Row:
    """``call`` is taken with the result of ``reference``, or where there is none refused as ``pattern`` says."""

    label: str
    call: Callable[[], Any]
    pattern: str | None = None
    reference: Callable[[], Any] | None = None

    def outcome(self) -> tuple[str, str]:
        """(clear, fine, obscure or silent; what was raised or returned)."""
        try:
            result = self.call()
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            return ("clear" if self._is_clear(error) else "obscure"), said
        if self.reference is None:
            return "silent", f"returned {shown(result)}"
        good = same(result, self.reference())
        return ("fine" if good else "silent"), f"returned {shown(result)}"

    @property
    def wanted(self) -> str:
        return "clear" if self.reference is None else "fine"

    def _is_clear(self, error: Exception) -> bool:
        if isinstance(error, TypeError):  # of the signature itself
            return bool(re.search(r"missing \d+ required|unexpected keyword|takes .* positional", str(error)))
        if self.pattern is None:
            return False
        return isinstance(error, mp.MetaproxError) and bool(re.search(self.pattern, str(error), re.DOTALL))


def refused(make: Callable[..., Any], name: str, values: Iterable[Any], where: str = "", **settings: Any) -> list[Row]:
    """``make(name=value)`` is refused by an error that has the name and the value, or its type."""
    return [
        Row(
            f"{where or make.__name__}({name}={shown(value)})",
            lambda value=value: make(**settings | {name: value}),
            named(name, value),
        )
        for value in values
    ]


def taken(
    make: Callable[..., Any],
    name: str,
    values: Mapping[Any, Any] | list[tuple[Any, Any]],
    where: str = "",
    **fixed: Any,
) -> list[Row]:
    """``make(name=value)`` is what ``make(name=plain)`` is, for pairs (value, plain)."""
    return [
        Row(
            f"{where or make.__name__}({name}={shown(value)})",
            lambda value=value: make(**fixed | {name: value}),
            named(name, value),
            reference=lambda plain=plain: make(**fixed | {name: plain}),
        )
        for value, plain in values
    ]


def named(name: str, value: Any) -> str:
    """A pattern: the name, and then the value or its type."""
    shapes = {repr(value), str(value), type(value).__name__, getattr(value, "__name__", repr(value))}
    return rf"\b{re.escape(name)}\b.*({'|'.join(re.escape(shape) for shape in sorted(shapes) if shape)})"


def within(enter: Callable[[], Any], call: Callable[[], Any]) -> Any:
    """What ``call`` returns within a context."""
    with enter():
        return call()


class Float64:
    """Within it, tensors are float64 unless they say otherwise."""

    def __enter__(self) -> None:
        torch.set_default_dtype(torch.float64)

    def __exit__(self, *error: object) -> None:
        torch.set_default_dtype(torch.float32)


def shown(value: Any) -> str:
    text = re.sub(r" at 0x[0-9a-f]+", "", " ".join(repr(value).split()))
    return text if len(text) <= 60 else f"{text[:57]}..."


def same(one: Any, other: Any) -> bool:
    """Whether two results are the same, to the last bit of their tensors."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and one.device == other.device and torch.equal(one, other)
    if isinstance(one, mp.MetaGradient):
        return same(one.grad, other.grad) and same(one.query_loss, other.query_loss)
    if isinstance(one, mp.Evaluation):
        return same(one.values, other.values)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, torch.nn.Module) and isinstance(other, torch.nn.Module):
        return same(one.state_dict(), other.state_dict())
    return bool(one == other)


def count(rows: Iterable[Row]) -> tuple[Counter[str], list[tuple[str, Row, str]]]:
    """How many rows have which outcome, and those with another than the wanted one."""
    counts: Counter[str] = Counter()
    odd = []
    for row in rows:
        outcome, said = row.outcome()
        counts[outcome] += 1
        if outcome != row.wanted:
            odd.append((outcome, row, said))
    return counts, odd
