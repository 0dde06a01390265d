"""What a meta-step costs on many processes: bytes moved and numbers held, counted; seconds, fitted to 1, 2 and 4.

    python benchmarks/cost_model.py --out results/cost-model

Counted, on two ranks: the bytes that a rank gives to collective operations in a meta-step, against the formulas of
docs/scaling.md. Timed, in turn in each round: a meta-step by 1, 2 and 4 processes of one thread with as many tasks
each, and a sum of P numbers. The last part is the formulas at other sizes.
"""

import argparse
import json
import os
import statistics
from collections import Counter
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

import metaprox as mp
from measures import in_ranks, provenance, together

K, J, BRANCHES = 5, 5, 2
SUPPORT = K + 1 + BRANCHES * (J - 1)  # gradients of a task, symmetric, "loss"
QUERY = 1 + BRANCHES * (J - 1)
WIDTHS, LAYERS, EXAMPLES, TASKS = (128, 256, 512), 4, 32, 2


def net(width, layers=LAYERS):
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers)))


def loss(model, batch):
    return (model(batch) - batch).square().mean()


def data(width, tasks):
    return mp.Task(*(torch.randn(tasks, EXAMPLES, width) for _ in range(2)))


def estimator(**settings):
    return mp.FOBMAML(mp.GradientDescent(lr=0.01), steps=K, **{"perturb": "loss", "backend": "loop"} | settings)


def counted(act):
    """Bytes that this rank gives to collective operations of each kind, and how many there are."""
    found, real = Counter(), {}
    inputs = {
        "all_reduce": (0, "tensor"),
        "all_gather": (1, "tensor"),
        "all_gather_single": (1, "input_tensor"),
        "reduce_scatter_single": (1, "input"),
    }

    def wrapped(name, place, word):
        def call(*given, **named):
            tensor = given[place] if len(given) > place else named[word]
            found[f"{name}, bytes"] += tensor.numel() * tensor.element_size()
            found[f"{name}, calls"] += 1
            return real[name](*given, **named)

        return call

    for name, (place, word) in inputs.items():
        real[name] = getattr(dist, name)
        setattr(dist, name, wrapped(name, place, word))
    try:
        act()
    finally:
        for name, one in real.items():
            setattr(dist, name, one)
    return dict(found)


def bytes_moved(width, ranks):
    """Counted and by formula, of a meta-step of two tasks: tasks shared out, and a model in shards."""
    size = LAYERS * width**2
    problem = mp.ProximalProblem.from_module(net(width), loss, lam=0.5)
    several, tasks = estimator(reduce=mp.distributed.AllReduce()), data(width, TASKS)
    own = mp.distributed.shard(tasks)
    several.backward(problem, own)  # has a look at the loss
    shared_out = counted(lambda: several.backward(problem, own))
    model = net(width)
    for layer in model:
        fully_shard(layer)
    fully_shard(model)
    problem = mp.ProximalProblem.from_module(model, loss, lam=0.5)
    estimator().backward(problem, tasks)
    in_shards = counted(lambda: estimator().backward(problem, tasks))
    gradients = TASKS * (SUPPORT + QUERY)
    return {
        "parameters": size,
        "ranks": ranks,
        "shared_out": shared_out,
        "shared_out_formula": {"all_reduce, bytes": 4 * size},
        "in_shards": in_shards,
        "in_shards_formula": {
            "all_gather_single, bytes": gradients * 2 * 4 * size // ranks,  # forward, and again backward
            "reduce_scatter_single, bytes": gradients * 4 * size,
        },
    }


def timed(width, rank, groups, rounds):
    """In each round a meta-step by 1, 2 and 4 ranks with as many tasks each, the others waiting, and a sum alone."""
    size, problem = LAYERS * width**2, mp.ProximalProblem.from_module(net(width), loss, lam=0.5)
    own, vector, found = data(width, TASKS), torch.zeros(size), {ranks: [] for ranks in groups}
    for number in range(rounds + 1):
        for ranks, group in groups.items():
            reduce = mp.Reduce() if ranks == 1 else mp.distributed.AllReduce(group=group)
            meta = estimator(reduce=reduce)
            step = together(lambda: meta.backward(problem, own) if rank < ranks else None)  # noqa: B023
            alone = together(lambda: dist.all_reduce(vector, group=group) if rank < ranks > 1 else None)  # noqa: B023
            if number:  # the first one has a look at the loss
                found[ranks].append((step, alone))
    rows = []
    for ranks, both in found.items():
        steps, sums = zip(*both, strict=True)
        rows.append({"parameters": size, "ranks": ranks, "steps": steps, "sums": sums})
    return rows


