"""What a run is warned of, as its metrics keep it."""

import math
from collections.abc import Sequence
from typing import Any

from metaprox.estimators.monitor import ENOUGH, Monitor
from metaprox.problem import ProximalProblem
from metaprox.training.pace import Pace

Record = dict[str, Any]


class Health:
    """The monitor of a run after ``step`` meta-steps, of which ``records`` are the lines of metrics.jsonl.

    It looks at no meta-steps of both sides of a checkpoint together, so that a run that is resumed is told the same.

    said: by the name of the warning's class, what the run was warned of.
    """

    def __init__(self, problem: ProximalProblem, pace: Pace, records: Sequence[Record], step: int) -> None:
        past = [record for record in records if record["kind"] == "step" and record["step"] <= step]
        self.said: dict[str, str] = {name: text for one in past for name, text in one.get("warnings", {}).items()}
        self._pace, self._monitor = pace, Monitor.anew(problem)
        self._numbers = self._monitor.numbers
        self._monitor.goes_on(step, [one["health"]["loss"] for one in past if "health" in one], self.said)

    def kept_in(self, record: Record) -> Record:
        """The line of a meta-step, with what a look after it has found and said, if there was one."""
        monitor, done, between = self._monitor, record["step"], self._pace.checkpoint_every
        if done == self._pace.meta_steps or done % between == 0:
            monitor.end(min(ENOUGH, between))
        if monitor.numbers is self._numbers:
            return record
        self._numbers = monitor.numbers
        found = {name: value for name, value in self._numbers.items() if name == "loss" or math.isfinite(value)}
        new = {name: text for name, text in monitor.said.items() if name not in self.said}
        self.said |= new
        return record | {"health": found} | ({"warnings": new} if new else {})
