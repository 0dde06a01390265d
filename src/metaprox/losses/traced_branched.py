"""What is compiled of a method with branches: its base solve, the query gradient, its branches and the end, in one."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from metaprox.losses.checked import CheckedLoss
from metaprox.losses.compiling import NotCompiledError, only_compiled
from metaprox.losses.traced import (
    Rule,
    by_gradient,
    by_solver,
    empty_records,
    evaluated,
    look,
    looped,
    noted,
    step_of,
    stepped_by,
    sum_of_gradients,
)
from metaprox.solvers.state import alike, taken_apart
from metaprox.vectors.parameters import Structure

# Shapes: T tasks, B branches, P parameters that adapt, W that do not.


class Solved(NamedTuple):
    """A solve that has ended at y [T, B, P], after ``steps`` steps, a number in a tensor.

    grad: G at the last evaluation [T, 1, P], G = sum_j a_j grad_j. Of the evaluations, in the first rows of each:
    norms ||grad_j|| [n, T, B], lengths ||G|| and curvatures along the step before [n, T].
    """

    y: Tensor
    steps: Tensor
    grad: Tensor
    norms: Tensor
    lengths: Tensor
    curvatures: Tensor
    sizes: Tensor | None


class Posed(NamedTuple):
    """A solve that is to be taken: all but the gradient at y [T, B, P] is as ``traced.solve`` has it."""

    gradient_at: Callable[[Tensor], Tensor]
    numbers: Tensor
    limit: Tensor
    start: Tensor
    plan: Tensor
    weights: Tensor
    active: Tensor


class Leaving(NamedTuple):
    """Where branches start [T, B, P], and their gradients there where they are known; their linear term or None;

    and of f's gradients, which are added to those of the last b branches, the weights [T, b, 1], if they are wanted.
    """

    y: Tensor
    first: Tensor | None
    linear: Tensor | None
    tilt: Tensor | None


class Method(Protocol):
    """The formulas of a method between its solves, and after them, which are traced. Hashable, without numbers."""

    def leave(self, x: Tensor, base: Solved, v: Tensor, lam: Tensor, given: Tensor) -> tuple[Leaving, Any]:
        """How it leaves the base's y_0, where v = grad f(y_0) [T, 1, P], and what it wants to know at the end.

        given: the step of the difference, where it has one.
        """

    def end(self, known: Any, branches: Solved, lam: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The gradient with respect to x [T, 1, P], and what is said of each task [T], NaN or inf where it is not."""


def branched(structure: Structure) -> Callable[..., Any]:
    """Returns what takes a base solve, grad f(y_0) and branches, by ``method``.

    It gets losses, w, x; numbers: lam and the size of the base's steps [2]; lam, the size of the branches' and what is
    given [3]; limits [2], start and plans [2, 3] as of a solve, of the base, whose last evaluation is at its end, and
    of the branches; weights a_j [B]; method; rules of both: None, for steps -size g, or a solver's; whether branches go
    on with those of the base; active [T], all; data of both losses.

    It gives y_0 and the gradient [T, 1, P], f and its metrics there [T, 1], what is known of each task, sizes of the
    base's and the branches' steps [MOST_STEPS, T] by a solver, and whether all is finite.
    """

    def branched(
        losses: tuple[CheckedLoss, ...],
        w: Tensor,
        x: Tensor,
        numbers: Tensor,
        further: Tensor,
        limits: Tensor,
        start: Tensor,
        plans: Tensor,
        weights: Tensor,
        method: Method,
        rules: tuple[Rule | None, Rule | None],
        resumes: bool,
        active: Tensor,
        data: Any,
    ) -> tuple[Any, ...]:
        only_compiled()
        in_graph = [loss.for_graphs() for loss in losses]
        alone, (plan, plan_of_branches) = torch.ones_like(numbers[:1]), plans.unbind()
        y = x.expand(len(active), 1, -1).clone()
        _check_states(rules, y)
        shift = torch.zeros_like(y)  # so that the loop of branches may have the same kernels
        at = sum_of_gradients(in_graph, structure, w, x, numbers, shift, (), data[0])
        posed = Posed(at, numbers, limits[0], start, plan, alone, active)
        base = _along_gradients(posed, y) if rules[0] is None else _solved(posed, y, None, rules[0])
        v, (value, metrics) = evaluated(in_graph[1], structure, w, base.y, data[1])
        leaving, known = method.leave(x, base, v, numbers[0], further[2])
        queried = () if leaving.tilt is None else (leaving.tilt,)
        at = sum_of_gradients(in_graph, structure, w, x, further, leaving.linear, queried, data if queried else data[0])
        taken = _those_taken(base) if resumes else None
        posed = Posed(at, further, limits[1], start, plan_of_branches, weights, active)
        branches = _solved(posed, leaving.y, leaving.first, rules[1], taken)
        grad, found = method.end(known, branches, numbers[0])
        finite = _finite(base.norms, plan) & _finite(branches.norms, plan_of_branches) & value.isfinite().all()
        for one in (v, grad):
            finite = finite & one.isfinite().all()
        return base.y, grad, (value, metrics), found, (base.sizes, branches.sizes), finite

    return branched


