"""Checks of a meta-gradient against what it is meant to be: the limit nu -> 0, and the slope of F."""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from metaprox.call import Call
from metaprox.checking.field import ASYMMETRY, KINKS, SLOPE, Field
from metaprox.checking.findings import Finding, Verdict, percent
from metaprox.checking.slopes import slopes
from metaprox.checking.solves import Solved, residual
from metaprox.checking.watched import Run, run
from metaprox.errors import NonFiniteError
from metaprox.estimators import FOBMAML, FOMAML, MAML, Estimator, Tangent
from metaprox.estimators.branched import Branched
from metaprox.solvers.protocol import relative_step

CLOSE = 0.05  # a difference up to here is none
LARGE = 0.2  # rounding from here on is wrong, and truncation to be known
TOO_LONG = 0.5  # a truncation that leaves little of the meta-gradient
ROUGH = 0.3  # a slope of F with more noise says nothing
SOLVED = 0.01  # what converged solves leave of the gradient at x, and in the linear system
OF_TANGENT = (
    *("solver", "steps", "tol", "max_steps"),
    *("perturb", "branch_solver", "branch_steps", "residual_correction", "start"),
)
LONGER, HOPELESS = 10, 0.7  # times the steps, to see if a difference goes away; not if so much of the gradient is left


@dataclass(frozen=True)
class Limit:
    """What a meta-gradient is held to as nu -> 0: g [P + W], and how it was had."""

    g: Tensor
    change: str


@dataclass(frozen=True)
class Judged:
    """A task: its run, what was seen of it, and the limit nu -> 0; None for estimators that take no difference.

    native: the meta-gradient [P + W] in the parameters' own precision with the same nu; None: not comparable.
    """

    task: int
    run: Run
    solved: Solved
    field: Field
    limit: Limit | None
    native: Tensor | None


def limit(call: Call, estimator: Estimator, task: int, seen: Field, found: Run) -> Limit | None:
    """Returns FOBMAML's meta-gradient for nu -> 0: by Tangent with its settings, or else at a quarter of nu.

    Tangent is another thing where the inner loss has no gradient, no second derivative, or the steps of the solver are
    no fixed multiple of the gradient: converged, their derivatives are 0/0. And nu is not to blame for a difference
    that a quarter of nu does not change.
    """
    if not isinstance(estimator, FOBMAML):
        return None
    tangent = _tangent(call, estimator, task) if seen.asymmetry <= ASYMMETRY else None
    if tangent is not None and (seen.kinks > KINKS or _apart(found.g, tangent) <= LARGE):
        return Limit(tangent, "nu -> 0 (Tangent)")
    settings = {name: value / 4 for name in ("nu", "eps") if (value := getattr(estimator, name)) is not None}
    quarter = run(call, replace(estimator, **settings), task).g if settings else found.g  # without v any nu will do
    if tangent is not None and _apart(found.g, quarter) > CLOSE:
        return Limit(tangent, "nu -> 0 (Tangent)")
    return Limit(quarter, "a quarter of nu")


def _tangent(call: Call, estimator: FOBMAML, task: int) -> Tensor | None:
    if relative_step(estimator._solver_of_branches) is None:
        return None
    with suppress(Exception):  # a kernel without second derivatives
        tangent = Tangent(**{name: getattr(estimator, name) for name in OF_TANGENT})
        gradients = call.gradients((task, task + 1))
        return call.of_learned(tangent._estimate(gradients, keep_adapted=False).grad, gradients)[0, 0]
    return None


def difference(judged: Sequence[Judged], precision: float, lam: float) -> Finding:
    """How much of the meta-gradient is rounding, and how much is due to the length of nu."""
    limits = [(one, one.limit) for one in judged if one.limit is not None]
    if not limits:
        return Finding("nu", "ok", "no difference is taken")
    natives = [(one, one.native) for one in judged if one.native is not None]
    rounding = max((_apart(native, one.run.g) for one, native in natives), default=math.nan)
    truncation = max(_apart(one.run.g, limit.g) for one, limit in limits)
    numbers = {"rounding": rounding, "truncation": truncation, "nu": max(float(one.run.info.nu) for one in judged)}
    text = "" if math.isnan(rounding) else f"rounding is {percent(rounding)} of the meta-gradient; "
    text += f"{limits[0][1].change} would change it by {percent(truncation)}"
    kinks = any(one.field.kinks > KINKS for one in judged)
    if truncation > LARGE and not kinks:
        verdict: Verdict = "wrong" if truncation > TOO_LONG else "note"
        return Finding("nu", verdict, f"{text}, in a loss that is smooth: nu is too long, take a smaller one", numbers)
    if rounding > LARGE:
        if any(precision * float(one.run.y0.norm()) * lam > rounding / 100 * _moved(one) for one in judged):
            remedy = "nu is too short for the precision. Leave it out, take a longer one, or parameters in float64"
            return Finding("nu", "wrong", f"{text}: {remedy}", numbers)
        why = "the solves amplify rounding, as steps near the edge of stability and kinks do"
        return Finding("nu", "note", f"{text}: {why}", numbers)
    if truncation > LARGE:
        why = "a longer step sees the curvature that lies in them, its limit that of one linear piece"
        return Finding("nu", "note", f"{text}, which kinks (ReLU, max-pooling) explain: {why}", numbers)
    return Finding("nu", "ok", text, numbers)


def _moved(one: Judged) -> float:
    """nu ||g||, lam times the distance of branches that is divided by nu."""
    return float(one.run.info.nu) * float(one.run.g.norm())


