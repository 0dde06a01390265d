"""A private copy of a module tree, to be evaluated on any tensors. The one place that gives a model other weights.

Nothing is written on the user's module. A call evaluates a ``Replica``: modules of its own, with the live ones'
classes, settings, hooks and modes, and whatever tensors it is told to hold. So threads do not meet, a backward pass
finds the weights of its forward pass (recomputed activations too), and what a forward pass writes is dropped.
"""

import copy
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from metaprox.errors import InputError

# What a module may keep in an attribute that a forward pass writes on: a replica has its own.
_CONTAINERS = frozenset((list, set, deque, dict, OrderedDict, defaultdict))
_WRAPPERS = {
    "DistributedDataParallel": "it would average the gradients of each inner step over tasks that differ; give the "
    "module inside, model.module, and the estimator reduce=mp.distributed.AllReduce(), which averages meta-gradients",
    "DataParallel": "it replicates its own weights, not those of a task; give the module inside, model.module",
    "FullyShardedDataParallel": "its shards would overwrite those of a task; give the module before it is sharded",
    "FSDPModule": "here a copy of the module is wanted, and shards have none: FOBMAML, FOMAML, Reptile and mp.evaluate "
    "take a module in shards; else give it before fully_shard",
}

_WITH_SHARDS = {"OptimizedModule": "compiled modules in shards have not been tried; give the one inside, _orig_mod"}


class Replica:
    """A module tree like ``model``'s that shares no module, attribute dictionary or plain container with it.

    ``hold`` gives it tensors by name; ``reset`` takes them away, with whatever a forward pass has left on it. Between
    the two the module may be called and differentiated, at any time. Attributes that are neither modules, nor their
    methods, nor plain containers are shared, as they are. Costs a few microseconds for each module, and copies no
    tensor, but for TorchScript, whose tensors are copied.

    Raises InputError where the model is one that can't be given other weights.
    """

    def __init__(self, model: nn.Module) -> None:
        memo: dict[int, Any] = {}
        self.module: nn.Module = _replicate(model, memo)
        self._places = places(self.module)
        own = [module for module in memo.values() if isinstance(module, nn.Module)]
        self._states = [(vars(module), dict(vars(module)), _containers(module)) for module in own]

    def hold(self, tensors: Mapping[str, Tensor]) -> None:
        """Put ``tensors`` in the places of the parameters and buffers of these names."""
        for name, tensor in tensors.items():
            for held, key in self._places[name]:
                held[key] = tensor

    def reset(self) -> None:
        """Let go of all that is held, and of what forward passes have put on the modules."""
        for places in self._places.values():
            for held, key in places:
                held[key] = _NOTHING
        for attributes, kept, containers in self._states:
            attributes.clear()
            attributes.update(kept)
            for name, value in containers:
                attributes[name] = _fresh(value)


_NOTHING = torch.empty(0, device="cpu")
_ATOMS = frozenset(
    (
        *(type(None), bool, int, float, complex, str, bytes, type, FunctionType, BuiltinFunctionType),
        *(torch.dtype, torch.device, Tensor, nn.Parameter),
    )
)


def _replicate(value: Any, memo: dict[int, Any]) -> Any:
    """``value``, with all modules, plain containers and methods of modules in it replaced by copies."""
    kind = type(value)
    if kind in _ATOMS:
        return value
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, nn.Module):
        return _replicate_module(value, memo)
    if kind in _CONTAINERS:
        memo[id(value)] = new = value.copy()
        return _fill(new, value, lambda item: _replicate(item, memo)) if value else new
    if kind is tuple:
        return tuple(_replicate(item, memo) for item in value)
    if kind is MethodType:
        return MethodType(value.__func__, _replicate(value.__self__, memo))
    if kind is partial:
        args = [_replicate(item, memo) for item in value.args]
        keywords = {key: _replicate(item, memo) for key, item in value.keywords.items()}
        return partial(_replicate(value.func, memo), *args, **keywords)
    return value


def _fresh(value: Any) -> Any:
    """A copy of a plain container, and of those in it."""
    return _fill(value.copy(), value, _fresh) if type(value) in _CONTAINERS else value


