"""A problem in float64: the same losses on copies of their models, parameters and data."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from metaprox.data.microbatches import MicroBatches
from metaprox.modules.head import ModuleHead
from metaprox.modules.loss import ModuleLoss
from metaprox.modules.replica import Replica
from metaprox.problem import ProximalProblem
from metaprox.types import Loss


def problem_in_float64(problem: ProximalProblem) -> ProximalProblem:
    """Returns the problem on models whose floating-point parameters and buffers are float64; pure losses as they are.

    Costs a copy of the models in float64. Attributes that are tensors and no buffers stay what they are.
    """
    models: dict[int, nn.Module] = {}
    inner, outer = (_loss(loss, models) for loss in (problem.inner_loss, problem.outer_loss))
    own = problem.per_task
    if isinstance(own, ModuleHead):
        own = ModuleHead(own.head, _model(own.model, models), own.loss)
    return ProximalProblem(inner, outer, problem.lam, problem.adapt, per_task=own)


def data_in_float64(data: Any) -> Any:
    """A tree of data with copies of its floating-point tensors in float64, micro-batches included."""
    return pytree.tree_map(_leaf, data)


def _loss(loss: Loss, models: dict[int, nn.Module]) -> Loss:
    if not isinstance(loss, ModuleLoss):
        return loss
    return ModuleLoss(_model(loss.model, models), loss.loss)


def _model(model: nn.Module, models: dict[int, nn.Module]) -> nn.Module:
    """Its copy."""
    if id(model) not in models:
        replica = Replica(model)
        state = dict(model.named_parameters()) | dict(model.named_buffers())
        replica.hold({name: _tensor(tensor) for name, tensor in state.items()})
        models[id(model)] = replica.module
    return models[id(model)]


def _tensor(tensor: Tensor) -> Tensor:
    """A copy of a parameter or buffer, of the same kind."""
    copied = tensor.detach().to(torch.float64 if tensor.is_floating_point() else tensor.dtype, copy=True)
    return nn.Parameter(copied, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copied


def _leaf(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return leaf.detach().to(torch.float64 if leaf.is_floating_point() else leaf.dtype, copy=True)
    if isinstance(leaf, MicroBatches):
        return MicroBatches(_InFloat64(leaf.batches), [weight for weight, _ in leaf])
    return leaf


@dataclass(frozen=True)
class _InFloat64:
    """Batches that are converted when they are read."""

    batches: Iterable[Any]

    def __iter__(self) -> Iterator[Any]:
        return (data_in_float64(batch) for batch in self.batches)
