"""Which tasks are whose."""

from collections.abc import Sequence
from typing import Any, TypeVar

from torch import Tensor
from torch.utils import _pytree as pytree

from metaprox import checks
from metaprox.data.batch import TaskBatch, has_no_task
from metaprox.data.task import Task
from metaprox.distributed.group import Group
from metaprox.errors import InputError

Tasks = TypeVar("Tasks", Task, Sequence[Any], Tensor)


def shard(tasks: Tasks, group: Any = None) -> Tasks:
    """Returns the part of this process: of a stacked Task, a list of tasks or of ids, a range, or a tensor [T, ...].

    Parts are runs of equal length, but for one task more in the first ones, in the order of the ranks: together they
    are ``tasks``. Where there are fewer tasks than processes the last ones get none. All of it in a single process.

    Args:
        tasks: the same in all processes; ids are best, of which each process makes its own tasks alone.
        group: a process group of torch; None: the default one.

    Raises:
        InputError: it has no order, or no task dimension.
    """
    if isinstance(tasks, Task):
        first, last = span(0 if has_no_task(tasks) else TaskBatch.of(tasks).size, group)
        return pytree.tree_map(lambda leaf: leaf[first:last], tasks)
    if isinstance(tasks, str) or not isinstance(tasks, (Sequence, Tensor)):
        raise InputError(f"tasks must be a mp.Task, a list, a range or a tensor, got {checks.shown(tasks)}")
    first, last = span(len(tasks), group)
    return tasks[first:last]


def span(count: int, group: Any = None) -> tuple[int, int]:
    """Where the part of this process of ``count`` tasks begins and ends."""
    own = Group.of(group)
    if own is None:
        return 0, count
    each, more = divmod(count, own.size)
    first = own.rank * each + min(own.rank, more)
    return first, first + each + (own.rank < more)
