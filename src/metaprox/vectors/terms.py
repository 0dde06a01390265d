"""The part of an inner problem's gradient that is known without the data."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from metaprox.vectors.parameters import Parameters


@dataclass(frozen=True)
class Shift:
    """sum_k c_k u_k [T, B, P], for c_k [T, B, 1] and u_k [T, 1, P], the same at all steps of a solve."""

    terms: Sequence[tuple[Tensor, Tensor]]

    def add_to(self, total: Tensor) -> None:
        """In place, and without a further vector."""
        for coefficient, vector in self.terms:
            total.addcmul_(coefficient, vector)

    @cached_property
    def vector(self) -> Tensor:
        """The sum as a tensor of its own, for those that have the memory."""
        (coefficient, vector), *others = self.terms
        total = coefficient * vector
        for coefficient, vector in others:
            total.addcmul_(coefficient, vector)
        return total


@dataclass(frozen=True)
class Pull:
    """lam (y - x) + shift, the gradient of (lam/2) ||y - x||^2 + <shift, y>."""

    parameters: Parameters
    lam: float
    shift: Shift | None = None

    def at(self, y: Tensor) -> Tensor:
        """[T, B, P]: a new tensor, to add other gradients onto."""
        total = self.parameters.displacement(y).mul_(self.lam)
        if self.shift is not None:
            self.shift.add_to(total)
        return total
