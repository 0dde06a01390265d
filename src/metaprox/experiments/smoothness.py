"""Whether the curvature of F grows with its gradient, ||Hess F|| <= L0 + L1 ||grad F||, along meta-training runs.

g is FO-B-MAML's meta-gradient that the outer optimizer follows: symmetric, lam = 0.5, K = 10 inner and 10 branch steps.

    mnist1d     5-way 5-shot, MLP 40-128-128-5, gradient descent 0.1, nu = 0.1; meta-steps of 8 tasks (quick: 4),
                g measured on 16 fixed tasks (quick: 4).
    sinusoid    10 shots, MLP 1-40-40-1, gradient descent 0.01, nu = 0.05; meta-steps of 25 tasks (quick: 10), g
                measured on 50 fixed tasks (quick: 15). The fixed step keeps the measurement clean. Also with a step
                adapted per task, of 0.05 at most: it solves better, but is not smooth in x, so that g is several
                times rougher over short distances, which hides whatever it does over longer ones.

SiLU takes the place of ReLU: with kinks F has no Hessian, and the measured smoothness depends on the distance. Three
runs from the usual random weights, and from the same times 2 and 3 (sinusoid: 1.5 and 2), because along one run ||g||
changes by a factor of two or three only. Each is 150 meta-steps (quick: 36) of normalized SGD with momentum 0.9 and a
constant step of 0.1, so that all distances are alike, on new tasks at every step.

At every third meta-step, the local smoothness at the iterate x_t is the largest ||g(z) - g(x_t)|| / ||z - x_t|| over z
at 1/4, 2/4, 3/4 and 4/4 of the way to x_(t+1). g is of the same tasks everywhere: no noise of sampling in it.

L0 and L1 >= 0 are the least-squares fit of log L by log(L0 + L1 ||g||) over the three runs: of the logarithm, because L
scatters by a factor. 95 % intervals by bootstrap over blocks of five iterates. Seven minutes on a core (quick: one).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

import metaprox as mp
from metaprox.experiments.base import Experiment, Remember, Size
from metaprox.models import cross_entropy, mean_squared_error, mlp
from metaprox.reports import style
from metaprox.tasks import MNIST1D, Sinusoid, TaskSource
from metaprox.types import LossValue, Params

META_STEPS: dict[Size, int] = {"full": 150, "quick": 36}
EVERY, FRACTIONS = 3, (0.25, 0.5, 0.75, 1.0)
FIXED_TASKS = 10**6  # The first id of the tasks that g is measured on, far beyond all that are trained on.
DRAWS, BLOCK, ANGLES = 2000, 5, 181  # bootstrap; values of arctan(L1 ||g|| / L0) that the fit tries
ENDS = (0.025, 0.975)


@dataclass(frozen=True)
class Setting:
    """One panel of the figure. batch: tasks of a meta-step; fixed: tasks that g is measured on; both by size."""

    tasks: Callable[[int], TaskSource]
    widths: tuple[int, ...]
    loss: Callable[[nn.Module, Any], LossValue]
    solver: mp.InnerSolver
    nu: float
    batch: dict[Size, int]
    fixed: dict[Size, int]
    factors: tuple[float, ...]


WAVES = Setting(
    tasks=lambda seed: Sinusoid(seed=seed),
    widths=(1, 40, 40, 1),
    loss=mean_squared_error,
    solver=mp.GradientDescent(0.01),
    nu=0.05,
    batch={"full": 25, "quick": 10},
    fixed={"full": 50, "quick": 15},
    factors=(1, 1.5, 2),
)
DIGITS = Setting(
    tasks=lambda seed: MNIST1D(seed=seed),
    widths=(40, 128, 128, 5),
    loss=cross_entropy,
    solver=mp.GradientDescent(0.1),
    nu=0.1,
    batch={"full": 8, "quick": 4},
    fixed={"full": 16, "quick": 4},
    factors=(1, 2, 3),
)
FIXED, ADAPTED = "sinusoid, fixed inner step", "sinusoid, inner step adapted per task"
SETTINGS = {"mnist1d": DIGITS, FIXED: WAVES, ADAPTED: replace(WAVES, solver=mp.AdaptiveGradientDescent(0.05))}
COLORS = (style.LIGHT_BLUE, style.BLUE, style.PURPLE)


def run(size: Size, seed: int, remember: Remember) -> dict[str, Any]:
    families = {}
    for name, setting in SETTINGS.items():
        runs = [remember(f"{name}_{one}", partial(_train, setting, one, size, seed)) for one in setting.factors]
        iterates = [row for one in runs for row in one["iterates"]]
        families[name] = {"fit": fit(iterates, seed), "usual": fit(runs[0]["iterates"], seed), "runs": runs}
    return {"families": families}


def _train(setting: Setting, factor: float, size: Size, seed: int) -> dict[str, Any]:
    """Meta-train to the end, or until a solve overflows; a row for each iterate that is measured."""
    model, tasks = _model(setting.widths, factor, seed), setting.tasks(seed)
    problem = mp.ProximalProblem.from_module(model, setting.loss, lam=0.5)
    meta = mp.FOBMAML(setting.solver, steps=10, nu=setting.nu)
    optimizer = mp.optim.NormalizedSGD(model.parameters(), lr=0.1)
    batch, fixed = setting.batch[size], tasks.batch(range(FIXED_TASKS, FIXED_TASKS + setting.fixed[size]))
    result: dict[str, Any] = {"factor": factor, "died": None, "iterates": []}
    for step in range(META_STEPS[size]):
        before = _copy(model)
        optimizer.zero_grad()
        try:
            meta.backward(problem, tasks.batch(range(batch * step, batch * (step + 1))))
            optimizer.step()
            if step % EVERY == 0:
                row = local_smoothness(meta, problem, fixed, before, _copy(model))
                result["iterates"].append({"step": step} | row)
        except mp.NonFiniteError as error:
            return result | {"died": {"meta_step": step + 1, "message": str(error)}}
    return result


def _model(widths: Sequence[int], factor: float, seed: int) -> nn.Sequential:
    """The usual MLP with SiLU, weights and biases times ``factor``."""
    model = nn.Sequential(*(nn.SiLU() if isinstance(layer, nn.ReLU) else layer for layer in mlp(widths, seed)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(factor)
    return model


def _copy(model: nn.Module) -> Params:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def local_smoothness(
    meta: mp.FOBMAML, problem: mp.ProximalProblem, tasks: Any, start: Params, end: Params
) -> dict[str, float]:
    """Loss and ||g|| at ``start``, and how fast g changes on the way to ``end``: at most, and on the whole."""
    at_start = meta(problem, start, tasks)
    slopes = []
    for fraction in FRACTIONS:
        moved = {name: x.lerp(end[name], fraction) for name, x in start.items()}
        slopes.append(_distance(meta(problem, moved, tasks).grad, at_start.grad) / _distance(moved, start))
    return {
        "loss": float(at_start.query_loss.mean()),
        "gradient": float(_flat(at_start.grad).norm()),
        "smoothness": max(slopes),
        "whole": slopes[-1],
    }


def _distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    return float((_flat(a) - _flat(b)).norm())


def _flat(tensors: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors.values()])


def fit(rows: list[dict[str, float]], seed: int) -> dict[str, Any]:
    """L0 and L1, and the correlation of log L and log ||g||, with 95 % intervals."""
    gradient, smoothness = (_column(rows, name) for name in ("gradient", "smoothness"))
    everything = torch.arange(len(rows))[None]
    numbers: dict[str, Any] = {name: float(x) for name, x in _estimates(gradient, smoothness, everything).items()}
    drawn = _estimates(gradient, smoothness, _blocks(len(rows), seed))
    ends = torch.tensor(ENDS, dtype=torch.float64)
    return numbers | {f"{name}_interval": values.quantile(ends).tolist() for name, values in drawn.items()}


def _estimates(gradient: Tensor, smoothness: Tensor, chosen: Tensor) -> dict[str, Tensor]:
    """From the iterates ``chosen`` [draws, n], for each draw."""
    intercept, slope = nonnegative_line(gradient, smoothness, chosen)
    correlation = _correlation(gradient.log()[chosen], smoothness.log()[chosen])
    return {"L0": intercept, "L1": slope, "log_correlation": correlation}


def nonnegative_line(gradient: Tensor, smoothness: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (L0, L1) >= 0, each [draws], with the least squares of log L - log(L0 + L1 ||g||), by search over L1/L0.

    L0 + L1 ||g|| = scale (cos t + sin t ||g|| / unit); given the angle t, the best log scale is the mean residual.
    """
    unit = gradient.median()
    angles = torch.linspace(0, math.pi / 2, ANGLES, dtype=torch.float64)
    shapes = angles.cos()[:, None] + angles.sin()[:, None] * gradient / unit  # [ANGLES, n]
    residuals = smoothness.log() - shapes.log()
    best = torch.stack([row[chosen].var(-1, correction=0) for row in residuals]).argmin(0)
    scale = residuals[best[:, None], chosen].mean(-1).exp()
    return scale * angles[best].cos(), scale * angles[best].sin() / unit


