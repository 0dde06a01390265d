"""Which tensors are known to hold several tasks: those that ``Task.stack`` made, and so the batches of every family."""

from typing import Any
from weakref import WeakValueDictionary

from torch import Tensor
from torch.utils import _pytree as pytree

from metaprox.errors import InputError

# By id, for as long as they live: nothing is written on a tensor, and what is computed from one is another.
_MADE: WeakValueDictionary[int, Tensor] = WeakValueDictionary()


def remember_stack(tree: Any) -> None:
    """Every tensor of ``tree`` holds several tasks, along its first dimension."""
    for leaf in pytree.tree_leaves(tree):
        _MADE[id(leaf)] = leaf


def refuse_stack(support: Any, place: str) -> None:
    """Raise InputError, naming the place, where all tensors of ``support``, which is to be one task's, are stacks."""
    tensors = [leaf for leaf in pytree.tree_leaves(support) if isinstance(leaf, Tensor)]
    if tensors and all(_MADE.get(id(leaf)) is leaf for leaf in tensors):
        shapes = ", ".join(str(tuple(leaf.shape)) for leaf in tensors)
        raise InputError(
            f"{place}, of shapes {shapes}, is that of a batch of {len(tensors[0])} tasks, where one task's belongs. "
            "Estimators and evaluate take the batch itself, without a list around it; adapt takes the support of one "
            "task, such as leaf[0] of every tensor. If all of it is one task, join its dimensions: leaf.flatten(0, 1)"
        )
