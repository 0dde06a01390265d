"""The loop: T tasks x B coupled branches, one step at a time. It owns stopping, finite checks and step records."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from metaprox import checks
from metaprox.errors import InputError, NonFiniteError
from metaprox.solvers.protocol import InnerSolver


@dataclass(frozen=True)
class Stopping:
    """When an inner solve ends: after ``max_steps``, or for each task once its gradient norm is <= ``tol``."""

    max_steps: int
    tol: float | None = None

    @classmethod
    def of(cls, steps: int | None, tol: float | None, max_steps: int | None) -> "Stopping":
        """From the public arguments: ``steps=K`` alone, or ``tol=...`` with ``max_steps=...``."""
        if steps is not None and tol is None and max_steps is None:
            checks.count("steps", steps)
            return cls(steps)
        if steps is None and tol is not None and max_steps is not None:
            checks.positive("tol", tol)
            checks.count("max_steps", max_steps)
            return cls(max_steps, tol)
        raise InputError(
            f"say when the inner solve ends: steps=K, or tol=... with max_steps=...; "
            f"got steps={steps!r}, tol={tol!r}, max_steps={max_steps!r}"
        )


@dataclass(frozen=True)
class Solution:
    """Where a solve ended.

    y: the points [T, B, P]. grad: the last gradient that was evaluated [T, B, P], one step before y where the
    step count ended the solve, at y where the tolerance did; None if none was. steps: [T].
    step_sizes: ||y_(k+1) - y_k|| / ||grad_k|| of the first branch [T, K], NaN after a task's last step.
    """

    y: Tensor
    grad: Tensor | None
    steps: Tensor
    step_sizes: Tensor


def solve(
    gradient: Callable[[Tensor, int], Tensor],
    y: Tensor,
    solver: InnerSolver,
    max_steps: int,
    *,
    tol: Tensor | None = None,
    describe: str = "inner solve",
    first_task: int = 0,
) -> Solution:
    """Take up to ``max_steps`` steps of ``solver`` from y [T, B, P]. No graph is kept, and y is not written on.

    Args:
        gradient: (y, step) -> gradient [T, B, P]. Called once a step, which is all the solve costs.
        tol: [T]; a task stops, all branches together, once all its gradient norms are <= tol. None: no early stop.
        describe, first_task: what and where this is, for the error message.

    Raises:
        NonFiniteError: a gradient has a non-finite norm. Without ``tol`` it is looked for once, at the end, so
            that an accelerator never waits for the host; the step named is the first bad one all the same.
    """
    state = solver.init(y)
    active = torch.ones(y.shape[0], dtype=torch.bool, device=y.device)
    norms: list[Tensor] = []
    moves: list[Tensor] = []
    grad = None
    for step in range(max_steps):
        grad = None  # the old one is freed before the new one is made
        grad = gradient(y, step)
        norm = torch.linalg.vector_norm(grad, dim=-1)
        norms.append(norm)
        if tol is not None:
            active = active & ~(norm.amax(1) <= tol)
            if not active.any() or not norm.isfinite().all():
                break
        with torch.autocast(y.device.type, enabled=False):
            proposal, state = solver.step(grad, y, state)
        if tol is not None:
            proposal = torch.where(active[:, None, None], proposal, y)
        moves.append(torch.linalg.vector_norm(proposal[:, 0] - y[:, 0], dim=-1) / norm[:, 0])
        if tol is not None:
            moves[-1] = torch.where(active, moves[-1], torch.nan)
        y = proposal
    if norms:
        check_finite(torch.stack(norms), solver, max_steps, describe, first_task)
    step_sizes = torch.stack(moves, 1) if moves else y.new_empty(y.shape[0], 0)
    taken = torch.full_like(active, len(moves), dtype=torch.int64)
    if tol is not None:
        taken = (~step_sizes.isnan()).sum(1)
    return Solution(y, grad, taken, step_sizes)


def check_finite(norms: Tensor, solver: InnerSolver, max_steps: int, describe: str, first_task: int) -> None:
    """Raise NonFiniteError, naming the first task, if a gradient norm [K, T, B] is not finite."""
    finite = norms.isfinite().all(-1)
    if bool(finite.all()):
        return
    bad_tasks = (~finite).any(0).nonzero().flatten().tolist()
    step = min(int((~finite[:, task]).nonzero()[0]) for task in bad_tasks)
    task = next(t for t in bad_tasks if not finite[step, t])
    others = f" (and {len(bad_tasks) - 1} more)" if len(bad_tasks) > 1 else ""
    raise NonFiniteError(
        f"task {first_task + task}{others}: the gradient of the {describe} became non-finite at step {step} of "
        f"{max_steps} with {solver!r}. Lower lr, raise lam, or use mp.AdaptiveGradientDescent.",
        task=first_task + task,
        step=step,
    )
