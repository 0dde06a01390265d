"""The table and the figures of the experiment ``defaults``, and the numbers that its claim is judged by."""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metaprox.experiments.defaults_settings import BRANCH_STEPS, FAMILIES, OF_SOLVERS, OF_STEPS, STEPS, TRAINED, Setting
from metaprox.reports import style

Results = dict[str, Any]
LOOKS = {
    "gd": ("o", style.BLUE),
    "nesterov": ("^", style.GREEN),
    "anderson": ("s", style.ORANGE),
    "adaptive": ("D", style.PURPLE),
}


def values(results: Results, setting: Setting, field: str, *, kinks: bool | None = None) -> list[float]:
    """Returns those of a setting on the problems that have the field, with or without kinks; NaN for overflows.

    A decrease is relative to the largest of all settings on the problem.
    """
    found = []
    for case in results["cases"].values():
        if kinks not in (None, case["kinks"]) or (field == "error" and not case["known"]):
            continue
        row = case["rows"][setting.name]
        scale = _largest_decrease(case) if field == "decrease" else 1.0
        found.append(math.nan if row is None else row[field] / scale)
    return found


def _largest_decrease(case: dict[str, Any]) -> float:
    return max(row["decrease"] for row in case["rows"].values() if row)


def trained(results: Results, setting: Setting) -> list[float]:
    """Relative query loss after training, one a network: the mean over seeds, NaN where one died."""
    runs = [network[setting.name] for network in results["training"].values()]
    return [statistics.mean(math.nan if one is None else one["loss"] for one in seeds) for seeds in runs]


def cost(results: Results, setting: Setting) -> str:
    """Support + query gradients per task."""
    rows = [case["rows"][setting.name] for case in results["cases"].values()]
    row = next((row for row in rows if row), None)
    return f"{row['support']} + {row['query']}" if row else ""


def table(results: Results) -> str:
    """As Markdown: the steps of the difference, then the solvers of the branches."""
    steps = [[_what(s), f"{s.step}", cost(results, s), *_of_step(results, s)] for s in OF_STEPS]
    solvers = [
        [_what(s), f"{s.branch_steps} {s.solver}", cost(results, s), *_of_solver(results, s)] for s in OF_SOLVERS
    ]
    return (
        "Median and worst over problems. Without kinks: difference from the derivative, and decrease of the loss; with "
        "kinks: decrease of the loss. Loss: after training, relative to its start, mean over networks. Gradients: "
        "support + query.\n\n"
        + style.markdown(["setting", "step", "gradients", "difference", "decrease", "decrease, kinks", "loss"], steps)
        + "\nMedian and worst over problems: error against grad F where it is known; decrease of the loss without and "
        'with kinks. Step "rule".\n\n'
        + style.markdown(["setting", "branches", "gradients", "error", "decrease", "decrease, kinks"], solvers)
    )


def _what(setting: Setting) -> str:
    return replace(setting, step="rule").name.split(f", {setting.branch_steps} ")[0]


def _of_step(results: Results, setting: Setting) -> list[str]:
    losses = trained(results, setting) if setting in TRAINED else []
    return [
        _pair(values(results, setting, "difference", kinks=False), max),
        _pair(values(results, setting, "decrease", kinks=False), min),
        _pair(values(results, setting, "decrease", kinks=True), min),
        f"{statistics.mean(losses):.3f}" if losses else "",
    ]


def _of_solver(results: Results, setting: Setting) -> list[str]:
    return [
        _pair(values(results, setting, "error"), max),
        _pair(values(results, setting, "decrease", kinks=False), min),
        _pair(values(results, setting, "decrease", kinks=True), min),
    ]


def _pair(found: Sequence[float], worst: Callable[[Iterable[float]], float]) -> str:
    """Median and worst of those that did not overflow, and how many did."""
    finite = [value for value in found if not math.isnan(value)]
    lost = f", {len(found) - len(finite)} overflow" if len(finite) < len(found) else ""
    return f"{statistics.median(finite):.2g}, {worst(finite):.2g}{lost}" if finite else "overflow"


