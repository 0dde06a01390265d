"""One task for many, and many for one: what the shapes of the data, and what a model sees of them, tell apart."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from metaprox.checks.trees import Form, flattened
from metaprox.data.task import Task
from metaprox.errors import InputError
from metaprox.modules.loss import PrivateLoss
from metaprox.modules.sharded import ShardedLoss
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
LIKE_ONE = "the tasks look like one task without a task dimension"
ANEW = "make the problem anew, which forgets what it was given"


@dataclass(frozen=True)
class Seen:
    """What a problem was given before: the ranks of one task's support, and all of it in words."""

    ranks: tuple[int, ...]
    words: str

    @classmethod
    def of(cls, leaves: Sequence[Tensor], count: int | None) -> "Seen":
        """``leaves`` of the support of one task, of a stack of ``count`` or single (None)."""
        given = "one task" if count is None else f"{count} tasks, each"
        return cls(_ranks(leaves), f"{given} with a support of shapes {_shapes(leaves)}")

    @classmethod
    def whole(cls, leaves: Sequence[Tensor], count: int) -> "Seen":
        """That the stack which ``leaves`` were taken from is one task."""
        shapes = ", ".join(str((count, *leaf.shape)) for leaf in leaves)
        return cls(tuple(rank + 1 for rank in _ranks(leaves)), f"one task with a support of shapes {shapes}")


def check_dimensions(problem: ProximalProblem, task: Task, count: int | None) -> None:
    """Refuse ``task``, one of a stack of ``count`` or single (None), where it is of an implausible rank.

    Raises:
        InputError: a scalar class label for each task of vectors; or all tensors of the support of one dimension more,
            or all of one less, than in the tasks that the problem had before: one of the two is then not what it was
            given as.
    """
    leaves, tree = _support(task)
    if not leaves:
        return
    if count is not None and max(_ranks(leaves)) == 1 and any(map(_is_label, leaves)):
        problem.cache["ranks", tree] = Seen.whole(leaves, count)
        raise InputError(f"{LIKE_ONE}: they would be {Seen.of(leaves, count).words}. {ONE_TASK}")
    seen: Seen | None = problem.cache.get(("ranks", tree))
    if seen is not None:
        _refuse_contradiction(leaves, count, seen)


def _refuse_contradiction(leaves: Sequence[Tensor], count: int | None, seen: Seen) -> None:
    """Raise InputError where what is given and what was ``seen`` are a dimension apart: one of them is wrong."""
    given = Seen.of(leaves, count)
    difference = {one - other for one, other in zip(given.ranks, seen.ranks, strict=True)}
    before = f"this problem was given {seen.words}, before"
    if difference == {-1} and count is not None:
        raise InputError(
            f"{LIKE_ONE}: they would be {given.words}, but {before}. {ONE_TASK}. If what was given before is wrong, a "
            f"batch of tasks in place of one, {ANEW}"
        )
    if difference == {-1}:
        raise InputError(
            f"{given.words} has a dimension less than those before: {before}. If that was a batch of tasks in place of "
            f"one, {ANEW}; else give all tasks alike dimensions"
        )
    if difference == {1} and count is None:
        raise InputError(
            f"{given.words} has a dimension more than those before: {before}. It looks like a batch of tasks where one "
            "belongs: give one task's, such as leaf[0] of every tensor. If what was given before is wrong, one task "
            f"in place of a batch, {ANEW}"
        )


def remember_dimensions(problem: ProximalProblem, task: Task, count: int | None) -> None:
    """For the tasks to come: those of this one, one of a stack of ``count`` or single (None), were right."""
    leaves, tree = _support(task)
    if leaves:
        problem.cache["ranks", tree] = Seen.of(leaves, count)


@contextmanager
def batches_told_of(loss: Any, task: Task) -> Iterator[None]:
    """Around an evaluation on ``task``, a single one: a warning where it looks like T tasks of N examples just as well.

    That is: several tensors are [T, N, ...] alike, and a linear layer gets one of them, which has vectors in it.
    """
    leaves, _ = _support(task)
    alike = (
        len({leaf.shape[:2] for leaf in leaves}) == 1 and all(leaf.dim() >= 2 for leaf in leaves) and len(leaves) > 1
    )
    if not isinstance(loss, (PrivateLoss, ShardedLoss)) or not alike:
        yield
        return
    shapes, seen = {leaf.shape for leaf in leaves if leaf.dim() == 3}, []

    def see(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs and isinstance(inputs[0], Tensor) and inputs[0].shape in shapes:
            seen.append(inputs[0].shape)

    with _hooked(loss, (nn.Linear, nn.Bilinear), see):
        yield
    if seen:
        warnings.warn(
            f"one task with a support of shapes {_shapes(leaves)} looks like a batch of {len(leaves[0])} tasks just as "
            "well: if it is one, give one task's, such as leaf[0] of every tensor; a batch goes to an estimator or to "
            "evaluate as it is, without a list around it",
            stacklevel=2,
        )


@contextmanager
def single_examples_refused(problem: ProximalProblem, loss: Any, task: Task, count: int) -> Iterator[None]:
    """Around an evaluation on ``task``, one of ``count``: InputError where a layer gets a tensor of it alone."""
    if not isinstance(loss, (PrivateLoss, ShardedLoss)):
        yield
        return
    shapes = {leaf.shape for leaf in pytree.tree_leaves(task.support) if isinstance(leaf, Tensor)}

    def see(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        dimensions = next(dims for kind, dims in UNBATCHED if isinstance(module, kind))
        data = inputs[0] if inputs else None
        if isinstance(data, Tensor) and data.dim() == dimensions and data.shape in shapes:
            leaves, tree = _support(task)
            if leaves:
                problem.cache["ranks", tree] = Seen.whole(leaves, count)
            raise InputError(
                f"{LIKE_ONE}: the model's {type(module).__name__} got an "
                f"input of shape {tuple(data.shape)}, one example without a batch of them. {ONE_TASK}"
            )

    with _hooked(loss, tuple(kind for kind, _ in UNBATCHED), see):
        yield


@contextmanager
def _hooked(
    loss: PrivateLoss | ShardedLoss,
    kinds: tuple[type[nn.Module], ...],
    see: Callable[[nn.Module, tuple[Any, ...]], None],
) -> Iterator[None]:
    """``see`` is called with each layer of these kinds, and its inputs, before it is."""
    evaluated = loss.module if isinstance(loss, ShardedLoss) else loss.replica.module
    watched = [module for module in evaluated.modules() if isinstance(module, kinds)]
    hooks = [
        module.register_forward_pre_hook(see) for module in watched if not isinstance(module, torch.jit.ScriptModule)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _support(task: Task) -> tuple[list[Tensor], Form]:
    """The tensors of the support, if it holds nothing else, and how it is built."""
    leaves, tree = flattened(task.support)
    return (leaves if all(isinstance(leaf, Tensor) for leaf in leaves) else []), tree


def _is_label(leaf: Tensor) -> bool:
    return leaf.dim() == 0 and not leaf.is_floating_point()


def _ranks(leaves: Sequence[Tensor]) -> tuple[int, ...]:
    return tuple(leaf.dim() for leaf in leaves)


def _shapes(leaves: Sequence[Tensor]) -> str:
    return ", ".join(str(tuple(leaf.shape)) for leaf in leaves)
