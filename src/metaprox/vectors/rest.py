"""Where vectors are while nobody uses them: where they were made, or in the memory of the CPU."""

from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor

MOVED = 2**20  # numbers that are on the device at a time where a vector comes in blocks


class Away:
    """A vector [..., P], of one task and branch, in the memory of the CPU; the device gets all of it, or a block.

    Copies are in the order of the device's current stream, in which the device's memory is used again, and nobody reads
    the memory here but by them: neither side waits for the other. It is pinned where that is CUDA's, by torch's own
    allocator, which takes a power of two of bytes and keeps them for the next vector.
    """

    def __init__(self, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> None:
        self.shape, self.dtype, self.device = shape, dtype, device
        self._make(pinned=device.type == "cuda")

    @classmethod
    def of(cls, vector: Tensor) -> "Away":
        """A copy of ``vector``."""
        assert vector.numel() == vector.shape[-1]
        made = cls(vector.shape, vector.dtype, vector.device)
        made.write(slice(None), vector)
        return made

    def numel(self) -> int:
        return self.shape.numel()

    def back(self) -> Tensor:
        """All of it on the device, a new tensor."""
        return self.read(slice(None))

    def split(self, size: int, dim: int) -> Iterator[Tensor]:
        """As a tensor's, along the last dimension, but one block after another, each new."""
        assert dim == -1
        return (self.read(part) for part in _parts(self.shape[-1], size))

    def add_(self, vectors: Tensor, weight: float) -> "Away":
        """``weight`` times ``vectors`` more, in place."""
        for part in _parts(self.shape[-1], MOVED):
            self.write(part, self.read(part).add_(vectors[..., part], alpha=weight))
        return self

    def read(self, part: slice) -> Tensor:
        """These of its numbers on the device, a new tensor."""
        numbers = self._numbers[part].to(self.device, non_blocking=True, copy=True)
        return numbers.view(*self.shape[:-1], -1)

    def write(self, part: slice, block: Tensor) -> None:
        """Put ``block`` in the place of these."""
        self._numbers[part].copy_(block.reshape(-1), non_blocking=True)

    def _make(self, *, pinned: bool) -> None:
        self._numbers = torch.empty(self.numel(), dtype=self.dtype, device="cpu", pin_memory=pinned)


Vector = Tensor | Away


class Rest:
    """Vectors stay where they are. ``moves``: whether one that is ``away`` leaves its device."""

    moves: ClassVar[bool] = False

    def away(self, vector: Tensor) -> Vector:
        """``vector``, for ``whole`` to bring it back; whoever has it is to let go of it."""
        return vector

    def plus(self, total: Vector | None, vectors: Tensor, weights: Sequence[float]) -> Vector:
        """Returns ``total`` + sum_j weights_j vectors_j [T, 1, P] for vectors [T, b, P], in place where there is one.

        The vector itself where that is all.
        """
        assert not isinstance(total, Away)
        if total is None and len(weights) == 1 and weights[0] == 1:
            return vectors
        return add_weighted(total, vectors, weights)


class OnCPU(Rest):
    """Vectors rest in the memory of the CPU."""

    moves: ClassVar[bool] = True
    kind: ClassVar[type[Away]] = Away

    def away(self, vector: Tensor) -> Vector:
        return self.kind.of(vector)

    def plus(self, total: Vector | None, vectors: Tensor, weights: Sequence[float]) -> Vector:
        (weight,) = weights  # a branch at a time
        if total is not None:
            assert isinstance(total, Away)
            return total.add_(vectors, weight)
        made = self.kind(vectors.shape, vectors.dtype, vectors.device)
        for part in _parts(vectors.shape[-1], MOVED):
            made.write(part, vectors[..., part] * weight)
        return made


HERE = Rest()


def rest_on(device: torch.device) -> Rest:
    """Where the vectors of a ``device`` rest: in the memory of the CPU, where those of the CPU are."""
    return HERE if device.type == "cpu" else OnCPU()


def whole(vector: Vector) -> Tensor:
    """All of it where it is used: itself, or a new tensor if it was away."""
    return vector.back() if isinstance(vector, Away) else vector


def add_to(total: Tensor, vector: Vector, weight: float = 1.0) -> Tensor:
    """Add ``weight`` times ``vector`` to ``total`` in place, block by block where it is away. Returns ``total``."""
    if not isinstance(vector, Away):
        return total.add_(vector, alpha=weight)
    for part in _parts(vector.shape[-1], MOVED):
        total[..., part].add_(vector.read(part), alpha=weight)
    return total


def add_weighted(total: Tensor | None, vectors: Tensor, weights: Sequence[float]) -> Tensor:
    """``total`` + sum_j weights_j vectors_j [T, 1, P] for vectors [T, b, P], in place where there is a total."""
    for j, weight in enumerate(weights):
        vector = vectors if len(weights) == 1 else vectors[:, j : j + 1]
        total = vector * weight if total is None else total.add_(vector, alpha=weight)
    assert total is not None
    return total


def _parts(count: int, size: int) -> Iterator[slice]:
    """As ``Tensor.split`` does: one, empty, where there is nothing."""
    return (slice(start, min(start + size, count)) for start in range(0, max(1, count), size))
