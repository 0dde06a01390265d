"""Figures of a run: the learning curve, the health of the inner solves and, where there is one, a task."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor
from torch.func import functional_call
from torch.utils import _pytree as pytree

from metaprox.data.task import Task
from metaprox.evaluation import adapt
from metaprox.reports import style
from metaprox.reports.view import RunView
from metaprox.tasks.pictures import AFTER as VALIDATION
from metaprox.tasks.pictures import GIVEN as TRAIN
from metaprox.training import Trainer, weights


@dataclass(frozen=True)
class Drawn:
    """A figure of a run: its file, its title, and what it is in a healthy run."""

    file: str
    title: str
    figure: Figure
    note: str


def draw(run: RunView, trainer: Trainer | None) -> list[Drawn]:
    """Returns every figure that there is something to draw for.

    ``trainer``: with the weights before meta-training, for the picture of a task; it gets those after.
    """
    found = []
    if run.steps:
        found.append(Drawn("learning_curve.png", "Learning curve", _learning_curve(run), LEARNING))
    if known := [name for name in PANELS if run.steps and f"{name}_median" in run.steps[0]]:
        note = " ".join(f"{PANELS[name][1]}: {PANELS[name][2]}." for name in known)
        found.append(Drawn("inner_solves.png", "Health of the inner solves", _inner_solves(run.steps, known), note))
    if run.finished and trainer is not None and trainer.picture is not None:
        figure = _adaptation(run, trainer)
        found.append(Drawn("adaptation.png", trainer.picture.title, figure, PICTURE))
    return found


LEARNING = (
    "Healthy: both curves go on getting better, or are level; unseen tasks stay behind training tasks by a gap that "
    "does not widen. Where they get worse while training tasks get better, the weights fit the training tasks alone."
)
PICTURE = (
    "Healthy: after adaptation the model fits the query, from the meta-learned weights better than from random ones."
)


def _learning_curve(run: RunView) -> Figure:
    name, curves = run.metric, run.curves["step"]
    figure, axes = style.canvas(f"Query {name} after adaptation, while meta-training")
    axes.plot(curves.at, curves.training, color=TRAIN, label="training tasks (mean of 25 steps)")
    if during := run.during:
        axes.errorbar(
            [r["step"] for r in during],
            [r[name]["mean"] for r in during],
            [_half_width(r[name]) for r in during],
            color=VALIDATION,
            marker="o",
            markersize=3,
            capsize=2,
            label=f"{during[0]['split']} tasks (n = {during[0][name]['n']}, 95 % interval over tasks)",
        )
    axes.set_xlabel("meta-steps")
    axes.set_ylabel(name)
    if name == "loss":
        style.loss_scale(axes, [*(r[name] for r in run.steps), *curves.evaluated])
    axes.legend(frameon=False)
    return figure


PANELS = {
    "base_residual": ("residual ||∇(f̂ + prox)(y₀)||", "Base residual", "healthy where it does not grow to a multiple"),
    "gradient_ratio": (
        "||gᵢ|| / ||vᵢ||",
        "Meta-gradient against query gradient",
        "healthy below 1, the worst task too but for moments",
    ),
    "relative_error": (
        "estimated error / ||gᵢ||, at most 1",
        "Error of the meta-gradient, by its own estimate",
        "healthy below 0.95; 0.7 to 0.9 is usual for networks that adapt in a few steps",
    ),
}


def _inner_solves(steps: Sequence[dict[str, Any]], known: Sequence[str]) -> Figure:
    """Residual, ratio and error of each meta-step, as far as the method knows them."""
    figure = Figure(figsize=(4.5 * len(known), 3.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(known), squeeze=False)[0], known, strict=True):
        for suffix, color in (("worst", TRAIN), ("median", VALIDATION)):
            axes.plot(
                [r["step"] for r in steps],
                style.smooth([r[f"{name}_{suffix}"] for r in steps]),
                color=color,
                label=f"{suffix} task",
            )
        if name == "gradient_ratio":
            axes.axhline(1.0, color="black", linewidth=0.8, linestyle=":", label="limit for convex inner losses")
        if any(r[f"{name}_worst"] > 0 for r in steps):
            style.log_scale(axes)
        axes.set_xlabel("meta-steps")
        axes.set_ylabel(PANELS[name][0])
        axes.legend(frameon=False)
        style.tidy(axes, PANELS[name][1])
    return figure


def _adaptation(run: RunView, trainer: Trainer) -> Figure:
    """The first test task, adapted to from the initial and from the meta-learned weights."""
    assert trainer.picture is not None
    first = trainer.batch("test", [0])
    task = pytree.tree_map(lambda leaf: leaf[0], first) if isinstance(first, Task) else first[0]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, title in ((left, "From random weights"), (right, "From meta-learned weights")):
        if axes is right and run.weights is not None:  # which were looked at
            weights.load_into(trainer.model, run.weights, run.folder.weights)
        elif axes is right:
            trainer.load_weights(run.folder)
        before, after = _predictors(trainer, task)
        trainer.picture.draw(axes, task, before, after)
        axes.label_outer()
        style.tidy(axes, title)
    if right.get_legend_handles_labels()[0]:
        right.legend(frameon=False, fontsize="small")
    return figure


def _predictors(trainer: Trainer, task: Task) -> tuple[Callable[[Any], Tensor], Callable[[Any], Tensor]]:
    """The model before and after adaptation to ``task``, as functions of inputs."""
    one, problem = trainer.estimator, trainer.evaluated or trainer.problem
    y = adapt(problem, task.support, one.solver, one.steps, tol=one.tol, max_steps=one.max_steps)
    x = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if name in y}
    model = trainer.model
    before = lambda inputs: functional_call(model, x, (inputs,)).detach()  # noqa: E731
    after = lambda inputs: functional_call(model, y, (inputs,)).detach()  # noqa: E731
    return before, after


def _half_width(statistic: dict[str, float]) -> float:
    return 0.0 if math.isnan(statistic["ci95"]) else statistic["ci95"]
