"""A loss of a model in shards as a function of the numbers that this rank holds."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from metaprox.errors import InputError
from metaprox.losses.checked import CheckedLoss
from metaprox.modules.sharded import ShardedLoss
from metaprox.types import Metrics
from metaprox.vectors.parameters import Structure
from metaprox.vectors.shards import is_sharded, part_here
from metaprox.vectors.terms import add_product


@dataclass(frozen=True)
class LossInShards:
    """``checked``, of a model in shards, as a function of y [P] at the w there is, or of z = (y, w) [P + W].

    P and W count what this rank holds. All ranks evaluate it together, by plain forward and backward passes.
    """

    checked: CheckedLoss
    structure: Structure
    w: Tensor

    def __call__(self, point: Tensor, batch: Any) -> tuple[Tensor, Metrics]:
        return self.value(point, batch)

    def differentiate(
        self, point: Tensor, batch: Any, gradient: Tensor, weight: Tensor | None
    ) -> tuple[Tensor, Metrics]:
        """Returns value and metrics; adds the gradient, times ``weight`` if given, to ``gradient``, like ``point``."""
        places = self._views(gradient)
        with self.held(point) as params:
            value, metrics = self.checked(params, batch)
            _check_whole(value)
            if value.requires_grad:
                value.backward()
            for name, place in places.items():
                if (found := params[name].grad) is not None:
                    add_product(place, part_here(found), weight)
        return value.detach(), pytree.tree_map(torch.Tensor.detach, metrics)

    def value(self, point: Tensor, batch: Any) -> tuple[Tensor, Metrics]:
        """Value and metrics alone."""
        with self.held(point) as params:
            value, metrics = self.checked(params, batch)
            _check_whole(value)
        return value, metrics

    @contextmanager
    def held(self, point: Tensor) -> Iterator[dict[str, Tensor]]:
        """Within, the model is at ``point``. Yields its parameters."""
        model = self.checked.loss
        assert isinstance(model, ShardedLoss)
        parts = self._views(point)
        if len(point) == self.structure.adapted.size and self.structure.shared is not None:
            parts |= self.structure.shared.views(self.w)
        with model.held(parts) as params:
            yield params

    def _views(self, z: Tensor) -> dict[str, Tensor]:
        size, shared = self.structure.adapted.size, self.structure.shared
        if shared is None or len(z) == size:
            return self.structure.adapted.views(z)
        return self.structure.adapted.views(z[:size]) | shared.views(z[size:])


def _check_whole(value: Tensor) -> None:
    if is_sharded(value):
        raise InputError("a loss of a model in shards returned a DTensor: return value.full_tensor()")
