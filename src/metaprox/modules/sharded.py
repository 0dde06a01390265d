"""A module that torch's ``fully_shard`` has put into shards, at other weights: they are written into its own shards.

Its hooks gather and free whole parameters as they do in training, and reduce gradients into shards. What is put in for
an evaluation, or written by it, is put back when that ends.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from metaprox.errors import InputError
from metaprox.modules.replica import containers_of, modules_of, refuse_wrappers
from metaprox.types import LossValue
from metaprox.vectors.shards import Shards, part_here

AGAIN = "reset_iter_state"  # of torch 2.13: without it a module that has failed once goes on with wrong weights


def is_fully_sharded(module: nn.Module) -> bool:
    """Whether ``fully_shard`` was called on it, or on a module in it."""
    return any(map(_is_fsdp, modules_of(module)))


def resharded(module: nn.Module) -> None:
    """Let go of whole parameters that forward passes have left, if it is in shards: its parameters are shards then."""
    if is_fully_sharded(module):
        parts: list[Any] = list(filter(_is_fsdp, module.modules()))
        for part in parts:
            part.reshard()


class ShardedLoss:
    """``loss(model, batch)`` on a model in shards itself, for one evaluation at a time; all ranks evaluate it together.

    Raises InputError where the model's shards are of a kind that gives other gradients.
    """

    def __init__(self, source: Any) -> None:
        self.source = source
        self.module: nn.Module = source.model
        parts: list[Any] = list(filter(_is_fsdp, self.module.modules()))
        _check(self.module, parts)
        within = {id(inner) for part in parts for inner in part.modules() if inner is not part}
        self._roots: list[Any] = [part for part in parts if id(part) not in within]
        resharded(self.module)
        self._params: dict[str, Any] = {n: p for n, p in self.module.named_parameters() if p.requires_grad}
        self._buffers = [(buffer, buffer.detach().clone()) for buffer in self.module.buffers()]
        self._attributes = [(vars(module), dict(vars(module))) for module in self.module.modules()]
        self._containers = containers_of(self.module)

    def __call__(self, params: Mapping[str, Tensor], batch: Any) -> LossValue:
        """``params``: what ``held`` has put into the model."""
        value: LossValue = self.source.loss(self.module, batch)
        return value

    @contextmanager
    def held(self, parts: Mapping[str, Tensor]) -> Iterator[dict[str, Any]]:
        """Yields the model's trainable parameters, without gradients; within, those of these names are ``parts``.

        Takes the memory of one vector of shards.

        Raises:
            InputError: the model has no such parameters.
        """
        for name in parts:
            if name not in self._params:
                raise InputError(f"the model in shards has no parameter {name!r} that requires gradients")
        here = {name: part_here(self._params[name]) for name in parts}
        kept = {name: own.clone() for name, own in here.items()}
        grads = {name: param.grad for name, param in self._params.items()}
        try:
            for name, own in here.items():
                own.copy_(parts[name].view(own.shape))
            for param in self._params.values():
                param.grad = None
            yield self._params
        finally:  # x first: where another rank is gone the hooks' state can't be mended
            for name, own in here.items():
                own.copy_(kept[name])
            for name, param in self._params.items():
                param.grad = grads[name]
            self._put_back()
            self._reset()

    def renew(self) -> None:
        """Between two evaluations in one ``held``: what the first has left on the model goes."""
        self._reset()
        self._put_back()

    def whole_parameters(self) -> list[Tensor]:
        """What the hooks put in the places of shards: leaves of the graph of an evaluation."""
        parts: list[Any] = list(filter(_is_fsdp, self.module.modules()))
        every = [param for part in parts for group in _groups(part) for param in group.fsdp_params]
        return [param._unsharded_param for param in every if hasattr(param, "_unsharded_param")]

    def check_names(self, names: Sequence[str]) -> None:
        self.source.check_names(names)

    def modes(self) -> tuple[bool, ...]:
        modes: tuple[bool, ...] = self.source.modes()
        return modes

    def _reset(self) -> None:
        """The hooks' own state, also after an error; whole parameters go, which are those of other weights."""
        for root in self._roots:
            if root._get_fsdp_state()._is_root:
                root.reset_iter_state()
        resharded(self.module)

    def _put_back(self) -> None:
        for buffer, value in self._buffers:
            buffer.copy_(value)
        for attributes, kept in self._attributes:
            attributes.clear()
            attributes.update(kept)
        for container, items in self._containers:
            container.clear()
            fill: Callable[[Any], None] = container.update if hasattr(container, "update") else container.extend
            fill(items)


def _is_fsdp(module: nn.Module) -> bool:
    kind: Any = type(module)
    return _is_kind_of_fsdp(kind)


@lru_cache(maxsize=512)
def _is_kind_of_fsdp(kind: type) -> bool:
    return any(base.__name__ == "FSDPModule" for base in kind.__mro__)


def _groups(part: Any) -> list[Any]:
    groups: list[Any] = part._get_fsdp_state()._fsdp_param_groups
    return groups


def _check(module: nn.Module, parts: Sequence[Any]) -> None:
    """Raise InputError for what gives other gradients than the module had before it was sharded."""
    refuse_wrappers(module)
    if not hasattr(parts[0], AGAIN):
        raise InputError(
            f"a model in shards needs a torch whose FSDPModule has {AGAIN}, such as 2.13; this is {torch.__version__}"
        )
    for part in parts:
        state = part._get_fsdp_state()
        policy, odd = state._mp_policy, {}
        odd["a MixedPrecisionPolicy, too coarse for differences of solutions: use torch.autocast in the loss"] = any(
            (policy.param_dtype, policy.reduce_dtype, policy.output_dtype)
        )
        odd["set_is_last_backward(False): set it to True"] = not state._state_ctx.is_last_backward
        for group in _groups(part):
            odd["an offload_policy: leave it out"] = type(group.offload_policy).__name__ == "CPUOffloadPolicy"
            odd["set_requires_gradient_sync(False): set it to True"] = not group.reduce_grads
            odd["a gradient divide factor, where the mean over ranks is wanted: leave it out"] = (
                group.gradient_divide_factor is not None
            )
            odd["an all-reduce hook: sum over tasks by reduce=mp.distributed.AllReduce(group=...)"] = (
                getattr(group, "_all_reduce_hook", None) is not None
            )
        for what, found in odd.items():
            if found:
                raise InputError(f"the model in shards has {what}")
    _check_parameters(module)


def _check_parameters(module: nn.Module) -> None:
    """Frozen ones are to be in shards too, or whole alike on all ranks; that trainable ones are is seen by Shards."""
    resharded(module)
    Shards.of({name: param for name, param in module.named_parameters() if param.requires_grad})