def _apart(one: Tensor, other: Tensor) -> float:
    size = float(other.norm())
    return float((one - other).norm()) / size if size > 0 else float(one.any())


def meta_gradient(call: Call, estimator: Estimator, judged: Sequence[Judged]) -> Finding:
    """Returns whether g has the slopes of F, as K steps compute it; if not, whether longer solves explain it.

    Costs 5 to 17 base solves a task, and on the worst task as many that are ``LONGER`` times as long.
    """
    found = [slopes(call, estimator, one.run, one.task) for one in judged]
    pairs = [(each, one) for each, one in zip(found, judged, strict=True) if each.noise(one.run.g) < ROUGH]
    if not pairs:
        return Finding.not_checked("meta-gradient", "F is too rough along it for a difference: kinks, or low precision")
    worst, one = max(pairs, key=lambda pair: pair[0].error(pair[1].run.g))
    g, error = one.run.g, worst.error(one.run.g)
    numbers = {"error": error, "angle": worst.angle(g), "residual": one.solved.residual}
    if one.limit is not None:
        numbers["error_of_limit"] = worst.error(one.limit.g)
    name, F = type(estimator).__name__, f"F, as {estimator._stopping().max_steps} steps compute it,"
    if error <= CLOSE:
        return Finding("meta-gradient", "ok", f"{name} has the slopes of {F} to {percent(error)}", numbers)
    steep = f"{worst.steepness / float(g.norm()):.2g} times as steep" if g.any() else "steep, where g is 0,"
    said = f"{F} is {steep} as {name} says, {worst.angle(g):.0f} degrees off"
    why = _known_reason(estimator, one, error, numbers.get("error_of_limit", error))
    falls = sum(each.inner(pair.run.g) for each, pair in pairs)
    if falls < 0 and g.dtype == torch.float64:
        text = f"{said}, and rises along -g: a step along it makes adaptation worse. {why or _mistake(one)}"
        return Finding("meta-gradient", "wrong", text, numbers)
    if why:
        return Finding("meta-gradient", "note", f"{said}: {why}", numbers)
    return _with_longer_solves(call, estimator, one, error, said, numbers)


def _known_reason(estimator: Estimator, one: Judged, error: float, error_of_limit: float) -> str:
    """Why a meta-gradient need not have the slopes of F however long the solves are, or ""."""
    if error_of_limit < error / 2:
        return f"that is due to the length of nu, without which they differ by {percent(error_of_limit)}: see nu"
    if isinstance(estimator, FOMAML):
        return "it leaves the curvature out by design"
    if one.field.query_slope > SLOPE:
        return "the query loss's value has another slope than its gradient says (detach, reversed gradients)"
    if one.field.kinks > KINKS:
        return f"{_explained(one)}; and across kinks (ReLU, max-pooling, coarse rounding) slopes change"
    return ""


def _with_longer_solves(
    call: Call, estimator: Estimator, one: Judged, error: float, said: str, numbers: dict[str, float]
) -> Finding:
    """The verdict on a difference that is no mistake if it goes away as the solves converge."""
    if _has_converged(estimator, one.run, one.solved.residual):
        return Finding("meta-gradient", "wrong", f"{said}, though the solves have converged: {_mistake(one)}", numbers)
    if one.solved.residual > HOPELESS:
        return Finding("meta-gradient", "note", f"{said}: {_explained(one)}", numbers)
    try:
        tried, left, apart = _longer(call, estimator, one.task)
    except NonFiniteError as failure:
        return Finding("meta-gradient", "note", f"{said}, and longer solves diverge: {failure}", numbers)
    numbers |= {"error_of_longer": apart, "residual_of_longer": left}
    longer = f"{said}, and with {LONGER} times the steps the two differ by {percent(apart)}"
    if apart > max(CLOSE, left) and _has_converged(estimator, tried, left):
        return Finding("meta-gradient", "wrong", f"{longer}, converged: {_mistake(one)}", numbers)
    return Finding("meta-gradient", "note", f"{longer}: {_explained(one)}", numbers)


def _mistake(one: Judged) -> str:
    if one.field.asymmetry > ASYMMETRY:
        return "the reason is the inner loss, which has no gradient (see field)"
    return "if nothing else is wrong here, it is a mistake of metaprox's, please report it"


def _longer(call: Call, estimator: Estimator, task: int) -> tuple[Run, float, float]:
    """A run with ``LONGER`` times the steps, what it leaves of the gradient at x, and its error."""
    changes: dict[str, Any] = {"steps": estimator.steps and LONGER * estimator.steps}
    if estimator.tol is not None and estimator.max_steps is not None:
        changes = {"tol": estimator.tol / LONGER**2, "max_steps": LONGER * estimator.max_steps}
    if isinstance(estimator, Branched) and estimator.branch_steps:
        changes["branch_steps"] = LONGER * estimator.branch_steps
    longer = replace(estimator, **changes)
    found = run(call, longer, task)
    error = slopes(call, longer, found, task).error(found.g)
    return found, residual(call, found, task), error


def _has_converged(estimator: Estimator, found: Run, left: float) -> bool:
    """Whether nothing that the solves have left over explains a difference."""
    if isinstance(estimator, MAML):
        return True  # it is the derivative of its own steps
    return left < SOLVED and float(found.info.linear_residual) < SOLVED  # NaN: not known


def _explained(one: Judged) -> str:
    return (
        f"the solves do not reach the solution whose gradient it is (at y_0 {percent(one.solved.residual)} of the "
        "gradient at x are left). More steps, better solvers or a larger lam bring them together"
    )
