"""A method's base solve, query gradient, branches and end in one graph, where there is one to be had."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metaprox.losses.adapted import AdaptedLoss
from metaprox.losses.gradients import Gradients
from metaprox.losses.noise import CPU
from metaprox.losses.traced import MOST_STEPS, Rule
from metaprox.losses.traced_branched import Method
from metaprox.losses.vmap import constant, rows_of, rule_of, zero
from metaprox.solvers.protocol import InnerSolver, resumes
from metaprox.types import Metrics


@dataclass(frozen=True)
class Plan:
    """What is to be taken in one.

    method: its formulas. given: the step of its difference, where it has one. weights: a_j of the branches, whose
    gradients at their start are known or not. queried: how many of them take f's gradient at each step. size,
    size_of_branches: of steps that are multiples of the gradient; None of others.
    """

    method: Method
    base: InnerSolver
    steps: int
    branches: InnerSolver
    steps_of_branches: int
    size: float | None
    size_of_branches: float | None
    weights: tuple[float, ...]
    given: float = 0.0
    known: bool = True
    queried: int = 0


@dataclass(frozen=True)
class Taken:
    """What came of it: y_0 and the gradient [T, 1, P], f and its metrics at y_0 [T, 1], what is known of the tasks [T].

    base_sizes, branch_sizes: of the steps [T, K].
    """

    y: Tensor
    grad: Tensor
    value: Tensor
    metrics: Metrics
    known: dict[str, Tensor]
    base_sizes: Tensor
    branch_sizes: Tensor


def take(gradients: Gradients, plan: Plan) -> Taken | None:
    """Returns all of ``plan``, taken in one graph. None where there is none, or where not all of it is finite.

    There is none where losses draw random numbers, or compute more coarsely than in their parameters' dtype, parameters
    do not adapt, tasks have some of their own, a solver is to be called in autocast, or there are more steps than a
    graph has room to record.
    """
    found = _run(gradients, plan) if _in_one(gradients, plan) else None
    if found is None:
        return None
    y, grad, (value, metrics), known, sizes, finite = found
    tasks, count = len(y), plan.steps_of_branches
    evaluated = tasks * (count - plan.known)
    gradients.counts.took(tasks * (plan.steps + 1), 1, 0)
    gradients.counts.took(evaluated, len(plan.weights), plan.queried)
    gradients.counts.query_gradients += tasks
    if not bool(finite):
        return None
    told = zip((plan.steps, count), (plan.size, plan.size_of_branches), sizes, strict=True)
    of_base, of_branches = (
        one[:steps].T if size is None else y.new_full((tasks, steps), size) for steps, size, one in told
    )
    return Taken(y, grad, value, metrics, known, of_base, of_branches)


def _in_one(gradients: Gradients, plan: Plan) -> bool:
    own = gradients.parameters
    fits = plan.steps < MOST_STEPS and 0 < plan.steps_of_branches <= MOST_STEPS
    plain = not (gradients.draws or gradients.coarse or gradients.shares)
    autocast = torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")
    callable_there = not autocast or None not in (plan.size, plan.size_of_branches)
    return gradients.backend.compile and fits and plain and callable_there and own.pieces[0].dim() == 1


def _rule(solver: InnerSolver, size: float | None) -> Rule | None:
    """As the graph gets it."""
    return rule_of(solver) if size is None else None


def _run(gradients: Gradients, plan: Plan) -> Any:
    loss, other = gradients.adapted_inner, gradients.adapted_outer
    assert isinstance(loss, AdaptedLoss)
    assert isinstance(other, AdaptedLoss)
    x, tasks, steps = gradients.parameters.x, gradients.stop - gradients.start, plan.steps_of_branches
    rules = _rule(plan.base, plan.size), _rule(plan.branches, plan.size_of_branches)
    kind = (plan.method, *(None if rule is None else type(rule.solver) for rule in rules))
    fixed = (
        loss.w,
        x,
        constant(x.dtype, x.device, gradients.lam, plan.size or 0.0),
        constant(x.dtype, x.device, gradients.lam, plan.size_of_branches or 0.0, plan.given),
        constant(torch.int64, CPU, plan.steps + 1, steps),
        zero(),
        constant(torch.int64, x.device, plan.steps + 1, plan.steps, False, steps, steps, False).view(2, 3),
        constant(x.dtype, x.device, *plan.weights),
        plan.method,
        rules,
        resumes(plan.branches, plan.base),
    )
    everyone = torch.ones(tasks, dtype=torch.bool, device=x.device)
    with gradients.evaluation(""), gradients.seed(0)(0):
        data, looks = (gradients.data.support, gradients.data.query), plan.steps + steps
        found = loss.graphs_with(other).run(
            "branched", fixed, [everyone], data, looks, kind=kind, branches=len(plan.weights)
        )
    if found is None or len(found[0]) == tasks:
        return found
    y, grad, of_query, known, sizes, finite = found
    y, grad, of_query, known = rows_of((y, grad, of_query, known), tasks)
    return y, grad, of_query, known, tuple(None if one is None else one[:, :tasks] for one in sizes), finite
