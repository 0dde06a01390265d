"""How far g_i is from the gradient of F_i, by what its solves have seen: no gradient is taken for it."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from metaprox.estimators.step import Lengths
from metaprox.inner.progress import Solution
from metaprox.inner.trail import Trail
from metaprox.losses.gradients import Gradients
from metaprox.solvers.protocol import InnerSolver, relative_step
from metaprox.vectors.norms import inner, norm
from metaprox.vectors.rest import HERE, Rest

# Fixed before `metaprox reproduce calibration`.
BASE_STEPS = 1  # of the base, by which the curvature is judged that its residual meets
BRANCH_STEPS = 5  # of branches whose steps are no multiple of the gradient; else one
LEAST_RATIO = 0.03  # by which a step of the branches is trusted to bring them closer
BASE_SHARE = 1 / 3
PARTS = ("branch", "base", "truncation", "rounding")


class Ends(NamedTuple):
    """The numbers of a trail that has ended, each [T]: ||G|| at the last evaluation and before, and the curvature."""

    last: Tensor
    before: Tensor | None
    curvature: Tensor | None
    relative_step: float | None


@dataclass(frozen=True)
class Seen:
    """What the error of g_i is judged by, each [T]; NaN where it is not known.

    length: ||g||. rho: ||v - (H + lam I) g / lam||, at the last evaluation of the branches, and how much the step
    before it reduced that. curvature: the least along the branches' last steps, and base_curvature: along the last
    step of the base. residual: ||r||, r the gradient left at y_0. moved: D = ||y_0 - x||. size: ||y_0||, and D u' / u
    more in losses that are computed with a larger machine epsilon u' than the parameters' u, as in autocast, for they
    round gradients, which are of the order of lam D. per_nu: 1/nu, or 0. truncation: of the difference, relative to
    ||g||.
    """

    lam: float
    length: Tensor
    rho: Tensor
    reduction: Tensor
    curvature: Tensor
    base_curvature: Tensor
    residual: Tensor
    moved: Tensor
    size: Tensor
    per_nu: Tensor
    truncation: Tensor

    @classmethod
    def nothing(cls, like: Tensor) -> "Seen":
        """As many tasks as ``like`` has [T]."""
        return cls(torch.nan, *[torch.full_like(like, torch.nan)] * len(COLUMNS))

    @classmethod
    def join(cls, some: Sequence["Seen"]) -> "Seen":
        """Of several chunks of tasks, one after another."""
        return cls(some[0].lam, *(torch.cat([getattr(one, name) for one in some]) for name in COLUMNS))

    def where(self, here: Tensor, other: "Seen") -> "Seen":
        """This one's entries for the tasks ``here`` [T], and the ``other`` one's for the rest."""
        return Seen(self.lam, *(torch.where(here, getattr(self, name), getattr(other, name)) for name in COLUMNS))

    def errors(self) -> dict[str, Tensor]:
        """Returns the parts of the error by name, each [T] and relative to ||g|| + their sum: at most 1 in all.

            branch     q ||rho|| sqrt(lam / kappa)                  kappa >= lam, along the branches' last step(s)
            base       (1/3) ||g|| (||r|| / sqrt(lam kappa)) / D    kappa >= lam, along the base's last step
            truncation theta ||g||, c theta^2 ||g||                 order 1, 2; truncation.py. NaN where not asked for
            rounding   (u ||y_0|| + u' D) lam / nu                  the machine epsilons, u' of coarser losses or 0

        ||rho|| is the worst that can be, with all of rho where the curvature is least, ||rho|| lam / kappa the best;
        theirs is the geometric mean. q, at most 1, carries it from the last evaluation to the end. What y_0 has to go
        changes g as going all of D has brought it about.
        """
        lam, length = self.lam, self.length
        ratio = self.reduction.nan_to_num(1.0, 1.0).clamp(LEAST_RATIO, 1.0)
        branch = ratio * self.rho * _centre(lam, self.curvature)
        base = BASE_SHARE * length * self.to_go()
        base = torch.where(self.residual == 0, 0.0, base)  # also where x is the solution, and nothing has moved
        rounding = torch.finfo(length.dtype).eps * self.size * lam * self.per_nu
        parts = torch.stack([branch, base, self.truncation * length, rounding])
        whole = length + parts.nansum(0)
        shares = torch.where(parts.isinf(), 1.0, parts / torch.where(whole > 0, whole, 1.0))
        return dict(zip(PARTS, shares, strict=True))

    def to_go(self) -> Tensor:
        """(||r|| / sqrt(lam kappa)) / D [T]: the way from y_0 to its solution, by the one that it has come."""
        return self.residual / self.lam * _centre(self.lam, self.base_curvature) / self.moved


COLUMNS = tuple(field.name for field in fields(Seen))[1:]  # all but lam


def of_base(trail: Trail | None, gradients: Gradients, y0: Tensor, lengths: Lengths | None = None) -> dict[str, Tensor]:
    """Returns what is seen of the base solve, as ``Seen`` has it, where ``trail`` was told of it to its end.

    Else nothing. ``lengths``: whose norms are taken, where they are known.
    """
    if trail is None or trail.last is None:
        return {}
    if lengths is not None and lengths.way is not None and lengths.point is not None:
        way, point = lengths.way, lengths.point
    else:
        way, point = norm(gradients.displacement(y0)), norm(y0)
    known = {"base_curvature": _curvature(trail), "residual": trail.last}
    if gradients.coarse:
        point = point + gradients.coarse / torch.finfo(point.dtype).eps * way
    return known | {"moved": way.flatten(), "size": point.flatten()}


def of_last_steps(weights: Sequence[float], solver: InnerSolver, steps: int, rest: Rest = HERE) -> Trail | None:
    """What branches, of which ``steps`` steps of ``solver`` are to be taken, are watched by."""
    if not steps:
        return None
    multiple = relative_step(solver)
    return Trail(weights, multiple, 1 + (BRANCH_STEPS if multiple is None else 1), closed=False, rest=rest)


def of_branches(trail: Trail | Ends, per_nu: Tensor, ended: Tensor | None) -> dict[str, Tensor]:
    """Returns what is seen of the branches; rho is ||sum_j a_j grad_j|| / nu.

    By how much a step reduced it says something of the next one where both are the same multiple of the gradient; tasks
    that ``ended`` there [T] took no next one; None: all took one.
    """
    assert trail.last is not None
    if trail.before is None or trail.relative_step is None:
        reduction = torch.ones_like(per_nu)
    else:
        reduction = trail.last / trail.before
        reduction = reduction if ended is None else torch.where(ended, 1.0, reduction)
    return {"rho": per_nu * trail.last, "reduction": reduction, "curvature": _curvature(trail), "per_nu": per_nu}


def of_difference(
    lam: float,
    length: Tensor,
    base: dict[str, Tensor],
    branches: Solution,
    per_nu: Tensor,
    truncation: Tensor | None = None,
    *,
    early: bool = False,
) -> Seen:
    """Returns it of a g of ``length`` [T], by what ``of_base`` and the branches have seen; nothing where they have not.

    ``early``: whether tasks that converged have ended where they were evaluated last, and took no step from there.
    """
    if branches.trail is None or not base:
        return Seen.nothing(length)
    truncation = torch.full_like(length, torch.nan) if truncation is None else truncation
    known = of_branches(branches.trail, per_nu, branches.converged if early else None)
    return Seen(lam, length, **base, **known, truncation=truncation)


def linear_residual(branches: Trail | Ends | None, norm_v: Tensor, per_nu: Tensor) -> Tensor:
    """||rho|| / (lam ||v||) [T], 0 where v = 0; NaN where the branches were not watched."""
    if branches is None or branches.last is None:
        return torch.full_like(norm_v, torch.nan)
    return torch.where(norm_v > 0, per_nu * branches.last / norm_v, 0.0)


def of_system(z: Tensor, v: Tensor, left: Tensor) -> dict[str, Tensor]:
    """What is seen of z with v - (H + lam I) z = ``left``, all [T, 1, P]: the curvature along it; g is lam z."""
    length, none = norm(z).flatten(), torch.zeros_like(z[:, 0, 0])
    curvature = inner(v - left, z, length) / length
    known = {"rho": norm(left).flatten(), "reduction": none + 1, "curvature": curvature, "per_nu": none}
    return known | {"truncation": torch.full_like(none, torch.nan)}


def sampling_error(lengths: Tensor, mean: Tensor, weights: Tensor | None = None) -> Tensor:
    """Returns sqrt((mean ||g_i||^2 - ||g||^2) / (T - 1)) / ||g||: the standard error of the mean g [P] of T gradients.

    From their norms [T] alone. With weights p_i [T] of sum 1 it is sqrt(s q / (1 - q)) / ||g|| with q = sum_i p_i^2 and
    s = sum_i p_i ||g_i||^2 - ||g||^2: that of tasks whose spread has nothing to do with their weight. NaN for one task.
    """
    if len(lengths) < 2:
        return lengths.new_tensor(torch.nan)
    if weights is not None:
        shares = weights / weights.sum()
        spread = (((lengths / norm(mean)).square() * shares).sum() - 1).clamp(min=0)
        return (spread / (1 / shares.square().sum() - 1)).sqrt()
    return (((lengths / norm(mean)).square().mean() - 1).clamp(min=0) / (len(lengths) - 1)).sqrt()


def _curvature(trail: Trail | Ends) -> Tensor:
    """Along the last step [T]; NaN where none is known."""
    assert trail.last is not None
    return torch.full_like(trail.last, torch.nan) if trail.curvature is None else trail.curvature


def _centre(lam: float, curvature: Tensor) -> Tensor:
    """sqrt(lam / kappa), with lam for a kappa that is not known, or less."""
    kappa = torch.where(curvature.isfinite(), curvature.clamp(min=lam), lam)
    return (lam / kappa).sqrt()
