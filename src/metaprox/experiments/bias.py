"""How the error of the meta-gradient falls with the accuracy delta of the inner solves.

Logistic regression in 20 dimensions, 8 tasks of 40 support and 40 query examples, lam = 0.1, float64; exact inner
solutions by Newton's method, the exact meta-gradient by a dense solve.

Independent errors: every branch's exact solution is moved by delta, in the direction that hurts most (adversarial: all
moves add up along the truncation error) or in a random one. With nu = c delta^(1/(p+1)), as theory says, the error
falls as delta^(p/(p+1)) for a scheme of order p, and no faster.

Coupled solves: branches as they are really run, by gradient descent from one start with the same steps. delta is then
the distance of y_0 from the exact solution after K steps. What has not converged is common to all branches, so that it
is not divided by nu; nu can be small, and the error falls as delta itself.
"""

import math
from functools import partial
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

import metaprox as mp
from metaprox.estimators.stencil import STENCILS, Scheme, Stencil
from metaprox.experiments.base import Experiment, Remember, Size
from metaprox.experiments.problems import LOGISTIC_LAM as LAM
from metaprox.experiments.problems import logistic_loss, logistic_tasks
from metaprox.reports import style
from metaprox.types import Params

COLORS = {"forward": style.LIGHT_BLUE, "symmetric": style.BLUE, "central4": style.PURPLE, "central6": style.GREEN}
# c in nu = c delta^(1/(p+1)): both errors are alike, and every branch has a solution.
STEP_SCALE = {"forward": 1.0, "symmetric": 0.5, "central4": 0.3, "central6": 0.25}
DELTAS = tuple(10.0**-k for k in range(4, 11))
COUPLED_NU = 1e-4
COUPLED_FLOOR = 1e-6  # Below it lies the truncation nu^2 of the symmetric scheme.


def run(size: Size, seed: int, remember: Remember) -> dict[str, Any]:
    tasks = logistic_tasks(seed)
    x = {"w": torch.zeros(20, dtype=torch.float64)}
    draws = 4 if size == "quick" else 64
    steps = range(40, 161, 20) if size == "quick" else range(20, 241, 10)
    independent, coupled = {}, {}
    for name, rule in STENCILS.items():
        independent[name] = remember(f"independent_{name}", partial(_independent, rule, x, tasks, draws, seed))
        coupled[name] = remember(f"coupled_{name}", partial(_coupled, rule.name, x, tasks, steps))
    return {"lam": LAM, "draws": draws, "coupled_nu": COUPLED_NU, "independent": independent, "coupled": coupled}


def _independent(rule: Stencil, x: dict[str, Tensor], tasks: mp.Task, draws: int, seed: int) -> list[dict[str, float]]:
    exact = _exact(x, tasks)
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for delta in DELTAS:
        nu = STEP_SCALE[rule.name] * delta ** (1 / (rule.order + 1))
        clean = _difference(rule, nu, [_perturbed(x, tasks, node * nu) for node in rule.nodes])
        worst = delta * LAM / nu * sum(abs(weight) for weight in rule.weights) * _unit(clean - exact)
        scattered = []
        for _ in range(draws):
            noise = torch.randn(len(rule.nodes), *exact.shape, dtype=torch.float64, generator=generator)
            scattered.append(_error(clean + _difference(rule, nu, list(delta * _unit(noise))), exact))
        rows.append(
            {
                "delta": delta,
                "nu": nu,
                "adversarial": _error(clean + worst, exact),
                "random": math.exp(sum(map(math.log, scattered)) / draws),
            }
        )
    return rows


def _coupled(scheme: Scheme, x: dict[str, Tensor], tasks: mp.Task, steps: range) -> list[dict[str, float]]:
    exact, solution = _exact(x, tasks), _perturbed(x, tasks, 0.0)
    rows = []
    for count in steps:
        meta = mp.FOBMAML(mp.GradientDescent(1.1), steps=count, scheme=scheme, nu=COUPLED_NU)
        out = meta(_problem(0.0), x, tasks)
        assert out.adapted is not None
        delta = float((out.adapted["w"] - solution).norm(dim=1).mean())
        rows.append({"steps": count, "delta": delta, "error": _error(out.grad["w"], exact.mean(0))})
    return rows


