"""Checks of settings and arguments, shared by all that have some. Each raises InputError and changes nothing.

A check of a number, an integer or a switch returns it as Python's own, also where numpy or a tensor without dimensions
held it, so that nothing after it sees another kind.
"""

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Set
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from torch import Tensor

from metaprox.errors import InputError

LARGEST = 2**63 - 1  # integer that torch and numpy hold
LARGEST_NUMBER = 3.4e38  # that float32 holds


def number(name: str, value: Any) -> float:
    """``value`` is a finite number that float32 holds."""
    found = _number(value)
    if found is None or not abs(found) <= LARGEST_NUMBER:
        raise InputError(f"{name} must be a finite number of at most {LARGEST_NUMBER}, got {shown(value)}")
    return found


def positive(name: str, value: Any, why: str = "") -> float:
    """``value`` is a finite number > 0."""
    return _in_range(name, value, "> 0", lambda found: found > 0, why)


def nonnegative(name: str, value: Any, why: str = "") -> float:
    """``value`` is a finite number >= 0."""
    return _in_range(name, value, ">= 0", lambda found: found >= 0, why)


def at_least(name: str, value: Any, least: float) -> float:
    """``value`` is a finite number >= ``least``."""
    return _in_range(name, value, f">= {least}", lambda found: found >= least)


def fraction(name: str, value: Any) -> float:
    """``value`` lies in [0, 1)."""
    found = _number(value)
    if found is None or not 0 <= found < 1:
        raise InputError(f"{name} must lie in [0, 1), got {shown(value)}")
    return found


