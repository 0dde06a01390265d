"""Finite-difference schemes as data: nodes, weights, order.

A stencil approximates the derivative at 0 of a smooth function s by

    s'(0) ~ (1/h) sum_j weights[j] s(nodes[j] h),     error O(h^order),

which holds when sum_j weights[j] nodes[j]^m is 1 for m = 1 and 0 for every other m <= order.
"""

from dataclasses import dataclass
from typing import Literal

from metaprox import checks

Scheme = Literal["forward", "symmetric", "central4", "central6"]


@dataclass(frozen=True)
class Stencil:
    """Nodes (in units of the step), weights and order of a finite difference for a first derivative."""

    name: Scheme
    nodes: tuple[float, ...]
    weights: tuple[float, ...]
    order: int

    def branches(self, *, corrected: bool) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Returns nodes and weights of the branches that are solved.

        With residual correction the branch at node 0 stays at y_0: the one left differs from y_0 itself.
        """
        rows = [(n, w) for n, w in zip(self.nodes, self.weights, strict=True) if n or not corrected]
        nodes, weights = zip(*rows, strict=True)
        return nodes, weights

    def default_step(self, precision: float) -> float:
        """Returns the step that balances truncation h^p against rounding precision/h, in units of lengths there are.

        precision^(1/(p+1)): 3e-4, 5e-3, 4e-2, 1e-1 for orders 1, 2, 4, 6 in float32; 1e-8, 6e-6, 7e-4, 6e-3 in float64.
        """
        return float(precision ** (1.0 / (self.order + 1)))


FORWARD = Stencil("forward", (0.0, 1.0), (-1.0, 1.0), order=1)
SYMMETRIC = Stencil("symmetric", (-1.0, 1.0), (-1 / 2, 1 / 2), order=2)
CENTRAL4 = Stencil("central4", (-2.0, -1.0, 1.0, 2.0), (1 / 12, -2 / 3, 2 / 3, -1 / 12), order=4)
CENTRAL6 = Stencil(
    "central6",
    (-3.0, -2.0, -1.0, 1.0, 2.0, 3.0),
    (-1 / 60, 3 / 20, -3 / 4, 3 / 4, -3 / 20, 1 / 60),
    order=6,
)

STENCILS: dict[str, Stencil] = {s.name: s for s in (FORWARD, SYMMETRIC, CENTRAL4, CENTRAL6)}


def stencil(name: str) -> Stencil:
    """The scheme of that name. Raises InputError, listing the known ones, for any other."""
    return STENCILS[checks.choice("scheme", name, STENCILS)]
