"""The inner loss vmapped, and the outer one in the loop: where vmap is the faster one for the data of one alone."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from metaprox.checks.trees import flattened, mapped
from metaprox.losses.adapted import AdaptedLoss
from metaprox.losses.backend import Evaluation, Seed
from metaprox.losses.loop import LoopBackend
from metaprox.losses.memory import Memory
from metaprox.losses.vmap import VmapBackend
from metaprox.losses.vmapped import FlatLoss
from metaprox.types import Metrics


@dataclass(frozen=True)
class BackendByLoss(VmapBackend):
    """``VmapBackend`` of the inner loss, and of the outer loss one plain pass for each task and branch.

    For losses that draw no random numbers.
    """

    def evaluate(self, loss: FlatLoss, y: Tensor, data: Any, seed: Seed) -> Evaluation:
        if not _is_outer(loss):
            return super().evaluate(loss, y, data, seed)
        return LoopBackend().evaluate(loss, y, _one_by_one(data), seed)

    def add_gradient(
        self,
        loss: FlatLoss,
        y: Tensor,
        data: Any,
        seed: Seed,
        total: Tensor,
        weight: Tensor | None = None,
        memory: Memory | None = None,
    ) -> None:
        if _is_outer(loss):
            LoopBackend().add_gradient(loss, y, _one_by_one(data), seed, total, weight)
        else:
            super().add_gradient(loss, y, data, seed, total, weight)

    def values(self, loss: FlatLoss, y: Tensor, data: Any, seed: Seed) -> tuple[Tensor, Metrics]:
        if not _is_outer(loss):
            return super().values(loss, y, data, seed)
        return LoopBackend().values(loss, y, _one_by_one(data), seed)


def _is_outer(loss: FlatLoss) -> bool:
    return isinstance(loss, AdaptedLoss) and loss.checked.role == "outer_loss"


def _one_by_one(data: Any) -> list[Any]:
    """Of each task, without its dimension."""
    count = len(flattened(data)[0][0])
    return [mapped(lambda leaf, task=task: leaf[task], data) for task in range(count)]  # type: ignore[misc]
