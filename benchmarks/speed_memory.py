"""Peak memory of one row of the speed benchmark on one workload, in a fresh process.

Run as a script, it reads a job from standard input and writes the peak to standard output, as JSON.
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
    """A row by its name, and the workload and K at which it is measured."""

    row: str
    case: str
    steps: int
    seed: int


def peak_of(job: Job) -> int | None:
    """Bytes; None where a peer could not, or the system ended it: what a profiler keeps may take all memory there is.

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
    if done.returncode < 0:
        print(f"measuring the memory of {job.row} was ended by signal {-done.returncode}: {job}", file=sys.stderr)
        return None
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
    job = Job(**json.load(sys.stdin))
    print(json.dumps(peak(job.row, job.case, job.steps, job.seed)))


if __name__ == "__main__":
    main()
