"""Where each method's meta-training ends: the norm of the true gradient of F along the run.

All methods start at the same x_0 and take the same plain step x <- x - eta g, on all tasks at once, in float64; g is
what the method returns, and for Reptile lam g, the gradient of the smoothed support loss. Every inner solve, also that
of the branches, is K steps of Nesterov's method, with the step and momentum that are optimal for the bounds on the
curvature, so that MAML differentiates the same solver; iMAML takes as many steps of conjugate gradients as there are
parameters. K = 60 (quick: 30); FO-B-MAML, symmetric, also with K = 8 and 24 (quick: 5 and 15). It perturbs the loss,
with the default nu: 6e-6, and 1.5e-8 for the forward scheme. Where no inner error is left, at K = 60, it comes to rest
at the truncation and rounding of the difference. A Hessian-vector product counts as two gradient evaluations.

quadratic: tasks 0 to 19 of Quadratic(dim=10, condition=30), lam = 0.2, x_0 = (3, ..., 3), 80 meta-steps (quick: 30)
with eta = 1 / (largest curvature of F). grad F, its root and those of E[grad f_i(y_i(x))] (FO-MAML) and E[x - y_i(x)]
(Reptile) are known in closed form, and so are the levels of ||grad F|| at which these two must stall.

nonconvex: logistic regression with alpha sum_j w_j^2 / (1 + w_j^2) in both losses, alpha = 0.15, lam = 0.25, 6
dimensions, 10 tasks (quick: 4) of 4 support and 20 query examples. Each task's inputs are normal with a scale of its
own from 0.3 to 1.2; labels are drawn from a linear model with weights 3 a + b_i, a and b_i standard normal, b_i the
task's own. The regularizer's curvature is between -alpha/2 and 2 alpha, so that inner losses are nonconvex, and every
inner problem has one solution, because lam > alpha/2. x_0 = (1, ..., 1), 100 meta-steps (quick: 40) with eta = 6. grad
F comes from Newton's method and a dense solve, at every fifth iterate (quick: every tenth).

Seed 0 makes the tasks; nothing else is random. Takes about three minutes on one core (quick: one).
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from math import isnan, sqrt
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

import metaprox as mp
from metaprox.comparison import gradient_evaluations
from metaprox.experiments.base import Experiment, Remember, Size
from metaprox.experiments.convergence_families import Setting, levels, nonconvex, quadratic
from metaprox.reports import style

SYMMETRIC, FORWARD = "fobmaml", "fobmaml-forward"
TIGHT = ("maml", "imaml", FORWARD, "fomaml", "reptile")  # Run with the largest K alone.
BIASED = ("fomaml", "reptile")
# Wide lines first: where lines coincide, all are seen.
ORDER = ("maml", "imaml", "reptile", "fomaml", FORWARD, SYMMETRIC)
WIDTHS = {"maml": 4.5, "imaml": 2.8}
TITLES = {"quadratic": "Quadratic losses", "nonconvex": "Logistic losses with a nonconvex regularizer"}

Row = dict[str, Any]


@dataclass(frozen=True)
class Extent:
    """How much of a family is run. The truth is computed at every ``every``-th iterate."""

    tasks: int
    meta_steps: int
    every: int
    inner_steps: tuple[int, ...]


EXTENTS: dict[Size, dict[str, Extent]] = {
    "quick": {"quadratic": Extent(20, 30, 1, (5, 15, 30)), "nonconvex": Extent(4, 40, 10, (5, 15, 30))},
    "full": {"quadratic": Extent(20, 80, 1, (8, 24, 60)), "nonconvex": Extent(10, 100, 5, (8, 24, 60))},
}


def run(size: Size, seed: int, remember: Remember) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for family, make in (("quadratic", quadratic), ("nonconvex", nonconvex)):
        extent = EXTENTS[size][family]
        setting = make(extent.tasks, seed)
        variants = [(method, extent.inner_steps[-1]) for method in TIGHT] + [(SYMMETRIC, k) for k in extent.inner_steps]
        rows = [
            remember(f"{family}_{method}_{steps}", partial(_train, setting, extent, method, steps))
            for method, steps in variants
        ]
        results[family] = asdict(extent) | {"outer_step": setting.outer_step, "rows": rows}
    results["quadratic"]["levels"] = levels(EXTENTS[size]["quadratic"].tasks, seed)
    return results


def _train(setting: Setting, extent: Extent, method: str, steps: int) -> Row:
    """Gradient descent with the method's estimates. ``residual`` is the largest of the last inner solves."""
    estimator = _estimator(setting, method, steps)
    scale = setting.outer_step * (setting.problem.lam if method == "reptile" else 1.0)
    x = setting.start
    seen = [{"step": 0.0} | setting.look(x)]
    for step in range(1, extent.meta_steps + 1):
        out = estimator(setting.problem, x, setting.tasks)
        x = {name: value - scale * out.grad[name] for name, value in x.items()}
        if step % extent.every == 0:
            seen.append({"step": step} | setting.look(x))
    row = {"method": method, "inner_steps": steps, "seen": seen}
    row["evaluations"] = gradient_evaluations(out.info.counts) / extent.tasks
    residual = float(out.info.base_residual.max())
    return row | {"residual": None if isnan(residual) else residual}


