"""What a family of tasks is: a pure function from (seed, id) to a task."""

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import numpy as np
from torch.utils import _pytree as pytree

from metaprox import checks
from metaprox.data.task import Task
from metaprox.errors import InputError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class TaskFamily(Protocol):
    """Tasks by number. Task i is the same on every machine and after every restart."""

    def batch(self, ids: Sequence[int]) -> Task:
        """The tasks of these ids, stacked along a leading dimension."""


def in_float64(tasks: Task) -> Task:
    """The same with every floating-point tensor in float64."""
    return pytree.tree_map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, tasks)


def stacked(task: Callable[[int], Task], ids: Sequence[int]) -> Task:
    """``task(i)`` for each of ``ids``, as a batch. Raises InputError unless these are integers >= 0, at least one."""
    found = checks.ids("ids", ids)
    if min(found) < 0:
        raise InputError(f"task ids must be >= 0, got {min(found)}")
    return Task.stack([task(i) for i in found])


def generator(seed: int, split: Split, task_id: int) -> np.random.Generator:
    """The source of all randomness in task ``task_id`` of a split."""
    return np.random.default_rng([seed, SPLITS.index(split), task_id])
