"""What is compiled: losses at all points at once, a step along their gradients, and a whole solve of such steps."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._higher_order_ops.while_loop import while_loop_op

from metaprox.losses.checked import CheckedLoss, InGraph
from metaprox.losses.compiling import NotCompiledError, only_compiled
from metaprox.losses.vmapped import evaluated_in_graph
from metaprox.solvers.state import Form, alike, put_together, taken_apart
from metaprox.vectors.norms import inner_here, norm_here
from metaprox.vectors.parameters import Structure

MOST_STEPS = 64  # evaluations that a graph has room to record

# Shapes: T tasks, B branches, P parameters that adapt, W that do not.


class Seen(NamedTuple):
    """Of an evaluation in a solve: where, g_j and ||g_j|| [T, B], G and ||G|| [T], and who steps [T, 1, 1]."""

    y: Tensor
    gradient: Tensor
    norms: Tensor
    total: Tensor
    length: Tensor
    moves: Tensor


class Rule(NamedTuple):
    """The steps of ``solver``: whether it tells their size, and whether it builds its state as that is at last."""

    solver: Any
    sized: bool
    grows: bool


Advanced = tuple[Tensor, list[Tensor], list[Tensor]]  # the next point, what is noted of the step, and the memory
Advance = Callable[[Seen, tuple[Tensor, ...]], Advanced]


def evaluate(structure: Structure) -> Callable[..., Any]:
    """(losses, w [W], y [T, B, P], data) -> gradients, (values, metrics)."""

    def evaluate(losses: tuple[CheckedLoss, ...], w: Tensor, y: Tensor, data: Any) -> Any:
        only_compiled()
        return evaluated(losses[0].for_graphs(), structure, w, y, data)

    return evaluate


def step(structure: Structure) -> Callable[..., Any]:
    """Returns what makes y - size g, g and ||g|| [T, B] of w [W], x [P], (lam, size) [2], y, shift [T, B, P] and data.

    g = gradients + lam (y - x) + shift. No number is a constant of the graph.
    """

    def step(
        losses: tuple[CheckedLoss, ...], w: Tensor, x: Tensor, numbers: Tensor, y: Tensor, shift: Tensor, data: Any
    ) -> tuple[Tensor, ...]:
        only_compiled()
        lam, size = numbers.unbind()
        gradient = evaluated(losses[0].for_graphs(), structure, w, y, data)[0] + lam * (y - x) + shift
        return y - size * gradient, gradient, norm_here(gradient).squeeze(-1)

    return step


def solve(structure: Structure) -> Callable[..., Any]:
    """Returns what takes up to ``MOST_STEPS`` steps, in a loop that is a part of the graph.

    It gets losses, w, x, numbers as a step does; limit, the number of evaluations, and start, which is 0, on the CPU;
    plan (evaluations, steps, freezes) [3]; weights a_j [B]; rule: None, for steps -size g, or what ``by_solver`` gets;
    y and shift; active [T], the tasks that step; the memory of that rule; further, data. Evaluations beyond the steps
    are at the last point. ``freezes``: whether a task stays where a gradient of its is not finite. Where data are those
    of two losses, further is the weight [T, b, 1] of the second one's gradients, which are added to the last b of g.

    It gives y; of each evaluation ||g_j|| [MOST_STEPS, T, B], ||G|| and the curvature along the step before
    [MOST_STEPS, T], G = sum_j a_j g_j, and by a solver the size of the step; and the memory, by a solver the last G
    before it.
    """

    def solve(
        losses: tuple[CheckedLoss, ...],
        w: Tensor,
        x: Tensor,
        numbers: Tensor,
        limit: Tensor,
        start: Tensor,
        plan: Tensor,
        weights: Tensor,
        rule: Any,
        *of_tasks: Any,
    ) -> tuple[Any, ...]:
        only_compiled()
        y, shift, active, memory, further, data = of_tasks
        in_graph = [loss.for_graphs() for loss in losses]
        gradient_at = sum_of_gradients(in_graph, structure, w, x, numbers, shift, further, data)
        advance = by_gradient(numbers) if rule is None else by_solver(weights, *rule)
        empty = empty_records(y, 1 if rule is None else 2)
        records, first = len(empty), memory if rule is None else (torch.empty_like(memory[0]), *memory)
        first = (start, y, active, *empty, *first)
        _, y, _, *kept = looped(gradient_at, advance, limit, plan, weights, records, first)
        return y, tuple(kept[:records]), tuple(kept[records:])

    return solve


def looped(
    gradient_at: Callable[[Tensor], Tensor],
    advance: Advance,
    limit: Tensor,
    plan: Tensor,
    weights: Tensor,
    records: int,
    first: Any,
) -> Any:
    """Returns what ``first`` becomes by evaluations and steps: step, y, active; records, with a row each; memory.

    Whether to go on is known on the CPU, without waiting for a device, which counts for itself: its kernels take no
    tensor of the CPU.
    """
    start, y, active, *kept = first
    counter = () if y.device == start.device else (start.to(y.device),)

    def body(step: Tensor, y: Tensor, active: Tensor, *kept: Tensor) -> tuple[Tensor, ...]:
        now, kept = (kept[0], kept[1:]) if counter else (step, kept)
        seen, active = look(now, y, gradient_at(y), active, plan, weights)
        new, found, memory = advance(seen, kept[records:])
        counted = (now + 1,) if counter else ()
        return step + 1, new, active, *counted, *noted(now, seen, found, kept), *memory

    carried = (start, y, active, *counter, *kept)  # flat, so that torch's ``while_loop`` has nothing to do
    step, y, active, *kept = while_loop_op(lambda step, *_: step < limit, body, carried, ())
    return step, y, active, *kept[len(counter) :]


def look(
    step: Tensor, y: Tensor, gradient: Tensor, active: Tensor, plan: Tensor, weights: Tensor
) -> tuple[Seen, Tensor]:
    """What is seen of an evaluation, and who goes on."""
    norms = norm_here(gradient).squeeze(-1)
    total = (weights[:, None] * gradient).sum(1, keepdim=True)
    length = weights.abs() * norms[:, 0] if y.shape[1] == 1 else norm_here(total).flatten()
    active = active & (norms.isfinite().all(1) | (plan[2] == 0))
    moves = (active & (step < plan[1]))[:, None, None]
    return Seen(y, gradient, norms, total, length, moves), active


def noted(step: Tensor, seen: Seen, found: list[Tensor], kept: tuple[Tensor, ...]) -> list[Tensor]:
    """The records that ``kept`` begins with, and in them this evaluation."""
    here = torch.arange(MOST_STEPS, device=seen.y.device) == step
    pairs = zip((seen.norms, seen.length, *found), kept, strict=False)
    return [torch.where(here.view(-1, *[1] * one.dim()), one, rows) for one, rows in pairs]


def empty_records(y: Tensor, further: int) -> list[Tensor]:
    """Rows for the evaluations of a solve from y, of which only those are looked at that there have been."""
    return [y.new_empty(MOST_STEPS, *y.shape[:2]), *(y.new_empty(MOST_STEPS, len(y)) for _ in range(1 + further))]


def by_gradient(numbers: Tensor) -> Advance:
    """Steps -size g. Memory: G [T, 1, P] one evaluation before, and its norm [T]; none where there is no such one."""

    def advance(seen: Seen, memory: tuple[Tensor, ...]) -> Advanced:
        size, curvature = numbers[1], torch.zeros_like(seen.length)
        if memory:
            way, before = memory
            curvature = (1 - inner_here(seen.total, way, before) / before) / size
        return torch.where(seen.moves, seen.y - size * seen.gradient, seen.y), [curvature], [seen.total, seen.length]

    return advance


def by_solver(weights: Tensor, rule: Rule, form: Form) -> Advance:
    """Returns the steps of a solver, whose state is built as ``form`` says.

    Memory: G at the last evaluation; S = sum_j a_j (y_j - y_j before) [T, 1, P], its norm and <S, G before> / ||S||
    [T]; the tensors of the state.
    """

    def advance(seen: Seen, memory: tuple[Tensor, ...]) -> Advanced:
        new, found, now = step_of(rule, weights, seen, memory[1:4], put_together(form, iter(memory[4:])))
        if not alike(now[0], form):
            raise NotCompiledError
        return new, found, now[1]

    return advance


def step_of(
    rule: Rule, weights: Tensor, seen: Seen, memory: tuple[Tensor, ...], state: Any
) -> tuple[Tensor, list[Tensor], tuple[Form, list[Tensor]]]:
    """A step of a solver: the point, what is noted, and how the state is built with the memory after it."""
    way, before, slope = memory
    y, gradient, norms, total, _, moves = seen
    curvature = (inner_here(total, way, before) - slope) / before
    stepped, state = stepped_by(rule, gradient, y, state)
    parts = taken_apart(state)
    if parts is None:
        raise NotCompiledError
    new = torch.where(moves, stepped, y)
    way = (weights[:, None] * (new - y)).sum(1, keepdim=True)
    before = norm_here(way).flatten()
    told = rule.solver.step_size(state) if rule.sized else norm_here(new[:, 0] - y[:, 0]).squeeze(-1) / norms[:, 0]
    tensors = [tensor.clone() for tensor in parts[1]]  # none of which may be what the loop has given
    kept = [total, way, before, inner_here(total, way, before), *tensors]
    return new, [curvature, told], (parts[0], kept)


def stepped_by(rule: Rule, gradient: Tensor, y: Tensor, state: Any) -> tuple[Tensor, Any]:
    """The next point, and the state built as it is at last."""
    new, state = rule.solver.step(gradient, y, state)
    return new, rule.solver.lasting(state) if rule.grows else state


def sum_of_gradients(
    losses: Sequence[InGraph],
    structure: Structure,
    w: Tensor,
    x: Tensor,
    numbers: Tensor,
    shift: Tensor | None,
    further: tuple[Tensor, ...],
    data: Any,
) -> Callable[[Tensor], Tensor]:
    """Gradients + lam (y - x) + shift at y, to which f's are added where they are wanted, as for ``solve``."""

    def at(y: Tensor) -> Tensor:
        lam = numbers[0]  # taken apart here: a loop gets no two views of the same
        support = data[0] if further else data
        gradient: Tensor = evaluated(losses[0], structure, w, y, support)[0] + lam * (y - x)
        gradient = gradient if shift is None else gradient + shift
        if not further:
            return gradient
        start = y.shape[1] - further[0].shape[1]
        moved = further[0] * evaluated(losses[1], structure, w, y[:, start:], data[1])[0]
        return torch.cat([gradient[:, :start], gradient[:, start:] + moved], 1) if start else gradient + moved

    return at


def evaluated(loss: InGraph, structure: Structure, w: Tensor, y: Tensor, data: Any) -> Any:
    return evaluated_in_graph(lambda point, one: loss(structure.unflatten(point, w), one), y, data)
