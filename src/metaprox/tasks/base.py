"""What a family of tasks is: a pure function from (seed, id) to a task."""

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
from torch.utils import _pytree as pytree

from metaprox.errors import InputError
from metaprox.problem import Task

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class TaskFamily(Protocol):
    """Tasks by number. Task i is the same on every machine and after every restart."""

    def batch(self, ids: Sequence[int]) -> Task:
        """The tasks of these ids, stacked along a leading dimension."""


def in_float64(tasks: Task) -> Task:
    """The same with every floating-point tensor in float64."""
    return pytree.tree_map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, tasks)


def generator(seed: int, split: Split, task_id: int) -> np.random.Generator:
    """The source of all randomness in task ``task_id`` of a split."""
    if task_id < 0:
        raise InputError(f"task ids must be >= 0, got {task_id}")
    return np.random.default_rng([seed, SPLITS.index(split), task_id])
