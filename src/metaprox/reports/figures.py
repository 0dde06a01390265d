"""Figures of a run: the learning curve, the health of the inner solves and, where there is one, a task."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor
from torch.func import functional_call
from torch.utils import _pytree as pytree

from metaprox.data.task import Task
from metaprox.evaluation import adapt
from metaprox.reports import style
from metaprox.tasks.pictures import AFTER as VALIDATION
from metaprox.tasks.pictures import GIVEN as TRAIN
from metaprox.training import RunFolder, Trainer


def draw(folder: RunFolder, records: list[dict[str, Any]], trainer: Trainer | None) -> dict[str, Path]:
    """Write every figure of the run as PNG.

    ``trainer``: with the weights before meta-training, for the picture of a task; it gets those after.

    Returns:
        Caption -> file.
    """
    figures: dict[str, tuple[str, Figure | None]] = {
        "Learning curve": ("learning_curve.png", _learning_curve(records)),
        "Health of the inner solves": ("inner_solves.png", _inner_solves(records)),
    }
    if trainer is not None and trainer.picture is not None:
        figures[trainer.picture.title] = ("adaptation.png", _adaptation(folder, trainer))
    paths = {}
    for caption, (name, figure) in figures.items():
        if figure is not None:
            paths[caption] = folder.figure(name)
            style.save(figure, paths[caption])
    return paths


def _learning_curve(records: list[dict[str, Any]]) -> Figure:
    steps = [r for r in records if r["kind"] == "step"]
    held_out = [r for r in records if r["kind"] == "evaluation" and r["step"] > 0][:-1]  # the last is the final table's
    name, label = ("accuracy", "accuracy") if "accuracy" in steps[0] else ("loss", "loss")
    figure, axes = style.canvas(f"Query {label} after adaptation, while meta-training")
    axes.plot(
        [r["step"] for r in steps],
        _smooth([r[name] for r in steps]),
        color=TRAIN,
        label="training tasks (mean of 25 steps)",
    )
    axes.errorbar(
        [r["step"] for r in held_out],
        [r[name]["mean"] for r in held_out],
        [_half_width(r[name]) for r in held_out],
        color=VALIDATION,
        marker="o",
        markersize=3,
        capsize=2,
        label=f"{held_out[0]['split']} tasks (n = {held_out[0][name]['n']}, 95 % interval over tasks)",
    )
    axes.set_xlabel("meta-steps")
    axes.set_ylabel(label)
    if name == "loss":
        style.loss_scale(axes, [*(r[name] for r in steps), *(r[name]["mean"] for r in held_out)])
    axes.legend(frameon=False)
    return figure


PANELS = {
    "base_residual": ("residual ||∇(f̂ + prox)(y₀)||", "Base residual"),
    "gradient_ratio": ("||gᵢ|| / ||vᵢ||", "Meta-gradient against query gradient"),
    "relative_error": ("estimated error / ||gᵢ||, at most 1", "Error of the meta-gradient, by its own estimate"),
}


def _inner_solves(records: list[dict[str, Any]]) -> Figure | None:
    """Residual and ratio of each meta-step, where the method knows them."""
    steps = [r for r in records if r["kind"] == "step"]
    known = [name for name in PANELS if f"{name}_median" in steps[0]]
    if not known:
        return None
    figure = Figure(figsize=(4.5 * len(known), 3.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(known), squeeze=False)[0], known, strict=True):
        for suffix, color in (("worst", TRAIN), ("median", VALIDATION)):
            axes.plot(
                [r["step"] for r in steps],
                _smooth([r[f"{name}_{suffix}"] for r in steps]),
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


def _adaptation(folder: RunFolder, trainer: Trainer) -> Figure:
    """The first test task, adapted to from the initial and from the meta-learned weights."""
    assert trainer.picture is not None
    first = trainer.batch("test", [0])
    task = pytree.tree_map(lambda leaf: leaf[0], first) if isinstance(first, Task) else first[0]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, title in ((left, "From random weights"), (right, "From meta-learned weights")):
        if axes is right:
            trainer.load_weights(folder)
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


def _smooth(values: Sequence[float], window: int = 25) -> list[float]:
    """Mean over the last ``window`` values, or over what there is of them."""
    parts = (values[max(0, i + 1 - window) : i + 1] for i in range(len(values)))
    return [sum(part) / len(part) for part in parts]


def _half_width(statistic: dict[str, float]) -> float:
    return 0.0 if math.isnan(statistic["ci95"]) else statistic["ci95"]
