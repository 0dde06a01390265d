"""How far g_i is from the gradient of F_i, by what its solves have seen: no gradient is taken for it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from metaprox.inner.solve import Solution
from metaprox.inner.trail import Trail
from metaprox.losses.gradients import Gradients
from metaprox.vectors.norms import along, norm

# By `metaprox reproduce calibration`.
BASE_STEPS = 5  # of the base, by which the curvature is judged that its residual meets
LEAST_RATIO = 0.03  # by which a step of the branches is trusted to bring them closer
BASE_SHARE = 1 / 3


@dataclass(frozen=True)
class Errors:
    """The parts of the error of g_i, each [T] and relative to ||g_i|| + their sum, so that they add up to at most 1.

    branch: the branches are not solved. base: y_0 is not. truncation: of the finite difference. rounding: divided by
    the step of the difference. NaN where a part is not known.
    """

    branch: Tensor
    base: Tensor
    truncation: Tensor
    rounding: Tensor

    @classmethod
    def of(cls, length: Tensor, **parts: Tensor) -> "Errors":
        """From ||g_i|| [T] and the parts in its unit; those that are not given are not known."""
        unknown = torch.full_like(length, torch.nan)
        found = {name: parts.get(name, unknown) for name in ("branch", "base", "truncation", "rounding")}
        whole = length + torch.stack(list(found.values())).nansum(0)
        scale = torch.where(whole > 0, whole, 1.0)
        return cls(**{name: torch.where(part.isinf(), 1.0, part / scale) for name, part in found.items()})

    def named(self) -> dict[str, Tensor]:
        """As ``Info`` has them."""
        parts = {f"{name}_error": part for name, part in vars(self).items()}
        return {"relative_error": self.total, **parts}

    @property
    def total(self) -> Tensor:
        """Their sum [T], 1 where g_i is mostly error; NaN where the branches' or the base's is not known."""
        known = self.branch + self.base
        return (known + torch.stack([self.truncation, self.rounding]).nansum(0)).clamp(max=1.0)


def linear_residual(trail: Trail, norm_v: Tensor, per_nu: Tensor) -> Tensor:
    """Returns ||rho|| / (lam ||v||) [T], 0 where v = 0, with rho at the last evaluation of the branches."""
    assert trail.last is not None
    return torch.where(norm_v > 0, per_nu * trail.last / norm_v, 0.0)


def branch_error(trail: Trail, lam: float, per_nu: Tensor) -> Tensor:
    """Returns q ||rho|| / sqrt(lam kappa) [T], with rho = lam v - (H + lam I) g at the last evaluation of the branches.

    rho is (lam/nu) sum_j a_j grad_j. kappa, at least lam, is the curvature along the last step, q the reduction of
    ||rho|| by it, at most 1, which carries it to the end. ||rho|| / lam would be the worst that can be, with all of rho
    where the curvature is least, ||rho|| / kappa the best; this is their geometric mean. ``per_nu``: 1/nu [T], or 0.
    """
    assert trail.last is not None
    assert trail.before is not None
    reduction = (trail.last / trail.before).nan_to_num(1.0, 1.0).clamp(LEAST_RATIO, 1.0)
    curvature = _at_least(lam, trail.curvatures[-1:], trail.last)
    return reduction * lam * per_nu * trail.last / (lam * curvature).sqrt()


def base_error(trail: Trail, lam: float, length: Tensor, residual: Tensor, moved: Tensor) -> Tensor:
    """Returns (1/3) ||g|| (||r|| / sqrt(lam kappa)) / D [T]: as g changes where y_0 moves as far as it has to go.

    kappa, at least lam, is the least curvature along the last steps of the base. ``length``: ||g||, ``residual``:
    ||r||, ``moved``: D = ||y_0 - x||.
    """
    distance = residual / (lam * _at_least(lam, trail.curvatures, residual)).sqrt()
    return torch.where(residual > 0, BASE_SHARE * length * (distance / moved), 0.0)


def errors_of_system(
    gradients: Gradients, base: Solution, residual: Tensor, z: Tensor, v: Tensor, left: Tensor
) -> Errors:
    """Returns those of g = lam z, where v - (H + lam I) z = ``left`` is known, all [T, 1, P]: no difference is taken.

    The curvature that the residual of the system meets is that along g, at least lam.
    """
    lam, length = gradients.lam, norm(z)
    curvature = _at_least(lam, [along(v - left, z, length).flatten()], length.flatten())
    moved = norm(gradients.displacement(base.y)).flatten()
    assert base.trail is not None
    base.trail.ended(residual)
    return Errors.of(
        lam * length.flatten(),
        branch=lam * norm(left).flatten() / (lam * curvature).sqrt(),
        base=base_error(base.trail, lam, lam * length.flatten(), norm(residual).flatten(), moved),
        rounding=torch.zeros_like(moved),
    )


def rounding_error(lam: float, size: Tensor, per_nu: Tensor) -> Tensor:
    """u ||y_0|| lam / nu [T], u the machine epsilon."""
    return torch.finfo(size.dtype).eps * size * lam * per_nu


def sampling_error(lengths: Tensor, skipped: Tensor, mean: Tensor) -> Tensor:
    """Returns sqrt((mean ||g_i||^2 - ||g||^2) / (T - 1)) / ||g||: the standard error of the mean g [P] of T gradients.

    From their norms [T] alone. NaN for one task.
    """
    kept = (lengths / norm(mean))[~skipped]
    return (
        ((kept.square().mean() - 1).clamp(min=0) / (kept.numel() - 1)).sqrt()
        if kept.numel() > 1
        else kept.new_tensor(torch.nan)
    )


def _at_least(lam: float, curvatures: list[Tensor], like: Tensor) -> Tensor:
    """The least of the curvatures [T], and at least lam; lam where none is known."""
    if not curvatures:
        return torch.full_like(like, lam)
    least = torch.stack(curvatures).nan_to_num(torch.inf, torch.inf, torch.inf).amin(0)
    return torch.where(least.isfinite(), least, lam).clamp(min=lam)
