"""The numbers by which a run's meta-gradients judge themselves, and what healthy ones look like."""

import statistics
from collections.abc import Sequence
from typing import Any

from metaprox.estimators.monitor import RULES, WINDOW

OF_STEPS = {
    "gradient_ratio_median": ("length of g by the query gradient's", "below 1; it rises before a run collapses"),
    "relative_error_median": (
        "relative error of g",
        "small where inner problems are solved; 0.7 to 0.9 for networks that adapt in a few steps; below 0.95",
    ),
    "sampling_error": ("standard error of the mean over tasks", "of no harm: more tasks lower it"),
    "base_residual_median": (
        "gradient left by the base solve",
        "no rise to a multiple of what it was: inner steps lose hold then",
    ),
    "linear_residual_median": (
        "what g leaves of its linear system, by that of g = 0",
        "near 0 where branches are solved; of the order of 1 for networks that adapt in a few steps",
    ),
    "gradient_norm": ("length of the meta-gradient", "no rise by powers of ten"),
    "base_step_size_least": (
        "shortest inner step",
        "that of the settings or, where steps are found, of one order throughout",
    ),
}
OF_LOOKS = {
    "to_go": ("way that the base solve has left, by the way it went", "1 to 4"),
    "long": ("share of tasks with g longer than the query gradient", "none to few"),
    "rise": ("query loss, by its lowest so far", "1"),
    "astray": ("share of tasks with a branch at -nu that has no minimum near", "none"),
    "rounding": ("share of tasks whose error is rounding for a good part", "none"),
    "indefinite": ("share of tasks with negative curvature at the end of the solves", "up to a tenth"),
}


def health_table(steps: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """Returns a row for each number that is known: at the start, at the end, and what it is in healthy runs.

    Of the meta-steps: medians of 25 at most. Of what a monitor sees, 25 meta-steps at a time: its first and last look.
    """
    rows = []
    for name, (quantity, healthy) in OF_STEPS.items():
        found = [float(step[name]) for step in steps if name in step]
        if found:
            start, end = (f"{statistics.median(part):.2g}" for part in (found[:WINDOW], found[-WINDOW:]))
            rows.append({"quantity": quantity, "start": start, "end": end, "healthy": healthy})
    looks = [step["health"] for step in steps if "health" in step]
    limits = {rule.number: rule.limit for rule in RULES}
    for name, (quantity, healthy) in OF_LOOKS.items():
        found = [float(look[name]) for look in looks if name in look and (look[name] or name != "rise")]  # none so far
        if found:
            start, end = (f"{value:.2g}" for value in (found[0], found[-1]))
            healthy = f"{healthy}; warned of above {limits[name]:g}"
            rows.append({"quantity": quantity, "start": start, "end": end, "healthy": healthy})
    return rows + _counted(steps)


def _counted(steps: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """Of what is there only where it happened: how often, in the first and in the second half of the run."""
    rows = []
    for name, quantity, healthy in (
        ("tasks_skipped", "tasks skipped because they diverged, first and second half", "none"),
        ("tasks_not_converged", "tasks that ended at max_steps, first and second half", "few: raise max_steps, or tol"),
    ):
        if any(name in step for step in steps):
            half = len(steps) // 2
            start, end = (str(sum(step.get(name, 0) for step in part)) for part in (steps[:half], steps[half:]))
            rows.append({"quantity": quantity, "start": start, "end": end, "healthy": healthy})
    return rows
