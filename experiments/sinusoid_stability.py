"""Does meta-training survive an inner step of 0.05? Fixed steps of 0.05 and 0.01 against steps adapted per task.

Sinusoid regression, MLP 1-40-40-1, 10 shots, K = 10 inner steps, lam = 0.5, FO-B-MAML symmetric with nu = 0.05,
normalized SGD with momentum 0.9 and a step of 0.1 decayed linearly to 0 over 4000 meta-steps of 25 tasks. Judged by
the query error after 10 inner steps on 1000 unseen waves, the same for all. Writes results.json, the log of each
run, and a figure. About a quarter of an hour on one core.
"""

import argparse
import json
from pathlib import Path

import torch
from matplotlib.figure import Figure

import metaprox as mp
from metaprox.models import mean_squared_error, mlp
from metaprox.tasks import Sinusoid

torch.set_num_threads(1)
STEPS, BATCH, INNER_STEPS, SEED = 4000, 25, 10, 0
RUNS = {
    "fixed 0.05": mp.GradientDescent(0.05),
    "fixed 0.01": mp.GradientDescent(0.01),
    "adaptive 0.05": mp.AdaptiveGradientDescent(0.05),
}
COLORS = {"fixed 0.05": "#c2571a", "fixed 0.01": "#9aa5b1", "adaptive 0.05": "#0b6e99"}


def run(name: str, solver: mp.InnerSolver, meta_steps: int, log: Path) -> dict[str, object]:
    """Meta-train with one inner solver until the end or until it dies; the loss of every meta-step goes to ``log``."""
    model = mlp([1, 40, 40, 1], SEED)
    problem = mp.ProximalProblem.from_module(model, mean_squared_error, lam=0.5)
    meta = mp.FOBMAML(solver, steps=INNER_STEPS, nu=0.05)
    optimizer = mp.optim.NormalizedSGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, meta_steps)
    tasks = Sinusoid(seed=SEED)
    result: dict[str, object] = {"solver": repr(solver), "meta_steps": meta_steps, "died": None, "test": None}
    with log.open("w") as file:
        for step in range(meta_steps):
            optimizer.zero_grad()
            try:
                out = meta.backward(problem, tasks.batch(range(BATCH * step, BATCH * (step + 1))))
            except mp.NonFiniteError as error:
                result["died"] = {
                    "meta_step": step + 1,
                    "task": error.task,
                    "inner_step": error.step,
                    "message": str(error),
                }
                print(f"{name}: died at meta-step {step + 1}: {error}", flush=True)
                return result
            optimizer.step()
            schedule.step()
            file.write(
                json.dumps({"step": step + 1, "loss": float(out.query_loss.mean()), **out.info.summary()}) + "\n"
            )
    test = mp.evaluate(problem, Sinusoid(seed=SEED, split="test").batch, range(1000), solver, INNER_STEPS).loss
    result["test"] = {"mean": test.mean, "ci95": test.ci95, "n": test.n}
    print(f"{name}: test error {test}", flush=True)
    return result


def draw(results: dict[str, dict[str, object]], out: Path) -> None:
    """Training error against meta-steps; a cross where a run died."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name in results:
        losses = [
            json.loads(line)["loss"] for line in (out / f"{name.replace(' ', '_')}.jsonl").read_text().splitlines()
        ]
        smooth = [sum(losses[max(0, i - 49) : i + 1]) / len(losses[max(0, i - 49) : i + 1]) for i in range(len(losses))]
        axes.plot(range(1, len(losses) + 1), smooth, color=COLORS[name], label=name)
        if results[name]["died"]:
            axes.plot(len(losses), smooth[-1], "x", color=COLORS[name], markersize=10, markeredgewidth=3)
            axes.annotate(
                "died", (len(losses), smooth[-1]), xytext=(12, -3), textcoords="offset points", color=COLORS[name]
            )
    axes.set_yscale("log")
    axes.set_xlabel("meta-steps")
    axes.set_ylabel("query error after 10 inner steps (mean of 50 meta-steps)")
    axes.set_title("A step adapted per task survives where a fixed one diverges", loc="left", fontsize="medium")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, title="inner step")
    figure.savefig(out / "sinusoid_stability.png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for results.json, the logs and the figure")
    parser.add_argument("--meta-steps", type=int, default=STEPS, help="meta-steps of each run (default: %(default)s)")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = {
        name: run(name, solver, arguments.meta_steps, arguments.out / f"{name.replace(' ', '_')}.jsonl")
        for name, solver in RUNS.items()
    }
    (arguments.out / "results.json").write_text(
        json.dumps({"seed": SEED, "torch": torch.__version__, "runs": results}, indent=2) + "\n"
    )
    draw(results, arguments.out)


if __name__ == "__main__":
    main()
