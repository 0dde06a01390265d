"""How long is the first compiled meta-gradient, where torch's cache on disk is empty, in the next process, and later?

FO-B-MAML on the sinusoids of workloads.py, K = 10, as the compiled row of speed.py: forward, residual correction,
perturb="center", 5 branch steps, one thread, float32. In each of ``--rounds`` rounds a new process makes its first call
with an empty cache, and another one with that cache, and then ``--slices`` times SLICE calls. By the clock, imports of
torch and metaprox left out; of later calls the processor time. ``--beside`` is the folder of another checkout, of which
the same is measured in turn, slice by slice, since a machine's speed changes within a round; who is first changes from
round to round, and the ratio is that of two slices one after the other. Prints a table of medians, with extremes of
first calls and quartiles of the rest, and writes results.json and table.md.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from measures import processor_seconds, provenance
from metaprox.reports import style
from workloads import compiled_call

EMPTY, NEXT, LATER = "first call, cache empty, s", "first call in the next process, s", "a later call, ms"
RATIO = "this checkout's call by this one"
SLICE, UNUSED = 20, 200  # calls, and those before the first slice


def answer() -> None:
    """Print the seconds of the first call of this process, and for each line that comes in those of a later call."""
    run = compiled_call()

    start = time.perf_counter()
    run()
    print(time.perf_counter() - start, flush=True)
    left = UNUSED
    for _ in sys.stdin:
        for _ in range(left):
            run()
        left = 1  # what another process has run meanwhile is in the processor's memory
        print(processor_seconds(lambda: [run() for _ in range(SLICE)]) / SLICE, flush=True)


class Process:
    """A new one with the metaprox of ``checkout``. ``first``: seconds of its first call."""

    def __init__(self, checkout: Path, cache: str) -> None:
        environment = os.environ | {"PYTHONPATH": str(checkout / "src"), "TORCHINDUCTOR_CACHE_DIR": cache}
        command = [sys.executable, __file__, "--answer"]
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.first = self._said()

    def later(self) -> float:
        """Seconds of a later call, the mean of a slice."""
        assert self._process.stdin is not None
        print(file=self._process.stdin, flush=True)
        return self._said()

    def end(self) -> None:
        self._process.communicate()

    def _said(self) -> float:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a process of {self._process.args} has ended: its error is above")
        return float(line)


def one_round(checkouts: dict[str, Path], slices: int) -> dict[str, dict[str, list[float]]]:
    """Of each checkout: seconds of both first calls, and milliseconds of later ones, slice by slice in turn."""
    found: dict[str, dict[str, list[float]]] = {}
    with ExitStack() as stack:
        processes = {}
        for name, checkout in checkouts.items():
            cache = stack.enter_context(tempfile.TemporaryDirectory())
            once = Process(checkout, cache)
            once.end()
            processes[name] = Process(checkout, cache)
            stack.callback(processes[name].end)
            found[name] = {EMPTY: [once.first], NEXT: [processes[name].first], LATER: []}
        for _ in range(slices):
            for name, process in processes.items():
                found[name][LATER].append(1e3 * process.later())
    return found


def measure(checkouts: dict[str, Path], rounds: int, slices: int) -> list[dict[str, Any]]:
    """A row for each checkout, the first of which is this one."""
    order, parts = list(checkouts.items()), []
    for _ in range(rounds):
        parts.append(one_round(dict(order), slices))
        order.reverse()  # who is first may find the machine slower
    rows: list[dict[str, Any]] = []
    for name in checkouts:
        row: dict[str, Any] = {one: [value for part in parts for value in part[name][one]] for one in parts[0][name]}
        own = rows[0][LATER] if rows else row[LATER]
        row[RATIO] = [mine / value for mine, value in zip(own, row[LATER], strict=True)]
        rows.append({"checkout": name, **row})
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    head, cells = ["", EMPTY, NEXT, LATER, RATIO], []
    for row in rows:
        spreads = [(statistics.median(row[name]), min(row[name]), max(row[name])) for name in (EMPTY, NEXT)]
        said = [f"{middle:.1f} ({low:.1f} to {high:.1f})" for middle, low, high in spreads]
        for name, digits in ((LATER, 1), (RATIO, 2)):
            low, middle, high = statistics.quantiles(row[name], n=4)
            said.append(f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})")
        cells.append([row["checkout"], *said])
    return style.markdown(head, cells)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for results.json and table.md")
    parser.add_argument("--beside", type=Path, help="the folder of another checkout, to be measured too")
    parser.add_argument("--rounds", type=int, default=5, help="of processes (default: %(default)s)")
    parser.add_argument("--slices", type=int, default=40, help="of later calls of a process (default: %(default)s)")
    parser.add_argument("--answer", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.answer:
        answer()
        return
    if options.out is None:
        parser.error("say where results go: --out FOLDER")
    checkouts = {"this checkout": Path(__file__).parent.parent}
    if options.beside is not None:
        checkouts["beside it"] = options.beside.resolve()
    rows = measure(checkouts, options.rounds, options.slices)
    print(markdown(rows))
    options.out.mkdir(parents=True, exist_ok=True)
    record = provenance() | {"rounds": options.rounds, "slices": options.slices, "rows": rows}
    (options.out / "results.json").write_text(json.dumps(record, indent=1) + "\n")
    (options.out / "table.md").write_text(markdown(rows))


if __name__ == "__main__":
    main()
