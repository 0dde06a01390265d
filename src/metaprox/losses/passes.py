"""A loss at one point, by a plain forward and backward pass."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from metaprox.errors import InputError
from metaprox.losses.adapted import AdaptedLoss, guarded
from metaprox.losses.memory import Memory, Point
from metaprox.losses.sharded import LossInShards
from metaprox.losses.vmapped import FlatLoss
from metaprox.types import Metrics
from metaprox.vectors.terms import add_product

REENTRANT = (
    "the model recomputes activations with torch.utils.checkpoint and use_reentrant=True, which takes gradients of all "
    "that requires grad, and hides what that is; give use_reentrant=False (transformers: "
    "gradient_checkpointing_enable({'use_reentrant': False}))"
)


@dataclass(frozen=True)
class Spot:
    """Where an ``AdaptedLoss`` is evaluated: at y [P], or in a row of a point of the solve."""

    loss: AdaptedLoss
    y: Tensor
    point: Point | None = None
    row: int = 0

    @contextmanager
    def leaves(self) -> Iterator[dict[str, Tensor]]:
        """The parameters that adapt, as leaves of a graph, for one evaluation, which may write on them."""
        if self.point is None:
            yield self.loss.leaves(self.y)
            return
        with self.point.kept():
            yield self.loss.leaves_of(self.point.rows[self.row])

    def differentiate(self, batch: Any, take: Callable[[int, Tensor | None], None]) -> None:
        """Call ``take`` with the number of each parameter and the gradient there, as a backward pass comes upon it.

        None is where it leaves none. Only what ``take`` keeps is alive longer than a parameter's turn.
        """
        with self.leaves() as leaves:
            value, _ = self.loss.checked(self.loss.all_from(dict(leaves)), batch)
            left = set(range(len(leaves)))
            for index, leaf in enumerate(leaves.values()):
                leaf.grad = None  # of a backward pass of the loss's own
                if leaf.requires_grad:
                    leaf.register_post_accumulate_grad_hook(partial(_hand_over, take, left, index))
            if value.requires_grad:
                _backward(value, list(_learned(leaves).values()))
        for index in left:
            take(index, None)


def spot(loss: FlatLoss, point: Tensor, memory: Memory | None, y: Tensor, row: int = 0) -> Spot | Tensor:
    """Where ``loss`` is evaluated: ``point`` [P], a row of y; of an ``AdaptedLoss`` as a ``Spot``."""
    if not isinstance(loss, AdaptedLoss):
        return point
    return Spot(loss, point, None if memory is None or loss.writes else memory.point(y), row)


def differentiate(
    loss: FlatLoss,
    where: Spot | Tensor,
    batch: Any,
    gradient: Tensor,
    weight: Tensor | None,
    places: Mapping[str, Tensor] | None,
) -> tuple[Tensor, Metrics]:
    """Returns value and metrics at one point [P]; adds the gradient, times ``weight`` if given, to ``gradient`` [P].

    Of an ``AdaptedLoss`` the backward pass adds as it goes, so that no second vector of P numbers is ever there. It
    starts from 1 whatever the weight: a small one would be rounded, or lost, in narrow models, and clipped otherwise
    where they clip gradients. ``places``: of the parameters in ``gradient``, where they are known.
    """
    if isinstance(where, Spot):
        with where.leaves() as leaves:
            value, metrics = where.loss.checked(where.loss.all_from(dict(leaves)), batch)
            if value.requires_grad:  # or else nothing is added, where only the value has to be one
                places = where.loss.structure.adapted.views(gradient) if places is None else places
                learned = _learned(leaves)
                _aim(learned, places, gradient.dtype, weight)
                _backward(value, list(learned.values()))
    elif isinstance(loss, LossInShards):
        return loss.differentiate(where, batch, gradient, weight)
    else:
        leaf = guarded(where).requires_grad_()
        value, metrics = loss(leaf, batch)
        if value.requires_grad:
            (found,) = torch.autograd.grad(value, leaf)
            add_product(gradient, found, weight)
    return value.detach(), pytree.tree_map(torch.Tensor.detach, metrics) if metrics else metrics


def _backward(value: Tensor, leaves: list[Tensor]) -> None:
    try:
        value.backward(inputs=leaves)
    except RuntimeError as error:
        if "Checkpointing is not compatible" in str(error):
            raise InputError(REENTRANT) from error
        raise


def _aim(leaves: Mapping[str, Tensor], places: Mapping[str, Tensor], dtype: torch.dtype, weight: Tensor | None) -> None:
    """Let a backward pass add the gradients of ``leaves`` to ``places``.

    To be called after the forward pass, in which the loss may have filled, or emptied, its parameters' .grad.
    """
    for name, leaf in leaves.items():
        if weight is None and leaf.dtype == dtype:
            leaf.grad = places[name]
        else:
            leaf.grad = None
            leaf.register_post_accumulate_grad_hook(partial(_move, places[name], weight))


def _move(place: Tensor, weight: Tensor | None, leaf: Tensor) -> None:
    """The gradient of ``leaf`` to where it is added up."""
    assert leaf.grad is not None
    add_product(place, leaf.grad, weight)
    leaf.grad = None


def _hand_over(take: Callable[[int, Tensor | None], None], left: set[int], index: int, leaf: Tensor) -> None:
    take(index, leaf.grad)
    left.discard(index)
    leaf.grad = None


def _learned(leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those that the loss has not frozen."""
    return {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}


def value(loss: FlatLoss, point: Tensor, batch: Any) -> tuple[Tensor, Metrics]:
    """Value and metrics at ``point`` [P], with their graph."""
    if isinstance(loss, LossInShards):
        return loss.value(point, batch)
    if isinstance(loss, AdaptedLoss):
        return loss.checked(loss.all_from(loss.leaves(point)), batch)
    return loss(guarded(point), batch)
