"""Which backend is faster, and where the line is that backend="auto" draws?

FO-B-MAML (10 base steps, 5 branch steps, forward, residual correction, perturb="center") on networks of growing size:
time with backend="vmap", eager and compiled, over that with backend="loop", beside the work of the larger loss, in
floating point operations of its forward pass on one task; with --by-loss too the inner loss vmapped and the outer one
in the loop. Support of 5 examples, query of --queries, 25; float32, one thread. All
are timed in turn, in processor time, in ``--rounds`` rounds after one that is not counted; ratios of medians. Prints a
table, and writes results.json and table.md.
"""

import argparse
import itertools
import json
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

import metaprox as mp
from measures import processor_seconds, provenance
from metaprox.call import begun
from metaprox.data.batch import TaskBatch
from metaprox.losses.by_loss import BackendByLoss
from metaprox.losses.choose import Choice, cost_of_task
from metaprox.models import cross_entropy, mlp

LAM, WAYS = 0.5, 5
SUPPORT, QUERY = 5, 25
BY_LOSS = "by loss"


def strided(channels: int) -> nn.Module:
    layers: list[nn.Module] = []
    for inputs in (1, channels, channels, channels):
        layers += [nn.Conv2d(inputs, channels, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, WAYS))


def standard(channels: int) -> nn.Module:
    """The network of Finn et al. (arXiv 1703.03400) for Omniglot."""
    layers: list[nn.Module] = []
    for inputs in (1, channels, channels, channels):
        norm = nn.BatchNorm2d(channels, track_running_stats=False)
        layers += [nn.Conv2d(inputs, channels, 3, stride=2, padding=1), norm, nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, WAYS))


def transformer(width: int, layers: int) -> nn.Module:
    layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
    return nn.Sequential(encoder, nn.AdaptiveAvgPool2d((1, None)), nn.Flatten(), nn.Linear(width, WAYS))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "MLP 40-40-40-5": (lambda: mlp([40, 40, 40, WAYS]), (40,)),
    "MLP 40-160-160-5": (lambda: mlp([40, 160, 160, WAYS]), (40,)),
    "MLP 40-320-320-5": (lambda: mlp([40, 320, 320, WAYS]), (40,)),
    "MLP 40-480-480-5": (lambda: mlp([40, 480, 480, WAYS]), (40,)),
    "MLP 40-640-640-5": (lambda: mlp([40, 640, 640, WAYS]), (40,)),
    "MLP 40-1280-1280-5": (lambda: mlp([40, 1280, 1280, WAYS]), (40,)),
    "conv, 4 channels": (lambda: strided(4), (1, 28, 28)),
    "conv, 16 channels": (lambda: strided(16), (1, 28, 28)),
    "conv, 64 channels": (lambda: strided(64), (1, 28, 28)),
    "conv, 64 channels, batch norm": (lambda: standard(64), (1, 28, 28)),
    "conv, 32 channels, 84x84": (lambda: strided(32), (1, 84, 84)),
    "transformer, d = 16, 1 layer": (lambda: transformer(16, 1), (16, 16)),
    "transformer, d = 32, 2 layers": (lambda: transformer(32, 2), (16, 32)),
    "transformer, d = 128, 2 layers": (lambda: transformer(128, 2), (64, 128)),
}


@contextmanager
def backend(label: str) -> Iterator[None]:
    """Within, that of one loss and of the other, where ``label`` says so."""
    if label != BY_LOSS:
        yield
        return
    with patch.object(Choice, "backend_for", lambda *args, **more: (BackendByLoss(None), "")):
        yield


def measure(name: str, count: int, queries: int, rounds: int, further: list[str]) -> dict[str, Any]:
    """The row of this network, number of tasks and of query examples."""
    torch.manual_seed(0)
    build, shape = NETWORKS[name]
    problem = mp.ProximalProblem.from_module(build(), cross_entropy, LAM)
    sizes = (SUPPORT, queries)
    tasks = mp.Task(*((torch.randn(count, n, *shape), (torch.arange(n) % WAYS).expand(count, n)) for n in sizes))
    settings: dict[str, Any] = {"scheme": "forward", "residual_correction": True, "perturb": "center", "eps": 0.1}
    backends: dict[str, dict[str, Any]] = {"loop": {"backend": "loop"}, "vmap": {"backend": "vmap"}}
    backends |= {one: {"backend": "vmap", "compile": one == "compiled"} for one in further}
    runs = {
        label: mp.FOBMAML(mp.GradientDescent(0.01), 10, branch_steps=5, **settings, **own)
        for label, own in backends.items()
    }
    params = problem.live_parameters()
    times: dict[str, list[float]] = {label: [] for label in runs}
    for round_ in range(rounds + 1):
        for label, meta in runs.items():
            with backend(label):
                taken = processor_seconds(lambda meta=meta: meta(problem, params, tasks))
            if round_:
                times[label].append(taken)
    median = {label: statistics.median(own) for label, own in times.items()}
    with begun(problem, params, TaskBatch.of(tasks), Choice("loop", None)) as call:
        cost = cost_of_task(call)
    return {
        "network": name,
        "parameters": sum(p.numel() for p in params.values()),
        "tasks": count,
        "queries": queries,
        "flops": cost.flops,
        "saved_bytes": cost.saved_bytes,
        "loop_seconds": median["loop"],
        **{label: median[label] / median["loop"] for label in runs if label != "loop"},
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    labels = [label for label in ("vmap", "compiled", BY_LOSS) if any(label in row for row in rows)]
    heads = ["network", "parameters", "tasks", "queries", "MFLOP", *(f"{label} / loop" for label in labels)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        cells = [row["network"], f"{row['parameters']:,}", row["tasks"], row["queries"], f"{row['flops'] / 1e6:.2g}"]
        cells += [f"{row[label]:.2f}" if label in row else "" for label in labels]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for results.json and table.md")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--tasks", nargs="+", type=int, default=[4, 25], help="numbers of tasks (default: 4 25)")
    parser.add_argument("--queries", nargs="+", type=int, default=[QUERY], help="query examples (default: 25)")
    parser.add_argument("--by-loss", action="store_true", help="a further row, of which each loss has its own backend")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds (default: %(default)s)")
    parser.add_argument("--eager", action="store_true", help="leave the compiled rows out: a minute instead of ten")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    further = ([] if options.eager else ["compiled"]) + [BY_LOSS] * options.by_loss
    rows = []
    for name, count, queries in itertools.product(options.networks, options.tasks, options.queries):
        rows.append(measure(name, count, queries, options.rounds, further))
        print(rows[-1], flush=True)
    print(markdown(rows))
    record = provenance() | {
        "rounds": options.rounds,
        "rows": rows,
    }
    (options.out / "results.json").write_text(json.dumps(record, indent=1) + "\n")
    (options.out / "table.md").write_text(markdown(rows) + "\n")


if __name__ == "__main__":
    main()
