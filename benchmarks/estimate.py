"""What the error of a meta-gradient costs: time with ``estimate_error=True``, by that without.

FO-B-MAML as it is by default (symmetric, perturb="center", as many branch steps as base steps), on the workloads of
workloads.py in the loop, vmapped, and vmapped and compiled, by gradient descent and, compiled, by the steps that
``AdaptiveGradientDescent`` finds. Both are called in turn, the one first that was second before, and a ratio is of
two neighbours; of all of them the median, with its 95 % interval by ranks, and the quartiles. Short calls are repeated
for 50 ms. Processor time, one thread; float32. Rows that are not run again keep their numbers in results.json.

Writes results.json and table.md. Half an hour of one core, a third of it for compiling.
"""

import argparse
import gc
import json
import math
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import metaprox as mp
from measures import processor_seconds, provenance
from metaprox.reports import style
from workloads import LAM, MAKERS, Workload, workload

SHORT, LEAST, MOST = 0.05, 9, 400
STEPS = {"sinusoid": (1, 5, 10, 50), "conv": (5,), "transformer": (5,)}


@dataclass(frozen=True)
class Way:
    """How a meta-gradient is evaluated."""

    backend: str
    compiled: bool = False
    found_steps: bool = False

    @property
    def name(self) -> str:
        return ("compiled" if self.compiled else self.backend) + (", steps found" if self.found_steps else "")

    def call(self, load: Workload, steps: int, *, estimate: bool) -> Callable[[], Any]:
        solver = mp.AdaptiveGradientDescent() if self.found_steps else mp.GradientDescent(load.lr)
        backend: Any = self.backend
        meta = mp.FOBMAML(solver, steps, backend=backend, compile=self.compiled, estimate_error=estimate)
        problem = mp.ProximalProblem.from_module(load.model, load.loss, LAM)
        return lambda: meta.backward(problem, load.tasks)


WAYS = (Way("loop"), Way("vmap"), Way("vmap", compiled=True), Way("vmap", compiled=True, found_steps=True))


def ratios(load: Workload, way: Way, steps: int, budget: float) -> dict[str, Any]:
    """Of neighbouring calls with the estimate to those without, until ``budget`` seconds are spent."""
    calls = {estimate: way.call(load, steps, estimate=estimate) for estimate in (False, True)}
    for call in calls.values():
        call()  # compiles
    repeats = max(1, math.ceil(SHORT / max(processor_seconds(calls[False]), 1e-6)))
    gc.collect()
    gc.freeze()
    found, without, began, order = list[float](), list[float](), time.process_time(), (False, True)
    while len(found) < LEAST or (time.process_time() - began < budget and len(found) < MOST):
        spent = {estimate: _seconds(calls[estimate], repeats) for estimate in order}
        found.append(spent[True] / spent[False])
        without.append(spent[False])
        order = order[::-1]
    gc.unfreeze()
    return {"seconds_without": statistics.median(without), "ratios": [round(ratio, 5) for ratio in found]}


def _seconds(call: Callable[[], Any], repeats: int) -> float:
    gc.collect()

    def run() -> None:
        for _ in range(repeats):
            call()

    return processor_seconds(run) / repeats


def median_interval(values: list[float]) -> tuple[float, float]:
    """Of the median, 95 %: the order statistics between which it lies as often, whatever is drawn from."""
    ordered, count = sorted(values), len(values)
    below, rank = 0.5**count, 0
    while below + math.comb(count, rank + 1) * 0.5**count <= 0.025:
        rank += 1
        below += math.comb(count, rank) * 0.5**count
    return ordered[rank], ordered[count - 1 - rank]


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a row for each workload, number of steps and way."""
    lines = []
    for row in rows:
        low, high = median_interval(row["ratios"])
        first, _, third = statistics.quantiles(row["ratios"], n=4)
        median = statistics.median(row["ratios"])
        spent = f"{1000 * row['seconds_without']:.1f}"
        more = f"{100 * (median - 1):+.1f} % ({100 * (low - 1):+.1f} to {100 * (high - 1):+.1f})"
        quartiles = f"{100 * (first - 1):+.1f} to {100 * (third - 1):+.1f}"
        lines.append([row["workload"], str(row["steps"]), row["way"], spent, more, quartiles, str(len(row["ratios"]))])
    return style.markdown(COLUMNS, lines)


COLUMNS = ["workload", "K", "way", "ms without", "more time, median with its interval", "quartiles", "pairs of calls"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workloads", nargs="+", default=list(MAKERS), choices=list(MAKERS))
    parser.add_argument("--ways", nargs="+", default=[way.name for way in WAYS])
    parser.add_argument("--seconds", type=float, default=40.0, help="of the processor for each row")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", mp.HealthWarning)  # which one meta-gradient again and again is
    file = given.out / "results.json"
    kept = json.loads(file.read_text())["rows"] if file.is_file() else []
    rows = {(row["workload"], row["steps"], row["way"]): row for row in kept}
    given.out.mkdir(parents=True, exist_ok=True)
    for name, steps, way in ((load, steps, way) for load in MAKERS for steps in STEPS[load] for way in WAYS):
        key = (name, steps, way.name)
        if name in given.workloads and way.name in given.ways:
            rows[key] = {"workload": name, "steps": steps, "way": way.name}
            rows[key] |= ratios(workload(name, 0), way, steps, given.seconds)
            print(table([rows[key]]).splitlines()[-1], flush=True)
            file.write_text(json.dumps({"provenance": provenance(), "rows": list(rows.values())}, indent=1) + "\n")
            (given.out / "table.md").write_text(table(list(rows.values())))


if __name__ == "__main__":
    main()
