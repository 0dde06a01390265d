"""The curvature of a task's inner loss, where adaptation begins, goes along and ends; from gradients alone."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from metaprox.call import Call
from metaprox.checking.probe import Probe
from metaprox.errors import InputError, NonFiniteError
from metaprox.vectors.norms import norm

LEAST, MOST, SETTLED = 8, 20, 0.01  # iterations, and the relative change at which they end
LOST = 100  # roundings of x: a shorter step can't be told from one of another length


@dataclass(frozen=True)
class Curvature:
    """The largest ||H d|| over unit d that a power iteration found. downwards: whether <d, H d> < 0 for the last d."""

    largest: float
    downwards: bool


class Valley:
    """The inner loss fhat of one task of a call, with the same noise throughout."""

    def __init__(self, call: Call, task: int) -> None:
        self.task = task
        self.x = call.x(task)
        self._probe = Probe(call, "inner_loss", task)
        start = self._probe.at(self.x)
        self.value, self.gradient = float(start.value), start.grad[0, 0]
        self.slope = _length(self.gradient)

    @property
    def evaluations(self) -> int:
        """Gradients that were taken."""
        return self._probe.evaluations

    def largest(self, y: Tensor, direction: Tensor) -> Curvature:
        """Returns the largest curvature at y [P] that a power iteration from ``direction`` [P] finds.

        H d is a central difference of gradients over the length ||grad fhat(x)|| / L of a step, so that it is what
        steps meet: across a kink, as of ReLU, shorter differences have no limit. ||H d|| for a unit d never exceeds the
        largest absolute eigenvalue between the two points. Costs 21 to 53 gradients.

        Raises:
            InputError: a step of that length is lost in the rounding of the parameters.
            NonFiniteError: the loss is not finite at that distance.
        """
        d = direction / _length(direction)
        found = _length(self._probe.along(y, d, self._scale(y)).jacobian)
        downwards = False
        for iteration in range(MOST):
            if found == 0:
                break
            h = self.slope / found
            if h < LOST * torch.finfo(y.dtype).eps * _length(y):
                raise InputError(
                    f"task {self.task}: a step of {h:.2g} that suits a curvature of {found:.2g} is lost in the "
                    f"rounding of the parameters, of length {_length(y):.2g}: give params and tasks in float64"
                )
            ends = self._probe.at(y + h * d, y - h * d)
            plus, minus = ends.grad[0]
            turned = (plus - minus) / (2 * h)
            size, before = _length(turned), found
            if not math.isfinite(size) or not bool(ends.value.isfinite().all()):
                raise self._diverged(f"a step of {h:.3g} away from a point of adaptation", found)
            found, downwards = size, float(d @ turned) < 0
            if size == 0 or (iteration >= LEAST and abs(size - before) <= SETTLED * size):
                break
            d = turned / size
        return Curvature(found, downwards)

    def _diverged(self, where: str, curvature: float) -> NonFiniteError:
        return NonFiniteError(
            f"task {self.task}: the inner loss is not finite {where}, which a curvature of {curvature:.3g} allows: no "
            "step can be told from it; choose lam and steps, and mp.AdaptiveGradientDescent as the solver",
            task=self.task,
        )

    def _scale(self, y: Tensor) -> float:
        return _length(y) or (abs(self.value) / self.slope if self.slope else 0.0) or 1.0

    def along(self, lr: float, lam: float, steps: int) -> "Way":
        """Returns ``steps`` steps of gradient descent on fhat + (lam/2) ||. - x||^2 from x. Costs a gradient a step.

        Raises:
            NonFiniteError: the loss is not finite somewhere.
        """
        y, value, gradient, steepest = self.x, self.value, self.gradient, 0.0
        for step in range(steps):
            moved = (gradient + lam * (y - self.x)).mul(-lr)
            y, before = y + moved, gradient
            there = self._probe.at(y)
            value, gradient = float(there.value), there.grad[0, 0]
            if not math.isfinite(value) or not bool(gradient.isfinite().all()):
                raise self._diverged(f"after {step + 1} steps of gradient descent", 1 / lr)
            length = _length(moved)
            steepest = max(steepest, _length(gradient - before) / length if length else 0.0)
        left = _length(gradient + lam * (y - self.x)) / self.slope if self.slope else 0.0
        return Way(y, value, left, steepest)


@dataclass(frozen=True)
class Way:
    """Where a walk ended: the point [P], fhat there, the gradient that is left over that at x, the largest secant.

    A secant is ||grad_(k+1) - grad_k|| / ||y_(k+1) - y_k|| of grad fhat, at most the largest curvature between the two.
    """

    y: Tensor
    value: float
    left: float
    steepest: float


def _length(vector: Tensor) -> float:
    return float(norm(vector))
