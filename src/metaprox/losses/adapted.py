"""A loss as a function of the parameters that adapt, in memory that it may write on."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from metaprox.losses.checked import CheckedLoss
from metaprox.losses.shared_graphs import Graphs
from metaprox.losses.vmapped import FlatLoss
from metaprox.modules.loss import PrivateLoss
from metaprox.types import Metrics
from metaprox.vectors.parameters import Parameters, Structure


@dataclass(frozen=True)
class AdaptedLoss:
    """``checked``, a loss on all parameters, as a function of y [P] at the w there is.

    ``writes``: whether it writes on its parameters, so that w is not given to it itself.
    """

    checked: CheckedLoss
    structure: Structure
    w: Tensor
    writes: bool = False

    def __call__(self, y: Tensor, data: Any) -> tuple[Tensor, Metrics]:
        parts = self.structure.adapted.unflatten(y)
        return self.checked(self.all_from(apart(parts) if self.writes else parts), data)

    def all_from(self, adapted: dict[str, Tensor]) -> dict[str, Tensor]:
        """All parameters, from those that adapt."""
        if not self.writes:
            return self.structure.merge(adapted, self.w)
        parts = self.structure.merge(adapted, guarded(self.w))
        return {name: part if name in adapted else part.data for name, part in parts.items()}

    def leaves(self, point: Tensor) -> dict[str, Tensor]:
        """The parameters that adapt at y [P], as leaves of a graph, in memory that a loss may write on."""
        return self.leaves_of(self.structure.adapted.views(guarded(point)))

    def leaves_of(self, views: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same in the memory of ``views``, where a parameter is no narrower than these."""
        own = zip(views.items(), self.structure.adapted.dtypes, strict=True)
        # data: each has a version of its own, and what is written on one spoils no graph that has saved another
        return {
            name: (part if part.dtype == dtype else part.to(dtype)).data.requires_grad_() for (name, part), dtype in own
        }

    @cached_property
    def graphs(self) -> Graphs:
        """Of the live model's loss, which outlives a call."""
        return Graphs(self._live, self.structure)

    def graphs_with(self, other: "AdaptedLoss") -> Graphs:
        """Of both losses."""
        return Graphs(self._live, self.structure, other._live)

    @property
    def _live(self) -> CheckedLoss:
        own = self.checked.loss
        return replace(self.checked, loss=own.source if isinstance(own, PrivateLoss) else own)


def apart(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies with the graph of ``parts``: autograd lets nobody write on one of several views."""
    return {name: part.clone() for name, part in parts.items()}


def guarded(y: Tensor) -> Tensor:
    """``y``, in memory that a loss may write on: a copy that is made if and when it is written on, where torch can."""
    try:
        copied: Tensor = torch._lazy_clone(y.detach())
    except (AttributeError, RuntimeError):  # torch without it, or memory that is not torch's own
        return y.detach().clone()
    return copied


def flat_loss(loss: CheckedLoss, parameters: Parameters, *, writes: bool = False) -> FlatLoss:
    """``loss`` as a function of z [P + W]; ``writes``: whether it writes on its parameters."""
    if writes:
        return lambda z, batch: loss(apart(parameters.unflatten(z)), batch)
    return lambda z, batch: loss(parameters.unflatten(z), batch)
