"""Meta-parameters split into those that adapt to a task and those that do not."""

from dataclasses import dataclass

import torch
from torch import Tensor

from metaprox.layout import Layout
from metaprox.problem import Params, ProximalProblem


@dataclass(frozen=True)
class Parameters:
    """x [P], which every task adapts, and w [W], which all tasks share as it is; W is 0 where everything adapts.

    A point z is the vector (y, w) [P + W].
    """

    names: tuple[str, ...]
    adapted: Layout
    shared: Layout | None
    x: Tensor
    w: Tensor

    @classmethod
    def of(cls, problem: ProximalProblem, params: Params) -> "Parameters":
        """Raises InputError where the parameters are not ones that can be adapted, or none of them is to be."""
        everything = Layout.of(params)
        names = problem.adapted_names(everything.names)
        adapted = Layout.of({name: params[name] for name in names}, everything.dtype)
        rest = {name: params[name] for name in params if name not in names}
        shared = Layout.of(rest, everything.dtype) if rest else None
        x = adapted.flatten(params)
        return cls(everything.names, adapted, shared, x, shared.flatten(params) if shared else x.new_empty(0))

    def unflatten(self, z: Tensor) -> dict[str, Tensor]:
        """(y, w) [..., P + W] -> dict of all parameters [..., *shape], in the order they were given in."""
        y, w = z[..., : self.x.shape[0]], z[..., self.x.shape[0] :]
        parts = self.adapted.unflatten(y) | (self.shared.unflatten(w) if self.shared else {})
        return {name: parts[name] for name in self.names}

    def merge(self, adapted: dict[str, Tensor]) -> dict[str, Tensor]:
        """With the shared ones as they are, in the order they were given in."""
        if self.shared is None:
            return adapted
        parts = adapted | self.shared.unflatten(self.w)
        return {name: parts[name] for name in self.names}

    def at(self, y: Tensor) -> Tensor:
        """y [..., P] -> z = (y, w) [..., P + W]; y itself where everything adapts."""
        if self.shared is None:
            return y
        return torch.cat([y, self.w.expand(*y.shape[:-1], -1)], dim=-1)