def _blocks(count: int, seed: int) -> Tensor:
    """Rows of a bootstrap over blocks of consecutive iterates, which wrap around: [DRAWS, n]."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(count, (DRAWS, math.ceil(count / BLOCK), 1), generator=generator)
    return ((starts + torch.arange(BLOCK)) % count).flatten(1)[:, :count]


def _column(rows: list[dict[str, float]], name: str) -> Tensor:
    return torch.tensor([row[name] for row in rows], dtype=torch.float64)


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Of the last dimension."""
    a, b = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
    return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))


def draw(results: dict[str, Any]) -> dict[str, Figure]:
    """L against ||g|| for every iterate, and the fitted line: a panel for each setting."""
    figure = Figure(figsize=(13, 4.8), layout="constrained")
    panels = figure.subplots(1, len(SETTINGS))
    figure.suptitle(CLAIM, x=0.01, ha="left")
    for axes, (name, one) in zip(panels, results["families"].items(), strict=True):
        for part, color in zip(one["runs"], COLORS, strict=True):
            label = "usual initial weights" if part["factor"] == 1 else f"initial weights times {part['factor']:g}"
            points = (_column(part["iterates"], column) for column in ("gradient", "smoothness"))
            axes.plot(*points, "o", color=color, markersize=3.5, alpha=0.7, label=label)
        _line(axes, one)
        style.log_scale(axes, "x")
        style.log_scale(axes)
        axes.set_xlabel("||g||, norm of the meta-gradient at an iterate")
        axes.set_ylim(top=4 * axes.get_ylim()[1])  # room for the legend
        axes.legend(frameon=False, fontsize="small", loc="upper left")
        style.tidy(axes, name)
    panels[0].set_ylabel("L, local smoothness: change of g / distance")
    return {"smoothness": figure}


