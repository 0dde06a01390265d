"""A meta-gradient of a large model: time by its own plain gradients, and vectors that it holds beyond the model.

An MLP of 10^8 parameters (``--width``, ``--layers``: that many square layers), one task of ``--examples`` support and
as many query examples, FO-B-MAML in the loop with gradient descent, K = 5 and 5 branch steps, lam = 0.5, float32, one
thread. "Its own" are as many plain gradients as the method counts: ``zero_grad()``, loss, ``backward()``, one after
another. Processor time; each form is timed in turn with a plain gradient, in ``--rounds`` rounds, and its ratio is to
the plain gradients of the same round: median and quartiles. Memory: the peak of tensor memory of one call beyond the
model and the data, ``.grad`` included, by the 4 P bytes of the parameters. Prints a table, and writes results.json and
table.md.
"""

import argparse
import gc
import json
import statistics
from pathlib import Path
from typing import Any

import torch

import metaprox as mp
from measures import provenance
from metaprox.comparison import gradient_evaluations, peak_memory
from metaprox.models import mean_squared_error, mlp
from metaprox.reports import style
from speed import seconds
from turns import spread
from workloads import LAM, Workload

STEPS, BRANCH_STEPS = 5, 5
FORMS: dict[str, dict[str, Any]] = {
    "forward, loss, without estimate": {"scheme": "forward", "perturb": "loss", "estimate_error": False},
    "forward, center, residual correction": {"scheme": "forward", "residual_correction": True},
    "symmetric, loss": {"perturb": "loss"},
    "symmetric, center (the default)": {},
}


def workload(width: int, layers: int, examples: int) -> Workload:
    """A function of its sizes."""
    source = torch.Generator().manual_seed(0)
    support, query = (
        (torch.randn(1, examples, 16, generator=source), torch.randn(1, examples, 1, generator=source))
        for _ in range(2)
    )
    return Workload(mlp([16, *[width] * (layers + 1), 1]), mean_squared_error, mp.Task(support, query), 0.01)


def measure(load: Workload, rounds: int) -> list[dict[str, Any]]:
    """A row for each form."""
    problem = mp.ProximalProblem.from_module(load.model, load.loss, LAM)
    batch = tuple(leaf[0] for leaf in load.tasks.support)
    methods = {
        name: mp.FOBMAML(mp.GradientDescent(load.lr), STEPS, branch_steps=BRANCH_STEPS, backend="loop", **form)
        for name, form in FORMS.items()
    }

    def plain() -> None:
        load.loss(load.model, batch).backward()

    counts = {name: meta.backward(problem, load.tasks).info.counts for name, meta in methods.items()}
    gradients = {name: gradient_evaluations(found) for name, found in counts.items()}
    ratios: dict[str, list[float]] = {name: [] for name in methods}
    by_clock: dict[str, list[float]] = {name: [] for name in methods}
    plain_seconds = []
    for _ in range(rounds):
        for name, meta in methods.items():
            one = seconds(load, plain, 3)
            whole = seconds(load, lambda meta=meta: meta.backward(problem, load.tasks))  # type: ignore[misc]
            ratios[name].append(whole.own / one.own / gradients[name])
            by_clock[name].append(whole.clock / one.clock / gradients[name])
            plain_seconds.append(one.own)
    gc.unfreeze()
    bytes_of_all = 4 * sum(p.numel() for p in load.model.parameters())
    rows = []
    for name, meta in methods.items():
        load.model.zero_grad()
        vectors = peak_memory(lambda meta=meta: meta.backward(problem, load.tasks), torch.device("cpu")) / bytes_of_all
        timed = spread(ratios[name], by_clock[name]) | {"plain_seconds": statistics.median(plain_seconds)}
        rows.append({"form": name, "gradients": gradients[name], **timed, "vectors": vectors})
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    head = ["form", "gradients", "time / its own plain gradients", "quartiles", "by the clock", "vectors"]
    cells = []
    for row in rows:
        low, _, high = row["quartiles"]
        times = [f"{row['ratio']:.2f}", f"{low:.2f} to {high:.2f}", f"{row['clock_ratio']:.2f}"]
        cells.append([row["form"], str(row["gradients"]), *times, f"{row['vectors']:.2f}"])
    return style.markdown(head, cells)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for results.json and table.md")
    parser.add_argument("--width", type=int, default=5000, help="of the layers (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=4, help="square ones (default: %(default)s)")
    parser.add_argument("--examples", type=int, default=16, help="of support, and of query (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds (default: %(default)s)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    load = workload(options.width, options.layers, options.examples)
    rows = measure(load, options.rounds)
    sizes = {"parameters": sum(p.numel() for p in load.model.parameters()), "examples": options.examples}
    print(markdown(rows))
    options.out.mkdir(parents=True, exist_ok=True)
    record = {**provenance(), **sizes, "rounds": options.rounds, "rows": rows}
    (options.out / "results.json").write_text(json.dumps(record, indent=1) + "\n")
    (options.out / "table.md").write_text(markdown(rows))


if __name__ == "__main__":
    main()
