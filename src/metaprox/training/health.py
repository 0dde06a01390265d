"""What a run is warned of, as its metrics keep it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from metaprox.estimators.monitor import Monitor
from metaprox.problem import ProximalProblem

Record = dict[str, Any]


class Health:
    """The monitor of a run of ``total`` meta-steps after ``step``, of which ``records`` are the lines of metrics.jsonl.

    ``state`` is what it was then, so that a run that is resumed is told the same.

    said: by the name of the warning's class, what the run was warned of.
    """

    def __init__(
        self, problem: ProximalProblem, total: int, step: int, records: Sequence[Record], state: Mapping[str, Tensor]
    ) -> None:
        past = [record for record in records if record["kind"] == "step" and record["step"] <= step]
        self.said: dict[str, str] = {name: text for one in past for name, text in one.get("warnings", {}).items()}
        self._total, self._monitor = total, Monitor.anew(problem)
        self._numbers = self._monitor.numbers
        self._monitor.goes_on(step, [one["health"]["loss"] for one in past if "health" in one], self.said, state)

    def state(self) -> dict[str, Tensor]:
        """What has been seen since the last look."""
        return self._monitor.state()

    def kept_in(self, record: Record) -> Record:
        """The line of a meta-step, with what a look after it has found and said, if there was one."""
        monitor = self._monitor
        if record["step"] == self._total:
            monitor.end()
        if monitor.numbers is self._numbers:
            return record
        self._numbers = monitor.numbers
        found = {name: value for name, value in self._numbers.items() if name == "loss" or math.isfinite(value)}
        new = {name: text for name, text in monitor.said.items() if name not in self.said}
        self.said |= new
        return record | {"health": found} | ({"warnings": new} if new else {})
