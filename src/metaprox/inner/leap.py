"""Several steps of a solve taken in one, where the losses' backend can, and recorded as if they had been one by one."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metaprox.inner.progress import Progress
from metaprox.losses.backend import Run, Steps
from metaprox.solvers.protocol import lasting
from metaprox.solvers.state import put_together, taken_apart

InOne = Callable[[Run], Steps | None]  # the first of these steps of all branches, or None
LEAST = 6  # steps of a solver that are worth a graph of their own


def leap(progress: Progress, in_one: InOne, parts: list[Tensor], states: list[Any], step: int) -> bool:
    """Whether steps from ``step`` on are taken in one, point and state replaced, and all recorded."""
    run, taken = _run(progress, parts, states, step) if progress.may_leap else None, None
    if run is not None:
        taken = in_one(run if progress.trail is None else progress.trail.told(run))
        progress.may_leap = taken is not None
    if run is None or taken is None:
        return False
    parts[0], went, sizes = taken.y, None, taken.sizes
    if sizes is None:
        sizes = torch.full_like(taken.norms[..., 0], run.size)
    else:
        states[0] = put_together(run.state[0], iter(taken.kept[3:]))
    if progress.freezes:
        went = (taken.norms.isfinite().all(2).cumprod(0) * progress.active).bool()
        progress.active, sizes = went[-1], torch.where(went, sizes, torch.nan)
        progress.finite = progress.finite & progress.active
    progress.beyond = step + len(taken.norms)
    progress.norms.append(taken.norms)
    progress.step_sizes.append(sizes.T)
    if progress.trail is not None and progress.beyond == progress.max_steps:
        progress.trail.took(taken, went)
    return True


def _run(progress: Progress, parts: list[Tensor], states: list[Any], step: int) -> Run | None:
    """Returns what may be taken in one from here on: by a solver, once a step leaves its state built as it was.

    What was seen in earlier solves does not count: the same solve is the same to the last bit, whatever ran before it.
    """
    count = progress.max_steps - step
    if len(parts) > 1:
        return None
    if progress.relative is not None:
        return Run(parts[0], count, progress.active, progress.freezes, size=progress.relative)
    if count < LEAST or torch.is_autocast_enabled(parts[0].device.type):
        return None
    state = taken_apart(lasting(progress.solver, states[0]))
    if state is None:
        return None
    if not all(tensor.dim() and len(tensor) == len(parts[0]) for tensor in state[1]):
        return None
    built = (type(progress.solver), state[0], tuple((one.shape[1:], one.dtype) for one in state[1]))
    before, progress.built = progress.built, built
    if built != before:
        return None
    return Run(parts[0], count, progress.active, progress.freezes, solver=progress.solver, state=state)
