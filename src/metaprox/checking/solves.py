"""Checks of the inner solves: their steps, where the base ends, and whether branches have a minimum."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metaprox.call import Call
from metaprox.checking.field import length_of
from metaprox.checking.findings import Finding, percent
from metaprox.checking.probe import Probe
from metaprox.checking.watched import Record, Run
from metaprox.estimators import FOBMAML, IMAML, Estimator
from metaprox.estimators.branched import Branched
from metaprox.solvers.protocol import relative_step

CLOSE = 0.1  # of the gradient at x: a base that leaves less has converged
INNER, BRANCH = "inner", "branches'"  # whose step
NEAREST = 1e-6  # of the length of y_0: shorter steps are lengthened to see a curvature


@dataclass(frozen=True)
class Solved:
    """What one task's solves came to.

    residual: ||gradient|| of the proximal objective at y_0, relative to that at x.
    moved: ||y_0 - x|| relative to ||x||. fell: by how much the objective fell, relative to the larger of its values.
    curvature: of the inner loss along the base's last step; None where it took none.
    branches: (inner, query) for each node, lam and the weight of the query loss included, along the last step.
    """

    residual: float
    moved: float
    fell: float
    curvature: float | None
    branches: tuple[tuple[float, float], ...]


def solved(call: Call, estimator: Estimator, run: Run, task: int) -> Solved:
    """Look at the solves of a run. Costs 6 support gradients, and 2 of each loss a branch."""
    inner = Probe(call, "inner_loss", task)
    lam, x, y0 = call.problem.lam, call.x(task), run.y0
    moved = y0 - x
    objective = float(inner.at(x).value), float(inner.at(y0).value) + lam / 2 * float(moved.square().sum())
    size = float(x.norm())
    least = NEAREST * length_of(y0, moved)
    return Solved(
        residual=residual(call, run, task),
        moved=float(moved.norm()) / size if size > 0 else float(moved.any()),
        fell=(objective[0] - objective[1]) / max(*map(abs, objective), torch.finfo(x.dtype).tiny),
        curvature=_along_last_step(inner, x, run.base, 0, least),
        branches=_branches(call, estimator, run, task, least) if isinstance(estimator, FOBMAML) else (),
    )


def residual(call: Call, run: Run, task: int) -> float:
    """||gradient|| of the proximal objective at y_0, relative to that at x. Costs 2 support gradients."""
    inner = Probe(call, "inner_loss", task)
    x = call.x(task)
    moved = run.y0 - x
    first, last = inner.gradient(x).norm(), (inner.gradient(run.y0) + call.problem.lam * moved).norm()
    return float(last / first) if first > 0 else 0.0


def _along_last_step(loss: Probe, start: Tensor, record: Record, branch: int, least: float) -> float | None:
    """The curvature of a loss along it; over the whole way from ``start`` where the solve has stopped."""
    if record.before is None or record.after is None:  # it took no step
        return None
    before, after = record.before[branch], record.after[branch]
    if torch.equal(before, after):
        before = start
    return None if torch.equal(before, after) else loss.curvature(before, after, least)


def _branches(call: Call, estimator: FOBMAML, run: Run, task: int, least: float) -> tuple[tuple[float, float], ...]:
    inner, outer = Probe(call, "inner_loss", task), Probe(call, "outer_loss", task)
    found = []
    for branch, node in enumerate(estimator._nodes_and_weights[0]):
        weight = node * float(run.info.nu) if estimator.perturb == "loss" else 0.0
        along = _along_last_step(inner, run.y0, run.branches, branch, least)
        query = _along_last_step(outer, run.y0, run.branches, branch, least) if weight else 0.0
        if along is not None and query is not None:
            found.append((along + call.problem.lam, weight * query))
    return tuple(found)


def steps_for_lam(estimator: Estimator, lam: float) -> Finding | None:
    """The finding where a fixed step is too long for the proximal term alone: h lam >= 2. Costs nothing."""
    for name, h in _fixed_steps(estimator):
        if h * lam >= 2:
            return Finding(
                "steps",
                "wrong",
                f"the {name} step {h:g} times lam {lam:g} is {h * lam:.3g}, and from 2 on the proximal term alone "
                f"makes every solve diverge: take a step below {1 / lam:.2g}, or lam below {1 / h:.2g}",
                {"step_times_lam": h * lam},
            )
    return None


def steps(estimator: Estimator, lam: float, found: Sequence[Solved]) -> Finding:
    """Whether fixed steps are short enough for the curvature that they have met, lam included."""
    fixed = dict(_fixed_steps(estimator))
    met = {
        INNER: [one.curvature + lam for one in found if one.curvature is not None],
        BRANCH: [sum(pair) for one in found for pair in one.branches],
    }
    products = {name: h * max(met[name]) for name, h in fixed.items() if met[name]}
    if not fixed:
        return Finding("steps", "ok", f"{estimator.solver!r} has no fixed step that could be too long")
    if not products:
        return Finding.not_checked("steps", "the solver took no step")
    name = max(products, key=lambda name: products[name])
    h, product = fixed[name], products[name]
    numbers = {"step_times_lam": h * lam, "step_times_curvature": product}
    text = f"the {name} step {h:g} times the curvature along the last one is {product:.2g}"
    if product > 2:
        remedy = f"take one of {h / product:.1g} or less, a larger lam, or mp.AdaptiveGradientDescent"
        return Finding("steps", "wrong", f"{text}, and from 2 on steps diverge: {remedy}", numbers)
    return Finding("steps", "ok", f"{text}, of which lam is {h * lam:.2g}; from 2 on steps diverge", numbers)


def _fixed_steps(estimator: Estimator) -> list[tuple[str, float]]:
    solvers = [(INNER, estimator.solver)]
    if isinstance(estimator, Branched):
        solvers.append((BRANCH, estimator._solver_of_branches))
    known = [(name, relative_step(solver)) for name, solver in solvers]
    return [(name, h) for name, h in known if h is not None]


def base(estimator: Estimator, found: Sequence[Solved], precision: float, rise: float | None) -> Finding:
    """Returns whether y_0 is another point than x, a solution, and a better one.

    ``rise``: of the objective, relative to it, that is allowed; None: there is no objective.
    """
    numbers = {
        "residual": max(one.residual for one in found),
        "moved": min(one.moved for one in found),
        "fell": min(one.fell for one in found),
    }
    residual, rose = numbers["residual"], -numbers["fell"]
    if any(one.moved <= 10 * precision and one.residual > 0 for one in found):
        text = "the base solve did not move, its steps are lost in rounding: take a longer inner step, or a smaller lam"
        return Finding("base", "wrong", text, numbers)
    if rise is not None and rose > rise:
        remedy = "take a shorter inner step, or mp.AdaptiveGradientDescent"
        text = f"the base solve raised its objective, by {percent(rose)} of it: {remedy}"
        return Finding("base", "wrong", text, numbers)
    share = f"the gradient at y_0 is {percent(residual)} of that at x"
    if residual <= CLOSE:
        return Finding("base", "ok", f"the base solve has converged: {share}", numbers)
    text = f"the base solve has not converged, {share}"
    if not isinstance(estimator, Branched | IMAML):
        return Finding("base", "ok", f"{text}, which {type(estimator).__name__} does not ask for", numbers)
    return Finding(
        "base",
        "note",
        f"{text}: {type(estimator).__name__} computes the meta-gradient of a solution that is not reached. More "
        "steps, a better solver or a larger lam bring it closer",
        numbers,
    )


def branches(estimator: Estimator, found: Sequence[Solved], lam: float) -> Finding:
    """Whether the branches' objectives curve upwards along their last steps."""
    along = [pair for one in found for pair in one.branches]
    if not isinstance(estimator, FOBMAML):
        return Finding("branches", "ok", f"{type(estimator).__name__} solves no branches at a nu below 0")
    if not along:
        return Finding.not_checked("branches", "no branch moved")
    inner, query = min(along, key=sum)
    numbers = {"curvature": inner + query, "of_inner": inner, "of_query": query, "lam": lam}
    if inner + query > 0:
        text = (
            f"the branches have minima: the least curvature along a last step is {inner + query:.2g} (lam is {lam:g})"
        )
        return Finding("branches", "ok", text, numbers)
    parts = f"{inner:.2g} of fhat and lam {query:+.2g} of nu f"
    if inner > lam / 2:
        return Finding(
            "branches",
            "wrong",
            f"a branch has no minimum, for its objective curves downwards along its last step ({parts}): nu is too "
            "large. Leave nu out, take a smaller one, or perturb='center'",
            numbers,
        )
    return Finding(
        "branches",
        "note",
        f"a branch's objective curves downwards along its last step ({parts}), as fhat itself does or nearly: y_0 may "
        "be no minimum, and short solves hide it. A larger lam makes it one",
        numbers,
    )