def rank_of(rank, ranks, rounds, folder):
    if ranks == 2:
        found = [bytes_moved(width, ranks) for width in WIDTHS[:2]]
    else:
        groups = {1: None, 2: dist.new_group([0, 1]), 4: dist.group.WORLD}
        found = [row for width in WIDTHS for row in timed(width, rank, groups, rounds)]
    if rank == 0:
        Path(folder, f"ranks-{ranks}.json").write_text(json.dumps(found, indent=1) + "\n")


def fitted(rows, cores):
    """Seconds of a task, from one process; of a sum by byte and by call, from several, none below 0.

    Steps of several are then predicted: that of one, times how many processes share a core, and a sum.
    """
    for row in rows:
        row["step"], row["sum"] = (statistics.median(row[name]) for name in ("steps", "sums"))
    barrier = statistics.median(row["sum"] for row in rows if row["ranks"] == 1)
    alone = {row["parameters"]: row["step"] for row in rows if row["ranks"] == 1}
    some = [row for row in rows if row["ranks"] > 1]
    moved = [2 * (row["ranks"] - 1) / row["ranks"] * 4 * row["parameters"] for row in some]
    taken = [row["sum"] - barrier for row in some]
    by_byte, by_call = statistics.linear_regression(moved, taken)
    if by_call < 0:
        by_byte, by_call = sum(a * b for a, b in zip(moved, taken, strict=True)) / sum(a * a for a in moved), 0.0
    for row, each in zip(some, moved, strict=True):
        row["predicted"] = max(1.0, row["ranks"] / cores) * alone[row["parameters"]] + by_byte * each + by_call
        one = next(other for other in rows if other["ranks"] == 1 and other["parameters"] == row["parameters"])
        row["efficiencies"] = [a / b for a, b in zip(one["steps"], row["steps"], strict=True)]
    return {"seconds_a_byte": by_byte, "seconds_a_sum": by_call, "seconds_of_one": alone, "barrier": barrier}


# What is assumed elsewhere: of a GPU, its links to those of its machine, and to other machines.
GPU = {"flops": 4e14, "memory": 80e9, "near": 3.5e11, "far": 4.5e10, "per_machine": 8}
VECTORS = 10  # x, its copy, two branches, their gradient and an evaluation's, two for the error, the sum, momentum


