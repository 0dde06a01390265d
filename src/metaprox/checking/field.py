"""Whether what a loss hands out as its gradient is the gradient of anything."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metaprox.call import Call
from metaprox.checking.findings import Finding, percent
from metaprox.checking.probe import Along, Probe

RANDOM = 3  # directions
# Relative; up to here it is none.
ASYMMETRY, EFFECT, SLOPE = 0.01, 0.01, 0.05
ROUGH = 0.5  # a noise above this leaves nothing to be seen
KINKS = 0.1


@dataclass(frozen=True)
class Field:
    """The gradient G of the inner loss around a point y, and J, its Jacobian, on one task.

    asymmetry: rms of <J p, q> - <J q, p> over pairs of directions, relative to these numbers, their noise taken off.
    noise: of these numbers, relative to them.
    effect: ||(J - J^T) p|| / ||(J + lam) p||, how far it turns a meta-gradient: the larger for the gradient v of the
        query loss, and for random p.
    slope, query_slope: by how much the slope of a loss differs from that which its gradient says, relative to it.
    kinks: by how much J d changes with a longer step: far below 1 where the loss is smooth.
    """

    asymmetry: float
    noise: float
    effect: float
    slope: float
    query_slope: float
    kinks: float


def field_at(call: Call, task: int, y: Tensor, *, query: bool = True) -> Field:
    """Returns what is seen of the losses of ``task`` around y [P]; where not ``query``, of the inner one alone.

    Costs about 50 support and 25 query gradients, and holds 15 vectors of P numbers.
    """
    inner, outer = Probe(call, "inner_loss", task), Probe(call, "outer_loss", task)
    G, v = inner.gradient(y), outer.gradient(y) if query else torch.zeros_like(y)
    moved = y - call.x(task)
    length = length_of(y, moved)
    random = _random_directions(y)
    directions = [*random, *(d / d.norm() for d in (v, moved, G) if d.any())]
    along = [inner.along(y, d, length) for d in directions]
    seen = [*random, v / v.norm()] if v.any() else []
    asymmetry, noise = _asymmetry(directions, along)
    return Field(
        asymmetry,
        noise,
        _effect(directions, along, call.problem.lam),
        _slope_error(G, directions, along),
        _slope_error(v, seen, [outer.along(y, d, length) for d in seen]),
        max(inner.kinks(y, d, length) for d in directions[:-1]),
    )


def length_of(y: Tensor, moved: Tensor) -> float:
    """What steps of a difference at y are measured by: ||y||, or where it is 0 a distance that was moved."""
    return float(y.norm()) or float(moved.norm()) or 1.0


def _random_directions(y: Tensor) -> list[Tensor]:
    """Unit vectors [P], the same at every call."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(len(y), generator=generator, dtype=y.dtype, device="cpu") for _ in range(RANDOM)]
    return [(d / d.norm()).to(y.device) for d in drawn]


def _asymmetry(directions: Sequence[Tensor], along: Sequence[Along]) -> tuple[float, float]:
    difference = noise = size = 0.0
    for (p, one), (q, other) in itertools.combinations(zip(directions, along, strict=True), 2):
        a, b, uncertain = float(one.jacobian @ q), float(other.jacobian @ p), one.noise + other.noise
        difference += max(0.0, abs(a - b) - uncertain) ** 2
        noise += uncertain**2
        size += (a**2 + b**2) / 2
    return _root(difference, size), _root(noise, size)


def _effect(directions: Sequence[Tensor], along: Sequence[Along], lam: float) -> float:
    """Returns the larger of ||(J - J^T) p|| / ||(J + lam) p|| for p = v, where there is one, and for random p.

    By the parts along other random unit vectors d: the mean of their squares is 1/P of the square of the whole.
    """
    found = []
    for group in (range(RANDOM), range(RANDOM, min(RANDOM + 1, len(directions)))):
        squares = [_part(directions, along, p, d) ** 2 for p in group for d in range(RANDOM) if d != p]
        turned = [float((along[p].jacobian + lam * directions[p]).square().sum()) for p in group]
        if squares:
            found.append(_root(len(directions[0]) * sum(squares) / len(squares), sum(turned) / len(turned)))
    return max(found)


def _part(directions: Sequence[Tensor], along: Sequence[Along], p: int, d: int) -> float:
    """|<(J - J^T) p, d>|, its noise taken off."""
    off = abs(float(along[p].jacobian @ directions[d] - along[d].jacobian @ directions[p]))
    return max(0.0, off - along[p].noise - along[d].noise)


def _slope_error(gradient: Tensor, directions: Sequence[Tensor], along: Sequence[Along]) -> float:
    off = size = 0.0
    for d, one in zip(directions, along, strict=True):
        said = float(gradient @ d)
        off += max(0.0, abs(one.slope - said) - one.slope_noise) ** 2
        size += max(one.slope**2, said**2)
    return _root(off, size)


def _root(part: float, whole: float) -> float:
    return math.sqrt(part / whole) if whole > 0 else 0.0


def finding(fields: Sequence[Field], where: str) -> Finding:
    """The verdict on what was seen of the tasks at ``where``."""
    names = ("asymmetry", "noise", "effect", "slope")
    numbers = {name: max(getattr(field, name) for field in fields) for name in names}
    asymmetry, effect, slope = numbers["asymmetry"], numbers["effect"], numbers["slope"]
    if asymmetry > ASYMMETRY:
        return Finding(
            "field",
            "wrong" if effect > EFFECT else "note",
            f"what the inner loss hands out as its gradient is the gradient of nothing: its Jacobian J at {where} is "
            f"not symmetric (by {percent(asymmetry)}), which turns meta-gradients by about {percent(effect)} of their "
            "length. Differences of solutions are lam (J + lam)^-1 v, where the gradient of F is "
            "lam (J + lam)^-T v. Look for detach(), no_grad(), reversed gradients, a backward of your own; let the "
            "gradient through, or compute a fixed target once and put it into the tasks",
            numbers,
        )
    if min(field.noise for field in fields) > ROUGH:
        return Finding.not_checked("field", f"the gradient at {where} is too rough: kinks or low precision", numbers)
    if slope > SLOPE:
        return Finding(
            "field",
            "note",
            f"the inner loss's gradient is the gradient of something (J at {where} is symmetric), but not of its "
            f"value, whose slope is another by {percent(slope)}: that something is what the inner problem minimizes",
            numbers,
        )
    return Finding(
        "field",
        "ok",
        f"the inner loss's gradient is one: its Jacobian at {where} is symmetric, and its value has the slopes that "
        "it says",
        numbers,
    )
