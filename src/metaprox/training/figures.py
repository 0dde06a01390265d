"""Figures of a run: the learning curve, the health of the inner solves and, for sinusoid, an adaptation."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.func import functional_call

from metaprox.evaluation import adapt
from metaprox.training import style
from metaprox.training.folder import RunFolder
from metaprox.training.setup import Setup

TRAIN, VALIDATION, BEFORE, AFTER = "#9aa5b1", "#0b6e99", "#c2571a", "#0b6e99"


def draw(folder: RunFolder, setup: Setup, initial: dict[str, Tensor]) -> dict[str, Path]:
    """Write every figure of the run as PNG; returns caption -> file. ``initial``: weights before meta-training."""
    records = folder.read_metrics()
    folder.figures.mkdir(exist_ok=True)
    figures: dict[str, tuple[str, Figure | None]] = {
        "Learning curve": ("learning_curve.png", _learning_curve(records)),
        "Health of the inner solves": ("inner_solves.png", _inner_solves(records)),
    }
    if setup.config.tasks == "sinusoid":
        figures["Adaptation to an unseen wave"] = ("adaptation.png", _adaptation(setup, initial))
    paths = {}
    for caption, (name, figure) in figures.items():
        if figure is not None:
            paths[caption] = folder.figures / name
            figure.savefig(paths[caption], dpi=120)
    return paths


def _learning_curve(records: list[dict[str, Any]]) -> Figure:
    steps = [r for r in records if r["kind"] == "step"]
    held_out = [r for r in records if r["kind"] == "evaluation"][1:-1]  # the first and the last are the final table's
    name, label = ("accuracy", "accuracy") if "accuracy" in steps[0] else ("loss", "mean squared error")
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
        style.log_scale(axes)
    axes.legend(frameon=False)
    return figure


PANELS = {
    "base_residual": ("residual ||∇(f̂ + prox)(y₀)||", "Base residual"),
    "gradient_ratio": ("||gᵢ|| / ||vᵢ||", "Meta-gradient against query gradient"),
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
        style.log_scale(axes)
        axes.set_xlabel("meta-steps")
        axes.set_ylabel(PANELS[name][0])
        axes.legend(frameon=False)
        style.tidy(axes, PANELS[name][1])
    return figure


def _adaptation(setup: Setup, initial: dict[str, Tensor]) -> Figure:
    """One test task: the predictions before and after K inner steps, from the initial and the meta-learned weights."""
    tasks = setup.batch("test", [0])
    inputs, targets = (leaf[0] for leaf in tasks.support)
    grid = torch.linspace(-5, 5, 200, device=inputs.device, dtype=inputs.dtype)[:, None]
    order = tasks.query[0][0].flatten().argsort()
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    learned = {name: p.detach() for name, p in setup.model.named_parameters()}
    for axes, (title, x) in zip(
        figure.subplots(1, 2, sharey=True),
        (("From random weights", initial), ("From meta-learned weights", learned)),
        strict=True,
    ):
        y = adapt(setup.problem, (inputs, targets), setup.solver, setup.config.steps, params=x)
        predict: Callable[[dict[str, Tensor]], Tensor] = lambda p: functional_call(setup.model, p, (grid,)).detach()  # noqa: E731
        axes.plot(grid.cpu(), predict(x).cpu(), color=BEFORE, linestyle="--", label="before adaptation")
        axes.plot(grid.cpu(), predict(y).cpu(), color=AFTER, label=f"after {setup.config.steps} inner steps")
        axes.plot(
            tasks.query[0][0][order].cpu(),
            tasks.query[1][0][order].cpu(),
            "o",
            color=TRAIN,
            markersize=4,
            label="query",
        )
        axes.plot(inputs.cpu(), targets.cpu(), "x", color="black", label="support")
        axes.set_xlabel("input")
        style.tidy(axes, title)
    figure.axes[0].set_ylabel("output")
    figure.axes[1].legend(frameon=False, fontsize="small")
    return figure


def _smooth(values: Sequence[float], window: int = 25) -> list[float]:
    """Mean over the last ``window`` values, or over what there is of them."""
    parts = (values[max(0, i + 1 - window) : i + 1] for i in range(len(values)))
    return [sum(part) / len(part) for part in parts]


def _half_width(statistic: dict[str, float]) -> float:
    return 0.0 if math.isnan(statistic["ci95"]) else statistic["ci95"]
