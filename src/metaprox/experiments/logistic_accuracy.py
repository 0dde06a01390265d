"""How accurate is a meta-gradient for how many gradients?

Logistic regression: eight tasks of 40 support and 40 query examples in 20 dimensions, lam = 0.1, float64, K = 10 base
steps. The exact meta-gradient comes from Newton's method and a dense solve. Every row is one setting of FO-B-MAML from
the same start; its cost is in gradient evaluations per task. Every solver has the step that suits it on these problems,
whose curvature lies between 0.1 and 1.7.
"""

from typing import Any

import torch
from matplotlib.figure import Figure

import metaprox as mp
from metaprox.experiments.base import Experiment, Remember, Size
from metaprox.experiments.problems import LOGISTIC_LAM, logistic_loss, logistic_tasks
from metaprox.reports import style

GD, NESTEROV, ANDERSON = mp.GradientDescent(1.1), mp.Nesterov(1.0), mp.Anderson(1.0)
CENTER: dict[str, Any] = {"perturb": "center", "eps": 0.05}
LOSS: dict[str, Any] = {"perturb": "loss", "nu": 0.05}
ONE_BRANCH: dict[str, Any] = {"scheme": "forward", "residual_correction": True, "perturb": "center", "eps": 0.005}

ROWS: dict[str, mp.FOBMAML] = {
    "FO-MAML (no branch step), gradient descent": mp.FOBMAML(GD, 10, start="predictor", branch_steps=0),
    "symmetric, loss, gradient descent": mp.FOBMAML(GD, 10, **LOSS),
    "symmetric, loss, Nesterov": mp.FOBMAML(NESTEROV, 10, **LOSS),
    "symmetric, loss, Anderson": mp.FOBMAML(ANDERSON, 10, **LOSS),
    "symmetric, loss, adaptive gradient descent": mp.FOBMAML(mp.AdaptiveGradientDescent(), 10, **LOSS),
    "symmetric, center, Anderson": mp.FOBMAML(ANDERSON, 10, **CENTER),
    "central4, center, Anderson": mp.FOBMAML(ANDERSON, 10, scheme="central4", **CENTER),
    "forward corrected, center, Anderson": mp.FOBMAML(ANDERSON, 10, **ONE_BRANCH),
    "forward corrected, center, 5 Anderson steps": mp.FOBMAML(ANDERSON, 10, branch_steps=5, **ONE_BRANCH),
    "forward corrected, center, 5 Anderson steps, K = 30": mp.FOBMAML(ANDERSON, 30, branch_steps=5, **ONE_BRANCH),
}


def run(size: Size, seed: int, remember: Remember) -> dict[str, Any]:
    problem = mp.ProximalProblem(logistic_loss, logistic_loss, LOGISTIC_LAM)
    tasks = logistic_tasks(seed)
    params = {"w": torch.zeros(20, dtype=torch.float64)}
    exact = mp.exact_meta_gradient(problem, params, tasks).grad["w"]
    rows = []
    for name, meta in ROWS.items():
        out = meta(problem, params, tasks)
        counts, count = out.info.counts, len(out.query_loss)
        rows.append(
            {
                "setting": name,
                "error": float((out.grad["w"] - exact).norm() / exact.norm()),
                "support": counts.support_gradients // count,
                "query": counts.query_gradients // count,
            }
        )
    return {"rows": rows}


def draw(results: dict[str, Any]) -> dict[str, Figure]:
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes = figure.subplots()
    style.tidy(axes, "Anderson branches are the most accurate (in brackets: support + query gradients)")
    rows = results["rows"][::-1]
    for height, row in enumerate(rows):
        color = style.BLUE if "Anderson" in row["setting"] else style.ORANGE
        axes.plot([1e-3, row["error"]], [height, height], color=color, linewidth=1)
        axes.plot(row["error"], height, "o", color=color)
    axes.set_yticks(range(len(rows)), [f"{row['setting']}  ({row['support']} + {row['query']})" for row in rows])
    axes.set_xscale("log")
    axes.set_xlim(1e-3, 3)
    axes.set_xlabel("relative error of the meta-gradient")
    return {"logistic_accuracy": figure}


def table(results: dict[str, Any]) -> str:
    """As Markdown."""
    lines = ["| setting | support gradients | query gradients | relative error |", "|---|---|---|---|"]
    lines += [f"| {r['setting']} | {r['support']} | {r['query']} | {_percent(r['error'])} |" for r in results["rows"]]
    return "\n".join(lines) + "\n"


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %" if value >= 0.1 else f"{100 * value:.2g} %"


def measure(results: dict[str, Any]) -> dict[str, float]:
    errors = {row["setting"]: row["error"] for row in results["rows"]}
    return {
        "error, symmetric, loss, 10 Anderson steps": errors["symmetric, loss, Anderson"],
        "error, forward corrected, 5 Anderson steps, K = 30": errors[
            "forward corrected, center, 5 Anderson steps, K = 30"
        ],
        "error of FO-MAML": errors["FO-MAML (no branch step), gradient descent"],
    }


CLAIM = "The solver of the branches decides how accurate a gradient evaluation is"
EXPERIMENT = Experiment("logistic-accuracy", CLAIM, run, draw, measure, table)
