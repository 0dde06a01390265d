"""How long is the first compiled meta-gradient, where torch's cache on disk is empty, in the next process, and later?

FO-B-MAML on the sinusoids of workloads.py, K = 10, as the compiled row of speed.py: forward, residual correction,
perturb="center", 5 branch steps, one thread, float32. In each of ``--rounds`` rounds a new process makes its first call
with an empty cache, and another one with that cache, and then ``--calls`` calls. By the clock, imports of torch and
metaprox left out; of later calls the median in processor time. ``--beside`` is the folder of another checkout, of which
the same is measured in turn. Prints a table of medians and extremes, and writes results.json and table.md.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from measures import processor_seconds, provenance
from metaprox.reports import style
from workloads import compiled_call

EMPTY, NEXT, LATER = "first call, cache empty, s", "first call in the next process, s", "a later call, ms"


def one_process(calls: int) -> dict[str, float]:
    """The first call of this process, and the median of so many later ones, in seconds."""
    run = compiled_call()

    start = time.perf_counter()
    run()
    first = time.perf_counter() - start
    later = [processor_seconds(run) for _ in range(calls)]
    return {"first": first, "later": statistics.median(later) if later else float("nan")}


def in_a_process(checkout: Path, cache: str, calls: int) -> dict[str, float]:
    """The same in a new process, with the metaprox of ``checkout``."""
    environment = os.environ | {"PYTHONPATH": str(checkout / "src"), "TORCHINDUCTOR_CACHE_DIR": cache}
    command = [sys.executable, __file__, "--one", str(calls)]
    told = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    found: dict[str, float] = json.loads(told.splitlines()[-1])
    return found


def measure(checkouts: dict[str, Path], rounds: int, calls: int) -> list[dict[str, Any]]:
    """A row for each checkout."""
    found: dict[str, dict[str, list[float]]] = {name: {EMPTY: [], NEXT: [], LATER: []} for name in checkouts}
    for _ in range(rounds):
        for name, checkout in checkouts.items():
            with tempfile.TemporaryDirectory() as cache:
                found[name][EMPTY].append(in_a_process(checkout, cache, 0)["first"])
                again = in_a_process(checkout, cache, calls)
            found[name][NEXT].append(again["first"])
            found[name][LATER].append(1e3 * again["later"])
    return [{"checkout": name, **columns} for name, columns in found.items()]


def markdown(rows: list[dict[str, Any]]) -> str:
    head = ["", EMPTY, NEXT, LATER]
    cells = []
    for row in rows:
        spreads = [(statistics.median(row[name]), min(row[name]), max(row[name])) for name in head[1:]]
        cells.append([row["checkout"], *(f"{middle:.1f} ({low:.1f} to {high:.1f})" for middle, low, high in spreads)])
    return style.markdown(head, cells)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for results.json and table.md")
    parser.add_argument("--beside", type=Path, help="the folder of another checkout, to be measured too")
    parser.add_argument("--rounds", type=int, default=5, help="of processes (default: %(default)s)")
    parser.add_argument("--calls", type=int, default=500, help="later calls of a process (default: %(default)s)")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.one is not None:
        print(json.dumps(one_process(options.one)))
        return
    if options.out is None:
        parser.error("say where results go: --out FOLDER")
    checkouts = {"this checkout": Path(__file__).parent.parent}
    if options.beside is not None:
        checkouts["beside it"] = options.beside.resolve()
    rows = measure(checkouts, options.rounds, options.calls)
    print(markdown(rows))
    options.out.mkdir(parents=True, exist_ok=True)
    record = provenance() | {"rounds": options.rounds, "calls": options.calls, "rows": rows}
    (options.out / "results.json").write_text(json.dumps(record, indent=1) + "\n")
    (options.out / "table.md").write_text(markdown(rows))


if __name__ == "__main__":
    main()
