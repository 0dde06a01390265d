"""Calls that are timed in turn: a call's ratio is to the unit of the same round, and holds while the speed drifts."""

import statistics
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from speed_rows import Work

LEAST_CALLS, LONG, SHORT = 3, 2.0, 0.05  # a row's; a first call that counts, and what short ones are repeated for [s]
Result = dict[str, Any]
Name = TypeVar("Name")


@dataclass(frozen=True)
class Seconds:
    """Of one call: of the processor (of the clock for several threads, or a device), which ratios are of; the clock."""

    own: float
    clock: float


@dataclass(frozen=True)
class Turns(Generic[Name]):
    """Rounds of calls of ``work``; the first is the unit.

    seconds: of one of so many calls. first: the seconds of first calls. uncounted: whose first calls count in no case,
    since they compile. A row that has had ``LEAST_CALLS`` and ``enough`` seconds sits out the rest.
    """

    work: dict[Name, Work]
    seconds: Callable[[Work, int], Seconds]
    first: dict[Name, float]
    uncounted: Collection[Name]
    rounds: int
    enough: float
    ratios: dict[Name, list[float]] = field(default_factory=dict)
    by_clock: dict[Name, list[float]] = field(default_factory=dict)

    def run(self) -> Seconds:
        """Returns what the unit took at last."""
        unit_name = next(iter(self.work))
        unit = self.seconds(self.work[unit_name], 1)
        spent = dict(self.first)
        for name, first in self.first.items():
            counts = first >= LONG and name not in self.uncounted
            self.ratios[name], self.by_clock[name] = [first / unit.own] if counts else [], []
        calls = {name: max(1, int(SHORT / first)) for name, first in self.first.items()}
        for _ in range(self.rounds):
            for name, run in self.work.items():
                if name != unit_name and len(self.ratios[name]) >= LEAST_CALLS and spent[name] > self.enough:
                    continue
                last = self.seconds(run, calls[name])
                unit = last if name == unit_name else unit
                calls[name] = max(1, int(SHORT / last.own))
                spent[name] += last.own
                self.ratios[name].append(last.own / unit.own)
                self.by_clock[name].append(last.clock / unit.clock)
        return unit

    def spread(self, name: Name) -> Result:
        return spread(self.ratios[name], self.by_clock[name]) if name in self.work else {}


def spread(ratios: list[float], by_clock: list[float]) -> Result:
    """Medians, quartiles and number of calls."""
    if not ratios:
        return {}
    found = {"ratio": statistics.median(ratios), "quartiles": _quartiles(ratios), "calls": len(ratios)}
    if not by_clock:  # a first call that counts, in no round
        return found
    return found | {"clock_ratio": statistics.median(by_clock), "clock_quartiles": _quartiles(by_clock)}


def _quartiles(values: list[float]) -> list[float]:
    return statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
