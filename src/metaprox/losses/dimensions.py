"""One task for many, and many for one: what the shapes of the data, and what a model sees of them, tell apart."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from metaprox.data.task import Task
from metaprox.errors import InputError
from metaprox.modules.loss import PrivateLoss
from metaprox.problem import ProximalProblem

# Layers, and the dimensions of an input that holds one example and no batch of them.
UNBATCHED: tuple[tuple[type[nn.Module], int], ...] = (
    (nn.Linear, 1),
    (nn.Bilinear, 1),
    (nn.Embedding, 0),
    (nn.Conv1d, 2),
    (nn.Conv2d, 3),
    (nn.Conv3d, 4),
    (nn.RNNBase, 2),
)
ONE_TASK = (
    "If this is one task, give [mp.Task(support, query)], a list of one. If each task really is one example, give it a "
    "batch dimension of 1"
)


def check_dimensions(problem: ProximalProblem, task: Task, count: int | None) -> None:
    """Raise InputError where ``task``, one of a stack of ``count`` or single (None), is of an implausible rank.

    That is: a scalar class label for each task of vectors; or all tensors of the support of one dimension more, or all
    of one less, than in the tasks that the problem had before.
    """
    ranks, tree = _ranks(task)
    if not ranks:
        return
    seen = problem.cache.get(("ranks", tree))
    shapes = ", ".join(str(tuple(leaf.shape)) for leaf in pytree.tree_leaves(task.support))
    if count is not None:
        labels = any(leaf.dim() == 0 and not leaf.is_floating_point() for leaf in pytree.tree_leaves(task.support))
        if (max(ranks) == 1 and labels) or seen == tuple(rank + 1 for rank in ranks):
            _remember_as_whole(problem, task)
            raise InputError(
                f"the tasks look like one task without a task dimension: as {count} tasks, the support of each would "
                f"be of shapes {shapes}. {ONE_TASK}"
            )
    elif seen is not None and ranks == tuple(rank + 1 for rank in seen):
        raise InputError(
            f"the support, of shapes {shapes}, has a dimension more than in the tasks before: it looks like a batch of "
            "tasks where one belongs. Give one task's, such as leaf[0] of every tensor"
        )


def remember_dimensions(problem: ProximalProblem, task: Task) -> None:
    """For the tasks to come: those of this one were right."""
    ranks, tree = _ranks(task)
    problem.cache["ranks", tree] = ranks


def _remember_as_whole(problem: ProximalProblem, task: Task) -> None:
    """That the stack which ``task`` was taken from is one task."""
    ranks, tree = _ranks(task)
    problem.cache["ranks", tree] = tuple(rank + 1 for rank in ranks)


@contextmanager
def single_examples_refused(problem: ProximalProblem, loss: Any, task: Task) -> Iterator[None]:
    """Around an evaluation on ``task``, of a stack: InputError where a layer gets a tensor of it as one example."""
    if not isinstance(loss, PrivateLoss):
        yield
        return
    shapes = {leaf.shape for leaf in pytree.tree_leaves(task.support) if isinstance(leaf, Tensor)}

    def see(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        dimensions = next(dims for kind, dims in UNBATCHED if isinstance(module, kind))
        data = inputs[0] if inputs else None
        if isinstance(data, Tensor) and data.dim() == dimensions and data.shape in shapes:
            _remember_as_whole(problem, task)
            raise InputError(
                f"the tasks look like one task without a task dimension: the model's {type(module).__name__} got an "
                f"input of shape {tuple(data.shape)}, one example without a batch of them. {ONE_TASK}"
            )

    kinds = tuple(kind for kind, _ in UNBATCHED)
    watched = [module for module in loss.replica.module.modules() if isinstance(module, kinds)]
    hooks = [
        module.register_forward_pre_hook(see) for module in watched if not isinstance(module, torch.jit.ScriptModule)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _ranks(task: Task) -> tuple[tuple[int, ...], Any]:
    """Of the tensors of the support, if it holds nothing else, and how it is built."""
    leaves, tree = pytree.tree_flatten(task.support)
    if not all(isinstance(leaf, Tensor) for leaf in leaves):
        return (), tree
    return tuple(leaf.dim() for leaf in leaves), tree
