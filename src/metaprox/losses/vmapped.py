"""Gradients at T x B points in one call."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.func import grad_and_value, vmap

from metaprox.checks.trees import Form, flattened, mapped, unflattened
from metaprox.types import Metrics

Value = tuple[Tensor, Metrics]
Tensors = tuple[Tensor, ...]  # by a name, since torch traces no annotation of a function in another that is built
FlatLoss = Callable[[Tensor, Any], Value]


def at_all(one: Callable[..., Any], y: Tensor, *data: Any) -> Any:
    """Returns what ``one`` does [...] at y [P] on the data of a task, as [T, B, ...] at y [T, B, P] on those of T.

    Gradient, value and metrics, where it is ``grad_and_value(loss, has_aux=True)``.
    """
    if y.shape[1] == 1:  # a second vmap level would cost as much overhead as the first
        return mapped(lambda leaf: leaf.unsqueeze(1), vmap(one, randomness="different")(y.squeeze(1), *data))
    # The data get a branch dimension too (a view): torch's rule for mse_loss is wrong under two levels of
    # vmap when one argument has only one of them.
    shared = mapped(lambda leaf: leaf.unsqueeze(1).expand(-1, y.shape[1], *leaf.shape[1:]), data)
    return vmap(vmap(one, randomness="same"), randomness="different")(y, *shared)


def evaluated_in_graph(loss: FlatLoss, y: Tensor, data: Any) -> tuple[Tensor, Value]:
    """Returns gradient [T, B, P], value and metrics [T, B] of ``loss`` at y [T, B, P] on data of T tasks, to be traced.

    torch's functions get tensors, and no trees of them, for which they take more operations of Python.
    """
    leaves, form = flattened(data)
    told: list[Form] = []  # how metrics are built

    def one(point: Tensor, *of_task: Tensor) -> Tensors:
        gradient, (value, metrics) = grad_and_value(lambda y: loss(y, unflattened(of_task, form)), has_aux=True)(point)
        found, built = flattened(metrics)
        told[:] = [built]
        return gradient, value, *found

    gradient, value, *found = at_all(one, y, *leaves)
    return gradient, (value, unflattened(found, told[0]))
