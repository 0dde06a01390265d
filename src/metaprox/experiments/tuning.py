"""Which settings suit each method on MNIST-1D? The same search for all, judged on validation classes.

Every method gets the same budget of successive halving (search.py): 24 candidates are judged after 50 meta-steps of 16
tasks, the best 6 after 150, the best 2 after all 400 (quick: 3 after 2, 1 after 4), which is 2300 meta-steps a method.
They are the same points of the unit cube for every method. Tuned are the inner step, lam, the outer optimizer
(normalized SGD or Adam) and its step, the inner steps K, and what is a method's own: nu or eps of FO-B-MAML, the
conjugate gradients of iMAML. MAML, FO-MAML and Reptile may do without the proximal term.

iMAML assumes that inner problems are solved: its K is 10, 20 or 40, that of the others 5, 10 or 20. Reptile is as its
authors run it (Nichol et al., arXiv 1803.02999): Adam with beta1 = 0 inside, on mini-batches, interpolation with a step
decayed to 0 outside, and as many support examples in training as the others see in support and query together; its K is
10, 20 or 40. Unlike theirs, its Adam starts afresh for each task, and the test takes the same K as training.

Seed 10 plus the seed given, which no other experiment uses. A candidate is judged by its accuracy on 300 tasks of the
validation classes; neither the test digits nor their tasks are looked at; one that diverges has accuracy 0. One method
for each core at once; takes half an hour on one core (quick: one minute).
"""

import json
import os
from concurrent.futures import ProcessPoolExecutor
from importlib import resources
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from metaprox.experiments.base import Experiment, Remember, Size
from metaprox.experiments.search import Halving, Row, Space, accuracy, best
from metaprox.reports import style
from metaprox.training import PRESETS, Settings

REPTILE = PRESETS["reptile"] | {"solver": "adam0", "train_shots": 20}
SPACES = {
    "fobmaml": Space(PRESETS["fobmaml"], own={"eps": (0.2, 3.0)}),
    "fobmaml-loss": Space(PRESETS["fobmaml-loss"], own={"nu": (0.02, 0.5)}),
    "maml": Space(PRESETS["maml"], no_lam=True),
    "imaml": Space(PRESETS["imaml"], steps=(10, 20, 40), own={"cg_steps": (5, 10)}),
    "fomaml": Space(PRESETS["fomaml"], no_lam=True),
    "reptile": Space(
        REPTILE,
        inner_lr=(1e-3, 5e-2),
        no_lam=True,
        steps=(10, 20, 40),
        outer={"sgd": (0.2, 2.0)},
        own={"inner_batch": (5, 10, 25)},
    ),
}
SEARCH = {"full": Halving((24, 6, 2), (50, 150, 400)), "quick": Halving((3, 1), (2, 4))}

SHARED = Settings("mnist1d", eval_tasks=300)
AXES = {"inner_lr": "inner step", "lam": "lam", "lr": "outer step"}


def run(size: Size, seed: int, remember: Remember) -> dict[str, Any]:
    halving, shared = SEARCH[size], SHARED.but(seed=10 + seed)
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        searches = [pool.submit(halving.search, label, space, shared, remember) for label, space in SPACES.items()]
        rows = [row for search in searches for row in search.result()]
    return {"rungs": halving.rungs, "meta_steps_of_a_method": halving.meta_steps(), "rows": rows}


def chosen(results: Path | None = None) -> dict[str, dict[str, Any]]:
    """Returns the best settings of each method, as ``metaprox compare --variants`` takes them.

    From the results.json of a whole search where there is one at ``results``; else those that come with the package.
    """
    if results and results.is_file():
        found = json.loads(results.read_text(encoding="utf-8"))
        if found["size"] == "full":
            return best_settings(found)
    file = resources.files("metaprox.experiments").joinpath("expected", "mnist1d-variants.json")
    variants: dict[str, dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    return variants


def best_settings(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The same from the raw numbers of a search."""
    return {label: best(_of(results, label), 1)[0]["settings"] for label in SPACES}


def _of(results: dict[str, Any], label: str) -> list[Row]:
    return [row for row in results["rows"] if row["method"] == label]


def draw(results: dict[str, Any]) -> dict[str, Figure]:
    """Validation accuracy of every candidate against its inner step, lam and outer step, a row for each method."""
    figure = Figure(figsize=(10, 2.1 * len(SPACES)), layout="constrained")
    grid = figure.subplots(len(SPACES), len(AXES), sharey=True, squeeze=False)
    for row_of_axes, label in zip(grid, SPACES, strict=True):
        for axes, name in zip(row_of_axes, AXES, strict=True):
            _scatter(axes, _of(results, label), name, style.method_styles([label])[label]["color"])
            axes.set_xlabel(AXES[name], fontsize="small")
            style.tidy(axes, style.method_name(label) if name == "inner_lr" else "")
        row_of_axes[0].set_ylabel("accuracy, %", fontsize="small")
    rungs = ", ".join(map(str, results["rungs"]))
    title = f"Accuracy on validation tasks where each candidate stopped, after {rungs} meta-steps (small to large dots)"
    figure.suptitle(title, x=0.01, ha="left", fontsize="medium")
    return {"tuning": figure}


def _scatter(axes: Axes, rows: list[Row], name: str, color: str) -> None:
    """lam = 0 and divergence are left out; both are in the raw numbers."""
    shown = [row for row in rows if row["settings"][name] > 0 and accuracy(row) > 0]
    values, heights = [row["settings"][name] for row in shown], [100 * accuracy(row) for row in shown]
    axes.scatter(values, heights, [12 * 3 ** (len(row["rungs"]) - 1) for row in shown], color, alpha=0.7, clip_on=False)
    axes.set_xscale("log")
    axes.xaxis.set_minor_formatter(NullFormatter())


def table(results: dict[str, Any]) -> str:
    """What was chosen, and what the search for it took; Markdown."""
    lines = []
    for label, settings in best_settings(results).items():
        rows = _of(results, label)
        own = ", ".join(
            f"{name} {settings[name]}" for name in ("nu", "eps", "cg_steps", "inner_batch") if name in settings
        )
        outer = f"{settings['optimizer']} {settings['lr']:g}"
        took = [
            sum(row["rungs"][-1][name] for row in rows) for name in ("meta_steps", "gradient_evaluations", "seconds")
        ]
        lines.append(
            [
                style.method_name(label),
                f"{100 * accuracy(best(rows, 1)[0]):.1f} %",
                f"{settings['inner_lr']:g}",
                f"{settings['lam']:g}",
                str(settings["steps"]),
                outer,
                own,
                str(sum(accuracy(row) == 0 for row in rows)),
                str(took[0]),
                f"{took[1] / 1e6:.2f}",
            ]
        )
    return style.markdown(COLUMNS, lines)


OWN = ("nu", "eps", "cg_steps", "inner_batch")
COST = ("meta_steps", "gradient_evaluations")
COLUMNS = [
    "method",
    "validation",
    "inner step",
    "lam",
    "K",
    "outer step",
    "its own",
    "diverged",
    "meta-steps",
    "million gradients",
]


def measure(results: dict[str, Any]) -> dict[str, float]:
    """Of the best candidate of each method."""
    accuracies = [accuracy(best(_of(results, label), 1)[0]) for label in SPACES]
    return {
        "best accuracy on validation tasks": max(accuracies),
        "accuracy of the method that does worst at its best": min(accuracies),
    }


CLAIM = "Each method gets the settings that suit it, from a search of the same budget, on validation classes"
EXPERIMENT = Experiment("mnist1d-tuning", CLAIM, run, draw, measure, table)
