"""Figures of a run: the learning curve, the health of the inner solves and, for sinusoid, an adaptation."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from torch import Tensor
from torch.func import functional_call

from metaprox.evaluation import adapt
from metaprox.training.folder import RunFolder
from metaprox.training.setup import Setup

TRAIN, VALIDATION, BEFORE, AFTER = "#9aa5b1", "#0b6e99", "#c2571a", "#0b6e99"


def draw(folder: RunFolder, setup: Setup, initial: dict[str, Tensor]) -> dict[str, Path]:
    """Write every figure of the run as PNG; returns caption -> file. ``initial``: weights before meta-training."""
    records = folder.read_metrics()
    folder.figures.mkdir(exist_ok=True)
    figures = {
        "Learning curve": ("learning_curve.png", _learning_curve(records)),
        "Health of the inner solves": ("inner_solves.png", _inner_solves(records)),
    }
    if setup.config.tasks == "sinusoid":
        figures["Adaptation to an unseen wave"] = ("adaptation.png", _adaptation(setup, initial))
    paths = {}
    for caption, (name, figure) in figures.items():
        paths[caption] = folder.figures / name
        figure.savefig(paths[caption], dpi=120)
    return paths


def _learning_curve(records: list[dict[str, Any]]) -> Figure:
    steps = [r for r in records if r["kind"] == "step"]
    validation = [r for r in records if r["kind"] == "evaluation" and r["split"] == "validation"]
    name, label = ("accuracy", "accuracy") if "accuracy" in steps[0] else ("loss", "mean squared error")
    figure, axes = _canvas(f"Query {label} after adaptation, while meta-training")
    axes.plot(
        [r["step"] for r in steps],
        _smooth([r[name] for r in steps]),
        color=TRAIN,
        label="training tasks (mean of 25 steps)",
    )
    axes.errorbar(
        [r["step"] for r in validation],
        [r[name]["mean"] for r in validation],
        [_half_width(r[name]) for r in validation],
        color=VALIDATION,
        marker="o",
        markersize=3,
        capsize=2,
        label=f"validation tasks (n = {validation[0][name]['n']}, 95 % interval)",
    )
    axes.set_xlabel("meta-steps")
    axes.set_ylabel(label)
    if name == "loss":
        _log_scale(axes)
    axes.legend(frameon=False)
    return figure


def _inner_solves(records: list[dict[str, Any]]) -> Figure:
    steps = [r for r in records if r["kind"] == "step"]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = (
        (left, "base_residual", "residual ||∇(f̂ + prox)(y₀)||", "Base residual"),
        (right, "gradient_ratio", "||gᵢ|| / ||vᵢ||", "Meta-gradient against query gradient"),
    )
    for axes, name, label, title in rows:
        for suffix, color in (("worst", TRAIN), ("median", VALIDATION)):
            axes.plot(
                [r["step"] for r in steps],
                _smooth([r[f"{name}_{suffix}"] for r in steps]),
                color=color,
                label=f"{suffix} task",
            )
        _log_scale(axes)
        axes.set_xlabel("meta-steps")
        axes.set_ylabel(label)
        _tidy(axes, title)
    right.axhline(1.0, color="black", linewidth=0.8, linestyle=":", label="limit for convex inner losses")
    left.legend(frameon=False)
    right.legend(frameon=False, loc="upper right", bbox_to_anchor=(1, 0.95))
    return figure


def _adaptation(setup: Setup, initial: dict[str, Tensor]) -> Figure:
    """One test task: the predictions before and after K inner steps, from the initial and the meta-learned weights."""
    tasks = setup.batch("test", [0])
    inputs, targets = (leaf[0] for leaf in tasks.support)
    grid = torch.linspace(-5, 5, 200, device=inputs.device)[:, None]
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
        _tidy(axes, title)
    figure.axes[0].set_ylabel("output")
    figure.axes[1].legend(frameon=False, fontsize="small")
    return figure


def _canvas(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    _tidy(axes, title)
    return figure, axes


def _tidy(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize="medium")
    axes.spines[["top", "right"]].set_visible(False)


def _log_scale(axes: Axes) -> None:
    """Logarithmic, with plain numbers also where the range is less than a decade."""
    axes.set_yscale("log")
    axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")


def _smooth(values: Sequence[float], window: int = 25) -> list[float]:
    """Mean over the last ``window`` values, or over what there is of them."""
    parts = (values[max(0, i + 1 - window) : i + 1] for i in range(len(values)))
    return [sum(part) / len(part) for part in parts]


def _half_width(statistic: dict[str, float]) -> float:
    return 0.0 if math.isnan(statistic["ci95"]) else statistic["ci95"]