def extrapolated(parameters, tokens, gpus, shards, tasks, gpu=GPU):
    """Seconds of a meta-step in parts, bytes held a GPU, and what part of the GPUs' operations is of use."""
    groups, gradients = gpus // shards, SUPPORT + QUERY
    rounds = -(-tasks // groups)
    link = gpu["near"] if shards <= gpu["per_machine"] else gpu["far"]
    compute = rounds * gradients * 6 * parameters * tokens / gpu["flops"]
    gather = rounds * gradients * 3 * (shards - 1) / shards * 4 * parameters / link
    reduce = 2 * (groups - 1) / groups * 4 * parameters / shards / gpu["far"]
    wanted = tasks * gradients * 6 * parameters * tokens / gpu["flops"] / gpus
    total = max(compute, gather) + reduce
    return {
        "gpus": gpus,
        "shards": shards,
        "tasks": tasks,
        "tokens": tokens,
        "compute_s": compute,
        "gather_s": gather,
        "sum_s": reduce,
        "step_s": total,
        "held_GB": VECTORS * 4 * parameters / shards / 1e9,
        "use": wanted / total,
    }


CASES = [
    (1e10, 4096, 1000, 8, 125),
    (1e10, 4096, 1000, 8, 1000),
    (1e10, 4096, 1000, 8, 130),
    (1e10, 256, 1000, 8, 125),
    (1e10, 4096, 1000, 40, 25),
    (1e9, 4096, 1000, 1, 1000),
    (1e8, 4096, 1000, 1, 1000),
    (1e8, 64, 1000, 1, 1000),
]


def limits(parameters=1e10, shards=8, gpu=GPU):
    """Tokens of an evaluation below which gathers, or the sum, take longer than what is computed; and of use."""
    gather = 3 * (shards - 1) / shards * 4 * parameters / gpu["near"]
    enough = gather / (6 * parameters / gpu["flops"])
    found = {"tokens_for_gathers": enough, "tokens_for_gathers_where_ranks_share_a_task": shards * enough}
    for tokens in (4096, 16384):
        row = extrapolated(parameters, tokens, 1000, shards, 125)
        compute = row["compute_s"] / shards
        found[f"use_where_ranks_share_{tokens}_tokens"] = compute / (max(compute, row["gather_s"]) + row["sum_s"])
    one = extrapolated(1e8, 1, 1000, 1, 1000)
    return found | {"tokens_for_the_sum_of_1e8": one["sum_s"] / one["compute_s"]}


def tables(found):
    """In Markdown."""
    lines = ["| P | ranks | operation | bytes, counted | by formula | calls |", "|---|---|---|---|---|---|"]
    for row in found["moved"]:
        for how in ("shared_out", "in_shards"):
            for name, wanted in row[f"{how}_formula"].items():
                kind = name.removesuffix(", bytes")
                counts = row[how].get(name, 0), wanted, row[how].get(f"{kind}, calls", 0)
                lines.append(
                    f"| {row['parameters']:,} | {row['ranks']} | {how.replace('_', ' ')}: {kind} | {counts[0]:,} "
                    f"| {counts[1]:,} | {counts[2]} |"
                )
    fit = found["fit"]
    speed = f"{1e-9 / fit['seconds_a_byte']:.2f} GB/s, {1e3 * fit['seconds_a_sum']:.2f} ms a sum"
    load = f"{found['load'][0]:.1f} on {found['cores']} cores"
    lines += ["", f"Sums on this machine: {speed}. Its load when the times were taken: {load}.", ""]
    lines += ["| P | ranks | step, ms | predicted | of it the sum | speed-up, median | range |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for row in found["timed"]:
        start = f"| {row['parameters']:,} | {row['ranks']} | {1e3 * row['step']:.0f} |"
        if row["ranks"] == 1:
            lines.append(f"{start} | | | |")
            continue
        share = max(0.0, row["sum"] - fit["barrier"]) / row["step"]
        ratios = sorted(row["ranks"] * each for each in row["efficiencies"])
        lines.append(
            f"{start} {1e3 * row['predicted']:.0f} | {share:.1%} | {statistics.median(ratios):.2f} "
            f"| {ratios[0]:.2f} to {ratios[-1]:.2f} |"
        )
    lines += ["", "| P | GPUs | shards | tasks | tokens | step, s | compute | gathers | sum | held, GB | of use |"]
    lines.append("|---|---|---|---|---|---|---|---|---|---|---|")
    for size, row in found["extrapolated"]:
        parts = " | ".join(f"{row[name]:.2g}" for name in ("step_s", "compute_s", "gather_s", "sum_s"))
        lines.append(
            f"| {size:.0e} | {row['gpus']} | {row['shards']} | {row['tasks']} | {row['tokens']} | {parts} "
            f"| {row['held_GB']:.0f} | {row['use']:.0%} |"
        )
    lines += ["", *(f"{name.replace('_', ' ')}: {value:.3g}" for name, value in found["limits"].items())]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    parts, load = {}, os.getloadavg()
    for ranks in (2, 4):
        in_ranks(ranks, rank_of, ranks, given.rounds, given.out)
        place = given.out / f"ranks-{ranks}.json"
        parts[ranks] = json.loads(place.read_text())
        place.unlink()
    timed_rows = parts[4]
    found = {
        "cores": os.cpu_count(),
        "load": load,
        **provenance(),
        "moved": parts[2],
        "fit": fitted(timed_rows, os.cpu_count() or 1),
        "timed": timed_rows,
        "assumed": GPU | {"vectors": VECTORS, "K": K, "J": J, "branches": BRANCHES},
        "limits": limits(),
        "extrapolated": [(case[0], extrapolated(*case)) for case in CASES],
    }
    (given.out / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    (given.out / "table.md").write_text(tables(found))
    print(tables(found))


if __name__ == "__main__":
    main()