def count(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """``value`` is an integer >= ``least``, and <= ``most`` or at least one that torch can hold, < 2^63."""
    found = _integer(value)
    if found is None or not least <= found <= (LARGEST if most is None else most):
        limit = f" and <= {most}" if most is not None else " and < 2^63" if found and found > LARGEST else ""
        raise InputError(f"{name} must be an integer >= {least}{limit}, got {shown(value)}")
    return found


def seed(name: str, value: Any) -> int:
    """``value`` is an integer in [0, 2^63), which every generator takes."""
    return count(name, value, least=0)


def switch(name: str, value: Any) -> bool:
    """``value`` is True or False."""
    found = _held(value)
    if not isinstance(found, bool):
        raise InputError(f"{name} must be True or False, got {shown(value)}")
    return found


def choice(name: str, value: Any, known: Iterable[str]) -> str:
    """``value`` is one of ``known``."""
    known = tuple(known)
    if not isinstance(value, str) or value not in known:
        raise InputError(f"unknown {name} {shown(value)}; known: {', '.join(known)}")
    return str(value)


def tuple_of(name: str, value: Any, check: Callable[..., Any], length: int | None = None) -> tuple[Any, ...]:
    """``value`` holds ``length`` values (any number where None) that ``check(name, value)`` takes, in order."""
    if not _listed(value):
        raise InputError(f"{name} must be a list or tuple, got {shown(value)}")
    values = tuple(value)
    if length is not None and len(values) != length:
        raise InputError(f"{name} must hold {length} values, got {shown(value)}")
    return tuple(check(f"{name}[{index}]", one) for index, one in enumerate(values))


def counts(name: str, value: Any) -> tuple[int, ...]:
    """``value`` holds integers >= 1, in order."""
    return tuple_of(name, value, count)


def text(name: str, value: Any) -> str:
    """``value`` is a string."""
    if not isinstance(value, str):
        raise InputError(f"{name} must be a string, got {shown(value)}")
    return value


def patterns(name: str, value: Any) -> str | tuple[str, ...]:
    """``value`` is a name or pattern, or several."""
    if isinstance(value, str):
        return value
    if not _listed(value) and not isinstance(value, Set):
        raise InputError(f"{name} must be a name or pattern of parameters, or several, got {shown(value)}")
    found = tuple(value)
    for one in found:
        if not isinstance(one, str):
            raise InputError(f"{name} must hold names or patterns of parameters, got {shown(one)} in {shown(value)}")
    return found


def path(name: str, value: Any) -> Path:
    """``value`` is a path, or a string that names one."""
    if not isinstance(value, (str, Path)) or value == "":
        raise InputError(f"{name} must be a path, as a string or a Path, got {shown(value)}")
    if "\0" in str(value):
        raise InputError(f"{name} must be a path, which holds no NUL, got {shown(value)}")
    if not str(value).isascii() and str(value) != str(value).encode(errors="replace").decode():
        raise InputError(f"{name} must be a path in UTF-8, got {shown(value)}: rename it")
    return Path(value)


def ids(name: str, value: Any, example: str = "range(100)") -> list[int]:
    """``value`` holds at least one integer: a range, a list, an array, a tensor or an iterator of them."""
    if not _listed(value):
        raise InputError(f"{name} must be a sequence of integers, such as {example}, got {shown(value)}")
    found = [_id(f"{name}[{index}]", one) for index, one in enumerate(value)]
    if not found:
        raise InputError(f"{name} is empty: give at least one task id")
    return found


def settle(settings: Any, **how: Callable[[str, Any], Any]) -> None:
    """Check fields of a frozen dataclass by ``how``, field -> check(name, value), and set them to what it returns."""
    for name, check in how.items():
        object.__setattr__(settings, name, check(name, getattr(settings, name)))


def instance_of(kind: type) -> Callable[[str, Any], Any]:
    """The check that a value is an object of a class."""

    def check(name: str, value: Any) -> Any:
        if not isinstance(value, kind):
            raise InputError(f"{name} must be {_with_article(kind.__name__)}, got {shown(value)}")
        return value

    return check


def optional(check: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    """The same check, which takes None too."""
    return lambda name, value: None if value is None else check(name, value)


def one_of(*known: str) -> Callable[[str, Any], str]:
    """The check that a value is one of ``known``."""
    return lambda name, value: choice(name, value, known)


def count_or(*words: str) -> Callable[[str, Any], Any]:
    """The check that a value is an integer >= 1, None, or one of ``words``."""
    return lambda name, value: (
        value if value is None or (isinstance(value, str) and value in words) else count(name, value)
    )


def shown(value: Any) -> str:
    """``value`` for a message, in one line; of something large its kind, and of a type or function its name."""
    if isinstance(value, Tensor) and (value.dim() or value.is_meta):
        return f"a Tensor of shape {tuple(value.shape)}, {value.dtype}, on {value.device}"
    if isinstance(value, type) or hasattr(value, "__qualname__"):
        return f"the {'class' if isinstance(value, type) else type(value).__name__} {value.__qualname__}"
    kind = type(value).__name__
    try:
        line = " ".join(repr(value).split())
    except Exception:  # of a huge integer, or of the user's own
        return _with_article(kind)
    if len(line) <= 100 and (isinstance(value, _PLAIN) or kind in line):
        return line
    return f"{_with_article(kind)}: {line if len(line) <= 60 else line[:60] + '...'}"


_PLAIN = (str, bytes, bool, int, float, complex, list, tuple, dict, set, type(None))


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiouAEIOU' else 'a'} {noun}"


def _id(name: str, value: Any) -> int:
    found = _integer(value)
    if found is None:
        raise InputError(f"{name} must be an integer, got {shown(value)}")
    return found


def _in_range(name: str, value: Any, bound: str, holds: Callable[[float], bool], why: str = "") -> float:
    found = _number(value)
    if found is None or not (holds(found) and found <= LARGEST_NUMBER):
        limit = f" and <= {LARGEST_NUMBER}" if found is not None and LARGEST_NUMBER < found < math.inf else ""
        raise InputError(
            f"{name} must be a finite number {bound}{limit}, got {shown(value)}{f': {why}' if why else ''}"
        )
    return found


def _listed(value: Any) -> bool:
    """Whether ``value`` holds others in an order."""
    unlike = (str, bytes, Mapping, Set)
    return isinstance(value, Iterable) and not isinstance(value, unlike) and not _has_no_dimension(value)


def _number(value: Any) -> float | None:
    """As Python's own; None where it is no real number that a float can hold."""
    found = _held(value)
    if isinstance(found, bool) or not isinstance(found, Real):
        return None
    try:
        as_float = float(found)
    except OverflowError:
        return None
    return int(found) if isinstance(found, Integral) else as_float


def _integer(value: Any) -> int | None:
    found = _held(value)
    if isinstance(found, bool):
        return None
    try:
        return operator.index(found)
    except TypeError:
        return None


def _held(value: Any) -> Any:
    """What a scalar of numpy, or an array or tensor without dimensions, holds."""
    unusable = isinstance(value, Tensor) and (value.is_meta or value.requires_grad)
    masked = type(value).__module__.startswith("numpy.ma")  # what numpy masks is not there, and its item is 0
    return value if unusable or masked or not _has_no_dimension(value) else value.item()


def _has_no_dimension(value: Any) -> bool:
    return getattr(value, "shape", None) == () and callable(getattr(value, "item", None))
