"""Gradients at T x B points in one call."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.func import grad_and_value, vmap
from torch.utils import _pytree as pytree

from metaprox.types import Metrics

FlatLoss = Callable[[Tensor, Any], tuple[Tensor, Metrics]]


def evaluate_all(loss: FlatLoss, y: Tensor, data: Any) -> tuple[Tensor, tuple[Tensor, Metrics]]:
    """Gradient [T, B, P], value and metrics [T, B] of ``loss`` at y [T, B, P] on the data of T tasks, vmapped."""
    one = grad_and_value(loss, has_aux=True)
    if y.shape[1] == 1:  # a second vmap level would cost as much overhead as the first
        results = vmap(one, randomness="different")(y.squeeze(1), data)
        return pytree.tree_map(lambda leaf: leaf.unsqueeze(1), results)
    # The data get a branch dimension too (a view): torch's rule for mse_loss is wrong under two levels of
    # vmap when one argument has only one of them.
    shared = pytree.tree_map(lambda leaf: leaf.unsqueeze(1).expand(-1, y.shape[1], *leaf.shape[1:]), data)
    return vmap(vmap(one, randomness="same"), randomness="different")(y, shared)