def _fill(new: Any, old: Any, convert: Callable[[Any], Any]) -> Any:
    """``new``, a copy of the container ``old``, with its items converted."""
    if isinstance(new, dict):
        for key, item in old.items():
            if type(item) not in _ATOMS:
                new[key] = convert(item)
    elif not all(type(item) in _ATOMS for item in old):
        new.clear()
        extend = new.update if isinstance(new, set) else new.extend
        extend(convert(item) for item in old)
    return new


def _replicate_module(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    _refuse(module, _WRAPPERS)
    if isinstance(module, torch.jit.ScriptModule):
        return _remember(copy.deepcopy(module), module, memo)
    if type(module).__name__ == "OptimizedModule":  # of torch.compile(module), whose forward calls the live module
        inside: Any = module
        return _remember(type(inside)(_replicate(inside._orig_mod, memo), inside.dynamo_ctx), module, memo)
    new = _remember(object.__new__(type(module)), module, memo)
    attributes = vars(new)
    for name, value in vars(module).items():
        attributes[name] = _replicate(value, memo)
    attributes["_compiled_call_impl"] = None  # of module.compile(): it would call the live module
    return new


def _remember(new: nn.Module, module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    memo[id(module)] = new
    return new


def refuse_wrappers(model: nn.Module) -> None:
    """Raise InputError where a module in it can't be given other weights; by ``fully_shard`` it may be wrapped."""
    known = {name: why for name, why in _WRAPPERS.items() if name != "FSDPModule"}
    for module in model.modules():
        _refuse(module, known | _WITH_SHARDS)


def _refuse(module: nn.Module, known: Mapping[str, str]) -> None:
    for name in (base.__name__ for base in type(module).__mro__):
        if name in known:
            raise InputError(f"the model is, or has in it, a {name}: {known[name]}")


def containers_of(model: nn.Module) -> list[tuple[Any, Any]]:
    """Each plain container among the attributes of its modules, and in these, with a copy of it as it is now."""
    found: dict[int, tuple[Any, Any]] = {}

    def collect(value: Any) -> None:
        if type(value) not in _CONTAINERS or id(value) in found:
            return
        found[id(value)] = (value, value.copy())
        for item in value.values() if isinstance(value, dict) else value:
            collect(item)

    for module in model.modules():
        for name, value in vars(module).items():
            if name not in _OF_EVERY_MODULE:
                collect(value)
    return list(found.values())


def _containers(module: nn.Module) -> list[tuple[str, Any]]:
    """Attributes that are plain containers, as they are now; not those that every module has."""
    return [
        (name, _fresh(value))
        for name, value in vars(module).items()
        if type(value) in _CONTAINERS and name not in _OF_EVERY_MODULE
    ]


_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def modules_of(model: nn.Module) -> list[nn.Module]:
    """Each module in it once, in an order of its own: in a fifth of the time of ``model.modules()``."""
    found: dict[int, nn.Module] = {}
    left = [model]
    while left:
        module = left.pop()
        if id(module) not in found:
            found[id(module)] = module
            left += [child for child in module._modules.values() if child is not None]
    return list(found.values())


def has_tensor(model: nn.Module, name: str) -> bool:
    """Whether a parameter or a buffer has this name, one of those that ``places`` finds."""
    *path, key = name.split(".")
    owner: Any = model
    for part in path:
        owner = owner._modules[part] if owner is not None and part in owner._modules else None
    held = () if owner is None else (owner._parameters, owner._buffers)
    return any(key in tensors and tensors[key] is not None for tensors in held)


def places(module: nn.Module) -> dict[str, list[tuple[Any, str]]]:
    """Each name of a parameter or buffer -> the dictionaries of modules, and the keys, where its tensor is found."""
    of_tensor: dict[int, dict[tuple[int, str], tuple[Any, str]]] = {}
    names: dict[str, int] = {}
    for path, owner in module.named_modules(remove_duplicate=False):
        for held in (owner._parameters, owner._buffers):
            for key, tensor in held.items():
                if tensor is None:
                    continue
                names[f"{path}.{key}" if path else key] = id(tensor)
                of_tensor.setdefault(id(tensor), {})[id(held), key] = (held, key)
    return {name: list(of_tensor[tensor].values()) for name, tensor in names.items()}
