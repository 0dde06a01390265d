"""Which check a setting of a run goes through, by its name or else by its annotation."""

import types
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from metaprox import checks

Check = Callable[[str, Any], Any]

BY_NAME: dict[str, Check] = {
    "seed": checks.seed,
    "lam": checks.nonnegative,
    "damping": checks.nonnegative,
    "lr": checks.nonnegative,
    "momentum": checks.fraction,
    "data": lambda name, value: str(checks.path(name, value)),
}
BY_TYPE: dict[Any, Check] = {
    int: checks.count,
    float: checks.positive,
    bool: checks.switch,
    str: checks.text,
    tuple[int, ...]: lambda name, value: checks.tuple_of(name, value, checks.count),
}


@lru_cache(maxsize=4)
def checks_of(settings: type) -> dict[str, Check]:
    """Field -> check, for a dataclass whose fields are choices, numbers, switches, strings, or None beside these."""
    return {name: _check(name, hint) for name, hint in get_type_hints(settings).items()}


def _check(name: str, hint: Any) -> Check:
    if isinstance(hint, types.UnionType) or type(None) in get_args(hint):
        (kind,) = (part for part in get_args(hint) if part is not type(None))
        return checks.optional(_check(name, kind))
    if name in BY_NAME:
        return BY_NAME[name]
    return checks.one_of(*get_args(hint)) if get_origin(hint) is Literal else BY_TYPE[hint]
