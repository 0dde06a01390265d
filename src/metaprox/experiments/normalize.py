"""Which outer step sizes work, for plain, clipped and normalized SGD and for Adam: does normalizing widen the range?

Sinusoid regression, MLP 1-40-40-1, 10 shots, K = 10 inner steps adapted per task (0.05 to start with, so that what
fails is the outer step), lam = 0.5, FO-B-MAML symmetric with nu = 0.05. All runs of a seed start from the same weights
and see the same tasks, 150 meta-steps of 10 (quick: 60); the outer step decays linearly to 0. Nine step sizes over four
decades for each optimizer, half a decade apart (quick: four, a decade apart); seeds 0 and 1 (quick: 0), counted from
the seed given. Clipped SGD clips gradients longer than 0.1, so that its longest step is 0.1 times its step size;
normalized SGD has momentum 0.9; Adam is as torch has it.

Judged by the query error after 10 inner steps on 200 unseen waves at the end, geometric mean over seeds. A step size
fails where, for any seed, a solve, the meta-gradient or the evaluation overflows, and where the error ends above that
of the initial weights. It works where the error is at most twice the best of all (rounding alone moves an error by up
to a third). The width of the range that works is in decades, with log error interpolated between step sizes, and
failures taken at the initial error. Widths are judged at full size only: of four step sizes a width hinges on whether
single runs end above a limit, which rounding decides, and quick runs are too short for small steps. Quick runs are
judged by how far below the initial error the best of each optimizer ends. The norm of the meta-gradient is kept too:
its largest is 3 to 10 times its median along a run that learns, and hundreds of times along one whose steps are too
long. Takes about eight minutes on one core (quick: one).
"""

import math
from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

import metaprox as mp
from metaprox.experiments.base import Experiment, Remember, Size
from metaprox.models import mean_squared_error, mlp
from metaprox.reports import style
from metaprox.tasks import Sinusoid

OPTIMIZERS: dict[str, Callable[[Iterable[Tensor], float], Optimizer]] = {
    "plain SGD": lambda params, lr: torch.optim.SGD(params, lr),
    "clipped SGD": lambda params, lr: mp.optim.ClippedSGD(params, lr, gamma=0.1 * lr),
    "normalized SGD": lambda params, lr: mp.optim.NormalizedSGD(params, lr),
    "Adam": lambda params, lr: torch.optim.Adam(params, lr),
}
MIDDLE = {"plain SGD": 0, "clipped SGD": 0, "normalized SGD": -1, "Adam": -2}  # log10 of the middle of the grid
LOOKS = {
    "plain SGD": ("v", style.ORANGE),
    "clipped SGD": ("s", style.GREEN),
    "normalized SGD": ("o", style.BLUE),
    "Adam": ("^", style.BLACK),
}
SOLVER, INNER_STEPS = mp.AdaptiveGradientDescent(0.05), 10
BATCH, HELD_OUT, FACTOR = 10, 200, 2.0


def run(size: Size, seed: int, remember: Remember) -> dict[str, Any]:
    meta_steps, seeds = (150, range(seed, seed + 2)) if size == "full" else (60, range(seed, seed + 1))
    initial = [remember(f"initial_seed_{own}", partial(_held_out, _start(own), own)) for own in seeds]
    runs = {
        name: [_steps(name, lr, seeds, meta_steps, initial, remember) for lr in grid(name, size)] for name in OPTIMIZERS
    }
    return {"meta_steps": meta_steps, "factor": FACTOR, "initial": _geometric_mean(initial), "runs": runs}


def _steps(
    name: str, lr: float, seeds: range, meta_steps: int, initial: list[float], remember: Remember
) -> dict[str, Any]:
    """One step size of an optimizer: its error, None where it fails, and the runs of all seeds."""
    own = [remember(f"{name}_{lr:.3g}_seed_{seed}", partial(_train, name, lr, seed, meta_steps)) for seed in seeds]
    errors = [one["error"] for one in own if one["error"] is not None]
    works = len(errors) == len(own) and all(error <= start for error, start in zip(errors, initial, strict=True))
    return {"lr": lr, "error": _geometric_mean(errors) if works else None, "seeds": own}


def _geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def grid(name: str, size: Size) -> list[float]:
    """Step sizes of an optimizer."""
    halves = range(-4, 5) if size == "full" else range(-3, 5, 2)
    return [10 ** (MIDDLE[name] + half / 2) for half in halves]


