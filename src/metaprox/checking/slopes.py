"""Slopes of F, by differences along a line: what a meta-gradient is held to."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from metaprox.call import Call
from metaprox.checking.field import length_of
from metaprox.checking.probe import Probe
from metaprox.checking.watched import Run
from metaprox.errors import NonFiniteError
from metaprox.estimators import Estimator
from metaprox.inner.proximal import proximal_solve

# Steps of the differences of F, relative to the length of z, to be tried one after another.
STEPS = {torch.float64: (1e-6, 1e-5, 1e-7, 1e-4), torch.float32: (1e-3, 1e-2, 3e-3, 3e-2)}
SMOOTH = 1e-3  # noise of a slope that is good enough, relative to it or to the meta-gradient


@dataclass(frozen=True)
class Slopes:
    """Of F_i along unit vectors d [N] of what is learned, by differences of f_i(y_K), and the noise of each."""

    directions: tuple[Tensor, ...]
    values: tuple[float, ...]
    noises: tuple[float, ...]

    @property
    def steepness(self) -> float:
        """The length of the gradient of F_i in the plane of the directions."""
        return math.hypot(*self.values)

    def error(self, g: Tensor) -> float:
        """By how much g differs from the gradient in their plane, relative to the longer of both."""
        return self._relative(math.dist([float(g @ d) for d in self.directions], self.values), g)

    def noise(self, g: Tensor) -> float:
        """Of ``error``."""
        return self._relative(math.hypot(*self.noises), g)

    def inner(self, g: Tensor) -> float:
        """<g, gradient>: how fast F_i falls along -g."""
        return sum(float(g @ d) * value for d, value in zip(self.directions, self.values, strict=True))

    def angle(self, g: Tensor) -> float:
        """Between g and the gradient in their plane, in degrees."""
        lengths = float(g.norm()) * self.steepness
        return math.degrees(math.acos(max(-1.0, min(1.0, self.inner(g) / lengths)))) if lengths > 0 else 0.0

    def _relative(self, off: float, g: Tensor) -> float:
        longest = max(float(g.norm()), self.steepness)
        return off / longest if longest > 0 else 0.0


def slopes(call: Call, estimator: Estimator, found: Run, task: int) -> Slopes:
    """Along g and along what of grad f(y_0) is orthogonal to it. Costs 5 to 17 base solves and query losses."""
    g, gradients = found.g, call.gradients((task, task + 1))
    v = Probe(call, "outer_loss", task).gradient(found.y0)
    v = call.of_learned(torch.cat([v, torch.zeros_like(gradients.parameters.w)])[None, None], gradients)[0, 0]
    directions: list[Tensor] = []
    for d in (g, v):
        rest = d - sum(((d @ e) * e for e in directions), torch.zeros_like(d))
        if rest.norm() > 1e-6 * d.norm():
            directions.append(rest / rest.norm())
    z = call.point
    length = length_of(z, found.y0 - call.x(task))
    still = _loss_from(call, estimator, task, torch.zeros_like(z))
    enough = SMOOTH * float(g.norm())
    pairs = [_slope(call, estimator, task, d, length, still, enough) for d in directions]
    return Slopes(tuple(directions), tuple(slope for slope, _ in pairs), tuple(noise for _, noise in pairs))


def _slope(
    call: Call, estimator: Estimator, task: int, d: Tensor, length: float, still: float, enough: float
) -> tuple[float, float]:
    best = (math.nan, math.inf)
    for step in STEPS[d.dtype]:
        h = step * length
        above, below = (_loss_from(call, estimator, task, sign * h * d) for sign in (1, -1))
        slope, bend = (above - below) / (2 * h), abs(above + below - 2 * still) / (2 * h)
        noise = bend + torch.finfo(d.dtype).eps * abs(still) / h
        best = (slope, noise) if noise < best[1] else best
        if noise < max(enough, SMOOTH * abs(slope)):
            break
    return best


def _loss_from(call: Call, estimator: Estimator, task: int, shift: Tensor) -> float:
    """f_i(y_K) from z + ``shift`` [N], z what is learned, by the estimator's base solve; NaN where it diverges."""
    gradients = call.at(call.point + shift).gradients((task, task + 1))
    try:
        y = proximal_solve(gradients, estimator.solver, estimator._stopping()).y
    except NonFiniteError:
        return math.nan
    return float(gradients.query_values(y[:, 0], 0)[0])
