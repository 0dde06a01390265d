"""Random choices as functions of a key, the same on every machine and in every version of Python."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch


class Draws(Protocol):
    """A stream of choices."""

    def choose(self, count: int, some: int) -> list[int]:
        """``some`` of range(count), without repetition, in random order."""

    def order(self, count: int) -> list[int]:
        """range(count) in random order."""

    def seed(self) -> int:
        """For a generator of torch."""


class KeyedDraws:
    """The stream of a key. Rests on ``random.random`` alone, whose values Python promises to keep for a seed."""

    def __init__(self, *key: int | str) -> None:
        self._next = random.Random(" ".join(map(str, key))).random

    def choose(self, count: int, some: int) -> list[int]:
        """``some`` of range(count), by as many swaps of Fisher and Yates as are needed."""
        moved: dict[int, int] = {}
        found = []
        for i in range(some):
            j = i + int(self._next() * (count - i))
            found.append(moved.get(j, j))
            moved[j] = moved.get(i, i)
        return found

    def order(self, count: int) -> list[int]:
        """range(count) in random order."""
        return self.choose(count, count)

    def within(self, low: int, high: int) -> int:
        """An integer in [low, high]."""
        return low + int(self._next() * (high - low + 1))

    def seed(self) -> int:
        """For a generator of torch."""
        return int(self._next() * 2**53)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's global generator of the CPU draws from ``seed`` inside, and is put back after."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
