"""How accurate a meta-gradient can be made for its gradients: the estimated error at K base steps and J branch steps.

Networks of training-budgets (metaprox/experiments/budgets_settings.py: sinusoids, MNIST-1D with an MLP and a conv net,
lam = 0.5), at the weights that they begin with and after 150 meta-steps of "center" with K = 10 and J = 5, normalized
SGD of 0.1; beside them logistic regression in 20 dimensions, lam = 0.1, which ten steps leave far from solved and a
thousand do not. AdaptiveGradientDescent(), symmetric, "center"; medians over unseen tasks, 25 for sinusoids and 8 for
the others, of ``info.relative_error``, of its parts of branches and base, and the sampling error of that batch.

rtol: what ``rtol=0.1`` with at most 200 steps takes: the share of tasks that get there, and gradients a task.

Writes results.json and table.md. Five minutes of one core.
"""

import argparse
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import metaprox as mp
from measures import provenance
from metaprox.comparison import gradient_evaluations
from metaprox.experiments.budgets_settings import TRAININGS
from metaprox.experiments.problems import LOGISTIC_LAM, logistic_loss, logistic_tasks
from metaprox.reports import style

STEPS = ((10, 1), (10, 2), (10, 5), (10, 10), (10, 100), (100, 100), (1000, 1000))
META_STEPS, OUTER_LR, RTOL, MOST = 150, 0.1, 0.1, 200
SOLVER = mp.AdaptiveGradientDescent()
Point = tuple[mp.ProximalProblem, dict[str, torch.Tensor], mp.Task]


def network(name: str, seed: int, *, trained: bool) -> Point:
    """A problem, weights, and tasks that training does not see."""
    training = TRAININGS[name]
    problem = mp.ProximalProblem.from_module(training.model(seed), training.loss, training.lam)
    live = problem.live_parameters()
    meta = mp.FOBMAML(SOLVER, 10, perturb="center", branch_steps=5)
    optimizer = mp.optim.NormalizedSGD(live.values(), lr=OUTER_LR)
    count = training.meta_batch
    for step in range(META_STEPS * trained):
        optimizer.zero_grad()
        meta.backward(problem, training.family.batch(range(count * step, count * (step + 1))))
        optimizer.step()
    unseen = training.family.of_split("validation").batch(range(count))
    return problem, {key: value.detach().clone() for key, value in live.items()}, unseen


def logistic(seed: int) -> Point:
    problem = mp.ProximalProblem(logistic_loss, logistic_loss, LOGISTIC_LAM)
    return problem, {"w": torch.zeros(20, dtype=torch.float64)}, logistic_tasks(seed)


POINTS: dict[str, Callable[[int], Point]] = {"logistic regression": logistic}
for _name in TRAININGS:
    POINTS[_name] = lambda seed, name=_name: network(name, seed, trained=False)
    POINTS[f"{_name}, trained"] = lambda seed, name=_name: network(name, seed, trained=True)


def row(point: Point, steps: int, branch_steps: int, rtol: float | None = None) -> dict[str, Any]:
    """What g says of itself, medians over tasks, and what it took."""
    problem, params, tasks = point
    meta = mp.FOBMAML(SOLVER, steps, perturb="center", branch_steps=branch_steps, rtol=rtol)
    out = meta(problem, params, tasks)
    count, info = len(out.query_loss), out.info
    parts = {"error": info.relative_error, "branch": info.branch_error, "base": info.base_error}
    return {
        "K": steps,
        "J": branch_steps,
        "rtol": rtol,
        "gradients": round(gradient_evaluations(info.counts) / count, 1),
        **{name: float(part.median()) for name, part in parts.items()},
        "sampling_error": float(info.sampling_error),
        "reached": float(info.converged.double().mean()) if rtol else None,
    }


def rows(name: str, seed: int) -> list[dict[str, Any]]:
    point = POINTS[name](seed)
    found = [row(point, *steps) for steps in STEPS] + [row(point, MOST, MOST, RTOL)]
    return [{"problem": name} | one for one in found]


def table(found: list[dict[str, Any]]) -> str:
    """Markdown: the errors, a row for each problem, a column for each K and J; then what rtol takes."""
    lines = []
    for name in dict.fromkeys(one["problem"] for one in found):
        own = [one for one in found if one["problem"] == name]
        fixed, asked = [one for one in own if one["rtol"] is None], next(one for one in own if one["rtol"])
        noise = f"{fixed[3]['sampling_error']:.2f}"
        took = f"{100 * asked['reached']:.0f} %, {asked['gradients']:g}"
        lines.append([name, *(f"{one['error']:.2g}" for one in fixed), noise, took])
    heads = [f"K = {steps}, J = {branch_steps}" for steps, branch_steps in STEPS]
    return style.markdown(["relative error", *heads, "sampling error", f"rtol={RTOL}: reached, gradients"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", mp.HealthWarning)
    found = []
    for name in POINTS:
        found += rows(name, given.seed)
        print(table(found).splitlines()[-1], flush=True)
    given.out.mkdir(parents=True, exist_ok=True)
    raw = {"provenance": provenance(), "seed": given.seed, "rows": found}
    (given.out / "results.json").write_text(json.dumps(raw, indent=1) + "\n")
    (given.out / "table.md").write_text(table(found))


if __name__ == "__main__":
    main()
