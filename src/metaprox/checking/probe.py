"""A loss on one task's data, seen along straight lines: slopes of its value, and Jacobians of its gradient."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from metaprox.call import Call
from metaprox.data.batch import TaskBatch
from metaprox.data.task import Task
from metaprox.losses.backend import Evaluation
from metaprox.losses.gradients import Gradients
from metaprox.losses.loop import LoopBackend

# Steps of central differences, relative to a length of the point, to be tried one after another.
STEPS = {torch.float64: (1e-6, 1e-5, 1e-7, 1e-4, 1e-3, 1e-2), torch.float32: (1e-3, 3e-3, 1e-2, 3e-4, 3e-2, 1e-1)}
SMOOTH = {torch.float64: 1e-3, torch.float32: 3e-2}  # up to this roughness a step is good enough
FAR = 1e-2  # a step that meets kinks, in the same units


@dataclass(frozen=True)
class Along:
    """A loss along a unit vector d [P]: J d [P] for the Jacobian J of its gradient, and the slope of its value.

    noise: a bound on the error of J d, by what of the gradient is even in the step. slope_noise: of ``slope``.
    """

    jacobian: Tensor
    noise: float
    slope: float
    slope_noise: float


class Probe:
    """The inner or outer loss of a call on one of its tasks, in the loop, always with the same noise."""

    def __init__(self, call: Call, role: str, task: int) -> None:
        one = call.batch.one(task)
        problem = call.problem
        if role == "inner_loss":  # in the other's place, of which a Gradients gives the value too
            one, problem = Task(one.support, one.support), replace(problem, outer_loss=problem.inner_loss)
        own = call.made and call.made.only(task)
        alone = replace(call, problem=problem, batch=TaskBatch.of([one]), backend=LoopBackend(), made=own)
        self._gradients: Gradients = alone.gradients((0, 1))

    @property
    def evaluations(self) -> int:
        """Gradients that were taken."""
        return self._gradients.counts.query_gradients

    def at(self, *points: Tensor) -> Evaluation:
        """Values [1, B] and gradients [1, B, P] at B points [P]."""
        return self._gradients.query(torch.stack(points)[None], 0)

    def gradient(self, y: Tensor) -> Tensor:
        """[P] at y [P]."""
        return self.at(y).grad[0, 0]

    def along(self, y: Tensor, d: Tensor, length: float) -> Along:
        """Returns J d and the slope along d [P] at y [P], by central differences.

        Their step is the one of ``STEPS`` times ``length`` where the gradient is smoothest. Costs 3 to 13 gradients.
        """
        middle = self.at(y)
        best, found = math.inf, None
        for step in STEPS[y.dtype]:
            tried = self._difference(y, d, step * length, middle)
            size = float(tried.jacobian.norm())
            rough = tried.noise / size if size > 0 else 0.0 if tried.noise == 0 else math.inf
            if found is None or rough < best:
                best, found = rough, tried
            if rough < SMOOTH[y.dtype]:
                break
        assert found is not None
        return found

    def _difference(self, y: Tensor, d: Tensor, h: float, middle: Evaluation) -> Along:
        ends = self.at(y + h * d, y - h * d)
        plus, minus = ends.grad[0]
        above, below, center = (float(value) for value in (*ends.value[0], middle.value))
        rounding = torch.finfo(ends.value.dtype).eps * (abs(above) + abs(below)) / h
        return Along(
            (plus - minus) / (2 * h),
            float((plus + minus - 2 * middle.grad[0, 0]).norm()) / (2 * h),
            (above - below) / (2 * h),
            abs(above + below - 2 * center) / (2 * h) + rounding,
        )

    def curvature(self, start: Tensor, end: Tensor, least: float) -> float:
        """<d, J d> from ``start`` to ``end`` [P], d their unit difference, over a distance of ``least`` or more."""
        moved = end - start
        d = moved / moved.norm()
        h = max(float(moved.norm()), least) / 2
        middle = (start + end) / 2
        plus, minus = self.at(middle + h * d, middle - h * d).grad[0]
        return float((plus - minus) @ d) / (2 * h)

    def kinks(self, y: Tensor, d: Tensor, length: float) -> float:
        """By how much J d changes, relative to itself, with a longer step: far below 1 for a smooth loss."""
        near, far = (self._difference(y, d, step * length, self.at(y)).jacobian for step in (STEPS[y.dtype][0], FAR))
        return float((far - near).norm() / near.norm()) if near.any() else float(bool(far.any()))
