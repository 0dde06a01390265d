"""How long does a meta-gradient take, in units of the plain gradients that it is made of?

The unit: K plain support gradients for each task, tasks one by one in eager mode. The floor: a unit and one query
gradient for each task. FO-B-MAML here is K base steps, one query gradient and 5 branch steps (forward, residual
correction, perturb="center" with eps = 0.1), in the loop, vmapped, and vmapped and compiled; beside it are our FO-MAML,
MAML and iMAML (5 steps of conjugate gradients), vmapped. Gradient descent, float32, one thread.

The workloads are described in workloads.py. Attention in the transformer has no second derivatives: MAML and iMAML are
left out there.

All are timed in turn, in ``--rounds`` rounds after one that is not counted, so that ratios hold while the machine's
speed drifts; the median of each, and its quartiles. The first call is timed apart: for compiled rows it is the time to
compile. Each row is also held to a reference in the same run: FO-B-MAML's meta-gradients to those of the loop, the
others to those of their own loop, by relative error. Prints a table, and writes results.json and table.md.
"""

import argparse
import json
import platform
import statistics
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import metaprox as mp
from workloads import LAM, WORKLOADS, Workload, plain_gradients, relative_error, seconds


def estimators(load: Workload, steps: int) -> dict[str, tuple[mp.Estimator, mp.Estimator | None]]:
    """Name -> the estimator, and the one whose meta-gradient it is to have."""
    solver = mp.GradientDescent(load.lr)
    ours: dict[str, Any] = {"scheme": "forward", "residual_correction": True, "branch_steps": 5}
    ours |= {"perturb": "center", "eps": 0.1}
    loop = mp.FOBMAML(solver, steps, **ours, backend="loop")
    found: dict[str, tuple[mp.Estimator, mp.Estimator | None]] = {
        "FO-B-MAML, loop": (loop, None),
        "FO-B-MAML, vmap": (mp.FOBMAML(solver, steps, **ours), loop),
        "FO-B-MAML, compiled": (mp.FOBMAML(solver, steps, **ours, compile=True), loop),
    }
    others = (mp.FOMAML, mp.MAML, mp.IMAML) if load.second_order else (mp.FOMAML,)
    for method in others:
        found[f"{method.__name__}, vmap"] = (method(solver, steps), method(solver, steps, backend="loop"))
    return found


def measure(name: str, steps: int, rounds: int) -> list[dict[str, Any]]:
    """A row for the floor and for each estimator."""
    torch.manual_seed(0)
    load = WORKLOADS[name]()
    problem = mp.ProximalProblem.from_module(load.model, load.loss, LAM)
    unit, query = plain_gradients(load, load.tasks.support, steps), plain_gradients(load, load.tasks.query, 1)
    work: dict[str, Callable[[], Any]] = {"unit": unit, "floor": lambda: (unit(), query())}
    errors = {}
    for label, (meta, reference) in estimators(load, steps).items():
        work[label] = lambda meta=meta: meta(problem, problem.live_parameters(), load.tasks)
        if reference is not None:
            truth = reference(problem, problem.live_parameters(), load.tasks)
            errors[label] = lambda label=label, truth=truth: relative_error(work[label]().grad, truth.grad)
    first = {label: seconds(run) for label, run in work.items()}
    found = {label: error() for label, error in errors.items()}
    times: dict[str, list[float]] = {label: [] for label in work}
    for _ in range(rounds):
        for label, run in work.items():
            times[label].append(seconds(run))
    base = statistics.median(times["unit"])
    return [
        {
            "workload": name,
            "steps": steps,
            "row": label,
            "ratio": statistics.median(own) / base,
            "quartiles": [q / base for q in statistics.quantiles(own, n=4)],
            "first_call_seconds": first[label],
            "relative_error": found.get(label),
        }
        for label, own in times.items()
    ]


def markdown(rows: list[dict[str, Any]]) -> str:
    lines = ["| workload | K | row | time / unit | quartiles | first call, s | relative error |", "|---" * 7 + "|"]
    for row in rows:
        error = "" if row["relative_error"] is None else f"{row['relative_error']:.0e}"
        low, _, high = row["quartiles"]
        cells = [row["workload"], row["steps"], row["row"], f"{row['ratio']:.2f}", f"{low:.2f} to {high:.2f}"]
        cells += [f"{row['first_call_seconds']:.2f}", error]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for results.json and table.md")
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: %(default)s)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    rows = [
        row
        for name in options.workloads
        for steps in WORKLOADS[name]().steps
        for row in measure(name, steps, options.rounds)
    ]
    table = markdown(rows)
    print(table)
    options.out.mkdir(parents=True, exist_ok=True)
    record = {
        "machine": f"{platform.machine()}, {platform.system()}",
        "threads": options.threads,
        "rounds": options.rounds,
        "versions": {name: version(name) for name in ("metaprox", "torch")},
        "rows": rows,
    }
    (options.out / "results.json").write_text(json.dumps(record, indent=1) + "\n")
    (options.out / "table.md").write_text(table + "\n")


if __name__ == "__main__":
    main()
