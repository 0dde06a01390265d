"""A checked batch of tasks, one at a time or in chunks."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from metaprox.checks.trees import Form, check_alike, flattened, kind, leaves, mapped
from metaprox.data.inference import normal_tree
from metaprox.data.microbatches import MicroBatches
from metaprox.data.stacks import refuse_stack
from metaprox.data.task import Task
from metaprox.errors import InputError

NO_VMAP = "which can't be vmapped; use backend='loop'"


@dataclass(frozen=True)
class TaskBatch:
    """T >= 1 tasks: either stacked (leading dimension T) or as single tasks."""

    size: int
    stacked: Task | None
    singles: tuple[Task, ...]

    @classmethod
    def of(cls, tasks: Task | Sequence[Task]) -> "TaskBatch":
        """Check ``tasks``, a stacked Task or a sequence of single ones. Raises InputError that names the place."""
        if isinstance(tasks, Task):
            found = flattened(tasks)[0]
            _check_values(tasks, found, "")
            return cls(_leading_size(tasks, found), normal_tree(tasks), ())
        if isinstance(tasks, (Tensor, str, dict)) or not isinstance(tasks, Iterable):
            raise InputError(f"tasks must be a mp.Task with a task dimension, or a list of them, got {kind(tasks)}")
        singles = tuple(tasks)
        if not singles:
            raise InputError("the batch of tasks is empty: give at least one task")
        for index, task in enumerate(singles):
            if not isinstance(task, Task):
                raise InputError(f"tasks[{index}] must be a mp.Task(support, query), got {type(task).__name__}")
            _check_values(task, flattened(task)[0], f"[{index}]")
            refuse_stack(task.support, f"the support of tasks[{index}]")
        return cls(len(singles), None, tuple(normal_tree(task) for task in singles))

    @cached_property
    def first(self) -> Task:
        """Task 0 without a leading dimension, which others are taken to be like."""
        return self.one(0)

    @cached_property
    def leaves_of_first(self) -> tuple[list[Any], Form]:
        """Its leaves, and how they are arranged."""
        return flattened(self.first)

    @property
    def stackable(self) -> bool:
        """Whether the tasks are tensors of equal shapes."""
        try:
            check_alike(self.singles if self.stacked is None else (self.stacked,), NO_VMAP)
        except InputError:
            return False
        return True

    def one(self, index: int) -> Task:
        """Task ``index`` without a leading dimension."""
        if self.stacked is None:
            return self.singles[index]
        task: Task = mapped(lambda leaf: leaf[index], self.stacked)
        return task

    def many(self, start: int, stop: int) -> Task:
        """Tasks start..stop-1 with a leading dimension."""
        if self.stacked is not None and stop - start == self.size:
            return self.stacked
        if self.stacked is not None:
            tasks: Task = mapped(lambda leaf: leaf[start:stop], self.stacked)
            return tasks
        chunk = self.singles[start:stop]
        check_alike(chunk, NO_VMAP)
        return Task.stack(chunk)

    def non_finite(self, index: int) -> str:
        """Where the data of task ``index`` have infinities or NaNs, for an error that they may explain; or ""."""
        task = self.one(index)
        places = [path for path, leaf in _leaves_in_pieces(task) if isinstance(leaf, Tensor) and _has_non_finite(leaf)]
        return f"Its data have non-finite values, in {', '.join(places)}. " if places else ""


def has_no_task(tasks: Any) -> bool:
    """Whether ``tasks`` is an empty list, or a stack of none."""
    if isinstance(tasks, Task):
        found = [leaf for leaf in pytree.tree_leaves(tasks) if isinstance(leaf, Tensor)]
        return bool(found) and all(leaf.dim() > 0 and leaf.shape[0] == 0 for leaf in found)
    return isinstance(tasks, (list, tuple)) and not tasks


def _has_non_finite(leaf: Tensor) -> bool:
    values = leaf.detach()
    if values.layout != torch.strided:
        values = values.coalesce().values() if values.layout == torch.sparse_coo else values.values()
    return values.is_floating_point() and not bool(values.isfinite().all())


def _leaves_in_pieces(task: Task) -> Iterator[tuple[str, Any]]:
    """With those of micro-batches that are in a list; others are made when they are read."""
    for path, leaf in leaves(task):
        if isinstance(leaf, MicroBatches) and isinstance(leaf.batches, (list, tuple)):
            inner, _ = pytree.tree_flatten_with_path(leaf.batches)
            yield from ((f"{path}.batches{pytree.keystr(key)}", piece) for key, piece in inner)
        else:
            yield path, leaf


def _check_values(task: Task, found: Sequence[Any], index: str) -> None:
    if not any(map(_is_meta, found)):
        return
    path = next(path for path, leaf in leaves(task) if _is_meta(leaf))
    raise InputError(f"tasks{index}{path} is on the device meta, without values; give data on a real one")


def _is_meta(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_meta


def _leading_size(tasks: Task, found: Sequence[Any]) -> int:
    sizes = {leaf.shape[0] if isinstance(leaf, Tensor) and leaf.dim() else 0 for leaf in found}
    if len(sizes) == 1 and (size := sizes.pop()):
        return size
    return _refused_size(tasks)


def _refused_size(tasks: Task) -> NoReturn:
    """Raise InputError that says why there is none."""
    sizes: dict[str, int] = {}
    for path, leaf in leaves(tasks):
        if not isinstance(leaf, Tensor) or leaf.dim() == 0:
            raise InputError(
                f"tasks{path} must be a tensor with a leading task dimension, got {kind(leaf)}; "
                "data of other kinds go in as a list of single tasks, with backend='loop'"
            )
        sizes[path] = leaf.shape[0]
    if not sizes:
        raise InputError("the batch of tasks holds no tensors")
    if len(set(sizes.values())) > 1:
        listing = ", ".join(f"tasks{path}: {size}" for path, size in sizes.items())
        raise InputError(f"the leading (task) sizes differ: {listing}; every tensor needs the same number of tasks")
    raise InputError("the batch of tasks is empty: the leading (task) size is 0")
