"""Whether what a model says of an example depends on the others that it is given with: some are asked for alone."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from metaprox.modules.loss import ModuleLoss
from metaprox.modules.sharded import ShardedLoss
from metaprox.types import Params


@dataclass(frozen=True)
class Company:
    """What was found of a model.

    Args:
        depends: whether its answers depend on the other examples of the batch.
        by: the first module whose answer does, and its class; "" where that is not known.
    """

    depends: bool
    by: str = ""


def company(loss: ModuleLoss, params: Params, batch: Any) -> Company:
    """Returns what the answers for the first and the last example of a batch depend on.

    They are asked for together with all others, and alone. Where that can't be (the loss does not call its model on N
    examples, their number is 1, the model draws random numbers, takes no single example, or lies in shards), or would
    compile ``torch.compile(model)`` for other shapes, it goes by batch norms alone. Costs a few forward passes, and
    writes on nothing.
    """
    by_norms = Company(loss.uses_batch_statistics(), _batch_norm(loss.model))
    if any(type(module).__name__ == "OptimizedModule" for module in loss.model.modules()):
        return by_norms
    own = loss.private()
    if isinstance(own, ShardedLoss):  # whose ranks would have to ask together
        return by_norms
    calls: list[_Call] = []
    try:
        with (
            torch.no_grad(),
            _untouched_noise(params),
            suppress(Exception),
        ):  # a loss that fails says so where it is used
            with _watched(own.replica.module, calls):
                own(params, batch)
            if calls and (found := calls[0].asked_again(own.replica.module)) is not None:
                return found
    finally:
        own.release()
    return by_norms


@contextmanager
def _untouched_noise(params: Params) -> Iterator[None]:
    devices = {value.device for value in params.values() if value.is_cuda}
    with torch.random.fork_rng(devices=list(devices)):
        yield


@contextmanager
def _watched(module: nn.Module, calls: "list[_Call]") -> Iterator[None]:
    """Around a call of the model, of which arguments and answer are kept."""

    def keep(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        calls.append(_Call(args, kwargs, output))

    handle = module.register_forward_hook(keep, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@dataclass(frozen=True)
class _Call:
    args: Any
    kwargs: Mapping[str, Any]
    output: Any

    def asked_again(self, module: nn.Module) -> Company | None:
        """None where nothing can be said."""
        count = _count([self.args, self.kwargs, self.output])
        if count < 2 or not _alike(module(*self.args, **self.kwargs), self.output):
            return None
        for row in (0, count - 1):
            if not _alike(self._alone(module, row), _rows(self.output, row)):
                return Company(True, self._where(module, row))
        return Company(False)

    def _alone(self, module: nn.Module, row: int) -> Any:
        return module(*_rows(self.args, row), **_rows(self.kwargs, row))

    def _where(self, module: nn.Module, row: int) -> str:
        """The first module, of those that have answered, whose answer for the row is another where it is alone."""
        together, alone = {}, {}
        with suppress(Exception):  # of modules that take no hooks, such as TorchScript's
            together, alone = (_answers(module, call) for call in (self._again, lambda one: self._alone(one, row)))
        for name, answer in together.items():
            fits = name in alone and _count([answer]) == _count([self.output])
            if fits and not _alike(alone[name], _rows(answer, row)):
                return f"{name}, {type(module.get_submodule(name)).__name__}" if name else type(module).__name__
        return ""

    def _again(self, module: nn.Module) -> Any:
        return module(*self.args, **self.kwargs)


def _answers(module: nn.Module, call: Any) -> dict[str, Any]:
    """What each module said at its first call, in the order of their ends."""
    found: dict[str, Any] = {}

    def keeping(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def keep(_: nn.Module, args: Any, output: Any) -> None:
            found.setdefault(name, output)

        return keep

    handles = [one.register_forward_hook(keeping(name)) for name, one in module.named_modules()]
    try:
        call(module)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _count(trees: Any) -> int:
    """How many examples all tensors in the trees are of; 0 where they are not of as many, or there are none."""
    sizes = {len(leaf) if leaf.dim() else 0 for leaf in pytree.tree_leaves(trees) if isinstance(leaf, Tensor)}
    return sizes.pop() if len(sizes) == 1 else 0


def _rows(tree: Any, row: int) -> Any:
    return pytree.tree_map(lambda leaf: leaf[row : row + 1] if isinstance(leaf, Tensor) else leaf, tree)


def _alike(one: Any, other: Any) -> bool:
    """Whether the tensors are the same, as far as half of the digits that they are held with."""
    pairs = list(zip(_tensors(one), _tensors(other), strict=True))
    for a, b in pairs:
        if a.is_floating_point():
            tolerance = torch.finfo(a.dtype).eps ** 0.5 * max(float(b.abs().max()), 1e-30)
            if not torch.allclose(a, b, rtol=0.0, atol=tolerance, equal_nan=True):
                return False
        elif not torch.equal(a, b):
            return False
    return bool(pairs)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def _batch_norm(model: nn.Module) -> str:
    """The first batch norm that takes the statistics of the batch."""
    for name, module in model.named_modules():
        if ModuleLoss.takes_batch_statistics(module):
            return f"{name}, {type(module).__name__}" if name else type(module).__name__
    return ""
