"""Does meta-training survive an inner step of 0.05? Fixed steps of 0.05 and 0.01 against steps adapted per task.

Sinusoid regression, MLP 1-40-40-1, 10 shots, K = 10 inner steps, lam = 0.5, FO-B-MAML symmetric with nu = 0.05,
normalized SGD with momentum 0.9 and a step of 0.1 decayed linearly to 0 over 4000 meta-steps of 25 tasks. Judged by
the query error after 10 inner steps on 1000 unseen waves, the same for all. Writes results.json, a log of each run
(means of 10 meta-steps) and a figure. Takes about 15 minutes on one core.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

import metaprox as mp
from metaprox.models import mean_squared_error, mlp
from metaprox.tasks import Sinusoid

torch.set_num_threads(1)
BATCH, INNER_STEPS, LOGGED = 25, 10, 10
SOLVERS = {
    "fixed 0.05": mp.GradientDescent(0.05),
    "fixed 0.01": mp.GradientDescent(0.01),
    "adaptive 0.05": mp.AdaptiveGradientDescent(0.05),
}
CROSS: dict[str, Any] = {"markersize": 9, "markeredgewidth": 3, "zorder": 3}
COLORS = {"fixed 0.05": "#c2571a", "fixed 0.01": "#9aa5b1", "adaptive 0.05": "#0b6e99"}


def run(name: str, seed: int, meta_steps: int) -> dict[str, Any]:
    """Meta-train with one inner solver until the end, or until it dies."""
    solver = SOLVERS[name]
    model = mlp([1, 40, 40, 1], seed)
    problem = mp.ProximalProblem.from_module(model, mean_squared_error, lam=0.5)
    meta = mp.FOBMAML(solver, steps=INNER_STEPS, nu=0.05)
    optimizer = mp.optim.NormalizedSGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, meta_steps)
    tasks = Sinusoid(seed=seed)
    result: dict[str, Any] = {"name": name, "seed": seed, "died": None, "test": None, "errors": None, "log": []}
    rows = []
    for step in range(meta_steps):
        optimizer.zero_grad()
        try:
            out = meta.backward(problem, tasks.batch(range(BATCH * step, BATCH * (step + 1))))
        except mp.NonFiniteError as error:
            print(f"seed {seed}, {name}: died at meta-step {step + 1}: {error}", flush=True)
            return result | {"died": {"meta_step": step + 1, "task": error.task, "message": str(error)}}
        optimizer.step()
        schedule.step()
        rows.append({"loss": float(out.query_loss.mean()), **out.info.summary()})
        if len(rows) == LOGGED:
            means = {key: float(f"{sum(row[key] for row in rows) / LOGGED:.5g}") for key in rows[0]}
            result["log"].append({"step": step + 1} | means)
            rows.clear()
    test = mp.evaluate(problem, Sinusoid(seed=seed, split="test").batch, range(1000), solver, INNER_STEPS)
    print(f"seed {seed}, {name}: test error {test.loss}", flush=True)
    return result | {"test": describe(test.loss), "errors": test.values["loss"]}


def describe(statistic: mp.Statistic) -> dict[str, float]:
    return {"mean": statistic.mean, "ci95": statistic.ci95, "n": statistic.n}


def draw(out: Path) -> None:
    """Training error against meta-steps from the files in ``out``: a line for each run, a cross where it died."""
    runs = json.loads((out / "results.json").read_text())["runs"]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for one in runs:
        rows = [json.loads(line) for line in log_file(out, one).read_text().splitlines()]
        losses = [row["loss"] for row in rows] or [4.0]
        smooth = [sum(losses[max(0, i - 9) : i + 1]) / len(losses[max(0, i - 9) : i + 1]) for i in range(len(losses))]
        style = {"color": COLORS[one["name"]], "label": one["name"] if one["seed"] == runs[0]["seed"] else None}
        if rows:
            axes.plot([row["step"] for row in rows], smooth, linewidth=1, **style)
        if one["died"]:
            label = None if rows else style["label"]
            axes.plot(one["died"]["meta_step"], smooth[-1], "x", color=style["color"], label=label, **CROSS)
    axes.set_yscale("log")
    axes.set_xlabel("meta-steps")
    axes.set_ylabel("query error after 10 inner steps")
    axes.set_title("A step adapted per task survives where a fixed one dies (x)", loc="left", fontsize="medium")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, title="inner step")
    figure.savefig(out / "sinusoid_stability.png", dpi=120)


def log_file(out: Path, one: dict[str, Any]) -> Path:
    return out / f"{one['name'].replace(' ', '_')}_seed_{one['seed']}.jsonl"


def write(runs: list[dict[str, Any]], meta_steps: int, out: Path) -> None:
    """The log of each run, and results.json with differences to the fixed step of 0.01 on the same test tasks."""
    errors = {(one["name"], one["seed"]): one.pop("errors") for one in runs}
    for one in runs:
        log_file(out, one).write_text("".join(json.dumps(row) + "\n" for row in one.pop("log")))
        mine, reference = errors[one["name"], one["seed"]], errors["fixed 0.01", one["seed"]]
        if one["name"] != "fixed 0.01" and mine is not None and reference is not None:
            one["minus_fixed_0.01_on_the_same_tasks"] = describe(mp.Statistic.of(mine - reference))
    text = json.dumps({"meta_steps": meta_steps, "torch": torch.__version__, "runs": runs}, indent=2)
    (out / "results.json").write_text(text + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for results.json, the logs and the figure")
    parser.add_argument("--meta-steps", type=int, default=4000, help="meta-steps of each run (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds (default: 0 1 2)")
    parser.add_argument("--draw-only", action="store_true", help="draw the figure again from the files in the folder")
    arguments = parser.parse_args()
    if not arguments.draw_only:
        arguments.out.mkdir(parents=True, exist_ok=True)
        runs = [run(name, seed, arguments.meta_steps) for seed in arguments.seeds for name in SOLVERS]
        write(runs, arguments.meta_steps, arguments.out)
    draw(arguments.out)


if __name__ == "__main__":
    main()
