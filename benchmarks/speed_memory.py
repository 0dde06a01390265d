"""Peak memory of one row of the speed benchmark on several workloads, in a fresh process.

Run as a script, it reads a row and its cases from standard input and writes their peaks to standard output, as JSON.
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from metaprox.comparison import peak_memory
from speed_rows import COMPILED, ROWS
from workloads import workload


@dataclass(frozen=True)
class Job:
    """A row by its name, and the workloads and K at which it is measured."""

    row: str
    cases: list[tuple[str, int]]
    seed: int


def peaks(job: Job) -> list[int | None]:
    """Bytes for each case; None where a peer could not.

    Raises:
        RuntimeError: the process failed; the message is what it said.
    """
    done = subprocess.run(
        [sys.executable, str(Path(__file__).resolve())],
        input=json.dumps(asdict(job)),
        env=os.environ | {"KINETO_LOG_LEVEL": "99"},  # torch's profiler prints on its own
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"measuring the memory of {job.row} failed:\n{done.stderr.strip()}")
    return json.loads(done.stdout)


def peak(name: str, case: str, steps: int, seed: int) -> int | None:
    """Of what the row allocates, ``.grad`` included, beyond the model and the data; warmed up if it is compiled."""
    row = next(row for row in ROWS if row.name == name)
    load = workload(case, seed)
    try:
        run = row.work(load, steps)
        if row.name == COMPILED:
            run()
            load.model.zero_grad()
        return peak_memory(run, torch.device("cpu"))
    except Exception:
        if row.package is None:
            raise
        return None  # the row says why where it is timed


def main() -> None:
    torch.set_num_threads(1)
    job = json.load(sys.stdin)
    print(json.dumps([peak(job["row"], case, steps, job["seed"]) for case, steps in job["cases"]]))


if __name__ == "__main__":
    main()
