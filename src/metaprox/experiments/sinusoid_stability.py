"""Does meta-training survive an inner step of 0.05? Fixed steps of 0.05 and 0.01 against steps adapted per task.

Sinusoid regression, MLP 1-40-40-1, 10 shots, K = 10 inner steps, lam = 0.5, FO-B-MAML symmetric with nu = 0.05,
normalized SGD with momentum 0.9 and a step of 0.1 decayed linearly to 0 over 4000 meta-steps (quick: 300) of 25 tasks,
seeds 0, 1, 2 (quick: 0), counted from the seed given. Judged by the query error after 10 inner steps on 1000 unseen
waves, the same for all. Takes about 15 minutes on one core (quick: one).
"""

from functools import partial
from typing import Any

import torch
from matplotlib.figure import Figure

import metaprox as mp
from metaprox.experiments.base import Experiment, Remember, Size
from metaprox.models import mean_squared_error, mlp
from metaprox.reports import style
from metaprox.tasks import Sinusoid

BATCH, INNER_STEPS, LOGGED = 25, 10, 10
SOLVERS: dict[str, mp.InnerSolver] = {
    "fixed 0.05": mp.GradientDescent(0.05),
    "fixed 0.01": mp.GradientDescent(0.01),
    "adapted per task": mp.AdaptiveGradientDescent(0.05),
}
COLORS = {"fixed 0.05": style.ORANGE, "fixed 0.01": style.GREY, "adapted per task": style.BLUE}


def run(size: Size, seed: int, remember: Remember) -> dict[str, Any]:
    meta_steps, count = (4000, 3) if size == "full" else (300, 1)
    runs = [
        remember(f"{name}_seed_{own}", partial(_train, name, own, meta_steps))
        for own in range(seed, seed + count)
        for name in SOLVERS
    ]
    reference = {one["seed"]: one["errors"] for one in runs if one["name"] == "fixed 0.01"}
    for one in runs:
        if one["errors"] and reference[one["seed"]]:
            difference = torch.tensor(one["errors"]) - torch.tensor(reference[one["seed"]])
            one["minus_fixed_0.01_on_the_same_tasks"] = _describe(mp.Statistic.of(difference))
    for one in runs:
        del one["errors"]
    return {"meta_steps": meta_steps, "runs": runs}


def _train(name: str, seed: int, meta_steps: int) -> dict[str, Any]:
    """Meta-train with one inner solver until the end, or until it dies."""
    solver = SOLVERS[name]
    model = mlp([1, 40, 40, 1], seed)
    problem = mp.ProximalProblem.from_module(model, mean_squared_error, lam=0.5)
    meta = mp.FOBMAML(solver, steps=INNER_STEPS, nu=0.05)
    optimizer = mp.optim.NormalizedSGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, meta_steps)
    tasks = Sinusoid(seed=seed)
    result: dict[str, Any] = {"name": name, "seed": seed, "died": None, "test": None, "errors": None, "log": []}
    rows: list[dict[str, float]] = []
    for step in range(meta_steps):
        optimizer.zero_grad()
        try:
            out = meta.backward(problem, tasks.batch(range(BATCH * step, BATCH * (step + 1))))
        except mp.NonFiniteError as error:
            return result | {"died": {"meta_step": step + 1, "task": error.task, "message": str(error)}}
        optimizer.step()
        schedule.step()
        rows.append({"loss": float(out.query_loss.mean()), **out.info.summary()})
        if len(rows) == LOGGED:
            means = {key: float(f"{sum(row[key] for row in rows) / LOGGED:.5g}") for key in rows[0]}
            result["log"].append({"step": step + 1} | means)
            rows.clear()
    test = mp.evaluate(problem, Sinusoid(seed=seed, split="test").batch, range(1000), solver, INNER_STEPS)
    return result | {"test": _describe(test.loss), "errors": test.values["loss"].tolist()}


def _describe(statistic: mp.Statistic) -> dict[str, float]:
    return {"mean": statistic.mean, "ci95": statistic.ci95, "n": statistic.n}


def draw(results: dict[str, Any]) -> dict[str, Figure]:
    """Training error against meta-steps: a line for each run, a cross where it died."""
    figure, axes = style.canvas("A step adapted per task survives where a fixed one dies (x)")
    for one in results["runs"]:
        losses = [row["loss"] for row in one["log"]]
        smooth = [sum(losses[max(0, i - 9) : i + 1]) / len(losses[max(0, i - 9) : i + 1]) for i in range(len(losses))]
        color, first = COLORS[one["name"]], one["seed"] == results["seed"]
        axes.plot([row["step"] for row in one["log"]], smooth, linewidth=1, color=color)
        if one["died"]:
            height = smooth[-1] if smooth else 4.0
            axes.plot(one["died"]["meta_step"], height, "x", color=color, markersize=9, markeredgewidth=3, zorder=3)
        if first:
            axes.plot([], [], color=color, label=one["name"])
    axes.set_yscale("log")
    axes.set_xlabel("meta-steps")
    axes.set_ylabel("query error after 10 inner steps")
    axes.legend(frameon=False, title="inner step")
    return {"sinusoid_stability": figure}


def table(results: dict[str, Any]) -> str:
    """As Markdown: a row for each inner step, a column for each seed."""
    seeds = sorted({one["seed"] for one in results["runs"]})
    lines = [f"| inner step | {' | '.join(f'seed {seed}' for seed in seeds)} |", "|" + "---|" * (len(seeds) + 1)]
    for name in SOLVERS:
        cells = [_cell(one) for one in results["runs"] if one["name"] == name]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(one: dict[str, Any]) -> str:
    if one["died"]:
        return f"dies at meta-step {one['died']['meta_step']}"
    return f"{one['test']['mean']:.3f} ± {one['test']['ci95']:.3f}"


def measure(results: dict[str, Any]) -> dict[str, float]:
    runs = results["runs"]
    died = {name: sum(one["died"] is not None for one in runs if one["name"] == name) for name in SOLVERS}
    seeds = len(runs) / len(SOLVERS)
    gains = [
        one["minus_fixed_0.01_on_the_same_tasks"]
        for one in runs
        if one["name"] == "adapted per task" and "minus_fixed_0.01_on_the_same_tasks" in one
    ]
    return {
        "fixed 0.05: fraction of runs that die": died["fixed 0.05"] / seeds,
        "adapted per task: fraction of runs that die": died["adapted per task"] / seeds,
        "adapted minus fixed 0.01, upper end of the paired interval, worst seed": max(
            gain["mean"] + gain["ci95"] for gain in gains
        ),
    }


CLAIM = "A step adapted per task survives where a fixed one dies"
EXPERIMENT = Experiment("sinusoid-stability", CLAIM, run, draw, measure, table)
