"""How what a person has becomes inputs of a model, as settings that are kept with the model and run no code of it.

A preprocessing is a frozen dataclass with fields that JSON holds. Loaded models name theirs, and only those that are
registered here are made: the library's own, and those that the program has registered itself.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from importlib import import_module
from typing import Any, TypeVar

from torch import Tensor

from metaprox import checks
from metaprox.errors import InputError

# The library's own, by name; their modules are imported when one is made, for they need extras.
OWN = {
    "pictures": "metaprox.readers.pictures:Pictures",
    "texts": "metaprox.readers.tokens:Texts",
    "columns": "metaprox.readers.columns:Columns",
}
_REGISTERED: dict[str, type["Preprocessing"]] = {}


@dataclass(frozen=True)
class Preprocessing(ABC):
    """Items to inputs: ``preprocessing(items)`` is a tensor with a row for each, or a tree of such tensors.

    A subclass is a frozen dataclass whose fields are numbers, switches, strings, or tuples of these. ``register`` gives
    it the name by which it is kept.
    """

    @abstractmethod
    def __call__(self, items: Sequence[Any] | Tensor) -> Any:
        """Inputs of a model for N items; on the CPU. Raises InputError, naming it, where an item is none."""


Kind = TypeVar("Kind", bound=type[Preprocessing])


def register(name: str) -> Callable[[Kind], Kind]:
    """Returns a decorator: the preprocessing below it is kept, and made again, by ``name``.

    Raises:
        InputError: the name is another's, or the class is no preprocessing.

    Example:
        >>> import torch
        >>> from dataclasses import dataclass
        >>> from metaprox.data.preprocessing import Preprocessing, from_json, register, to_json
        >>> @register("halves")
        ... @dataclass(frozen=True)
        ... class Halves(Preprocessing):
        ...     scale: float = 0.5
        ...     def __call__(self, items):
        ...         return self.scale * torch.tensor(items)
        >>> to_json(Halves())
        {'name': 'halves', 'scale': 0.5}
        >>> from_json({"name": "halves", "scale": 0.25})([4.0])
        tensor([1.])
    """
    checks.text("name", name)

    def kept(kind: Kind) -> Kind:
        if not (isinstance(kind, type) and issubclass(kind, Preprocessing) and is_dataclass(kind)):
            raise InputError(f"{checks.shown(kind)} must be a dataclass that is a Preprocessing, to be registered")
        place = f"{kind.__module__}:{kind.__qualname__}"
        there = _REGISTERED.get(name)
        if OWN.get(name, place) != place or (there and f"{there.__module__}:{there.__qualname__}" != place):
            raise InputError(f"there is a preprocessing {name!r} already: register {kind.__qualname__} by another name")
        _REGISTERED[name] = kind
        return kind

    return kept


def to_json(preprocessing: Preprocessing) -> dict[str, Any]:
    """Returns {"name": name, field: value}.

    Raises:
        InputError: it is not registered, or has a field that JSON does not hold.
    """
    name = next((name for name, kind in _REGISTERED.items() if kind is type(preprocessing)), None)
    if name is None:
        raise InputError(
            f"{checks.shown(preprocessing)} can't be kept: put @metaprox.data.preprocessing.register(name) above its "
            "class, a dataclass that is a Preprocessing"
        )
    values = {"name": name, **asdict(preprocessing)}
    try:
        return json.loads(json.dumps(values, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InputError(f"{checks.shown(preprocessing)} can't be kept in JSON: {error}") from error


def from_json(values: Any) -> Preprocessing:
    """Returns what ``to_json`` described. Imports nothing but metaprox's own modules.

    Raises:
        InputError: the name is unknown, or the fields are not those of that preprocessing.
    """
    if not isinstance(values, Mapping) or not isinstance(values.get("name"), str):
        raise InputError(f"a preprocessing is kept as an object with a name, got {checks.shown(values)}")
    name = values["name"]
    if name not in _REGISTERED and name in OWN:
        import_module(OWN[name].partition(":")[0])
    kind = _REGISTERED.get(name)
    if kind is None:
        raise InputError(
            f"unknown preprocessing {name!r}; known: {', '.join(sorted({*OWN, *_REGISTERED}))}. Import the module that "
            "registers one of your own before you load what uses it"
        )
    given = {key: _tuples(value) for key, value in values.items() if key != "name"}
    if odd := sorted(given.keys() - {field.name for field in fields(kind)}):
        raise InputError(f"the preprocessing {name!r} has no setting {', '.join(odd)}")
    try:
        return kind(**given)
    except TypeError as error:
        raise InputError(f"the preprocessing {name!r} can't be made: {error}") from error


def _tuples(value: Any) -> Any:
    return tuple(_tuples(one) for one in value) if isinstance(value, list) else value