def _along_gradients(posed: Posed, y: Tensor) -> Solved:
    """Returns the solve of a single branch from y by steps -size g, all of them in the loop."""
    gradient_at, numbers, limit, start, plan, weights, active = posed
    memory = (torch.zeros_like(y), torch.ones_like(y[:, 0, 0]))
    records = empty_records(y, 1)
    first = (start, y, active, *records, *memory)
    _, y, _, *kept = looped(gradient_at, by_gradient(numbers), limit, plan, weights, len(records), first)
    return Solved(y, plan[1], kept[3], kept[0], kept[1], kept[2], None)


def _check_states(rules: tuple[Rule | None, ...], y: Tensor) -> None:
    """Raise NotCompiledError, before losses are traced, unless solvers' states are built as they were after a step."""
    for rule in (rule for rule in rules if rule is not None):
        new, state = stepped_by(rule, y, y, rule.solver.init(y))
        parts = taken_apart(state)
        _, state = stepped_by(rule, y, new, state)
        further = taken_apart(state)
        if parts is None or further is None or not alike(parts[0], further[0]):
            raise NotCompiledError
        if [tensor.shape for tensor in parts[1]] != [tensor.shape for tensor in further[1]]:
            raise NotCompiledError


def _those_taken(base: Solved) -> Tensor:
    """The sizes of its steps [T, MOST_STEPS], NaN after the last."""
    assert base.sizes is not None
    taken = torch.arange(len(base.sizes), device=base.sizes.device) < base.steps
    return torch.where(taken[:, None], base.sizes, torch.nan).T


def _solved(posed: Posed, y: Tensor, known: Tensor | None, rule: Rule | None, taken: Tensor | None = None) -> Solved:
    """Returns the solve from y, with the first step before the loop: by a ``known`` gradient or an evaluation more.

    So that a solver's state is built as it lasts when the loop begins. ``taken``: steps [T, n] that it goes on with.
    """
    gradient_at, numbers, limit, start, plan, weights, active = posed
    records = empty_records(y, 1 if rule is None else 2)
    now = start.to(y.device)
    seen, active = look(now, y, gradient_at(y) if known is None else known, active, plan, weights)
    zero, one = torch.zeros_like(seen.total), torch.ones_like(seen.length)
    if rule is None:
        advance = by_gradient(numbers)
        new, found, memory = advance(seen, ())
    else:
        state = rule.solver.init(y) if taken is None else rule.solver.resume(y, taken)
        new, found, (form, memory) = step_of(rule, weights, seen, (zero, one, 0 * one), state)
        advance = by_solver(weights, rule, form)
    first = (start + 1, new, active, *noted(now, seen, found, tuple(records)), *memory)
    _, y, _, *kept = looped(gradient_at, advance, limit, plan, weights, len(records), first)
    sizes = None if rule is None else kept[3]
    return Solved(y, plan[1], kept[len(records)], kept[0], kept[1], kept[2], sizes)


def _finite(norms: Tensor, plan: Tensor) -> Tensor:
    """Whether those of all evaluations are."""
    beyond = torch.arange(len(norms), device=norms.device) >= plan[0]
    return (norms.isfinite() | beyond[:, None, None]).all()
