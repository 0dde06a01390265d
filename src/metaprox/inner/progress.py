"""What a solve keeps between its steps, and what it comes to."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metaprox.errors import NonFiniteError
from metaprox.inner.failures import Purpose, failure_of
from metaprox.inner.trail import Trail
from metaprox.losses.memory import Memory
from metaprox.solvers.protocol import InnerSolver, relative_step, step_size_of
from metaprox.vectors.rest import Vector, whole

Enough = Callable[[Tensor, Tensor], Tensor]  # (y [T, B, P], gradient norms [T, B]) -> who needs no more steps [T]


@dataclass(frozen=True)
class Solution:
    """Where a solve ended.

    parts: the points, branch after branch, each [T, b, P], which may be away. steps: [T].
    trail: what was seen of the last gradients, where it was asked for.
    step_sizes: ||y_(k+1) - y_k|| / ||grad_k|| of the first branch [T, K], NaN after a task's last step.
    converged: whether the tolerance ended the task's solve [T]; True where none was asked for.
    finite: whether all gradients of the task were [T]; failure: of the first for which one was not.
    """

    parts: tuple[Vector, ...]
    trail: Trail | None
    steps: Tensor
    step_sizes: Tensor
    converged: Tensor
    finite: Tensor
    failure: NonFiniteError | None = None

    @property
    def y(self) -> Tensor:
        """The points [T, B, P]; a new tensor where the parts are several."""
        return whole(self.parts[0]) if len(self.parts) == 1 else torch.cat([whole(part) for part in self.parts], 1)


class Progress:
    """What a solve keeps between its steps: who goes on, and what is said of each step."""

    def __init__(
        self,
        like: Tensor,
        solver: InnerSolver,
        max_steps: int,
        trail: Trail | None,
        tol: Tensor | Enough | None,
        purpose: Purpose,
        memory: Memory | None = None,
    ) -> None:
        self.solver, self.max_steps, self.trail, self.tol, self.purpose = solver, max_steps, trail, tol, purpose
        self.memory = memory
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

    def record(self, step: int, y: Tensor, grad: Tensor | None, norms: Tensor, where: slice) -> None:
        """A part's points and gradients [T, b, P], if they are kept, and their norms [T, b]; looks which tasks go on.

        ``stopped``: whether none is to, or one has failed and that is to be raised.
        """
        if where.start == 0:
            self.norms.append(norms[None])
        else:
            self.norms[step] = torch.cat([self.norms[step], norms[None]], 2)
        self._watching = self._watches(step)
        if self._watching and self.trail is not None:
            assert grad is not None
            self.trail.evaluated(step, grad, norms, where)
        if self.freezes:
            self.finite = self.finite & norms.isfinite().all(1)
            self.active = self.active & self.finite
        if self.tol is not None:
            enough = norms.amax(1) <= self.tol if isinstance(self.tol, Tensor) else self.tol(y, norms)
            self.active = self.active & ~enough
            failed = self.purpose.on_nonfinite == "raise" and not self.finite.all()
            self.stopped = failed or not self.active.any()

    def unseen(self, step: int) -> bool:
        """Whether nobody looks at the gradients of this step."""
        return not (self.freezes or self._watches(step))

    @property
    def all_move(self) -> bool:
        """Whether it is known that all tasks take the step, and nobody needs the point from which they do."""
        if self._watching and self.trail is not None and self.trail.relative_step is None:
            return False
        if not self.freezes:
            return True
        waits = self.tol is not None or self.active.device.type == "cpu"  # an accelerator is not waited for for this
        return waits and bool(self.active.all())

    @property
    def keeps_gradient(self) -> bool:
        """Whether the latest gradient is held."""
        return self._watching and self.trail is not None and self.trail.keeps_gradients

    def _watches(self, step: int) -> bool:
        trail = self.trail
        return trail is not None and (self.tol is not None or step >= self.max_steps - trail.evaluations)

    def moved(self, step: int, new: Tensor, y: Tensor, norms: Tensor, where: slice, state: Any) -> Tensor:
        """The part after a step from y to ``new``, to the solver's ``state``, which only tasks take that go on."""
        if self.freezes and new is not y:
            new = torch.where(self.active[:, None, None], new, y)
        if self._watching and self.trail is not None and (self.trail.closed or step + 1 < self.max_steps):
            self.trail.moved(step, new, y, where, self.active if self.freezes else None)
        if where.start == 0:
            size = self._size(state, new, y, norms)
            self.step_sizes.append((torch.where(self.active, size, torch.nan) if self.freezes else size)[:, None])
        return new

    def solution(self, parts: tuple[Vector, ...]) -> Solution:
        """Raises NonFiniteError where a gradient was not finite, if it is to be raised."""
        failure = None
        if self.memory is not None:
            self.memory.end()
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
