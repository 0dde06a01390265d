"""Data that does not fit at once: a loss as a weighted sum over batches."""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader

from metaprox import checks
from metaprox.data.inference import normal_tree
from metaprox.data.loader import batches_of, coupled_reading, examples_of
from metaprox.errors import InputError
from metaprox.types import Metrics

EMPTY = "batches is empty: give at least one batch"


@dataclass(frozen=True)
class MicroBatches:
    """Support or query of one task in pieces: the loss is sum_k weights_k loss(batch_k), and so are its metrics.

    The loop backend differentiates one batch after another, in the memory of one; the batches are read anew, in
    order, at every evaluation. Losses that look at a whole batch, as BatchNorm does in training mode, see a batch. A
    gradient costs one of each batch, and counts as one.

    Without weights each batch weighs its share of the examples, so that the loss is the mean over all examples where
    ``loss`` is the mean over those of a batch. Their number is the leading size of a batch's tensors.

    What a DataLoader shuffles, drops or draws is noise as that in a loss, and is the same in all branches, also where
    it has a generator of its own, which is put back after each reading. Python's and numpy's generators are not
    coupled, and neither are workers that persist.

    Args:
        batches: a list of batches, a DataLoader, or anything else that can be read more than once.
        weights: one for each batch. Needed where the number of examples in a batch, or in all of them, can't be told.

    Raises:
        InputError: ``batches`` can be read only once or is empty; weights are not numbers >= 0, or are missing. While
            batches are read: there are other numbers of batches or examples than was said.

    Example:
        >>> import torch, metaprox as mp
        >>> loss = lambda params, data: ((params["w"] - data) ** 2).mean()
        >>> problem = mp.ProximalProblem(loss, loss, lam=1.0)
        >>> pieces = mp.MicroBatches([torch.tensor([0.0, 2.0]), torch.tensor([7.0])])  # weigh 2/3 and 1/3
        >>> mp.adapt(problem, pieces, mp.GradientDescent(lr=0.3), steps=50, params={"w": torch.zeros(1)})["w"]
        tensor([2.])
    """

    batches: Iterable[Any]
    weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        _check_readable(self.batches)
        checks.settle(self, weights=checks.optional(partial(checks.tuple_of, check=checks.nonnegative)))
        length = _length(self.batches)
        if length == 0:
            raise InputError(EMPTY)
        if self.weights is None:
            self._examples()  # says at once what can't be told
        else:
            _check_weights(self.weights, length)

    def __iter__(self) -> Generator[tuple[float, Any]]:
        """(weight, batch), one after another. Raises InputError where there are not as many as was said."""
        with coupled_reading(self.batches):
            yield from self._by_share() if self.weights is None else self._by_weight(self.weights)

    def _by_weight(self, weights: Sequence[float]) -> Iterator[tuple[float, Any]]:
        count = 0
        for count, batch in enumerate(self.batches, 1):
            if count > len(weights):
                break
            yield weights[count - 1], batch
        if count != len(weights):
            raise InputError(
                f"there are {len(weights)} weights, but {'more' if count > len(weights) else count} batches"
            )

    def _by_share(self) -> Iterator[tuple[float, Any]]:
        total, seen = self._examples(reading=True), 0
        for index, batch in enumerate(self.batches):
            size = _size(index, batch)
            total = (_length(self.batches) or 0) * size if total is None else total
            seen += size
            if seen > total:
                break
            yield size / total, batch
        if not seen:
            raise InputError(EMPTY)
        if seen != total:
            raise InputError(
                f"the batches hold {'more' if seen > (total or 0) else seen} examples, where {total} were expected of "
                f"this {type(self.batches).__name__}: give weights, each batch's share of the examples"
            )

    def _examples(self, *, reading: bool = False) -> int | None:
        """How many there are; None where that takes the size of the first batch, times their number, or a reading."""
        if isinstance(self.batches, DataLoader):
            return examples_of(self.batches, reading=reading)
        if isinstance(self.batches, (list, tuple)):
            return sum(_size(index, batch) for index, batch in enumerate(self.batches))
        if _length(self.batches) is None:
            raise InputError(f"batches is a {type(self.batches).__name__}, without a length: give weights")
        return None


def pieces(data: Any) -> Generator[tuple[float | None, Any]]:
    """(weight, batch) of each micro-batch, one after another; (None, data) of data in one piece. To be closed."""
    if not isinstance(data, MicroBatches):
        yield None, data
        return
    with closing(iter(data)) as batches:
        for weight, batch in batches:
            yield weight, normal_tree(batch)


def plus(total: Any, found: Any, weight: float | None) -> Any:
    """``total`` (None at the beginning) + ``weight`` times ``found``, for trees of tensors; None: as it is."""
    scaled = found if weight is None else pytree.tree_map(partial(torch.mul, other=weight), found)
    return scaled if total is None else pytree.tree_map(torch.add, total, scaled)


def weighted_sum(evaluate: Callable[[Any], tuple[Tensor, Metrics]], data: Any) -> tuple[Tensor, Metrics]:
    """(value, metrics) of ``evaluate(batch)`` summed with the weights; of data in one piece, as it is."""
    total: Any = None
    with closing(pieces(data)) as parts:  # also where a loss raises
        for weight, batch in parts:
            total = plus(total, evaluate(batch), weight)
    return total  # of one batch at least


def _check_readable(batches: Any) -> None:
    if isinstance(batches, Iterator):
        raise InputError(
            f"batches is a {type(batches).__name__}, which can be read only once, but every evaluation of the "
            "loss reads it: give a list or a DataLoader"
        )
    if not isinstance(batches, Iterable) or isinstance(batches, (str, bytes, Mapping, Tensor)):
        remedy = "of one tensor, tensor.split(256); of a dataset, a DataLoader"
        raise InputError(f"batches must be a list of batches or a DataLoader, got {checks.shown(batches)}: {remedy}")


def _check_weights(weights: Sequence[float], length: int | None) -> None:
    if length is not None and length != len(weights):
        raise InputError(f"there are {len(weights)} weights, but {length} batches")
    if not sum(weights) > 0:
        raise InputError(f"weights must not all be 0, got {list(weights)}")


def _length(batches: Any) -> int | None:
    """How many batches there are, where that is known."""
    if isinstance(batches, DataLoader):
        return batches_of(batches)
    try:
        return len(batches)
    except TypeError:
        return None


def _size(index: int, batch: Any) -> int:
    """The leading size of the batch's tensors. Raises InputError unless all that have a dimension agree."""
    sizes = {len(leaf) for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.dim()}
    if len(sizes) != 1:
        found = f"its tensors have leading sizes {sorted(sizes)}" if sizes else "it holds no tensors with a dimension"
        raise InputError(
            f"the number of examples in batches[{index}] can't be told, for {found}: give weights, each batch's "
            "share of the examples"
        )
    (size,) = sizes
    if size == 0:
        raise InputError(f"batches[{index}] holds no examples")
    return size
