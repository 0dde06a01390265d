"""Meta-parameters split into those that adapt to a task and those that do not."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from metaprox.types import Params
from metaprox.vectors.devices import launches
from metaprox.vectors.layout import Layout
from metaprox.vectors.shards import Shards

# In bytes: up to here a copy of x costs less memory than it saves time.
SMALL = 2**20


@dataclass(frozen=True)
class Structure:
    """Names, shapes and dtypes of the parameters that adapt and of those that do not; hashable."""

    names: tuple[str, ...]
    adapted: Layout
    shared: Layout | None

    @classmethod
    @lru_cache(maxsize=64)
    def of(cls, everything: Layout, names: tuple[str, ...]) -> "Structure":
        """That of parameters laid out like this, of which those of these ``names`` adapt: one at least."""
        adapted, shared = everything.only(names), everything.only(set(everything.names).difference(names))
        assert adapted is not None  # patterns that fit nothing were refused
        return cls(everything.names, adapted, shared)

    def merge(self, adapted: dict[str, Tensor], w: Tensor) -> dict[str, Tensor]:
        """All parameters [..., *shape], in the order they were given in, from those that adapt and w [..., W]."""
        if self.shared is None:
            return adapted
        parts = {**adapted, **self.shared.unflatten(w)}  # torch 2.7 compiles no | of dicts
        return {name: parts[name] for name in self.names}

    def unflatten(self, y: Tensor, w: Tensor) -> dict[str, Tensor]:
        """y [..., P] and w [..., W] -> dict of all parameters [..., *shape], in the order they were given in."""
        return self.merge(self.adapted.unflatten(y), w)


@dataclass(frozen=True)
class Parameters:
    """x [P], which every task adapts, and w [W], which all tasks share as it is; W is 0 where everything adapts.

    A point z is the vector (y, w) [P + W]. ``pieces`` of x, one after another, are x: one vector, or views of the
    parameters themselves, which take no memory. Where tasks have parameters of their own, x is each task's: [T, 1, P].
    ``shards``: where the numbers of vectors lie, of which this rank has P and W; None: they are all here.
    """

    structure: Structure
    pieces: tuple[Tensor, ...]
    w: Tensor
    shards: Shards | None = None

    @classmethod
    def of(cls, params: Params, adapted_names: Callable[[Sequence[str]], Sequence[str]]) -> "Parameters":
        """Returns x as views of those of ``params`` that ``adapted_names`` chooses of their names.

        Raises:
            InputError: the parameters are not ones that can be adapted, or none of them is to be.
        """
        shards = Shards.of(params)
        everything = Layout.of(params, shards)
        structure = Structure.of(everything, tuple(adapted_names(everything.names)))
        pieces = tuple(structure.adapted.pieces(params))
        w = structure.shared.flatten(params) if structure.shared else pieces[0].new_empty(0)
        return cls(structure, pieces, w, shards)

    def flat(self, *, up_to: int | None = None) -> "Parameters":
        """The same with x as one vector of its own; only if it takes ``up_to`` so many bytes, where that is given."""
        if up_to is not None and self.adapted.size * self.adapted.dtype.itemsize > up_to:
            return self
        return replace(self, pieces=(torch.cat(self.pieces),))

    def zeros(self) -> Tensor:
        """A vector [P + W] for a gradient."""
        return self.w.new_zeros(self.adapted.size + len(self.w))

    def of_tasks(self, own: Sequence[Mapping[str, Tensor]]) -> "Parameters":
        """Returns the same with what each of T tasks has of its ``own``: x is [P] of one task, and else [T, 1, P].

        That of one task takes no memory; that of more, T vectors.
        """
        names = self.adapted.names
        each = [
            [
                task[n].reshape(-1).to(self.adapted.dtype) if n in task else p
                for n, p in zip(names, self.pieces, strict=True)
            ]
            for task in own
        ]
        if len(own) == 1:
            return replace(self, pieces=tuple(each[0]))
        return replace(self, pieces=(torch.stack([torch.cat(pieces) for pieces in each]).unsqueeze(1),))

    @property
    def adapted(self) -> Layout:
        return self.structure.adapted

    @property
    def shared(self) -> Layout | None:
        return self.structure.shared

    @property
    def device(self) -> torch.device:
        return self.adapted.device

    @property
    def x(self) -> Tensor:
        """[P], or [T, 1, P]; a new tensor where the pieces are several."""
        return self.pieces[0] if len(self.pieces) == 1 else torch.cat(self.pieces)

    def start(self) -> Tensor:
        """x [P], or [T, 1, P], always a new tensor."""
        return torch.cat(self.pieces)

    @cached_property
    def x_by_parameter(self) -> Sequence[Tensor]:
        """x [P] as a vector for each parameter: views."""
        return self.pieces if len(self.pieces) > 1 else self.pieces[0].split_with_sizes(self.adapted.sizes)

    def displacement(self, y: Tensor, out: Tensor | None = None) -> Tensor:
        """y - x [..., P]: a new tensor, or ``out``."""
        if len(self.pieces) == 1:
            return torch.sub(y, self.pieces[0], out=out)
        moved = torch.empty_like(y, memory_format=torch.contiguous_format) if out is None else out
        sizes = self.adapted.sizes
        if launches(y.device):
            moved.copy_(y)
            for row in moved.view(-1, moved.shape[-1]):
                torch._foreach_sub_(row.split_with_sizes(sizes), self.pieces)
            return moved
        parts = zip(y.split_with_sizes(sizes, -1), self.pieces, moved.split_with_sizes(sizes, -1), strict=True)
        for point, x, part in parts:
            torch.sub(point, x, out=part)
        return moved

    def unflatten(self, z: Tensor) -> dict[str, Tensor]:
        """(y, w) [..., P + W] -> dict of all parameters [..., *shape], in the order they were given in."""
        return self.structure.unflatten(z[..., : self.adapted.size], z[..., self.adapted.size :])

    def named(self, z: Tensor) -> dict[str, Tensor]:
        """The same for those who gave the parameters: where these are in shards, DTensors on their mesh."""
        found = self.unflatten(z)
        return found if self.shards is None else self.shards.named(found)

    def named_adapted(self, y: Tensor) -> dict[str, Tensor]:
        """The same of y [..., P] alone."""
        found = self.adapted.unflatten(y)
        return found if self.shards is None else self.shards.named(found)

    def at(self, y: Tensor) -> Tensor:
        """y [..., P] -> z = (y, w) [..., P + W]; y itself where everything adapts."""
        if self.shared is None:
            return y
        return torch.cat([y, self.w.expand(*y.shape[:-1], -1)], dim=-1)
