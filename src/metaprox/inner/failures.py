"""What is said where a solve or its result is not finite."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from metaprox.errors import NonFiniteError
from metaprox.solvers.protocol import InnerSolver
from metaprox.solvers.stability import remedy

OnNonfinite = Literal["raise", "tell", "skip"]


@dataclass(frozen=True)
class Purpose:
    """What a solve is for, for the message where it fails.

    first_task: position of its first task in the batch. lam: of its proximal term, if known. advice: further remedies.
    on_nonfinite: "raise" an error; "tell", so that the caller decides; or "skip", as "tell", and the task stays where
        its gradient was finite last, so that no loss is evaluated at what is no number.
    """

    name: str = "inner solve"
    first_task: int = 0
    lam: float | None = None
    advice: str = ""
    on_nonfinite: OnNonfinite = "raise"


def failure_of(norms: Tensor, solver: InnerSolver, max_steps: int, purpose: Purpose) -> NonFiniteError | None:
    """The error that names the first task for which a gradient norm [K, T, B] is not finite; None if all are."""
    finite = norms.isfinite().all(-1)
    if bool(finite.all()):
        return None
    bad_tasks = (~finite).any(0).nonzero().flatten().tolist()
    step = min(int((~finite[:, task]).nonzero()[0]) for task in bad_tasks)
    task = next(t for t in bad_tasks if not finite[step, t])
    others = f" (and {len(bad_tasks) - 1} more)" if len(bad_tasks) > 1 else ""
    return NonFiniteError(
        f"task {purpose.first_task + task}{others}: the gradient of the {purpose.name} became non-finite "
        f"at step {step} of {max_steps} with {solver!r}. {remedy(solver, purpose.lam)}{purpose.advice}",
        task=purpose.first_task + task,
        step=step,
    )


def failure_at_end(finite: Tensor, solver: InnerSolver, purpose: Purpose) -> NonFiniteError | None:
    """The error that names the first task of ``finite`` [T] whose result is not; None if all are."""
    if bool(finite.all()):
        return None
    task = purpose.first_task + int((~finite).int().argmax())
    return NonFiniteError(
        f"task {task}: the loss or its gradient is not finite at the adapted parameters. "
        f"{remedy(solver, purpose.lam)}{purpose.advice}",
        task=task,
    )
