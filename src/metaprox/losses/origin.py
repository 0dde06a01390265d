"""Where a loss comes from: the same for losses and models that the same lines make anew."""

import functools
import types
from collections.abc import Iterator
from typing import Any

DEEPEST = 6  # a loss is a function, around a module and a function, inside a few of ours


def origin(thing: Any) -> tuple[Any, ...]:
    """Returns the code and the types that the callable ``thing`` is made of. Holds no object of the user's.

    What it leaves out, such as a number in a closure, is up to the guards of what is looked up by it.
    """
    return tuple(part.__code__ if isinstance(part, types.FunctionType) else part for part in _parts(thing))


def describe(thing: Any) -> str:
    """The user's own function in ``thing``, or else its class, by name and place."""
    parts = [part for part in _parts(thing) if not is_ours(part.__module__ or "")]
    functions = [part for part in parts if isinstance(part, types.FunctionType)]
    if functions:
        code = functions[0].__code__
        return f"{functions[0].__qualname__} ({code.co_filename}:{code.co_firstlineno})"
    return parts[0].__qualname__ if parts else repr(thing)


def is_ours(module: str) -> bool:
    """Whether a module of this name is a part of metaprox that has no losses for users."""
    return module.startswith("metaprox.") and not module.startswith(
        ("metaprox.models", "metaprox.tasks", "metaprox.text")
    )


def _parts(thing: Any, depth: int = DEEPEST, seen: set[int] | None = None) -> Iterator[Any]:
    """Functions and classes, from the outermost on, each object once."""
    seen = set() if seen is None else seen
    if depth == 0 or not callable(thing) or id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, (types.FunctionType, type)):
        yield thing
    elif not isinstance(thing, (types.MethodType, functools.partial)):
        yield type(thing)
    for part in _held(thing):
        yield from _parts(part, depth - 1, seen)


def _held(thing: Any) -> list[Any]:
    """What it may call."""
    if isinstance(thing, types.FunctionType):
        return [_content(cell) for cell in thing.__closure__ or ()]
    if isinstance(thing, types.MethodType):
        return [thing.__func__, thing.__self__]
    if isinstance(thing, functools.partial):
        return [thing.func, *thing.args, *thing.keywords.values()]
    if isinstance(thing, type):
        return []
    own = getattr(thing, "__dict__", {})
    return [*own.values(), *own.get("_modules", {}).values()]


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not yet assigned
        return None
