"""What a user's losses may have written on, as it was before."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from metaprox.data.batch import TaskBatch
from metaprox.data.task import Task
from metaprox.modules.loss import ModuleLoss
from metaprox.problem import ProximalProblem
from metaprox.types import Params


@dataclass(frozen=True)
class Snapshot:
    """Live tensors by what people call them, with the copies and versions that they had."""

    kept: Mapping[str, tuple[Tensor, Tensor, int]]

    @classmethod
    def of(cls, problem: ProximalProblem, params: Params, tasks: Task | list[Task]) -> "Snapshot":
        """Of the models' tensors, the parameters, and the tasks that the losses are to see. Costs a copy of each."""
        named: dict[str, Tensor] = {f"params[{name!r}]": tensor for name, tensor in params.items()}
        for loss in (problem.inner_loss, problem.outer_loss):
            if isinstance(loss, ModuleLoss):
                named |= {f"{name!r} of the model": tensor for name, tensor in loss.state().items()}
        named |= {f"tasks{pytree.keystr(path)}": leaf for path, leaf in pytree.tree_flatten_with_path(tasks)[0]}
        strided = {name: t for name, t in named.items() if isinstance(t, Tensor) and t.layout == torch.strided}
        return cls({name: (tensor, tensor.detach().clone(), _version(tensor)) for name, tensor in strided.items()})

    def changed(self) -> list[str]:
        """The names of those that have been written on since."""
        return [
            name
            for name, (live, copy, version) in self.kept.items()
            if _version(live) != version or not torch.equal(live.nan_to_num(), copy.nan_to_num())
        ]


def copied(batch: TaskBatch, count: int) -> Task | list[Task]:
    """Copies of the first ``count`` tasks, for losses to write on; stacked where the batch is."""
    if batch.stacked is not None:
        return pytree.tree_map(lambda leaf: leaf[:count].detach().clone(), batch.stacked)
    return [pytree.tree_map(_copy, task) for task in batch.singles[:count]]


def _copy(leaf: Any) -> Any:
    return leaf.detach().clone() if isinstance(leaf, Tensor) else leaf


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