def _line(axes: Axes, one: dict[str, Any]) -> None:
    norms = [row["gradient"] for part in one["runs"] for row in part["iterates"]]
    grid = torch.logspace(math.log10(min(norms)), math.log10(max(norms)), 100)
    low, high = one["fit"]["L1_interval"]
    label = f"L0 + L1 ||g||, L1 = {one['fit']['L1']:.2g} ({low:.2g} to {high:.2g})"
    axes.plot(grid, one["fit"]["L0"] + one["fit"]["L1"] * grid, color=style.BLACK, label=label)


def measure(results: dict[str, Any]) -> dict[str, float]:
    numbers = {}
    for name, one in results["families"].items():
        if name == ADAPTED:
            continue
        numbers[f"{name}: L1"] = one["fit"]["L1"]
        numbers[f"{name}: L1, lower end of its interval"] = one["fit"]["L1_interval"][0]
        numbers[f"{name}: correlation of log L and log ||g||"] = one["fit"]["log_correlation"]
        numbers[f"{name}: the same from the usual weights alone"] = one["usual"]["log_correlation"]
    usual = (results["families"][name]["runs"][0]["iterates"] for name in (ADAPTED, FIXED))
    rough, smooth = (float(_column(rows, "smoothness").median()) for rows in usual)
    return numbers | {"sinusoid: how much rougher g is by adapted steps, usual weights": rough / smooth}


CLAIM = "On fixed inner steps the curvature of F grows with its gradient, beyond a factor of two or three of that"
EXPERIMENT = Experiment("smoothness", CLAIM, run, draw, measure)
