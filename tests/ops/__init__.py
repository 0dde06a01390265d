"""The losses and layers of torch that people use, a line each; test_ops.py holds them to plain autograd.

A row is an operation and its inputs, one after another: a shape is an input that adapts, x + p with data x and a
parameter p; ``data.something`` is one that does not. A module's own parameters adapt too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

Input = tuple[int, ...] | Callable[[], Tensor]


@dataclass(frozen=True)
class Op:
    """An operation, made anew by ``build``, and its inputs.

    vmap: whether vmap takes it, or raises. twice: whether it can be differentiated twice, where plain torch can.
    """

    build: Callable[[], Callable[..., Any]]
    inputs: tuple[Input, ...]
    vmap: bool = True
    twice: bool = True

    def model(self) -> nn.Module:
        """The operation with its inputs' parameters, in float64; the same at every call."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)  # torch.manual_seed writes its caller down, for devices too
            return Adapting(self.build(), self.inputs).double()

    def data(self) -> tuple[Tensor, ...]:
        """One task's inputs."""
        made = (one() if callable(one) else torch.randn(one) for one in self.inputs)
        return tuple(leaf.double() if leaf.is_floating_point() else leaf for leaf in made)


def function(op: Callable[..., Any], *inputs: Input, **known: bool) -> Op:
    return Op(lambda: op, inputs, **known)


def layer(build: Callable[[], nn.Module], *inputs: Input, **known: bool) -> Op:
    return Op(build, inputs, **known)


class Adapting(nn.Module):
    """``op`` at x + p, for every input that adapts."""

    def __init__(self, op: Callable[..., Any], inputs: tuple[Input, ...]) -> None:
        super().__init__()
        self.op = op
        self.shifts = nn.ParameterList(None if callable(one) else torch.randn(one) for one in inputs)

    def forward(self, *inputs: Tensor) -> Any:
        return self.op(*(x if p is None else x + p for x, p in zip(inputs, self.shifts, strict=True)))


def scalar(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """What a loss returns; of other outputs, a sum in which every number has its own weight."""
    outputs = [leaf for leaf in pytree.tree_leaves(model(*batch)) if isinstance(leaf, Tensor)]
    real = [torch.view_as_real(leaf) if leaf.is_complex() else leaf for leaf in outputs if not _integer(leaf)]
    if len(real) == 1 and real[0].dim() == 0:
        return real[0]
    return torch.stack([(leaf.flatten().sin() * torch.linspace(0.5, 1.5, leaf.numel())).mean() for leaf in real]).sum()


def _integer(leaf: Tensor) -> bool:
    return not (leaf.is_floating_point() or leaf.is_complex())