def _estimator(setting: Setting, method: str, steps: int) -> mp.Estimator:
    low, high = setting.curvature
    root = sqrt(high / low)
    solver = mp.Nesterov(1 / high, momentum=(root - 1) / (root + 1))
    parameters = sum(value.numel() for value in setting.start.values())
    estimators: dict[str, Callable[[], mp.Estimator]] = {
        SYMMETRIC: lambda: mp.FOBMAML(solver, steps, perturb="loss"),
        FORWARD: lambda: mp.FOBMAML(solver, steps, scheme="forward", perturb="loss"),
        "maml": lambda: mp.MAML(solver, steps),
        "imaml": lambda: mp.IMAML(solver, steps, cg_steps=parameters),
        "fomaml": lambda: mp.FOMAML(solver, steps),
        "reptile": lambda: mp.Reptile(solver, steps),
    }
    return estimators[method]()


def draw(results: dict[str, Any]) -> dict[str, Figure]:
    """A row of panels for each family: against meta-steps, and against what they cost."""
    figure = Figure(figsize=(10, 8), layout="constrained")
    figure.suptitle(
        "FO-B-MAML converges to the accuracy of its inner solves and differences; FO-MAML and Reptile stall",
        x=0.01,
        ha="left",
    )
    for (left, right), family in zip(figure.subplots(2, 2, sharey="row"), TITLES, strict=True):
        part = results[family]
        for row in sorted(part["rows"], key=lambda row: ORDER.index(row["method"])):
            steps, norms = _column(row, "step"), _column(row, "norm")
            look = _line(row, part["inner_steps"])
            left.plot(steps, norms, **look)
            right.plot([step * row["evaluations"] / 1000 for step in steps], norms, **look)
        left.set_yscale("log")
        left.set_ylabel("||grad F(x)||, exact")
        left.set_xlabel("meta-steps")
        right.set_xlabel("thousand gradient evaluations per task")
        style.tidy(left, f"{TITLES[family]}, {part['tasks']} tasks")
        style.tidy(right, "The same against cost: Hessian-vector products count as 2")
        _mark_levels(left, right, results, family)
    lines, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower center", ncols=4, frameon=False)
    return {"convergence": figure}


def _line(row: Row, inner_steps: list[int]) -> dict[str, Any]:
    method, steps = row["method"], row["inner_steps"]
    look = style.METHODS[method] | {"linewidth": WIDTHS.get(method, 1.6)}
    if method == SYMMETRIC:
        look["linestyle"] = (":", "-.", "-")[inner_steps.index(steps)]
    return look | {"label": f"{_name(method)}, K = {steps}"}


