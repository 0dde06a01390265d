"""The terms of an inner problem's objective that are known without the data: by their gradients."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from metaprox.vectors.norms import BLOCK, largest, mark
from metaprox.vectors.parameters import Parameters


@dataclass(frozen=True)
class LinearTerm:
    """<u, y> with u = sum_k c_k u_k [T, B, P], for c_k [T, B, 1] and u_k [T, 1, P], same at all steps of a solve."""

    terms: Sequence[tuple[Tensor, Tensor]]

    def of(self, branches: slice) -> "LinearTerm":
        """The one of these branches alone."""
        count = self.terms[0][0].shape[1]
        if range(count)[branches] == range(count):
            return self  # which keeps ``vector``
        return LinearTerm([(coefficient[:, branches], vector) for coefficient, vector in self.terms])

    def add_to(self, total: Tensor) -> None:
        """Its gradient, u, in place, and without a further vector."""
        for coefficient, vector in self.terms:
            total.addcmul_(coefficient, vector)

    @cached_property
    def vector(self) -> Tensor:
        """u as a tensor of its own, for those that have the memory."""
        return self.total()

    def total(self) -> Tensor:
        """The same, a new one."""
        (coefficient, vector), *others = self.terms
        total = coefficient * vector
        for coefficient, vector in others:
            total.addcmul_(coefficient, vector)
        return total


@dataclass(frozen=True)
class ProximalTerm:
    """(lam/2) ||y - x||^2, and a linear term <u, y> where there is one."""

    parameters: Parameters
    lam: float
    linear: LinearTerm | None = None

    def gradient(self, y: Tensor, out: Tensor | None = None) -> Tensor:
        """lam (y - x) + u [T, B, P], to add other gradients onto: a new tensor, or ``out``."""
        total = self.parameters.displacement(y, out).mul_(self.lam)
        if self.linear is not None:
            self.linear.add_to(total)
        return total


class Descent:
    """y - size g with g = lam (y - x) + u + sum_k c_k g_k, parameter by parameter, as the gradients g_k come.

    Block by block, each of which is read once and stays in the processor's cache.

    Args:
        term: lam (y - x) + u.
        y: the point [1, 1, P].
        out: where y - size g is made [1, 1, P].
        weights: c_k, None for 1.
    """

    def __init__(
        self, term: ProximalTerm, y: Tensor, out: Tensor, size: float, weights: Sequence[Tensor | None]
    ) -> None:
        sizes, linear = term.parameters.adapted.sizes, [] if term.linear is None else term.linear.terms
        self._lam, self._size, self._weights = term.lam, size, weights
        self._x = term.parameters.x_by_parameter
        self._y, self._out = (vectors[0, 0].split_with_sizes(sizes) for vectors in (y, out))
        self._linear = [(c[0, 0], u[0, 0].split_with_sizes(sizes)) for c, u in linear]
        self._marks: list[Tensor] = []

    def add(self, loss: int, index: int, gradient: Tensor | None) -> None:
        """The gradient of a loss with respect to one parameter, None where that is 0: of loss 0 first, and of all."""
        dense = gradient is None or gradient.layout == torch.strided
        flat = gradient.reshape(-1) if gradient is not None and dense else None
        for part in _blocks(len(self._y[index])):
            if loss == 0:
                self._begin(index, part)
            if flat is not None:
                add_product(self._out[index][part], flat[part], self._weights[loss])
            if dense and loss == len(self._weights) - 1:
                self._end(index, part)
        if gradient is not None and not dense:
            add_product(self._out[index].view(gradient.shape), gradient, self._weights[loss])
            if loss == len(self._weights) - 1:
                self._end(index, slice(None))

    def mark(self) -> Tensor:
        """What is a number where all of g are [1, 1], once all gradients have come."""
        return largest(torch.cat(self._marks))[None]

    def _begin(self, index: int, part: slice) -> None:
        step = self._out[index][part]
        torch.sub(self._y[index][part], self._x[index][part], out=step).mul_(self._lam)
        for coefficient, vectors in self._linear:
            step.addcmul_(coefficient, vectors[index][part])

    def _end(self, index: int, part: slice) -> None:
        step = self._out[index][part]
        self._marks.append(mark(step))
        torch.add(self._y[index][part], step, alpha=-self._size, out=step)


def add_product(total: Tensor, gradient: Tensor, weight: Tensor | None) -> None:
    """Add ``gradient``, times ``weight`` if given, to ``total`` in place."""
    if weight is None:
        total.add_(gradient)
    elif gradient.layout == torch.strided:
        total.addcmul_(gradient.to(total.dtype), weight)
    else:
        total.add_(gradient * weight)


def _blocks(count: int) -> Iterator[slice]:
    return (slice(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK))
