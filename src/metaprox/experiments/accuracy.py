"""Accuracy on unseen classes: all methods on the same MNIST-1D tasks, with equal inner and outer steps.

5-way 5-shot on the ten digits, which meta-training does not see; MLP 40-128-128-5, K = 10 inner steps of 0.1, 400
meta-steps of 16 tasks (quick: 100, four methods, one seed), seeds 0, 1, 2, counted from the seed given; 600 test tasks
a seed. lam and the outer step of each method are the best of the same grid on validation classes (experiment
mnist1d-tuning, of the same length). This is ``metaprox compare`` with ``--variants expected/mnist1d-variants.json``;
the runs stay in a folder, so that a stopped comparison goes on. One run for each core at once; takes about half an hour
on one core (quick: two minutes).
"""

import os
from typing import Any

from matplotlib.figure import Figure

from metaprox.experiments import tuning
from metaprox.experiments.base import Experiment, Remember, Size
from metaprox.training import Plan, TrainConfig, compare, comparison_table, legend, style
from metaprox.training.comparison import report

QUICK = ("fobmaml", "maml", "fomaml", "reptile")


def run(size: Size, seed: int, remember: Remember) -> dict[str, Any]:
    shared = TrainConfig(tasks="mnist1d", eval_split="test", meta_steps=400, eval_every=50)
    variants, seeds = tuning.chosen(), range(seed, seed + 3)
    if size == "quick":
        shared = TrainConfig(tasks="mnist1d", eval_split="test", meta_steps=100, eval_every=50, eval_tasks=100)
        variants, seeds = {label: variants[label] for label in QUICK}, range(seed, seed + 1)
    plan = Plan.of(shared, variants, seeds, "steps")
    return compare(plan, remember.folder / f"runs_{size}", jobs=os.cpu_count() or 1)


def draw(results: dict[str, Any]) -> dict[str, Figure]:
    return {"accuracy": report.draw(results)}


def table(results: dict[str, Any]) -> str:
    return f"{report.markdown(comparison_table(results))}\n{legend(results)}\n"


def measure(results: dict[str, Any]) -> dict[str, float]:
    """Accuracies and paired differences to FO-B-MAML, in percent."""
    numbers = {"accuracy of FO-B-MAML": 100 * results["methods"]["fobmaml"]["test"]["mean"]}
    for label in ("maml", "fomaml", "reptile"):
        difference = results["methods"][label]["minus_first"]["all"]
        name = f"{style.method_name(label)} minus FO-B-MAML"
        numbers[f"{name}, upper end of the paired interval"] = 100 * (difference["mean"] + difference["ci95"])
    return numbers


CLAIM = "On unseen classes FO-B-MAML is at least as accurate as MAML, and more accurate than FO-MAML and Reptile"
EXPERIMENT = Experiment("accuracy", CLAIM, run, draw, measure, table)
