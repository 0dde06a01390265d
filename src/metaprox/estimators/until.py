"""When base and branches are accurate enough: ``rtol``, by the estimate of the error at every step."""

from dataclasses import dataclass

import torch
from torch import Tensor

from metaprox.estimators.branches import Branches
from metaprox.estimators.error import COLUMNS, Seen, of_base, of_branches
from metaprox.inner.progress import Enough
from metaprox.inner.trail import Trail
from metaprox.losses.gradients import Gradients
from metaprox.vectors.norms import norm


@dataclass(frozen=True)
class Until:
    """What parts of the relative error are to come to: of the base rtol / (1 + B), of B branches the rest.

    A solver that reduces an error by a factor a step takes log(1/a) steps to reach a, and log(1/a) + B log(1/b) is
    least for a given a + b at a : b = 1 : B.
    """

    gradients: Gradients
    rtol: float
    count: int

    @classmethod
    def of(cls, rtol: float | None, gradients: Gradients, count: int) -> "Until | None":
        """None where no ``rtol`` is given."""
        return None if rtol is None else cls(gradients, rtol, count)

    def base(self, trail: Trail) -> Enough:
        """By what the trail of the base has seen."""
        limit = self.rtol / (1 + self.count)

        def enough(y: Tensor, norms: Tensor) -> Tensor:
            known = of_base(trail, self.gradients, y)
            return self._seen(length=torch.ones_like(norms[:, 0]), **known).errors()["base"] <= limit

        return enough

    def branches(self, branches: Branches, trail: Trail | None) -> Enough | None:
        """By what that of the branches has, where they are. None where there is none, as they take no step."""
        if trail is None:
            return None
        limit, lam = self.rtol * self.count / (1 + self.count), self.gradients.lam

        def enough(y: Tensor, norms: Tensor) -> Tensor:
            per_nu = branches.per_nu(torch.ones_like(branches.nu)).flatten()
            length = lam * per_nu * norm(branches.difference([y])).flatten()
            ended = torch.ones_like(length, dtype=torch.bool)
            known = of_branches(trail, per_nu, ended)
            return self._seen(length=length, residual=torch.zeros_like(length), **known).errors()["branch"] <= limit

        return enough

    def _seen(self, length: Tensor, **known: Tensor) -> Seen:
        nothing = {name: torch.full_like(length, torch.nan) for name in COLUMNS}
        return Seen(self.gradients.lam, **nothing | {"length": length} | known)
