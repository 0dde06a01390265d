"""The randomness of a task, a pure function of (seed, split, id)."""

import numpy as np

from metaprox.tasks.base import SPLITS, Split


def generator(seed: int, split: Split, task_id: int) -> np.random.Generator:
    """The source of all randomness in task ``task_id`` of a split."""
    return np.random.default_rng([seed, SPLITS.index(split), task_id])


class NumpyDraws:
    """Choices by a generator of numpy."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def choose(self, count: int, some: int) -> list[int]:
        """``some`` of range(count), without repetition, in random order."""
        return self._rng.choice(count, some, replace=False).tolist()

    def order(self, count: int) -> list[int]:
        """range(count) in random order."""
        return self._rng.permutation(count).tolist()

    def seed(self) -> int:
        """For a generator of torch."""
        return int(self._rng.integers(2**53))


def draws_of(seed: int, split: Split, task_id: int) -> NumpyDraws:
    """The choices that make a task, by ``generator``."""
    return NumpyDraws(generator(seed, split, task_id))
