"""THE loop: T tasks x B coupled branches, one step at a time. It owns stopping, finite checks and step records."""

import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metaprox import checks
from metaprox.errors import InputError, NonFiniteError
from metaprox.inner.failures import Purpose, failure_of
from metaprox.inner.leap import InOne, leap
from metaprox.inner.trail import Trail
from metaprox.losses.backend import Step
from metaprox.solvers.protocol import InnerSolver, relative_step, step_size_of, take_step
from metaprox.vectors.norms import norm


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


@dataclass(frozen=True)
class Solution:
    """Where a solve ended.

    parts: the points, branch after branch, each [T, b, P]. steps: [T].
    trail: what was seen of the last gradients, where it was asked for.
    step_sizes: ||y_(k+1) - y_k|| / ||grad_k|| of the first branch [T, K], NaN after a task's last step.
    converged: whether the tolerance ended the task's solve [T]; True where none was asked for.
    finite: whether all gradients of the task were [T]; failure: of the first for which one was not.
    """

    parts: tuple[Tensor, ...]
    trail: Trail | None
    steps: Tensor
    step_sizes: Tensor
    converged: Tensor
    finite: Tensor
    failure: NonFiniteError | None = None

    @property
    def y(self) -> Tensor:
        """The points [T, B, P]; a new tensor where the parts are several."""
        return self.parts[0] if len(self.parts) == 1 else torch.cat(self.parts, 1)


# (y, step, branches) -> gradient [T, b, P] at the points y of these branches; or that and the step in one, or None.
GradientAt = Callable[[Tensor, int, slice], Tensor]
Fused = Callable[[Tensor, int, slice], Step | None]
Enough = Callable[[Tensor, Tensor], Tensor]  # (y [T, B, P], gradient norms [T, B]) -> who needs no more steps [T]
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
    parts: list[Tensor],
    solver: InnerSolver,
    max_steps: int,
    *,
    first: list[Tensor] | None = None,
    fused: Fused = lambda y, step, branches: None,
    in_one: InOne = lambda run: None,
    tol: Tensor | Enough | None = None,
    trail: Trail | None = None,
    begin: Callable[[Tensor], Any] | None = None,
    purpose: Purpose = ANY,
) -> Solution:
    """Take up to ``max_steps`` steps of ``solver`` from B branches of T tasks, a part of the branches at a time.

    No graph is kept, and no tensor is written on. Where the branches are in several parts, only one part's gradient is
    alive at a time; the solver then sees one part at a time too, and there is no early stop.

    Args:
        gradient: called once a step and part, which is all the solve costs.
        parts: where to start, [T, b, P] each. The list is emptied, so that no start lives longer than its first step.
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
        purpose: what this is, for the error message, and what happens where a gradient is not finite.

    Returns:
        Where the parts ended, [T, b, P] each, and what was seen on the way.

    Raises:
        NonFiniteError: a gradient has a non-finite norm. Without ``tol`` it is looked for once, at the end, so
            that an accelerator never waits for the host; the step named is the first bad one all the same.
    """
    assert tol is None or len(parts) == 1
    progress, known = _Progress(parts[0], solver, max_steps, trail, tol, purpose), first or []
    current, branches, states = parts[:], _slices(parts), [(begin or solver.init)(y) for y in parts]
    parts.clear()
    for step, (index, where) in itertools.product(range(max_steps), enumerate(branches)):
        if step < progress.beyond or (not known and leap(progress, in_one, current, states, step)):
            continue
        y = current[index]
        taken = None if known else fused(y, step, where)
        grad = known.pop(0) if known else gradient(y, step, where) if taken is None else taken.grad
        slope = norm(grad).squeeze(-1) if taken is None else taken.norm
        progress.record(step, y, grad, slope, where)
        if progress.stopped:
            break
        if taken is None:
            with _without_autocast(y.device.type):
                new, states[index] = take_step(solver, grad, y, states[index])
        else:
            new = taken.y
        del grad, taken  # so that their memory serves the next lines
        current[index] = progress.moved(step, new, y, slope, where, states[index])
    return progress.solution(tuple(current))


