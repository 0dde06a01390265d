"""What the branches of a difference start from: the point y_0, the gradients there, and the difference to take."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from metaprox.inner.solve import add_weighted
from metaprox.vectors.terms import Shift


@dataclass
class Origin:
    """y_0 and the gradients there [T, 1, P], which are let go of as soon as nothing needs them any more.

    nodes, weights: of the branches that are solved. nu: [T, 1, 1]. perturb_center: whether v stays the tilt at all
    steps. corrected: whether the residual is subtracted from all gradients.
    """

    nodes: tuple[float, ...]
    weights: tuple[float, ...]
    nu: Tensor
    norm_residual: Tensor
    norm_v: Tensor
    y0: Tensor
    residual: Tensor
    v: Tensor
    perturb_center: bool
    corrected: bool
    shifts: dict[int, Shift | None] = field(default_factory=dict)  # of the branches from there on

    def __post_init__(self) -> None:
        self.tilt = self.nu.new_tensor(self.nodes)[:, None] * self.nu

    def per_nu(self, difference: Tensor) -> Tensor:
        """``difference`` / nu; 0 where nu is, because branches are then alike."""
        return difference / torch.where(self.nu > 0, self.nu, torch.inf)

    def starts(self, parts: Sequence[slice], lam: float, *, predict: bool) -> list[Tensor]:
        """Of the branches in each part: y_0, or y_0 - (n_j nu/lam) v."""
        if predict:
            return [self.y0 - (self.tilt[:, part] / lam) * self.v for part in parts]
        return [self.y0.expand(-1, part.stop - part.start, -1) for part in parts]

    def shift(self, branches: slice) -> Shift | None:
        """What is the same in these branches' gradients at all steps."""
        if branches.start not in self.shifts:
            tilt, terms = self.tilt[:, branches], []
            if self.perturb_center:
                terms.append((tilt, self.v))
            if self.corrected:
                terms.append((-torch.ones_like(tilt), self.residual))
            self.shifts[branches.start] = Shift(terms) if terms else None
        return self.shifts[branches.start]

    def gradient(self, branches: slice) -> Tensor:
        """Of the branch problems at y_0, where all is known; the last branch's takes over a vector."""
        tilt = self.tilt[:, branches]
        if self.corrected:
            return tilt * self.v
        if branches.start == 0 or branches.stop < len(self.nodes):
            return torch.addcmul(self.residual, tilt, self.v)
        last = self.residual.addcmul_(tilt, self.v)
        self.release()
        return last

    def release(self) -> None:
        """Let go of the vectors that nothing after the first step needs."""
        nothing = self.nu.new_empty(0)
        if len(self.nodes) > 1:
            self.y0 = nothing
        if not self.corrected:
            self.residual = nothing
        if not self.perturb_center:
            self.v = nothing

    def difference(self, parts: Sequence[Tensor]) -> Tensor:
        """sum_j a_j y_j [T, 1, P], as differences to the first branch (a single one: to y_0), because sum_j a_j = 0."""
        branches = [part[:, j : j + 1] for part in parts for j in range(part.shape[1])]
        first, *others = branches if len(branches) > 1 else (self.y0, *branches)
        total: Tensor | None = None
        for branch, weight in zip(others, self.weights[-len(others) :], strict=True):
            total = add_weighted(total, branch - first, (weight,))
        assert total is not None
        return total
