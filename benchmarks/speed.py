"""How long does a meta-gradient take, in units of the plain gradients that it is made of?

The unit: K plain support gradients for each task, tasks one by one in eager mode. The floor: a unit and one query
gradient for each task. FO-B-MAML here is K base steps, one query gradient and 5 branch steps (forward, residual
correction, perturb="center" with eps = 0.1), in the loop, vmapped, and vmapped and compiled; beside it are our FO-MAML,
MAML and iMAML (5 steps of conjugate gradients), vmapped. Gradient descent, float32, one thread.

    sinusoid     MLP 1-40-40-1, 25 tasks of 10 + 10 points.
    conv         4 blocks of a 3x3 convolution with 64 filters, batch norm, ReLU and pooling, on 28x28; 4 tasks, 5-way
                 1-shot, 15 queries per class.
    transformer  4 encoder layers, d = 128, 64 positions, without dropout; data as conv. Attention without second
                 derivatives: MAML and iMAML are left out.

All are timed in turn, in ``--rounds`` rounds after one that is not counted, so that ratios hold while the machine's
speed drifts; the median of each, and its quartiles. The first call is timed apart: for compiled rows it is the time to
compile. Each row is also held to a reference in the same run: FO-B-MAML's meta-gradients to those of the loop, the
others to those of their own loop, by relative error. Prints a table, and writes results.json and table.md.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import metaprox as mp
from metaprox.models import cross_entropy, mean_squared_error, mlp
from metaprox.tasks import Sinusoid

LAM, WAYS, QUERIES = 0.5, 5, 15
Loss = Callable[[nn.Module, Any], Any]


@dataclass(frozen=True)
class Workload:
    """A model, its loss, the tasks, the inner step and the numbers of inner steps."""

    model: nn.Module
    loss: Loss
    tasks: mp.Task
    lr: float
    steps: tuple[int, ...]
    second_order: bool = True


def sinusoid() -> Workload:
    return Workload(mlp([1, 40, 40, 1]), mean_squared_error, Sinusoid().batch(range(25)), 0.01, (1, 5, 10, 50))


def conv() -> Workload:
    layers: list[nn.Module] = []
    for inputs in (1, 64, 64, 64):
        layers += [nn.Conv2d(inputs, 64, 3, padding=1), nn.BatchNorm2d(64, track_running_stats=False)]
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, WAYS))
    return Workload(model, cross_entropy, classes(1, 28, 28), 0.05, (5, 20))


def transformer() -> Workload:
    layer = nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
    model = nn.Sequential(encoder, nn.AdaptiveAvgPool2d((1, None)), nn.Flatten(), nn.Linear(128, WAYS))
    return Workload(model, cross_entropy, classes(64, 128), 0.01, (5, 20), second_order=False)


WORKLOADS = {"sinusoid": sinusoid, "conv": conv, "transformer": transformer}


def classes(*shape: int) -> mp.Task:
    """4 tasks of random inputs."""

    def data(count: int) -> tuple[Tensor, Tensor]:
        return torch.randn(4, count, *shape), (torch.arange(count) % WAYS).expand(4, count)

    return mp.Task(data(WAYS), data(WAYS * QUERIES))


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


def plain_gradients(load: Workload, data: Any, times: int) -> Callable[[], None]:
    """``times`` gradients on the data of each task, one by one."""
    tasks = [tuple(leaf[i] for leaf in data) for i in range(len(data[0]))]

    def work() -> None:
        for task in tasks:
            for _ in range(times):
                load.model.zero_grad()
                value = load.loss(load.model, task)
                (value[0] if isinstance(value, tuple) else value).backward()

    return work


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


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def relative_error(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    difference = sum(float((one[name] - other[name]).square().sum()) for name in other) ** 0.5
    return difference / sum(float(value.square().sum()) for value in other.values()) ** 0.5


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
