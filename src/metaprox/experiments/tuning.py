"""Which settings suit each method on MNIST-1D? The same grid for all, judged on validation classes.

Every method of ``metaprox compare`` meta-trains with every pair of a proximal weight lam and a length of the outer step
(normalized SGD, decayed linearly to 0), K = 10 inner steps of 0.1, 400 meta-steps of 16 tasks (quick: 10, of two
candidates), from the seed 10 plus the seed given, which no other experiment uses. Finite differences take nu = 0.1 or
eps = 1, the defaults of the family. A setting is judged by its accuracy on 400 tasks of the validation classes; neither
the test digits nor their tasks are looked at. The tangent estimator takes the settings of FO-B-MAML, whose limit it is.
The best settings of each method are in expected/mnist1d-variants.json, from where the accuracy experiment takes them; a
check compares. One run for each core at once; takes about 40 minutes on one core (quick: one).
"""

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from importlib import resources
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from metaprox.errors import NonFiniteError
from metaprox.experiments.base import Experiment, Remember, Size
from metaprox.training import TrainConfig, style, train
from metaprox.training.methods import PRESETS

LABELS = [label for label in PRESETS if label != "tangent"]
LAMS, LENGTHS = (0.1, 0.5), (0.1, 0.2, 0.4)
CANDIDATES = [{"lam": lam, "lr": lr} for lam, lr in product(LAMS, LENGTHS)]


def run(size: Size, seed: int, remember: Remember) -> dict[str, Any]:
    meta_steps, candidates = (400, CANDIDATES) if size == "full" else (10, CANDIDATES[:2])
    rows = []
    for candidate in candidates:
        part = "_".join(map(str, candidate.values()))
        found = remember(part, partial(_every_method, candidate, meta_steps, 10 + seed))
        rows += [{"method": label, **candidate, "validation_accuracy": found[label]} for label in LABELS]
    return {"meta_steps": meta_steps, "rows": rows}


def _every_method(candidate: dict[str, Any], meta_steps: int, seed: int) -> dict[str, float]:
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        runs = {label: pool.submit(_validation_accuracy, label, candidate, meta_steps, seed) for label in LABELS}
        return {label: found.result() for label, found in runs.items()}


def _validation_accuracy(label: str, candidate: dict[str, Any], meta_steps: int, seed: int) -> float:
    shared = TrainConfig(tasks="mnist1d", seed=seed, meta_steps=meta_steps, eval_tasks=400)
    return validation_accuracy(shared.variant(PRESETS[label] | candidate))


def validation_accuracy(config: TrainConfig) -> float:
    """On ``config.eval_tasks`` tasks of the validation classes at the end of a run; 0 for a run that diverged."""
    meta_steps = config.resolved().meta_steps
    assert meta_steps is not None  # resolved
    config = replace(config, eval_split="validation", eval_every=meta_steps, test_tasks=1, checkpoint_every=meta_steps)
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = train(config, Path(folder) / "run")
        except NonFiniteError:
            return 0.0
        (found,) = [record for record in done.read_metrics() if record.get("split") == "validation"]
    return float(found["accuracy"]["mean"])


def chosen() -> dict[str, dict[str, Any]]:
    """The best settings of each method, as ``metaprox compare --variants`` takes them."""
    file = resources.files("metaprox.experiments").joinpath("expected", "mnist1d-variants.json")
    variants: dict[str, dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    return variants


def best(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The same from the raw numbers of a search."""
    top = best_candidates(results["rows"], list(CANDIDATES[0]))
    return {label: PRESETS[label] | top["fobmaml" if label == "tangent" else label] for label in PRESETS}


def best_candidates(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """method -> the settings ``names`` of the row with its highest validation accuracy; of equal ones, the last."""
    ordered = sorted(rows, key=lambda row: row["validation_accuracy"])
    return {row["method"]: {name: row[name] for name in names} for row in ordered}


def draw(results: dict[str, Any]) -> dict[str, Figure]:
    """Validation accuracy against the length of the outer step, a panel for each lam."""
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    styles = style.method_styles(LABELS)
    panels = figure.subplots(1, len(LAMS), sharey=True)
    for axes, lam in zip(panels, LAMS, strict=True):
        for label in LABELS:
            rows = [row for row in results["rows"] if row["method"] == label and row["lam"] == lam]
            accuracies = [100 * row["validation_accuracy"] for row in rows]
            axes.plot([row["lr"] for row in rows], accuracies, label=style.method_name(label), **styles[label])
        axes.set_xscale("log")
        axes.set_xticks(LENGTHS, [str(length) for length in LENGTHS])
        axes.minorticks_off()
        axes.set_xlabel("length of the outer step")
        style.tidy(axes, f"lam = {lam}")
    panels[0].set_ylabel("accuracy on validation tasks, %")
    panels[-1].legend(frameon=False, fontsize="small", bbox_to_anchor=(1, 1), loc="upper left")
    figure.suptitle(f"What suits each method on MNIST-1D, after {results['meta_steps']} meta-steps", x=0.01, ha="left")
    return {"tuning": figure}


def measure(results: dict[str, Any]) -> dict[str, float]:
    top = max(row["validation_accuracy"] for row in results["rows"])
    if results["size"] == "quick":
        return {"best accuracy on validation tasks": top}
    found = best(results)
    differing = sum(found[label] != variant for label, variant in chosen().items())
    return {
        "best accuracy on validation tasks": top,
        "methods whose best settings are not those of the accuracy experiment": float(differing),
    }


CLAIM = "Each method gets the settings that suit it, from the same grid, on validation classes"
EXPERIMENT = Experiment("mnist1d-tuning", CLAIM, run, draw, measure)
