"""Is the default step of the difference, (5), as good as the best that one could have chosen?

The problems of defaults_zoo.py in float32 and float64, the base half-way (10 steps of gradient descent, as many of the
branches) and solved (100, and 20 branch steps of Anderson), seven kinds of difference; each by (5), and by fixed steps
nu or eps of 1e-5 to 1, ten to three a decade. Compared is the *total* error, against grad F by a long solve and dense
systems, where there is such a gradient: smooth losses whose long solve ends at a minimum. With kinks (ReLU), where the
derivative at y_0 is not what training needs, it is the decrease of F by an outer step of length 0.1 along -g, after ten
inner steps.

A factor is the error by (5) over that by the best fixed step, chosen for this very problem with the truth in hand; or
the decrease by the best over that by (5). Below 1 the rule, which takes a step for each task, beats any single one.
Errors below 1e-6 are the truth's own and count as that. What is solved and bends little (quadratics) has the best step
where this is cautious. Five minutes on one core (quick: three problems, a minute).
"""

import statistics
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from matplotlib.figure import Figure
from torch.utils import _pytree as pytree

import metaprox as mp
from metaprox.experiments import defaults_zoo as zoo
from metaprox.experiments.base import Experiment, Remember, Size
from metaprox.experiments.defaults import CONVERGED, LEAST, decrease_by, distance
from metaprox.experiments.defaults_settings import DIFFERENCES, Setting, Step
from metaprox.reports import style

Row = dict[str, Any]
STEPS = tuple(float(f"{10 ** (k / 2 - 5):.1g}") for k in range(11))  # 1e-5, 3e-5, ..., 1
ALL: tuple[Step, ...] = (*STEPS, "rule")
SOLVED = {"ten steps": (10, "gd", 10), "solved": (100, "anderson", 20)}
FLOOR = 1e-6
QUICK = ("quadratic", "logistic", "sinusoid, ReLU")


def run(size: Size, seed: int, remember: Remember) -> dict[str, Any]:
    names = QUICK if size == "quick" else [name for name in zoo.CASES if "float64" not in name]
    return {"rows": [row for name in names for row in remember(name, partial(_of_case, name, seed))]}


def _of_case(name: str, seed: int) -> list[Row]:
    case = zoo.CASES[name](seed)
    truth = None
    if not case.kinks:
        exact = zoo.exact(case)
        if exact.residual >= CONVERGED or exact.least <= LEAST:
            return []  # no minimum to compare with
        truth = exact.gradient
    rows = []
    for precision, one in (("float32", _single(case)), ("float64", case.double())):
        for solved, (steps, solver, branch_steps) in SOLVED.items():
            if case.kinks and steps != zoo.STEPS:
                continue
            for family in DIFFERENCES:
                setting = replace(family, solver=solver, branch_steps=branch_steps)
                found = {f"{step}": _judge(one, replace(setting, step=step), steps, truth) for step in ALL}
                what = ", ".join([setting.scheme, setting.perturb] + ["corrected"] * setting.corrected)
                rows.append({"case": name, "precision": precision, "solved": solved, "difference": what} | found)
    return [row | {"kinks": case.kinks} for row in rows]


def _single(case: zoo.Case) -> zoo.Case:
    tasks = pytree.tree_map(lambda leaf: leaf.float() if leaf.is_floating_point() else leaf, case.tasks)
    return replace(case, params={name: value.float() for name, value in case.params.items()}, tasks=tasks)


def _judge(case: zoo.Case, setting: Setting, steps: int, truth: zoo.Params | None) -> float | None:
    """The total error, or, with kinks, the decrease; None where a solve overflows."""
    meta = replace(setting.meta(case.lr, steps, torch.finfo(torch.float32).eps), estimate_error=False)
    try:
        grad = meta(case.problem, case.params, case.tasks).grad
    except mp.NonFiniteError:
        return None
    value = decrease_by(case, grad) if truth is None else max(distance(grad, truth), FLOOR)
    return float(f"{value:.4g}")


def factor(row: Row) -> float:
    """By how much the best fixed step is better than (5)."""
    fixed = [row[f"{step}"] for step in STEPS if row[f"{step}"] is not None]
    if row["rule"] is None:
        return float("inf")
    return max(fixed) / row["rule"] if row["kinks"] else row["rule"] / min(fixed)


def groups(rows: list[Row]) -> dict[str, list[Row]]:
    found = {}
    for kinks, what in ((False, "smooth"), (True, "ReLU")):
        for precision in ("float32", "float64"):
            some = [row for row in rows if row["kinks"] is kinks and row["precision"] == precision]
            found[f"{what}, {precision}"] = some
    for key in ("solved", "difference", "case"):
        for value in dict.fromkeys(row[key] for row in rows):
            found[f"{value}"] = [row for row in rows if row[key] == value]
    return found


def table(results: dict[str, Any]) -> str:
    lines = []
    for name, rows in groups(results["rows"]).items():
        factors = sorted(factor(row) for row in rows)
        if factors:
            worst = max(rows, key=factor)
            where = ", ".join(str(worst[key]) for key in ("case", "precision", "solved", "difference"))
            lines.append([name, str(len(rows)), f"{statistics.median(factors):.3f}", f"{factors[-1]:.2f}", where])
    return style.markdown(["group", "comparisons", "median factor", "worst", "which"], lines)


def draw(results: dict[str, Any]) -> dict[str, Figure]:
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, rows in _of_checks(results):
        factors = sorted(factor(row) for row in rows)
        axes.plot(factors, [(i + 1) / len(factors) for i in range(len(factors))], label=name)
    style.tidy(axes, "The default step against the best fixed one")
    axes.set(xlabel="factor", ylabel="share of comparisons at most as large", xlim=(0.5, 2.5))
    axes.legend(frameon=False)
    return {"step_error": figure}


def _of_checks(results: dict[str, Any]) -> Iterable[tuple[str, list[Row]]]:
    return [(name, rows) for name, rows in groups(results["rows"]).items() if name.startswith(("smooth,", "ReLU,"))]


def measure(results: dict[str, Any]) -> dict[str, float]:
    found = {}
    for name, rows in _of_checks(results):
        factors = [factor(row) for row in rows]
        found[f"{name}: median factor"], found[f"{name}: worst"] = statistics.median(factors), max(factors)
    return found


CLAIM = "The default step of the difference is next to the best fixed one, chosen with the truth in hand"
EXPERIMENT = Experiment("step-error", CLAIM, run, draw, measure, table)
