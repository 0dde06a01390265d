"""The evaluations of a loss in compiled graphs, which losses of one origin share."""

from collections.abc import Sequence
from types import NoneType
from typing import Any
from weakref import WeakKeyDictionary

import torch

from metaprox.checks.trees import flattened, mapped
from metaprox.losses.checked import CheckedLoss
from metaprox.losses.compiled import IN_ONE, Batches, Pool, pool_of
from metaprox.losses.guards import unseen
from metaprox.losses.noise import padded_to
from metaprox.losses.origin import origin
from metaprox.vectors.parameters import Structure


class Graphs:
    """The evaluations of ``loss`` on parameters of one structure, in graphs where there are some or may be made.

    A result is None where there is no graph to be had: the caller then does with less, or evaluates in eager mode.

    Graphs belong to the origin of a loss, the code and the classes that it is made of, so that losses, models and
    problems that the same lines make anew use those there are, and to the methods of the classes that torch came by in
    them; what differs all the same, such as a number in a closure, a mode or a hook, torch guards, and a graph is
    added. While something is in force that no guard looks at, there is none.

    Batches of T tasks are padded, with copies of their first task, to the least size from T to 2 T that has graphs. If
    there is none they get their own: T, or from the ``EXACT_SIZES + 1``-th size of a shape on the next power of 2. So a
    shape has at most EXACT_SIZES + log2(largest T) + 1 sizes, and ``MOST_SHAPES`` counts each of them.

    With C kinds of evaluations (a solve and a gradient, each with so many branches: four with symmetric differences; or
    base and branches in one, for each kind of difference)
    there are up to C MOST_SHAPES MOST_CHANGES graphs of a loss. Beyond ``MOST_SHAPES``, or ``MOST_CHANGES`` for one
    shape, a warning says once why there are so many. Those there are stay in use, and further ones are paid for by
    use: one for each ``EVALUATIONS_PER_GRAPH``, in the place of what was not used for longest.
    """

    def __init__(self, loss: CheckedLoss, structure: Structure, also: CheckedLoss | None = None) -> None:
        """``also``: a second loss, for functions of both."""
        self._losses = (loss,) if also is None else (loss, also)
        own = _origin(loss)
        self._pool = pool_of((own, structure), (loss,), structure)
        if also is not None and self._pool is not None:
            self._pool = pool_of((own, structure, _origin(also)), self._losses, structure, self._pool)
        self._latest: tuple[Any, Batches | None, Any] = (None, None, None)

    def run(
        self,
        name: str,
        fixed: Sequence[Any],
        of_tasks: Sequence[Any],
        data: Any,
        evaluations: int = 1,
        kind: Any = NoneType,
        branches: int | None = None,
    ) -> Any:
        """Returns what the function of ``metaprox.losses.traced`` of this ``name`` does; for T padded, if it is.

        fixed: what it gets for all tasks alike. of_tasks: tensors, or trees of them, with a row for each task.
        evaluations: of the loss, which pay for a graph. kind: of what is called in it beside the loss. branches: of
        the first of ``of_tasks``, y [T, B, P], unless given.
        """
        pool = self._pool
        if pool is None:
            return None
        if what := unseen():
            pool.says.warn_of_unseen(what)
            return None
        tasks, branches = len(of_tasks[0]), branches or of_tasks[0].shape[1]
        batches, padded = self._batches(pool, data, tasks)
        if batches is None:
            pool.evaluations += name not in IN_ONE
            return None
        missing = batches.size - tasks
        if missing:
            padded_to(batches.size)
        rows = _padded(tuple(of_tasks), missing)
        found = batches((name, branches, kind), self._losses, *fixed, *rows, padded)
        paid = evaluations if found is not None or name not in IN_ONE else 0  # what is taken in its place pays
        batches.evaluations += paid
        pool.evaluations += paid
        return found

    def _batches(self, pool: Pool, data: Any, tasks: int) -> "tuple[Batches | None, Any]":
        """Where graphs for these data are, and the data padded to their size; looked up once for equal objects."""
        if self._latest[0] is not data:
            batches = pool.batches(_shape(data), tasks)
            self._latest = (data, batches, _padded(data, batches.size - tasks) if batches else None)
        return self._latest[1:]


_ORIGINS: WeakKeyDictionary[Any, tuple[Any, ...]] = WeakKeyDictionary()


def _origin(loss: CheckedLoss) -> tuple[Any, ...]:
    """That of the user's loss, looked for once: what it leaves out, guards see, and so would they see another one."""
    try:
        found = _ORIGINS.get(loss.loss)
        if found is None:
            _ORIGINS[loss.loss] = found = origin(loss)
    except TypeError:  # not hashable, or without weak references
        return origin(loss)
    return found


def _shape(data: Any) -> Any:
    """All of ``data`` [T, ...] that graphs depend on, but T."""
    leaves, tree = flattened(data)
    return tree, tuple((leaf.shape[1:], leaf.dtype, leaf.device) for leaf in leaves)


def _padded(tree: Any, missing: int) -> Any:
    """With ``missing`` further copies of the first row."""
    if not missing:
        return tree
    return mapped(lambda leaf: torch.cat([leaf, leaf[:1].expand(missing, *leaf.shape[1:])]), tree)