def _problem(nu: float) -> mp.ProximalProblem:
    """The inner loss is fhat + nu f; at nu = 0, support and query are what they always are."""
    if nu == 0:
        return mp.ProximalProblem(logistic_loss, logistic_loss, LAM)

    def perturbed(params: Params, both: mp.Task) -> Tensor:
        return logistic_loss(params, both[0]) + nu * logistic_loss(params, both[1])

    return mp.ProximalProblem(perturbed, logistic_loss, LAM)


def _perturbed(x: dict[str, Tensor], tasks: mp.Task, nu: float) -> Tensor:
    """y_nu [T, P], exact."""
    batch = tasks if nu == 0 else mp.Task(tuple(tasks), tasks.query)
    return mp.exact_meta_gradient(_problem(nu), x, batch, tol=1e-14).solutions


def _exact(x: dict[str, Tensor], tasks: mp.Task) -> Tensor:
    return mp.exact_meta_gradient(_problem(0.0), x, tasks, tol=1e-14).per_task


def _difference(rule: Stencil, nu: float, points: list[Tensor]) -> Tensor:
    return -LAM / nu * sum((w * y for w, y in zip(rule.weights, points, strict=True)), torch.zeros_like(points[0]))


def _unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True)


def _error(estimate: Tensor, exact: Tensor) -> float:
    return float((estimate - exact).norm() / exact.norm())


def draw(results: dict[str, Any]) -> dict[str, Figure]:
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for name, rows in results["independent"].items():
        order, deltas, worst = STENCILS[name].order, column(rows, "delta"), column(rows, "adversarial")
        label = f"{name}: slope {order}/{order + 1}"
        left.plot(deltas, worst, "o-", color=COLORS[name], markersize=4, label=label)
        left.plot(deltas, column(rows, "random"), "x", color=COLORS[name])
        theory = [worst[-1] * (delta / deltas[-1]) ** (order / (order + 1)) for delta in deltas]
        left.plot(deltas, theory, color=style.GREY, linewidth=0.8, zorder=0)
    for name, rows in results["coupled"].items():
        right.plot(column(rows, "delta"), column(rows, "error"), "o-", color=COLORS[name], markersize=4, label=name)
    for axes, title in (
        (left, "Independent inner errors: the error falls as delta^(p/(p+1))"),
        (right, "Coupled solves: it falls as delta itself, until nu^p is left"),
    ):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("inner accuracy delta = ||y - y*||")
        axes.legend(frameon=False, fontsize="small")
        style.tidy(axes, title)
    left.set_ylabel("relative error of the meta-gradient")
    key = "o adversarial, x random; grey: theory"
    left.text(0.98, 0.03, key, transform=left.transAxes, ha="right", fontsize="small")
    return {"bias": figure}


def column(rows: list[dict[str, float]], name: str) -> list[float]:
    return [row[name] for row in rows]


def measure(results: dict[str, Any]) -> dict[str, float]:
    """Slopes of log error against log delta."""
    numbers = {}
    for name, rows in results["independent"].items():
        for kind in ("adversarial", "random"):
            numbers[f"slope, {name}, {kind}"] = slope([(row["delta"], row[kind]) for row in rows])
    for name in ("symmetric", "central4", "central6"):
        above = [row for row in results["coupled"][name] if row["error"] > COUPLED_FLOOR]
        numbers[f"slope, {name}, coupled"] = slope([(row["delta"], row["error"]) for row in above])
    return numbers


def slope(points: list[tuple[float, float]]) -> float:
    """Of the least-squares line through (log x, log y)."""
    logs = torch.tensor(points, dtype=torch.float64).log()
    x, y = (logs - logs.mean(0)).T
    return float(x @ y / (x @ x))


EXPERIMENT = Experiment("bias", "The error falls with the inner accuracy as theory says", run, draw, measure)
