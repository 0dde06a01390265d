"""Any optimizer of torch as an inner solver."""

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from metaprox import checks
from metaprox.checks import signatures
from metaprox.errors import InputError
from metaprox.solvers.protocol import InnerSolver, Views


@dataclass
class OptimizerState:
    """The optimizer, with the tensors that it steps: for each task and branch, one for each parameter."""

    optimizer: Optimizer
    params: list[Tensor]


@dataclass(frozen=True)
class TorchOptimizer:
    """y <- y + the update of a ``torch.optim`` optimizer (AdamW, RMSprop, Muon, ...), fresh for every solve.

    Each task and branch has its own parameters in the optimizer, in their own shapes, so that optimizers that look at
    whole matrices are what they are elsewhere. The proximal term is part of the gradient that it sees. Costs a gradient
    a step, and keeps what the optimizer does, such as 2 P numbers of AdamW, for each task and branch.

    An optimizer whose step does not shrink with the gradient does not converge to the inner solution at a fixed lr,
    and FO-B-MAML then divides by nu what the branches do not have in common. Give such a base solver a
    ``branch_solver`` that does converge, such as ``mp.Anderson``, with ``residual_correction=True``.

    Args:
        factory: parameters -> optimizer, such as ``functools.partial(torch.optim.AdamW, lr=1e-3)``.
        elementwise: promise that the update of a number depends on that number alone, as in SGD, Adam or RMSprop. All
            tasks, branches and parameters are then stepped as one tensor, which is faster.

    Raises:
        InputError: ``factory`` is no function; at the first solve: it fails, does not return an optimizer of just the
            parameters it got, or the optimizer's step needs a closure (LBFGS).
    """

    factory: Callable[[list[Tensor]], Optimizer]
    elementwise: bool = False
    separate_branches: ClassVar[bool] = True
    differentiable: ClassVar[bool] = False
    _views: Views | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        remedy = "such as functools.partial(torch.optim.AdamW, lr=1e-3)"
        signatures.function("factory", self.factory, "params", remedy, classes=True)
        checks.settle(self, elementwise=checks.switch)

    @property
    def takes_shards(self) -> bool:
        return self.elementwise

    def for_parameters(self, views: Views) -> InnerSolver:
        shaped = copy.copy(self)
        object.__setattr__(shaped, "_views", views)
        return shaped

    def init(self, y: Tensor) -> OptimizerState:
        params = [torch.empty_like(point, requires_grad=False) for point in self._split(y)]
        return OptimizerState(_checked_optimizer(self.factory, params), params)

    def step(self, grad: Tensor, y: Tensor, state: OptimizerState) -> tuple[Tensor, OptimizerState]:
        new = y.clone(memory_format=torch.contiguous_format)
        for param, point, slope in zip(state.params, self._split(new), self._split(grad), strict=True):
            param.data, param.grad = point, slope
        state.optimizer.step()
        for param in state.params:
            param.grad = None
        return new, state

    def _split(self, y: Tensor) -> list[Tensor]:
        """For each task and branch its parameters; without shapes of parameters, its vector of P numbers."""
        if self.elementwise:
            return [y]
        rows = y.flatten(0, 1)
        return list(rows) if self._views is None else [part for row in rows for part in self._views(row).values()]


def _checked_optimizer(factory: Callable[[list[Tensor]], Optimizer], params: list[Tensor]) -> Optimizer:
    """``factory(params)``, if that is an optimizer which steps them, all of them and nothing else."""
    try:
        optimizer = factory(params)
    except Exception as error:
        shapes = ", ".join(str(tuple(p.shape)) for p in params[:4]) + (", ..." if len(params) > 4 else "")
        raise InputError(f"factory can't make an optimizer of parameters of shapes {shapes}: {error}") from error
    if not isinstance(optimizer, Optimizer):
        raise InputError(f"factory must return a torch.optim.Optimizer, got {type(optimizer).__name__}")
    if {id(p) for group in optimizer.param_groups for p in group["params"]} != {id(p) for p in params}:
        raise InputError(
            f"factory made a {type(optimizer).__name__} of other parameters than it was given: it must take all of "
            "these, and none of the model's own; which parameters adapt is said by adapt="
        )
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise InputError(f"{type(optimizer).__name__} needs a closure at every step, which inner solves have not")
    return optimizer
