"""Throughput of two processes of one thread each against one: a conv net in the loop, and compiled sinusoids.

    python benchmarks/processes.py --out results/processes

In each round two processes of a gloo group take the same meta-steps, half of the tasks each, then the same without
a word to each other, and then all tasks in rank 0 alone (rank 1 waits). The ratio of the times of a round is the
speed-up, and that of halves which exchange nothing is what the machine allows; the table has medians and ranges.
"""

import argparse
import json
import statistics
from pathlib import Path

import torch
from torch import nn

import metaprox as mp
from measures import in_ranks, together
from metaprox.models import mean_squared_error, mlp
from metaprox.tasks import Sinusoid


def conv():
    """(problem, estimator settings, tasks): four strided blocks, 5-way 5-shot, 16 tasks."""
    torch.manual_seed(0)
    blocks = []
    for channels in (1, 32, 32, 32):
        blocks += [nn.Conv2d(channels, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU()]
    model = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(128, 5))
    loss = lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1])  # noqa: E731
    data = torch.randn(16, 25, 1, 28, 28), torch.arange(5).repeat(16, 5)
    return mp.ProximalProblem.from_module(model, loss, lam=2.0), {"backend": "loop"}, mp.Task(data, data)


def sinusoid():
    """The same of sinusoids, the step compiled, 512 tasks."""
    problem = mp.ProximalProblem.from_module(mlp([1, 40, 40, 1]), mean_squared_error, lam=0.5)
    return problem, {"backend": "vmap", "compile": True}, Sinusoid().batch(range(512))


CASES = {"conv": conv, "sinusoid": sinusoid}


def rank_of(rank, rounds, folder):
    found = {}
    for name, case in CASES.items():
        problem, settings, tasks = case()
        solver = mp.GradientDescent(lr=0.01)
        several = mp.FOBMAML(solver, steps=5, **settings, reduce=mp.distributed.AllReduce())
        alone = mp.FOBMAML(solver, steps=5, **settings, reduce=mp.Reduce())
        own = mp.distributed.shard(tasks)
        found[name] = []
        for number in range(rounds + 1):
            two = together(lambda: several.backward(problem, own), repeats=5)  # noqa: B023
            apart = together(lambda: alone.backward(problem, own), repeats=5)  # noqa: B023
            one = together(lambda: alone.backward(problem, tasks) if rank == 0 else None, repeats=5)  # noqa: B023
            if number:  # the first one compiles: half the tasks first, which else were padded to the graph of all
                found[name].append([one, two, apart])
    if rank == 0:
        Path(folder, "results.json").write_text(json.dumps(found, indent=1) + "\n")


def _speed_up(ratios):
    """Median and range, in words."""
    found = sorted(ratios)
    return f"{statistics.median(found):.2f} ({found[0]:.2f} to {found[-1]:.2f})"


def table(found):
    """In Markdown."""
    rows = ["| case | one process, ms | two, ms | speed-up | two that exchange nothing |", "|---|---|---|---|---|"]
    for name, rounds in found.items():
        one, two, _ = (statistics.median(column) * 1e3 for column in zip(*rounds, strict=True))
        cells = [_speed_up(whole / halves for whole, halves, _ in rounds)]
        cells += [_speed_up(whole / apart for whole, _, apart in rounds)]
        rows.append(f"| {name} | {one:.0f} | {two:.0f} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    in_ranks(2, rank_of, given.rounds, given.out)
    text = table(json.loads((given.out / "results.json").read_text()))
    (given.out / "table.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
