"""One experiment at quick size under one setting, in a process of its own: its checks, as JSON, and how long it took.

Run as a file; processes that an experiment spawns import it, so that they convert too.
"""

import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import metaprox as mp
from metaprox.tasks import MNIST1D, Sinusoid
from metaprox.tasks.base import in_float64

PRECISION = "METAPROX_QUICK_PRECISION"


def convert() -> None:
    """From here on models that become problems are in float64, and so is all that the families of tasks give."""
    of_module = mp.ProximalProblem.from_module

    def from_module(model: Any, *arguments: Any, **settings: Any) -> mp.ProximalProblem:
        return of_module(model.double(), *arguments, **settings)

    mp.ProximalProblem.from_module = staticmethod(from_module)
    for family in (Sinusoid, MNIST1D):
        family.batch = lambda self, ids, batch=family.batch: in_float64(batch(self, ids))


if os.environ.get(PRECISION) == "float64":
    convert()


def run(name: str, threads: int, seed: int, folder: Path) -> dict[str, Any]:
    """Of each check: name, value, low, high, passed."""
    from metaprox.experiments import experiment_of, reproduce

    os.cpu_count = lambda: 1  # type: ignore[method-assign]  # as many processes as an experiment would have at once
    began = time.monotonic()
    outcome = reproduce(experiment_of(name), folder, "quick", seed, threads=threads)
    checks = [asdict(check) | {"passed": check.passed} for check in outcome.checks]
    return {"seconds": round(time.monotonic() - began, 1), "checks": checks}


if __name__ == "__main__":
    name, threads, seed, folder = sys.argv[1:]
    found = run(name, int(threads), int(seed), Path(folder))
    (Path(folder) / "found.json").write_text(json.dumps(found))
