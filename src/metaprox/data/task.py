"""One task, or a batch of them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from metaprox.checks.trees import check_alike, kind
from metaprox.data.stacks import remember_stack
from metaprox.errors import InputError


class Task(NamedTuple):
    """One task, or a batch of T tasks: the data to adapt on and the data to be judged on.

    Both are pytrees of tensors. A batch has a leading dimension T on every tensor.
    """

    support: Any
    query: Any

    @staticmethod
    def stack(tasks: Sequence["Task"]) -> "Task":
        """Returns one batch, with a leading dimension T, of T single tasks of equal shapes. Costs a copy of them.

        Its tensors are known as a batch's: given as one task, to ``adapt`` or in a list, they are refused.

        Raises:
            InputError: they are not tensors of equal shapes; names the place.
        """
        if isinstance(tasks, (Task, str, Tensor)) or not isinstance(tasks, Sequence):
            raise InputError(f"tasks must be a list of mp.Task, got {kind(tasks)}")
        if not tasks:
            raise InputError("an empty list of tasks can't be stacked")
        for index, task in enumerate(tasks):
            if not isinstance(task, Task):
                raise InputError(f"tasks[{index}] must be a mp.Task(support, query), got {kind(task)}")
        check_alike(tasks, "which can't be stacked; give a list of tasks in place of a stack")
        batch: Task = pytree.tree_map(lambda *leaves: torch.stack(leaves), *tasks)
        remember_stack(batch)
        return batch
