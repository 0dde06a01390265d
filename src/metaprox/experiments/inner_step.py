"""Is a step that the solver finds itself as good as the best fixed one, on losses of which each asks for another step?

- sinusoid: regression, MLP 1-40-40-1 with ReLU, 10 shots, K = 10 inner steps; 1000 meta-steps (quick: 80) of 25 tasks,
  outer step 0.1. Here a fixed step that is long at the start dies, for meta-training drives the inner curvature up.
- batch statistics: MNIST-1D, 5 ways, 5 shots, three strided convolutions of 16 channels with BatchNorm, K = 5 inner
  steps; 300 meta-steps (quick: 30) of 8 tasks, outer step 0.2. Here large steps do no harm.

``AdaptiveGradientDescent()`` against fixed steps at the same number of gradient evaluations, its probe included. lam =
0.5, FO-B-MAML symmetric, "loss" and "center" in this order, as many branch steps as base steps, normalized SGD with
momentum 0.9 and a step decayed linearly to 0; seeds 0 to 4 (quick: 0 and 1, and one fixed step), counted from the seed
given, of the weights, the tasks, and the classes. Judged by the query loss after K inner steps on 1000 and 400 unseen
tasks, the same for all steps of a seed: its ratio to that of a fixed step, geometric mean over seeds, with the 95 %
interval of t. The best fixed step is the one of the least geometric mean among those that no seed dies of. Compiled.
Takes about half an hour on one core (quick: two minutes).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn

import metaprox as mp
from metaprox.comparison.statistics import Estimate, OfSeed
from metaprox.experiments.base import Experiment, Remember, Size
from metaprox.experiments.problems import convolutional
from metaprox.models import cross_entropy, mean_squared_error, mlp
from metaprox.reports import style
from metaprox.tasks import MNIST1D, Family, Sinusoid

FOUND, LOGGED = "found", 10


@dataclass(frozen=True)
class Case:
    """What is learned, and for how long; ``steps``: the fixed steps, of which quick runs take the last."""

    family: Callable[..., Family]
    model: Callable[[int], nn.Module]
    loss: Callable[[nn.Module, Any], Any]
    perturb: str
    inner_steps: int
    batch: int
    outer: float
    meta_steps: dict[Size, int]
    held_out: int
    steps: tuple[float, ...]


CASES = {
    "sinusoid": Case(
        Sinusoid,
        lambda seed: mlp([1, 40, 40, 1], seed),
        mean_squared_error,
        "loss",
        10,
        25,
        0.1,
        {"quick": 80, "full": 1000},
        1000,
        (0.005, 0.01, 0.02, 0.05),
    ),
    "batch statistics": Case(
        MNIST1D,
        convolutional,
        cross_entropy,
        "center",
        5,
        8,
        0.2,
        {"quick": 30, "full": 300},
        400,
        (0.03, 0.1, 0.3),
    ),
}


def run(size: Size, seed: int, remember: Remember) -> dict[str, Any]:
    seeds = range(seed, seed + (5 if size == "full" else 2))
    runs = [
        remember(f"{name}_{step}_seed_{own}", partial(_train, name, step, own, size))
        for name, case in CASES.items()
        for own in seeds
        for step in _tried(case, size)
    ]
    return {"runs": runs}


def _tried(case: Case, size: Size) -> list[float | str]:
    return [*(case.steps if size == "full" else case.steps[-1:]), FOUND]


def _train(name: str, step: float | str, seed: int, size: Size) -> dict[str, Any]:
    """Meta-train with one inner step until the end, or until it dies."""
    case = CASES[name]
    solver = mp.GradientDescent(step) if isinstance(step, float) else mp.AdaptiveGradientDescent()
    model, tasks = case.model(seed), case.family(seed=seed)
    problem = mp.ProximalProblem.from_module(model, case.loss, lam=0.5)
    perturb: Any = case.perturb
    meta = mp.FOBMAML(solver, case.inner_steps, perturb=perturb, backend="vmap", compile=True)
    optimizer, count = mp.optim.NormalizedSGD(model.parameters(), lr=case.outer), case.meta_steps[size]
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, count)
    unseen = case.family(seed=seed, split="test")
    judged = partial(mp.evaluate, problem, unseen.batch, range(case.held_out), solver, case.inner_steps)
    result: dict[str, Any] = {"case": name, "step": step, "seed": seed, "died": None, "loss": None, "log": []}
    rows: list[tuple[float, float]] = []
    done = 0
    try:
        for done in range(count):
            optimizer.zero_grad()
            out = meta.backward(problem, tasks.batch(range(case.batch * done, case.batch * (done + 1))))
            optimizer.step()
            schedule.step()
            rows.append((float(out.query_loss.mean()), float(out.info.base_step_sizes[:, 1:].median())))
            if len(rows) == LOGGED:
                loss, taken = (sum(column) / LOGGED for column in zip(*rows, strict=True))
                result["log"].append({"step": done + 1, "loss": float(f"{loss:.5g}"), "taken": float(f"{taken:.4g}")})
                rows.clear()
        found = judged()
    except mp.NonFiniteError as error:
        return result | {"died": {"meta_step": done + 1, "message": str(error)}}
    return result | {"loss": found.loss.mean, **{name: one.mean for name, one in found.metrics.items()}}


def losses(results: dict[str, Any], name: str, step: float | str) -> list[float]:
    """By seed; infinite where the run died."""
    own = [one for one in results["runs"] if one["case"] == name and one["step"] == step]
    return [one["loss"] or math.inf for one in own]


def steps_of(results: dict[str, Any], name: str) -> list[float]:
    """The fixed steps that were tried."""
    return sorted({one["step"] for one in results["runs"] if one["case"] == name and one["step"] != FOUND})


def best_fixed(results: dict[str, Any], name: str) -> float:
    """The fixed step of the least mean log loss; a run that died makes it infinite."""
    return min(steps_of(results, name), key=lambda step: _mean_log(losses(results, name, step)))


def _mean_log(values: Sequence[float]) -> float:
    return sum(map(math.log, values)) / len(values)


def ratio(results: dict[str, Any], name: str, step: float) -> tuple[float, float, float]:
    """Of the loss with the step that is found to that with a fixed one: (mean, low, high) over seeds, in pairs."""
    logs = [
        math.log(found / fixed)
        for found, fixed in zip(losses(results, name, FOUND), losses(results, name, step), strict=True)
        if math.isfinite(found) and math.isfinite(fixed)
    ]
    if len(logs) < 2:
        return math.nan, math.nan, math.nan
    found = Estimate.of([OfSeed(one, None, 0) for one in logs])
    assert found.over_seeds is not None
    mean, width = found.mean, found.over_seeds
    return math.exp(mean), math.exp(mean - width), math.exp(mean + width)


def draw(results: dict[str, Any]) -> dict[str, Figure]:
    """Training loss against meta-steps: a line for each run, with a cross where it died.

    The scale ends at twice the largest loss that a run begins with: a triangle where a run leaves it.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    for panel, name in zip(figure.subplots(1, len(CASES)), CASES, strict=True):
        style.tidy(panel, name)
        colors = dict(zip([*steps_of(results, name), FOUND], _colors(results, name), strict=True))
        runs = [one for one in results["runs"] if one["case"] == name]
        top = 2 * max((one["log"][0]["loss"] for one in runs if one["log"]), default=4.0)
        off = [_draw_run(panel, one, colors[one["step"]], top) for one in runs]
        for step, color in colors.items():
            panel.plot([], [], color=color, label=step if step == FOUND else f"{step:g}")
        if any(off):
            panel.plot([], [], "^", color=style.GREY, label="beyond the scale")
        panel.set_yscale("log")
        panel.set_xlabel("meta-steps")
        panel.set_ylabel("query loss in training")
        panel.legend(frameon=False, fontsize="small", title="inner step")
    return {"inner_step": figure}


