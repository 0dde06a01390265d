"""Is the error that a meta-gradient says of itself the error that it has?

The smooth problems of defaults_zoo.py, two that no constant was ever chosen on, and three with kinks (ReLU); at their
lam and ten times it, each task by itself; FO-B-MAML by three schemes, with the base solved (100 steps), half-way (10)
and hardly (2), branches of as many steps (20 at most), by gradient descent, Nesterov's, Anderson's and adaptive steps;
float32 and float64. The truth is (1) at the inner solution, by a long solve and a dense system in float64. Errors are
e / (||g|| + e) with e = ||g - truth||, as ``info.relative_error`` estimates them; below 1e-7 they are the truth's own.
A row counts as covered where its error is at most 3 times the estimate, as no exaggeration ("fair") where it is at
least a tenth of it. The estimate is the free one, without the truncation; what ``estimate_truncation=True`` makes of it
has rows of its own.

The constants of the estimate were fixed before, on other problems; that the reduction q is 1 for solvers of unlike
steps, that one step of the base is looked at, and five of the branches, was chosen on such problems of other seeds.
Where the losses have kinks the derivative at y_0 is that of one linear piece, and the truth that of another; such
problems are counted apart. Fifteen minutes on one core (quick: two problems, one task each, a minute).
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from matplotlib.figure import Figure

import metaprox as mp
from metaprox.experiments import defaults_zoo as zoo
from metaprox.experiments.base import Experiment, Remember, Size
from metaprox.reports import style

Row = dict[str, Any]
SOLVED = {100: "solved", 10: "ten steps", 2: "two steps"}
SCHEMES = (("symmetric", "loss", False), ("symmetric", "center", False), ("forward", "center", True))
SOLVERS: dict[str, Callable[[float], tuple[mp.InnerSolver, mp.InnerSolver | None]]] = {
    "gradient descent": lambda lr: (mp.GradientDescent(lr), None),
    "Nesterov": lambda lr: (mp.Nesterov(lr), None),
    "Anderson": lambda lr: (mp.GradientDescent(lr), mp.Anderson(lr)),
    "adaptive": lambda lr: (mp.AdaptiveGradientDescent(lr), None),
}
BRANCH_STEPS, FLOOR = 20, 1e-7
COVERS, EXAGGERATES = 3.0, 0.1
CASES = {
    name: case
    for name, case in (zoo.CASES | zoo.FURTHER_CASES).items()
    if "ReLU" not in name or name in ("sinusoid, ReLU", "MLP, ReLU, trained", "conv, batch norm, ReLU, trained")
}
QUICK = ("logistic", "sinusoid, tanh")


def run(size: Size, seed: int, remember: Remember) -> dict[str, Any]:
    names, tasks = (QUICK, 1) if size == "quick" else (tuple(CASES), zoo.TASKS)
    return {"rows": [row for name in names for row in remember(name, partial(_of_case, name, seed, tasks))]}


def _of_case(name: str, seed: int, tasks: int) -> list[Row]:
    rows = []
    base = CASES[name](seed)
    for factor in (1.0, 10.0):
        case = replace(base, problem=replace(base.problem, lam=factor * base.problem.lam))
        truth = zoo.exact(case).per_task
        for one in _precisions(case):
            rows += [
                row | {"case": name, "lam": case.problem.lam, "kinks": case.kinks} for row in _rows(one, truth[:tasks])
            ]
    return rows


def _precisions(case: zoo.Case) -> Iterable[zoo.Case]:
    if next(iter(case.params.values())).dtype == torch.float32:
        yield case
    yield case.double()


def _rows(case: zoo.Case, truth: torch.Tensor) -> Iterable[Row]:
    dtype = str(next(iter(case.params.values())).dtype).removeprefix("torch.")
    for steps, solved in SOLVED.items():
        for scheme, perturb, corrected in SCHEMES:
            for name, make in SOLVERS.items():
                solver, branch_solver = make(case.lr)
                meta = mp.FOBMAML(
                    solver,
                    steps,
                    scheme=scheme,  # type: ignore[arg-type]
                    perturb=perturb,  # type: ignore[arg-type]
                    residual_correction=corrected,
                    branch_solver=branch_solver,
                    branch_steps=min(steps, BRANCH_STEPS),
                    backend="vmap",
                    estimate_truncation=True,
                )
                for task, gradient in enumerate(truth):
                    found = _of_task(meta, case, task, gradient)
                    if found is not None:
                        yield found | {"precision": dtype, "solved": solved, "solver": name, "scheme": scheme}


def _of_task(meta: mp.FOBMAML, case: zoo.Case, task: int, truth: torch.Tensor) -> Row | None:
    """The error and what is said of it; None where a solve diverges."""
    one = mp.Task(*(tuple(leaf[task : task + 1] for leaf in part) for part in case.tasks))
    try:
        out = meta(case.problem, case.params, one)
    except mp.NonFiniteError:
        return None
    g = torch.cat([part.flatten() for part in out.grad.values()]).double()
    error = float((g - truth).norm())
    whole, bent = float(out.info.relative_error), float(out.info.truncation_error)
    free = (whole - bent) / (1 - bent) if bent < 1 else 0.0  # without the truncation in the sum
    found = {"error": error / (float(g.norm()) + error), "estimate": free, "with truncation": whole}
    return {name: float(f"{value:.3g}") for name, value in found.items()}


def shares(rows: list[Row], estimate: str = "estimate") -> tuple[float, float]:
    """Of the rows that are covered, and of those whose estimate is no exaggeration."""
    covered = sum(row["error"] <= max(COVERS * row[estimate], FLOOR) for row in rows)
    fair = sum(row["error"] >= EXAGGERATES * row[estimate] or row[estimate] < FLOOR for row in rows)
    return covered / len(rows), fair / len(rows)


def groups(rows: list[Row]) -> dict[str, list[Row]]:
    """The rows of smooth losses by how they were solved, in which precision, by which solver; then by problem."""
    smooth = [row for row in rows if not row["kinks"]]
    found = {"smooth losses": smooth, "problems of no part in any choice": [row for row in smooth if _new(row)]}
    for solved in SOLVED.values():
        for precision in ("float32", "float64"):
            some = [row for row in smooth if (row["solved"], row["precision"]) == (solved, precision)]
            found[f"{solved}, {precision}"] = some
    for key in ("solver", "scheme"):
        for value in dict.fromkeys(row[key] for row in smooth):
            found[str(value)] = [row for row in smooth if row[key] == value]
    found["losses with kinks"] = [row for row in rows if row["kinks"]]
    for name in dict.fromkeys(row["case"] for row in rows):
        found[f"problem: {name}"] = [row for row in rows if row["case"] == name]
    return {name: some for name, some in found.items() if some}


def _new(row: Row) -> bool:
    return row["case"] in zoo.FURTHER_CASES


def draw(results: dict[str, Any]) -> dict[str, Figure]:
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    for axes, kinks in zip(figure.subplots(1, 2, sharex=True, sharey=True), (False, True), strict=True):
        for solved, color in zip(SOLVED.values(), (style.BLUE, style.GREEN, style.ORANGE), strict=True):
            rows = [row for row in results["rows"] if row["kinks"] is kinks and row["solved"] == solved]
            points = [(max(row["estimate"], FLOOR), max(row["error"], FLOOR)) for row in rows]
            axes.scatter(*zip(*points, strict=True) if points else ((), ()), 5, color, alpha=0.4, label=solved)
        ends = (FLOOR, 1.0)
        axes.plot(ends, ends, color="black", linewidth=0.8)
        axes.fill_between(ends, [EXAGGERATES * x for x in ends], [COVERS * x for x in ends], color="0.92", zorder=0)
        axes.set(xscale="log", yscale="log", xlabel="relative error that is estimated", xlim=ends, ylim=(FLOOR, 1.5))
        style.tidy(axes, "Losses with kinks (ReLU)" if kinks else "Smooth losses")
    figure.axes[0].set_ylabel("true relative error")
    figure.axes[0].legend(frameon=False, markerscale=3)
    return {"calibration": figure}


def table(results: dict[str, Any]) -> str:
    """A row for each group, in percent, without and with the truncation; those that miss 95 or 80 are marked."""
    lines = []
    for name, rows in groups(results["rows"]).items():
        covered, fair = (100 * share for share in shares(rows))
        missed = " and ".join(word for word, bad in (("covered", covered < 95), ("fair", fair < 80)) if bad)
        both = "{:.1f}, {:.1f}".format(*(100 * share for share in shares(rows, "with truncation")))
        lines.append([name, str(len(rows)), f"{covered:.1f}", f"{fair:.1f}", missed, both])
    header = ["group", "task gradients", "error at most 3 x estimate, %", "at least 0.1 x estimate, %", "misses"]
    return style.markdown([*header, "the two with the truncation"], lines)


def measure(results: dict[str, Any]) -> dict[str, float]:
    found = {}
    for name, rows in groups(results["rows"]).items():
        if not name.startswith(("problem", "losses", *(scheme for scheme, *_ in SCHEMES))):
            for what, estimate in (("", "estimate"), (", with the truncation", "with truncation")):
                found[f"{name}{what}: covered"], found[f"{name}{what}: fair"] = shares(rows, estimate)
    return found


CLAIM = "A meta-gradient's own estimate of its error is right within a factor of three, on problems it was not made for"
EXPERIMENT = Experiment("calibration", CLAIM, run, draw, measure, table)
