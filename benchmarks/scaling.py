"""Does the time of a meta-gradient grow in proportion to the inner steps, and to the tasks?

FO-B-MAML with its default settings (symmetric, as many branch steps as base steps) on the sinusoid workload of
workloads.py, float32, one thread: against K with 10 tasks, and against the number of tasks with K = 10, in the loop and
vmapped. All points are timed in turn, in ``--rounds`` rounds after one that is not counted; medians, in processor time.

The exponent of a row is the slope of log time against log K (or tasks) over the larger half of the range, where what a
call costs of itself counts least; its interval is the 2.5 and 97.5 % quantiles over bootstrap samples of the rounds.
Writes results.json, table.md and scaling.png.
"""

import argparse
import json
import math
import random
import statistics
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

import metaprox as mp
from measures import processor_seconds, provenance
from metaprox.reports import style
from metaprox.tasks import Sinusoid
from workloads import LAM, workload

STEPS, TASKS = (1, 2, 5, 10, 20, 50, 100), (1, 2, 5, 10, 20, 50, 100)
FIXED_STEPS, FIXED_TASKS, SAMPLES = 10, 10, 1000
LOOKS = {"loop": ("o", "-", style.BLUE), "vmap": ("s", "--", style.ORANGE)}
AXES = {"K": f"inner steps K ({FIXED_TASKS} tasks)", "tasks": f"tasks (K = {FIXED_STEPS})"}


def points() -> list[tuple[str, str, int]]:
    """(backend, what grows, how large it is)."""
    return [(backend, "K", steps) for backend in LOOKS for steps in STEPS] + [
        (backend, "tasks", count) for backend in LOOKS for count in TASKS
    ]


def measure(rounds: int) -> list[dict[str, Any]]:
    load = workload("sinusoid", 0)
    problem = mp.ProximalProblem.from_module(load.model, load.loss, LAM)
    batches = {count: Sinusoid().batch(range(count)) for count in {*TASKS, FIXED_TASKS}}

    def once(backend: Any, what: str, size: int) -> float:
        steps, count = (size, FIXED_TASKS) if what == "K" else (FIXED_STEPS, size)
        meta = mp.FOBMAML(mp.GradientDescent(load.lr), steps, perturb="loss", backend=backend)
        return processor_seconds(lambda: meta(problem, problem.live_parameters(), batches[count]))

    times: dict[tuple[str, str, int], list[float]] = {point: [] for point in points()}
    for turn in range(rounds + 1):
        for point, own in times.items():
            taken = once(*point)
            if turn:
                own.append(taken)
    return [
        {"backend": backend, "against": what, "size": size, "seconds": own}
        for (backend, what, size), own in times.items()
    ]


def exponent(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Of one backend's rows against one thing."""
    rows = rows[len(rows) // 2 :]
    rounds = range(len(rows[0]["seconds"]))
    draw = random.Random(0)
    slopes = sorted(_slope(rows, [draw.choice(rounds) for _ in rounds]) for _ in range(SAMPLES))
    low, high = (slopes[int(q * (SAMPLES - 1))] for q in (0.025, 0.975))
    return {"exponent": _slope(rows, list(rounds)), "low": low, "high": high}


def _slope(rows: list[dict[str, Any]], rounds: list[int]) -> float:
    """The least-squares slope through the medians over these rounds."""
    x = [math.log(row["size"]) for row in rows]
    y = [math.log(statistics.median(row["seconds"][turn] for turn in rounds)) for row in rows]
    return statistics.linear_regression(x, y).slope


def select(rows: list[dict[str, Any]], backend: str, what: str) -> list[dict[str, Any]]:
    return [row for row in rows if (row["backend"], row["against"]) == (backend, what)]


def markdown(exponents: dict[str, dict[str, float]]) -> str:
    lines = ["| time against | exponent | 95 % interval |", "|---|---|---|"]
    lines += [f"| {name} | {e['exponent']:.2f} | {e['low']:.2f} to {e['high']:.2f} |" for name, e in exponents.items()]
    return "\n".join(lines) + "\n"


def draw(rows: list[dict[str, Any]], exponents: dict[str, dict[str, float]]) -> Figure:
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    for axes, (what, label) in zip(figure.subplots(1, 2, sharey=True), AXES.items(), strict=True):
        style.tidy(axes, f"Time of a meta-gradient against {what}")
        for backend, (marker, line, color) in LOOKS.items():
            own = select(rows, backend, what)
            sizes, middle = [row["size"] for row in own], [statistics.median(row["seconds"]) for row in own]
            fit = exponents[f"{what}, {backend}"]
            text = f"{backend}: exponent {fit['exponent']:.2f} ({fit['low']:.2f} to {fit['high']:.2f})"
            axes.plot(sizes, middle, line, marker=marker, color=color, markersize=4, label=text)
            guide = [middle[-1] * size / sizes[-1] for size in sizes]
            axes.plot(sizes, guide, color=style.GREY, linewidth=0.8, zorder=0)
        axes.plot([], [], color=style.GREY, linewidth=0.8, label="in proportion")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel(label)
        axes.legend(frameon=False, fontsize="small")
    figure.axes[0].set_ylabel("seconds of one processor")
    return figure


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds (default: %(default)s)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = measure(options.rounds)
    exponents = {f"{what}, {backend}": exponent(select(rows, backend, what)) for what in AXES for backend in LOOKS}
    table = markdown(exponents)
    print(table)
    options.out.mkdir(parents=True, exist_ok=True)
    record = provenance() | {
        "threads": 1,
        "rounds": options.rounds,
        "exponents": exponents,
        "rows": rows,
    }
    (options.out / "results.json").write_text(json.dumps(record, indent=1) + "\n")
    (options.out / "table.md").write_text(table)
    draw(rows, exponents).savefig(options.out / "scaling.png", dpi=120)


if __name__ == "__main__":
    main()
