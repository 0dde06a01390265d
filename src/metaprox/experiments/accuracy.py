"""Accuracy on unseen classes: all methods on the same MNIST-1D tasks, each with the settings that suit it.

5-way 5-shot on the ten digits, which meta-training does not see; MLP 40-128-128-5, 400 meta-steps of 16 tasks (quick:
20, four methods, two seeds), five seeds of weights and tasks, counted from the seed given; 600 test tasks a seed. The
settings of each method are those that mnist1d-tuning found in the same folder or, where it was not run there, those
that come with the package: expected/mnist1d-variants.json, as ``metaprox compare --variants`` takes them. The runs stay
in a folder, so that a stopped comparison goes on. One run for each core at once; takes half an hour on one core (quick:
two minutes).
"""

import os
from typing import Any

from matplotlib.figure import Figure

from metaprox.comparison import Plan, compare
from metaprox.experiments import tuning
from metaprox.experiments.base import Experiment, Remember, Size
from metaprox.reports import comparison as report
from metaprox.reports import comparison_table, legend, style
from metaprox.training import Settings

QUICK = ("fobmaml", "maml", "fomaml", "reptile")
SEEDS = {"full": 5, "quick": 2}


def run(size: Size, seed: int, remember: Remember) -> dict[str, Any]:
    shared = Settings("mnist1d", eval_split="test", meta_steps=400, eval_every=50)
    variants = tuning.chosen(remember.folder.parent / tuning.EXPERIMENT.name / "results.json")
    if size == "quick":
        shared = Settings("mnist1d", eval_split="test", meta_steps=20, eval_every=10, eval_tasks=100)
        variants = {label: variants[label] for label in QUICK}
    plan = Plan.of(shared, variants, range(seed, seed + SEEDS[size]), "steps")
    return compare(plan, remember.folder / f"runs_{size}", jobs=os.cpu_count() or 1)


def draw(results: dict[str, Any]) -> dict[str, Figure]:
    return {"accuracy": report.draw(results)}


def table(results: dict[str, Any]) -> str:
    return f"{report.markdown(comparison_table(results))}\n{legend(results)}\n"


def measure(results: dict[str, Any]) -> dict[str, float]:
    """Accuracies and differences to FO-B-MAML, paired by seed, in percent."""
    methods = results["methods"]
    numbers = {"accuracy of FO-B-MAML": 100 * methods["fobmaml"]["test"]["mean"]}
    for label in ("maml", "fomaml", "reptile"):
        difference = methods[label]["minus_first"]["all"]
        numbers[f"{style.method_name(label)} minus FO-B-MAML"] = 100 * difference["mean"]
    if results["size"] == "full":
        numbers["half-width of MAML minus FO-B-MAML over seeds"] = (
            100 * methods["maml"]["minus_first"]["all"]["over_seeds"]
        )
    return numbers


CLAIM = "What each method reaches on unseen classes with the settings that suit it, over five seeds of training"
EXPERIMENT = Experiment("accuracy", CLAIM, run, draw, measure, table, after=("mnist1d-tuning",))
