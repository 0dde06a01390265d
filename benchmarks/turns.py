"""Calls that are timed in turn: a call's ratio is to the unit of the same round, and holds while the speed drifts."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from speed_rows import COMPILED, UNIT, Row, Work

LEAST_CALLS, LONG, SHORT = 3, 2.0, 0.05  # a row's; a first call that counts, and what short ones are repeated for [s]
Result = dict[str, Any]


@dataclass(frozen=True)
class Seconds:
    """Of one call: of the processor (of the clock for several threads, or a device), which ratios are of; the clock.

    clock: None where ratios are of it anyway.
    """

    own: float
    clock: float | None = None


def in_turn(
    work: dict[Row, Work],
    first: dict[Row, float],
    seconds: Callable[[Work, int], Seconds],
    rounds: int,
    enough: float,
) -> tuple[Seconds, dict[Row, Result]]:
    """Returns what the unit took at last, and the ratios of each row, in rounds of calls of ``work``.

    first: the seconds of first calls. seconds: of one of so many calls. A row that has had ``LEAST_CALLS`` and
    ``enough`` seconds sits out the rest.
    """
    unit = seconds(work[UNIT], 1)
    spent = dict(first)
    counted = {row for row in work if first[row] >= LONG and row.name != COMPILED}
    ratios = {row: [first[row] / unit.own] if row in counted else [] for row in work}
    by_clock: dict[Row, list[float]] = {row: [] for row in work}
    calls = {row: max(1, int(SHORT / first[row])) for row in work}
    for _ in range(rounds):
        for row, run in work.items():
            if row is not UNIT and len(ratios[row]) >= LEAST_CALLS and spent[row] > enough:
                continue
            last = seconds(run, calls[row])
            unit = last if row is UNIT else unit
            calls[row] = max(1, int(SHORT / last.own))
            spent[row] += last.own
            ratios[row].append(last.own / unit.own)
            if last.clock is not None and unit.clock is not None:
                by_clock[row].append(last.clock / unit.clock)
    return unit, {row: spread(ratios[row], by_clock[row]) for row in work}


def spread(ratios: list[float], by_clock: list[float]) -> Result:
    """Medians, quartiles and number of calls."""
    if not ratios:
        return {}
    found = {"ratio": statistics.median(ratios), "quartiles": _quartiles(ratios), "calls": len(ratios)}
    if not by_clock:  # the same, or of a first call that counts, in no round
        return found
    return found | {"clock_ratio": statistics.median(by_clock), "clock_quartiles": _quartiles(by_clock)}


def _quartiles(values: list[float]) -> list[float]:
    return statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