def draw(results: Results) -> dict[str, Figure]:
    return {"defaults_step": _draw_steps(results), "defaults_solver": _draw_solvers(results)}


def _draw_steps(results: Results) -> Figure:
    """Decrease of the loss against the step of the difference, a line for each problem."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    for axes, family in zip(figure.subplots(1, len(FAMILIES), sharey=True), FAMILIES, strict=True):
        style.tidy(axes, _what(family))
        for case in results["cases"].values():
            rows = [case["rows"][replace(family, step=step).name] for step in STEPS]
            heights = [row["decrease"] / _largest_decrease(case) if row else math.nan for row in rows]
            color, marker = (style.ORANGE, "^") if case["kinks"] else (style.BLUE, "o")
            axes.plot(range(len(STEPS)), heights, f"{marker}-", color=color, markersize=4, linewidth=0.8)
        axes.set_xticks(range(len(STEPS)), [f"{step}" for step in STEPS], rotation=30)
        axes.set_ylim(-0.1, 1.05)
        axes.set_xlabel("nu" if family.perturb == "loss" else "eps")
    first = figure.axes[0]
    first.set_ylabel("decrease of the loss, relative to the largest")
    first.plot([], [], "o-", color=style.BLUE, label="smooth losses")
    first.plot([], [], "^-", color=style.ORANGE, label="ReLU")
    first.legend(frameon=False, fontsize="small", loc="lower left")
    return figure


def _draw_solvers(results: Results) -> Figure:
    """Error and decrease against the gradients that the branches take, a line for each solver."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    family = Setting("forward", "center", "rule", corrected=True)
    panels = [
        ("error", None, "Error against grad F, where it is known"),
        ("decrease", False, "Decrease of the loss, smooth"),
        ("decrease", True, "Decrease of the loss, ReLU"),
    ]
    for axes, (field, kinks, title) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        style.tidy(axes, title)
        for solver in LOOKS:
            _draw_solver(axes, results, replace(family, solver=solver), field, kinks)
        axes.set_xlabel("branch steps")
        axes.set_xticks(BRANCH_STEPS)
        if field == "error":
            style.log_scale(axes)
        else:
            axes.set_ylim(-0.1, 1.05)
    figure.axes[1].legend(frameon=False, fontsize="small", loc="lower left")
    figure.axes[1].text(
        0.35, 0.05, "line: median, dots: each problem", transform=figure.axes[1].transAxes, fontsize="small"
    )
    return figure


def _draw_solver(axes: Axes, results: Results, setting: Setting, field: str, kinks: bool | None) -> None:
    marker, color = LOOKS[setting.solver]
    found = [values(results, replace(setting, branch_steps=steps), field, kinks=kinks) for steps in BRANCH_STEPS]
    for case in zip(*found, strict=True):
        axes.plot(BRANCH_STEPS, case, marker, color=color, markersize=2.5, alpha=0.5)
    middle = [statistics.median(value for value in column if not math.isnan(value)) for column in found]
    axes.plot(BRANCH_STEPS, middle, f"{marker}-", color=color, markersize=5, label=setting.solver)


def measure(results: Results) -> dict[str, float]:
    numbers = {}
    for perturb in ("loss", "center"):
        for step in ("rounding", "rule"):
            setting = Setting("symmetric", perturb, step)
            kinks = values(results, setting, "decrease", kinks=True)
            numbers[f"symmetric, {perturb}, {step}: median decrease, ReLU"] = statistics.median(kinks)
            numbers[f"symmetric, {perturb}, {step}: loss after training"] = statistics.mean(trained(results, setting))
        smooth = values(results, Setting("symmetric", perturb, "rule"), "difference", kinks=False)
        numbers[f"symmetric, {perturb}, rule: largest difference, smooth"] = max(smooth)
    return numbers
