"""What a solve in the loop writes on, so that no step needs new memory of the size of the parameters."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from metaprox.losses.adapted import guarded
from metaprox.vectors.layout import Layout


@dataclass(frozen=True)
class Point:
    """A point y [1, b, P] in memory of the solve, the parameters in each row of it, and how many tensors lie there."""

    y: Tensor
    rows: tuple[Mapping[str, Tensor], ...]
    holders: float

    @property
    def is_free(self) -> bool:
        """Whether nobody else has come to hold a tensor there."""
        return _holders(self.y) == self.holders

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Around an evaluation in this memory: what it writes there is dropped. A copy is made only if it writes."""
        before = guarded(self.y)
        yield
        if not _is_shared(self.y):  # it was written on, or had to be copied at once
            self.y.copy_(before)


class Memory:
    """Of one solve of one task: its points, and one spare vector, which takes a gradient or the next point.

    What a loss keeps beyond its call, a parameter or a graph, is not written on: the next step goes elsewhere.

    Args:
        layout: of the parameters that adapt.
        size: h, where steps are -h times the gradient and may be taken in place; None: they are the solver's.
        reusable: whether the solver keeps no gradient.
    """

    def __init__(self, layout: Layout, size: float | None, *, reusable: bool) -> None:
        self.size, self.reusable = size, reusable
        self.unseen = False  # whether nobody looks at the gradient of the step at hand
        self._layout = layout
        self._points: dict[int, Point] = {}  # by the first branch of their part
        self._spare: Point | None = None
        self._lent: Point | None = None

    def own(self, y: Tensor, first: int) -> Tensor:
        """Returns y [1, b, P], new and nobody else's: from now on the point of the part that begins at ``first``."""
        self._points[first] = self._made(y)
        return y

    def point(self, y: Tensor) -> Point | None:
        """y, where it is one of the points."""
        return next((point for point in self._points.values() if point.y is y), None)

    def step(self, y: Tensor, gradient: Tensor, first: int) -> Tensor:
        """Returns y - size gradient, in the memory of y where that may be written on."""
        assert self.size is not None
        point = self.point(y)
        if point is not None and point.is_free:
            return y.add_(gradient, alpha=-self.size)
        spare, self._spare = self._spare, None
        if spare is None or spare.y.shape != y.shape:
            return self.own(y.add(gradient, alpha=-self.size), first)
        self._points[first] = spare
        return torch.add(y, gradient, alpha=-self.size, out=spare.y)

    def take(self, like: Tensor) -> Tensor:
        """Returns memory like ``like`` [1, b, P], to be written on: the spare vector, or new."""
        self._lent, self._spare = self._spare, None
        if self._lent is None or self._lent.y.shape != like.shape:
            self._lent = None
            self._lent = self._made(torch.empty_like(like, memory_format=torch.contiguous_format))
        return self._lent.y

    def give_back(self, gradient: Tensor) -> None:
        """One that the solve needs no more, and nobody else if it was taken: it is spare."""
        lent, self._lent = self._lent, None
        if lent is None or lent.y is not gradient:
            self._spare = self._made(gradient)
        elif lent.is_free:
            self._spare = lent

    def exchange(self, y: Tensor, taken: Tensor, first: int) -> Tensor:
        """Returns ``taken``, which was, as the point in the place of y, whose memory is spare now."""
        assert self._lent is not None
        old, self._points[first], self._lent = self._points[first], self._lent, None
        self._spare = old if old.y is y and old.is_free else None
        return taken

    def places(self, gradient: Tensor) -> tuple[Mapping[str, Tensor], ...]:
        """Of the parameters, in each row of ``gradient`` [1, b, P]."""
        lent = self._lent
        return lent.rows if lent is not None and lent.y is gradient else self._rows(gradient)

    def end(self) -> None:
        """The points are those of the caller now, and what stays is the spare vector, until it is ``left``."""
        self._points.clear()
        self._lent = None

    def let_go(self) -> None:
        """Of all memory: what comes next begins with its own."""
        self.end()
        self._spare = None

    def left(self) -> Tensor | None:
        """The spare vector, for the caller."""
        spare, self._spare = self._spare, None
        return None if spare is None else spare.y

    def _made(self, y: Tensor) -> Point:
        rows = self._rows(y)
        return Point(y, rows, _holders(y))

    def _rows(self, vectors: Tensor) -> tuple[Mapping[str, Tensor], ...]:
        return tuple(self._layout.views(row) for row in vectors[0])


def _holders(tensor: Tensor) -> float:
    """How many tensors lie in the memory of this one. Where torch does not say, NaN, which nothing is equal to."""
    count = getattr(torch._C, "_storage_Use_Count", None)
    return math.nan if count is None else float(count(tensor.untyped_storage()._cdata))


def _is_shared(tensor: Tensor) -> bool:
    """Whether its memory is still that of a copy that is made when one of the two is written on."""
    shared = getattr(torch._C, "_is_cow_tensor", None)
    return shared is not None and bool(shared(tensor))
