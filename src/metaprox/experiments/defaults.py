"""What the defaults of FO-B-MAML are chosen from: its accuracy and its use, against its cost, on a zoo of problems.

The problems are described in defaults_zoo.py. Every setting takes the same K = 10 base steps of gradient descent;
settings differ in the scheme, perturb, the step of the difference (nu or eps), residual correction, the solver of the
branches, their number of steps and their start. Three measures:

error       Relative, against grad F in float64: a long solve, a dense Hessian. Only where there is a grad F to compare
            with: smooth losses with H + lam I positive definite at the solution that the long solve reaches. It holds
            the error of a base of 10 steps too, which no setting of the branches takes away.
difference  Relative, against the derivative that the difference approximates (``Tangent`` with the same settings, in
            float64): truncation and rounding alone. With kinks, it is the distance from the derivative almost
            everywhere, which is not what training needs; therefore:
decrease    Of the query loss after 10 inner steps by an outer step of length 0.1 along -g, relative to the largest
            decrease of all settings on the problem.

A single step says little of training. So there are short runs too: query loss on 60 unseen tasks after 60 meta-steps of
8 tasks by normalized SGD, relative to that at the initial weights, for steps of the difference over decades; two seeds.

"rounding" is the step (machine epsilon)^(1/(p+1)); "rule" the default, eps = D min(2, (||r||/(lam D))^(1/p)) with D the
distance that the base moved and r the gradient that is left at y_0, nu = lam eps/||v||, and for "loss" nu ||v|| at most
0.175 of the support loss's gradient at y_0. Takes 15 minutes on one core (quick: two).
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

import metaprox as mp
from metaprox.experiments import defaults_zoo as zoo
from metaprox.experiments.base import Experiment, Remember, Size
from metaprox.experiments.defaults_report import draw, measure, table
from metaprox.experiments.defaults_settings import OF_STEPS, SETTINGS, TRAINED, Setting
from metaprox.experiments.defaults_zoo import Case, Params

OUTER_STEP, META_STEPS, META_BATCH, HELD_OUT = 0.1, 60, 8, 60
CONVERGED, LEAST = 1e-4, 0.01  # the gradient left, and the least eigenvalue, where grad F is taken to be known
TRAINED_NETWORKS = ("sinusoid, tanh", "MLP, ReLU", "conv, batch norm, ReLU")
QUICK_CASES, QUICK_NETWORKS = ("quadratic", "logistic", "sinusoid, ReLU"), ("sinusoid, tanh",)


def run(size: Size, seed: int, remember: Remember) -> dict[str, Any]:
    names = QUICK_CASES if size == "quick" else tuple(zoo.CASES)
    networks = QUICK_NETWORKS if size == "quick" else TRAINED_NETWORKS
    seeds = range(seed, seed + 1) if size == "quick" else range(seed, seed + 2)
    cases = {name: remember(f"case_{name}", partial(_case, name, seed)) for name in names}
    training = {
        network: {
            setting.name: [
                remember(f"train_{network}_{setting.name}_{own}", partial(_train, network, setting, own))
                for own in seeds
            ]
            for setting in TRAINED
        }
        for network in networks
    }
    settings = {name: asdict(setting) for name, setting in SETTINGS.items()}
    return {"settings": settings, "cases": cases, "training": training}


def _case(name: str, seed: int) -> dict[str, Any]:
    case = zoo.CASES[name](seed)
    exact = None if case.kinks else zoo.exact(case)
    known = exact is not None and exact.residual < CONVERGED and exact.least > LEAST
    truth = exact.gradient if exact and known else None
    before = case.value(case.params)
    fomaml = mp.FOMAML(mp.GradientDescent(case.lr), zoo.STEPS)
    limits = _limits(case)
    rows = {label: _row(case, setting, before, truth, limits) for label, setting in SETTINGS.items()}
    return {
        "kinks": case.kinks,
        "known": known,
        "reference": {"residual": exact.residual, "least": exact.least} if exact else None,
        "fomaml": _judge(case, fomaml(case.problem, case.params, case.tasks), before, truth),
        "rows": rows,
    }


def _limits(case: Case) -> dict[str, Params]:
    """What the differences of the settings OF_STEPS approximate, by ``_limit_of``."""
    double, found = case.double(), {}
    for setting in OF_STEPS:
        if _limit_of(setting) not in found:
            tangent = mp.Tangent(mp.GradientDescent(case.lr), zoo.STEPS, **setting.options(case.lr))
            found[_limit_of(setting)] = tangent(double.problem, double.params, double.tasks).grad
    return found


def _limit_of(setting: Setting) -> str:
    return f"{setting.perturb} {setting.corrected}"


def _row(
    case: Case, setting: Setting, before: float, truth: Params | None, limits: dict[str, Params]
) -> dict[str, float] | None:
    """The measures of a setting, and its gradient evaluations per task; None where a solve overflows."""
    precision = torch.finfo(next(iter(case.params.values())).dtype).eps
    meta = replace(setting.meta(case.lr, zoo.STEPS, precision), estimate_error=False)
    try:
        out = meta(case.problem, case.params, case.tasks)
        row = _judge(case, out, before, truth)
    except mp.NonFiniteError:
        return None
    if setting in OF_STEPS:
        row["difference"] = _short(distance(out.grad, limits[_limit_of(setting)]))
    counts = out.info.counts
    return row | {"support": counts.support_gradients // zoo.TASKS, "query": counts.query_gradients // zoo.TASKS}


def _judge(case: Case, out: mp.MetaGradient, before: float, truth: Params | None) -> dict[str, float]:
    row = {"decrease": _short(decrease_by(case, out.grad, before))}
    return row if truth is None else row | {"error": _short(distance(out.grad, truth))}


def decrease_by(case: Case, g: Mapping[str, Tensor], before: float | None = None) -> float:
    """Of the query loss, relative to what it is ``before``, by an outer step along -g."""
    length = sum(float(part.double().square().sum()) for part in g.values()) ** 0.5
    moved = {name: value - OUTER_STEP / length * g[name] for name, value in case.params.items()}
    return 1 - case.value(moved) / (case.value(case.params) if before is None else before)


def distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """||one - other|| / ||other||."""
    top = sum(float((one[name].double() - other[name]).square().sum()) for name in other)
    return (top / sum(float(value.square().sum()) for value in other.values())) ** 0.5


def _short(value: float) -> float:
    return float(f"{value:.3g}")


def _train(name: str, setting: Setting, seed: int) -> dict[str, float] | None:
    """Query loss on unseen tasks after a short run, relative to that at its start; None where it dies."""
    network, problem = zoo.NETWORKS[name], zoo.problem_of(name, seed)
    family, solver = replace(network.family, seed=seed), mp.GradientDescent(network.lr)
    unseen = replace(family, split="validation").batch
    live = problem.live_parameters()
    optimizer = mp.optim.NormalizedSGD(live.values(), lr=OUTER_STEP)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, META_STEPS)
    meta = setting.meta(network.lr, zoo.STEPS, torch.finfo(torch.float32).eps)
    start = mp.evaluate(problem, unseen, range(HELD_OUT), solver, zoo.STEPS)
    try:
        for step in range(META_STEPS):
            optimizer.zero_grad()
            meta.backward(problem, family.batch(range(META_BATCH * step, META_BATCH * (step + 1))))
            optimizer.step()
            schedule.step()
        end = mp.evaluate(problem, unseen, range(HELD_OUT), solver, zoo.STEPS)
    except mp.NonFiniteError:
        return None
    return {"loss": _short(end.loss.mean / start.loss.mean)}


CLAIM = "A step of the difference as long as the base is inaccurate serves smooth losses and kinks alike"
EXPERIMENT = Experiment("defaults", CLAIM, run, draw, measure, table)
