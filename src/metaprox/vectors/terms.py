"""The terms of an inner problem's objective that are known without the data: by their gradients."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from metaprox.vectors.parameters import Parameters


@dataclass(frozen=True)
class LinearTerm:
    """<u, y> with u = sum_k c_k u_k [T, B, P], for c_k [T, B, 1] and u_k [T, 1, P], same at all steps of a solve."""

    terms: Sequence[tuple[Tensor, Tensor]]

    def of(self, branches: slice) -> "LinearTerm":
        """The one of these branches alone."""
        count = self.terms[0][0].shape[1]
        if range(count)[branches] == range(count):
            return self  # which keeps ``vector``
        return LinearTerm([(coefficient[:, branches], vector) for coefficient, vector in self.terms])

    def add_to(self, total: Tensor) -> None:
        """Its gradient, u, in place, and without a further vector."""
        for coefficient, vector in self.terms:
            total.addcmul_(coefficient, vector)

    @cached_property
    def vector(self) -> Tensor:
        """u as a tensor of its own, for those that have the memory."""
        (coefficient, vector), *others = self.terms
        total = coefficient * vector
        for coefficient, vector in others:
            total.addcmul_(coefficient, vector)
        return total


@dataclass(frozen=True)
class ProximalTerm:
    """(lam/2) ||y - x||^2, and a linear term <u, y> where there is one."""

    parameters: Parameters
    lam: float
    linear: LinearTerm | None = None

    def gradient(self, y: Tensor) -> Tensor:
        """lam (y - x) + u [T, B, P]: a new tensor, to add other gradients onto."""
        total = self.parameters.displacement(y).mul_(self.lam)
        if self.linear is not None:
            self.linear.add_to(total)
        return total
