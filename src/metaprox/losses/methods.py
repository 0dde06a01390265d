"""The methods of the classes that graphs are made of, at whose names torch does not look again."""

import threading
from collections.abc import Iterable
from operator import is_
from types import FunctionType
from typing import Any

import torch
from torch import nn

from metaprox.losses.checked import CheckedLoss
from metaprox.losses.origin import is_ours, origin
from metaprox.modules.loss import ModuleLoss
from metaprox.modules.replica import modules_of

HEAP_TYPE = 1 << 9  # of a class's __flags__: made by a class statement, so that it can be written on
METHODS = (FunctionType, classmethod, staticmethod, property)
REPLACED_BY_TORCH = ("__init__", "__setstate__")  # of nn.Module, at the first graph

Methods = tuple[Any, ...]


class Replaceable:
    """The classes whose methods graphs were traced with, and these methods as they were then."""

    def __init__(self) -> None:
        self._were: dict[type, Methods] = {}
        self._seen: dict[type, list[Any]] = {}  # all that the class had when its methods were last found to be the same
        self._lock = threading.Lock()

    def add(self, classes: Iterable[type]) -> None:
        """With what they inherit from. Of those that are known already, their methods stay what they were."""
        kinds = dict.fromkeys([kind for each in set(classes) for kind in each.__mro__ if _may_change(kind)])
        with self._lock:  # a new dict: another thread may be looking at the old one
            self._were = {kind: methods_of(kind) for kind in kinds} | self._were

    def are_as_they_were(self) -> bool:
        """Whether none of the methods was replaced, and none was added."""
        return all(self._is_as_it_was(kind, were) for kind, were in self._were.items())

    def _is_as_it_was(self, kind: type, were: Methods) -> bool:
        """In a third of the time where nothing of the class has changed since."""
        now = list(vars(kind).values())
        if _same(now, self._seen.get(kind, [])):
            return True
        if methods_of(kind) != were:
            return False
        self._seen[kind] = now
        return True


def methods_of(kind: type) -> Methods:
    """Its own functions, class methods, static methods and properties, as they are now."""
    others = REPLACED_BY_TORCH if kind is nn.Module else ()
    return tuple([one for name, one in vars(kind).items() if isinstance(one, METHODS) and name not in others])


def replaced_of_tensors() -> str:
    """Returns the name of a method of torch.Tensor that something stands in for; "" where there is none.

    Looked for as often as anything of the class has changed.
    """
    now = list(vars(torch.Tensor).values())
    if not _same(now, _LATEST[0]):
        found = [name for name, it in vars(torch.Tensor).items() if name in _OF_TENSORS and is_alien(it)]
        _LATEST[:] = now, found[0] if found else ""
    name: str = _LATEST[1]
    return name


def is_alien(function: Any) -> bool:
    """Whether it was written elsewhere than in torch, whatever it says of itself."""
    return isinstance(function, FunctionType) and str(function.__globals__.get("__name__")).split(".")[0] != "torch"


def classes_in(loss: CheckedLoss) -> list[type]:
    """Those of its parts and of the model's modules: for a torch that does not say what it came by."""
    modules = modules_of(loss.loss.model) if isinstance(loss.loss, ModuleLoss) else []
    return [part for part in origin(loss) if isinstance(part, type)] + [type(module) for module in modules]


def _may_change(kind: type) -> bool:
    return bool(kind.__flags__ & HEAP_TYPE) and kind is not torch.Tensor and not is_ours(kind.__module__)


def _same(now: list[Any], seen: list[Any]) -> bool:
    """The same objects, none of which is asked."""
    return len(now) == len(seen) and all(map(is_, now, seen))


_LATEST: list[Any] = [[], ""]
_OF_TENSORS = {name for name, it in vars(torch.Tensor).items() if not is_alien(it)} | set(dir(torch._C.TensorBase))