def _slices(parts: list[Tensor]) -> list[slice]:
    """Which branches each part holds."""
    ends = list(itertools.accumulate(part.shape[1] for part in parts))
    return [slice(end - part.shape[1], end) for part, end in zip(parts, ends, strict=True)]


class _Progress:
    """What a solve keeps between its steps: who goes on, and what is said of each step."""

    def __init__(
        self,
        like: Tensor,
        solver: InnerSolver,
        max_steps: int,
        trail: Trail | None,
        tol: Tensor | Enough | None,
        purpose: Purpose,
    ) -> None:
        self.solver, self.max_steps, self.trail, self.tol, self.purpose = solver, max_steps, trail, tol, purpose
        self.everyone = torch.ones(len(like), dtype=torch.bool, device=like.device)  # [T]
        self.active = self.everyone  # going on
        self.finite = self.everyone  # so far; looked at only where something depends on it
        self.stopped = False
        self.beyond = 0  # steps that were taken in one
        self.norms: list[Tensor] = []  # of n steps each, [n, T, B]
        self.step_sizes: list[Tensor] = []  # [T, n]
        self._nothing = like.new_empty(len(like), 0)
        self._size = step_size_of(solver)
        self.relative, self.may_leap = relative_step(solver), tol is None
        self.built: Any = None  # how the solver's state was, a step before
        self._watching = False
        # Whether some tasks may stay where they are while others go on.
        self.freezes = tol is not None or purpose.on_nonfinite == "skip"

    def record(self, step: int, y: Tensor, grad: Tensor, norms: Tensor, where: slice) -> None:
        """A part's points and gradients [T, b, P] and their norms [T, b]; looks which tasks go on.

        ``stopped``: whether none is to, or one has failed and that is to be raised.
        """
        if where.start == 0:
            self.norms.append(norms[None])
        else:
            self.norms[-1] = torch.cat([self.norms[-1], norms[None]], 2)
        self._watching = self.trail is not None and (
            self.tol is not None or step >= self.max_steps - self.trail.evaluations
        )
        if self._watching and self.trail is not None:
            self.trail.evaluated(grad, norms, where)
        if self.freezes:
            self.finite = self.finite & norms.isfinite().all(1)
            self.active = self.active & self.finite
        if self.tol is not None:
            enough = norms.amax(1) <= self.tol if isinstance(self.tol, Tensor) else self.tol(y, norms)
            self.active = self.active & ~enough
            failed = self.purpose.on_nonfinite == "raise" and not self.finite.all()
            self.stopped = failed or not self.active.any()

    def moved(self, step: int, new: Tensor, y: Tensor, norms: Tensor, where: slice, state: Any) -> Tensor:
        """The part after a step from y to ``new``, to the solver's ``state``, which only tasks take that go on."""
        if self.freezes:
            new = torch.where(self.active[:, None, None], new, y)
        if self._watching and self.trail is not None and (self.trail.closed or step + 1 < self.max_steps):
            self.trail.moved(new, y, where, self.active if self.freezes else None)
        if where.start == 0:
            size = self._size(state, new, y, norms)
            self.step_sizes.append((torch.where(self.active, size, torch.nan) if self.freezes else size)[:, None])
        return new

    def solution(self, parts: tuple[Tensor, ...]) -> Solution:
        """Raises NonFiniteError where a gradient was not finite, if it is to be raised."""
        failure = None
        if self.trail is not None and not self.trail.closed:
            self.trail.let_go()
        if self.norms:
            failure = failure_of(torch.cat(self.norms), self.solver, self.max_steps, self.purpose)
        if failure is not None and self.purpose.on_nonfinite == "raise":
            raise failure
        sizes = torch.cat(self.step_sizes, 1) if self.step_sizes else self._nothing
        taken = torch.full_like(self.everyone, sizes.shape[1], dtype=torch.int64)
        instant = self.tol is None or self.max_steps == 0
        return Solution(
            parts=parts,
            trail=self.trail,
            steps=taken if self.tol is None else (~sizes.isnan()).sum(1),
            step_sizes=sizes,
            converged=self.everyone if instant else self.finite & ~self.active,
            finite=torch.cat(self.norms).isfinite().all(-1).all(0) if self.norms else self.everyone,
            failure=failure,
        )


def _without_autocast(device: str) -> AbstractContextManager[Any]:
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
