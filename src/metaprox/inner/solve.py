"""THE loop: T tasks x B coupled branches, one step at a time. It owns stopping, finite checks and step records."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metaprox import checks
from metaprox.errors import InputError
from metaprox.inner.failures import Purpose
from metaprox.inner.leap import InOne, leap
from metaprox.inner.progress import Enough, Progress, Solution
from metaprox.inner.trail import Trail
from metaprox.inner.turns import Turns
from metaprox.losses.backend import Step
from metaprox.losses.memory import Memory
from metaprox.solvers.protocol import InnerSolver, take_step
from metaprox.vectors.norms import mark, norm


@dataclass(frozen=True)
class Stopping:
    """When an inner solve ends: after ``max_steps``, or for each task once its gradient norm is <= ``tol``."""

    max_steps: int
    tol: float | None = None

    @classmethod
    def of(cls, steps: int | None, tol: float | None, max_steps: int | None) -> "Stopping":
        """From the public arguments: ``steps=K`` alone, or ``tol=...`` with ``max_steps=...``."""
        if steps is not None and tol is None and max_steps is None:
            return cls(checks.count("steps", steps))
        if steps is None and tol is not None and max_steps is not None:
            limit = checks.positive("tol", tol)
            return cls(checks.count("max_steps", max_steps), limit)
        raise InputError(
            f"say when the inner solve ends: steps=K, or tol=... with max_steps=...; "
            f"got steps={steps!r}, tol={tol!r}, max_steps={max_steps!r}"
        )


# (y, step, branches) -> gradient [T, b, P] at the points y of these branches; or that and the step in one, or None.
GradientAt = Callable[[Tensor, int, slice], Tensor]
Fused = Callable[[Tensor, int, slice], Step | None]
ANY = Purpose()


def solve(
    gradient: Callable[[Tensor, int], Tensor],
    y: Tensor,
    solver: InnerSolver,
    max_steps: int,
    *,
    tol: Tensor | Enough | None = None,
    trail: Trail | None = None,
    begin: Callable[[Tensor], Any] | None = None,
    purpose: Purpose = ANY,
) -> Solution:
    """``solve_parts`` of all branches y [T, B, P] at once: ``gradient(y, step)`` -> gradient [T, B, P]."""
    one = lambda y, step, branches: gradient(y, step)  # noqa: E731
    return solve_parts(one, [y], solver, max_steps, tol=tol, trail=trail, begin=begin, purpose=purpose)


def solve_parts(
    gradient: GradientAt,
    parts: list[Tensor] | Turns,
    solver: InnerSolver,
    max_steps: int,
    *,
    first: list[Tensor] | None = None,
    fused: Fused = lambda y, step, branches: None,
    in_one: InOne = lambda run: None,
    tol: Tensor | Enough | None = None,
    trail: Trail | None = None,
    begin: Callable[[Tensor], Any] | None = None,
    memory: Memory | None = None,
    purpose: Purpose = ANY,
) -> Solution:
    """Take up to ``max_steps`` steps of ``solver`` from B branches of T tasks, a part of the branches at a time.

    No graph is kept, and no tensor is written on that is not of ``memory``. Where the branches are in several parts,
    only one part's gradient is alive at a time; the solver then sees one part at a time too, and there is no early
    stop.

    Args:
        gradient: called once a step and part, which is all the solve costs.
        parts: where to start, [T, b, P] each. The list is emptied, so that no start lives longer than its first step.
            Or branches that take turns, each with all of its steps. To the last bit it comes to the same: noise is that
            of the step, and ``trail`` adds up what it is shown of a step in the order of the branches; only where a
            task diverges, and is not to move on, its other branches may have taken other steps.
        solver: it gets the gradients of a part, [T, b, P].
        max_steps: how many are taken; with ``tol``, at most.
        first: the gradients there, where they are known. This list is emptied too.
        fused: tried before ``gradient``.
        in_one: tried before that, where branches are in one part and there is no early stop. Steps are multiples of the
            gradient, or those of a solver whose state is tensors.
        tol: [T]; a task stops, all branches together, once all its gradient norms are <= tol, or once this says that it
            is enough. None: no early stop.
        trail: is shown the last gradients and steps.
        begin: the solver's state at a start [T, b, P]; ``solver.init`` unless given.
        memory: of this solve, which ``gradient`` and ``fused`` use too: points move in place, and gradients are filled
            anew. None: all are new tensors.
        purpose: what this is, for the error message, and what happens where a gradient is not finite.

    Returns:
        Where the parts ended, [T, b, P] each, or away, and what was seen on the way.

    Raises:
        NonFiniteError: a gradient has a non-finite norm. Without ``tol`` it is looked for once, at the end, so
            that an accelerator never waits for the host; the step named is the first bad one all the same.
    """
    init, known, current, states = begin or solver.init, first or [], list[Any](), list[Any]()
    if isinstance(parts, Turns):
        progress = Progress(parts.like, solver, max_steps, trail, tol, purpose, memory)
        visits = parts.visits(current, states, known, max_steps, init, memory)
    else:
        assert tol is None or len(parts) == 1
        progress = Progress(parts[0], solver, max_steps, trail, tol, purpose, memory)
        current, visits, states = parts[:], _interleaved(parts, max_steps), [init(y) for y in parts]
        parts.clear()
    for step, index, where in visits:
        if step < progress.beyond or (not known and leap(progress, in_one, current, states, step)):
            continue
        y = current[index]
        if memory is not None:
            memory.unseen = progress.unseen(step)
        taken = None if known else fused(y, step, where)
        if taken is None:
            unseen = memory is not None and memory.unseen and memory.size is not None
            taken = _evaluated(y, known.pop(0) if known else gradient(y, step, where), unseen=unseen)
        progress.record(step, y, taken.grad, taken.norm, where)
        if progress.stopped:
            break
        new = taken.y
        if new is y and taken.grad is not None:
            new, states[index] = _stepped(solver, y, taken.grad, states[index], where.start, memory, progress)
        current[index] = progress.moved(step, new, y, taken.norm, where, states[index])
        del new, y, taken  # so that their memory serves the next lines
    return progress.solution(tuple(current))


def _interleaved(parts: list[Tensor], max_steps: int) -> Iterator[tuple[int, int, slice]]:
    """A step of each part before the next step: step, the part's number, and which branches it holds."""
    ends = list(itertools.accumulate(part.shape[1] for part in parts))
    branches = [slice(end - part.shape[1], end) for part, end in zip(parts, ends, strict=True)]
    return ((step, index, where) for step in range(max_steps) for index, where in enumerate(branches))


def _evaluated(y: Tensor, gradient: Tensor, *, unseen: bool) -> Step:
    """A step that is still to be taken; ``unseen``: nobody asks for its length."""
    return Step(y, gradient, (mark if unseen else norm)(gradient).squeeze(-1))


def _stepped(
    solver: InnerSolver, y: Tensor, grad: Tensor, state: Any, first: int, memory: Memory | None, progress: Progress
) -> tuple[Tensor, Any]:
    """The step from y of the part that begins with branch ``first``, and the solver's state after it."""
    in_place = memory is not None and memory.size is not None and progress.all_move
    if memory is not None and in_place:
        new = memory.step(y, grad, first)
    else:
        with _without_autocast(y.device.type):
            new, state = take_step(solver, grad, y, state)
    if memory is not None and (in_place or memory.reusable) and not progress.keeps_gradient:
        memory.give_back(grad)
    return new, state


def _without_autocast(device: str) -> AbstractContextManager[Any]:
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
