"""The state of an optimizer or schedule as JSON and tensors, and back: the same kinds of things, to the last bit."""

from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from metaprox import checks
from metaprox.errors import InputError

# JSON has lists alone, and objects whose keys are strings: the milestones of a schedule are integers.
KINDS: dict[str, Callable[[Any], Any]] = {
    "tuple": tuple,
    "set": set,
    "dict": dict,
    "OrderedDict": OrderedDict,
    "Counter": lambda items: Counter(dict(items)),
}


def pack(place: str, value: Any, tensors: dict[str, Tensor]) -> Any:
    """Returns ``value`` as JSON holds it; the tensors in it are added to ``tensors`` by their places.

    Raises:
        InputError: it holds something else than numbers, strings, tensors, and lists, tuples, sets and dicts of them.
    """
    if isinstance(value, Tensor):
        tensors[place] = value
        return {"tensor": place}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if type(value) is list:
        return [pack(f"{place}.{index}", one, tensors) for index, one in enumerate(value)]
    if KINDS.get(type(value).__name__) is None:
        raise InputError(f"{place} is {checks.shown(value)}, which a checkpoint does not hold")
    if isinstance(value, Mapping):
        items = [[pack(place, key, tensors), pack(f"{place}.{key}", one, tensors)] for key, one in value.items()]
    else:
        items = pack(place, list(value), tensors)
    return {"kind": type(value).__name__, "items": items}


def unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What ``pack`` packed."""
    if isinstance(value, list):
        return [unpack(one, tensors) for one in value]
    if not isinstance(value, dict):
        return value
    return tensors[value["tensor"]] if "tensor" in value else KINDS[value["kind"]](unpack(value["items"], tensors))
