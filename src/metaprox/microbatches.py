"""Data that does not fit at once: a loss as a weighted sum over batches."""

from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from metaprox import checks
from metaprox.errors import InputError
from metaprox.inference import normal_tree
from metaprox.types import Metrics


@dataclass(frozen=True)
class MicroBatches:
    """Support or query of one task in pieces: the loss is sum_k weights_k loss(batch_k), and so are its metrics.

    The loop backend differentiates one batch after another, in the memory of one; the batches are read anew, in
    order, at every evaluation. Where the loss is a mean over examples and batches differ in size, give each its share
    of the examples as its weight. Losses that look at a whole batch, as BatchNorm does in training mode, see a batch.

    Args:
        batches: a list of batches, a DataLoader, or anything else that can be read more than once.
        weights: one for each batch. Default: equal weights that sum to 1, for batches that have a length.

    Raises:
        InputError: ``batches`` can be read only once or is empty, or weights are not numbers >= 0 or are missing.

    Example:
        >>> import torch, metaprox as mp
        >>> loss = lambda params, data: ((params["w"] - data) ** 2).mean()
        >>> problem = mp.ProximalProblem(loss, loss, lam=1.0)
        >>> pieces = mp.MicroBatches([torch.tensor([0.0, 2.0]), torch.tensor([7.0])], weights=[2 / 3, 1 / 3])
        >>> mp.adapt(problem, pieces, mp.GradientDescent(lr=0.3), steps=50, params={"w": torch.zeros(1)})["w"]
        tensor([2.])
    """

    batches: Iterable[Any]
    weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if iter(self.batches) is self.batches:
            raise InputError(
                f"batches is a {type(self.batches).__name__}, which can be read only once, but every evaluation of the "
                "loss reads it: give a list or a DataLoader"
            )
        if self.weights is None and not isinstance(self.batches, Sized):
            raise InputError(f"batches is a {type(self.batches).__name__}, without a length: give weights")
        if isinstance(self.batches, Sized) and len(self.batches) == 0:
            raise InputError("batches is empty: give at least one batch")
        for index, weight in enumerate(self.weights or ()):
            checks.nonnegative(f"weights[{index}]", weight)

    def __iter__(self) -> Iterator[tuple[float, Any]]:
        """(weight, batch), one after another. Raises InputError where there are not as many of one as of the other."""
        weights = self.weights
        if weights is None:
            assert isinstance(self.batches, Sized)
            weights = [1 / len(self.batches)] * len(self.batches)
        count = 0
        for count, batch in enumerate(self.batches, 1):
            if count > len(weights):
                break
            yield weights[count - 1], batch
        if count != len(weights):
            raise InputError(
                f"there are {len(weights)} weights, but {'more' if count > len(weights) else count} batches"
            )


def weighted_sum(evaluate: Callable[[Any, float], tuple[Tensor, Metrics]], data: Any) -> tuple[Tensor, Metrics]:
    """(value, metrics) of ``evaluate(batch, weight)`` summed with the weights; of data in one piece, as it is."""
    if not isinstance(data, MicroBatches):
        return evaluate(data, 1.0)
    total = None
    for weight, batch in data:
        scaled = pytree.tree_map(partial(torch.mul, other=weight), evaluate(normal_tree(batch), weight))
        total = scaled if total is None else pytree.tree_map(torch.add, total, scaled)
    assert total is not None  # there is at least one batch
    return total