def _train(name: str, lr: float, seed: int, meta_steps: int) -> dict[str, Any]:
    """The error at the end of one run, or the meta-step at which it died."""
    problem = _start(seed)
    params = list(problem.live_parameters().values())
    meta = mp.FOBMAML(SOLVER, steps=INNER_STEPS, nu=0.05)
    optimizer = OPTIMIZERS[name](params, lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, meta_steps)
    tasks = Sinusoid(seed=seed)
    result: dict[str, Any] = {"seed": seed, "error": None, "died": None}
    norms, step = [], 0
    try:
        for step in range(meta_steps):
            optimizer.zero_grad()
            meta.backward(problem, tasks.batch(range(BATCH * step, BATCH * (step + 1))))
            norms.append(nn.utils.get_total_norm([p.grad for p in params if p.grad is not None]))
            optimizer.step()
            schedule.step()
        result["error"] = _held_out(problem, seed)
    except mp.NonFiniteError as error:
        result["died"] = {"meta_step": step + 1, "message": str(error)}
    quantiles = [float(torch.stack(norms).quantile(share)) for share in (0.0, 0.5, 1.0)] if norms else None
    return result | {"gradient_norm_least_median_largest": quantiles}


def _start(seed: int) -> mp.ProximalProblem:
    return mp.ProximalProblem.from_module(mlp([1, 40, 40, 1], seed), mean_squared_error, lam=0.5)


def _held_out(problem: mp.ProximalProblem, seed: int) -> float:
    waves = Sinusoid(seed=seed, split="test")
    return mp.evaluate(problem, waves.batch, range(HELD_OUT), SOLVER, INNER_STEPS).loss.mean


def best(results: dict[str, Any], name: str) -> float:
    """The least error of an optimizer; the initial one if every step size fails."""
    errors = [float(row["error"]) for row in results["runs"][name] if row["error"]]
    return min(errors, default=float(results["initial"]))


def width(results: dict[str, Any], name: str) -> float:
    """Decades of step sizes in which the error is at most FACTOR times the best of all."""
    bound = math.log(results["factor"] * min(best(results, other) for other in results["runs"]))
    points = [(math.log10(row["lr"]), math.log(row["error"] or results["initial"])) for row in results["runs"][name]]
    return sum(_below(bound, *ends) for ends in pairwise(points))


def _below(bound: float, left: tuple[float, float], right: tuple[float, float]) -> float:
    """The length of the part of a line between two points that lies below ``bound``."""
    (start, a), (end, b) = left, right
    low, high = min(a, b), max(a, b)
    if low == high:
        return (end - start) * (low <= bound)
    return (end - start) * min(1.0, max(0.0, (bound - low) / (high - low)))


def draw(results: dict[str, Any]) -> dict[str, Figure]:
    """Error at the end against step size, a line for each optimizer; failed runs as crosses at the top."""
    figure, axes = style.canvas(CLAIM)
    figure.set_size_inches(9.5, 4.2)
    for index, (name, rows) in enumerate(results["runs"].items()):
        errors = [row["error"] or math.nan for row in rows]
        label = f"{name}: {width(results, name):.1f} decades, best error {best(results, name):.2g}"
        marker, color = LOOKS[name]
        axes.plot([row["lr"] for row in rows], errors, f"{marker}-", color=color, markersize=5, label=label)
        crosses = [row["lr"] for row in rows if row["error"] is None]
        height = 1.2 * results["initial"] * 1.12**index  # each its own: no cross hides another of the same step size
        axes.plot(crosses, [height] * len(crosses), "x", color=color)
    _frame(axes, results)
    figure.legend(frameon=False, fontsize="small", loc="outside right upper", title="width of the range that works")
    return {"normalize": figure}


def _frame(axes: Axes, results: dict[str, Any]) -> None:
    least = min(best(results, name) for name in results["runs"])
    span = f"works: within {results['factor']:g} times the best error"
    axes.axhspan(least, results["factor"] * least, color=style.GREY, alpha=0.25, linewidth=0, label=span)
    axes.axhline(results["initial"], color=style.GREY, linewidth=0.8, label="error of the initial weights")
    axes.plot([], [], "x", color=style.GREY, label="overflows, or ends above the initial error")
    axes.set_xscale("log")
    style.log_scale(axes)
    axes.set_xlabel("outer step size at the start (normalized SGD: length of a step)")
    axes.set_ylabel("query error after 10 inner steps")


def measure(results: dict[str, Any]) -> dict[str, float]:
    if results["size"] == "quick":
        return {f"{name}: best error over the initial one": _fall(results, name) for name in results["runs"]}
    widths = {name: width(results, name) for name in results["runs"]}
    numbers = {f"{name}: width in decades": value for name, value in widths.items()}
    numbers |= {f"{name}: best error": best(results, name) for name in widths}
    return numbers | {"normalized minus plain, width in decades": widths["normalized SGD"] - widths["plain SGD"]}


def _fall(results: dict[str, Any], name: str) -> float:
    """The best error of an optimizer, relative to that of the initial weights."""
    return best(results, name) / float(results["initial"])


CLAIM = "More step sizes work for normalized SGD than for plain or clipped; for Adam most of all"
EXPERIMENT = Experiment("normalize", CLAIM, run, draw, measure)