def _draw_run(panel: Axes, one: dict[str, Any], color: str, top: float) -> bool:
    """The mean of the last five logged losses, ``top`` at most. Returns whether one is beyond that."""
    log = [row["loss"] for row in one["log"]]
    smooth = [sum(log[max(0, i - 4) : i + 1]) / len(log[max(0, i - 4) : i + 1]) for i in range(len(log))]
    steps, heights = [row["step"] for row in one["log"]], [min(value, top) for value in smooth]
    panel.plot(steps, heights, linewidth=0.8, color=color)
    beyond = [step for step, value in zip(steps, smooth, strict=True) if value > top]
    panel.plot(beyond[:1], [top] * len(beyond[:1]), "^", color=color, markersize=8)
    if one["died"]:
        panel.plot(one["died"]["meta_step"], (heights or [4.0])[-1], "x", color=color, markersize=8)
    return bool(beyond)


def _colors(results: dict[str, Any], name: str) -> list[str]:
    """Of the fixed steps, and of the one that is found."""
    fixed = [style.GREEN, style.GREY, style.LIGHT_BLUE, style.ORANGE]
    return [*fixed[-len(steps_of(results, name)) :], style.BLUE]


def table(results: dict[str, Any]) -> str:
    """As Markdown: a row for each step, with the loss of each seed, and the ratio to that of the step found."""
    lines = []
    for name in CASES:
        seeds = sorted({one["seed"] for one in results["runs"] if one["case"] == name})
        heads = " | ".join(f"seed {seed}" for seed in seeds)
        lines += [f"| {name}: inner step | {heads} | found / this |", "|" + "---|" * (len(seeds) + 2)]
        for step in steps_of(results, name):
            compared = "{:.2f} ({:.2f} to {:.2f})".format(*ratio(results, name, step))
            lines.append(f"| {step} | {_cells(results, name, step)} | {compared} |")
        lines += [f"| {FOUND} | {_cells(results, name, FOUND)} | |", ""]
    return "\n".join(lines)


def _cells(results: dict[str, Any], name: str, step: float | str) -> str:
    own = [one for one in results["runs"] if one["case"] == name and one["step"] == step]
    return " | ".join(f"dies at {one['died']['meta_step']}" if one["died"] else _cell(one) for one in own)


def _cell(one: dict[str, Any]) -> str:
    accuracy = f" ({100 * one['accuracy']:.1f} %)" if "accuracy" in one else ""
    return f"{one['loss']:.3f}{accuracy}"


def measure(results: dict[str, Any]) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for name in CASES:
        found = losses(results, name, FOUND)
        numbers[f"{name}: runs that die with the step found"] = sum(map(math.isinf, found))
        own = [one for one in results["runs"] if one["case"] == name and one["step"] == FOUND]
        falls = [(one["loss"] or math.inf) / one["log"][0]["loss"] for one in own]
        numbers[f"{name}: loss at the end over that at the start"] = math.exp(_mean_log(falls))
        if results["size"] == "full":
            mean, _, high = ratio(results, name, best_fixed(results, name))
            numbers[f"{name}: loss over that with the best fixed step"] = mean
            numbers[f"{name}: loss over that with the best fixed step, upper end of the interval"] = high
    return numbers


CLAIM = "A step that the solver finds itself trains as well as the best fixed one"
EXPERIMENT = Experiment("inner-step", CLAIM, run, draw, measure, table)
