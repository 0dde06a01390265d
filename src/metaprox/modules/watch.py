"""Whether a forward pass writes on tensors, found out before it does."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


class WouldWriteError(Exception):
    """An operation was about to write on the tensor of this name."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class Unwritten(TorchDispatchMode):
    """While it is entered, an operation of torch that says it writes on one of ``tensors``, or a view, raises instead.

    Raises WouldWriteError. What does not say so, such as the running statistics of a batch norm, passes.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._names = {_memory(tensor): name for name, tensor in tensors.items() if tensor.numel()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in _written(func._schema, args, kwargs or {}) if func._schema.is_mutable else ():
            name = self._names.get(_memory(tensor))
            if name is not None:
                raise WouldWriteError(name)
        return func(*args, **(kwargs or {}))


def _memory(tensor: Tensor) -> int | None:
    """Where it begins; None for tensors that have none, or several."""
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else None


def _written(schema: Any, args: Any, kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    for place, argument in enumerate(schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        value = args[place] if place < len(args) else kwargs.get(argument.name)
        yield from (leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor))