def _mark_levels(left: Axes, right: Axes, results: dict[str, Any], family: str) -> None:
    """Where the biased methods stall: dashed where it is known beforehand."""
    known = results[family].get("levels")
    levels = known or {method: _last(_row(results, family, method), "norm") for method in BIASED}
    for method, level in levels.items():
        color = style.METHODS[method]["color"]
        above = level == max(levels.values())
        name = f"{_name(method)} stalls at {level:.2g} ({'dashed: closed form' if known else 'measured'})"
        left.annotate(
            name,
            (1, level),
            xytext=(0, 3 if above else -4),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            va="bottom" if above else "top",
            fontsize="small",
        )
        for axes in (left, right) if known else ():
            axes.axhline(level, color=color, linestyle="--", linewidth=0.9)


def _name(method: str) -> str:
    return style.method_name(method) + (", symmetric" if method == SYMMETRIC else "")


def _column(row: Row, name: str) -> list[float]:
    return [point[name] for point in row["seen"]]


def _last(row: Row, name: str) -> float:
    return _column(row, name)[-1]


def _row(results: dict[str, Any], family: str, method: str, which: int = -1) -> Row:
    """The run of a method. ``which`` of its K, in rising order: the last is the tight one."""
    rows: list[Row] = [row for row in results[family]["rows"] if row["method"] == method]
    return rows[which]


def measure(results: dict[str, Any]) -> dict[str, float]:
    """Of the ends of the runs: levels are ||grad F||, distances are to the minimizer of F, tight is the largest K."""
    numbers = _compared(results, "quadratic") | _compared(results, "nonconvex")
    tight = _row(results, "quadratic", SYMMETRIC)
    for method in BIASED:
        row, name = _row(results, "quadratic", method), _name(method)
        expected = results["quadratic"]["levels"][method]
        numbers[f"quadratic: level of {name}, measured / closed form"] = _last(row, "norm") / expected
        further = _last(row, "distance") / _last(tight, "distance")
        numbers[f"quadratic: distance of {name} / of FO-B-MAML, symmetric, tight"] = further
    curvature = _last(_row(results, "nonconvex", SYMMETRIC), "least_curvature")
    return numbers | {"nonconvex: least curvature of the inner losses at their solutions": curvature}


def _compared(results: dict[str, Any], family: str) -> dict[str, float]:
    numbers = {}
    for method in ("maml", "imaml", FORWARD, SYMMETRIC):
        numbers[f"{family}: level of {_name(method)}, tight"] = _last(_row(results, family, method), "norm")
    loose, middle, tight = (_last(_row(results, family, SYMMETRIC, which), "norm") for which in range(3))
    numbers[f"{family}: level of FO-B-MAML, symmetric, loose / middle"] = loose / middle
    numbers[f"{family}: level of FO-B-MAML, symmetric, middle / tight"] = middle / tight
    for method in BIASED:
        level = _last(_row(results, family, method), "norm")
        numbers[f"{family}: level of {_name(method)} / of FO-B-MAML, symmetric, tight"] = level / tight
    return numbers


def table(results: dict[str, Any]) -> str:
    """Every run: how well it solves, what a meta-step costs, where it ends."""
    head = (
        "problem",
        "method",
        "K",
        "inner residual",
        "evaluations per meta-step",
        "norm of grad F",
        "distance to minimum",
    )
    rows = [_cells(family, row) for family in TITLES for row in results[family]["rows"]]
    return style.markdown(head, rows)


def _cells(family: str, row: Row) -> tuple[str, ...]:
    residual = "" if row["residual"] is None else f"{row['residual']:.1e}"
    distance = f"{_last(row, 'distance'):.1e}" if family == "quadratic" else ""
    steps, cost = str(row["inner_steps"]), f"{row['evaluations']:g}"
    return family, _name(row["method"]), steps, residual, cost, f"{_last(row, 'norm'):.1e}", distance


EXPERIMENT = Experiment(
    "convergence",
    "FO-B-MAML converges as far as its inner solves are accurate, FO-MAML and Reptile stall where theory says",
    run,
    draw,
    measure,
    table,
)
